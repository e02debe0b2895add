import type { Json } from "./json.ts";
import type { SharedBuckets } from "./limits.ts";
import { REDIS_SCHEMES } from "./redis-url.ts";
import type { AttributeChanges, FindResult, Peek, Session, SessionData, SessionKey } from "./session.ts";

/** In-process stores answer at once, the others with a promise: a hit in SQLite should not cost one. */
export type MaybePromise<T> = T | Promise<T>;

export type CommitOutcome = "committed" | "conflict" | "unknown";

/** The answer to a change of attributes. `conflict`: somebody else changed the same attribute since it was read. */
export type AttributeResult =
  | { readonly outcome: "committed"; readonly session: Session }
  | { readonly outcome: "conflict" | "unknown" };

export interface SessionEntry {
  readonly key: SessionKey;
  readonly session: Session;
}

export interface StoreCheck {
  readonly ok: boolean;
  /** One line for an operator; never an address with a password in it. */
  readonly detail: string;
}

/** What a store knows about itself that an operator should know too. */
export interface StoreInspection {
  /** In the order in which they are shown: a name such as `journal mode`, and its value as people write it. */
  readonly facts: readonly StoreFact[];
  /** Sentences: what endangers sessions, and what to do about it. */
  readonly warnings: readonly string[];
}

export interface StoreFact {
  readonly name: string;
  /** Never a session, a key or a password. */
  readonly value: string;
}

export interface ScanOptions {
  /** Only keys that begin like this: a handle finds its session. */
  readonly prefix?: string;
  /** From an earlier page; absent: from the beginning. */
  readonly cursor?: string;
  /** About how many keys to look at, 1 to 10,000. A page may hold fewer, none even, and is not the last for that. */
  readonly limit: number;
}

export interface ScanPage {
  readonly keys: readonly SessionKey[];
  /** Where to go on; absent: that was all. */
  readonly cursor?: string;
}

export interface SweepOptions {
  /** Repairs what can be repaired; otherwise nothing is changed. */
  readonly fix: boolean;
  /** Stops after the current step. */
  readonly signal?: AbortSignal;
  /** Told after each step how many keys it has looked at so far. */
  readonly onStep?: (looked: number) => void;
  /** How long what looks like a leftover is given to turn out to be a login under way, milliseconds. */
  readonly settleMs?: number;
}

export interface SweepFinding {
  /** Plain words, in the plural. */
  readonly what: string;
  readonly count: number;
  readonly fixed: number;
  /** At most 20: handles, or what an operator knows otherwise. Never a whole key. */
  readonly examples: readonly string[];
}

export interface SweepReport {
  /** How many keys, or rows, it looked at. */
  readonly looked: number;
  readonly findings: readonly SweepFinding[];
  /** False: it was stopped, or the store gave no answer any more. */
  readonly complete: boolean;
  /** Why it is not complete; absent when the signal did it. */
  readonly failure?: unknown;
}

/** Why a store gave no answer: a closed set, for labels. */
export const STORE_FAILURES = [
  "timeout",
  "closed",
  "loading",
  "readonly",
  "moved",
  "cluster-down",
  "master-down",
  "not-authorized",
  "out-of-memory",
  "busy",
  "breaker",
  "other",
] as const;
export type StoreFailure = (typeof STORE_FAILURES)[number];

/** Where a command went. */
export interface StoreServer {
  /** OpenTelemetry's `db.system.name`. */
  readonly system: string;
  /** The number of the database, as text. */
  readonly namespace: string;
  /** Absent while it is not known: before the first connection to what a Sentinel names. */
  readonly address?: string;
  readonly port?: number;
}

/** One attempt of one command that went to a store's server. It holds neither keys nor values. */
export interface StoreCommand {
  readonly server: StoreServer;
  /** `HMGET`. */
  readonly name: string;
  /** Of a script: our name for it. */
  readonly script: string | undefined;
  /** By `performance.now()`, as is the end. */
  readonly startedMs: number;
  readonly endedMs: number;
  /** Why there was no answer, or none that helps; absent on success. */
  readonly failure?: StoreFailure;
  /** The first word of what the server said in place of an answer, such as `READONLY`. */
  readonly code?: string | undefined;
}

/** Told of what happens between a store and its server, beside the answers. */
export interface StoreObserver {
  /** Told at the end of each attempt, on the asynchronous way of whoever asked (`core/on-behalf.ts`). */
  command(command: StoreCommand): void;
  /** An attempt got no answer. `breaker`: none was made, because the ones before it had none. */
  failed(reason: StoreFailure): void;
  connection(connection: "data" | "tracking" | "messages", event: "ready" | "lost"): void;
  /** How many servers are given a rest, because several attempts in a row had no answer. */
  resting(servers: number): void;
}

/**
 * What a store says about changes that others make.
 * `tracking`: the server itself tells of every change. `messages`: the server refuses that, and the other gateways tell
 * of theirs. `lost`: nobody tells at the moment. `refused`: nobody will.
 */
export const FEED_STATES = ["tracking", "messages", "lost", "refused"] as const;
export type FeedState = (typeof FEED_STATES)[number];

/** Told of changes to sessions, whoever made them; how a copy in this process stays true. */
export interface ChangeListener {
  /** The session was written, touched or ended, perhaps by this very process. */
  changed(key: SessionKey): void;
  /** The session was ended at that time (of the clock of whoever ended it, milliseconds since the epoch). */
  ended(key: SessionKey, endedAt: number): void;
  /** Anything may have changed. */
  changedAll(): void;
  /** Told once when watching begins, and at each change of it; what was heard before `lost` no longer holds. */
  feed(state: FeedState): void;
  /** How long a change of our own took to come back. */
  delayed(by: "tracking" | "messages", ms: number): void;
}

/**
 * Where sessions live. Every operation throws `ProxyError` `session_store_unavailable` when the store gives no
 * answer, and for nothing else. `storeContract` in `store/contract.ts` is this interface as a test suite.
 */
export interface SessionStore {
  /** A word from a closed set for labels: `memory`, `sqlite`, `redis`, or the name of a custom store. */
  readonly kind: string;

  find(key: SessionKey): MaybePromise<FindResult>;
  /**
   * What `find` would answer, for an operator who asks why: it changes nothing, and tells more. A store without it has its
   * `find` asked.
   */
  peek?(key: SessionKey): MaybePromise<Peek>;
  /** Stores a new session. `conflict`: the key is taken, which for 256 random bits means that something is wrong. */
  create(key: SessionKey, session: Session): MaybePromise<"created" | "conflict">;
  /**
   * Replaces the session if it still has `session.version - 1`. A destroyed or expired session is not brought back. The
   * user stays the same, or it is a conflict: a login creates a session.
   */
  commit(key: SessionKey, session: Session): MaybePromise<CommitOutcome>;
  /** Moves the expiry of a live session, and its last use to now; never creates a key and changes nothing else. */
  touch(key: SessionKey, expiresAt: number): MaybePromise<"touched" | "unknown">;
  /** Ends a session. It is `unknown` then, or `expired` for a while in a store that has to keep its place taken. */
  destroy(key: SessionKey): MaybePromise<"destroyed" | "unknown">;
  /** The live sessions of a user, newest first, at most 1000. */
  byUser(userId: string): MaybePromise<readonly SessionEntry[]>;
  /**
   * One step through the keys of all sessions, in no particular order. A session that is there from the first step to
   * the last comes at least once; one that begins or ends in between may or may not.
   */
  scan(options: ScanOptions): MaybePromise<ScanPage>;
  /** Begins to tell of changes. A store without it has its sessions read anew for each request, and never cached. */
  watch?(listener: ChangeListener): void;
  /** Asks the store whether it would serve; answers, and does not throw, when it would not. */
  check(): MaybePromise<StoreCheck>;
  /** Looks at the server or file itself: version, settings, size. For `coatcheck check --store`, not for every minute. */
  inspect?(): MaybePromise<StoreInspection>;
  /** About how many live sessions there are; asked once a minute, so it must be cheap. */
  count?(): MaybePromise<number>;
  /**
   * Goes through everything in small steps, and finds what should not be there. Never ends or shortens a live session.
   * It does not throw: a store that stops answering is the `failure` of the report.
   */
  sweep?(options: SweepOptions): MaybePromise<SweepReport>;
  /** Where several gateways share the store: buckets for `limits.requests` that they share too. */
  openBuckets?(): Promise<SharedBuckets>;
  close(): MaybePromise<void>;

  /** One attribute; `undefined` when the session or the attribute is not there. */
  get(key: SessionKey, name: string): MaybePromise<Json | undefined>;
  getAll(key: SessionKey): MaybePromise<SessionData | undefined>;
  /** How many attributes the session has; `undefined` without a session. */
  size(key: SessionKey): MaybePromise<number | undefined>;
  set(key: SessionKey, name: string, value: Json): MaybePromise<AttributeResult>;
  /**
   * Writes several attributes at once.
   * @param base the session that the new values were computed from. An attribute that somebody else has changed since
   *   is a `conflict`; without a base the values are written over whatever is there.
   */
  setAll(key: SessionKey, changes: AttributeChanges, base?: Session): MaybePromise<AttributeResult>;
  remove(key: SessionKey, name: string): MaybePromise<AttributeResult>;
  /** Removes every attribute; the user stays. */
  clear(key: SessionKey): MaybePromise<AttributeResult>;
}

/** In place of a key in `session.encryptionKeys`: what is not encrypted is read, or written when this comes first. */
export const PLAINTEXT = "plaintext";

/** What the `store:` of the configuration may begin with. */
export const STORE_SCHEMES = [...REDIS_SCHEMES, "sqlite:", "memory:", "module:"] as const;

/** `kind` of the stores that come with Coatcheck; a custom store has another. */
export const BUILT_IN_STORES: readonly string[] = ["memory", "sqlite", "redis"];

/** `module:`, then a path that begins with `./`, `../` or `/`, or the name of a package; perhaps `?` and parameters. */
export const MODULE_URL = /^module:(\.{0,2}\/[^?]+|(?:@[\w.~-]+\/)?\w[\w.~-]*(?:\/[\w.~-]+)*)(?:\?(.*))?$/s;
