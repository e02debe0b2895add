import { randomBytes } from "node:crypto";
import slotOf from "cluster-key-slot";
import { Cluster, Redis } from "ioredis";
import type { SessionKey } from "../core/session.ts";
import type { ChangeListener, FeedState, StoreObserver } from "../core/store.ts";
import { redisFailure } from "./redis-failures.ts";
import { keepConnecting, type RedisLink, reconnectDelay } from "./redis-link.ts";

/** What writers publish: `changed KEY`, or `ended KEY MILLISECONDS`. */
export const CHANGES_CHANNEL = "coatcheck:changes";
export const INVALIDATIONS_CHANNEL = "__redis__:invalidate";
/** Keys and channels on which a gateway hears itself. */
export const ECHO_PREFIX = "coatcheck:echo:";
const ECHO_TTL_MS = 1_000;
const ECHO_INTERVAL_MS = 1_000;
const ECHO_TIMEOUT_MS = 500;
/** Until the next attempt, while there is no way to make a change. */
const ECHO_RETRY_MS = 100;
/** Tried to find one whose slot a node owns: a node with one slot of 16,384 is found too, almost always. */
const MAX_TAGS_TRIED = 100_000;

/** One of the ways in which Redis tells of changes. */
interface Ear {
  readonly kind: "tracking" | "messages";
  readonly redis: Redis;
  /** Asks to be told; rejected with the server's reply when it refuses. */
  subscribe(nonce: string): Promise<unknown>;
  /** Makes something happen that this connection has to be told of. */
  shout(echo: Echo): Promise<unknown>;
  /** @returns whether that is what was heard. */
  isEcho(channel: string, message: string, echo: Echo): boolean;
  hear(channel: string, message: string): void;
}

/** A change of our own. Each is another one: a late one, or the end of an earlier key, proves nothing. */
interface Echo {
  /** Of the connection. */
  readonly nonce: string;
  readonly number: number;
  readonly heard: () => void;
}

/** `away`: the way of the change, which is that of the reads, is closed; what listens may be sound. */
type EchoOutcome = "heard" | "silence" | "away" | "refused";

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
  readonly #end: () => void;
  #state: "lost" | "heard" | "refused" = "lost";
  #subscribed = false;
  #echo: Echo | undefined;
  #echoes = 0;
  /** Counts the beginnings, so that what belongs to an earlier one is not taken for the present. */
  #round = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(ear: Ear, observer: StoreObserver, onState: () => void, onDelay: (ms: number) => void) {
    this.ear = ear;
    this.#onState = onState;
    this.#onDelay = onDelay;
    const { redis, kind } = ear;
    this.#end = keepConnecting(redis);
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
      if (this.#echo !== undefined && ear.isEcho(channel, message, this.#echo)) this.#echo.heard();
      ear.hear(channel, message);
    });
  }

  get state(): "lost" | "heard" | "refused" {
    return this.#state;
  }

  /** The reads may go elsewhere now: not to be believed until it is heard again. */
  doubt(): void {
    if (this.#subscribed && this.#state !== "refused") this.#begin();
  }

  close(): void {
    this.#stop("lost");
    this.#end();
  }

  async #begin(): Promise<void> {
    this.#stop("lost");
    const round = this.#round;
    try {
      if (!this.#subscribed) await this.ear.subscribe(this.#nonce);
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
    const outcome = await this.#makeEcho();
    if (round !== this.#round) return;
    if (outcome === "refused") return this.#stop("refused");
    if (outcome === "silence") {
      this.#stop("lost");
      this.ear.redis.disconnect(true);
      return;
    }
    this.#set(outcome === "heard" ? "heard" : "lost");
    const pauseMs = outcome === "heard" ? ECHO_INTERVAL_MS : ECHO_RETRY_MS;
    this.#timer = setTimeout(() => this.#listen(round), pauseMs).unref();
  }

  async #makeEcho(): Promise<EchoOutcome> {
    const { promise, resolve } = Promise.withResolvers<EchoOutcome>();
    const startedMs = performance.now();
    const heard = (): void => {
      this.#onDelay(performance.now() - startedMs);
      resolve("heard");
    };
    const echo: Echo = { nonce: this.#nonce, number: this.#echoes++, heard };
    this.#echo = echo;
    // Some more turns for what has arrived already: a busy event loop is not a silent server.
    const timer = setTimeout(() => setImmediate(() => setImmediate(resolve, "silence")), ECHO_TIMEOUT_MS);
    try {
      await this.ear.shout(echo);
    } catch (error) {
      resolve(this.#withoutEcho(error));
    }
    const outcome = await promise;
    clearTimeout(timer);
    if (this.#echo === echo) this.#echo = undefined;
    return outcome;
  }

  /** What is known of this connection when the change could not be made. */
  async #withoutEcho(error: unknown): Promise<EchoOutcome> {
    const { reason, readable } = redisFailure(error);
    if (reason === "not-authorized") return "refused";
    if (!readable || reason === "readonly") return "away";
    // A Redis that is full, or whose disk fails, takes no echo, and no session either: that it answers has to do.
    return this.ear.redis.ping().then(
      () => "heard",
      () => "silence",
    );
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
    if (topology !== "cluster") return new Redis({ ...this.#link.options("listening"), ...LISTENING });
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
    /** What decides the slot; found anew when the node does not own it any more. */
    let tag = "";
    const nameOf = ({ nonce, number }: Echo) => {
      for (let i = 0; i < MAX_TAGS_TRIED && !(tag !== "" && ownedBy(tag)); i++) tag = `${nonce}-${i}`;
      return `${ECHO_PREFIX}{${tag}}${number}`;
    };
    let echoed = "";
    return {
      kind: "tracking",
      redis,
      subscribe: async (nonce) => {
        const id = String(await redis.client("ID"));
        // Of the echoes only its own: the others are for other gateways.
        const prefixes = ["PREFIX", this.#sessionPrefix, "PREFIX", `${ECHO_PREFIX}{${nonce}`];
        await redis.call("CLIENT", "TRACKING", "ON", "REDIRECT", id, "BCAST", ...prefixes);
        await redis.subscribe(INVALIDATIONS_CHANNEL);
      },
      shout: (echo) => {
        echoed = nameOf(echo);
        return this.#link.send(() => client.set(echoed, "", "PX", ECHO_TTL_MS));
      },
      isEcho: (_channel, message) => namesIn(message).includes(echoed),
      hear: (_channel, message) => this.#invalidated(message),
    };
  }

  #messagesEar(): Ear {
    const redis = this.#connect();
    return {
      kind: "messages",
      redis,
      subscribe: (nonce) => redis.subscribe(CHANGES_CHANNEL, ECHO_PREFIX + nonce),
      shout: ({ nonce, number }) =>
        this.#link.send(() => this.#link.client.publish(ECHO_PREFIX + nonce, String(number))),
      isEcho: (channel, message, { nonce, number }) => channel === ECHO_PREFIX + nonce && message === String(number),
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
