import type { Redis } from "ioredis";
import type { StoreFact, StoreInspection } from "../core/store.ts";
import { explain } from "./failures.ts";
import type { RedisLink } from "./redis-link.ts";
import { nameOf, PLACES, type Place, type TopologyReport, unlessRefused, visit } from "./redis-places.ts";
import { rightsWarnings } from "./redis-rights.ts";
import { SESSION_PREFIX } from "./redis-scripts.ts";
import { infoFrom, networkWarnings, type RedisInfo, serverWarnings, shownBytes } from "./redis-warnings.ts";

const PINGS = 5;
/** From here on it is worth a warning: a request whose session is not cached waits so long at least. */
const SLOW_PING_MS = 10;
/** Up to so many keys of a server, its sessions are counted one by one. */
const MAX_COUNTED_KEYS = 10_000;

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
class Report implements TopologyReport {
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
