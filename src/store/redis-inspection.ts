import { randomBytes } from "node:crypto";
import { isIP } from "node:net";
import slotOf from "cluster-key-slot";
import { Redis, type RedisOptions } from "ioredis";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";
import type { StoreFact, StoreInspection } from "../core/store.ts";
import { explain } from "./failures.ts";
import type { RedisLink } from "./redis-link.ts";
import { rightsWarnings } from "./redis-rights.ts";
import { SESSION_PREFIX } from "./redis-scripts.ts";

const SLOTS = 16_384;
const PINGS = 5;
/** From here on it is worth a warning: a request whose session is not cached waits so long at least. */
const SLOW_PING_MS = 10;
/** Up to so many keys of a server, its sessions are counted one by one. */
const MAX_COUNTED_KEYS = 10_000;
const NEARLY = 0.9;
const MUCH_WASTED_BYTES = 100 * 1024 * 1024;
/** Fewer Sentinels cannot outvote one that is lost. */
const MIN_SENTINELS = 3;

/** One server that has sessions, or a copy of them. */
interface Place extends RedisHost {
  readonly role: "master" | "replica";
  /** A key in a slot of this server begins with the prefix. */
  keyLike(prefix: string): string;
}

/** What INFO says, by field. Empty when this user may not ask. */
export type RedisInfo = Readonly<Record<string, string>>;

/**
 * Looks at every server behind a URL, masters and replicas, Sentinels included: what endangers sessions, what this user
 * may not do. It writes nothing that stays, takes a few round trips to each, and does not throw: a server that does not
 * answer is a warning.
 */
export async function inspectRedis(link: RedisLink): Promise<StoreInspection> {
  const report = new Report();
  const places = await PLACES[link.address.topology](link, report);
  report.begin(places.map(nameOf));
  await Promise.all(places.map((place) => look(link, place, report)));
  for (const warning of networkWarnings(link.address, places)) report.warn(warning);
  return report.result();
}

/** Gathers what is found; what holds for all servers is said once. */
class Report {
  readonly #facts: StoreFact[] = [];
  readonly #warnings = new Map<string, string[]>();
  /** In the order in which they are shown. */
  readonly #servers = new Map<string, readonly StoreFact[]>();

  fact(name: string, value: string): void {
    this.#facts.push({ name, value });
  }

  begin(servers: readonly string[]): void {
    for (const server of servers) this.#servers.set(server, []);
  }

  factsOf(server: string, facts: readonly StoreFact[]): void {
    this.#servers.set(server, facts);
  }

  /** @param server absent: it is about all of them together. */
  warn(text: string, server?: string): void {
    const servers = this.#warnings.get(text) ?? [];
    this.#warnings.set(text, servers);
    if (server !== undefined) servers.push(server);
  }

  result(): StoreInspection {
    const count = this.#servers.size;
    const ofServers = [...this.#servers].flatMap(([server, facts]): readonly StoreFact[] => {
      if (count === 1 || facts.length === 0) return facts;
      return [{ name: server, value: facts.map(({ name, value }) => `${name}: ${value}`).join("; ") }];
    });
    const warnings = [...this.#warnings].map(([text, servers]) =>
      servers.length === 0 || servers.length === count ? text : `${servers.sort().join(", ")}: ${text}`,
    );
    return { facts: [...this.#facts, ...ofServers], warnings };
  }
}

type FindPlaces = (link: RedisLink, report: Report) => Promise<readonly Place[]>;

const PLACES: Readonly<Record<RedisAddress["topology"], FindPlaces>> = {
  standalone: async ({ address }, report) => {
    report.fact("topology", "one server");
    return address.hosts.map((host) => ({ ...host, role: "master", keyLike }));
  },
  sentinel: placesBehindSentinels,
  cluster: placesInCluster,
};

const keyLike = (prefix: string): string => prefix + randomBytes(32).toString("base64url");

/** What one Sentinel says. */
interface Watch {
  readonly master: Readonly<Record<string, string>>;
  readonly replicas: readonly Readonly<Record<string, string>>[];
  /** Absent: they could choose another master. */
  readonly noQuorum: string | undefined;
}

async function placesBehindSentinels(link: RedisLink, report: Report): Promise<readonly Place[]> {
  const { hosts, master: name = "", sentinelUsername, sentinelPassword } = link.address;
  const { username: _, password: __, ...options } = link.nodeOptions();
  const credentials = {
    ...(sentinelUsername !== undefined && { username: sentinelUsername }),
    ...(sentinelPassword !== undefined && { password: sentinelPassword }),
  };
  const watches = await Promise.all(
    hosts.map(async (host) => {
      try {
        return await visit({ ...options, ...credentials, ...host }, (sentinel) => watchOf(sentinel, name));
      } catch (error) {
        const { problem, advice } = explain(error);
        report.warn(`the Sentinel ${nameOf(host)} is of no use: ${problem}; ${advice}`);
        return undefined;
      }
    }),
  );
  const answers = watches.filter((watch) => watch !== undefined);
  const [first] = answers;
  if (first === undefined) {
    report.fact("topology", `none of ${hosts.length} Sentinels answers`);
    return [];
  }
  const masters = new Set(answers.map(({ master }) => `${master.ip}:${master.port}`));
  if (masters.size > 1)
    report.warn(
      `the Sentinels do not agree who the master is (${[...masters].join(", ")}): gateways may write to different servers; a failover may be under way, otherwise look for Sentinels that do not reach each other`,
    );
  for (const text of new Set(answers.flatMap(({ noQuorum }) => noQuorum ?? [])))
    report.warn(`there will be no failover when the master is lost, because the Sentinels are too few: ${text}`);
  const sentinels = Number(first.master["num-other-sentinels"]) + 1;
  if (sentinels < MIN_SENTINELS)
    report.warn(
      `there ${sentinels === 1 ? "is one Sentinel" : "are two Sentinels"}: if one is lost, nobody can choose another master; run ${MIN_SENTINELS} at least, on different machines`,
    );
  const replicas = answers.map(({ replicas }) => replicas).sort((a, b) => b.length - a.length)[0] ?? [];
  const quorum = first.master.quorum;
  report.fact(
    "topology",
    `${sentinels} Sentinels, quorum ${quorum}, watch ${name}: master ${[...masters].join(" or ")}, replicas: ${replicas.length}`,
  );
  const place = (role: Place["role"]) => (fields: Readonly<Record<string, string>>) => ({
    host: fields.ip ?? "",
    port: Number(fields.port),
    role,
    keyLike,
  });
  return [first.master, ...replicas].map((fields, index) => place(index === 0 ? "master" : "replica")(fields));
}

async function watchOf(sentinel: Redis, name: string): Promise<Watch> {
  const master = named((await sentinel.call("SENTINEL", "MASTER", name)) as string[]);
  const replicas = ((await sentinel.call("SENTINEL", "REPLICAS", name)) as string[][]).map(named);
  const noQuorum = await sentinel.call("SENTINEL", "CKQUORUM", name).then(
    () => undefined,
    (error: Error) => error.message,
  );
  return { master, replicas, noQuorum };
}

/** Redis's list of names and values. */
function named(list: readonly string[]): Record<string, string> {
  return Object.fromEntries(list.flatMap((name, i) => (i % 2 === 0 ? [[name, list[i + 1] ?? ""]] : [])));
}

type SlotRange = readonly [first: number, last: number, ...nodes: readonly [host: string, port: number][]];

async function placesInCluster(link: RedisLink, report: Report): Promise<readonly Place[]> {
  const view = await viewOfCluster(link, report);
  if (view === undefined) return [];
  const { state, ranges } = view;
  const places = new Map<string, Place>();
  const slotsOf = new Map<string, [number, number][]>();
  for (const [first, last, master, ...replicas] of ranges) {
    if (master === undefined) continue;
    for (const [index, [host, port]] of [master, ...replicas].entries()) {
      const name = nameOf({ host, port });
      const slots = slotsOf.get(name) ?? [];
      slotsOf.set(name, [...slots, [first, last]]);
      places.set(name, { host, port, role: index === 0 ? "master" : "replica", keyLike: keyIn(slotsOf, name) });
    }
  }
  const served = ranges.reduce((sum, [first, last]) => sum + last - first + 1, 0);
  const masters = [...places.values()].filter(({ role }) => role === "master").length;
  const counts = `${masters} masters, ${places.size - masters} replicas`;
  report.fact("topology", `cluster, state ${state}: ${counts}, ${served} of ${SLOTS} slots served`);
  if (state === "fail")
    report.warn(
      "the state of the cluster is fail: it answers nobody, and every request with a cookie gets 503; look at CLUSTER NODES for masters that are lost without a replica",
    );
  if (served < SLOTS)
    report.warn(
      `${SLOTS - served} slots belong to nobody: sessions there cannot be kept, and unless cluster-require-full-coverage is no, none at all; look at CLUSTER NODES, then redis-cli --cluster fix`,
    );
  return [...places.values()].sort((a, b) => (a.role + nameOf(a) < b.role + nameOf(b) ? -1 : 1));
}

interface ClusterView {
  /** `ok`, or `fail`. */
  readonly state: string;
  readonly ranges: readonly SlotRange[];
}

/** Asks the nodes that the URL names, until one tells. */
async function viewOfCluster(link: RedisLink, report: Report): Promise<ClusterView | undefined> {
  for (const host of link.address.hosts) {
    try {
      return await visit({ ...link.nodeOptions(), ...host }, async (node) => {
        const ranges = (await node.call("CLUSTER", "SLOTS")) as readonly SlotRange[];
        const info = infoFrom((await unlessRefused(() => node.call("CLUSTER", "INFO"))) as string | undefined);
        return { state: info.cluster_state ?? "not known", ranges };
      });
    } catch (error) {
      const { problem, advice } = explain(error);
      report.warn(`${nameOf(host)} does not tell the nodes of its cluster: ${problem}; ${advice}`);
    }
  }
  return undefined;
}

/** Tries names: a node with one slot is found after 16,384 of them on average. */
function keyIn(slotsOf: ReadonlyMap<string, readonly (readonly [number, number])[]>, name: string) {
  return (prefix: string): string => {
    for (;;) {
      const key = keyLike(prefix);
      const slot = slotOf(key);
      if (slotsOf.get(name)?.some(([first, last]) => slot >= first && slot <= last)) return key;
    }
  };
}

/** A connection of its own, so that nothing depends on the state of those that serve requests. */
async function visit<T>(options: Omit<RedisOptions, "replyMapping">, ask: (redis: Redis) => Promise<T>): Promise<T> {
  const redis = new Redis({
    ...options,
    protocol: 2,
    lazyConnect: true,
    enableReadyCheck: false,
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  });
  let reason: Error | undefined;
  redis.on("error", (error) => {
    reason = error;
  });
  try {
    await redis.connect();
    return await ask(redis);
  } catch (error) {
    // "Connection is closed" is all that the caller of a command hears.
    throw reason ?? error;
  } finally {
    redis.disconnect();
  }
}

async function look(link: RedisLink, place: Place, report: Report): Promise<void> {
  const server = nameOf(place);
  const { topology, database, username = "default" } = link.address;
  const { host, port, role } = place;
  try {
    await visit({ ...link.nodeOptions(), host, port, db: database }, async (redis) => {
      const pingMs = await latencyOf(redis);
      const info = infoFrom(await unlessRefused(() => redis.info()));
      const snapshots = await unlessRefused(async () => ((await redis.config("GET", "save")) as string[])[1] ?? "");
      const keys = role === "master" ? await keysOf(redis, info, database) : undefined;
      report.factsOf(server, factsOf(place, { info, snapshots, keys, pingMs }));
      for (const warning of serverWarnings(info, { topology, role, snapshots })) report.warn(warning, server);
      if (pingMs >= SLOW_PING_MS)
        report.warn(
          `PING takes ${pingMs.toFixed(0)} ms, and so does every request whose session is not cached: keep Redis and the gateways near each other, and look at SLOWLOG`,
          server,
        );
      const rights = { topology, username, keyLike: place.keyLike };
      for (const warning of await rightsWarnings(redis, rights)) report.warn(warning, server);
    });
  } catch (error) {
    const { problem, advice } = explain(error);
    report.warn(
      role === "master"
        ? `does not answer: ${problem}; ${advice}`
        : `this replica does not let us in, and would not as a master after a failover: ${problem}; ${advice}`,
      server,
    );
  }
}

async function latencyOf(redis: Redis): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < PINGS; i++) {
    const startedMs = performance.now();
    // A server that cannot write its snapshot refuses even this, and that is an answer.
    await unlessRefused(() => redis.ping());
    times.push(performance.now() - startedMs);
  }
  return times.sort((a, b) => a - b)[Math.floor(PINGS / 2)] ?? 0;
}

/**
 * @returns `undefined` when the server answers, but not with this.
 * @throws what it says to everything before it knows who is asking.
 */
async function unlessRefused<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof Error && error.name === "ReplyError" && !error.message.startsWith("NOAUTH")) return undefined;
    throw error;
  }
}

/** Reads the answer of INFO. */
export function infoFrom(text: string | undefined): RedisInfo {
  const lines = (text ?? "").split("\r\n").map((line) => line.split(/:(.*)/s, 2));
  return Object.fromEntries(lines.filter((line) => line.length === 2));
}

interface Keys {
  readonly all: number;
  readonly withoutTtl: number;
  /** Absent when there are too many to count. */
  readonly sessions: number | undefined;
}

async function keysOf(redis: Redis, info: RedisInfo, database: number): Promise<Keys | undefined> {
  if (info.redis_version === undefined) return undefined;
  const [, all = 0, expiring = 0] = (/^keys=(\d+),expires=(\d+)/.exec(info[`db${database}`] ?? "") ?? []).map(Number);
  const sessions = all > MAX_COUNTED_KEYS ? undefined : await unlessRefused(() => countSessions(redis));
  return { all, withoutTtl: all - expiring, sessions };
}

async function countSessions(redis: Redis): Promise<number> {
  const seen = new Set<string>();
  let place = "0";
  do {
    const [next, keys] = await redis.scan(place, "MATCH", `${SESSION_PREFIX}*`, "COUNT", 1000);
    for (const key of keys) seen.add(key);
    place = next;
  } while (place !== "0");
  return seen.size;
}

interface Seen {
  readonly info: RedisInfo;
  /** The `save` lines of its configuration; absent when this user may not see them. */
  readonly snapshots: string | undefined;
  readonly keys: Keys | undefined;
  readonly pingMs: number;
}

function factsOf({ role }: Place, { info, snapshots, keys, pingMs }: Seen): readonly StoreFact[] {
  const ping = { name: "PING", value: `${pingMs.toFixed(2)} ms` };
  if (info.redis_version === undefined)
    return [{ name: "role", value: `${role}; version, memory and persistence are not known without +info` }, ping];
  const { maxmemory = "0", used_memory: used = "0", maxmemory_policy: policy } = info;
  const limit = maxmemory === "0" ? "no maxmemory" : `maxmemory ${shownBytes(maxmemory)}`;
  const actualRole = info.role === "slave" ? `replica of ${info.master_host}:${info.master_port}` : "master";
  return [
    { name: "version", value: shownVersion(info) },
    {
      name: "role",
      value: actualRole === "master" ? `master, replicas: ${info.connected_slaves ?? "0"}` : actualRole,
    },
    { name: "memory", value: `${shownBytes(used)} used, ${limit}, policy ${policy ?? "not known"}` },
    { name: "persistence", value: shownPersistence(info, snapshots) },
    ...(keys === undefined ? [] : [{ name: "keys", value: shownKeys(keys) }]),
    { name: "clients", value: `${info.connected_clients} of ${info.maxclients ?? "?"}` },
    ping,
  ];
}

/** Relatives of Redis keep the version that they are compatible with beside their own. */
function shownVersion({ redis_version, valkey_version, server_name }: RedisInfo): string {
  return valkey_version === undefined
    ? `${redis_version}`
    : `${redis_version} (${server_name ?? "valkey"} ${valkey_version})`;
}

function shownPersistence({ aof_enabled }: RedisInfo, snapshots: string | undefined): string {
  const aof = aof_enabled === "1" ? "AOF" : "no AOF";
  if (snapshots === undefined) return `${aof}; whether there are snapshots is not known without +config|get`;
  return `${aof}, ${snapshots === "" ? "no snapshots" : `snapshots (save ${snapshots})`}`;
}

function shownKeys({ all, withoutTtl, sessions }: Keys): string {
  const counted = sessions === undefined ? "" : `, ${sessions} of them sessions`;
  return `${all}${counted}${withoutTtl === 0 ? "" : `, ${withoutTtl} without a TTL (see coatcheck sessions sweep)`}`;
}

function shownBytes(text: string): string {
  return `${(Number(text) / 1024 / 1024).toFixed(1)} MiB`;
}

export interface ServerContext {
  readonly topology: RedisAddress["topology"];
  /** What the server is taken for. */
  readonly role: "master" | "replica";
  /** As in `CONFIG GET save`; absent when it is not known. */
  readonly snapshots: string | undefined;
}

/** What endangers sessions on one server. Nothing is known from an empty INFO, and nothing is said. */
export function serverWarnings(info: RedisInfo, context: ServerContext): string[] {
  if (info.redis_version === undefined) return [];
  return [
    ...versionWarnings(info),
    ...roleWarnings(info, context),
    ...memoryWarnings(info),
    ...persistenceWarnings(info, context),
    ...clientWarnings(info),
  ];
}

function versionWarnings({ redis_version: version = "" }: RedisInfo): string[] {
  if (Number.parseInt(version, 10) >= 7) return [];
  return [
    `this is Redis ${version}: Coatcheck needs 7.0 or later (its scripts use PEXPIRETIME), so that nobody can log in here; upgrade it`,
  ];
}

function roleWarnings(info: RedisInfo, { topology, role }: ServerContext): string[] {
  const warnings: string[] = [];
  if (topology === "standalone" && info.cluster_enabled === "1")
    warnings.push(
      "this server is one node of a cluster, and the URL names it as a single server: sessions in the slots of other nodes cannot be reached; write redis+cluster://",
    );
  if (role === "master" && info.role === "slave")
    warnings.push(
      `this server is a replica of ${info.master_host}:${info.master_port}: nothing can be written, so that nobody can log in or out; name the master, or the Sentinels with redis+sentinel://`,
    );
  if (role === "replica" && info.master_link_status === "down")
    warnings.push(
      "this replica has lost its master, and its copy of the sessions grows old: sessions since then are lost if it becomes the master; look at its log, at masterauth and at the network",
    );
  if (topology !== "standalone" && role === "master" && info.connected_slaves === "0")
    warnings.push(
      `this master has no replica: when it is lost, ${topology === "cluster" ? "its part of the sessions" : "every session"} is lost with it, and there is no failover; add a replica`,
    );
  return warnings;
}

function memoryWarnings(info: RedisInfo): string[] {
  const [used, limit] = [Number(info.used_memory), Number(info.maxmemory)];
  const policy = info.maxmemory_policy ?? "noeviction";
  const warnings: string[] = [];
  if (policy !== "noeviction") {
    const when =
      limit > 0 ? `at ${shownBytes(String(limit))} Redis` : "as soon as a maxmemory is set and reached, Redis";
    warnings.push(
      `maxmemory-policy is ${policy}: ${when} throws sessions away to make room, and these people are logged out; set maxmemory-policy noeviction, give it enough memory, and keep caches in another Redis`,
    );
  }
  if (limit > 0 && used >= NEARLY * limit)
    warnings.push(
      `${Math.floor((100 * used) / limit)} % of maxmemory is used: ${policy === "noeviction" ? "when it is full nobody can log in and no session can be changed" : "evictions are near"}; raise maxmemory, or find out what fills it (redis-cli --bigkeys)`,
    );
  if (Number(info.evicted_keys) > 0)
    warnings.push(
      `${info.evicted_keys} keys were evicted since this server started: whoever had a session among them was logged out; see maxmemory-policy, and coatcheck_session_resolutions_total{outcome="unknown"}`,
    );
  const wasted = Number(info.used_memory_rss) - used;
  const ratio = Number(info.mem_fragmentation_ratio);
  if (ratio > 1.5 && wasted > MUCH_WASTED_BYTES)
    warnings.push(
      `memory is fragmented (ratio ${ratio}): ${shownBytes(String(wasted))} more than needed are taken from the machine, which may end Redis when it runs out; set activedefrag yes, or restart it after a failover`,
    );
  return warnings;
}

function persistenceWarnings(info: RedisInfo, { topology, role, snapshots }: ServerContext): string[] {
  const warnings: string[] = [];
  if (info.aof_enabled === "0" && snapshots === "" && role === "master")
    warnings.push(
      topology === "standalone"
        ? "nothing is written to disk: a restart of Redis ends every session; set appendonly yes"
        : "nothing is written to disk: a master that restarts before the failover begins is empty, and its replicas empty themselves too; set appendonly yes",
    );
  if (info.rdb_last_bgsave_status === "err")
    warnings.push(
      "the last snapshot could not be written: with stop-writes-on-bgsave-error Redis refuses every write (MISCONF), and a restart brings back old sessions; look at its disk, its memory (vm.overcommit_memory) and its log",
    );
  if (info.aof_enabled === "1" && info.aof_last_write_status === "err")
    warnings.push(
      "the last write to the AOF failed: Redis refuses writes until it succeeds, so that nobody can log in; look at its disk (full?) and its log",
    );
  if (info.aof_enabled === "1" && info.aof_last_bgrewrite_status === "err")
    warnings.push("the AOF could not be rewritten: it grows until the disk is full; look at its disk and its log");
  return warnings;
}

function clientWarnings(info: RedisInfo): string[] {
  const warnings: string[] = [];
  if (Number(info.rejected_connections) > 0)
    warnings.push(
      `${info.rejected_connections} connections were rejected since this server started, because there were maxclients (${info.maxclients ?? "?"}): gateways could not reconnect; raise it, and the limit of open files, or find out who holds them (CLIENT LIST)`,
    );
  if (Number(info.connected_clients) >= NEARLY * Number(info.maxclients))
    warnings.push(
      `${info.connected_clients} of ${info.maxclients} connections are taken: when all are, no gateway can connect; raise maxclients, or find out who holds them (CLIENT LIST)`,
    );
  return warnings;
}

/** Whether what passes between here and the servers, or the servers themselves, are open to others. */
export function networkWarnings({ tls, password, hosts }: RedisAddress, servers: readonly RedisHost[] = []): string[] {
  const remote = [...hosts, ...servers].find(({ host }) => !isLoopback(host));
  if (remote === undefined) return [];
  const warnings: string[] = [];
  if (password === undefined)
    warnings.push(
      `${remote.host} asks for no password: whoever reaches it can read every session, and make one for anybody; set a password or an ACL user, and see session.encryptionKeys`,
    );
  if (!tls)
    warnings.push(
      `sessions${password === undefined ? "" : " and the password"} go to ${remote.host} unencrypted: whoever sees the network can read them; use rediss:// unless the network itself is encrypted`,
    );
  return warnings;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

function nameOf({ host, port }: RedisHost): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
