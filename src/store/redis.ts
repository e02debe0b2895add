import { Redis } from "ioredis";
import { storeUnavailable } from "../core/errors.ts";
import {
  EXPIRED_GRACE_MS,
  type FindResult,
  judge,
  MALFORMED,
  NEWER,
  type Session,
  type SessionKey,
  UNKNOWN,
} from "../core/session.ts";
import type { CommitOutcome, ScanOptions, ScanPage, SessionEntry, SessionStore, StoreCheck } from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";
import type { SessionCodec } from "./codec.ts";

const CONNECT_TIMEOUT_MS = 1_000;
/** A request waits this long for Redis and no longer; a Redis that hangs is an outage, not a slow page. */
const COMMAND_TIMEOUT_MS = 500;
const MAX_RECONNECT_DELAY_MS = 500;
const MAX_LISTED = 1000;

/** A hash per session: `v` version, `e` expiry (ms), `u` user id, `d` payload; and a sorted set per user. */
const SESSION_PREFIX = "coatcheck:session:";
const USER_PREFIX = "coatcheck:user:";

/**
 * Each write is one script: it happens whole or not at all, and leaves no key without a TTL at any instant, even when
 * the gateway dies between two commands. KEYS[1] is the session, or the index in `index`. Payloads of a format that this
 * version does not know (the first octet of `d`) are left alone.
 */
const SCRIPTS = {
  createSession: `
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    redis.call('HSET', KEYS[1], 'v', ARGV[1], 'e', ARGV[2], 'd', ARGV[3], 'u', ARGV[4], 't', ARGV[6])
    redis.call('PEXPIREAT', KEYS[1], ARGV[5])
    return 1`,
  /** ARGV: version read, version written, payload, user, now, end of the key when the session retires (or 0). */
  commitSession: `
    local now = redis.call('HMGET', KEYS[1], 'v', 'e', 'u', 'd')
    if not now[1] or tonumber(now[2]) <= tonumber(ARGV[5]) then return -1 end
    local format = string.byte(now[4] or '', 1) or 0
    if format < 1 or format > 3 then return -1 end
    if now[1] ~= ARGV[1] or now[3] ~= ARGV[4] then return 0 end
    redis.call('HSET', KEYS[1], 'v', ARGV[2], 'd', ARGV[3])
    local retires = tonumber(ARGV[6])
    if retires > 0 and retires < redis.call('PEXPIRETIME', KEYS[1]) then redis.call('PEXPIREAT', KEYS[1], ARGV[6]) end
    return 1`,
  touchSession: `
    local now = redis.call('HMGET', KEYS[1], 'e', 'd')
    if not now[1] or tonumber(now[1]) <= tonumber(ARGV[2]) then return 0 end
    local format = string.byte(now[2] or '', 1) or 0
    if format < 1 or format > 3 then return 0 end
    redis.call('HSET', KEYS[1], 'e', ARGV[1], 't', ARGV[2])
    redis.call('PEXPIREAT', KEYS[1], ARGV[3])
    return 1`,
  destroySession: `
    local u = redis.call('HGET', KEYS[1], 'u')
    if not u then return false end
    redis.call('UNLINK', KEYS[1])
    return u`,
  /** ARGV: score, member, now, end. The set lives as long as its longest session. */
  indexSession: `
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
    redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
    if redis.call('PEXPIRETIME', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIREAT', KEYS[1], ARGV[4]) end
    return 1`,
} as const;

type Script = (key: string, ...values: (string | number | Buffer)[]) => Promise<unknown>;
type Scripted = Redis & Record<keyof typeof SCRIPTS, Script>;

export interface RedisStoreOptions {
  readonly codec: SessionCodec;
  readonly now?: () => number;
  /** Longest life of a session, milliseconds: how long the index of a user has to remember it. */
  readonly absoluteTimeoutMs: number;
}

/** Sessions in one Redis (7 or later). It starts without the server and finds it when it comes. */
export class RedisStore extends AttributesByCommit implements SessionStore {
  readonly kind = "redis";
  readonly #redis: Scripted;
  readonly #codec: SessionCodec;
  readonly #now: () => number;
  readonly #absoluteTimeoutMs: number;
  readonly #firstAnswer: Promise<void>;

  /** @param url `redis://user:password@host:port/db`, or `rediss:` for TLS. */
  constructor(url: string, options: RedisStoreOptions) {
    super();
    this.#codec = options.codec;
    this.#now = options.now ?? Date.now;
    this.#absoluteTimeoutMs = options.absoluteTimeoutMs;
    const redis = new Redis(url, {
      connectTimeout: CONNECT_TIMEOUT_MS,
      commandTimeout: COMMAND_TIMEOUT_MS,
      enableOfflineQueue: false,
      enableAutoPipelining: true,
      maxRetriesPerRequest: 0,
      retryStrategy: (attempt) => Math.min(25 * 2 ** Math.min(attempt, 10), MAX_RECONNECT_DELAY_MS),
      // After a failover the old master answers READONLY, a restarted server LOADING: connect again, and ask there.
      reconnectOnError: (error) => /^(READONLY|LOADING)/.test(error.message),
    });
    // Each operation that fails because of it says so; without a listener ioredis would print it.
    redis.on("error", () => {});
    this.#firstAnswer = new Promise((resolve) => {
      redis.once("ready", resolve);
      redis.once("close", resolve);
    });
    for (const [name, lua] of Object.entries(SCRIPTS)) redis.defineCommand(name, { numberOfKeys: 1, lua });
    this.#redis = redis as Scripted;
  }

  /** Done when the first attempt to connect has succeeded or failed. */
  firstAnswer(): Promise<void> {
    return this.#firstAnswer;
  }

  async find(key: SessionKey): Promise<FindResult> {
    let fields: readonly (Buffer | null)[];
    try {
      fields = await this.#redis.hmgetBuffer(SESSION_PREFIX + key, "v", "e", "t", "d");
    } catch (error) {
      // A key of another type is not a session; it must not look like an outage.
      if (error instanceof Error && error.message.startsWith("WRONGTYPE")) return MALFORMED;
      throw storeUnavailable(error);
    }
    return this.#judgeFields(key, fields);
  }

  async create(key: SessionKey, session: Session): Promise<"created" | "conflict"> {
    const userId = session.user?.id ?? "";
    // Index first: "end all sessions of this user" must not miss one. An entry without a session is harmless.
    if (userId !== "") await this.#index(userId, key, session);
    const values = [
      session.version,
      session.expiresAt,
      this.#codec.encode(key, session),
      userId,
      session.expiresAt + EXPIRED_GRACE_MS,
      session.usedAt,
    ];
    return (await this.#run("createSession", SESSION_PREFIX + key, values)) === 1 ? "created" : "conflict";
  }

  async commit(key: SessionKey, session: Session): Promise<CommitOutcome> {
    const userId = session.user?.id ?? "";
    const values = [
      session.version - 1,
      session.version,
      this.#codec.encode(key, session),
      userId,
      this.#now(),
      session.retiresAt === undefined ? 0 : session.retiresAt + EXPIRED_GRACE_MS,
    ];
    const outcome = await this.#run("commitSession", SESSION_PREFIX + key, values);
    return outcome === 1 ? "committed" : outcome === 0 ? "conflict" : "unknown";
  }

  async touch(key: SessionKey, expiresAt: number): Promise<"touched" | "unknown"> {
    const values = [expiresAt, this.#now(), expiresAt + EXPIRED_GRACE_MS];
    return (await this.#run("touchSession", SESSION_PREFIX + key, values)) === 1 ? "touched" : "unknown";
  }

  async destroy(key: SessionKey): Promise<"destroyed" | "unknown"> {
    const userId = await this.#run("destroySession", SESSION_PREFIX + key, []);
    if (typeof userId !== "string") return "unknown";
    if (userId !== "") await this.#answer(this.#redis.zrem(USER_PREFIX + userId, key));
    return "destroyed";
  }

  async byUser(userId: string): Promise<readonly SessionEntry[]> {
    const keys = await this.#answer(
      this.#redis.zrange(USER_PREFIX + userId, "+inf", String(this.#now()), "BYSCORE", "REV", "LIMIT", 0, MAX_LISTED),
    );
    const entries: SessionEntry[] = [];
    await Promise.all(
      keys.map(async (key) => {
        const found = await this.find(key);
        if (found.outcome === "hit" && found.session.user?.id === userId) entries.push({ key, session: found.session });
      }),
    );
    return entries.sort((a, b) => b.session.createdAt - a.session.createdAt);
  }

  async scan({ prefix = "", cursor = "0", limit }: ScanOptions): Promise<ScanPage> {
    const pattern = `${SESSION_PREFIX}${prefix.replace(/[*?[\]\\]/g, "\\$&")}*`;
    const [next, found] = await this.#answer(this.#redis.scan(cursor, "MATCH", pattern, "COUNT", limit));
    const keys = found.map((key) => key.slice(SESSION_PREFIX.length));
    return next === "0" ? { keys } : { keys, cursor: next };
  }

  async check(): Promise<StoreCheck> {
    try {
      const startedMs = performance.now();
      await this.#redis.ping();
      return { ok: true, detail: `PING answered in ${(performance.now() - startedMs).toFixed(2)} ms` };
    } catch (error) {
      return { ok: false, detail: error instanceof Error ? error.message : String(error) };
    }
  }

  close(): void {
    this.#redis.disconnect();
  }

  #judgeFields(key: SessionKey, fields: readonly (Buffer | null)[]): FindResult {
    const [version, expiresAt, usedAt, payload] = fields;
    if (version == null && payload == null) return UNKNOWN;
    const [v, e, t] = [Number(version ?? Number.NaN), Number(expiresAt ?? Number.NaN), Number(usedAt ?? Number.NaN)];
    const session = this.#codec.decode(key, payload ?? "", v, e, t);
    if (session === undefined) return MALFORMED;
    return session === "newer" ? NEWER : judge(session, this.#now());
  }

  async #index(userId: string, key: SessionKey, session: Session): Promise<void> {
    const end = session.createdAt + this.#absoluteTimeoutMs;
    await this.#run("indexSession", USER_PREFIX + userId, [end, key, this.#now(), end]);
  }

  async #run(script: keyof typeof SCRIPTS, key: string, values: (string | number | Buffer)[]): Promise<unknown> {
    return this.#answer(this.#redis[script](key, ...values));
  }

  async #answer<T>(reply: Promise<T>): Promise<T> {
    try {
      return await reply;
    } catch (error) {
      throw storeUnavailable(error);
    }
  }
}
