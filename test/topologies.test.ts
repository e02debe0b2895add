/** The same promises behind Sentinels and in a Cluster, while masters fail and slots move. */
import t from "tap";
import { ProxyError } from "../src/core/errors.ts";
import type { FindResult, Session } from "../src/core/session.ts";
import type { StoreCommand } from "../src/core/store.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { RedisStore, type RedisStoreOptions } from "../src/store/redis.ts";
import { NO_OBSERVER } from "../src/store/redis-link.ts";
import { SESSION_PREFIX } from "../src/store/redis-scripts.ts";
import { slotOf, startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { eventually, type Teardown } from "./support/resources.ts";

const HOUR_MS = 3_600_000;
const codec = new SessionCodec({ codec: "json", encryptionKeys: [] });

const [cluster, sentinels] = await Promise.all([startCluster(t, { replicas: 1 }), startSentinel(t)]);
const urls = { cluster: cluster.url, sentinel: sentinels.url };

async function openStore(t: Teardown, url: string, options: Partial<RedisStoreOptions> = {}): Promise<RedisStore> {
  const store = new RedisStore(url, { codec, absoluteTimeoutMs: 12 * HOUR_MS, ...options });
  t.teardown(() => store.close());
  await store.firstAnswer();
  return store;
}

function newSession(changes: Partial<Session> = {}): Session {
  const now = Date.now();
  return {
    user: { id: "ada" },
    data: { cart: [1] },
    createdAt: now,
    usedAt: now,
    expiresAt: now + HOUR_MS,
    version: 1,
    ...changes,
  };
}

/** Session keys that share a slot, so that all of them are on the way together. */
const keysOfOneSlot = (tag: string, count: number) =>
  Array.from({ length: count }, (_, n) => `{${tag}}${n}`.padEnd(43, "x"));

for (const [topology, url] of Object.entries(urls)) {
  for (const layout of ["blob", "fields"] as const) {
    t.test(`${topology} keeps the store contract (${layout})`, async (t) => {
      for (const { name, run } of storeContract) {
        t.test(name, async (t) => {
          let now = Date.now();
          const store = await openStore(t, url, { now: () => now, layout });
          const advance = (ms: number) => {
            now += ms;
          };
          await run({ store, now: () => now, advance });
        });
      }
    });
  }
}

t.test("a command tells which server it went to", async (t) => {
  const master = await sentinels.master();
  for (const [topology, url] of Object.entries(urls)) {
    const commands: StoreCommand[] = [];
    const observer = { ...NO_OBSERVER, command: (command: StoreCommand) => commands.push(command) };
    const store = await openStore(t, url, { observer });
    const keys = ["a", "b", "c", "d"].map((tag) => tag.padEnd(43, "x"));
    for (const key of keys) await store.find(key);
    const expected = keys.map((key) =>
      topology === "cluster"
        ? cluster.masters.find(({ slots: [first, last] = [0, -1] }) => {
            const slot = slotOf(SESSION_PREFIX + key);
            return first <= slot && slot <= last;
          })?.port
        : master.port,
    );
    t.same(
      commands.map(({ name, server: { address, port } }) => [name, address, port]),
      expected.map((port) => ["HMGET", "127.0.0.1", port]),
      topology,
    );
  }
});

t.test("a cluster's sessions are listed from every node, each once", async (t) => {
  await cluster.flush();
  const store = await openStore(t, cluster.url);
  const keys = Array.from({ length: 100 }, (_, n) => `listed-${n}`.padEnd(43, "x"));
  for (const key of keys) await store.create(key, newSession());
  const seen: string[] = [];
  for (let cursor: string | undefined = "0 0"; cursor !== undefined; ) {
    const page = await store.scan({ cursor, limit: 10 });
    seen.push(...page.keys);
    cursor = page.cursor;
  }
  t.same(seen.sort(), [...keys].sort());
  for (const node of cluster.masters) t.ok(Number(await node.call("DBSIZE")) > 0, "and they are on every node");
});

t.test("a slot on its way keeps every promise, on both sides of it", async (t) => {
  const store = await openStore(t, cluster.url);
  const keys = keysOfOneSlot("way", 6);
  for (const key of keys) t.equal(await store.create(key, newSession()), "created");
  const from = await cluster.ownerOf(SESSION_PREFIX + keys[0]);
  const to = cluster.masters.find((node) => node !== from) ?? from;
  const migration = await cluster.beginMigration(slotOf(SESSION_PREFIX + keys[0]), from, to);
  t.equal(await migration.move(3), 3);

  const halfway = keysOfOneSlot("way", 7)[6] ?? "";
  t.equal(await store.create(halfway, newSession()), "created", "a session that begins on the way");
  for (const key of [...keys, halfway]) {
    t.equal((await store.find(key)).outcome, "hit", key);
    t.equal(await store.touch(key, Date.now() + 2 * HOUR_MS), "touched");
    t.equal((await store.set(key, "theme", "dark")).outcome, "committed");
  }
  t.equal(await store.destroy(keys[0] ?? ""), "destroyed");
  t.equal(await store.touch(keys[0] ?? "", Date.now() + HOUR_MS), "unknown", "no resurrection on the way");

  await migration.finish();
  for (const key of [...keys.slice(1), halfway]) {
    t.same(await store.getAll(key), { cart: [1], theme: "dark" });
    t.ok(Number(await to.call("PTTL", SESSION_PREFIX + key)) > HOUR_MS, "with its time to live");
  }
  t.equal((await store.find(keys[0] ?? "")).outcome, "unknown");
  await cluster.healthy();
});

/** Done when the store answers again; until then it may only say that it cannot. */
function answersAgain(store: RedisStore, key: string): Promise<FindResult> {
  return eventually("the store answers again", async () => {
    try {
      return await store.find(key);
    } catch (error) {
      if (error instanceof ProxyError && error.code === "session_store_unavailable") return undefined;
      throw error;
    }
  });
}

t.test("a cluster whose master dies: the others' sessions stay, its own come back", async (t) => {
  const store = await openStore(t, cluster.url);
  const key = "survivor".padEnd(43, "x");
  await store.create(key, newSession());
  const owner = await cluster.ownerOf(SESSION_PREFIX + key);
  await owner.call("WAIT", 1, 1_000);
  await owner.kill();
  t.equal((await answersAgain(store, key)).outcome, "hit");
  await eventually("writes go to the new master", () => store.set(key, "theme", "dark").catch(() => undefined));
  await owner.start();
  await cluster.healthy();
  t.same(await store.getAll(key), { cart: [1], theme: "dark" });
});

t.test("Sentinels that choose another master, when told and when the old one dies", async (t) => {
  const store = await openStore(t, sentinels.url);
  const key = "survivor".padEnd(43, "x");
  await store.create(key, newSession());
  for (const change of [sentinels.failover, sentinels.killMaster]) {
    const old = await sentinels.master();
    await old.call("WAIT", 1, 1_000);
    await change();
    const next = await sentinels.master();
    const name = `after${old.port}`;
    const answer = await eventually("a write is answered", () => store.set(key, name, true).catch(() => undefined));
    t.equal(answer.outcome, "committed");
    const live = await answersAgain(store, key);
    t.match(live, { outcome: "hit", session: { data: { [name]: true } } });
    t.equal(await next.call("HEXISTS", SESSION_PREFIX + key, "d"), 1);
    if (!old.running) await old.start();
    await sentinels.healthy();
    t.equal((await store.find(key)).outcome, "hit", "and when the old one is back as a replica");
  }
});
