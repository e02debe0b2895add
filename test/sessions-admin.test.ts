/** What operators do with sessions through the admin API. */
import assert from "node:assert/strict";
import { request } from "node:http";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import t from "tap";
import type { RevocationScope } from "../src/core/administration.ts";
import { forEachAtOnce } from "../src/core/concurrency.ts";
import { handleOf, type Session, type SessionKey } from "../src/core/session.ts";
import type { SessionStore } from "../src/core/store.ts";
import { createSessionAdministration } from "../src/session/administration.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import {
  type RunningGateway,
  startApp,
  startGateway,
  startRedis,
  type Teardown,
  temporaryFolder,
} from "./support/servers.ts";

const TOKEN = "t".repeat(40);
const ABSOLUTE_TIMEOUT_MS = 12 * 3_600_000;

const makers: Record<string, (t: Teardown) => Promise<SessionStore>> = {
  memory: async () => new MemoryStore(),
  sqlite: async (t) => new SqliteStore(join(await temporaryFolder(t), "sessions.db")),
  redis: async (t) => {
    const store = new RedisStore((await startRedis(t)).url, { absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS });
    await store.firstAnswer();
    return store;
  },
};

let made = 0;
const newKey = (prefix = ""): SessionKey => `${prefix}${(++made).toString(36)}-`.padEnd(43, "k");
/** A key whose handle no other has. */
const ownKey = (): SessionKey => newKey(String(made).padStart(12, "0"));

async function put(store: SessionStore, key: SessionKey, changes: Partial<Session> = {}): Promise<SessionKey> {
  const now = Date.now();
  const session = { user: { id: "u" }, data: {}, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1 };
  assert.equal(await store.create(key, { ...session, ...changes }), "created");
  return key;
}

const outcome = async (store: SessionStore, key: SessionKey) => (await store.find(key)).outcome;

async function call(gateway: RunningGateway, method: string, path: string, headers: Record<string, string> = {}) {
  const reply = await ask(gateway.adminUrl + path, { method, headers });
  return { status: reply.status, headers: reply.headers, body: JSON.parse(reply.body || "null"), text: reply.body };
}

for (const [name, make] of Object.entries(makers)) {
  t.test(`${name}: listed, shown without a value, ended`, async (t) => {
    const store = await make(t);
    const gateway = await startGateway(t, {}, { store });
    const now = Date.now();
    const key = await put(store, ownKey(), {
      user: { id: "ada", name: "Ada Secretname", roles: ["queen"] },
      data: { cart: ["hidden"], größe: "ü" },
      createdAt: now - 5000,
      expiresAt: now + 60_000,
      usedAt: now - 1000,
      client: { address: "192.0.2.7", userAgent: "Browser/1" },
    });
    await put(store, ownKey(), { user: { id: "ada" }, createdAt: now - 9000, retiresAt: now + 9000 });
    await put(store, ownKey(), { user: { id: "bob" } });

    const list = await call(gateway, "GET", "/sessions?user=ada");
    t.equal(list.status, 200);
    t.match(list.body, { count: 2, truncated: false });
    t.same(list.body.sessions[0], {
      handle: handleOf(key),
      createdAt: new Date(now - 5000).toISOString(),
      usedAt: new Date(now - 1000).toISOString(),
      expiresAt: new Date(now + 60_000).toISOString(),
      retiresAt: null,
      client: { address: "192.0.2.7", userAgent: "Browser/1" },
    });
    t.match(list.body.sessions[1], { retiresAt: new Date(now + 9000).toISOString(), client: null });

    for (const reference of [handleOf(key), key, key.slice(0, 20), `${handleOf(key)}?user=ada`]) {
      const shown = await call(gateway, "GET", `/sessions/${reference}`);
      t.equal(shown.status, 200, reference);
      t.same(shown.body, {
        ...list.body.sessions[0],
        user: { id: "ada", claims: ["name", "roles"] },
        attributes: [
          { name: "cart", bytes: 10 },
          { name: "größe", bytes: 4 },
        ],
        siblings: [],
        version: 1,
      });
      for (const secret of [key, "hidden", "Secretname", "queen", '"ü"']) t.notMatch(shown.text, secret);
    }
    t.match(await call(gateway, "GET", `/sessions/${handleOf(key)}?user=bob`), { status: 404 });

    t.same((await call(gateway, "DELETE", `/sessions/${handleOf(key)}`)).body, {
      count: 1,
      ended: [handleOf(key)],
      complete: true,
    });
    t.equal(await outcome(store, key), "unknown");
    t.match(await call(gateway, "DELETE", `/sessions/${handleOf(key)}`), { status: 404, body: { error: /no live/ } });
    t.match(await call(gateway, "GET", "/sessions?user=bob"), { body: { count: 1 } });
    t.match(await gateway.metrics(), /^coatcheck_session_events_total\{event="revoked"\} 1$/m);
    const lines = gateway.logs.filter(({ event }) => event === "session.revoked");
    t.match(lines, [{ handle: handleOf(key), scope: "one", level: "info" }]);
    t.equal(lines.length, 1);
    t.notMatch(gateway.logText(), key);
  });

  t.test(`${name}: "end all" ends all, also more than a store lists at once`, async (t) => {
    const store = await make(t);
    const gateway = await startGateway(t, {}, { store });
    const keys = Array.from({ length: 2345 }, ownKey);
    await forEachAtOnce(keys, 100, async (key) => void (await put(store, key, { user: { id: "many" } })));
    const other = await put(store, ownKey(), { user: { id: "other" } });
    t.match((await call(gateway, "GET", "/sessions?user=many")).body, { count: 1000, truncated: true });
    const newest = (await store.byUser("many"))[0]?.key as string;
    const others = await call(gateway, "DELETE", `/sessions?user=many&except=${handleOf(newest)}`);
    t.match(others.body, { count: 2344, complete: true });
    t.notOk(others.body.ended.includes(handleOf(newest)));
    t.same(
      (await store.byUser("many")).map(({ key }) => key),
      [newest],
    );
    t.match((await call(gateway, "DELETE", "/sessions?user=many")).body, { count: 1, ended: [handleOf(newest)] });
    for (const key of keys) assert.equal(await outcome(store, key), "unknown");
    t.equal(await outcome(store, other), "hit");
    t.match((await call(gateway, "DELETE", "/sessions?user=many")).body, { count: 0, ended: [], complete: true });
    t.match(await gateway.metrics(), /^coatcheck_session_events_total\{event="revoked"\} 2345$/m);
    const scopes = gateway.logs.filter(({ event }) => event === "session.revoked").map(({ scope }) => scope);
    t.equal(scopes.filter((scope) => scope === "others").length, 2344);
    t.equal(scopes.filter((scope) => scope === "all").length, 1);
  });

  t.test(`${name}: a handle among many is found in steps that let others through`, async (t) => {
    const store = await make(t);
    t.teardown(() => store.close());
    const keys = Array.from({ length: 5000 }, ownKey);
    await forEachAtOnce(keys, 100, async (key) => void (await put(store, key)));
    const sessions = createSessionAdministration({ store, onRevoked: () => {} });
    let turns = 0;
    const ticker = setInterval(() => turns++, 0);
    for (const key of [keys[17], keys[4321]] as string[])
      t.match(await sessions.show({ prefix: handleOf(key) }), { handle: handleOf(key) });
    clearInterval(ticker);
    if (name === "redis") t.ok(turns > 1, `${turns} turns`);
    t.match(await sessions.show({ prefix: "Z".repeat(12) }), { refused: "not-found" });
    await t.rejects(sessions.show({ prefix: "Z".repeat(12), signal: AbortSignal.abort() }), { name: "AbortError" });
  });

  t.test(`${name}: a prefix that several sessions share is a conflict, unless more is given`, async (t) => {
    const store = await make(t);
    const gateway = await startGateway(t, {}, { store });
    const [one, two] = [newKey("AAAAAAAAAAAA1"), newKey("AAAAAAAAAAAA2")];
    const dead = newKey("AAAAAAAAAAAA3");
    await put(store, one, { user: { id: "one" } });
    await put(store, two, { user: { id: "two" } });
    await put(store, dead, { expiresAt: Date.now() - 1 });
    for (const method of ["GET", "DELETE"])
      t.match(await call(gateway, method, "/sessions/AAAAAAAAAAAA"), { status: 409, body: { error: /several/ } });
    t.match(await call(gateway, "GET", "/sessions/AAAAAAAAAAAA?user=two"), { body: { user: { id: "two" } } });
    t.match(await call(gateway, "GET", "/sessions/AAAAAAAAAAAA1"), { body: { user: { id: "one" } } });
    t.match(await call(gateway, "GET", "/sessions/AAAAAAAAAAAA3"), { status: 404 }, "an expired one is not live");
    t.match(await call(gateway, "DELETE", "/sessions/AAAAAAAAAAAA?user=two"), { body: { count: 1 } });
    t.match(await call(gateway, "DELETE", "/sessions/AAAAAAAAAAAA"), { body: { count: 1 } }, "the one that is left");
    t.equal(await outcome(store, one), "unknown");
  });
}

t.test("ending a session that was just replaced by a login ends what replaced it", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const login = async (cookie?: string) =>
    cookiePair(
      (
        await ask(`${gateway.url}/start`, {
          method: "POST",
          body: '{"user":{"id":"1"}}',
          headers: cookie ? { cookie } : {},
        })
      ).setCookie[0],
    );
  const before = await login();
  const after = await login(before);
  const elsewhere = await login();
  const userOf = async (cookie: string) =>
    JSON.parse((await ask(gateway.url, { headers: { cookie } })).body).headers["x-user-id"];
  const { sessions } = (await call(gateway, "GET", "/sessions?user=1")).body;
  t.equal(sessions.length, 3);
  const old = sessions.find((each: { retiresAt: string | null }) => each.retiresAt !== null);
  t.equal(await userOf(after), "1");

  t.match(
    await call(gateway, "DELETE", `/sessions?user=1&except=${old.handle}`),
    { status: 409, body: { error: /replaced/ } },
    "to keep one that is about to retire would keep nobody",
  );
  const { body } = await call(gateway, "DELETE", `/sessions/${old.handle}`);
  t.equal(body.count, 2);
  t.equal(await userOf(after), "");
  t.equal(await userOf(before), "");
  t.equal(await userOf(elsewhere), "1");
  t.match(await gateway.metrics(), /^coatcheck_session_events_total\{event="revoked"\} 2$/m);
});

t.test("all but one: the one stays, its predecessor in the overlap does not", async (t) => {
  const store = new MemoryStore();
  t.teardown(() => store.close());
  const [kept, old, elsewhere] = [ownKey(), ownKey(), ownKey()];
  await put(store, kept, { siblings: [old] });
  await put(store, old, { siblings: [kept], retiresAt: Date.now() + 10_000 });
  await put(store, elsewhere);
  const told: [handle: string, scope: RevocationScope][] = [];
  const sessions = createSessionAdministration({ store, onRevoked: (handle, scope) => told.push([handle, scope]) });
  t.match(await sessions.endAll("u", handleOf(kept)), { count: 2, complete: true });
  t.same(new Map(told), new Map([old, elsewhere].map((key) => [handleOf(key), "others"])));
  t.equal(await outcome(store, kept), "hit");
  t.match(await sessions.endAll("u", "no-such-one-"), { refused: "not-found" });
  t.equal(await outcome(store, kept), "hit", "nothing is ended when the one to keep is not there");
});

t.test("sessions that begin while all are ended are ended too, and it does not go on for ever", async (t) => {
  /** Somebody who signs in again as soon as a session is ended, so many times. */
  class Busy extends MemoryStore {
    logins = 0;
    override destroy(key: SessionKey) {
      const found = this.find(key);
      if (found.outcome === "hit" && this.logins-- > 0) this.create(ownKey(), found.session);
      return super.destroy(key);
    }
  }
  const store = new Busy();
  t.teardown(() => store.close());
  const sessions = createSessionAdministration({ store, onRevoked: () => {} });
  await put(store, ownKey());
  store.logins = 3;
  t.match(await sessions.endAll("u"), { count: 4, complete: true });
  await put(store, ownKey());
  store.logins = Number.POSITIVE_INFINITY;
  t.match(await sessions.endAll("u"), { complete: false });
});

t.test("parameters are checked strictly", async (t) => {
  const store = new MemoryStore();
  const gateway = await startGateway(t, {}, { store });
  await put(store, ownKey(), { user: { id: "a b/ü%" } });
  const cases: [method: string, path: string, error: RegExp][] = [
    ["GET", "/sessions", /\?user=ID/],
    ["DELETE", "/sessions", /\?user=ID/],
    ["GET", "/sessions?user=", /1 to 256/],
    ["GET", `/sessions?user=${"x".repeat(257)}`, /1 to 256/],
    ["GET", "/sessions?user=a&user=b", /user comes more than once/],
    ["GET", "/sessions?usr=a", /unknown parameter "usr"; known: user$/],
    ["GET", "/sessions?user=a&except=aaaaaaaaaaaa", /unknown parameter "except"; known: user$/],
    ["DELETE", "/sessions?user=a&expect=aaaaaaaaaaaa", /unknown parameter "expect"; known: user, except$/],
    ["DELETE", "/sessions?user=a&except=", /handle, 12 characters/],
    ["DELETE", "/sessions?user=a&except=short", /handle, 12 characters/],
    ["DELETE", "/sessions?user=a?b&except=aaaaaaaaaaaa*", /handle, 12 characters/],
    ["GET", "/sessions?user=%zz", /percent-encoded/],
    ["GET", "/sessions?user=%ff", /percent-encoded/],
    ["GET", "/sessions/%e0%a4", /percent-encoded/],
    ["GET", "/sessions/", /handle, 12 characters/],
    ["DELETE", "/sessions/", /handle, 12 characters/],
    ["DELETE", "/sessions/*", /handle, 12 characters/],
    ["GET", "/sessions/aaaaaaaaaaa", /handle, 12 characters/],
    ["GET", `/sessions/${"a".repeat(44)}`, /handle, 12 characters/],
    ["GET", "/sessions/aaaaaaaaaaaa/x", /handle, 12 characters/],
    ["GET", "/sessions/aaaaaaaaaaaa?colour=red", /unknown parameter "colour"/],
    ["POST", "/store/check?fast=1", /unknown parameter "fast"; there is none here/],
    ["GET", "/debug/exchanges?limit=%c3", /percent-encoded/],
  ];
  for (const [method, path, error] of cases)
    t.match(await call(gateway, method, path), { status: 400, body: { error } }, `${method} ${path}`);
  t.equal((await call(gateway, "GET", "/sessions?user=a+b%2F%C3%BC%25")).body.count, 1);
});

t.test("methods: what each endpoint allows, and HEAD as GET", async (t) => {
  const gateway = await startGateway(t, {});
  const cases: [method: string, path: string, allow: string][] = [
    ["POST", "/sessions?user=a", "GET, HEAD, DELETE"],
    ["PUT", "/sessions/aaaaaaaaaaaa", "GET, HEAD, DELETE"],
    ["OPTIONS", "/sessions", "GET, HEAD, DELETE"],
    ["GET", "/store/check", "POST"],
    ["HEAD", "/store/check", "POST"],
    ["DELETE", "/metrics", "GET, HEAD"],
    ["POST", "/", "GET, HEAD"],
  ];
  for (const [method, path, allow] of cases) {
    const reply = await call(gateway, method, path);
    t.equal(reply.status, 405, `${method} ${path}`);
    t.equal(reply.headers.allow, allow);
  }
  const [get, head] = [await call(gateway, "GET", "/sessions?user=a"), await call(gateway, "HEAD", "/sessions?user=a")];
  t.equal(head.status, 200);
  t.equal(head.text, "");
  t.equal(head.headers["content-length"], get.headers["content-length"]);
});

t.test("token, loopback name and origin are asked of every endpoint", async (t) => {
  const store = new MemoryStore();
  const gateway = await startGateway(t, {}, { store });
  const key = await put(store, ownKey());
  const { port, host } = new URL(gateway.adminUrl);
  for (const [method, path] of [
    ["GET", "/sessions?user=u"],
    ["DELETE", "/sessions?user=u"],
    ["DELETE", `/sessions/${key}`],
    ["POST", "/store/check"],
  ] as const) {
    t.equal((await call(gateway, method, path, { host: "evil.example" })).status, 403);
    const foreign: Record<string, string>[] = [
      { origin: "https://evil.example" },
      { origin: "null" },
      { origin: `http://127.0.0.1:${Number(port) + 1}` },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
      { "sec-fetch-site": "none" },
      { "sec-fetch-site": "same-origin", origin: "https://evil.example" },
    ];
    for (const headers of method === "GET" ? [] : foreign)
      t.match(await call(gateway, method, path, headers), { status: 403, body: { error: /origin/ } });
  }
  t.equal(await outcome(store, key), "hit");
  t.equal((await call(gateway, "GET", "/sessions?user=u", { origin: "https://evil.example" })).status, 200);
  const own = { origin: `http://${host}`, "sec-fetch-site": "same-origin" };
  t.match(await call(gateway, "DELETE", `/sessions/${key}`, own), { status: 200, body: { count: 1 } });
  t.match(await raw(Number(port), "DELETE /sessions?user=u HTTP/1.0\r\n\r\n"), /^HTTP\/1.1 403 /);

  const closed = await startGateway(t, { admin: { port: 0, token: TOKEN } });
  for (const [method, path] of [
    ["GET", "/sessions?user=u"],
    ["DELETE", "/sessions?user=u"],
    ["GET", "/sessions/aaaaaaaaaaaa"],
    ["DELETE", "/sessions/aaaaaaaaaaaa"],
    ["POST", "/store/check"],
  ] as const) {
    t.equal((await call(closed, method, path)).status, 401);
    t.equal((await call(closed, method, path, { authorization: `Bearer ${TOKEN}x` })).status, 401);
    t.not((await call(closed, method, path, { authorization: `Bearer ${TOKEN}` })).status, 401);
  }
});

t.test("an outage is 503 with its code, also in the middle of ending many", async (t) => {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { store: redis.url });
  await redis.kill();
  for (const [method, path] of [
    ["GET", "/sessions?user=u"],
    ["GET", "/sessions/aaaaaaaaaaaa"],
    ["DELETE", "/sessions/aaaaaaaaaaaa"],
    ["DELETE", `/sessions/${"a".repeat(43)}`],
    ["DELETE", "/sessions?user=u"],
    ["DELETE", "/sessions?user=u&except=aaaaaaaaaaaa"],
  ] as const) {
    t.match(await call(gateway, method, path), { status: 503, body: { code: "session_store_unavailable" } }, path);
  }

  await redis.start();
  const store = new RedisStore(redis.url, { absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS });
  await store.firstAnswer();
  t.teardown(() => store.close());
  const keys = Array.from({ length: 300 }, ownKey);
  await Promise.all(keys.map((key) => put(store, key)));
  let ended = 0;
  const sessions = createSessionAdministration({
    store,
    onRevoked: () => {
      if (++ended === 40) redis.freeze();
    },
  });
  await t.rejects(sessions.endAll("u"), {
    code: "session_store_unavailable",
    message: /ended before that: \d+; ask again/,
  });
  redis.thaw();
  await until(async () => (await store.check()).ok);
  t.ok(ended >= 40 && ended < 300, `${ended} were told of`);
  const left = await Promise.all(keys.map((key) => outcome(store, key)));
  t.ok(left.filter((each) => each === "unknown").length >= ended, "all that were told of are gone");
  t.match(await sessions.endAll("u"), { complete: true });
  t.equal((await store.byUser("u")).length, 0);
});

t.test("a client that goes away ends its search, and leaves no line of an unexpected error", async (t) => {
  class Endless extends MemoryStore {
    scans = 0;
    override scan() {
      this.scans++;
      return { keys: [], cursor: String(this.scans) };
    }
  }
  const store = new Endless();
  const gateway = await startGateway(t, {}, { store });
  const req = request(`${gateway.adminUrl}/sessions/aaaaaaaaaaaa`, { agent: false }).end();
  req.on("error", () => {});
  await until(() => store.scans > 10);
  req.destroy();
  // No more steps: the number stays over some turns of the event loop.
  await until(async () => {
    const before = store.scans;
    for (let turn = 0; turn < 100; turn++) await setImmediate();
    return store.scans === before;
  });
  t.notMatch(gateway.logText(), "error.unexpected");
});

t.test("a session that cannot be read can be ended", async (t) => {
  const redis = await startRedis(t);
  const { Redis } = await import("ioredis");
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  const gateway = await startGateway(t, { store: redis.url });
  const key = ownKey();
  await client.hset(`coatcheck:session:${key}`, { v: 1, e: Date.now() + 60_000, t: 1, u: "", d: "{" });
  t.match(await call(gateway, "GET", `/sessions/${handleOf(key)}`), { status: 404, body: { error: /malformed/ } });
  t.match(await call(gateway, "DELETE", `/sessions/${handleOf(key)}`), { body: { count: 1 } });
  t.equal(await client.exists(`coatcheck:session:${key}`), 0);
});
