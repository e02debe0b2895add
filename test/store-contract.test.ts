import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { Redis } from "ioredis";
import t, { type Test as Tap } from "tap";
import type { SessionStore } from "../src/core/store.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { deriveKey, seal } from "../src/store/encryption.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";

const ABSOLUTE_TIMEOUT_MS = 12 * 3_600_000;

type MakeStore = (t: Teardown, now: () => number) => Promise<SessionStore>;

const ENCRYPTION_KEY = "a key for sessions at rest, forty letters";
const plainJson = new SessionCodec({ codec: "json", encryptionKeys: [] });

const redis = await startRedis(t);
const [cluster, sentinel] = await Promise.all([startCluster(t), startSentinel(t)]);
const topologies = { redis: redis.url, cluster: cluster.url, sentinel: sentinel.url };

const stores: Record<string, MakeStore> = {
  memory: async (_t, now) => new MemoryStore(now),
  "sqlite in memory": async (_t, now) => new SqliteStore(":memory:", { codec: plainJson, now }),
};
for (const format of ["json", "msgpack"] as const) {
  for (const encryptionKeys of [[], [ENCRYPTION_KEY]]) {
    const codec = new SessionCodec({ codec: format, encryptionKeys });
    const name = `${format}, ${encryptionKeys.length === 0 ? "plain" : "encrypted"}`;
    stores[`sqlite in a file (${name})`] = async (t, now) =>
      new SqliteStore(join(await temporaryFolder(t), "sessions.db"), { codec, now });
    for (const [topology, url] of Object.entries(topologies)) {
      for (const layout of ["blob", "fields"] as const) {
        stores[`${topology} (${name}, ${layout})`] = async (_t, now) =>
          connected(new RedisStore(url, { codec, layout, now, absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS }));
      }
    }
  }
}

async function connected(store: RedisStore): Promise<RedisStore> {
  await store.firstAnswer();
  return store;
}

for (const [name, make] of Object.entries(stores)) {
  t.test(`${name} keeps the store contract`, async (t) => {
    for (const { name, run } of storeContract) {
      t.test(name, async (t) => {
        let now = Date.now();
        const store = await make(t, () => now);
        t.teardown(() => store.close());
        const advance = (ms: number) => {
          now += ms;
        };
        await run({ store, now: () => now, advance });
      });
    }
  });
}

t.test("the contract fails a store that breaks a promise", async (t) => {
  class Resurrecting extends MemoryStore {
    override commit(key: string, session: Parameters<MemoryStore["commit"]>[1]) {
      this.create(key, session);
      return super.commit(key, session);
    }
  }
  const now = Date.now();
  const failures: string[] = [];
  for (const { name, run } of storeContract) {
    const store = new Resurrecting(() => now);
    await run({ store, now: () => now, advance: () => {} }).catch(() => failures.push(name));
    store.close();
  }
  t.ok(failures.some((name) => name.startsWith("no resurrection")));
});

t.test("every Redis key has a TTL after every operation, and the token's hash is all that Redis sees", async (t) => {
  const store = await connected(
    new RedisStore(redis.url, { codec: plainJson, absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS }),
  );
  const client = new Redis(redis.url);
  t.teardown(() => store.close());
  t.teardown(() => client.disconnect());
  await client.flushall();
  const now = Date.now();
  const session = { user: { id: "ttl" }, data: {}, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1 };
  const steps: Record<string, () => unknown> = {
    create: () => store.create("k".repeat(43), session),
    touch: () => store.touch("k".repeat(43), now + 120_000),
    commit: () => store.commit("k".repeat(43), { ...session, version: 2 }),
    setAll: () => store.setAll("k".repeat(43), { a: 1 }),
    retire: () => store.commit("k".repeat(43), { ...session, version: 4, retiresAt: now + 10_000 }),
    destroy: () => store.destroy("k".repeat(43)),
  };
  for (const [name, step] of Object.entries(steps)) {
    await step();
    for (const key of await client.keys("*")) t.ok((await client.pttl(key)) > 0, `${key} has a TTL after ${name}`);
  }
});

t.test("a value that is no session is malformed in every store, never an exception", async (t) => {
  const store = await connected(
    new RedisStore(redis.url, { codec: plainJson, absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS }),
  );
  const client = new Redis(redis.url);
  t.teardown(() => store.close());
  t.teardown(() => client.disconnect());
  const later = String(Date.now() + 60_000);
  const values: Record<string, () => unknown> = {
    string: () => client.set("coatcheck:session:string", "x"),
    "not json": () => client.hset("coatcheck:session:not json", { v: 1, e: later, t: later, d: "\x01{" }),
    array: () => client.hset("coatcheck:session:array", { v: 1, e: later, t: later, d: "\x01[]" }),
    "no data": () =>
      client.hset("coatcheck:session:no data", { v: 1, e: later, t: later, d: '\x01{"user":null,"createdAt":1}' }),
    "no expiry": () =>
      client.hset("coatcheck:session:no expiry", { v: 1, t: later, d: '\x01{"user":null,"data":{},"createdAt":1}' }),
    "user is a text": () =>
      client.hset("coatcheck:session:user is a text", {
        v: 1,
        e: later,
        t: later,
        d: '\x01{"user":"x","data":{},"createdAt":1}',
      }),
  };
  for (const [key, write] of Object.entries(values)) {
    await write();
    t.same(await store.find(key), { outcome: "malformed" }, key);
  }
});

t.test("SQLite keeps sessions over a restart, and leaves a file of a later version alone", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const now = Date.now();
  const first = new SqliteStore(file, { codec: plainJson });
  first.create("k", {
    user: { id: "1" },
    data: { a: 1 },
    createdAt: now,
    expiresAt: now + 60_000,
    usedAt: now,
    version: 1,
  });
  first.close();
  const second = new SqliteStore(file, { codec: plainJson });
  t.equal(second.find("k").outcome, "hit");
  second.close();
  const database = new DatabaseSync(file);
  database.exec("PRAGMA user_version = 99");
  database.close();
  t.throws(() => new SqliteStore(file, { codec: plainJson }), /later version/);
});

t.test("SQLite takes over the sessions of every earlier schema, once", async (t) => {
  const now = Date.now();
  const payload = '{"user":{"id":"1","name":"Zoë 🎟"},"data":{"a":1},"createdAt":5}';
  const columns: Record<number, string> = { 1: "", 2: "used_at INTEGER NOT NULL DEFAULT 5," };
  for (const [version, usedAt] of Object.entries(columns)) {
    const file = join(await temporaryFolder(t), "sessions.db");
    const database = new DatabaseSync(file);
    database.exec(`
      CREATE TABLE sessions (
        key TEXT PRIMARY KEY, version INTEGER NOT NULL, expires_at INTEGER NOT NULL, ${usedAt}
        user_id TEXT, created_at INTEGER NOT NULL, payload TEXT NOT NULL
      ) WITHOUT ROWID;
      INSERT INTO sessions (key, version, expires_at, user_id, created_at, payload)
        VALUES ('k', 3, ${now + 60_000}, '1', 5, '${payload}');
      PRAGMA user_version = ${version};
    `);
    database.close();
    const session = { ...JSON.parse(payload), expiresAt: now + 60_000, usedAt: 5, version: 3 };
    const codec = new SessionCodec({ codec: "msgpack", encryptionKeys: [ENCRYPTION_KEY, "plaintext"] });
    for (const _ of [1, 2]) {
      const store = new SqliteStore(file, { codec });
      t.strictSame(store.find("k"), { outcome: "hit", session }, `schema ${version}`);
      t.strictSame(store.byUser("1"), [{ key: "k", session }]);
      store.close();
    }
    const store = new SqliteStore(file, { codec });
    t.equal(store.commit("k", { ...session, version: 4 }), "committed");
    t.strictSame(store.find("k"), { outcome: "hit", session: { ...session, version: 4 } });
    store.close();
  }
});

/** Payloads of a later version, in the open and in an envelope, and the codec that meets them. */
const later = Buffer.from([4, 1, 2, 3, 0xff, 0]);
const sealed = seal(3, deriveKey(ENCRYPTION_KEY), later, "k");
const encryptedJson = new SessionCodec({ codec: "json", encryptionKeys: [ENCRYPTION_KEY] });

async function leavesAlone(t: Tap, store: SessionStore, contents: () => unknown): Promise<void> {
  const now = Date.now();
  const session = { user: { id: "1" }, data: {}, createdAt: now, expiresAt: now + 90_000, usedAt: now, version: 1 };
  const before = await contents();
  t.strictSame(await store.find("k"), { outcome: "newer" });
  t.strictSame(await store.byUser("1"), []);
  t.equal(await store.create("k", session), "conflict");
  t.equal(await store.commit("k", { ...session, version: 2 }), "unknown");
  t.equal(await store.touch("k", now + 120_000), "unknown");
  t.strictSame(await store.setAll("k", { a: 1 }), { outcome: "unknown" });
  t.strictSame(await store.setAll("k", { a: 1 }, session), { outcome: "unknown" });
  t.strictSame(await store.clear("k"), { outcome: "unknown" });
  t.equal(await store.getAll("k"), undefined);
  t.strictSame(await contents(), before);
}

t.test("SQLite leaves a session alone that a later version wrote", async (t) => {
  for (const [payload, codec] of [
    [later, plainJson],
    [later, encryptedJson],
    [sealed, encryptedJson],
  ] as const) {
    const file = join(await temporaryFolder(t), "sessions.db");
    const store = new SqliteStore(file, { codec });
    const database = new DatabaseSync(file);
    t.teardown(() => database.close());
    t.teardown(() => store.close());
    const expiresAt = Date.now() + 60_000;
    database
      .prepare(
        "INSERT INTO sessions (key, version, expires_at, used_at, user_id, created_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
      )
      .run("k", 1, expiresAt, 5, "1", 5, payload);
    await leavesAlone(t, store, () => database.prepare("SELECT * FROM sessions").all());
  }
});

t.test("Redis leaves a session alone that a later version wrote", async (t) => {
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  for (const codec of [plainJson, encryptedJson]) {
    const store = await connected(new RedisStore(redis.url, { codec, absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS }));
    t.teardown(() => store.close());
    await client.del("coatcheck:session:k");
    await client.hset("coatcheck:session:k", { v: 1, e: Date.now() + 60_000, t: 5, u: "1", d: later });
    await client.pexpire("coatcheck:session:k", 60_000);
    await leavesAlone(t, store, async () => [
      await client.hgetallBuffer("coatcheck:session:k"),
      await client.pexpiretime("coatcheck:session:k"),
    ]);
    await client.hset("coatcheck:session:k", { d: sealed });
    t.equal((await store.find("k")).outcome, codec === encryptedJson ? "newer" : "malformed");
  }
});
