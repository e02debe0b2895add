/** A store is replaced while it serves: nobody is logged out, and nobody who logged out comes back. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Redis } from "ioredis";
import t from "tap";
import { storeUnavailable } from "../src/core/errors.ts";
import { EXPIRED_GRACE_MS, type Session, type SessionKey } from "../src/core/session.ts";
import type { SessionStore } from "../src/core/store.ts";
import { PLAIN_JSON } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { FallbackStore } from "../src/store/fallback.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { openStore } from "../src/store/open.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { startApp, startGateway, startRedis, temporaryFolder } from "./support/servers.ts";
import { type StepName, SteppedStore } from "./support/stepped-store.ts";

const HOUR_MS = 3_600_000;
const OPTIONS = { now: Date.now, absoluteTimeoutMs: 12 * HOUR_MS, codec: PLAIN_JSON };

const redis = await startRedis(t);

type MakeStore = (now: () => number) => Promise<SessionStore>;

const stores: Record<string, MakeStore> = {
  memory: async (now) => new MemoryStore(now),
  sqlite: async (now) => new SqliteStore(":memory:", { now }),
  redis: async (now) => {
    const store = new RedisStore(redis.url, { ...OPTIONS, now });
    await store.firstAnswer();
    return store;
  },
};

/** Sessions begin in the fallback, as they did before the store was replaced. */
class BegunInFallback extends FallbackStore {
  readonly #fallback: SessionStore;

  constructor(primary: SessionStore, fallback: SessionStore, now: () => number) {
    super(primary, fallback, now);
    this.#fallback = fallback;
  }

  override create(key: SessionKey, session: Session) {
    return this.#fallback.create(key, session);
  }
}

for (const [primary, fallback] of [
  ["memory", "memory"],
  ["redis", "sqlite"],
  ["sqlite", "redis"],
] as const) {
  for (const [begun, Store] of [
    ["primary", FallbackStore],
    ["fallback", BegunInFallback],
  ] as const) {
    t.test(`${primary} before ${fallback}, sessions begun in the ${begun}: the store contract`, async (t) => {
      for (const { name, run } of storeContract) {
        t.test(name, async (t) => {
          let now = Date.now();
          const clock = () => now;
          const store = new Store(
            await (stores[primary] as MakeStore)(clock),
            await (stores[fallback] as MakeStore)(clock),
            clock,
          );
          t.teardown(() => store.close());
          const advance = (ms: number) => {
            now += ms;
          };
          await run({ store, now: clock, advance });
        });
      }
    });
  }
}

t.test("an expired session keeps its place taken in every store, for minutes", async (t) => {
  for (const make of Object.values(stores)) {
    let now = Date.now();
    const store = await make(() => now);
    t.teardown(() => store.close());
    const expired = { ...session(now), user: null, expiresAt: now - 60_000 };
    const key = newKey();
    t.equal(await store.create(key, expired), "created");
    now += EXPIRED_GRACE_MS - 60_000 - 1_000;
    t.match(await store.find(key), { outcome: "expired" }, store.kind);
    t.equal(await store.create(key, session(now)), "conflict");
    t.equal(await store.commit(key, { ...expired, version: 2 }), "unknown");
    t.equal(await store.touch(key, now + HOUR_MS), "unknown");
    t.match(await store.find(key), { outcome: "expired" });
  }
});

let made = 0;

function newKey(): SessionKey {
  made++;
  return `fallback-${process.pid}-${made}-`.padEnd(43, "x");
}

function session(now: number, changes: Partial<Session> = {}): Session {
  return {
    user: { id: "ada", name: "Ada" },
    data: { cart: [1] },
    createdAt: now - 5_000,
    expiresAt: now + HOUR_MS,
    usedAt: now - 1_000,
    version: 7,
    siblings: ["s".repeat(43)],
    client: { address: "192.0.2.1", userAgent: "test" },
    ...changes,
  };
}

type Step = (where: "primary" | "fallback", name: StepName) => Promise<unknown>;

/** Two stores that several gateways share, and a session in the fallback. */
async function house() {
  let now = 1_700_000_000_000;
  const clock = () => now;
  const [primary, fallback] = [new MemoryStore(clock), new MemoryStore(clock)];
  const key = newKey();
  const begun = session(now);
  fallback.create(key, begun);
  return {
    primary,
    fallback,
    key,
    begun,
    now: clock,
    advance: (ms: number) => {
      now += ms;
    },
    gateway: (step: Step = async () => {}) =>
      new FallbackStore(
        new SteppedStore(primary, (name) => step("primary", name)),
        new SteppedStore(fallback, (name) => step("fallback", name)),
        clock,
      ),
  };
}

/** A step that stops at the n-th operation of that name, until it is told to go on; or never, if it is not. */
function stopAt(stop: `${"primary" | "fallback"} ${StepName}`, nth = 1) {
  const [reached, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let seen = 0;
  const step: Step = async (where, name) => {
    if (`${where} ${name}` !== stop || ++seen !== nth) return;
    reached.resolve();
    await go.promise;
  };
  return { step, reached: reached.promise, go: go.resolve };
}

t.test("a session is moved whole when it is used, and only then", async (t) => {
  const { primary, fallback, gateway, key, begun } = await house();
  t.equal(primary.find(key).outcome, "unknown");
  t.same(await gateway().find(key), { outcome: "hit", session: begun });
  t.same(primary.find(key), { outcome: "hit", session: begun });
  t.equal(fallback.find(key).outcome, "unknown");
});

t.test("operations on a session that was not moved yet move it first", async (t) => {
  const operations: Record<string, (store: SessionStore, key: SessionKey, begun: Session) => unknown> = {
    touched: (store, key, begun) => store.touch(key, begun.expiresAt + 1),
    committed: (store, key, begun) => store.commit(key, { ...begun, version: 8 }),
    "committed, retiring": (store, key, begun) =>
      store.commit(key, { ...begun, version: 8, retiresAt: begun.expiresAt - 1 }),
    set: async (store, key) => (await store.set(key, "theme", "dark")).outcome,
    "set all": async (store, key, begun) => (await store.setAll(key, { cart: [2] }, begun)).outcome,
    removed: async (store, key) => (await store.remove(key, "cart")).outcome,
    cleared: async (store, key) => (await store.clear(key)).outcome,
    got: async (store, key) => ((await store.get(key, "cart")) ? "committed" : "unknown"),
    sized: async (store, key) => ((await store.size(key)) === 1 ? "committed" : "unknown"),
  };
  for (const [name, operation] of Object.entries(operations)) {
    const { primary, fallback, gateway, key, begun } = await house();
    t.equal(await operation(gateway(), key, begun), name === "touched" ? "touched" : "committed", name);
    t.equal(primary.find(key).outcome, "hit");
    t.equal(fallback.find(key).outcome, "unknown");
  }
});

t.test("two gateways move one session: both find it, one copy is left", async (t) => {
  for (const stop of ["fallback find", "primary create", "fallback destroy"] as const) {
    const { primary, fallback, gateway, key, begun } = await house();
    const slow = stopAt(stop);
    const finding = gateway(slow.step).find(key);
    await slow.reached;
    const other = gateway();
    t.equal((await other.find(key)).outcome, "hit");
    t.equal((await other.set(key, "theme", "dark")).outcome, "committed");
    slow.go();
    t.equal((await finding).outcome, "hit", stop);
    t.equal(fallback.find(key).outcome, "unknown");
    t.same(primary.find(key), {
      outcome: "hit",
      session: { ...begun, data: { cart: [1], theme: "dark" }, version: 8 },
    });
  }
});

t.test("a session that was ended does not come back through a slow mover", async (t) => {
  for (const stop of ["primary find", "fallback find", "primary create", "fallback destroy"] as const) {
    const { gateway, key, primary, fallback, advance } = await house();
    const slow = stopAt(stop);
    const finding = gateway(slow.step).find(key);
    await slow.reached;
    t.equal(await gateway().destroy(key), "destroyed");
    advance(30_000);
    slow.go();
    const { outcome } = await finding;
    // The last one had moved it before it was ended, and only has to tell.
    t.equal(outcome === "hit", stop === "fallback destroy", stop);
    for (const store of [gateway(), primary, fallback]) t.not((await store.find(key)).outcome, "hit");
    t.equal((await gateway().set(key, "cart", [2])).outcome, "unknown");
    t.equal(await gateway().destroy(key), "unknown");
  }
});

t.test("a mover that comes between the steps of a logout does not undo it", async (t) => {
  for (const stop of ["fallback destroy", "primary find", "primary destroy", "primary create"] as const) {
    const { gateway, key, primary, fallback } = await house();
    const [mover, slow] = [stopAt("primary create"), stopAt(stop)];
    const finding = gateway(mover.step).find(key);
    await mover.reached;
    // For this step there has to be something in the primary.
    if (stop === "primary destroy") await gateway().find(key);
    const ending = gateway(slow.step).destroy(key);
    await slow.reached;
    mover.go();
    await finding;
    slow.go();
    t.equal(await ending, "destroyed", stop);
    for (const store of [gateway(), primary, fallback]) t.not((await store.find(key)).outcome, "hit");
  }
});

t.test("a gateway that stood still for longer than a tombstone lives does not go on where it was", async (t) => {
  const { gateway, key, primary, advance } = await house();
  const slow = stopAt("fallback find");
  const finding = gateway(slow.step).find(key);
  await slow.reached;
  advance(EXPIRED_GRACE_MS);
  slow.go();
  await t.rejects(finding, { code: "session_store_unavailable" });
  t.equal(primary.find(key).outcome, "unknown");
  t.equal((await gateway().find(key)).outcome, "hit", "nothing was lost");
});

t.test("killed between two steps of a move: nothing is lost, and the copy that is left never counts", async (t) => {
  for (const stop of ["primary create", "fallback destroy"] as const) {
    const { primary, fallback, gateway, key, begun, now, advance } = await house();
    const killed = stopAt(stop);
    gateway(killed.step).find(key);
    await killed.reached;
    const other = gateway();
    t.same(await other.find(key), { outcome: "hit", session: begun }, stop);
    t.equal((await other.set(key, "cart", [2])).outcome, "committed");
    t.same(await other.get(key, "cart"), [2]);
    t.equal((await other.byUser("ada")).length, 1);
    t.same((await other.byUser("ada"))[0]?.session.data, { cart: [2] });
    // It retires, and the primary forgets it in time.
    const retiresAt = now() + 10_000;
    t.equal(await other.commit(key, { ...begun, data: { cart: [2] }, version: 9, retiresAt }), "committed");
    advance(10_000);
    t.equal((await other.find(key)).outcome, "expired");
    primary.destroy(key);
    t.equal((await other.find(key)).outcome, "unknown");
    t.equal(fallback.find(key).outcome, "unknown");
  }
});

t.test("killed between two steps of a logout: it can be repeated, and then it holds", async (t) => {
  for (const stop of ["fallback destroy", "primary find", "primary destroy", "primary create"] as const) {
    const { gateway, key, primary, fallback } = await house();
    if (stop === "primary destroy") await gateway().find(key);
    const killed = stopAt(stop);
    gateway(killed.step).destroy(key);
    await killed.reached;
    await gateway().destroy(key);
    for (const store of [gateway(), primary, fallback]) t.not((await store.find(key)).outcome, "hit", stop);
  }
});

t.test("byUser and scan meet a session that moves while they look", async (t) => {
  const { gateway, key, primary, now } = await house();
  primary.create(newKey(), session(now(), { createdAt: now() }));
  const listing = stopAt("primary byUser");
  const entries = gateway(listing.step).byUser("ada");
  await listing.reached;
  const scanning = gateway();
  const first = await scanning.scan({ limit: 10 });
  await gateway().find(key);
  listing.go();
  t.equal((await entries).length, 2);
  t.equal((await entries)[1]?.key, key, "newest first");
  const second = await scanning.scan({ limit: 10, ...(first.cursor !== undefined && { cursor: first.cursor }) });
  t.ok(first.keys.includes(key));
  t.equal(second.keys.length, 2);
  t.equal(second.cursor, undefined);
});

t.test("byUser lists at most 1000, the newest", async (t) => {
  const { gateway, primary, fallback, now } = await house();
  for (let i = 0; i < 600; i++) {
    primary.create(newKey(), session(now(), { user: { id: "bob" }, createdAt: i * 2 }));
    fallback.create(newKey(), session(now(), { user: { id: "bob" }, createdAt: i * 2 + 1 }));
  }
  const times = (await gateway().byUser("bob")).map((entry) => entry.session.createdAt);
  t.same(
    times,
    Array.from({ length: 1000 }, (_, i) => 1199 - i),
  );
});

t.test("what the primary knows ends the search", async (t) => {
  const { gateway, key, primary, now } = await house();
  primary.create(key, session(now(), { expiresAt: now() - 1 }));
  t.match(await gateway().find(key), { outcome: "expired" });

  const store = await openStore({ primary: redis.url, fallback: "memory:" }, OPTIONS);
  const client = new Redis(redis.url);
  t.teardown(() => store.close());
  t.teardown(() => client.disconnect());
  await client.set("coatcheck:session:broken", "x");
  t.same(await store.find("broken"), { outcome: "malformed" });
});

t.test("an outage is an outage, and never a session that is not there", async (t) => {
  const { gateway, key, primary, fallback } = await house();
  const moved = newKey();
  const down = (which: string): Step => {
    return async (where) => {
      if (where === which) throw storeUnavailable("down");
    };
  };
  const unavailable = { code: "session_store_unavailable" };
  const withoutPrimary = gateway(down("primary"));
  const withoutFallback = gateway(down("fallback"));
  primary.create(moved, session(Date.now()));
  for (const store of [withoutPrimary, withoutFallback]) {
    await t.rejects(store.find(key), unavailable);
    await t.rejects(store.touch(key, Date.now()), unavailable);
    await t.rejects(store.set(key, "a", 1), unavailable);
    await t.rejects(store.getAll(key), unavailable);
    await t.rejects(store.destroy(moved), unavailable);
    await t.rejects(store.byUser("ada"), unavailable);
  }
  await t.rejects(withoutPrimary.find(moved), unavailable);
  t.equal((await withoutFallback.find(moved)).outcome, "hit", "what was moved goes on");
  t.equal((await withoutFallback.set(moved, "a", 1)).outcome, "committed");
  t.equal(await withoutFallback.create(newKey(), session(Date.now())), "created");
  t.equal(fallback.find(key).outcome, "hit");
});

t.test("check asks both and names them; both are closed", async (t) => {
  const folder = await temporaryFolder(t);
  const file = join(folder, "sessions.db");
  new SqliteStore(file).close();
  const server = await startRedis(t);
  const store = await openStore({ primary: `sqlite:${file}`, fallback: server.url }, OPTIONS);
  t.equal(store.kind, "sqlite");
  t.match(await store.check(), { ok: true, detail: /^primary \(sqlite\): .+; fallback \(redis\): .+$/ });
  await server.kill();
  t.equal((await store.check()).ok, false);
  await store.close();
  t.equal((await store.check()).ok, false);
});

t.test("a file to fall back to has to be there: a mistyped name would log everybody out", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  await t.rejects(openStore({ primary: "memory:", fallback: `sqlite:${file}` }, OPTIONS), /store\.fallback/);
  t.notOk(existsSync(file));
});

t.test("a gateway changes its store: the same cookie goes on", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const server = await startRedis(t);
  const app = await startApp(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "optional", write: ["user", "cart"] }];
  const login = { method: "POST", body: '{"user":{"id":"ada"},"data":{"cart":[1]}}' };

  const before = await startGateway(t, { routes, store: `sqlite:${file}` });
  const cookies = [];
  for (let i = 0; i < 2; i++) cookies.push(cookiePair((await ask(`${before.url}/start`, login)).setCookie[0]));
  const [used, unused] = cookies as [string, string];
  await before.gateway.close();

  const after = await startGateway(t, { routes, store: { primary: server.url, fallback: `sqlite:${file}` } });
  const seen = async (cookie: string) => {
    const reply = await ask(`${after.url}/`, { headers: { cookie } });
    return reply.status === 200 ? JSON.parse(reply.body).headers["x-user-id"] : reply;
  };
  t.equal(await seen(used), "ada");
  t.match(await after.metrics(), /store="redis"/);

  const handle = (await after.exchanges())[0]?.session.handle;
  const client = new Redis(server.url);
  t.teardown(() => client.disconnect());
  const keys = await client.keys("coatcheck:session:*");
  t.equal(keys.length, 1);
  const key = (keys[0] as string).slice("coatcheck:session:".length);
  t.ok(handle && key.startsWith(handle));
  const ttlMs = await client.pttl(keys[0] as string);
  t.ok(ttlMs > 25 * 60_000 && ttlMs <= 30 * 60_000 + EXPIRED_GRACE_MS, `${ttlMs} ms are left`);
  const old = new SqliteStore(file);
  t.equal(old.find(key).outcome, "unknown");
  t.equal(old.byUser("ada").length, 1, "the other one waits for its user");
  old.close();

  // The user of the first session ends all; the second, which nobody used, is ended too.
  const third = cookiePair((await ask(`${after.url}/start`, login)).setCookie[0]);
  const end = (cookie: string, body: string) => ask(`${after.url}/end`, { method: "POST", body, headers: { cookie } });
  t.equal((await end(third, "all")).status, 200);
  for (const cookie of [used, unused, third]) t.equal(await seen(cookie), "");
});

t.test("the fallback is gone: 503 for those who were not moved, cookies untouched; the others go on", async (t) => {
  const [primary, fallback] = [await startRedis(t), await startRedis(t)];
  const app = await startApp(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "optional", write: ["user", "cart"] }];
  const login = { method: "POST", body: '{"user":{"id":"ada"}}' };
  const before = await startGateway(t, { routes, store: fallback.url });
  const moved = cookiePair((await ask(`${before.url}/start`, login)).setCookie[0]);
  const unmoved = cookiePair((await ask(`${before.url}/start`, login)).setCookie[0]);
  const after = await startGateway(t, { routes, store: { primary: primary.url, fallback: fallback.url } });
  const get = (cookie: string) => ask(after.url, { headers: { cookie } });
  t.equal((await get(moved)).status, 200);
  await fallback.kill();
  await until(async () => (await fetch(`${after.adminUrl}/readyz`)).status === 503);

  const refused = await get(unmoved);
  t.equal(refused.status, 503);
  t.match(refused.headers["retry-after"], /^\d+$/);
  t.same(refused.setCookie, []);
  const served = await get(moved);
  t.equal(JSON.parse(served.body).headers["x-user-id"], "ada");
  const written = await ask(`${after.url}/set`, { method: "POST", body: '{"cart":[1]}', headers: { cookie: moved } });
  t.equal(written.status, 200);
  const logout = await ask(`${after.url}/end`, { method: "POST", body: "this", headers: { cookie: moved } });
  t.equal(logout.status, 503, "an end that may not have reached both does not look like one");
  t.same(logout.setCookie, []);
  t.equal((await get(moved)).status, 200);
});
