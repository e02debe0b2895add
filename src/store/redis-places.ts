import { randomBytes } from "node:crypto";
import slotOf from "cluster-key-slot";
import { Redis, type RedisOptions } from "ioredis";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";
import { explain } from "./failures.ts";
import type { RedisLink } from "./redis-link.ts";
import { infoFrom } from "./redis-warnings.ts";

const SLOTS = 16_384;
/** Fewer Sentinels cannot outvote one that is lost. */
const MIN_SENTINELS = 3;

/** One server that has sessions, or a copy of them. */
export interface Place extends RedisHost {
  readonly role: "master" | "replica";
  /** A key in a slot of this server begins with the prefix. */
  keyLike(prefix: string): string;
}

/** Where what is found on the way is told. */
export interface TopologyReport {
  fact(name: string, value: string): void;
  warn(text: string): void;
}

export type FindPlaces = (link: RedisLink, report: TopologyReport) => Promise<readonly Place[]>;

/** How all servers behind a URL are found. */
export const PLACES: Readonly<Record<RedisAddress["topology"], FindPlaces>> = {
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

async function placesBehindSentinels(link: RedisLink, report: TopologyReport): Promise<readonly Place[]> {
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

async function placesInCluster(link: RedisLink, report: TopologyReport): Promise<readonly Place[]> {
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
async function viewOfCluster(link: RedisLink, report: TopologyReport): Promise<ClusterView | undefined> {
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
export async function visit<T>(
  options: Omit<RedisOptions, "replyMapping">,
  ask: (redis: Redis) => Promise<T>,
): Promise<T> {
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

/**
 * @returns `undefined` when the server answers, but not with this.
 * @throws what it says to everything before it knows who is asking.
 */
export async function unlessRefused<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof Error && error.name === "ReplyError" && !error.message.startsWith("NOAUTH")) return undefined;
    throw error;
  }
}

export function nameOf({ host, port }: RedisHost): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
