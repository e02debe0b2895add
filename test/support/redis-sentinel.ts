/** A real master with replicas and Sentinels on loopback, and its failovers. */
import { type RedisServer, type RedisServerOptions, startServer } from "./redis.ts";
import { eventually, type Teardown } from "./resources.ts";

const NAME = "mymaster";

/** All of it for the data servers: the Sentinels ask nobody for a password. */
export interface SentinelOptions extends Omit<RedisServerOptions, "tls"> {
  readonly sentinels?: number;
  readonly replicas?: number;
  /** After this silence a Sentinel takes a server for down. */
  readonly downAfterMs?: number;
}

export interface SentinelGroup {
  /** `redis+sentinel://:password@127.0.0.1:s1,127.0.0.1:s2,…/mymaster`; the password is that of the data servers. */
  readonly url: string;
  /** Name of the master as Sentinels know it. */
  readonly name: string;
  /** The master that it began with, then the replicas. */
  readonly servers: readonly RedisServer[];
  readonly sentinels: readonly RedisServer[];
  /** The master of which most Sentinels say so, once it says so itself. Waits while there is none. */
  master(): Promise<RedisServer>;
  /** Waits until all that run know one another and all replicas are up to date. */
  healthy(): Promise<void>;
  /** Makes Sentinel choose another master; answers it when it is one. The old one becomes a replica a little later. */
  failover(): Promise<RedisServer>;
  /** Ends the master as a crash does, and answers which it was; `master()` then waits for the next. */
  killMaster(): Promise<RedisServer>;
}

/** @see https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/ */
export async function startSentinel(t: Teardown, options: SentinelOptions = {}): Promise<SentinelGroup> {
  const { sentinels: count = 3, replicas = 2, downAfterMs = 1_000, ...settings } = options;
  const { password } = settings;
  const dataConfig = [
    "repl-diskless-sync-delay 0",
    ...(password === undefined ? [] : [`masterauth ${JSON.stringify(password)}`]),
  ];
  const first = await startServer(t, { ...settings, config: dataConfig });
  const replicaConfig = [...dataConfig, `replicaof 127.0.0.1 ${first.port}`];
  const [followers, sentinels] = await Promise.all([
    Promise.all(Array.from({ length: replicas }, () => startServer(t, { ...settings, config: replicaConfig }))),
    Promise.all(Array.from({ length: count }, () => startOneSentinel(t))),
  ]);
  const servers = [first, ...followers];
  const quorum = Math.floor(count / 2) + 1;
  await Promise.all(
    sentinels.map((sentinel) => monitor(sentinel, first.port, { quorum, downAfterMs, replicas, password })),
  );

  const running = (list: readonly RedisServer[]) => list.filter((server) => server.running);
  const agreedMaster = async () => {
    const ports = await Promise.all(running(sentinels).map(masterPort));
    const server = running(servers).find(({ port }) => ports.filter((said) => said === port).length >= quorum);
    return server !== undefined && (await roleOf(server)) === "master" ? server : undefined;
  };
  const master = () => eventually("there is a master", agreedMaster);
  const healthy = async () => {
    await eventually("all know one another and all is replicated", async () => {
      const current = await agreedMaster();
      if (current === undefined) return false;
      const others = running(servers).filter((server) => server !== current);
      const inSync = await Promise.all(others.map((server) => follows(server, current)));
      const known = await Promise.all(
        running(sentinels).map((sentinel) => knows(sentinel, others, running(sentinels).length - 1)),
      );
      return [...inSync, ...known].every(Boolean);
    });
  };
  await healthy();

  const auth = password === undefined ? "" : `:${encodeURIComponent(password)}@`;
  return {
    url: `redis+sentinel://${auth}${sentinels.map(({ port }) => `127.0.0.1:${port}`).join(",")}/${NAME}`,
    name: NAME,
    servers,
    sentinels,
    master,
    healthy,
    failover: async () => {
      const old = await master();
      // Refused while an earlier failover ends, or while no replica looks good yet.
      await eventually("a Sentinel begins a failover", () =>
        running(sentinels)[0]
          ?.call("SENTINEL", "FAILOVER", NAME)
          .catch(() => undefined),
      );
      return eventually("there is another master", async () => {
        const current = await agreedMaster();
        return current === old ? undefined : current;
      });
    },
    killMaster: async () => {
      const old = await master();
      await old.kill();
      return old;
    },
  };
}

/** A Sentinel whose clocks tick faster than the ten and two seconds that are built in; all else is as always. */
async function startOneSentinel(t: Teardown): Promise<RedisServer> {
  const sentinel = await startServer(t, { args: ["--sentinel"], config: [] });
  const start = sentinel.start;
  const hurry = () => sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "ASK-PERIOD", 100);
  await hurry();
  return Object.assign(sentinel, {
    start: async () => {
      await start();
      await hurry();
    },
  });
}

interface Monitoring {
  readonly quorum: number;
  readonly downAfterMs: number;
  readonly replicas: number;
  readonly password: string | undefined;
}

async function monitor(sentinel: RedisServer, port: number, { quorum, downAfterMs, replicas, password }: Monitoring) {
  await sentinel.call("SENTINEL", "MONITOR", NAME, "127.0.0.1", port, quorum);
  const settings = {
    "down-after-milliseconds": downAfterMs,
    // Twice this has to pass before Sentinels try the same master again.
    "failover-timeout": 2_000,
    "parallel-syncs": Math.max(1, replicas),
    ...(password !== undefined && { "auth-pass": password }),
  };
  await sentinel.call("SENTINEL", "SET", NAME, ...Object.entries(settings).flat());
}

async function masterPort(sentinel: RedisServer): Promise<number> {
  const [, port] = (await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)) as [string, string];
  return Number(port);
}

async function roleOf(server: RedisServer): Promise<string> {
  return ((await server.call("ROLE")) as [string])[0];
}

async function follows(server: RedisServer, master: RedisServer): Promise<boolean> {
  const [role, , port, link] = (await server.call("ROLE")) as [string, string, number, string];
  return role === "slave" && port === master.port && link === "connected";
}

/** Whether a Sentinel knows so many others, and sees those replicas well. */
async function knows(sentinel: RedisServer, replicas: readonly RedisServer[], sentinels: number): Promise<boolean> {
  const others = (await sentinel.call("SENTINEL", "SENTINELS", NAME)) as string[][];
  if (others.map(fields).filter(({ flags }) => flags === "sentinel").length < sentinels) return false;
  const seen = ((await sentinel.call("SENTINEL", "REPLICAS", NAME)) as string[][]).map(fields);
  return replicas.every(({ port }) =>
    seen.some(
      (replica) => replica.port === String(port) && replica.flags === "slave" && replica["master-link-status"] === "ok",
    ),
  );
}

/** Redis's list of names and values. */
function fields(list: readonly string[]): Record<string, string> {
  const entries = list.flatMap((name, index) => (index % 2 === 0 ? [[name, list[index + 1] ?? ""]] : []));
  return Object.fromEntries(entries);
}
