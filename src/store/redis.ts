import { forEachAtOnce } from "../core/concurrency.ts";
import { ProxyError } from "../core/errors.ts";
import type { SharedBuckets } from "../core/limits.ts";
import { parseRedisUrl } from "../core/redis-url.ts";
import {
  type AttributeChanges,
  EXPIRED_GRACE_MS,
  type FindResult,
  judge,
  MALFORMED,
  NEWER,
  type Peek,
  type Session,
  type SessionData,
  type SessionKey,
  UNKNOWN,
  type Unreadable,
} from "../core/session.ts";
import type {
  ChangeListener,
  CommitOutcome,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreInspection,
  StoreObserver,
  SweepOptions,
  SweepReport,
} from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";
import { PLAIN_JSON, type SessionCodec } from "./codec.ts";
import { countSessions } from "./redis-count.ts";
import { RedisFeed } from "./redis-feed.ts";
import { inspectRedis } from "./redis-inspection.ts";
import { type CommandKind, isWrongType, NO_OBSERVER, RedisLink, type RedisScript } from "./redis-link.ts";
import { ATTRIBUTE_PREFIX, BUCKET_SCRIPTS, SCRIPTS, SESSION_PREFIX, USER_PREFIX } from "./redis-scripts.ts";
import { type SweptStore, sweepRedis } from "./redis-sweep.ts";

const MAX_LISTED = 1000;
/** Look-ups of a list under way: a thousand together would keep the requests of others waiting, and time out. */
const FOUND_AT_ONCE = 50;

const HMGET: CommandKind = { name: "HMGET", repeatable: true };
const HGETALL: CommandKind = { name: "HGETALL", repeatable: true };
const ZRANGE: CommandKind = { name: "ZRANGE", repeatable: true };
const ZREM: CommandKind = { name: "ZREM", repeatable: true };
const SCAN: CommandKind = { name: "SCAN", repeatable: true };
const EXISTS: CommandKind = { name: "EXISTS" };

type ScriptName = keyof typeof SCRIPTS;

const SCRIPT_KINDS: Readonly<Record<ScriptName, CommandKind>> = {
  createSession: script("createSession"),
  commitSession: script("commitSession"),
  changeSession: script("changeSession"),
  touchSession: { ...script("touchSession"), repeatable: true },
  destroySession: script("destroySession"),
  indexSession: { ...script("indexSession"), repeatable: true },
};

/** ioredis sends the digest, and the script itself to a server that does not know it yet. */
function script(script: ScriptName): CommandKind {
  return { name: "EVALSHA", script };
}

/** How a session lies in Redis: its attributes in one field together, or in one each. Either reads the other. */
export type RedisLayout = "blob" | "fields";

export interface RedisStoreOptions {
  readonly now?: () => number;
  /** Longest life of a session, milliseconds: how long the index of a user has to remember it. */
  readonly absoluteTimeoutMs: number;
  /** Default: JSON, not encrypted. */
  readonly codec?: SessionCodec;
  readonly layout?: RedisLayout;
  readonly observer?: StoreObserver;
}

type Fields = Readonly<Record<string, Buffer | null | undefined>>;

/** Sessions in Redis 7 or later: one server, servers behind sentinels, or a cluster. */
export class RedisStore extends AttributesByCommit implements SessionStore {
  readonly kind = "redis";
  readonly #link: RedisLink;
  readonly #now: () => number;
  readonly #absoluteTimeoutMs: number;
  readonly #codec: SessionCodec;
  readonly #layout: RedisLayout;
  readonly #observer: StoreObserver;
  #feed: RedisFeed | undefined;

  /**
   * @param url see `parseRedisUrl`.
   * @throws TypeError when it is none; Error when a file that it names cannot be read.
   */
  constructor(url: string, options: RedisStoreOptions) {
    super();
    this.#now = options.now ?? Date.now;
    this.#absoluteTimeoutMs = options.absoluteTimeoutMs;
    this.#codec = options.codec ?? PLAIN_JSON;
    this.#layout = options.layout ?? "blob";
    this.#observer = options.observer ?? NO_OBSERVER;
    this.#link = new RedisLink(parseRedisUrl(url), { ...SCRIPTS, ...BUCKET_SCRIPTS }, this.#observer);
  }

  /** Done when the first attempt to connect has succeeded or failed. */
  firstAnswer(): Promise<void> {
    return this.#link.firstAnswer();
  }

  find(key: SessionKey): Promise<FindResult> {
    return this.#read(key, this.#found);
  }

  peek(key: SessionKey): Promise<Peek> {
    return this.#read(key, this.#peeked);
  }

  async create(key: SessionKey, session: Session): Promise<"created" | "conflict"> {
    const userId = session.user?.id ?? "";
    // Index first: "end all sessions of this user" must not miss one. An entry without a session is harmless.
    if (userId !== "") await this.#index(userId, key, session.createdAt + this.#absoluteTimeoutMs);
    const { payload, fields } = this.#encode(key, session);
    const { version, expiresAt, usedAt } = session;
    const values = [version, expiresAt, usedAt, userId, payload, expiresAt + EXPIRED_GRACE_MS, ...fields];
    return (await this.#run("createSession", SESSION_PREFIX + key, values)) === 1 ? "created" : "conflict";
  }

  async commit(key: SessionKey, session: Session): Promise<CommitOutcome> {
    const { payload, fields } = this.#encode(key, session);
    const { version, user, retiresAt } = session;
    const end = retiresAt === undefined ? 0 : retiresAt + EXPIRED_GRACE_MS;
    const values = [version - 1, version, user?.id ?? "", this.#now(), end, payload, ...fields];
    return commitOutcome(await this.#run("commitSession", SESSION_PREFIX + key, values));
  }

  /** With a field for each attribute only those that change are written, however large the session is. */
  protected override async commitChanges(key: SessionKey, session: Session, changes: AttributeChanges) {
    if (this.#layout !== "fields") return this.commit(key, session);
    const removed = Object.keys(changes).filter((name) => changes[name] === undefined);
    const written = Object.entries(changes).flatMap(([name, value]) =>
      value === undefined ? [] : [ATTRIBUTE_PREFIX + name, this.#codec.encodeValue(key, name, value)],
    );
    const { version, user } = session;
    const values = [version - 1, version, user?.id ?? "", this.#now(), removed.length];
    const names = removed.map((name) => ATTRIBUTE_PREFIX + name);
    const outcome = await this.#run("changeSession", SESSION_PREFIX + key, [...values, ...names, ...written]);
    return outcome === -2 ? this.commit(key, session) : commitOutcome(outcome);
  }

  async touch(key: SessionKey, expiresAt: number): Promise<"touched" | "unknown"> {
    const values = [expiresAt, this.#now(), expiresAt + EXPIRED_GRACE_MS];
    return (await this.#run("touchSession", SESSION_PREFIX + key, values)) === 1 ? "touched" : "unknown";
  }

  async destroy(key: SessionKey): Promise<"destroyed" | "unknown"> {
    const userId = await this.#run("destroySession", SESSION_PREFIX + key, [this.#now()]);
    if (typeof userId !== "string") return "unknown";
    if (userId !== "") await this.#removeFromIndex(userId, key);
    return "destroyed";
  }

  async byUser(userId: string): Promise<readonly SessionEntry[]> {
    const index = USER_PREFIX + userId;
    const now = String(this.#now());
    const entries: SessionEntry[] = [];
    // The index also has what has expired by idleness: a live session may come behind any number of these.
    for (let offset = 0; entries.length < MAX_LISTED; offset += MAX_LISTED) {
      const keys = await this.#link.ask(
        index,
        () => this.#link.client.zrange(index, "+inf", now, "BYSCORE", "REV", "LIMIT", offset, MAX_LISTED),
        ZRANGE,
      );
      await forEachAtOnce(keys, FOUND_AT_ONCE, async (key) => {
        const found = await this.find(key);
        if (found.outcome === "hit" && found.session.user?.id === userId) entries.push({ key, session: found.session });
      });
      if (keys.length < MAX_LISTED) break;
    }
    return entries.sort((a, b) => b.session.createdAt - a.session.createdAt).slice(0, MAX_LISTED);
  }

  /** The cursor names the node, by its place among the masters, and the place in it. */
  async scan({ prefix = "", cursor = "0 0", limit }: ScanOptions): Promise<ScanPage> {
    const [node = "0", place = "0"] = cursor.split(" ");
    const nodes = this.#link.connections();
    const redis = nodes[Number(node)];
    const pattern = `${SESSION_PREFIX}${prefix.replace(/[*?[\]\\]/g, "\\$&")}*`;
    const [next, found] = await this.#link.askAnyNode(async () => {
      if (redis === undefined) throw new Error("the node is closed");
      return redis.scan(place, "MATCH", pattern, "COUNT", limit);
    }, SCAN);
    const keys = found.map((name) => name.slice(SESSION_PREFIX.length));
    if (next !== "0") return { keys, cursor: `${node} ${next}` };
    return Number(node) + 1 < nodes.length ? { keys, cursor: `${Number(node) + 1} 0` } : { keys };
  }

  watch(listener: ChangeListener): void {
    this.#feed = new RedisFeed(this.#link, SESSION_PREFIX, listener, this.#observer);
  }

  async check(): Promise<StoreCheck> {
    const startedMs = performance.now();
    try {
      await this.#link.ask(SESSION_PREFIX, () => this.#link.client.exists(SESSION_PREFIX), EXISTS);
      return { ok: true, detail: `answered in ${(performance.now() - startedMs).toFixed(2)} ms` };
    } catch (error) {
      return { ok: false, detail: error instanceof Error ? error.message : String(error) };
    }
  }

  /** The library is loaded only where there are limits. */
  async openBuckets(): Promise<SharedBuckets> {
    const { RedisBuckets } = await import("./redis-buckets.ts");
    return new RedisBuckets(this.#link);
  }

  inspect(): Promise<StoreInspection> {
    return inspectRedis(this.#link);
  }

  count(): Promise<number> {
    return countSessions(this.#link);
  }

  sweep(options: SweepOptions): Promise<SweepReport> {
    const store: SweptStore = {
      link: this.#link,
      absoluteTimeoutMs: this.#absoluteTimeoutMs,
      now: this.#now,
      find: (key) => this.find(key),
      enter: (userId, key, end) => this.#index(userId, key, end),
    };
    return sweepRedis(store, options);
  }

  close(): void {
    this.#feed?.close();
    this.#link.close();
  }

  async #read<T>(key: SessionKey, judged: (key: SessionKey, fields: Fields) => T): Promise<T | typeof MALFORMED> {
    const name = SESSION_PREFIX + key;
    const { client } = this.#link;
    try {
      if (this.#layout === "fields") {
        return judged(key, (await this.#link.ask(name, () => client.hgetallBuffer(name), HGETALL)) as Fields);
      }
      const [v, e, t, d, l] = await this.#link.ask(
        name,
        () => client.hmgetBuffer(name, "v", "e", "t", "d", "l"),
        HMGET,
      );
      if (l != null)
        return judged(key, (await this.#link.ask(name, () => client.hgetallBuffer(name), HGETALL)) as Fields);
      return judged(key, { v, e, t, d });
    } catch (error) {
      // A key of another type is not a session; it must not look like an outage.
      if (isWrongType(error)) return MALFORMED;
      throw error;
    }
  }

  readonly #found = (key: SessionKey, fields: Fields): FindResult => this.#judge(key, fields);

  readonly #peeked = (key: SessionKey, fields: Fields): Peek => {
    const found = this.#judge(key, fields, Number.NEGATIVE_INFINITY);
    if (found.outcome === "hit") return { ...judge(found.session, this.#now()), session: found.session };
    return found.outcome === "malformed" ? { ...found, unreadable: this.#whyUnreadable(fields) } : found;
  };

  #judge(key: SessionKey, fields: Fields, now = this.#now()): FindResult {
    const { v, d } = fields;
    if (v == null && d == null) return UNKNOWN;
    const [version, expiresAt, usedAt] = [numberIn(v), numberIn(fields.e), numberIn(fields.t)];
    const session = d == null ? undefined : this.#codec.decode(key, d, version, expiresAt, usedAt);
    if (session === "newer") return NEWER;
    if (session === undefined) return MALFORMED;
    if (fields.l == null) return judge(session, now);
    const data: Record<string, SessionData[string]> = {};
    for (const [field, value] of Object.entries(fields)) {
      if (!field.startsWith(ATTRIBUTE_PREFIX) || value == null) continue;
      const name = field.slice(ATTRIBUTE_PREFIX.length);
      const decoded = this.#codec.decodeValue(key, name, value);
      if (decoded === "newer") return NEWER;
      if (decoded === undefined) return MALFORMED;
      data[name] = decoded.value;
    }
    return judge({ ...session, data }, now);
  }

  #whyUnreadable(fields: Fields): Unreadable {
    const payloads = Object.entries(fields).filter(([field]) => field === "d" || field.startsWith(ATTRIBUTE_PREFIX));
    const reasons = payloads.map(([, payload]) => this.#codec.whyUnreadable(payload ?? ""));
    return reasons.find((reason) => reason !== "damaged") ?? "damaged";
  }

  /** What goes into `d`, and names and values of further fields in turn. */
  #encode(key: SessionKey, session: Session): { payload: Buffer; fields: (string | Buffer)[] } {
    if (this.#layout === "blob") return { payload: this.#codec.encode(key, session), fields: [] };
    const fields: (string | Buffer)[] = ["l", "1"];
    for (const [name, value] of Object.entries(session.data)) {
      fields.push(ATTRIBUTE_PREFIX + name, this.#codec.encodeValue(key, name, value));
    }
    return { payload: this.#codec.encode(key, { ...session, data: {} }), fields };
  }

  async #index(userId: string, key: SessionKey, end: number): Promise<void> {
    await this.#run("indexSession", USER_PREFIX + userId, [end, key, this.#now(), end]);
  }

  /** The session has ended, whatever becomes of its entry: one without a session is harmless, and goes with time. */
  async #removeFromIndex(userId: string, key: SessionKey): Promise<void> {
    const index = USER_PREFIX + userId;
    try {
      await this.#link.ask(index, () => this.#link.client.zrem(index, key), ZREM);
    } catch (error) {
      if (!(error instanceof ProxyError)) throw error;
    }
  }

  #run(script: ScriptName, key: string, values: (string | number | Buffer)[]): Promise<unknown> {
    return this.#link.ask(key, () => (this.#link.client[script] as RedisScript)(key, ...values), SCRIPT_KINDS[script]);
  }
}

function commitOutcome(reply: unknown): CommitOutcome {
  return reply === 1 ? "committed" : reply === 0 ? "conflict" : "unknown";
}

function numberIn(field: Buffer | null | undefined): number {
  return field == null ? Number.NaN : Number(field.toString("latin1"));
}
