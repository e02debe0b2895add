import { readFileSync } from "node:fs";
import { Cluster, Redis, type RedisOptions } from "ioredis";
import { ProxyError, storeUnavailable } from "../core/errors.ts";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";
import type { StoreObserver } from "../core/store.ts";
import { Breaker } from "./breaker.ts";
import { NO_CONNECTION, type RedisFailure, redisFailure } from "./redis-failures.ts";
import { hostAndPort, RedisServers, THE_SERVER } from "./redis-servers.ts";

const MAX_RECONNECT_DELAY_MS = 500;
/** Between two attempts of one operation, when the server said that it will soon be able to. */
const RETRY_DELAY_MS = 25;
/** How often a cluster is asked who owns which slots, beside each time that a node says so itself. */
const SLOTS_REFRESH_MS = 5_000;
const CLUSTER_REDIRECTIONS = 6;
/** How long an operation waits for a connection that may be back in a moment; longer, it would not be worth it. */
const RECONNECT_PATIENCE_MS = 250;
/** From our end of a connection to giving it up: a server that is frozen never says that it has ended. */
const DISCONNECT_TIMEOUT_MS = 100;

/** A script by name; `lua` takes the key as KEYS[1]. */
export type Scripts = Readonly<Record<string, string>>;
export type RedisScript = (key: string, ...values: (string | number | Buffer)[]) => Promise<unknown>;
export type RedisClient = (Redis | Cluster) & Record<string, RedisScript>;

export const NO_OBSERVER: StoreObserver = { command() {}, failed() {}, connection() {}, resting() {} };

/** What there is to know about a command beside how it is sent. */
export interface CommandKind {
  /** As Redis names it; without it nobody is told of the command. */
  readonly name?: string;
  /** Our name for the script that it runs. */
  readonly script?: string;
  /** Carried out twice it does no harm, so that it may be sent again when the connection breaks. */
  readonly repeatable?: boolean;
}

/**
 * The way to the server, the servers behind the sentinels, or the nodes of the cluster: connects, reconnects, finds the
 * new master, and bounds how long anybody waits. It starts without the server and finds it when it comes.
 *
 * Commands are never queued for a connection that is not there: a request that waits for Redis to come back is a request
 * that hangs (connect-redis #373).
 */
export class RedisLink {
  readonly client: RedisClient;
  readonly address: RedisAddress;
  readonly #observer: StoreObserver;
  /** By server: one for all, in a cluster one for each node. */
  readonly #breakers = new Map<string, Breaker>();
  /** Nodes of the cluster whose commands of this turn are gathered. */
  readonly #gathering = new Set<string>();
  readonly #firstAnswer: Promise<void>;
  readonly #disconnect: () => void;
  readonly #servers: RedisServers;
  #resting = 0;
  /** Why there is no connection, if somebody said so. */
  #connectionError: Error | undefined;

  constructor(address: RedisAddress, scripts: Scripts, observer: StoreObserver) {
    this.address = address;
    this.#observer = observer;
    const client = address.topology === "cluster" ? this.#cluster() : new Redis(this.options("data"));
    // Each operation that fails because of it says so; without a listener ioredis would print it.
    client.on("error", (error: Error) => {
      this.#connectionError = error;
    });
    if (client instanceof Cluster) client.on("refresh", () => separateSlots(client));
    this.#disconnect = client instanceof Redis ? keepConnecting(client) : () => client.disconnect();
    client.on("ready", () => {
      this.#connectionError = undefined;
      observer.connection("data", "ready");
      for (const breaker of this.#breakers.values()) breaker.answered();
    });
    client.on("close", () => observer.connection("data", "lost"));
    this.#firstAnswer = new Promise((resolve) => {
      client.once("ready", resolve);
      client.once("close", resolve);
      // While no Sentinel answers there is nothing that could be closed.
      client.once("error", resolve);
    });
    for (const [name, lua] of Object.entries(scripts)) client.defineCommand(name, { numberOfKeys: 1, lua });
    this.client = client as RedisClient;
    this.#servers = new RedisServers(address, client);
  }

  /** Done when the first attempt to connect has succeeded or failed. */
  firstAnswer(): Promise<void> {
    return this.#firstAnswer;
  }

  /**
   * How a connection to the server, or to the master that the sentinels name, is made.
   * @param use what listens is led to a new master by `data`, which is told of it.
   */
  options(use: "data" | "listening") {
    const { topology, hosts, master, database, sentinelUsername, sentinelPassword, tls } = this.address;
    const common = {
      ...this.nodeOptions(),
      db: database,
      enableAutoPipelining: use === "data",
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      // After a failover the old master answers READONLY, a restarted server LOADING: connect again, and ask there.
      reconnectOnError: ({ message }: Error) => /^(READONLY|LOADING|MASTERDOWN)/.test(message),
    };
    if (topology !== "sentinel") return { ...common, ...hosts[0] };
    return {
      ...common,
      sentinels: hosts.map((host) => ({ ...host })),
      name: master as string,
      sentinelRetryStrategy: reconnectDelay,
      // A Sentinel that is frozen would be waited for without end, and the others never asked.
      sentinelCommandTimeout: this.address.commandTimeoutMs,
      // The sentinels say so when a master falls: nobody waits for a timeout to find out.
      failoverDetector: use === "data",
      ...(tls && { enableTLSForSentinelMode: true, sentinelTLS: this.#tls() }),
      ...(sentinelUsername !== undefined && { sentinelUsername }),
      ...(sentinelPassword !== undefined && { sentinelPassword }),
    };
  }

  /** What holds for a connection to any node. */
  nodeOptions() {
    const { username, password, tls, connectTimeoutMs, commandTimeoutMs } = this.address;
    return {
      connectTimeout: connectTimeoutMs,
      commandTimeout: commandTimeoutMs,
      // A connection that is half open, or a server that is stopped, never answers: give it up and connect anew.
      socketTimeout: 2 * commandTimeoutMs,
      disconnectTimeout: DISCONNECT_TIMEOUT_MS,
      connectionName: "coatcheck",
      retryStrategy: reconnectDelay,
      ...(username !== undefined && { username }),
      ...(password !== undefined && { password }),
      ...(tls && { tls: this.#tls() }),
    };
  }

  /** The nodes that own slots at this moment, also those that are down, in an order that stays; one without a cluster. */
  masters(): readonly RedisHost[] {
    if (!(this.client instanceof Cluster)) return this.address.hosts.slice(0, 1);
    // Not of the slots that nobody serves, which the list does not hold.
    const names = [...new Set(this.client.slots.flatMap((nodes) => nodes.slice(0, 1)))].sort();
    return names.map(hostAndPort);
  }

  /** The connections to `masters()`, where there are any. */
  connections(): readonly (Redis | undefined)[] {
    if (!(this.client instanceof Cluster)) return [this.client];
    const nodes = this.client.nodes("master");
    return this.masters().map(({ host, port }) =>
      nodes.find(({ options }) => options.host === host && options.port === port),
    );
  }

  /**
   * Sends a command for `key`, and again where that is safe and useful. No longer than `totalTimeoutMs`; at once, when
   * the server has not answered for a while.
   * @throws ProxyError `session_store_unavailable`.
   */
  async ask<T>(key: string, command: () => Promise<T>, kind: CommandKind = {}): Promise<T> {
    const server = this.#servers.nameFor(key);
    const breaker = this.#breakerOf(server);
    if (breaker.isOpen) {
      this.#observer.failed("breaker");
      const cause = this.#connectionError;
      throw new ProxyError("session_store_unavailable", "the session store has not answered lately", { cause });
    }
    this.#gather(server);
    return this.#attempt(command, kind, server, (answered) => {
      if (answered) breaker.answered();
      else breaker.failed(() => this.#probe(key));
    });
  }

  /** As `ask`, of whatever node the command goes to. */
  askAnyNode<T>(command: () => Promise<T>, kind: CommandKind = { repeatable: true }): Promise<T> {
    return this.#attempt(command, kind, THE_SERVER, () => {});
  }

  /** Sends a command now or not at all: ioredis would keep those for a cluster until it is back, and send them then. */
  async send<T>(command: () => Promise<T>): Promise<T> {
    if (this.client.status !== "ready") throw new Error(NO_CONNECTION);
    return command();
  }

  async #attempt<T>(
    command: () => Promise<T>,
    kind: CommandKind,
    server: string,
    onEnd: (answered: boolean) => void,
  ): Promise<T> {
    const startedMs = performance.now();
    const deadlineMs = startedMs + this.address.totalTimeoutMs;
    /** What the server said last; a connection that is given up for it says less. */
    let said: RedisFailure | undefined;
    for (;;) {
      const attemptMs = performance.now();
      try {
        const answer = await before(deadlineMs, this.send(command));
        this.#tell(kind, server, attemptMs);
        onEnd(true);
        return answer;
      } catch (error) {
        // A key of another type: the server did answer, and the caller knows what it means.
        const failure = redisFailure(error);
        this.#tell(kind, server, attemptMs, failure);
        if (isWrongType(error)) {
          onEnd(true);
          throw error;
        }
        this.#observer.failed(failure.reason);
        const closed = failure.reason === "closed";
        if (!closed && failure.again) said = failure;
        const untilMs = closed && said === undefined ? startedMs + RECONNECT_PATIENCE_MS : deadlineMs;
        if ((failure.again || (closed && kind.repeatable === true)) && performance.now() + RETRY_DELAY_MS < untilMs) {
          await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY_MS));
          continue;
        }
        onEnd(failure.readable);
        const lost = closed ? this.#connectionError : undefined;
        const why = lost === undefined ? failure : redisFailure(lost);
        throw storeUnavailable(new Error((said ?? why).message, { cause: lost ?? error }));
      }
    }
  }

  close(): void {
    for (const breaker of this.#breakers.values()) breaker.stop();
    this.#disconnect();
  }

  #tell({ name, script }: CommandKind, server: string, startedMs: number, failure?: RedisFailure): void {
    // What never left is no command: the look-up says that there was no connection.
    if (name === undefined || failure?.message === NO_CONNECTION) return;
    this.#observer.command({
      server: this.#servers.named(server),
      name,
      script,
      startedMs,
      endedMs: performance.now(),
      ...(failure && { failure: failure.reason, code: failure.code }),
    });
  }

  /**
   * In a cluster: what goes to one node in one turn of the event loop leaves in one piece, though each command is by
   * itself and may be redirected. For one server ioredis does it.
   */
  #gather(server: string): void {
    if (!(this.client instanceof Cluster) || this.#gathering.has(server)) return;
    const node = this.client.nodes("master").find(({ options }) => `${options.host}:${options.port}` === server);
    const stream = node?.stream;
    if (!stream?.writable) return;
    this.#gathering.add(server);
    stream.cork();
    setImmediate(() => {
      this.#gathering.delete(server);
      stream.uncork();
    });
  }

  #breakerOf(server: string): Breaker {
    let breaker = this.#breakers.get(server);
    if (breaker === undefined) {
      breaker = new Breaker((open) => {
        this.#resting += open ? 1 : -1;
        this.#observer.resting(this.#resting);
      });
      this.#breakers.set(server, breaker);
    }
    return breaker;
  }

  /** Asks about the same key as the request that failed, so that it finds a new owner of the slot as that would. */
  async #probe(key: string): Promise<void> {
    try {
      const asking = this.send(() => this.client.exists(key));
      await before(performance.now() + this.address.commandTimeoutMs, asking);
    } catch (error) {
      if (!redisFailure(error).readable) throw error;
    }
  }

  #cluster(): Cluster {
    const { hosts, connectTimeoutMs, commandTimeoutMs } = this.address;
    // A node that is lost is found again, or replaced, by asking the others.
    const { retryStrategy: _, ...nodeOptions } = this.nodeOptions();
    return new Cluster(
      hosts.map((host) => ({ ...host })),
      {
        // Together in one pipeline, the commands for a slot that moves took those for others along: thousandfold MOVED
        // while slots moved under load, and 503 where the nodes one by one would have answered at once.
        enableAutoPipelining: false,
        // For a node that is being connected to, no longer than a command may take. Without it ioredis would refuse the
        // command as if the connection had broken, and a login could not be sent again.
        enableOfflineQueue: true,
        maxRedirections: CLUSTER_REDIRECTIONS,
        // A write whose connection broke may have been carried out: whether it is sent again is for `ask` to say.
        retryDelayOnFailover: 0,
        retryDelayOnClusterDown: RETRY_DELAY_MS,
        retryDelayOnTryAgain: RETRY_DELAY_MS,
        slotsRefreshInterval: SLOTS_REFRESH_MS,
        slotsRefreshTimeout: connectTimeoutMs + commandTimeoutMs,
        clusterRetryStrategy: reconnectDelay,
        redisOptions: { ...nodeOptions, maxRetriesPerRequest: 0 },
        // Over TLS the certificate names hosts, not the addresses that a look-up would put in their place.
        ...(this.address.tls && { dnsLookup: (host, done) => done(null, host) }),
      },
    );
  }

  #tls(): NonNullable<RedisOptions["tls"]> {
    const { ca, cert, key, servername } = this.address;
    return {
      ...(ca !== undefined && { ca: readFileSync(ca) }),
      ...(cert !== undefined && { cert: readFileSync(cert) }),
      ...(key !== undefined && { key: readFileSync(key) }),
      ...(servername !== undefined && { servername }),
    };
  }
}

export function isWrongType(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith("WRONGTYPE");
}

/** Soon at first: a server that was restarted is back in a moment. */
export function reconnectDelay(attempt: number): number {
  return Math.min(25 * 2 ** Math.min(attempt - 1, 10), MAX_RECONNECT_DELAY_MS);
}

/**
 * ioredis ends a client for good when it is to disconnect while it asks a Sentinel for the master, which is just what a
 * failover may do to it (`connector.connect` throws, and `_connect` sets "end").
 * @returns ends it.
 */
export function keepConnecting(redis: Redis): () => void {
  let closed = false;
  const connect = () => {
    if (!closed) redis.connect().catch(() => {});
  };
  redis.on("end", () => setTimeout(connect, reconnectDelay(1)).unref());
  return () => {
    closed = true;
    redis.disconnect();
  };
}

/**
 * ioredis keeps one list for all the slots of a range and, told that one of them has moved, changes it for all: until
 * the next answer to CLUSTER SLOTS the whole range went to the wrong node first.
 */
function separateSlots(cluster: Cluster): void {
  cluster.slots = cluster.slots.map((nodes) => [...nodes]);
}

/** Rejects what is not done in time; where the answer comes later, nobody hears it. */
function before<T>(deadlineMs: number, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error("the operation timed out")),
      Math.max(0, deadlineMs - performance.now()),
    );
    answer.then(
      (value) => {
        clearTimeout(timer);
        resolve(value);
      },
      (error: unknown) => {
        clearTimeout(timer);
        reject(error);
      },
    );
  });
}
