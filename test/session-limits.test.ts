/** What a session is bound to, how many a user may have, and how long the browser keeps the cookie. */
import { createHash } from "node:crypto";
import t from "tap";
import type { Binding, Session, SessionClient } from "../src/core/session.ts";
import { isMismatch } from "../src/session/binding.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, cookiePair, type Reply, until } from "./support/client.ts";
import { type GatewaySettings, SECRET, startApp, startGateway, startRedis, type Teardown } from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const redis = await startRedis(t);
const NEW_SECRET = "a new secret that has 32 characters";
const cookie = { name: "session", secure: false, secrets: [SECRET] };

async function setUp(
  t: Teardown,
  session: Record<string, unknown>,
  settings: GatewaySettings = {},
  now = Date.now,
  store?: SteppedStore,
) {
  const app = await startApp(t);
  const options = { now, ...(store && { store }) };
  const gateway = await startGateway(t, { upstream: app.url, session: { cookie, ...session }, ...settings }, options);
  const start = (user: string, headers: Record<string, string> = {}) =>
    ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id: user } }), headers });
  const login = async (user: string, headers = {}) => cookiePair((await start(user, headers)).setCookie[0]);
  const get = (pair: string, headers: Record<string, string> = {}, path = "/") =>
    ask(gateway.url + path, { headers: { cookie: pair, ...headers } });
  const who = (reply: Reply): string => JSON.parse(reply.body).headers["x-user-id"];
  return { app, gateway, start, login, get, who };
}

const count = async (gateway: { metrics(): Promise<string> }, event: string) =>
  Number(
    new RegExp(`^coatcheck_session_events_total\\{event="${event}"\\} (\\d+)$`, "m").exec(
      await gateway.metrics(),
    )?.[1] ?? 0,
  );

t.test("which clients are the same", async (t) => {
  const client = (address: string, userAgent = "Firefox"): SessionClient => ({ address, userAgent });
  const cases: [Binding, SessionClient | undefined, SessionClient, mismatch: boolean][] = [
    ["none", client("192.0.2.1"), client("198.51.100.1", "curl"), false],
    ["both", undefined, client("192.0.2.1"), false],
    ["user-agent", client("192.0.2.1"), client("198.51.100.1"), false],
    ["user-agent", client("192.0.2.1"), client("192.0.2.1", "curl"), true],
    ["ip-prefix", client("192.0.2.1"), client("192.0.2.254", "curl"), false],
    ["ip-prefix", client("192.0.2.1"), client("192.0.3.1"), true],
    ["ip-prefix", client("192.0.2.1"), client("2001:db8::1"), true],
    ["ip-prefix", client("2001:db8:1::1"), client("2001:0DB8:0001:ffff:1:2:3:4"), false],
    ["ip-prefix", client("2001:db8::1"), client("2001:db8:0:1::1"), false],
    ["ip-prefix", client("2001:db8::1"), client("2001:db8:1::1"), true],
    ["ip-prefix", client("::1"), client("1::"), true],
    ["both", client("192.0.2.1"), client("192.0.2.9"), false],
    ["both", client("192.0.2.1"), client("192.0.3.9"), true],
    ["both", client("192.0.2.1"), client("192.0.2.9", "curl"), true],
  ];
  for (const [binding, began, uses, mismatch] of cases) {
    const session: Session = {
      user: { id: "1" },
      data: {},
      createdAt: 0,
      expiresAt: 1,
      usedAt: 0,
      version: 1,
      ...(began && { client: began }),
    };
    t.equal(isMismatch(binding, session, uses), mismatch, `${binding}: ${JSON.stringify([began, uses])}`);
  }
});

t.test("bind: a stolen cookie used with another browser is denied, or logged, and counted", async (t) => {
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  for (const onMismatch of ["log", "deny"]) {
    const { gateway, login, get, who } = await setUp(t, { bind: "both", onMismatch }, { listen });
    const home = { "user-agent": "Firefox", "x-forwarded-for": "192.0.2.7" };
    const pair = await login("1", home);
    t.equal(who(await get(pair, home)), "1");
    t.equal(who(await get(pair, { ...home, "x-forwarded-for": "192.0.2.8" })), "1", "the same network");
    t.equal(await count(gateway, "mismatch"), 0);
    const elsewhere = await get(pair, { ...home, "x-forwarded-for": "198.51.100.1" });
    t.equal(who(elsewhere), onMismatch === "log" ? "1" : "");
    t.same(elsewhere.setCookie, [], "the cookie is left alone");
    t.equal(await count(gateway, "mismatch"), 1);
    t.equal(who(await get(pair, { ...home, "user-agent": "curl" })), onMismatch === "log" ? "1" : "");
    t.ok(gateway.logs.some((line) => line.event === "session.mismatch"));
    t.equal((await gateway.exchanges())[0]?.session.outcome, onMismatch === "log" ? "hit" : "mismatch");
    t.equal(who(await get(pair, home)), "1", "the visitor goes on");
    const source = onMismatch === "log" ? "hit" : "mismatch";
    t.match(await gateway.metrics(), new RegExp(`resolutions_total\\{outcome="${source}",source="store"\\} [1-9]`));
  }
});

for (const store of ["memory:", redis.url]) {
  t.test(`maxPerUser on ${store.split(":")[0]}: the oldest session ends, others' do not`, async (t) => {
    const { gateway, login, get, who } = await setUp(t, { maxPerUser: 2 }, { store });
    const user = `limited-${store.length}`;
    const other = await login("other");
    const pairs: string[] = [];
    for (let i = 0; i < 4; i++) {
      pairs.push(await login(user));
      await new Promise((resolve) => setTimeout(resolve, 3));
    }
    const seen = await Promise.all(pairs.map(async (pair) => who(await get(pair))));
    t.same(seen, ["", "", user, user]);
    t.equal(who(await get(other)), "other");
    t.equal(await count(gateway, "evicted"), 2);
    const rotated = await login(user, { cookie: pairs[3] as string });
    t.equal(who(await get(pairs[2] as string)), user, "a rotation replaces a session and does not add one");
    t.equal(who(await get(rotated)), user);
  });
}

t.test("maxPerUser holds when one login overtakes another, and the log says which session has ended", async (t) => {
  const first = Promise.withResolvers<void>();
  let creates = 0;
  const store = new SteppedStore(new MemoryStore(), async (name) => {
    if (name === "create" && ++creates === 1) await first.promise;
  });
  const { gateway, login, get, who } = await setUp(t, { maxPerUser: 1 }, {}, Date.now, store);
  const overtaken = login("1");
  await until(() => creates === 1);
  await new Promise((resolve) => setTimeout(resolve, 3));
  const later = await login("1");
  first.resolve();
  t.equal(who(await get(later)), "1");
  t.equal(who(await get(await overtaken)), "");
  t.equal(await count(gateway, "evicted"), 1);
  const token = (await overtaken).slice("session=".length).split(".")[0] ?? "";
  const handle = createHash("sha256").update(token).digest("base64url").slice(0, 12);
  t.same(
    gateway.logs.filter(({ event }) => event === "session.evicted").map((line) => line.handle),
    [handle],
  );
});

t.test("maxPerUser: a session of a gateway whose clock is ahead is older than the login", async (t) => {
  let now = Date.now();
  const { login, get, who } = await setUp(t, { maxPerUser: 1 }, {}, () => now);
  const before = await login("1");
  now -= 5_000;
  const after = await login("1");
  t.same([who(await get(before)), who(await get(after))], ["", "1"]);
});

t.test("X-Session-End: all ends all, however many a store lists at a time", async (t) => {
  const memory = new MemoryStore();
  const now = Date.now();
  for (let i = 0; i < 1_500; i++) {
    const key = createHash("sha256").update(`${i}`).digest("base64url");
    const session = { user: { id: "1" }, data: {}, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1 };
    memory.create(key, session);
  }
  const store = new SteppedStore(memory, async () => {});
  const { gateway, login } = await setUp(t, {}, {}, Date.now, store);
  const end = { method: "POST", body: "all", headers: { cookie: await login("1") } };
  t.match((await ask(`${gateway.url}/end`, end)).setCookie, [/Max-Age=0/]);
  t.same(memory.byUser("1"), []);
});

t.test("the browser keeps the cookie for the idle timeout, and is told each time that the window slides", async (t) => {
  for (const store of ["memory:", redis.url]) {
    let now = Date.now();
    const { gateway, start, get, who } = await setUp(
      t,
      { idleTimeout: "10m", absoluteTimeout: "15m" },
      { store },
      () => now,
    );
    const begun = await start("slides");
    t.match(begun.setCookie, [/; Max-Age=600; /]);
    const pair = cookiePair(begun.setCookie[0]);
    t.same((await get(pair)).setCookie, [], "not before the debounce interval is over");
    now += 61_000;
    const renewed = await get(pair);
    t.match(renewed.setCookie, [new RegExp(`^${pair}; Max-Age=600; Path=/; HttpOnly; SameSite=Lax$`)]);
    t.equal(renewed.headers["cache-control"], "private");
    const touched = async (times: number) =>
      new RegExp(`operations_total\\{operation="touch",status="touched",.*\\} ${times}$`, "m").test(
        await gateway.metrics(),
      );
    await until(() => touched(1));
    t.same((await get(pair)).setCookie, []);
    now += 9 * 60_000;
    t.match((await get(pair)).setCookie, [/; Max-Age=299; /], "and no longer than to the absolute end");
    await until(() => touched(2));
    now += 240_000;
    t.equal(who(await get(pair)), "slides");
  }
});

t.test("a renewed cookie is signed with the first secret, and shared caches may not keep the response", async (t) => {
  let now = Date.now();
  const { login } = await setUp(t, { cookie }, { store: redis.url }, () => now);
  const pair = await login("renewed");
  const rotated = { ...cookie, secrets: [NEW_SECRET, SECRET] };
  const app = await startApp(t);
  app.server.prependListener("request", (_req, res) => {
    res.setHeader(
      "cache-control",
      'public, max-age=3600, private="set-cookie, x", s-maxage=7200, no-cache="a, public", immutable',
    );
    res.setHeader("surrogate-control", "max-age=3600");
    res.setHeader("cdn-cache-control", "max-age=3600");
  });
  const gateway = await startGateway(
    t,
    { upstream: app.url, store: redis.url, session: { cookie: rotated } },
    { now: () => now },
  );
  now += 61_000;
  const reply = await ask(gateway.url, { headers: { cookie: `a=b; ${pair}; c=d` } });
  const [renewed = ""] = reply.setCookie;
  t.equal(
    cookiePair(renewed).slice(0, "session=".length + 43),
    pair.slice(0, "session=".length + 43),
    "the same token",
  );
  t.not(cookiePair(renewed), pair, "another signature");
  t.equal(reply.headers["cache-control"], 'private, max-age=3600, no-cache="a, public", immutable');
  t.equal(reply.headers["surrogate-control"], undefined);
  t.equal(reply.headers["cdn-cache-control"], undefined);
  const newOnly = await startGateway(t, {
    upstream: app.url,
    store: redis.url,
    session: { cookie: { ...cookie, secrets: [NEW_SECRET] } },
  });
  t.match((await ask(newOnly.url, { headers: { cookie: cookiePair(renewed) } })).body, '"x-user-id":"renewed"');
});

t.test("an old cookie is not renewed over the one of a login that came in between", async (t) => {
  let now = Date.now();
  const go = Promise.withResolvers<void>();
  const { app, start, get } = await setUp(t, {}, { store: redis.url }, () => now);
  const before = cookiePair((await start("between")).setCookie[0]);
  now += 61_000;
  app.server.prependListener("request", (req, res) => {
    if (req.url !== "/slow") return;
    const end = res.end.bind(res);
    res.end = ((body: string) => go.promise.then(() => end(body))) as unknown as typeof res.end;
  });
  const slow = get(before, {}, "/slow");
  await until(() => app.received.some(({ url }) => url === "/slow"));
  t.equal((await start("between", { cookie: before })).setCookie.length, 1);
  go.resolve();
  t.same((await slow).setCookie, []);
});

t.test("onOutage: anonymous serves optional routes without identity; writes fail, the cookie stays", async (t) => {
  const server = await startRedis(t);
  const app = await startApp(t);
  const routes = [
    { upstream: app.url, session: "optional", onOutage: "anonymous", write: ["user", "cart"] },
    { match: { path: "/strict" }, upstream: app.url, session: "optional" },
  ];
  const gateway = await startGateway(t, { routes, store: server.url });
  const body = JSON.stringify({ user: { id: "1" } });
  const pair = cookiePair((await ask(`${gateway.url}/start`, { method: "POST", body })).setCookie[0]);
  await server.kill();
  await until(async () => (await ask(`${gateway.url}/strict`, { headers: { cookie: pair } })).status === 503);
  const reply = await ask(gateway.url, { headers: { cookie: pair } });
  t.equal(reply.status, 200);
  t.equal(JSON.parse(reply.body).headers["x-user-id"], "");
  t.same(reply.setCookie, []);
  t.match((await gateway.exchanges())[0]?.session, { outcome: "unavailable", decision: "anonymous" });
  for (const [path, body] of [
    ["/start", '{"user":{"id":"2"}}'],
    ["/set", '{"cart":1}'],
    ["/end", "this"],
  ] as const) {
    const refused = await ask(gateway.url + path, { method: "POST", body, headers: { cookie: pair } });
    t.equal(refused.status, 503, path);
    t.same(refused.setCookie, [], path);
  }
});
