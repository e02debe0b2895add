import {
  EXPIRED_GRACE_MS,
  endOf,
  type FindResult,
  judge,
  type Peek,
  type Session,
  type SessionKey,
  UNKNOWN,
} from "../core/session.ts";
import type { CommitOutcome, ScanOptions, ScanPage, SessionEntry, SessionStore, StoreCheck } from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";

const SWEEP_INTERVAL_MS = 30_000;
const MAX_LISTED = 1000;

/** Sessions in this process and nowhere else: for tests, demonstrations and embedding. A restart forgets them. */
export class MemoryStore extends AttributesByCommit implements SessionStore {
  readonly kind = "memory";
  readonly #sessions = new Map<SessionKey, Session>();
  readonly #now: () => number;
  readonly #sweeper: NodeJS.Timeout;

  constructor(now: () => number = Date.now) {
    super();
    this.#now = now;
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_INTERVAL_MS).unref();
  }

  find(key: SessionKey): FindResult {
    const session = this.#sessions.get(key);
    return session === undefined ? UNKNOWN : judge(session, this.#now());
  }

  count(): number {
    const now = this.#now();
    let count = 0;
    for (const session of this.#sessions.values()) if (now < endOf(session)) count++;
    return count;
  }

  peek(key: SessionKey): Peek {
    const session = this.#sessions.get(key);
    return session === undefined ? UNKNOWN : { ...judge(session, this.#now()), session };
  }

  create(key: SessionKey, session: Session): "created" | "conflict" {
    if (this.#sessions.has(key)) return "conflict";
    this.#sessions.set(key, structuredClone(session));
    return "created";
  }

  commit(key: SessionKey, session: Session): CommitOutcome {
    const found = this.find(key);
    if (found.outcome !== "hit") return "unknown";
    const { version, user } = found.session;
    if (version !== session.version - 1 || user?.id !== session.user?.id) return "conflict";
    const { expiresAt, usedAt } = found.session;
    this.#sessions.set(key, structuredClone({ ...session, expiresAt, usedAt }));
    return "committed";
  }

  touch(key: SessionKey, expiresAt: number): "touched" | "unknown" {
    const found = this.find(key);
    if (found.outcome !== "hit") return "unknown";
    this.#sessions.set(key, { ...found.session, expiresAt, usedAt: this.#now() });
    return "touched";
  }

  destroy(key: SessionKey): "destroyed" | "unknown" {
    return this.#sessions.delete(key) ? "destroyed" : "unknown";
  }

  byUser(userId: string): readonly SessionEntry[] {
    const entries: SessionEntry[] = [];
    for (const key of this.#sessions.keys()) {
      const found = this.find(key);
      if (found.outcome === "hit" && found.session.user?.id === userId) entries.push({ key, session: found.session });
    }
    return entries.sort((a, b) => b.session.createdAt - a.session.createdAt).slice(0, MAX_LISTED);
  }

  /** The cursor is the last key that was looked at: in the order of the text, so that it holds while keys come and go. */
  scan({ prefix = "", cursor = "", limit }: ScanOptions): ScanPage {
    const after = [...this.#sessions.keys()].filter((key) => key > cursor && key.startsWith(prefix)).sort();
    const keys = after.slice(0, limit);
    const last = keys.at(-1);
    return after.length > limit && last !== undefined ? { keys, cursor: last } : { keys };
  }

  check(): StoreCheck {
    return { ok: true, detail: `${this.#sessions.size} sessions in memory` };
  }

  close(): void {
    clearInterval(this.#sweeper);
  }

  #sweep(): void {
    const before = this.#now() - EXPIRED_GRACE_MS;
    for (const [key, session] of this.#sessions) if (endOf(session) < before) this.#sessions.delete(key);
  }
}
