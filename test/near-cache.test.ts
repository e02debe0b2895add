/**
 * Sessions in this process, as true as Redis: hits cost no command, every change by anybody is seen, and when nobody can
 * tell of changes nothing is believed.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import t from "tap";
import type { FindResult, Session } from "../src/core/session.ts";
import { NearCache, type NearCacheOptions } from "../src/session/near-cache.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { feedState, startApp, startGateway, startRedis, type Teardown } from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";

const USER = { method: "POST", body: '{"user":{"id":"1"},"data":{"cart":"old"}}' };
const IDENTITY = { headers: { "X-User-Id": "/user/id", "X-Cart": "/data/cart" } };

type Seen = Record<string, string>;

async function gatewayOn(t: Teardown, store: string, settings: Record<string, unknown> = {}) {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store, identity: IDENTITY, ...settings });
  const get = async (cookie: string) => {
    const reply = await ask(gateway.url, { headers: { cookie } });
    const source = (await gateway.exchanges())[0]?.session.source;
    return { status: reply.status, seen: JSON.parse(reply.body || "{}").headers as Seen, source };
  };
  const start = async () => cookiePair((await ask(`${gateway.url}/start`, USER)).setCookie[0]);
  return { app, gateway, get, start, told: () => until(async () => (await feedState(gateway)) === "tracking") };
}

async function commands(client: Redis, name: string): Promise<number> {
  const stats = await client.info("commandstats");
  return Number(new RegExp(`^cmdstat_${name}:calls=(\\d+)`, "m").exec(stats)?.[1] ?? 0);
}

t.test("a second request costs Redis nothing, and a change by anybody is seen by the next", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client();
  const one = await gatewayOn(t, redis.url);
  const two = await gatewayOn(t, redis.url);
  await one.told();
  await two.told();
  const cookie = await one.start();
  t.equal((await one.get(cookie)).source, "store");
  const before = await commands(client, "hmget");
  for (let i = 0; i < 20; i++) t.match(await one.get(cookie), { source: "cache", seen: { "x-user-id": "1" } });
  t.equal(await commands(client, "hmget"), before);

  await two.get(cookie);
  t.equal((await two.get(cookie)).source, "cache");
  await ask(`${one.gateway.url}/set`, { method: "POST", body: '{"cart":"new"}', headers: { cookie } });
  t.match(await one.get(cookie), { seen: { "x-cart": "new" } }, "the writer reads what it wrote");
  await until(async () => (await two.get(cookie)).seen["x-cart"] === "new");

  const [key] = await client.keys("coatcheck:session:*");
  await one.get(cookie);
  t.equal((await one.get(cookie)).source, "cache");
  await client.unlink(key as string);
  await until(async () => (await one.get(cookie)).seen["x-user-id"] === "");
  await until(async () => (await two.get(cookie)).seen["x-user-id"] === "");
  const metrics = await one.gateway.metrics();
  t.match(metrics, /^coatcheck_session_cache_invalidations_total [1-9]/m);
  t.match(metrics, /^coatcheck_session_resolutions_total\{outcome="hit",source="cache"\} \d\d/m);
  t.match(metrics, /^coatcheck_session_change_delay_seconds_count\{by="tracking"\} [1-9]/m);
});

t.test("FLUSHALL empties every cache", async (t) => {
  const redis = await startRedis(t);
  const { start, get, told } = await gatewayOn(t, redis.url);
  await told();
  const cookie = await start();
  await get(cookie);
  await redis.client().flushall();
  await until(async () => (await get(cookie)).seen["x-user-id"] === "");
});

t.test("unknown sessions are asked for each time", async (t) => {
  const redis = await startRedis(t);
  const { start, get, told } = await gatewayOn(t, redis.url);
  await told();
  const cookie = await start();
  const client = redis.client();
  const [key = ""] = await client.keys("coatcheck:session:*");
  await client.del(key);
  await until(async () => (await get(cookie)).seen["x-user-id"] === "");
  t.equal((await get(cookie)).source, "store");
  t.equal((await get(cookie)).source, "store");
});

t.test(
  "the tracking connection breaks, stalls or is refused while the data goes on: bypassed, then back",
  async (t) => {
    const redis = await startRedis(t);
    const proxy = await startProxy(t, redis.port);
    const { gateway, start, get, told } = await gatewayOn(t, `redis://127.0.0.1:${proxy.port}/0`);
    await told();
    const cookie = await start();
    await get(cookie);
    t.equal((await get(cookie)).source, "cache");
    const client = redis.client();
    const tracking = async () =>
      ((await client.client("LIST")) as string)
        .split("\n")
        .filter((line) => / flags=\S*[tB]/.test(line) && /sub=1 /.test(line));
    const [line = ""] = await tracking();
    await client.client("KILL", "ID", /id=(\d+)/.exec(line)?.[1] ?? "0");
    await until(async () => (await feedState(gateway)) === "lost" || (await get(cookie)).source === "store");
    await told();
    await get(cookie);
    t.equal((await get(cookie)).source, "cache", "and the cache fills again");
  },
);

t.test("a server that refuses tracking: published messages and maxAge alone, and it says so", async (t) => {
  const redis = await startRedis(t);
  await redis
    .client()
    .acl("SETUSER", "gate", "on", ">secret", "~coatcheck:*", "&coatcheck:*", "+@all", "-client|tracking");
  const url = `redis://gate:secret@127.0.0.1:${redis.port}/0`;
  const [one, two] = [await gatewayOn(t, url, { cache: { maxAge: "1s" } }), await gatewayOn(t, url)];
  for (const { gateway } of [one, two]) await until(async () => (await feedState(gateway)) === "messages");
  t.ok(one.gateway.logs.some(({ msg }) => String(msg).includes("published messages")));
  const cookie = await one.start();
  await one.get(cookie);
  t.equal((await one.get(cookie)).source, "cache");
  await ask(`${two.gateway.url}/set`, { method: "POST", body: '{"cart":"new"}', headers: { cookie } });
  await until(async () => (await one.get(cookie)).seen["x-cart"] === "new");
  await one.get(cookie);
  t.equal((await one.get(cookie)).source, "cache");
  await delay(1_050);
  t.equal((await one.get(cookie)).source, "store", "maxAge bounds what nobody tells");
});

t.test("a server that refuses both: no cache, and it says so", async (t) => {
  const redis = await startRedis(t);
  await redis
    .client()
    .acl("SETUSER", "gate", "on", ">secret", "~coatcheck:*", "resetchannels", "+@all", "-client|tracking");
  const { gateway, start, get } = await gatewayOn(t, `redis://gate:secret@127.0.0.1:${redis.port}/0`);
  await until(async () => (await feedState(gateway)) === "refused");
  const cookie = await start();
  await get(cookie);
  t.equal((await get(cookie)).source, "store");
});

t.test(
  "staleOnOutage: cached sessions are served for a bounded time, counted apart, and upstream is told",
  async (t) => {
    const redis = await startRedis(t);
    const cache = { maxAge: "200ms", staleOnOutage: "1500ms" };
    const { gateway, start, get, told } = await gatewayOn(t, redis.url, { cache });
    await told();
    const cookie = await start();
    await get(cookie);
    await redis.kill();
    const startedMs = performance.now();
    await delay(250);
    const stale = await get(cookie);
    t.match(stale, { status: 200, source: "stale", seen: { "x-user-id": "1" } });
    t.match(stale.seen["x-coatcheck-session"], /^stale; age=\d+$/);
    t.equal((await ask(`${gateway.url}/start`, { ...USER, headers: { cookie } })).status, 503, "a login fails loudly");
    await until(async () => (await get(cookie)).status === 503);
    t.ok(performance.now() - startedMs < 2_500, "bounded");
    t.match(await gateway.metrics(), /^coatcheck_session_resolutions_total\{outcome="hit",source="stale"\} [1-9]/m);
    await redis.start();
    await until(async () => (await ask(gateway.url, { headers: { cookie } })).status === 200);
  },
);

t.test("without staleOnOutage an outage is one at once", async (t) => {
  const redis = await startRedis(t);
  const { start, get, told } = await gatewayOn(t, redis.url);
  await told();
  const cookie = await start();
  await get(cookie);
  await redis.kill();
  await until(async () => (await get(cookie)).status === 503);
  t.match(await get(cookie), { status: 503 });
});

t.test("an outage is not bridged with what the store has said to be over", async (t) => {
  const { cache, asked, hit, answerNext } = byHand({ staleOnOutageMs: 60_000 });
  const find = async (found?: FindResult) => {
    const answer = cache.find("k");
    if (found === undefined) (await until(() => asked.shift())).fail(new Error("no answer"));
    else await answerNext(found);
    return answer;
  };
  await find(hit());
  cache.feed("lost");
  t.match(await find(), { outcome: "hit", source: "stale" });
  t.match(await find({ outcome: "unknown" }), { outcome: "unknown" });
  t.match(await find(), { outcome: "unavailable" }, "a session that has ended");
  cache.feed("tracking");
  await find(hit({ cart: "old" }));
  cache.feed("lost");
  await find(hit({ cart: "new" }));
  t.match(await find(), { outcome: "unavailable" }, "a session that has changed since");
});

/** A cache before a store that answers when it is told to. */
function byHand(options: Partial<NearCacheOptions> = {}) {
  const asked: { key: string; answer: (found: FindResult) => void; fail: (error: Error) => void }[] = [];
  let now = 1_000_000;
  const counted = { evicted: 0, invalidated: 0 };
  const cache = new NearCache({
    store: {
      find: (key) => new Promise((answer, fail) => asked.push({ key, answer, fail })),
    },
    now: () => now,
    maxBytes: 1_000_000,
    maxAgeMs: 10_000,
    staleOnOutageMs: 0,
    observer: {
      ended() {},
      changed() {},
      evicted: () => counted.evicted++,
      invalidated: () => counted.invalidated++,
      feed() {},
      changeDelay() {},
      revocationDelay() {},
    },
    ...options,
  });
  cache.feed("tracking");
  const pass = (ms: number) => {
    now += ms;
  };
  const hit = (data: Session["data"] = {}, changes: Partial<Session> = {}): FindResult => ({
    outcome: "hit",
    session: { user: { id: "1" }, data, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1, ...changes },
  });
  const answerNext = async (found: FindResult) => {
    (await until(() => asked.shift())).answer(found);
  };
  return { cache, asked, hit, pass, answerNext, counted };
}

t.test("an invalidation that arrives during a look-up wins over it", async (t) => {
  const { cache, asked, hit, answerNext } = byHand();
  const answer = cache.find("k");
  await until(() => asked.length === 1);
  cache.changed("k");
  await answerNext(hit({ cart: "old" }));
  await answerNext(hit({ cart: "new" }));
  t.match(await answer, { session: { data: { cart: "new" } }, source: "store" });
  t.match(cache.find("k"), { session: { data: { cart: "new" } }, source: "cache" });
});

t.test("a session that changes all the time is answered, and not kept", async (t) => {
  const { cache, hit, answerNext } = byHand();
  const answer = cache.find("k");
  for (let i = 0; i < 3; i++) {
    cache.changed("k");
    await answerNext(hit({ cart: i }));
  }
  t.match(await answer, { session: { data: { cart: 2 } } });
  t.equal(cache.entries, 0);
});

t.test("requests of one moment ask once; one that comes later, or after a change, asks itself", async (t) => {
  const { cache, asked, hit, answerNext } = byHand();
  const first = cache.find("k");
  const second = cache.find("k");
  t.equal(asked.length, 1);
  cache.changed("k");
  const third = cache.find("k");
  t.equal(asked.length, 2, "a look-up that was overtaken is not joined");
  await answerNext(hit({ cart: "old" }));
  await answerNext(hit({ cart: "new" }));
  await answerNext(hit({ cart: "new" }));
  for (const answer of [first, second, third]) t.match(await answer, { session: { data: { cart: "new" } } });
  t.equal((await second).source, "coalesced");
  const slow = cache.find("slow");
  await delay(40);
  const late = cache.find("slow");
  t.equal(asked.length, 2, "an old look-up is not joined");
  cache.changed("slow");
  await answerNext(hit({ cart: "a" }));
  await answerNext(hit({ cart: "a" }));
  await answerNext(hit({ cart: "b" }));
  await answerNext(hit({ cart: "b" }));
  t.match(await slow, { session: { data: { cart: "b" } } }, "both have been overtaken");
  t.match(await late, { session: { data: { cart: "b" } } });
});

t.test("only hits are kept, and only while the store is heard", async (t) => {
  const { cache, asked, hit, answerNext } = byHand();
  for (const outcome of ["unknown", "expired", "malformed", "newer"] as const) {
    const answer = cache.find("k");
    await answerNext({ outcome });
    t.match(await answer, { outcome, source: "store" });
    t.equal(cache.entries, 0);
  }
  const during = cache.find("k");
  await until(() => asked.length === 1);
  cache.feed("lost");
  await answerNext(hit());
  t.match(await during, { outcome: "hit" });
  t.equal(cache.entries, 0, "what was asked before the loss is not kept");
  const bypassed = cache.find("k");
  await answerNext(hit());
  await bypassed;
  t.equal(cache.entries, 0);
  cache.feed("tracking");
  const kept = cache.find("k");
  await answerNext(hit());
  await kept;
  t.equal(cache.entries, 1);
  cache.feed("lost");
  t.equal(cache.entries, 0);
});

t.test("an entry ends with its session and after maxAge", async (t) => {
  const { cache, asked, hit, pass, answerNext } = byHand();
  const keep = async (key: string, changes: Partial<Session>) => {
    const answer = cache.find(key);
    await answerNext(hit({}, changes));
    await answer;
  };
  await keep("old", {});
  await keep("ending", { expiresAt: 1_005_000 });
  await keep("retiring", { retiresAt: 1_005_000 });
  pass(4_999);
  for (const key of ["old", "ending", "retiring"]) t.match(cache.find(key), { source: "cache" }, key);
  pass(1);
  for (const key of ["ending", "retiring"]) t.ok(cache.find(key) instanceof Promise, key);
  t.match(cache.find("old"), { source: "cache" });
  pass(5_000);
  t.ok(cache.find("old") instanceof Promise);
  t.equal(asked.length, 3);
});

t.test("bounded by bytes: the least recently used go, and one large session does not take all", async (t) => {
  const { cache, hit, answerNext, counted } = byHand({ maxBytes: 50_000 });
  for (let i = 0; i < 100; i++) {
    const answer = cache.find(`k${i}`);
    await answerNext(hit({ text: "x".repeat(500) }));
    await answer;
    t.ok(cache.bytes <= 50_000);
  }
  t.ok(counted.evicted > 20);
  t.match(cache.find("k99"), { source: "cache" });
  const large = cache.find("large");
  await answerNext(hit({ text: "x".repeat(40_000) }));
  await large;
  t.match(cache.find("k99"), { source: "cache" });
});
