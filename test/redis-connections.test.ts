/** By URL alone: TLS, users, passwords; what a server says instead of an answer; how many round trips it takes. */
import { connect } from "node:net";
import t from "tap";
import { parseRedisUrl } from "../src/core/redis-url.ts";
import type { Session } from "../src/core/session.ts";
import type { StoreFailure, StoreObserver } from "../src/core/store.ts";
import { Breaker } from "../src/store/breaker.ts";
import { RedisStore } from "../src/store/redis.ts";
import { redisFailure } from "../src/store/redis-failures.ts";
import { until } from "./support/client.ts";
import { startRedis } from "./support/redis.ts";
import { type ClusterNode, startCluster } from "./support/redis-cluster.ts";
import { startTcp, type Teardown } from "./support/servers.ts";

const HOUR_MS = 3_600_000;

function session(id = "1"): Session {
  const now = Date.now();
  return { user: { id }, data: {}, createdAt: now, expiresAt: now + HOUR_MS, usedAt: now, version: 1 };
}

async function storeAt(t: Teardown, url: string) {
  const failures: StoreFailure[] = [];
  const resting: number[] = [];
  const observer: StoreObserver = {
    command() {},
    failed: (reason) => failures.push(reason),
    connection() {},
    resting: (servers) => resting.push(servers),
  };
  const store = new RedisStore(url, { absoluteTimeoutMs: 12 * HOUR_MS, observer });
  await store.firstAnswer();
  t.teardown(() => store.close());
  return { store, failures, resting };
}

t.test("TLS with a certificate of one's own, and an ACL user with a password of any characters", async (t) => {
  const password = "p@ss:w/o?#%rd";
  const redis = await startRedis(t, { tls: true, users: { gate: `on >${password} ~coatcheck:* &* +@all` } });
  const url = new URL(redis.url);
  const at = (user: string, secret: string, query = url.search) =>
    `rediss://${user}:${encodeURIComponent(secret)}@127.0.0.1:${redis.port}/0${query}`;
  const { store } = await storeAt(t, at("gate", password));
  t.equal(await store.create("tls", session()), "created");
  t.equal((await store.find("tls")).outcome, "hit");
  t.equal((await (await storeAt(t, at("gate", "wrong"))).store.check()).ok, false);
  t.equal(
    (await (await storeAt(t, at("gate", password, ""))).store.check()).ok,
    false,
    "a certificate that nobody trusts",
  );
  const plain = await storeAt(t, `redis://gate:${encodeURIComponent(password)}@127.0.0.1:${redis.port}/0`);
  t.equal((await plain.store.check()).ok, false, "no TLS");
});

t.test("all look-ups of one turn travel together", async (t) => {
  const redis = await startRedis(t);
  let pieces = 0;
  const proxy = await startTcp(t, (socket) => {
    const server = connect(redis.port, "127.0.0.1");
    server.on("error", () => {});
    socket.on("data", (piece) => {
      pieces++;
      server.write(piece);
    });
    server.on("data", (piece) => socket.write(piece));
    socket.on("close", () => server.destroy());
  });
  const { store } = await storeAt(t, `redis://127.0.0.1:${proxy.port}/0`);
  for (let i = 0; i < 50; i++) await store.create(`k${i}`, session());
  pieces = 0;
  const found = await Promise.all(Array.from({ length: 50 }, (_, i) => store.find(`k${i}`)));
  t.ok(found.every(({ outcome }) => outcome === "hit"));
  t.equal(pieces, 1);
});

t.test("in a cluster, all of one turn for one node travel together", async (t) => {
  const cluster = await startCluster(t);
  const { store } = await storeAt(t, cluster.url);
  const keys = Array.from({ length: 90 }, (_, i) => `k${i}`);
  for (const key of keys) await store.create(key, session());
  const reads = async () => {
    const texts = await Promise.all(cluster.nodes.map((node) => node.call("INFO", "stats")));
    return texts.reduce(
      (sum: number, text) => sum + Number(/^total_reads_processed:(\d+)/m.exec(String(text))?.[1]),
      0,
    );
  };
  await reads();
  const before = await reads();
  const found = await Promise.all(keys.map((key) => store.find(key)));
  const after = await reads();
  t.ok(found.every(({ outcome }) => outcome === "hit"));
  // The nodes count what is read from one another and from this test as well.
  t.ok(after - before < 30, `${after - before} reads for ${keys.length} look-ups`);
});

t.test("a dead Redis costs microseconds, and is asked again by nobody's request", async (t) => {
  const redis = await startRedis(t);
  const { store, failures, resting } = await storeAt(t, redis.url);
  await store.create("k", session());
  redis.freeze();
  await Promise.all(
    Array.from({ length: 4 }, () => t.rejects(Promise.resolve(store.find("k")), { code: "session_store_unavailable" })),
  );
  t.same(resting, [1]);
  const startedMs = performance.now();
  for (let i = 0; i < 1000; i++) await t.rejects(Promise.resolve(store.find("k")));
  t.ok(performance.now() - startedMs < 2_000, "a thousand, far below one timeout each");
  t.ok(failures.includes("timeout"));
  t.ok(failures.filter((reason) => reason === "breaker").length >= 1000);
  redis.thaw();
  await until(() => resting.at(-1) === 0);
  t.equal((await store.find("k")).outcome, "hit");
});

t.test("in a cluster only the dead master's slots rest", async (t) => {
  const cluster = await startCluster(t, { args: ["--cluster-require-full-coverage", "no"] });
  const { store } = await storeAt(t, cluster.url);
  const keys = Array.from({ length: 60 }, (_, i) => `k${i}`);
  for (const key of keys) await store.create(key, session(key));
  const owners = new Map(
    await Promise.all(keys.map(async (key) => [key, await cluster.ownerOf(`coatcheck:session:${key}`)] as const)),
  );
  const dead = owners.get("k0") as ClusterNode;
  const gone = keys.filter((key) => owners.get(key) === dead);
  const there = keys.filter((key) => owners.get(key) !== dead);
  dead.freeze();
  for (let i = 0; i < 3; i++) {
    await Promise.all(
      gone.map((key) => t.rejects(Promise.resolve(store.find(key)), { code: "session_store_unavailable" })),
    );
  }
  const startedMs = performance.now();
  for (const key of gone) await t.rejects(Promise.resolve(store.find(key)));
  t.ok(performance.now() - startedMs < 250);
  for (const key of there) t.equal((await store.find(key)).outcome, "hit");
  dead.thaw();
  await until(async () =>
    Promise.all(keys.map((key) => store.find(key))).then(
      (all) => all.every(({ outcome }) => outcome === "hit"),
      () => false,
    ),
  );
});

t.test("what Redis says instead of an answer", async (t) => {
  const said: [message: string, reason: StoreFailure, again: boolean][] = [
    ["READONLY You can't write against a read only replica.", "readonly", true],
    ["LOADING Redis is loading the dataset in memory", "loading", true],
    ["MASTERDOWN Link with MASTER is down", "master-down", true],
    ["MOVED 866 127.0.0.1:7001", "moved", true],
    ["ASK 866 127.0.0.1:7001", "moved", true],
    ["TRYAGAIN Multiple keys request during rehashing of slot", "moved", true],
    ["CLUSTERDOWN The cluster is down", "cluster-down", true],
    ["BUSY Redis is busy running a script.", "busy", true],
    ["NOAUTH Authentication required.", "not-authorized", false],
    ["WRONGPASS invalid username-password pair or user is disabled.", "not-authorized", false],
    ["NOPERM this user has no permissions to run the 'hmget' command", "not-authorized", false],
    ["OOM command not allowed when used memory > 'maxmemory'.", "out-of-memory", false],
    ["Command timed out", "timeout", false],
    ["Connection is closed.", "closed", false],
    ["Stream isn't writeable and enableOfflineQueue options is false", "closed", true],
    ["connect ECONNREFUSED 127.0.0.1:6379", "closed", false],
    ["something new", "other", false],
  ];
  for (const [message, reason, again] of said) t.match(redisFailure(new Error(message)), { reason, again }, message);
});

t.test("a breaker opens after three in a row, not before, and closes with an answer", async (t) => {
  const states: boolean[] = [];
  let up = false;
  let probes = 0;
  const question = async () => {
    probes++;
    if (!up) throw new Error("down");
  };
  const breaker = new Breaker((open) => states.push(open));
  t.teardown(() => breaker.stop());
  for (const step of ["failed", "failed", "answered", "failed", "failed"] as const) breaker[step](question);
  t.equal(breaker.isOpen, false);
  breaker.failed(question);
  t.equal(breaker.isOpen, true);
  await until(() => probes >= 2);
  t.equal(breaker.isOpen, true);
  up = true;
  await until(() => !breaker.isOpen);
  t.same(states, [true, false]);
});

t.test("URLs", async (t) => {
  const host = (name: string, port: number) => ({ host: name, port });
  t.match(parseRedisUrl("redis://127.0.0.1"), {
    topology: "standalone",
    hosts: [host("127.0.0.1", 6379)],
    database: 0,
  });
  t.match(parseRedisUrl("rediss://user:p%40ss@h:1/3"), { tls: true, username: "user", password: "p@ss", database: 3 });
  t.match(parseRedisUrl("redis+sentinel://:p@a,b:2,[::1]:3/mymaster/4?sentinelPassword=s"), {
    topology: "sentinel",
    hosts: [host("a", 26379), host("b", 2), host("::1", 3)],
    master: "mymaster",
    database: 4,
    password: "p",
    sentinelPassword: "s",
  });
  t.match(parseRedisUrl("rediss+cluster://a:1,b:2?ca=/ca.pem&commandTimeout=250ms"), {
    topology: "cluster",
    tls: true,
    ca: "/ca.pem",
    commandTimeoutMs: 250,
  });
  const wrong: [url: string, message: RegExp][] = [
    ["redis://a,b", /redis\+cluster/],
    ["redis+sentinel://a", /name that the sentinels watch/],
    ["redis+cluster://a/3", /only database 0/],
    ["redis://h/x", /database number/],
    ["redis://h:99999", /host:port/],
    ["redis://h?passwort=hunter2", /unknown parameter; known: ca, /],
    ["redis://h?commandTimeout=0s", /between 10ms and 60s/],
    ["redis://u:hunter2%zz@h", /percent-encoded/],
    ["redis://u:hun@ter2@h", /not a Redis URL/],
  ];
  for (const [url, message] of wrong) {
    t.throws(() => parseRedisUrl(url), { message }, url);
    try {
      parseRedisUrl(url);
    } catch (error) {
      t.notMatch(String(error), /hunter2|ter2/, url);
    }
  }
});
