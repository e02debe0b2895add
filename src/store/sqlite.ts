import { DatabaseSync, type StatementSync } from "node:sqlite";
import { storeUnavailable } from "../core/errors.ts";
import {
  EXPIRED_GRACE_MS,
  type FindResult,
  judge,
  MALFORMED,
  type Session,
  type SessionKey,
  UNKNOWN,
} from "../core/session.ts";
import type {
  CommitOutcome,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreInspection,
} from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";
import { decodeSession, encodeSession } from "./codec.ts";

const SWEEP_INTERVAL_MS = 30_000;
/** Rows deleted at a time: a sweep must not hold up requests. */
const SWEEP_ROWS = 500;
const MAX_LISTED = 1000;
/** Free space below this is nothing to speak of. */
const MUCH_FREE_BYTES = 16 * 1024 * 1024;
/** How long a writer waits for another process that is writing. Everything here runs on the event loop. */
const BUSY_TIMEOUT_MS = 250;

/** `user_version` of the database; a file of a later one is left alone. */
const SCHEMA_VERSION = 2;
const SCHEMA = `
  CREATE TABLE IF NOT EXISTS sessions (
    key TEXT PRIMARY KEY, version INTEGER NOT NULL, expires_at INTEGER NOT NULL, used_at INTEGER NOT NULL,
    user_id TEXT, created_at INTEGER NOT NULL, payload TEXT NOT NULL
  ) WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS sessions_by_user ON sessions (user_id, created_at) WHERE user_id IS NOT NULL;
  CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires_at);
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

/** From the version before, which had no `used_at`. */
const UPGRADE = `
  ALTER TABLE sessions ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
  UPDATE sessions SET used_at = created_at;
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

type Row = [version: number, expiresAt: number, usedAt: number, payload: string];
type KeyedRow = [...Row, key: string];

/**
 * Sessions in one file, for one machine: nothing else to install, and a restart keeps them. A look-up is synchronous,
 * some two microseconds, so it costs no promise.
 */
export class SqliteStore extends AttributesByCommit implements SessionStore {
  readonly kind = "sqlite";
  readonly #database: DatabaseSync;
  readonly #now: () => number;
  readonly #sweeper: NodeJS.Timeout;
  readonly #statements: Record<
    "find" | "create" | "commit" | "touch" | "destroy" | "byUser" | "scan" | "sweep" | "count",
    StatementSync
  >;

  /**
   * @param path of the file; it is created when missing, its directory is not. `:memory:` for tests.
   * @throws Error when the file cannot be opened, is no database, or was written by a later version.
   */
  constructor(path: string, now: () => number = Date.now) {
    super();
    this.#now = now;
    const database = openDatabase(path);
    const version = database.prepare("PRAGMA user_version").get()?.user_version;
    if (typeof version === "number" && version > SCHEMA_VERSION) {
      database.close();
      throw new Error(`${path} was written by a later version of Coatcheck (schema ${version})`);
    }
    if (version === 1) database.exec(UPGRADE);
    else if (version !== SCHEMA_VERSION) database.exec(SCHEMA);
    this.#database = database;
    this.#statements = prepare(database);
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_INTERVAL_MS).unref();
  }

  find(key: SessionKey): FindResult {
    const row = this.#answer(() => this.#statements.find.get(key)) as Row | undefined;
    return row === undefined ? UNKNOWN : this.#judgeRow(row);
  }

  create(key: SessionKey, session: Session): "created" | "conflict" {
    const { version, expiresAt, usedAt, createdAt, user } = session;
    const values = [key, version, expiresAt, usedAt, user?.id ?? null, createdAt, encodeSession(session)];
    return this.#changes(this.#statements.create, values) === 1 ? "created" : "conflict";
  }

  commit(key: SessionKey, session: Session): CommitOutcome {
    const { version, user, retiresAt } = session;
    const written = [version, encodeSession(session), retiresAt ?? null];
    const values = [...written, key, version - 1, this.#now(), user?.id ?? null];
    if (this.#changes(this.#statements.commit, values) === 1) return "committed";
    return this.find(key).outcome === "hit" ? "conflict" : "unknown";
  }

  touch(key: SessionKey, expiresAt: number): "touched" | "unknown" {
    const now = this.#now();
    return this.#changes(this.#statements.touch, [expiresAt, now, key, now]) === 1 ? "touched" : "unknown";
  }

  destroy(key: SessionKey): "destroyed" | "unknown" {
    return this.#changes(this.#statements.destroy, [key]) === 1 ? "destroyed" : "unknown";
  }

  byUser(userId: string): readonly SessionEntry[] {
    const rows = this.#answer(() => this.#statements.byUser.all(userId, MAX_LISTED)) as unknown as KeyedRow[];
    const entries: SessionEntry[] = [];
    for (const row of rows) {
      const key = row[4];
      const found = this.#judgeRow(row);
      if (found.outcome === "hit") entries.push({ key, session: found.session });
    }
    return entries;
  }

  /** The cursor is the last key that was looked at. */
  scan({ prefix = "", cursor = "", limit }: ScanOptions): ScanPage {
    // Keys are base64url, so that every one with the prefix sorts before the prefix and a tilde.
    const values = [cursor > prefix ? cursor : prefix, cursor, `${prefix}~`, limit];
    const rows = this.#answer(() => this.#statements.scan.all(...values)) as unknown as [key: string][];
    const keys = rows.map(([key]) => key);
    const last = keys.at(-1);
    return keys.length === limit && last !== undefined ? { keys, cursor: last } : { keys };
  }

  check(): StoreCheck {
    try {
      const row = this.#statements.count.get() as unknown as [number];
      return { ok: true, detail: `${row[0]} sessions in the file` };
    } catch (error) {
      return { ok: false, detail: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Free pages are space that deleted sessions left behind; SQLite uses it again, and never gives it back by itself. */
  inspect(): StoreInspection {
    const pragma = (name: string): number | string =>
      this.#answer(() => Object.values(this.#database.prepare(`PRAGMA ${name}`).get() ?? {})[0] as number | string);
    const journalMode = String(pragma("journal_mode"));
    const pageBytes = Number(pragma("page_size"));
    const fileBytes = pageBytes * Number(pragma("page_count"));
    const freePages = Number(pragma("freelist_count"));
    const [sessions] = this.#answer(() => this.#statements.count.get()) as unknown as [number];
    const warnings: string[] = [];
    if (journalMode !== "wal" && journalMode !== "memory")
      warnings.push(
        `the journal mode is ${journalMode}, so that readers and writers wait for each other: the file system does not support WAL; move the file to a local disk`,
      );
    if (freePages * pageBytes > Math.max(MUCH_FREE_BYTES, fileBytes / 2))
      warnings.push(
        "more than half of the file is free space: stop the gateway and run VACUUM if the disk space is wanted back",
      );
    return {
      facts: [
        {
          name: "SQLite version",
          value: String(this.#answer(() => this.#database.prepare("SELECT sqlite_version() AS v").get()?.v)),
        },
        { name: "sessions", value: `${sessions}, expired ones that are not swept yet included` },
        { name: "file size", value: `${(fileBytes / 1024).toFixed(0)} KiB` },
        { name: "free pages", value: `${freePages} of ${fileBytes / pageBytes}` },
        { name: "journal mode", value: journalMode },
      ],
      warnings,
    };
  }

  close(): void {
    clearInterval(this.#sweeper);
    if (this.#database.isOpen) this.#database.close();
  }

  #judgeRow([version, expiresAt, usedAt, payload]: Row | KeyedRow): FindResult {
    const session = decodeSession(payload, version, expiresAt, usedAt);
    return session === undefined ? MALFORMED : judge(session, this.#now());
  }

  #changes(statement: StatementSync, values: (string | number | null)[]): number {
    return Number(this.#answer(() => statement.run(...values)).changes);
  }

  #answer<T>(ask: () => T): T {
    try {
      return ask();
    } catch (error) {
      throw storeUnavailable(error);
    }
  }

  /** A failure here is met again, and reported, by the next request. */
  #sweep(): void {
    try {
      this.#statements.sweep.run(this.#now() - EXPIRED_GRACE_MS, SWEEP_ROWS);
    } catch {}
  }
}

function openDatabase(path: string): DatabaseSync {
  try {
    const database = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS });
    database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;");
    return database;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`the SQLite file ${path} cannot be opened: ${reason}`, { cause: error });
  }
}

function prepare(database: DatabaseSync) {
  const statement = (sql: string): StatementSync => {
    const prepared = database.prepare(sql);
    prepared.setReturnArrays(true);
    return prepared;
  };
  return {
    find: statement("SELECT version, expires_at, used_at, payload FROM sessions WHERE key = ?"),
    create: statement(
      "INSERT OR IGNORE INTO sessions (key, version, expires_at, used_at, user_id, created_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
    ),
    commit: statement(
      "UPDATE sessions SET version = ?, payload = ?, expires_at = min(expires_at, coalesce(?, expires_at)) WHERE key = ? AND version = ? AND expires_at > ? AND user_id IS ?",
    ),
    touch: statement("UPDATE sessions SET expires_at = ?, used_at = ? WHERE key = ? AND expires_at > ?"),
    destroy: statement("DELETE FROM sessions WHERE key = ?"),
    byUser: statement(
      "SELECT version, expires_at, used_at, payload, key FROM sessions WHERE user_id = ? ORDER BY created_at DESC LIMIT ?",
    ),
    scan: statement("SELECT key FROM sessions WHERE key >= ? AND key > ? AND key < ? ORDER BY key LIMIT ?"),
    sweep: statement("DELETE FROM sessions WHERE key IN (SELECT key FROM sessions WHERE expires_at < ? LIMIT ?)"),
    count: statement("SELECT count(*) FROM sessions"),
  };
}
