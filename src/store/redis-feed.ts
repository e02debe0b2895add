import { randomBytes } from "node:crypto";
import slotOf from "cluster-key-slot";
import { Cluster, Redis } from "ioredis";
import type { SessionKey } from "../core/session.ts";
import type { ChangeListener, FeedState, StoreObserver } from "../core/store.ts";
import { redisFailure } from "./redis-failures.ts";
import { type RedisLink, reconnectDelay } from "./redis-link.ts";

/** What writers publish: `changed KEY`, or `ended KEY MILLISECONDS`. */
export const CHANGES_CHANNEL = "coatcheck:changes";
export const INVALIDATIONS_CHANNEL = "__redis__:invalidate";
/** Keys and channels on which a gateway hears itself. */
export const ECHO_PREFIX = "coatcheck:echo:";
const ECHO_TTL_MS = 1_000;
const ECHO_INTERVAL_MS = 1_000;
const ECHO_TIMEOUT_MS = 500;
/** Names tried to find one whose slot a node owns: a node with one slot of 16,384 is found too, almost always. */
const MAX_NAMES_TRIED = 100_000;

/** One of the ways in which Redis tells of changes. */
interface Ear {
  readonly kind: "tracking" | "messages";
  readonly redis: Redis;
  /** The key or channel by which this connection is tested. */
  echoName(nonce: string): string;
  /** Asks to be told; rejected with the server's reply when it refuses. */
  subscribe(echoName: string): Promise<unknown>;
  /** Makes something happen that this connection has to be told of. */
  shout(echoName: string): Promise<unknown>;
  hear(channel: string, message: string): void;
}

/**
 * A connection on which Redis tells of changes, and which is believed only while it is heard: once a second the gateway
 * makes a change of its own and waits for it to come back. That notices a connection that is half open, one that leads to
 * another server than the reads, and a user without the right to hear; and it measures the delay.
 */
class FeedConnection {
  readonly ear: Ear;
  readonly #onState: () => void;
  readonly #onDelay: (ms: number) => void;
  readonly #nonce = randomBytes(9).toString("base64url");
  #state: "lost" | "heard" | "refused" = "lost";
  #subscribed = false;
  #echo: { readonly name: string; readonly heard: () => void } | undefined;
  /** Counts the beginnings, so that what belongs to an earlier one is not taken for the present. */
  #round = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(ear: Ear, observer: StoreObserver, onState: () => void, onDelay: (ms: number) => void) {
    this.ear = ear;
    this.#onState = onState;
    this.#onDelay = onDelay;
    const { redis, kind } = ear;
    redis.on("error", () => {});
    redis.on("ready", () => {
      observer.connection(kind, "ready");
      this.#begin();
    });
    redis.on("close", () => {
      observer.connection(kind, "lost");
      this.#subscribed = false;
      this.#stop("lost");
    });
    redis.on("message", (channel: string, message: string) => {
      const echo = this.#echo;
      if (echo !== undefined && (channel === echo.name || namesIn(message).includes(echo.name))) echo.heard();
      ear.hear(channel, message);
    });
  }

  get state(): "lost" | "heard" | "refused" {
    return this.#state;
  }

  /** The reads may go elsewhere now: not to be believed until it is heard again. */
  doubt(): void {
    if (this.#state === "heard") this.#begin();
  }

  close(): void {
    this.#stop("lost");
    this.ear.redis.disconnect();
  }

  async #begin(): Promise<void> {
    this.#stop("lost");
    const round = this.#round;
    try {
      if (!this.#subscribed) await this.ear.subscribe(this.ear.echoName(this.#nonce));
      this.#subscribed = true;
    } catch (error) {
      if (round !== this.#round) return;
      const { reason } = redisFailure(error);
      if (reason === "closed" || reason === "timeout") this.ear.redis.disconnect(true);
      // The server does not know the command, or this user may not use it. The next connection asks again.
      else this.#stop("refused");
      return;
    }
    await this.#listen(round);
  }

  async #listen(round: number): Promise<void> {
    if (round !== this.#round) return;
    const heard = await this.#isHeard();
    if (round !== this.#round) return;
    if (!heard) {
      this.#stop("lost");
      this.ear.redis.disconnect(true);
      return;
    }
    this.#set("heard");
    this.#timer = setTimeout(() => this.#listen(round), ECHO_INTERVAL_MS).unref();
  }

  async #isHeard(): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const name = this.ear.echoName(this.#nonce);
    const startedMs = performance.now();
    const heard = (): void => {
      this.#onDelay(performance.now() - startedMs);
      resolve(true);
    };
    this.#echo = { name, heard };
    // Some more turns for what has arrived already: a busy event loop is not a silent server.
    const timer = setTimeout(() => setImmediate(() => setImmediate(resolve, false)), ECHO_TIMEOUT_MS);
    this.ear.shout(name).catch((error: unknown) => {
      if (redisFailure(error).reason !== "out-of-memory") return resolve(false);
      // A full Redis takes no echo, and no session either: that the connection lives is all that can be known.
      return this.ear.redis.ping().then(
        () => resolve(true),
        () => resolve(false),
      );
    });
    const answer = await promise;
    clearTimeout(timer);
    this.#echo = undefined;
    return answer;
  }

  #stop(state: "lost" | "refused"): void {
    this.#round++;
    clearTimeout(this.#timer);
    this.#set(state);
  }

  #set(state: "lost" | "heard" | "refused"): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#onState();
  }
}

/**
 * Tells of every change to sessions, in two independent ways: Redis itself tells which keys were written
 * (`CLIENT TRACKING`, in broadcasting mode, redirected to the connection that asks, since ioredis drops the pushes of
 * RESP3), and writers publish what they do. In a cluster each master has a connection of its own for the first; the
 * second reaches all nodes by itself.
 *
 * Broadcasting, because then nothing depends on which connection has read what: a slot may move, and a connection for
 * the reads may break and come back, without a key that nobody watches.
 */
export class RedisFeed {
  readonly #link: RedisLink;
  readonly #sessionPrefix: string;
  readonly #listener: ChangeListener;
  readonly #observer: StoreObserver;
  /** By node of the cluster; one with an empty name otherwise. */
  readonly #tracking = new Map<string, FeedConnection>();
  #messages: FeedConnection;
  #state: FeedState | undefined;
  #closed = false;

  constructor(link: RedisLink, sessionPrefix: string, listener: ChangeListener, observer: StoreObserver) {
    this.#link = link;
    this.#sessionPrefix = sessionPrefix;
    this.#listener = listener;
    this.#observer = observer;
    this.#messages = this.#open(this.#messagesEar());
    if (link.client instanceof Cluster) {
      for (const event of ["+node", "-node", "ready", "refresh"]) link.client.on(event, () => this.#followNodes());
      this.#followNodes();
    } else {
      this.#tracking.set("", this.#open(this.#trackingEar(this.#connect())));
    }
    // Whatever answers now may be another server than before.
    link.client.on("ready", () => {
      for (const connection of [this.#messages, ...this.#tracking.values()]) connection.doubt();
    });
    this.#settle();
  }

  close(): void {
    this.#closed = true;
    for (const connection of [this.#messages, ...this.#tracking.values()]) connection.close();
  }

  /** A connection for each node that owns slots, and none for the others. */
  #followNodes(): void {
    if (this.#closed) return;
    const masters = new Map(this.#link.masters().map((node) => [`${node.host}:${node.port}`, node]));
    for (const [name, connection] of this.#tracking) {
      if (masters.has(name)) continue;
      this.#tracking.delete(name);
      connection.close();
    }
    for (const [name, node] of masters) {
      if (this.#tracking.has(name)) continue;
      const redis = new Redis({ ...this.#link.nodeOptions(), ...node, ...LISTENING });
      this.#tracking.set(name, this.#open(this.#trackingEar(redis, name)));
    }
    this.#settle();
  }

  #open(ear: Ear): FeedConnection {
    const onDelay = (ms: number) => this.#listener.delayed(ear.kind, ms);
    return new FeedConnection(ear, this.#observer, () => this.#settle(), onDelay);
  }

  #connect(): Redis {
    const { topology, hosts } = this.#link.address;
    if (topology !== "cluster") return new Redis({ ...this.#link.options(false), ...LISTENING });
    // Any node will do; after a loss, another one.
    let attempt = 0;
    const nodes = () => (this.#link.masters().length > 0 ? this.#link.masters() : hosts);
    const redis = new Redis({
      ...this.#link.nodeOptions(),
      ...nodes()[0],
      ...LISTENING,
      retryStrategy: (times) => {
        attempt++;
        const node = nodes()[attempt % nodes().length];
        if (node !== undefined) Object.assign(redis.options, node);
        return reconnectDelay(times);
      },
    });
    return redis;
  }

  /** @param node of the cluster that the connection leads to. */
  #trackingEar(redis: Redis, node?: string): Ear {
    const { client } = this.#link;
    const ownedBy = (key: string) =>
      node === undefined || !(client instanceof Cluster) || client.slots[slotOf(key)]?.[0] === node;
    let name = "";
    return {
      kind: "tracking",
      redis,
      echoName: (nonce) => {
        for (let i = 0; i < MAX_NAMES_TRIED && !(name !== "" && ownedBy(name)); i++)
          name = `${ECHO_PREFIX}${nonce}:${i}`;
        return name;
      },
      subscribe: async () => {
        const id = String(await redis.client("ID"));
        const prefixes = ["PREFIX", this.#sessionPrefix, "PREFIX", ECHO_PREFIX];
        await redis.call("CLIENT", "TRACKING", "ON", "REDIRECT", id, "BCAST", ...prefixes);
        await redis.subscribe(INVALIDATIONS_CHANNEL);
      },
      shout: (echoName) => client.set(echoName, "", "PX", ECHO_TTL_MS),
      hear: (_channel, message) => this.#invalidated(message),
    };
  }

  #messagesEar(): Ear {
    const redis = this.#connect();
    return {
      kind: "messages",
      redis,
      echoName: (nonce) => `${ECHO_PREFIX}${nonce}`,
      subscribe: (echoName) => redis.subscribe(CHANGES_CHANNEL, echoName),
      shout: (echoName) => this.#link.client.publish(echoName, ""),
      hear: (channel, message) => {
        if (channel === CHANGES_CHANNEL) this.#published(message);
      },
    };
  }

  /** @param message names of keys; empty when all were written, by FLUSHALL. */
  #invalidated(message: string): void {
    if (message === "") this.#listener.changedAll();
    for (const name of namesIn(message)) {
      if (name.startsWith(this.#sessionPrefix)) this.#listener.changed(name.slice(this.#sessionPrefix.length));
    }
  }

  #published(message: string): void {
    const [what, key, at] = message.split(" ", 3);
    if (key === undefined || key.length > 64) return;
    if (what === "changed") this.#listener.changed(key);
    if (what === "ended") this.#listener.ended(key as SessionKey, Number(at));
  }

  #settle(): void {
    if (this.#closed) return;
    const state = this.#currentState();
    if (state === this.#state) return;
    this.#state = state;
    this.#listener.feed(state);
  }

  #currentState(): FeedState {
    const tracking = [...this.#tracking.values()].map(({ state }) => state);
    if (tracking.length === 0 || tracking.includes("lost")) return "lost";
    if (!tracking.includes("refused")) return "tracking";
    return this.#messages?.state === "heard" ? "messages" : (this.#messages?.state ?? "lost");
  }
}

/** A connection that only listens; invalidations reach it as messages of RESP2. */
const LISTENING = {
  protocol: 2,
  autoResubscribe: false,
  enableAutoPipelining: false,
  enableOfflineQueue: false,
} as const;

/** The keys of an invalidation. ioredis puts commas between them; the names of sessions and echoes hold none. */
function namesIn(message: string): readonly string[] {
  return message.split(",");
}
