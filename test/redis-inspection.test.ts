/** What the store check says of a Redis: what endangers sessions, in words that tell what to do. */
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { parseRedisUrl } from "../src/core/redis-url.ts";
import type { StoreInspection } from "../src/core/store.ts";
import { probeStore } from "../src/store/probe.ts";
import { RedisStore } from "../src/store/redis.ts";
import { infoFrom, networkWarnings, serverWarnings } from "../src/store/redis-warnings.ts";
import { run } from "./support/command.ts";
import { startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { eventually } from "./support/resources.ts";
import { freePort, type RedisServer, startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";

const SLOW = "PING takes";

async function connect(t: Teardown, url: string): Promise<RedisStore> {
  const store = new RedisStore(url, { absoluteTimeoutMs: 12 * 3_600_000 });
  await store.firstAnswer();
  t.teardown(() => store.close());
  return store;
}

/** Without the warning of a slow PING: the machine that runs the tests may be busy. */
async function inspect(t: Teardown, url: string): Promise<StoreInspection> {
  const store = await connect(t, url);
  try {
    const { facts, warnings } = await store.inspect();
    return { facts, warnings: warnings.filter((warning) => !warning.includes(SLOW)) };
  } finally {
    store.close();
  }
}

const factsOf = ({ facts }: StoreInspection) => Object.fromEntries(facts.map(({ name, value }) => [name, value]));
const warningsOn = async (t: Teardown, url: string) => (await inspect(t, url)).warnings.join("\n");

/** Fills it with keys that may be evicted. */
async function fill(redis: RedisServer, megabytes: number): Promise<void> {
  for (let i = 0; i < megabytes * 10; i++) await redis.call("SET", `filling:${i}`, "x".repeat(100_000), "EX", 1000);
}

t.test("a sound server: facts, and no warning", async (t) => {
  const redis = await startRedis(t, { save: true, password: "hunter2hunter2" });
  const store = await connect(t, redis.url);
  const now = Date.now();
  const session = { user: { id: "ada" }, data: {}, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1 };
  await store.create("k".repeat(43), session);
  const inspection = await store.inspect();
  t.same(
    inspection.warnings.filter((warning) => !warning.includes(SLOW)),
    [],
  );
  t.match(factsOf(inspection), {
    topology: "one server",
    version: /^\d+\.\d+\.\d+$/,
    role: "master, replicas: 0",
    memory: /^\d\.\d MiB used, no maxmemory, policy noeviction$/,
    persistence: "AOF, no snapshots",
    keys: "2, 1 of them sessions",
    clients: /^\d+ of \d+$/,
    PING: /^\d+\.\d\d ms$/,
  });
  t.notMatch(JSON.stringify(inspection), "hunter2");
  t.same(await redis.call("DBSIZE"), 2, "it leaves nothing behind");
});

t.test("memory: an evicting policy, evictions, and a server that is nearly full", async (t) => {
  const redis = await startRedis(t, { args: ["--maxmemory", "10mb", "--maxmemory-policy", "volatile-lru"] });
  t.match(await warningsOn(t, redis.url), /maxmemory-policy is volatile-lru: at 10\.0 MiB Redis throws sessions away/);
  await fill(redis, 12);
  t.match(await warningsOn(t, redis.url), /^\d+ keys were evicted since this server started/m);
  await redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction");
  await redis.call("CONFIG", "RESETSTAT");
  const full = await warningsOn(t, redis.url);
  t.match(full, /^\d{2,3} % of maxmemory is used: when it is full nobody can log in .* raise maxmemory/m);
  t.notMatch(full, /evict/);
  await redis.call("CONFIG", "SET", "maxmemory", 0, "maxmemory-policy", "allkeys-lru");
  t.match(await warningsOn(t, redis.url), /policy is allkeys-lru: as soon as a maxmemory is set/);
});

t.test("persistence: none, a snapshot that failed, and what cannot be known", async (t) => {
  const redis = await startRedis(t, { args: ["--enable-protected-configs", "yes"] });
  t.match(await warningsOn(t, redis.url), /^nothing is written to disk: a restart of Redis ends every session/m);
  await redis.call("CONFIG", "SET", "save", "3600 1");
  t.same((await inspect(t, redis.url)).warnings, []);
  const folder = join(await temporaryFolder(t), "gone");
  await mkdir(folder);
  await redis.call("CONFIG", "SET", "dir", folder);
  await rm(folder, { recursive: true });
  await redis.call("BGSAVE");
  const warning = /^the last snapshot could not be written: .*MISCONF/m;
  await eventually("the snapshot fails", async () => warning.test(await warningsOn(t, redis.url)));
  const report = await probeStore(await connect(t, redis.url), Date.now);
  t.match(report, { ok: false, warnings: [warning] }, "and the probe meets what the warning says");
});

t.test("connections: rejected ones, and nearly all taken", async (t) => {
  const redis = await startRedis(t, { save: true, args: ["--maxclients", "10"] });
  const clients = await Promise.all(
    Array.from({ length: 7 }, async () => {
      const client = redis.client();
      await client.ping();
      return client;
    }),
  );
  t.match(await warningsOn(t, redis.url), /^\d+ of 10 connections are taken/m);
  for (let i = 0; i < 3; i++) redis.client({ retryStrategy: () => null });
  await eventually("one is rejected", async () => {
    const { rejected_connections: rejected } = infoFrom(String(await redis.call("INFO", "stats")));
    return Number(rejected) > 0;
  });
  for (const client of clients) client.disconnect();
  await eventually("there is room again", async () => {
    const { connected_clients: connected } = infoFrom(String(await redis.call("INFO", "clients")));
    return Number(connected) < 5;
  });
  t.match(await warningsOn(t, redis.url), /^\d+ connections were rejected since this server started/m);
});

t.test("what real servers here do not do is read from what they would say", async (t) => {
  const redis = await startRedis(t, { save: true });
  const text = String(await redis.call("INFO"));
  const context = { topology: "standalone", role: "master", snapshots: "" } as const;
  const warnings = (changes: Record<string, string | number>) =>
    serverWarnings({ ...infoFrom(text), ...(changes as Record<string, string>) }, context);
  t.same(warnings({}), []);
  t.match(warnings({ redis_version: "6.2.14" }), [/this is Redis 6\.2\.14: Coatcheck needs 7\.0 or later/]);
  t.same(warnings({ redis_version: "10.0.1" }), []);
  const fragmented = { used_memory: 200e6, used_memory_rss: 500e6, mem_fragmentation_ratio: "2.50" };
  t.match(warnings(fragmented), [/^memory is fragmented \(ratio 2\.5\): 286\.1 MiB more .* activedefrag yes/]);
  t.same(warnings({ ...fragmented, used_memory: 2e6, used_memory_rss: 5e6 }), [], "a small one always is");
  t.match(warnings({ aof_last_write_status: "err" }), [/^the last write to the AOF failed/]);
  t.match(warnings({ aof_last_bgrewrite_status: "err" }), [/^the AOF could not be rewritten/]);
  t.same(warnings({ aof_last_bgrewrite_status: "err", aof_enabled: "0", aof_last_write_status: "err" }).length, 1);
  t.same(serverWarnings({}, context), [], "nothing is known, and nothing is said");
});

t.test("the network: no password, no TLS, and loopback, which needs neither", (t) => {
  const warnings = (url: string) => networkWarnings(parseRedisUrl(url));
  t.same(warnings("redis://127.0.0.1"), []);
  t.same(warnings("redis://[::1]:6380"), []);
  t.same(warnings("redis+cluster://localhost:1,127.0.0.2:2"), []);
  t.same(warnings("rediss://user:hunter2@redis.example.com"), []);
  t.match(warnings("redis://user:hunter2@redis.example.com"), [
    /^sessions and the password go to redis\.example\.com unencrypted/,
  ]);
  t.match(warnings("redis+sentinel://127.0.0.1:1,10.0.0.7:2/m"), [/^10\.0\.0\.7 asks for no password/, /unencrypted/]);
  t.match(networkWarnings(parseRedisUrl("redis+sentinel://127.0.0.1/m"), [{ host: "10.0.0.9", port: 6379 }]), [
    /^10\.0\.0\.9 asks for no password/,
    /^sessions go to 10\.0\.0\.9 unencrypted/,
  ]);
  t.end();
});

t.test("a server of another kind than its URL says", async (t) => {
  const master = await startRedis(t, { save: true });
  const redis = await startRedis(t, { save: true });
  await redis.call("REPLICAOF", "127.0.0.1", master.port);
  const replica = await inspect(t, redis.url);
  t.match(replica.warnings, [/^this server is a replica of 127\.0\.0\.1:\d+: nothing can be written/]);
  t.match(factsOf(replica), { role: `replica of 127.0.0.1:${master.port}` });
  t.match(factsOf(await inspect(t, master.url)), { role: "master, replicas: 1" });

  const cluster = await startCluster(t);
  const [node] = cluster.masters;
  t.match(await warningsOn(t, node?.url ?? ""), /^this server is one node of a cluster.* write redis\+cluster:\/\//m);
  t.match(
    await warningsOn(t, master.url.replace("redis://", "redis+cluster://").replace("/0", "")),
    /^127\.0\.0\.1:\d+ does not tell the nodes of its cluster: .*cluster support disabled/m,
  );
});

t.test("a server that is not there, hangs, or does not let us in", async (t) => {
  const nowhere = await inspect(t, `redis://127.0.0.1:${await freePort()}`);
  t.match(nowhere.warnings, [/^does not answer: .*ECONNREFUSED.*; nothing listens there/]);
  const redis = await startRedis(t, { password: "hunter2hunter2" });
  const stranger = await inspect(t, redis.url.replace("hunter2hunter2", "hunter3hunter3"));
  t.match(stranger.warnings, [/^does not answer: .*WRONGPASS.*; the user name or the password/]);
  const anonymous = await inspect(t, redis.url.replace(":hunter2hunter2@", ""));
  t.match(anonymous.warnings, [/^does not answer: NOAUTH/]);
  const store = await connect(t, redis.url);
  redis.freeze();
  const startedMs = performance.now();
  t.match((await store.inspect()).warnings, [/^does not answer: .*time(d out|out)/]);
  t.ok(performance.now() - startedMs < 3_000);
  redis.thaw();
  t.notMatch(JSON.stringify([nowhere, stranger, anonymous]), /hunter/);
});

t.test("a server that is far away", async (t) => {
  const redis = await startRedis(t, { save: true });
  const proxy = await startProxy(t, redis.port);
  proxy.delay(10);
  const store = await connect(t, redis.url.replace(String(redis.port), String(proxy.port)));
  t.match((await store.inspect()).warnings, [/^PING takes [1-9]\d+ ms, and so does every request/]);
});

t.test("Sentinel: who is master, who follows, and whether there could be another one", async (t) => {
  const group = await startSentinel(t, { save: true, password: "hunter2hunter2" });
  const sound = await inspect(t, group.url);
  t.same(sound.warnings, []);
  const [master, ...replicas] = group.servers;
  t.match(factsOf(sound), {
    topology: `3 Sentinels, quorum 2, watch mymaster: master 127.0.0.1:${master?.port}, replicas: 2`,
    [`127.0.0.1:${master?.port}`]: /^version: .*; role: master, replicas: 2; memory: /,
    [`127.0.0.1:${replicas[0]?.port}`]: /role: replica of 127/,
  });

  const [first, second, third] = group.sentinels;
  await second?.kill();
  t.match(await warningsOn(t, group.url), /^the Sentinel 127\.0\.0\.1:\d+ is of no use: .*nothing listens there/m);
  await third?.kill();
  await eventually("the last one notices that it is alone", async () =>
    /no failover when the master is lost, because the Sentinels are too few: NOQUORUM/.test(
      await warningsOn(t, group.url),
    ),
  );
  await second?.start();
  await third?.start();
  await group.healthy();

  // It watches something else under this name, and says so to the others.
  await first?.call("SENTINEL", "REMOVE", "mymaster");
  t.match(await warningsOn(t, group.url), /^the Sentinel .* is of no use: .*No such master/m);
  const other = await startRedis(t);
  await first?.call("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", other.port, 1);
  const torn = await warningsOn(t, group.url);
  t.match(torn, /^the Sentinels do not agree who the master is/m);

  const single = await startSentinel(t, { sentinels: 1, replicas: 0 });
  const alone = await warningsOn(t, single.url);
  t.match(alone, /^this master has no replica: when it is lost, every session is lost/m);
  t.match(alone, /^there is one Sentinel: if one is lost, nobody can choose another master/m);
  await single.sentinels[0]?.kill();
  const gone = await inspect(t, single.url);
  t.match(factsOf(gone), { topology: "none of 1 Sentinels answers" });
});

t.test("Sentinel: a replica that does not know the user is told before the failover", async (t) => {
  const group = await startSentinel(t, { save: true, replicas: 1 });
  const [master, replica] = group.servers;
  const rules = ["on", ">hunter2hunter2", "~*", "&*", "+@all"];
  await master?.call("ACL", "SETUSER", "known", ...rules);
  const url = group.url.replace("://", "://known:hunter2hunter2@");
  const report = await probeStore(await connect(t, url), Date.now);
  t.ok(report.ok, "all is well today");
  t.match(report.warnings, [
    /^127\.0\.0\.1:\d+: this replica does not let us in, and would not as a master .*WRONGPASS/,
  ]);
  await replica?.call("ACL", "SETUSER", "known", ...rules, "-eval");
  t.match(
    await warningsOn(t, url),
    new RegExp(`^127\\.0\\.0\\.1:${replica?.port}: the Redis user known lacks \\+eval:`),
  );
  await replica?.call("ACL", "SETUSER", "known", "+eval");
  t.same((await inspect(t, url)).warnings, []);
});

t.test("cluster: nodes, replicas, and slots that belong to nobody", async (t) => {
  const cluster = await startCluster(t, { save: true });
  const bare = await inspect(t, cluster.url);
  t.match(factsOf(bare), { topology: "cluster, state ok: 3 masters, 0 replicas, 16384 of 16384 slots served" });
  t.match(bare.warnings, [/^this master has no replica: when it is lost, its part of the sessions is lost/]);
  t.equal(bare.facts.length, 4, "a line for each node");
  for (const node of cluster.nodes) await node.call("CLUSTER", "DELSLOTS", 0, 1, 2);
  t.match(await warningsOn(t, cluster.url), /^3 slots belong to nobody: sessions there cannot be kept/m);
  await eventually("the cluster notices", async () =>
    /^the state of the cluster is fail: it answers nobody/m.test(await warningsOn(t, cluster.url)),
  );

  const replicated = await startCluster(t, { save: true, replicas: 1 });
  const store = await connect(t, replicated.url);
  // A replica that has not received anything yet is not counted.
  const sound = await eventually("replicas are counted", async () => {
    await Promise.all(Array.from({ length: 20 }, (_, i) => store.set(`${i}`.padEnd(43, "x"), "a", 1)));
    await probeStore(store, Date.now);
    const inspection = await inspect(t, replicated.url);
    return factsOf(inspection).topology?.includes("3 replicas") ? inspection : undefined;
  });
  t.same(sound.warnings, []);
  t.match(sound.facts[6]?.value, /role: replica of/);
});

t.test("rights: INFO and CONFIG forbidden, commands that somebody renamed", async (t) => {
  const redis = await startRedis(t, { args: ["--rename-command", "EVALSHA", ""] });
  await redis.call("ACL", "SETUSER", "blind", "on", ">hunter2hunter2", "~*", "&*", "+@all", "-info", "-config");
  const url = redis.url.replace("redis://", "redis://blind:hunter2hunter2@");
  const inspection = await inspect(t, url);
  t.match(factsOf(inspection), {
    role: /^master; version, memory and persistence are not known without \+info$/,
    PING: / ms$/,
  });
  t.match(inspection.warnings, [
    /^the Redis user blind lacks \+info: nothing is known of its version.*ACL SETUSER blind \+info$/,
    /^the server does not know EVALSHA, which somebody may have renamed or disabled: nobody can log in or out/,
  ]);
  await redis.call("ACL", "SETUSER", "blind", "+info");
  const seeing = factsOf(await inspect(t, url));
  t.match(seeing.persistence, "no AOF; whether there are snapshots is not known without +config|get");
});

t.test("on the command line, with everything else", async (t) => {
  const redis = await startRedis(t, { args: ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"] });
  const folder = await temporaryFolder(t);
  const file = join(folder, "coatcheck.yaml");
  await writeFile(file, `store: "${redis.url}"\nroutes: [{ upstream: "http://localhost:3000" }]\n`);
  const { status, stdout, stderr } = await run(t, ["check", "--config", file, "--store"]);
  t.equal(status, 0);
  t.equal(stderr, "");
  t.match(stdout, /^memory +\d\.\d MiB used, maxmemory 100\.0 MiB, policy allkeys-lru$/m);
  t.match(stdout, /^warning: maxmemory-policy is allkeys-lru: at 100\.0 MiB Redis throws sessions away/m);
  t.match(stdout, /^The store serves, with 2 warnings\.$/m);
});
