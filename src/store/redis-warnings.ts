import { isIP } from "node:net";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";

const NEARLY = 0.9;
const MUCH_WASTED_BYTES = 100 * 1024 * 1024;

/** What INFO says, by field. Empty when this user may not ask. */
export type RedisInfo = Readonly<Record<string, string>>;

/** Reads the answer of INFO. */
export function infoFrom(text: string | undefined): RedisInfo {
  const lines = (text ?? "").split("\r\n").map((line) => line.split(/:(.*)/s, 2));
  return Object.fromEntries(lines.filter((line) => line.length === 2));
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

export function shownBytes(text: string): string {
  return `${(Number(text) / 1024 / 1024).toFixed(1)} MiB`;
}
