/** A real Redis Cluster on loopback, and what happens to one: slots that move, masters that fail. */
import slotOf from "cluster-key-slot";
import { type RedisServer, type RedisServerOptions, startServer } from "./redis.ts";
import { eventually, freePort, type Teardown } from "./resources.ts";

const SLOTS = 16_384;
const MIGRATE_TIMEOUT_MS = 1_000;
/** What a manual failover is given by Redis (`CLUSTER_MF_TIMEOUT`), and a little more. */
const MANUAL_FAILOVER_MS = 5_500;

export interface ClusterOptions extends Omit<RedisServerOptions, "tls"> {
  /** 3 or more: with fewer nobody can be voted for. */
  readonly masters?: number;
  /** Of each master. */
  readonly replicas?: 0 | 1;
  /** After this silence a node is taken for failed. */
  readonly nodeTimeoutMs?: number;
}

export interface ClusterNode extends RedisServer {
  readonly id: string;
  /** First and last slot as the cluster was made; absent for one that began as a replica. */
  readonly slots?: readonly [number, number];
}

/** A slot on its way: what has moved is with `to`, the rest with `from`, and clients meet ASK and TRYAGAIN. */
export interface Migration {
  /** Moves that many keys more, or as many as there are; answers how many it moved. */
  move(keys: number): Promise<number>;
  /** Moves the rest and tells every node. */
  finish(): Promise<void>;
}

export interface RedisCluster {
  /** `redis+cluster://:password@127.0.0.1:p1,127.0.0.1:p2,…`: the masters that it began with. */
  readonly url: string;
  /** Masters first, in the order of their slots, then the replica of each. */
  readonly nodes: readonly ClusterNode[];
  readonly masters: readonly ClusterNode[];
  readonly replicas: readonly ClusterNode[];
  /** Waits until all running nodes say that the cluster is well. */
  healthy(): Promise<void>;
  /** The node that serves a key, as it says itself. Waits while there is none, for a failover for example. */
  ownerOf(key: string): Promise<ClusterNode>;
  beginMigration(slot: number, from: ClusterNode, to: ClusterNode): Promise<Migration>;
  /** Moves a slot with its keys while clients go on. */
  migrateSlot(slot: number, from: ClusterNode, to: ClusterNode): Promise<void>;
  /** Makes a replica the master, both being alive; for the other case kill the master and ask for `ownerOf`. */
  failover(replica: ClusterNode): Promise<void>;
  /** Makes clients reach a node by another port: that of a proxy. Done when all nodes say so. */
  announce(node: ClusterNode, port: number): Promise<void>;
  /** Removes all keys. */
  flush(): Promise<void>;
}

export { slotOf };

/** @see https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ */
export async function startCluster(t: Teardown, options: ClusterOptions = {}): Promise<RedisCluster> {
  const { masters: count = 3, replicas: replicasEach = 0, nodeTimeoutMs = 500, ...settings } = options;
  const size = count * (1 + replicasEach);
  const servers = await Promise.all(Array.from({ length: size }, () => startNode(t, settings, nodeTimeoutMs)));
  const nodes = await Promise.all(servers.map((server, index) => identified(server, index, count)));
  const [masters, replicas] = [nodes.slice(0, count), nodes.slice(count)];
  await form(nodes, masters, replicas);

  const running = () => nodes.filter((node) => node.running);
  const healthy = async () => {
    await eventually("the cluster is well", async () => {
      const ids = new Set(running().map(({ id }) => id));
      return (await Promise.all(running().map((node) => isWell(node, ids)))).every(Boolean);
    });
  };
  const owner = (slot: number) =>
    eventually(`somebody serves slot ${slot}`, async () => {
      const claims = await Promise.all(running().map((node) => claimOf(node, slot)));
      // A master that comes back claims its slots until it hears that there is a newer one.
      const newest = claims.sort((a, b) => b.epoch - a.epoch)[0];
      return newest !== undefined && newest.epoch >= 0 ? newest.node : undefined;
    });
  const beginMigration: RedisCluster["beginMigration"] = async (slot, from, to) => {
    await to.call("CLUSTER", "SETSLOT", slot, "IMPORTING", from.id);
    await from.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id);
    const move = (keys: number) => moveKeys({ slot, keys, from, to, password: settings.password });
    const finish = async () => {
      while ((await move(10)) > 0);
      // The new owner first: from then on it tells the others itself.
      const others = running().filter((node) => node !== from && node !== to);
      for (const node of [to, from]) await node.call("CLUSTER", "SETSLOT", slot, "NODE", to.id);
      await Promise.all(others.map((node) => setSlotUnlessReplica(node, slot, to)));
    };
    return { move, finish };
  };

  await healthy();
  const auth = settings.password === undefined ? "" : `:${encodeURIComponent(settings.password)}@`;
  return {
    url: `redis+cluster://${auth}${masters.map(({ port }) => `127.0.0.1:${port}`).join(",")}`,
    nodes,
    masters,
    replicas,
    healthy,
    ownerOf: (key) => owner(slotOf(key)),
    beginMigration,
    migrateSlot: async (slot, from, to) => (await beginMigration(slot, from, to)).finish(),
    failover: async (replica) => {
      await healthy();
      const isMasterEverywhere = async () =>
        (await Promise.all(running().map(nodesSeenBy))).every((view) =>
          view.some(({ id, slots }) => id === replica.id && slots.length > 0),
        );
      // Redis gives a manual failover up when it loses a message or a vote, and says so nowhere but in its log.
      let triedAt = Number.NEGATIVE_INFINITY;
      const isDone = async () => {
        if (performance.now() - triedAt > MANUAL_FAILOVER_MS && !(await isMaster(replica))) {
          triedAt = performance.now();
          // Refused while the link with the master is down; then it is tried again.
          await replica.call("CLUSTER", "FAILOVER").catch(() => undefined);
        }
        return isMasterEverywhere();
      };
      await eventually("the replica is master everywhere", isDone, 30_000);
    },
    announce: async (node, port) => {
      await node.call("CONFIG", "SET", "cluster-announce-port", port);
      await eventually("all nodes announce the port", async () => {
        const views = await Promise.all(running().map((each) => each.call("CLUSTER", "NODES")));
        return views.every((view) => String(view).includes(`:${port}@`));
      });
    },
    flush: async () => {
      for (const node of running()) if (await isMaster(node)) await node.call("FLUSHALL");
    },
  };
}

async function startNode(t: Teardown, settings: RedisServerOptions, nodeTimeoutMs: number): Promise<RedisServer> {
  const { password } = settings;
  const config = [
    "cluster-enabled yes",
    "cluster-config-file nodes.conf",
    `cluster-port ${await freePort()}`,
    `cluster-node-timeout ${nodeTimeoutMs}`,
    "repl-diskless-sync-delay 0",
    ...(password === undefined ? [] : [`masterauth ${JSON.stringify(password)}`]),
  ];
  return startServer(t, { ...settings, config });
}

async function identified(server: RedisServer, index: number, masters: number): Promise<ClusterNode> {
  const id = String(await server.call("CLUSTER", "MYID"));
  const first = (n: number) => Math.floor((n * SLOTS) / masters);
  // `running` is a getter, which a spread would freeze.
  return Object.assign(Object.create(server), {
    id,
    ...(index < masters && { slots: [first(index), first(index + 1) - 1] }),
  });
}

async function form(nodes: readonly ClusterNode[], masters: readonly ClusterNode[], replicas: readonly ClusterNode[]) {
  for (const [index, node] of nodes.entries()) await node.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1);
  for (const node of masters) await node.call("CLUSTER", "ADDSLOTSRANGE", ...(node.slots ?? []));
  // Everybody meets everybody: waiting for the gossip would take longer.
  for (const node of nodes) {
    for (const other of nodes) {
      if (other === node) continue;
      const [, busPort] = (await other.call("CONFIG", "GET", "cluster-port")) as [string, string];
      await node.call("CLUSTER", "MEET", "127.0.0.1", other.port, busPort);
    }
  }
  await eventually("all nodes know one another", async () => {
    const views = await Promise.all(nodes.map(nodesSeenBy));
    return views.every((view) => view.filter(({ flags }) => !flags.includes("handshake")).length === nodes.length);
  });
  for (const [index, replica] of replicas.entries()) {
    await replica.call("CLUSTER", "REPLICATE", masters[index % masters.length]?.id ?? "");
  }
}

interface NodeView {
  readonly id: string;
  readonly flags: readonly string[];
  readonly epoch: number;
  /** Whether the node that was asked has a connection to this one. */
  readonly connected: boolean;
  /** Ranges, without slots that are on their way. */
  readonly slots: readonly (readonly [number, number])[];
}

async function nodesSeenBy(node: ClusterNode): Promise<NodeView[]> {
  const lines = String(await node.call("CLUSTER", "NODES"))
    .trim()
    .split("\n");
  return lines.map((line) => {
    const [id = "", , flags = "", , , , epoch, link, ...slots] = line.split(" ");
    const ranges = slots.filter((range) => !range.startsWith("[")).map((range) => range.split("-").map(Number));
    return {
      id,
      flags: flags.split(","),
      epoch: Number(epoch),
      connected: link === "connected",
      slots: ranges.map(([first = -1, last = first]) => [first, last] as const),
    };
  });
}

/** `epoch` is -1 when the node does not serve the slot, or does not answer. */
async function claimOf(node: ClusterNode, slot: number): Promise<{ node: ClusterNode; epoch: number }> {
  const view = await nodesSeenBy(node).catch(() => []);
  const mine = view.find(({ flags }) => flags.includes("myself"));
  const serves = mine?.flags.includes("master") && mine.slots.some(([first, last]) => slot >= first && slot <= last);
  return { node, epoch: serves ? (mine?.epoch ?? -1) : -1 };
}

async function isMaster(node: ClusterNode): Promise<boolean> {
  return ((await node.call("ROLE")) as [string])[0] === "master";
}

/** The node serves, is connected with all that run, and is up to date if it is a replica. */
async function isWell(node: ClusterNode, running: ReadonlySet<string>): Promise<boolean> {
  if (!String(await node.call("CLUSTER", "INFO")).includes("cluster_state:ok")) return false;
  const view = (await nodesSeenBy(node)).filter(({ id }) => running.has(id));
  // A manual failover begins with one message, which is lost where a connection is only being made.
  if (!view.every(({ flags, connected }) => connected && !flags.some((flag) => /fail|handshake/.test(flag))))
    return false;
  const [role, , , link] = (await node.call("ROLE")) as string[];
  return role === "master" || link === "connected";
}

async function moveKeys(step: {
  readonly slot: number;
  readonly keys: number;
  readonly from: ClusterNode;
  readonly to: ClusterNode;
  readonly password: string | undefined;
}): Promise<number> {
  const { slot, keys: count, from, to, password } = step;
  const keys = (await from.call("CLUSTER", "GETKEYSINSLOT", slot, count)) as string[];
  if (keys.length === 0) return 0;
  const auth = password === undefined ? [] : ["AUTH", password];
  await from.call("MIGRATE", "127.0.0.1", to.port, "", 0, MIGRATE_TIMEOUT_MS, ...auth, "KEYS", ...keys);
  return keys.length;
}

async function setSlotUnlessReplica(node: ClusterNode, slot: number, to: ClusterNode): Promise<void> {
  if (await isMaster(node)) await node.call("CLUSTER", "SETSLOT", slot, "NODE", to.id);
}
