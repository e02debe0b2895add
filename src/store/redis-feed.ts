import slotOf from "cluster-key-slot";
import { Cluster, Redis } from "ioredis";
import type { SessionKey } from "../core/session.ts";
import type { ChangeListener, FeedState, StoreObserver } from "../core/store.ts";
import { type Ear, type Echo, FeedConnection } from "./redis-feed-connection.ts";
import { type RedisLink, reconnectDelay } from "./redis-link.ts";

/** What writers publish: `changed KEY`, or `ended KEY MILLISECONDS`. */
export const CHANGES_CHANNEL = "coatcheck:changes";
export const INVALIDATIONS_CHANNEL = "__redis__:invalidate";
/** Keys and channels on which a gateway hears itself. */
export const ECHO_PREFIX = "coatcheck:echo:";
const ECHO_TTL_MS = 1_000;
/** Tried to find one whose slot a node owns: a node with one slot of 16,384 is found too, almost always. */
const MAX_TAGS_TRIED = 100_000;

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
