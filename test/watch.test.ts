/** Users and sessions under watch. */
import t from "tap";
import { SHOWN_EXCHANGE, type ShownExchange } from "../src/admin/exchange-schema.ts";
import { Capture, maskFields } from "../src/core/capture.ts";
import { Exchange } from "../src/core/exchange.ts";
import type { WatchList, WatchSummary } from "../src/core/watching.ts";
import { Watches } from "../src/observe/watches.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { startReceiver } from "./support/otlp.ts";
import { type RunningGateway, startApp, startGateway, startRedis, startUpstream } from "./support/servers.ts";

const JSON_TYPE = { "content-type": "application/json" };

async function watch(gateway: RunningGateway, body: unknown): Promise<WatchSummary> {
  const reply = await post(gateway, JSON.stringify(body));
  if (reply.status !== 200) throw new Error(reply.body);
  return JSON.parse(reply.body);
}

const post = (gateway: RunningGateway, body: string) =>
  ask(`${gateway.adminUrl}/debug/watch`, { method: "POST", headers: JSON_TYPE, body });

const end = (gateway: RunningGateway, query: string) =>
  ask(`${gateway.adminUrl}/debug/watch?${query}`, { method: "DELETE" });

async function list(gateway: RunningGateway): Promise<WatchList> {
  return JSON.parse((await ask(`${gateway.adminUrl}/debug/watch`)).body);
}

async function watched(gateway: RunningGateway): Promise<ShownExchange[]> {
  return (await gateway.exchanges("watch")) as unknown as ShownExchange[];
}

async function paths(gateway: RunningGateway): Promise<string[]> {
  return (await watched(gateway)).map(({ request }) => request.path).reverse();
}

/** Signs in. @returns the cookie, and the handle. */
async function signIn(gateway: RunningGateway, user: string, cookie = "") {
  const body = JSON.stringify({ user: { id: user } });
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body, headers: cookie === "" ? {} : { cookie } });
  const created = gateway.logs.filter(({ event }) => event === "session.created" || event === "session.rotated").at(-1);
  const setCookie = reply.setCookie.find((value) => value.startsWith("session="));
  return { cookie: cookiePair(setCookie), handle: String(created?.handle) };
}

const visit = (gateway: RunningGateway, path: string, cookie: string) =>
  ask(gateway.url + path, { headers: { cookie } });

/** Waits until so many requests have been kept: a response may arrive before its record is closed. */
const kept = (gateway: RunningGateway, count: number) => until(async () => (await list(gateway)).kept >= count);

t.test("by user: requests of all of their sessions, and of nobody else", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const ada = await signIn(gateway, "ada");
  const phone = await signIn(gateway, "ada");
  const bob = await signIn(gateway, "bob");
  await visit(gateway, "/before", ada.cookie);
  t.match(await watch(gateway, { user: "ada" }), { user: "ada", handle: null, requests: 0, outcomes: {}, handles: [] });
  for (const { cookie } of [ada, phone, bob]) await visit(gateway, "/during", cookie);
  await ask(`${gateway.url}/anonymous`);
  await kept(gateway, 2);
  t.same(await paths(gateway), ["/during", "/during"]);
  const [current] = (await list(gateway)).watches;
  t.match(current, { requests: 2, failed: 0, outcomes: { hit: 2 }, lastRequestAt: /Z$/ });
  t.same(new Set(current?.handles), new Set([ada.handle, phone.handle]));
  const [ended] = [JSON.parse((await end(gateway, "user=ada")).body)];
  t.match(ended, { user: "ada", requests: 2 });
  await visit(gateway, "/after", ada.cookie);
  t.equal((await paths(gateway)).length, 2, "what was gathered can be read when it has ended");
  t.match(await list(gateway), { watches: [], kept: 2, keptUntil: /Z$/ });
});

t.test("by user: the request that shows that the session was lost", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  await watch(gateway, { user: "ada" });
  const { cookie, handle } = await signIn(gateway, "ada");
  await ask(`${gateway.adminUrl}/sessions/${handle}`, { method: "DELETE" });
  await visit(gateway, "/lost", cookie);
  await kept(gateway, 2);
  const [lost, login] = await watched(gateway);
  t.match(login, {
    request: { path: "/start" },
    session: { handle },
    writeBack: [{ command: "start", result: "saved" }],
  });
  t.match(lost, { request: { path: "/lost" }, session: { outcome: "unknown", logout: "ended", handle } });
  t.match(lost?.reason, /the session was ended: by a logout, an operator, or maxPerUser$/);
});

t.test("by user: a login that fails is one of their requests", async (t) => {
  const app = await startApp(t);
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  await watch(gateway, { user: "ada" });
  await redis.kill();
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  t.equal(reply.status, 503);
  await kept(gateway, 1);
  const [login] = await watched(gateway);
  t.match(login, {
    request: { path: "/start" },
    error: { type: "session_store_unavailable" },
    writeBack: [{ command: "start", result: "failed" }],
    response: { status: 503 },
    watch: { response: [{ name: "cache-control", value: "no-store" }] },
  });
  t.match((await list(gateway)).watches, [{ requests: 1, failed: 1 }]);
});

t.test("by user: somebody else who signs in on the same machine is not watched", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const ada = await signIn(gateway, "ada");
  await watch(gateway, { user: "ada" });
  await visit(gateway, "/ada-first", ada.cookie);
  await kept(gateway, 1);
  const bob = await signIn(gateway, "bob", ada.cookie);
  await visit(gateway, "/of-bob", bob.cookie);
  await visit(gateway, "/of-ada", ada.cookie);
  await kept(gateway, 3);
  t.same(await paths(gateway), ["/ada-first", "/start", "/of-ada"]);
});

t.test("by session: it is followed through logins, on whichever instance", async (t) => {
  const app = await startApp(t);
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  const other = await startGateway(t, { upstream: app.url, store: redis.url });
  const first = await signIn(gateway, "ada");
  const stranger = await signIn(gateway, "ada");
  await watch(gateway, { handle: first.handle });
  const second = await signIn(gateway, "ada", first.cookie);
  const third = await signIn(other, "ada", second.cookie);
  t.equal(new Set([first.handle, second.handle, third.handle]).size, 3);
  await visit(gateway, "/third", third.cookie);
  await visit(gateway, "/stranger", stranger.cookie);
  await visit(gateway, "/first", first.cookie);
  await kept(gateway, 3);
  t.same(await paths(gateway), ["/start", "/third", "/first"]);
  t.match((await list(gateway)).watches[0], {
    handle: first.handle,
    handles: [first.handle, second.handle, third.handle],
  });
  t.equal((await end(gateway, `handle=${third.handle}`)).status, 200, "it is named by any of its handles");
});

t.test("by session: also where the store gives no answer, and where the route asks for no session", async (t) => {
  const app = await startApp(t);
  const redis = await startRedis(t);
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/static" }, upstream: app.url, session: "none" },
  ];
  const gateway = await startGateway(t, { routes, store: redis.url, cache: { maxBytes: "0B" } });
  const { cookie, handle } = await signIn(gateway, "ada");
  await watch(gateway, { handle });
  await visit(gateway, "/static/style.css", cookie);
  await redis.kill();
  await visit(gateway, "/down", cookie);
  await kept(gateway, 2);
  t.match(await watched(gateway), [
    { request: { path: "/down" }, session: { outcome: "unavailable" } },
    { request: { path: "/static/style.css" }, session: { outcome: "not-asked" } },
  ]);
});

t.test("watched requests are traced whatever the ratio, and upstream is told", async (t) => {
  const receiver = await startReceiver(t);
  Object.assign(process.env, receiver.environment);
  t.teardown(() => {
    for (const name of Object.keys(receiver.environment)) delete process.env[name];
  });
  const app = await startApp(t);
  const gateway = await startGateway(
    t,
    { upstream: app.url, observe: { traces: { ratio: 0, slowerThan: "1h" } } },
    { environment: receiver.environment },
  );
  const ada = await signIn(gateway, "ada");
  const bob = await signIn(gateway, "bob");
  await watch(gateway, { handle: ada.handle });
  await visit(gateway, "/ada", ada.cookie);
  await visit(gateway, "/bob", bob.cookie);
  t.match(app.received.at(-2)?.headers.traceparent, /-01$/);
  t.match(app.received.at(-1)?.headers.traceparent, /-00$/);
  await gateway.gateway.close();
  const exported = receiver.spans.filter((span) => span.kind === 2).map((span) => span.attributes["url.path"]);
  t.same(exported, ["/ada"]);
});

t.test("a watched request is recorded with all four header sections, masked", async (t) => {
  const upstream = await startUpstream(t, (received, _req, res) => {
    const command = received.url === "/start" ? ["X-Session-Start", received.body] : [];
    res.writeHead(302, [
      ...command,
      "Location",
      "https://shop.example/cart?voucher=hunter2#hunter2",
      "ETag",
      '"hunter2"',
      "Content-Type",
      "text/plain",
      "Set-Cookie",
      "theme=hunter2; Path=/shop; Max-Age=60; HttpOnly; Note=hunter2",
      "X-Request-Token",
      "hunter2",
    ]);
    res.end("hunter2");
  });
  const gateway = await startGateway(t, { upstream: upstream.url });
  const { cookie } = await signIn(gateway, "ada");
  await watch(gateway, { user: "ada" });
  await ask(`${gateway.url}/shop?token=hunter2`, {
    method: "POST",
    body: "hunter2",
    headers: [
      ...["Host", "shop.example", "Accept", "text/html", "Authorization", "Bearer hunter2"],
      ...["Cookie", `${cookie}; theme=hunter2; hunter2`, "Referer", "https://ada:hunter2@shop.example/list?q=hunter2"],
      ...["X-User-Id", "hunter2", "Content-Length", "7", "X-Custom", "hunter2"],
    ],
  });
  await kept(gateway, 1);
  const [exchange] = await watched(gateway);
  t.same(SHOWN_EXCHANGE.safeParse(exchange).error?.issues ?? [], []);
  t.notMatch(JSON.stringify(exchange), "hunter2");
  t.notMatch(JSON.stringify(exchange), cookie.split("=")[1]?.slice(0, 20));
  const { query, request, forwarded = [], upstreamResponse, response = [] } = exchange?.watch ?? { request: [] };
  t.equal(query, "*** (13)");
  t.same(request.slice(0, 9), [
    { name: "Host", value: "shop.example" },
    { name: "Accept", value: "text/html" },
    { name: "Authorization", value: "*** (14)" },
    { name: "Cookie", value: "session=*** (87); theme=*** (7); *** (7)" },
    { name: "Referer", value: "https://shop.example/list?***" },
    { name: "X-User-Id", value: "*** (7)" },
    { name: "Content-Length", value: "7" },
    { name: "X-Custom", value: "*** (7)" },
    { name: "Connection", value: "close" },
  ]);
  const value = (fields: readonly { name: string; value: string }[], name: string) =>
    fields.find((field) => field.name.toLowerCase() === name)?.value;
  t.equal(value(forwarded, "x-user-id"), "*** (3)");
  t.equal(value(forwarded, "x-user-name"), "");
  t.equal(value(forwarded, "cookie"), "theme=*** (7); *** (7)");
  t.equal(value(forwarded, "via"), "1.1 coatcheck");
  t.match(upstreamResponse?.slice(0, 5), [
    { name: "Location", value: "https://shop.example/cart?***#***" },
    { name: "ETag", value: "*** (9)" },
    { name: "Content-Type", value: "text/plain" },
    { name: "Set-Cookie", value: "theme=*** (7); Path=/shop; Max-Age=60; HttpOnly; *** (12)" },
    { name: "X-Request-Token", value: "*** (7)" },
  ]);
  t.same(
    response.map(({ name }) => name.toLowerCase()).filter((name) => name !== "date"),
    [...["location", "etag", "content-type", "set-cookie", "x-request-token"], "via"],
  );
});

t.test("a login under watch shows what the application commanded, and the cookie without its value", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  await watch(gateway, { user: "ada" });
  await signIn(gateway, "ada");
  await kept(gateway, 1);
  const [login] = await watched(gateway);
  t.match(
    login?.watch?.upstreamResponse?.find(({ name }) => name.toLowerCase() === "x-session-start"),
    { value: /^\*\*\* \(\d+\)$/ },
  );
  const setCookie = login?.watch?.response?.find(({ name }) => name === "set-cookie");
  t.match(setCookie?.value, /^session=\*\*\* \(87\); Max-Age=1800; Path=\/; HttpOnly; SameSite=Lax$/);
});

t.test("header sections are only in the ring of watched requests", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const { cookie } = await signIn(gateway, "ada");
  await watch(gateway, { user: "ada" });
  await visit(gateway, "/x", cookie);
  await kept(gateway, 1);
  const [recent, before] = (await gateway.exchanges()) as unknown as ShownExchange[];
  t.match(recent, { watched: true, sampled: true, request: { path: "/x" } });
  t.match(before, { watched: false, sampled: false });
  t.equal(recent?.watch, undefined);
});

t.test("a watch ends by itself, is counted and logged, and no user is named in the log", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const active = async () => /^coatcheck_watches_active (\d+)$/m.exec(await gateway.metrics())?.[1];
  t.equal(await active(), "0");
  const { handle } = await signIn(gateway, "somebody");
  const began = await watch(gateway, { user: "ada-lovelace", for: "1s" });
  t.equal(Date.parse(began.endsAt) - Date.parse(began.beganAt), 1_000);
  await watch(gateway, { handle });
  t.equal(await active(), "2");
  await until(async () => (await active()) === "1");
  t.equal((await end(gateway, `handle=${handle}`)).status, 200);
  t.equal(await active(), "0");
  const events = gateway.logs.filter(({ event }) => String(event).startsWith("watch."));
  t.match(events, [
    { event: "watch.began", watch: "user", until: began.endsAt, handle: undefined },
    { event: "watch.began", watch: "session", handle, until: /Z$/ },
    { event: "watch.ended", watch: "user", by: "time", requests: 0 },
    { event: "watch.ended", watch: "session", handle, by: "operator", requests: 0 },
  ]);
  t.notMatch(gateway.logText(), "ada-lovelace");
});

t.test("asked for again, a watch goes on with a new end and what it has gathered", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const { cookie } = await signIn(gateway, "ada");
  const first = await watch(gateway, { user: "ada", for: "1h" });
  await visit(gateway, "/", cookie);
  await kept(gateway, 1);
  const second = await watch(gateway, { user: "ada", for: "2h" });
  t.match(second, { id: first.id, beganAt: first.beganAt, requests: 1 });
  t.ok(second.endsAt > first.endsAt);
  t.equal((await list(gateway)).watches.length, 1);
});

t.test("a request is found by its watch", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const [ada, bob] = [await signIn(gateway, "ada"), await signIn(gateway, "bob")];
  const watches = [await watch(gateway, { user: "ada" }), await watch(gateway, { user: "bob" })];
  await watch(gateway, { handle: ada.handle });
  await visit(gateway, "/ada", ada.cookie);
  await visit(gateway, "/bob", bob.cookie);
  await kept(gateway, 2);
  const [ofBob, ofAda] = await watched(gateway);
  t.equal(ofAda?.watch?.ids.length, 2);
  t.same(ofBob?.watch?.ids, [watches[1]?.id]);
  const query = `ring=watch&watch=${watches[0]?.id}`;
  t.match(JSON.parse((await ask(`${gateway.adminUrl}/debug/exchanges?${query}`)).body), {
    kept: 2,
    matched: 1,
    exchanges: [{ request: { path: "/ada" } }],
  });
});

t.test("what cannot be asked is refused with what to write instead", async (t) => {
  const gateway = await startGateway(t, {});
  const bodies: [body: string, message: RegExp][] = [
    ["{}", /^say whom: \{"user": ID\} or \{"handle": HANDLE\}, one of them$/],
    ['{"user":"a","handle":"aaaaaaaaaaaa"}', /^say whom/],
    ['{"user":""}', /^user must have 1 to 256 characters$/],
    ['{"user":7}', /^user must be text$/],
    ['{"handle":"short"}', /^handle must be a handle: 12 characters/],
    ['{"user":"a","for":"999ms"}', /^for must be a duration from 1s to 24h, such as 15m$/],
    ['{"user":"a","for":"25h"}', /^for must be a duration from 1s to 24h/],
    ['{"user":"a","for":900}', /^for must be a duration from 1s to 24h/],
    ['{"user":"a","until":"15m"}', /Unrecognized key: "until"/],
    ["user=a", /the body is not JSON/],
  ];
  for (const [body, message] of bodies) {
    const reply = await post(gateway, body);
    t.equal(reply.status, 400, body);
    t.match(JSON.parse(reply.body).error, message);
  }
  const queries: [query: string, status: number, message: RegExp][] = [
    ["", 400, /^say which: \?user=ID or \?handle=HANDLE, one of them$/],
    ["user=a&handle=aaaaaaaaaaaa", 400, /^say which/],
    ["handle=x", 400, /must be a handle/],
    ["id=1", 400, /unknown parameter "id"; known: user, handle/],
    ["user=nobody", 404, /there is no such watch/],
  ];
  for (const [query, status, message] of queries) {
    const reply = await end(gateway, query);
    t.equal(reply.status, status, query);
    t.match(JSON.parse(reply.body).error, message);
  }
  t.same((await list(gateway)).watches, []);
});

t.test("there are at most a hundred watches", async (t) => {
  const gateway = await startGateway(t, {});
  for (let i = 0; i < 100; i++) await watch(gateway, { user: `user-${i}` });
  const refused = await post(gateway, '{"user":"one more"}');
  t.equal(refused.status, 409);
  t.match(JSON.parse(refused.body).error, /there are 100 watches already; end one/);
  t.equal((await post(gateway, '{"user":"user-7"}')).status, 200, "one that is there can go on");
  await end(gateway, "user=user-1");
  t.equal((await post(gateway, '{"user":"one more"}')).status, 200);
});

function watchedExchange(watches: Watches): Exchange {
  const init = { method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "t", spanId: "s" } as const;
  const exchange = new Exchange(init);
  watches.look({ url: "/", rawHeaders: [] }, { keys: [], session: { user: { id: "ada" } } }, exchange);
  return exchange;
}

t.test("what was gathered is kept for ten minutes after the last watch, and for five hundred requests", (t) => {
  t.clock.enter();
  const ended: string[] = [];
  const watches = new Watches({ onBegan: () => {}, onEnded: (_, by) => ended.push(by) });
  watches.begin({ user: "ada" }, 60_000);
  watches.begin({ user: "bob" }, 120_000);
  const late = watchedExchange(watches);
  for (let i = 0; i < 501; i++) watches.keep(watchedExchange(watches));
  t.equal(watches.records().length, 500);
  t.clock.advance(60_000);
  t.match(watches.list(), { watches: [{ user: "bob" }], kept: 500, keptUntil: null });
  t.clock.advance(60_000);
  t.match(watches.list(), { watches: [], kept: 500, keptUntil: new Date(t.clock.now() + 600_000).toISOString() });
  t.clock.advance(599_000);
  t.equal(watches.records().length, 500);
  watches.begin({ user: "eve" }, 10_000);
  t.clock.advance(10_000);
  t.clock.advance(599_000);
  t.equal(watches.records().length, 500, "a watch in between keeps them longer");
  t.clock.advance(1_000);
  t.match(watches.list(), { watches: [], kept: 0, keptUntil: null });
  watches.keep(late);
  t.equal(watches.records().length, 0, "a request that took longer than that begins no new ring");
  t.equal(late.capture, undefined);
  t.same(ended, ["time", "time", "time"]);
  t.end();
});

t.test("values are shown by allow-list alone", (t) => {
  const shown = (name: string, value: string) => maskFields([name, value])[0]?.value;
  const cases: [name: string, value: string, shown: string][] = [
    ["x-anything", "secret", "*** (6)"],
    ["x-anything", "", ""],
    ["AUTHORIZATION", "secret", "*** (6)"],
    ["Accept", "a/b", "a/b"],
    ["user-agent", "u".repeat(300), `${"u".repeat(256)}…`],
    ["cookie", "a=1;b=22; c=", "a=*** (1); b=*** (2); c="],
    ["cookie", `${"n".repeat(41)}=1`, "*** (43)"],
    ["cookie", 'a b=1; "x"=2', "*** (5); *** (5)"],
    [
      "set-cookie",
      "a=1; Secure; SameSite=None; Domain=x.example; Priority=High",
      "a=*** (1); Secure; SameSite=None; Domain=x.example; *** (13)",
    ],
    ["location", "/next?code=1", "/next?***"],
    ["location", "next#token", "/next#***"],
    ["location", "myapp://callback/token", "*** (22)"],
    ["location", "https://u:p@h.example:8443/a", "https://h.example:8443/a"],
    ["location", "http://[", "*** (8)"],
    ["referer", "https://h.example/", "https://h.example/"],
    ["constructor", "x", "*** (1)"],
    ["__proto__", "x", "*** (1)"],
  ];
  for (const [name, value, expected] of cases) t.equal(shown(name, value), expected, `${name}: ${value}`);
  t.same(maskFields([Buffer.from("X-\u00e9", "latin1"), Buffer.from("a\u00e9", "latin1")]), [
    { name: "X-\u00e9", value: "*** (2)" },
  ]);
  t.equal(maskFields(["n".repeat(100), ""])[0]?.name.length, 64);
  t.equal(new Capture({ url: "/a?", rawHeaders: [] }).query, "");
  t.end();
});
