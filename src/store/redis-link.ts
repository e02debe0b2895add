import { readFileSync } from "node:fs";
import slotOf from "cluster-key-slot";
import { Cluster, Redis, type RedisOptions } from "ioredis";
import { ProxyError, storeUnavailable } from "../core/errors.ts";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";
import type { StoreObserver } from "../core/store.ts";
import { Breaker } from "./breaker.ts";
import { type RedisFailure, redisFailure } from "./redis-failures.ts";

const MAX_RECONNECT_DELAY_MS = 500;
/** Between two attempts of one operation, when the server said that it will soon be able to. */
const RETRY_DELAY_MS = 25;
/** How often a cluster is asked who owns which slots, beside each time that a node says so itself. */
const SLOTS_REFRESH_MS = 5_000;
const CLUSTER_REDIRECTIONS = 6;

/** A script by name; `lua` takes the key as KEYS[1]. */
export type Scripts = Readonly<Record<string, string>>;
export type RedisScript = (key: string, ...values: (string | number | Buffer)[]) => Promise<unknown>;
export type RedisClient = (Redis | Cluster) & Record<string, RedisScript>;

export const NO_OBSERVER: StoreObserver = { failed() {}, connection() {}, resting() {} };

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
  readonly #firstAnswer: Promise<void>;
  #resting = 0;

  constructor(address: RedisAddress, scripts: Scripts, observer: StoreObserver) {
    this.address = address;
    this.#observer = observer;
    const client = address.topology === "cluster" ? this.#cluster() : new Redis(this.options(true));
    // Each operation that fails because of it says so; without a listener ioredis would print it.
    client.on("error", () => {});
    client.on("ready", () => {
      observer.connection("data", "ready");
      for (const breaker of this.#breakers.values()) breaker.answered();
    });
    client.on("close", () => observer.connection("data", "lost"));
    this.#firstAnswer = new Promise((resolve) => {
      client.once("ready", resolve);
      client.once("close", resolve);
    });
    for (const [name, lua] of Object.entries(scripts)) client.defineCommand(name, { numberOfKeys: 1, lua });
    this.client = client as RedisClient;
  }

  /** Done when the first attempt to connect has succeeded or failed. */
  firstAnswer(): Promise<void> {
    return this.#firstAnswer;
  }

  /** How a connection to the server, or to the master that the sentinels name, is made. */
  options(autoPipelining: boolean) {
    const { topology, hosts, master, database, sentinelUsername, sentinelPassword, tls } = this.address;
    const common = {
      ...this.nodeOptions(),
      db: database,
      enableAutoPipelining: autoPipelining,
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
      // The sentinels say so when a master falls: nobody waits for a timeout to find out.
      failoverDetector: true,
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
      connectionName: "coatcheck",
      retryStrategy: reconnectDelay,
      ...(username !== undefined && { username }),
      ...(password !== undefined && { password }),
      ...(tls && { tls: this.#tls() }),
    };
  }

  /** The nodes that own slots at this moment, or the one server there is. */
  masters(): readonly RedisHost[] {
    return this.nodes().map(({ options }) => ({ host: options.host ?? "", port: options.port ?? 0 }));
  }

  /** Their connections, in an order that stays. */
  nodes(): readonly Redis[] {
    if (!(this.client instanceof Cluster)) return [this.client];
    const owners = new Set(this.client.slots.map((nodes) => nodes?.[0]));
    const nameOf = ({ options }: Redis) => `${options.host}:${options.port}`;
    return this.client
      .nodes("master")
      .filter((node) => owners.has(nameOf(node)))
      .sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
  }

  /**
   * Sends a command for `key`, and again where the server says that this is safe and useful. No longer than
   * `totalTimeoutMs`; at once, when the server has not answered for a while.
   * @throws ProxyError `session_store_unavailable`.
   */
  async ask<T>(key: string, command: () => Promise<T>): Promise<T> {
    const breaker = this.#breakerOf(key);
    if (breaker.isOpen) {
      this.#observer.failed("breaker");
      throw new ProxyError("session_store_unavailable", "the session store has not answered lately");
    }
    const deadlineMs = performance.now() + this.address.totalTimeoutMs;
    /** What the server said last; a connection that is given up for it says less. */
    let said: RedisFailure | undefined;
    for (;;) {
      try {
        const answer = await before(deadlineMs, command());
        breaker.answered();
        return answer;
      } catch (error) {
        // A key of another type: the server did answer, and the caller knows what it means.
        if (isWrongType(error)) {
          breaker.answered();
          throw error;
        }
        const failure = redisFailure(error);
        this.#observer.failed(failure.reason);
        if (failure.again) said = failure;
        const again = failure.again || (said !== undefined && failure.reason === "closed");
        if (again && performance.now() + RETRY_DELAY_MS < deadlineMs) {
          await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY_MS));
          continue;
        }
        // A server that refuses a write still answers: its sessions can be read.
        if (failure.reason === "out-of-memory" || failure.reason === "not-authorized") breaker.answered();
        else breaker.failed();
        throw storeUnavailable(new Error((said ?? failure).message, { cause: error }));
      }
    }
  }

  close(): void {
    for (const breaker of this.#breakers.values()) breaker.stop();
    this.client.disconnect();
  }

  #breakerOf(key: string): Breaker {
    const server = this.#serverOf(key);
    let breaker = this.#breakers.get(server);
    if (breaker === undefined) {
      // Asks what the requests ask, so that it finds a new owner of the slot as they would.
      const probe = () => before(performance.now() + this.address.commandTimeoutMs, this.client.exists(key));
      breaker = new Breaker(probe, (open) => {
        this.#resting += open ? 1 : -1;
        this.#observer.resting(this.#resting);
      });
      this.#breakers.set(server, breaker);
    }
    return breaker;
  }

  #serverOf(key: string): string {
    return this.client instanceof Cluster ? (this.client.slots[slotOf(key)]?.[0] ?? "nobody") : "server";
  }

  #cluster(): Cluster {
    const { hosts, connectTimeoutMs, commandTimeoutMs } = this.address;
    // A node that is lost is found again, or replaced, by asking the others.
    const { retryStrategy: _, ...nodeOptions } = this.nodeOptions();
    return new Cluster(
      hosts.map((host) => ({ ...host })),
      {
        enableAutoPipelining: true,
        enableOfflineQueue: false,
        maxRedirections: CLUSTER_REDIRECTIONS,
        retryDelayOnFailover: RETRY_DELAY_MS,
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
  return Math.min(25 * 2 ** Math.min(attempt, 10), MAX_RECONNECT_DELAY_MS);
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
