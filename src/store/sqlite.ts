import { DatabaseSync, type StatementSync } from "node:sqlite";
import { setTimeout as rest } from "node:timers/promises";
import { storeUnavailable } from "../core/errors.ts";
import {
  EXPIRED_GRACE_MS,
  type FindResult,
  judge,
  MALFORMED,
  NEWER,
  type Peek,
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
  SweepOptions,
  SweepReport,
} from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";
import { PLAIN_JSON, type SessionCodec } from "./codec.ts";
import { SweepFindings } from "./sweep.ts";

const SWEEP_INTERVAL_MS = 30_000;
/** The first time soon: a gateway that was away for long has much to sweep. */
const FIRST_SWEEP_MS = 1_000;
/** Rows deleted at a time, scattered all over the file: more of them would hold up requests for more than a millisecond. */
const SWEEP_ROWS = 20;
/** While there is more to sweep, it rests for so many times as long as a step took, and so many milliseconds at least. */
const SWEEP_REST = 5;
const MIN_SWEEP_REST_MS = 10;
/**
 * Pages in the log until they are copied into the file, which holds up the writer: SQLite's own 1000 take 25 ms, these
 * take 4. The price is a tenth of what can be written in a second.
 */
const CHECKPOINT_PAGES = 100;
const SCAN_ROWS = 200;
const MAX_DAMAGE_SHOWN = 20;
const MAX_LISTED = 1000;
/** Free space below this is nothing to speak of. */
const MUCH_FREE_BYTES = 16 * 1024 * 1024;
/** How long a writer waits for another process that is writing. Everything here runs on the event loop. */
const BUSY_TIMEOUT_MS = 250;

/** Gateways that start at once on a new file: SQLite does not wait for the one that turns WAL on, so this does. */
const OPEN_PATIENCE_MS = 2_000;
const OPEN_PAUSE_MS = 20;

/** `user_version` of the database; a file of a later one is left alone. */
const SCHEMA_VERSION = 3;
const SCHEMA = `
  CREATE TABLE IF NOT EXISTS sessions (
    key TEXT PRIMARY KEY, version INTEGER NOT NULL, expires_at INTEGER NOT NULL, used_at INTEGER NOT NULL,
    user_id TEXT, created_at INTEGER NOT NULL, payload BLOB NOT NULL
  ) WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS sessions_by_user ON sessions (user_id, created_at) WHERE user_id IS NOT NULL;
  CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires_at);
`;

/** What each version lacks: 1 had no `used_at`, 2 kept payloads as JSON in texts, without the octet of a format. */
const UPGRADES: Readonly<Record<number, string>> = {
  1: `
    ALTER TABLE sessions ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET used_at = created_at;
  `,
  2: "UPDATE sessions SET payload = CAST(char(1) || payload AS BLOB) WHERE typeof(payload) = 'text'",
};

/** JSON comes as a text (what sorts before the next format), because node:sqlite takes a microsecond more for octets. */
const PAYLOAD = "CASE WHEN payload < x'02' THEN CAST(payload AS TEXT) ELSE payload END";

type Row = [version: number, expiresAt: number, usedAt: number, payload: Uint8Array | string];
type KeyedRow = [...Row, key: string];

export interface SqliteStoreOptions {
  /** Default: JSON, not encrypted. */
  readonly codec?: SessionCodec;
  /** Milliseconds since the epoch. */
  readonly now?: () => number;
}

/**
 * Sessions in one file, for one machine: nothing else to install, and a restart keeps them. A look-up is synchronous,
 * some two microseconds, so it costs no promise.
 */
export class SqliteStore extends AttributesByCommit implements SessionStore {
  readonly kind = "sqlite";
  readonly #database: DatabaseSync;
  readonly #codec: SessionCodec;
  readonly #now: () => number;
  #sweeper: NodeJS.Timeout;
  readonly #statements: Record<
    | "find"
    | "create"
    | "commit"
    | "touch"
    | "destroy"
    | "byUser"
    | "scan"
    | "sweep"
    | "count"
    | "countLive"
    | "countExpired",
    StatementSync
  >;

  /**
   * @param path of the file; it is created when missing, its directory is not. `:memory:` for tests.
   * @throws Error when the file cannot be opened, is no database, or was written by a later version.
   */
  constructor(path: string, { codec = PLAIN_JSON, now = Date.now }: SqliteStoreOptions = {}) {
    super();
    this.#codec = codec;
    this.#now = now;
    const database = openDatabase(path);
    this.#database = database;
    this.#statements = prepare(database);
    this.#sweeper = this.#sweepIn(FIRST_SWEEP_MS);
  }

  find(key: SessionKey): FindResult {
    const row = this.#answer(() => this.#statements.find.get(key)) as Row | undefined;
    return row === undefined ? UNKNOWN : this.#judgeRow(key, row);
  }

  peek(key: SessionKey): Peek {
    const row = this.#answer(() => this.#statements.find.get(key)) as Row | undefined;
    if (row === undefined) return UNKNOWN;
    const found = this.#judgeRow(key, row, Number.NEGATIVE_INFINITY);
    if (found.outcome === "hit") return { ...judge(found.session, this.#now()), session: found.session };
    return found.outcome === "malformed" ? { ...found, unreadable: this.#codec.whyUnreadable(row[3]) } : found;
  }

  create(key: SessionKey, session: Session): "created" | "conflict" {
    const { version, expiresAt, usedAt, createdAt, user } = session;
    const values = [key, version, expiresAt, usedAt, user?.id ?? null, createdAt, this.#codec.encode(key, session)];
    return this.#changes(this.#statements.create, values) === 1 ? "created" : "conflict";
  }

  commit(key: SessionKey, session: Session): CommitOutcome {
    // A format that is not ours to overwrite may be inside an envelope, where no condition in SQL sees it.
    if (this.find(key).outcome !== "hit") return "unknown";
    const { version, user, retiresAt } = session;
    const written = [version, this.#codec.encode(key, session), retiresAt ?? null];
    const values = [...written, key, version - 1, this.#now(), user?.id ?? null];
    if (this.#changes(this.#statements.commit, values) === 1) return "committed";
    return this.find(key).outcome === "hit" ? "conflict" : "unknown";
  }

  touch(key: SessionKey, expiresAt: number): "touched" | "unknown" {
    if (this.find(key).outcome !== "hit") return "unknown";
    const now = this.#now();
    return this.#changes(this.#statements.touch, [expiresAt, now, key, now]) === 1 ? "touched" : "unknown";
  }

  destroy(key: SessionKey): "destroyed" | "unknown" {
    return this.#changes(this.#statements.destroy, [key]) === 1 ? "destroyed" : "unknown";
  }

  byUser(userId: string): readonly SessionEntry[] {
    const rows = this.#answer(() =>
      this.#statements.byUser.all(userId, this.#now(), MAX_LISTED),
    ) as unknown as KeyedRow[];
    const entries: SessionEntry[] = [];
    for (const row of rows) {
      const key = row[4];
      const found = this.#judgeRow(key, row);
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

  count(): number {
    const [count] = this.#answer(() => this.#statements.countLive.get(this.#now())) as unknown as [number];
    return count;
  }

  /** It expires by itself: this does at once what is done in the background anyway, and looks for damage. */
  async sweep({ fix, signal, onStep }: SweepOptions): Promise<SweepReport> {
    const findings = new SweepFindings();
    let looked = 0;
    const report = () => ({ looked, findings: findings.list(), complete: false });
    try {
      for (const row of this.#database.prepare(`PRAGMA quick_check(${MAX_DAMAGE_SHOWN})`).all()) {
        const [damage] = Object.values(row);
        if (damage !== "ok")
          findings.add("signs of damage (restore the file, or move it away, which ends its sessions)", {
            count: 1,
            example: String(damage),
          });
      }
      const overdue = this.#sweepable() - 2 * SWEEP_INTERVAL_MS;
      const [expired] = this.#answer(() => this.#statements.countExpired.get(overdue)) as unknown as [number];
      findings.add("expired rows", { count: expired });
      for (let swept = SWEEP_ROWS; fix && swept === SWEEP_ROWS; ) {
        if (signal?.aborted) return report();
        let restMs: number;
        [swept, restMs] = this.#sweepStep();
        looked += swept;
        findings.add("expired rows", { fixed: swept });
        onStep?.(looked);
        await rest(restMs);
      }
      for (let cursor: string | undefined = ""; cursor !== undefined; ) {
        if (signal?.aborted) return report();
        const page = this.scan({ cursor, limit: SCAN_ROWS });
        for (const key of page.keys) findings.addUnreadable(key, this.find(key));
        looked += page.keys.length;
        onStep?.(looked);
        cursor = page.cursor;
        await rest(0);
      }
      return { ...report(), complete: true };
    } catch (failure) {
      return { ...report(), failure };
    }
  }

  close(): void {
    clearTimeout(this.#sweeper);
    if (this.#database.isOpen) this.#database.close();
  }

  #judgeRow(
    key: SessionKey,
    [version, expiresAt, usedAt, payload]: Row | KeyedRow,
    now: number = this.#now(),
  ): FindResult {
    const session = this.#codec.decode(key, payload, version, expiresAt, usedAt);
    if (session === undefined) return MALFORMED;
    return session === "newer" ? NEWER : judge(session, now);
  }

  #changes(statement: StatementSync, values: (string | number | Buffer | null)[]): number {
    return Number(this.#answer(() => statement.run(...values)).changes);
  }

  #answer<T>(ask: () => T): T {
    try {
      return ask();
    } catch (error) {
      throw storeUnavailable(error);
    }
  }

  #sweepIn(ms: number): NodeJS.Timeout {
    return setTimeout(() => {
      let [swept, restMs] = [0, 0];
      // A failure here is met again, and reported, by the next request.
      try {
        [swept, restMs] = this.#sweepStep();
      } catch {}
      this.#sweeper = this.#sweepIn(swept === SWEEP_ROWS ? restMs : SWEEP_INTERVAL_MS);
    }, ms).unref();
  }

  /** @returns how many rows went, and how long to leave the file alone now, milliseconds. */
  #sweepStep(): [swept: number, restMs: number] {
    const startedMs = performance.now();
    const swept = this.#changes(this.#statements.sweep, [this.#sweepable(), SWEEP_ROWS]);
    return [swept, Math.max(MIN_SWEEP_REST_MS, SWEEP_REST * (performance.now() - startedMs))];
  }

  /** What expired before is not kept any longer. */
  #sweepable(): number {
    return this.#now() - EXPIRED_GRACE_MS;
  }
}

function openDatabase(path: string): DatabaseSync {
  const startedMs = performance.now();
  for (;;) {
    let database: DatabaseSync | undefined;
    try {
      database = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS });
      database.exec(
        `PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = ${CHECKPOINT_PAGES};`,
      );
      upgrade(database);
      return database;
    } catch (error) {
      database?.close();
      if (isBusy(error) && performance.now() - startedMs < OPEN_PATIENCE_MS) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, OPEN_PAUSE_MS);
        continue;
      }
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`the SQLite file ${path} cannot be opened: ${reason}`, { cause: error });
    }
  }
}

/** SQLITE_BUSY; the upper octets refine it. */
function isBusy(error: unknown): boolean {
  return error instanceof Error && "errcode" in error && (Number(error.errcode) & 0xff) === 5;
}

/** All of it or nothing, and once, whoever else opens the file at the moment. */
function upgrade(database: DatabaseSync): void {
  if (schemaVersionOf(database) === SCHEMA_VERSION) return;
  database.exec("BEGIN IMMEDIATE");
  const found = schemaVersionOf(database);
  if (found > SCHEMA_VERSION) throw new Error(`it was written by a later version of Coatcheck (schema ${found})`);
  if (found === 0) database.exec(SCHEMA);
  else for (let version = found; version < SCHEMA_VERSION; version++) database.exec(UPGRADES[version] ?? "");
  database.exec(`PRAGMA user_version = ${SCHEMA_VERSION}; COMMIT`);
}

function schemaVersionOf(database: DatabaseSync): number {
  return Number(database.prepare("PRAGMA user_version").get()?.user_version);
}

function prepare(database: DatabaseSync) {
  const statement = (sql: string): StatementSync => {
    const prepared = database.prepare(sql);
    prepared.setReturnArrays(true);
    return prepared;
  };
  return {
    find: statement(`SELECT version, expires_at, used_at, ${PAYLOAD} FROM sessions WHERE key = ?`),
    create: statement(
      "INSERT OR IGNORE INTO sessions (key, version, expires_at, used_at, user_id, created_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
    ),
    commit: statement(
      "UPDATE sessions SET version = ?, payload = ?, expires_at = min(expires_at, coalesce(?, expires_at)) WHERE key = ? AND version = ? AND expires_at > ? AND user_id IS ?",
    ),
    touch: statement("UPDATE sessions SET expires_at = ?, used_at = ? WHERE key = ? AND expires_at > ?"),
    destroy: statement("DELETE FROM sessions WHERE key = ?"),
    byUser: statement(
      `SELECT version, expires_at, used_at, ${PAYLOAD}, key FROM sessions WHERE user_id = ? AND expires_at > ? ORDER BY created_at DESC LIMIT ?`,
    ),
    scan: statement("SELECT key FROM sessions WHERE key >= ? AND key > ? AND key < ? ORDER BY key LIMIT ?"),
    sweep: statement("DELETE FROM sessions WHERE key IN (SELECT key FROM sessions WHERE expires_at < ? LIMIT ?)"),
    count: statement("SELECT count(*) FROM sessions"),
    countLive: statement("SELECT count(*) FROM sessions WHERE expires_at > ?"),
    countExpired: statement("SELECT count(*) FROM sessions WHERE expires_at < ?"),
  };
}
