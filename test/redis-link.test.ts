/** The way to Redis when it is bad: what is sent again and what is not, who is given a rest, and what is said of it. */
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import t from "tap";
import { ProxyError } from "../src/core/errors.ts";
import type { Session } from "../src/core/session.ts";
import type { FeedState, StoreFailure } from "../src/core/store.ts";
import { Breaker } from "../src/store/breaker.ts";
import { RedisStore } from "../src/store/redis.ts";
import { keepConnecting } from "../src/store/redis-link.ts";
import { SESSION_PREFIX, USER_PREFIX } from "../src/store/redis-scripts.ts";
import { startRedis } from "./support/redis.ts";
import { type ClusterNode, slotOf, startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { eventually, type Teardown } from "./support/resources.ts";
import { startProxy } from "./support/tcp-proxy.ts";

// Each has servers of its own, and waits for them most of the time.
t.jobs = 3;

const HOUR_MS = 3_600_000;

interface Watched {
  readonly store: RedisStore;
  readonly failures: StoreFailure[];
  readonly feed: () => FeedState | undefined;
  /** How often some breaker opened. */
  readonly rests: () => number;
}

async function openStore(t: Teardown, url: string): Promise<Watched> {
  const failures: StoreFailure[] = [];
  let feed: FeedState | undefined;
  let rests = 0;
  const store = new RedisStore(url, {
    absoluteTimeoutMs: 12 * HOUR_MS,
    observer: {
      command() {},
      failed: (reason) => failures.push(reason),
      connection: () => {},
      resting: (servers) => {
        if (servers > 0) rests++;
      },
    },
  });
  t.teardown(() => store.close());
  const told = (state: FeedState) => {
    feed = state;
  };
  store.watch({ changed() {}, ended() {}, changedAll() {}, feed: told, delayed() {} });
  await store.firstAnswer();
  return { store, failures, feed: () => feed, rests: () => rests };
}

function newSession(changes: Partial<Session> = {}): Session {
  const now = Date.now();
  const session = { user: { id: "ada" }, data: {}, createdAt: now, usedAt: now, expiresAt: now + HOUR_MS, version: 1 };
  return { ...session, ...changes };
}

/** Session keys, made so that they are where they should be. */
function keyWhere(holds: (key: string) => boolean): string {
  for (let n = 0; ; n++) {
    const key = `key-${n}`.padEnd(43, "x");
    if (holds(key)) return key;
  }
}

/** What an operation that failed failed with. */
async function failureOf(operation: Promise<unknown> | unknown): Promise<ProxyError> {
  try {
    const answer = await operation;
    throw new Error(`an outage was expected, not ${JSON.stringify(answer)}`);
  } catch (error) {
    if (error instanceof ProxyError && error.code === "session_store_unavailable") return error;
    throw error;
  }
}

for (const topology of ["standalone", "cluster"] as const) {
  t.test(
    `${topology}: a write whose connection breaks is not sent again, for it may have been carried out`,
    async (t) => {
      const key = "written".padEnd(43, "x");
      const cluster = topology === "cluster" ? await startCluster(t) : undefined;
      const server = cluster ? await cluster.ownerOf(SESSION_PREFIX + key) : await startRedis(t);
      const proxy = await startProxy(t, server.port);
      await cluster?.announce(server as ClusterNode, proxy.port);
      const { store } = await openStore(t, cluster?.url ?? `redis://127.0.0.1:${proxy.port}/0`);
      await eventually("the store answers", async () => (await store.check()).ok);
      await store.create(key, newSession());

      proxy.stall("toClient");
      const writing = failureOf(store.commit(key, newSession({ version: 2, data: { written: true } })));
      await eventually("it is written", async () => (await server.call("HGET", SESSION_PREFIX + key, "v")) === "2");
      proxy.resume({ deliver: false });
      await writing;
      const found = await eventually("it is read", () => store.find(key).catch(() => undefined));
      t.match(found, { outcome: "hit", session: { version: 2, data: { written: true } } });
    },
  );

  t.test(`${topology}: a read whose connection breaks is sent again`, async (t) => {
    const key = "read".padEnd(43, "x");
    const cluster = topology === "cluster" ? await startCluster(t) : undefined;
    const server = cluster ? await cluster.ownerOf(SESSION_PREFIX + key) : await startRedis(t);
    // With more patience than a request has: how long a busy machine takes to connect is not what is looked at.
    const { store } = await openStore(t, `${cluster?.url ?? server.url}?commandTimeout=5s&totalTimeout=10s`);
    await eventually("the store answers", async () => (await store.check()).ok);
    await store.create(key, newSession());
    for (let n = 0; n < 20; n++) {
      const reading = store.find(key);
      await server.call("CLIENT", "KILL", "TYPE", "normal");
      t.match(await reading, { outcome: "hit" });
    }
  });
}

t.test("a server that takes no writes is read on, and the feed stays", async (t) => {
  const redis = await startRedis(t);
  const { store, feed, rests } = await openStore(t, redis.url);
  const key = "read-only".padEnd(43, "x");
  await store.create(key, newSession());
  await eventually("the feed", () => feed() === "tracking");
  await redis.call("CONFIG", "SET", "min-replicas-to-write", 1);
  for (let n = 0; n < 10; n++) {
    t.match((await failureOf(store.touch(key, Date.now() + HOUR_MS))).message, /NOREPLICAS/);
  }
  t.match(await store.find(key), { outcome: "hit" });
  await delay(1_500);
  t.equal(feed(), "tracking");
  t.equal(rests(), 0);
});

t.test("what a connection is refused for is said to whoever has to do without it", async (t) => {
  const redis = await startRedis(t, { password: "right" });
  const { store, failures } = await openStore(t, redis.url.replace("right", "wrong"));
  const error = await failureOf(store.find("any"));
  t.match(error.message, /WRONGPASS.*the user or password in the store's URL is wrong/);
  t.notMatch(error.message, "wrong@");
  t.ok(failures.includes("closed"));
});

t.test(
  "a user without the right to publish, or to make the echo, is no reason to connect again and again",
  async (t) => {
    const redis = await startRedis(t, {
      users: {
        mute: "on >secret ~coatcheck:* &* +@all -publish",
        narrow: "on >secret ~coatcheck:session:* ~coatcheck:user:* &* +@all",
      },
    });
    const expected = { mute: "tracking", narrow: "messages" };
    for (const [user, state] of Object.entries(expected)) {
      const { feed } = await openStore(t, redis.url.replace("//", `//${user}:secret@`));
      await eventually(`the feed of ${user}`, () => feed() === state);
      const accepted = async () =>
        Number(/total_connections_received:(\d+)/.exec(String(await redis.call("INFO", "stats")))?.[1]);
      const before = await accepted();
      await delay(1_500);
      t.equal(await accepted(), before, user);
      t.equal(feed(), state);
    }
  },
);

t.test(
  "a breaker asks what failed last, survives a question that cannot be asked, and ends when it is told",
  async (t) => {
    const changes: boolean[] = [];
    const breaker = new Breaker((open) => changes.push(open));
    t.teardown(() => breaker.stop());
    const asked: string[] = [];
    const ask = (name: string, answer: () => Promise<unknown>) => () => {
      asked.push(name);
      return answer();
    };
    const unanswered = () => Promise.reject(new Error("no answer"));
    breaker.failed(ask("first", unanswered));
    breaker.failed(ask("second", unanswered));
    t.notOk(breaker.isOpen);
    breaker.failed(
      ask("third", () => {
        throw new TypeError("nobody to ask");
      }),
    );
    t.ok(breaker.isOpen);
    await eventually("it asks again and again", () => asked.length === 2);
    t.same(asked, ["third", "third"]);
    breaker.failed(ask("fourth", async () => "here"));
    await eventually("it closes", () => !breaker.isOpen);
    t.same(changes, [true, false]);

    const { promise, reject } = Promise.withResolvers<void>();
    for (let n = 0; n < 3; n++) breaker.failed(ask("last", () => promise));
    await eventually("it asks", () => asked.at(-1) === "last");
    breaker.stop();
    reject(new Error("closed"));
    const count = asked.length;
    await delay(300);
    t.equal(asked.length, count);
  },
);

t.test("a cluster's first commands come while its nodes are being connected to: none is refused for it", async (t) => {
  const cluster = await startCluster(t);
  const { store } = await openStore(t, cluster.url);
  const keys = Array.from({ length: 60 }, (_, n) => `first-${n}`.padEnd(43, "x"));
  const outcomes = await Promise.all(keys.map((key) => store.create(key, newSession({ user: null }))));
  t.same(new Set(outcomes), new Set(["created"]));
});

t.test("a cluster that does not cover all slots", async (t) => {
  const cluster = await startCluster(t, { args: ["--cluster-require-full-coverage", "no"] });
  const uncovered = "uncovered".padEnd(43, "x");
  const slot = slotOf(SESSION_PREFIX + uncovered);
  for (const node of cluster.nodes) await node.call("CLUSTER", "DELSLOTS", slot);
  const owner = cluster.masters.find(({ slots: [first = 0, last = 0] = [] }) => slot >= first && slot <= last);
  const { store, feed } = await openStore(t, cluster.url);
  await eventually("the store answers", async () => (await store.check()).ok);
  for (let n = 0; n < 5; n++) await failureOf(store.find(uncovered));
  await delay(300);
  await eventually("the feed", () => feed() === "tracking");
  await owner?.call("CLUSTER", "ADDSLOTS", slot);
  await eventually("it is covered", () => store.find(uncovered).catch(() => undefined));
});

t.test("a cluster whose master is gone for good", async (t) => {
  const cluster = await startCluster(t, { args: ["--cluster-require-full-coverage", "no"] });
  const [gone, moved] = cluster.masters;
  const [first = 0, last = 0] = gone?.slots ?? [];
  const isGone = (name: string) => slotOf(name) >= first && slotOf(name) <= last;
  const { store, rests } = await openStore(t, cluster.url);
  await eventually("the store answers", async () => (await store.check()).ok);
  const lost = keyWhere((key) => isGone(SESSION_PREFIX + key));
  const kept = keyWhere((key) => !isGone(SESSION_PREFIX + key) && isGone(USER_PREFIX + key));
  await store.create(kept, newSession({ user: { id: kept } }));
  t.match(await store.scan({ limit: 10_000 }), { cursor: /./ });
  await gone?.kill();
  await moved?.call("PING");

  t.equal(await store.destroy(kept), "destroyed", "a session is ended though its user's index cannot be reached");
  t.equal((await store.find(kept)).outcome, "unknown");
  for (let n = 0; n < 3; n++) await failureOf(store.find(lost));
  t.equal(rests(), 1);
  const nodes = [...cluster.masters].sort((a, b) => (`${a.port}` < `${b.port}` ? -1 : 1));
  const place = nodes.indexOf(gone as ClusterNode);
  for (let n = 0; n < 5; n++) {
    const scanning = store.scan({ cursor: `${place} 0`, limit: 100 });
    await failureOf(scanning);
  }
  for (const master of cluster.masters.filter((node) => node !== gone)) {
    const [from = 0, to = 0] = master.slots ?? [];
    const key = keyWhere((each) => slotOf(SESSION_PREFIX + each) >= from && slotOf(SESSION_PREFIX + each) <= to);
    t.equal((await store.find(key)).outcome, "unknown", "what cannot be listed says nothing of the other servers");
  }
});

t.test("one slot that moves sends nobody else's commands astray", async (t) => {
  const cluster = await startCluster(t);
  const { store } = await openStore(t, cluster.url);
  await eventually("the store answers", async () => (await store.check()).ok);
  const [from, to] = cluster.masters as readonly [ClusterNode, ClusterNode];
  const [first = 0, last = 0] = from.slots ?? [];
  const keys: string[] = [];
  const seen = new Set<string>();
  while (keys.length < 300) {
    keys.push(
      keyWhere(
        (key) => !seen.has(key) && slotOf(SESSION_PREFIX + key) >= first && slotOf(SESSION_PREFIX + key) <= last,
      ),
    );
    seen.add(keys.at(-1) ?? "");
  }
  await cluster.migrateSlot(slotOf(SESSION_PREFIX + keys[0]), from, to);
  await cluster.healthy();
  const redirected = async () => {
    const counts = cluster.masters.map(async (node) => {
      const stats = String(await node.call("INFO", "errorstats"));
      return Number(/errorstat_MOVED:count=(\d+)/.exec(stats)?.[1] ?? 0);
    });
    return (await Promise.all(counts)).reduce((a, b) => a + b);
  };
  const before = await redirected();
  for (let n = 0; n < keys.length; n += 20) await Promise.all(keys.slice(n, n + 20).map((key) => store.find(key)));
  const after = await redirected();
  t.ok(after - before >= 1 && after - before < 5, `${after - before} times`);
});

t.test("a client that is to connect anew while it asks a Sentinel does so, until it is ended", async (t) => {
  const group = await startSentinel(t, { sentinels: 1, replicas: 1 });
  const slow = await startProxy(t, group.sentinels[0]?.port ?? 0);
  slow.delay(50);
  const redis = new Redis({ sentinels: [{ host: "127.0.0.1", port: slow.port }], name: group.name });
  const end = keepConnecting(redis);
  redis.on("error", () => {});
  await delay(50);
  t.equal(redis.status, "connecting");
  redis.disconnect(true);
  await eventually("it has come back", () => redis.status === "ready");
  end();
  await eventually("it has ended", () => redis.status === "end");
  await delay(200);
  t.equal(redis.status, "end");
});
