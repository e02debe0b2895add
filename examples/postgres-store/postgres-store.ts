/**
 * Coatcheck sessions in PostgreSQL, with the `pg` driver: `store: module:./postgres-store.ts`.
 * It needs nothing but this file and `npm install pg`; README.md tells the rest.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import {
  AttributesByCommit,
  type ChangeListener,
  type CommitOutcome,
  type CustomStoreOptions,
  type FeedState,
  type FindResult,
  judge,
  type ScanOptions,
  type ScanPage,
  type Session,
  type SessionCodec,
  type SessionEntry,
  type SessionKey,
  type SessionStore,
  type StoreCheck,
} from "coatcheck";
import pg from "pg";

/** The gateway gives up on a store after three seconds; these see to it that nothing is left running then. */
const CONNECT_TIMEOUT_MS = 1_000;
const STATEMENT_TIMEOUT_MS = 1_000;
/** Longer than the server's own: it ends the wait for a server that is gone without a word. */
const ANSWER_TIMEOUT_MS = 1_500;
const CONNECTIONS = 8;

/** How long an expired session is kept, so that a returning visitor is counted as `expired` and not as `unknown`. */
const KEPT_AFTER_EXPIRY_MS = 300_000;
const SWEEP_INTERVAL_MS = 30_000;
const SWEEP_ROWS = 500;

/** How soon a listening connection that is gone without a word is noticed: after one interval and one answer timeout. */
const HEARTBEAT_INTERVAL_MS = 1_000;
const RECONNECT_DELAY_MS = 250;

const MAX_LISTED = 1000;
const UNDEFINED_TABLE = "42P01";

/**
 * Numbers are milliseconds since the epoch; `retires_at` is also in the payload, which nothing but the codec reads. "C" compares keys byte by byte, which a scan in steps relies on. The lock
 * keeps gateways that start at the same time from creating the table at the same time, which PostgreSQL does not bear.
 */
const SCHEMA = `
  SELECT pg_advisory_xact_lock(hashtext('coatcheck_sessions'));
  CREATE TABLE IF NOT EXISTS coatcheck_sessions (
    key text COLLATE "C" PRIMARY KEY, version bigint NOT NULL, expires_at bigint NOT NULL, retires_at bigint,
    used_at bigint NOT NULL, created_at bigint NOT NULL, user_id text, payload bytea NOT NULL
  );
  CREATE INDEX IF NOT EXISTS coatcheck_sessions_by_user ON coatcheck_sessions (user_id, created_at);
  CREATE INDEX IF NOT EXISTS coatcheck_sessions_by_end ON coatcheck_sessions (least(expires_at, retires_at));
`;

const COLUMNS = "key, version, expires_at, used_at, payload";
/** `least` passes over NULL: a session that was not replaced at a login has no `retires_at`. */
const END = "least(expires_at, retires_at)";

/** A write that tells every gateway what it changed, in the same transaction: both happen, or neither does. */
function told(write: string, verb: "changed" | "ended"): string {
  return `WITH written AS (${write} RETURNING key)
    SELECT pg_notify('coatcheck_sessions', '${verb} ' || key || ' ' || $1 || ' ' || $2) FROM written`;
}

/** What `told` writes begins with `$1`, who tells it, and `$2`, the time. */
const SQL = {
  find: `SELECT ${COLUMNS} FROM coatcheck_sessions WHERE key = $1`,
  create: `INSERT INTO coatcheck_sessions (key, version, expires_at, retires_at, used_at, created_at, user_id, payload)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
  commit: told(
    `UPDATE coatcheck_sessions SET version = $4, retires_at = $5, payload = $7
     WHERE key = $3 AND version = $4 - 1 AND ${END} > $2::bigint AND user_id IS NOT DISTINCT FROM $6`,
    "changed",
  ),
  touch: told(
    `UPDATE coatcheck_sessions SET expires_at = $4, used_at = $2::bigint WHERE key = $3 AND ${END} > $2::bigint`,
    "changed",
  ),
  destroy: told("DELETE FROM coatcheck_sessions WHERE key = $3", "ended"),
  byUser: `SELECT ${COLUMNS} FROM coatcheck_sessions WHERE user_id = $1 AND ${END} > $2
    ORDER BY created_at DESC LIMIT ${MAX_LISTED}`,
  // Keys are base64url, so that every one with the prefix sorts before the prefix and a tilde.
  scan: `SELECT key FROM coatcheck_sessions WHERE key > $1 AND key >= $2 AND key < $2 || '~' ORDER BY key LIMIT $3`,
  sweep: `DELETE FROM coatcheck_sessions WHERE key IN (
    SELECT key FROM coatcheck_sessions WHERE ${END} < $1 LIMIT ${SWEEP_ROWS} FOR UPDATE SKIP LOCKED)`,
  check: "SELECT current_setting('server_version') AS version, EXISTS (SELECT FROM coatcheck_sessions) AS used",
};

interface Row {
  readonly key: SessionKey;
  /** A `bigint` comes as a text. */
  readonly version: string;
  readonly expires_at: string;
  readonly used_at: string;
  readonly payload: Buffer;
}

export class PostgresStore extends AttributesByCommit implements SessionStore {
  readonly kind = "postgres";
  readonly #id = randomUUID();
  readonly #now: () => number;
  readonly #codec: SessionCodec;
  readonly #connection: pg.ClientConfig;
  readonly #pool: pg.Pool;
  readonly #sweeper: NodeJS.Timeout;
  #listener: pg.Client | undefined;
  #closed = false;

  constructor({ now, codec, parameters }: CustomStoreOptions) {
    super();
    const { url, ...others } = parameters;
    const unknown = Object.keys(others);
    // A URL with "&" would be cut there, and a setting such as sslmode would be lost without a word.
    if (unknown.length > 0) throw new TypeError(`unknown parameter ${unknown.join(", ")}; there is only url`);
    this.#now = now;
    this.#codec = codec;
    this.#connection = {
      // Without a URL, pg takes what the variables PGHOST, PGUSER, PGPASSWORD, PGDATABASE … say.
      ...(url !== undefined && { connectionString: url }),
      application_name: "coatcheck",
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      statement_timeout: STATEMENT_TIMEOUT_MS,
      query_timeout: ANSWER_TIMEOUT_MS,
      keepAlive: true,
    };
    this.#pool = new pg.Pool({ ...this.#connection, max: CONNECTIONS });
    // A connection that breaks while nobody uses it: the pool makes a new one, but an error without a listener ends the process.
    this.#pool.on("error", () => {});
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_INTERVAL_MS).unref();
    this.#sweep();
  }

  async find(key: SessionKey): Promise<FindResult> {
    const { rows } = await this.#query("find", [key]);
    return rows[0] === undefined ? { outcome: "unknown" } : this.#read(rows[0]);
  }

  async create(key: SessionKey, session: Session): Promise<"created" | "conflict"> {
    const { version, expiresAt, retiresAt, usedAt, createdAt, user } = session;
    const payload = this.#codec.encode(key, session);
    const values = [key, version, expiresAt, retiresAt, usedAt, createdAt, user?.id, payload];
    return (await this.#query("create", values)).rowCount === 1 ? "created" : "conflict";
  }

  async commit(key: SessionKey, session: Session): Promise<CommitOutcome> {
    // What a later version has written is not ours to overwrite, and no condition in SQL sees it in an envelope.
    if ((await this.find(key)).outcome !== "hit") return "unknown";
    const { version, retiresAt, user } = session;
    const values = [key, version, retiresAt, user?.id, this.#codec.encode(key, session)];
    if (await this.#write("commit", values)) return "committed";
    return (await this.find(key)).outcome === "hit" ? "conflict" : "unknown";
  }

  async touch(key: SessionKey, expiresAt: number): Promise<"touched" | "unknown"> {
    if ((await this.find(key)).outcome !== "hit") return "unknown";
    return (await this.#write("touch", [key, expiresAt])) ? "touched" : "unknown";
  }

  async destroy(key: SessionKey): Promise<"destroyed" | "unknown"> {
    return (await this.#write("destroy", [key])) ? "destroyed" : "unknown";
  }

  async byUser(userId: string): Promise<readonly SessionEntry[]> {
    const { rows } = await this.#query("byUser", [userId, this.#now()]);
    return rows.flatMap((row) => {
      const found = this.#read(row);
      return found.outcome === "hit" ? [{ key: row.key, session: found.session }] : [];
    });
  }

  async scan({ prefix = "", cursor = "", limit }: ScanOptions): Promise<ScanPage> {
    const { rows } = await this.#query("scan", [cursor, prefix, limit]);
    const keys = rows.map(({ key }) => key);
    const last = keys.at(-1);
    return keys.length === limit && last !== undefined ? { keys, cursor: last } : { keys };
  }

  async check(): Promise<StoreCheck> {
    try {
      const { rows } = await this.#query("check", []);
      return { ok: true, detail: `PostgreSQL ${rows[0]?.version} answers` };
    } catch (error) {
      return { ok: false, detail: String(error) };
    }
  }

  watch(listener: ChangeListener): void {
    this.#listen(listener);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#sweeper);
    await Promise.all([this.#listener?.end(), this.#pool.end()]);
  }

  #read({ key, payload, version, expires_at, used_at }: Row): FindResult {
    const session = this.#codec.decode(key, payload, Number(version), Number(expires_at), Number(used_at));
    if (session === undefined) return { outcome: "malformed" };
    return session === "newer" ? { outcome: "newer" } : judge(session, this.#now());
  }

  async #write(name: "commit" | "touch" | "destroy", values: readonly unknown[]): Promise<boolean> {
    return (await this.#query(name, [this.#id, String(this.#now()), ...values])).rowCount === 1;
  }

  /** What pg throws needs no translation: the gateway takes whatever a store throws for an outage. */
  async #query(name: keyof typeof SQL, values: readonly unknown[]): Promise<pg.QueryResult<Row>> {
    // Under a name, a statement is parsed and planned once per connection.
    const query = { name: `coatcheck_${name}`, text: SQL[name], values: [...values] };
    try {
      return await this.#pool.query<Row>(query);
    } catch (error) {
      if (!(error instanceof pg.DatabaseError) || error.code !== UNDEFINED_TABLE) throw error;
      await this.#pool.query(SCHEMA);
      return this.#pool.query<Row>(query);
    }
  }

  /** A failure here is met again, and reported, by the next request. */
  async #sweep(): Promise<void> {
    try {
      let deleted: number | null;
      do ({ rowCount: deleted } = await this.#query("sweep", [this.#now() - KEPT_AFTER_EXPIRY_MS]));
      while (deleted === SWEEP_ROWS);
    } catch {}
  }

  /** Listens until the store is closed, on a connection of its own, and on a new one whenever that breaks. */
  async #listen(listener: ChangeListener): Promise<void> {
    let state: FeedState | undefined;
    const feed = (next: FeedState): void => {
      if (next !== state) listener.feed(next);
      state = next;
    };
    while (!this.#closed) {
      this.#listener = new pg.Client(this.#connection);
      try {
        await this.#hear(this.#listener, listener, () => feed("messages"));
      } catch {}
      feed("lost");
      // Not awaited: a connection that is gone without a word does not end with one either.
      this.#listener.end().catch(() => {});
      await sleep(RECONNECT_DELAY_MS, undefined, { ref: false });
    }
  }

  /** @throws Error when the connection breaks, or when its heartbeat is not heard. */
  async #hear(client: pg.Client, listener: ChangeListener, onHeartbeat: () => void): Promise<void> {
    let heard = 0;
    client.on("notification", ({ payload = "" }) => {
      const [verb, key = "", teller, time] = payload.split(" ");
      if (verb === "beat" && key === this.#id) heard++;
      if (verb === "ended") listener.ended(key, Number(time));
      if (verb === "ended" || verb === "changed") listener.changed(key);
      if (teller === this.#id) listener.delayed("messages", Math.max(0, this.#now() - Number(time)));
    });
    const gone = new AbortController();
    client.on("error", () => {});
    client.on("end", () => gone.abort());
    await client.connect();
    await client.query("LISTEN coatcheck_sessions");
    for (let sent = 1; ; sent++) {
      // It is heard before the query is answered, unless something in between, such as a pooler, swallows notifications.
      await client.query("SELECT pg_notify('coatcheck_sessions', 'beat ' || $1)", [this.#id]);
      if (heard < sent) throw new Error("notifications do not arrive");
      onHeartbeat();
      await sleep(HEARTBEAT_INTERVAL_MS, undefined, { signal: gone.signal, ref: false });
    }
  }
}

export default PostgresStore;
