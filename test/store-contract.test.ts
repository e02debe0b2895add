import { join } from "node:path";
import { Redis } from "ioredis";
import t from "tap";
import type { SessionStore } from "../src/core/store.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";

const ABSOLUTE_TIMEOUT_MS = 12 * 3_600_000;

type MakeStore = (t: Teardown, now: () => number) => Promise<SessionStore>;

const ENCRYPTION_KEY = "a key for sessions at rest, forty letters";
const plainJson = new SessionCodec({ codec: "json", encryptionKeys: [] });

const redis = await startRedis(t);

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
    stores[`redis (${name})`] = async (_t, now) =>
      connected(new RedisStore(redis.url, { codec, now, absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS }));
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
  const { DatabaseSync } = await import("node:sqlite");
  const database = new DatabaseSync(file);
  database.exec("PRAGMA user_version = 99");
  database.close();
  t.throws(() => new SqliteStore(file, { codec: plainJson }), /later version/);
});
