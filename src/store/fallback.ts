import { storeUnavailable } from "../core/errors.ts";
import type { SharedBuckets } from "../core/limits.ts";
import {
  type AttributeChanges,
  EXPIRED_GRACE_MS,
  type FindResult,
  type Peek,
  type Session,
  type SessionKey,
} from "../core/session.ts";
import type {
  AttributeResult,
  ChangeListener,
  CommitOutcome,
  MaybePromise,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreInspection,
} from "../core/store.ts";
import { AttributesByCommit } from "./attributes.ts";

const MAX_LISTED = 1000;
/** Movers that may come in between before the end of a session gives up; each of them had read it before it was ended. */
const MAX_ATTEMPTS = 16;
/** How far the clocks of two gateways may be apart: a tombstone is expired for both. */
const MAX_CLOCK_SKEW_MS = 60_000;
/** From reading a session to moving it. Shorter than any tombstone lives, so that none is gone before a slow mover. */
const MAX_MOVE_MS = (EXPIRED_GRACE_MS - MAX_CLOCK_SKEW_MS) / 2;

const FALLBACK_CURSOR = "f";
const PRIMARY_CURSOR = "p";

/**
 * Two stores as one, while the second is replaced by the first: a session that only the fallback has is moved when it is
 * used. All writes go to the primary. An outage of the primary is an outage; one of the fallback is an outage for what
 * is not in the primary, and for ends, which have to reach both.
 *
 * A move creates in the primary, then destroys in the fallback, so that a gateway that dies in between leaves the session
 * in both, and the primary's counts. An end leaves a tombstone in the primary, an expired session, and nothing else ever
 * replaces what is there: a mover that had read the session before it was ended finds its place taken.
 *
 * Sessions move one way. A gateway that knows the fallback alone does not find those that have been moved.
 */
export class FallbackStore extends AttributesByCommit implements SessionStore {
  readonly kind: string;
  readonly watch?: (listener: ChangeListener) => void;
  readonly openBuckets?: () => Promise<SharedBuckets>;
  readonly #primary: SessionStore;
  readonly #fallback: SessionStore;
  readonly #now: () => number;

  /** @param now milliseconds since the epoch. */
  constructor(primary: SessionStore, fallback: SessionStore, now: () => number = Date.now) {
    super();
    this.kind = primary.kind;
    this.#primary = primary;
    this.#fallback = fallback;
    this.#now = now;
    if (primary.watch !== undefined) this.watch = (listener) => primary.watch?.(listener);
    const openBuckets = primary.openBuckets?.bind(primary);
    if (openBuckets !== undefined) this.openBuckets = openBuckets;
  }

  async find(key: SessionKey): Promise<FindResult> {
    const found = await this.#primary.find(key);
    return found.outcome === "unknown" ? this.#move(key) : found;
  }

  /** Without moving anything: `find` would move what only the fallback has. */
  async peek(key: SessionKey): Promise<Peek> {
    const found = await peek(this.#primary, key);
    if (found.outcome !== "unknown") return { ...found, place: "primary" };
    const older = await peek(this.#fallback, key);
    return older.outcome === "unknown" ? older : { ...older, place: "fallback" };
  }

  create(key: SessionKey, session: Session): MaybePromise<"created" | "conflict"> {
    return this.#primary.create(key, session);
  }

  async commit(key: SessionKey, session: Session): Promise<CommitOutcome> {
    // A copy that was left behind by a gateway that died would outlive a session that retires.
    if (session.retiresAt !== undefined && (await this.find(key)).outcome === "hit") await this.#fallback.destroy(key);
    return this.#moved(
      key,
      () => this.#primary.commit(key, session),
      (outcome) => outcome === "unknown",
    );
  }

  touch(key: SessionKey, expiresAt: number): Promise<"touched" | "unknown"> {
    return this.#moved(
      key,
      () => this.#primary.touch(key, expiresAt),
      (outcome) => outcome === "unknown",
    );
  }

  /**
   * The fallback comes first: while it is down nothing can be ended, and nothing looks ended. Once it has no copy, only
   * movers that are under way can put one into the primary, until the tombstone is there.
   */
  async destroy(key: SessionKey): Promise<"destroyed" | "unknown"> {
    let outcome = await this.#fallback.destroy(key);
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const found = await this.#primary.find(key);
      // It stands in the way of a mover just as well, and for long enough.
      if (found.outcome === "expired") return outcome;
      if (found.outcome !== "unknown" && (await this.#primary.destroy(key)) === "destroyed") outcome = "destroyed";
      if ((await this.#primary.create(key, this.#tombstone())) === "created") return outcome;
    }
    throw storeUnavailable("a session that is being moved could not be ended");
  }

  /** The fallback is asked first: a session that moves in between is then in both answers, and not in neither. */
  async byUser(userId: string): Promise<readonly SessionEntry[]> {
    const entries = new Map<SessionKey, SessionEntry>();
    for (const store of [this.#fallback, this.#primary]) {
      for (const entry of await store.byUser(userId)) entries.set(entry.key, entry);
    }
    return [...entries.values()].sort((a, b) => b.session.createdAt - a.session.createdAt).slice(0, MAX_LISTED);
  }

  /** The fallback comes first, for the same reason. The first letter of the cursor says in which store it goes on. */
  async scan({ cursor = FALLBACK_CURSOR, ...options }: ScanOptions): Promise<ScanPage> {
    const inner = { ...options, ...(cursor.length > 1 && { cursor: cursor.slice(1) }) };
    if (!cursor.startsWith(FALLBACK_CURSOR)) {
      const page = await this.#primary.scan(inner);
      return page.cursor === undefined ? page : { ...page, cursor: PRIMARY_CURSOR + page.cursor };
    }
    const { keys, cursor: next } = await this.#fallback.scan(inner);
    return { keys, cursor: next === undefined ? PRIMARY_CURSOR : FALLBACK_CURSOR + next };
  }

  async check(): Promise<StoreCheck> {
    const [primary, fallback] = await Promise.all([this.#primary.check(), this.#fallback.check()]);
    return {
      ok: primary.ok && fallback.ok,
      detail: `primary (${this.#primary.kind}): ${primary.detail}; fallback (${this.#fallback.kind}): ${fallback.detail}`,
    };
  }

  /** What both know about themselves, and which of them it is about. */
  async inspect(): Promise<StoreInspection> {
    const [primary, fallback] = await Promise.all([
      inspected("primary", this.#primary),
      inspected("fallback", this.#fallback),
    ]);
    return {
      facts: [...primary.facts, ...fallback.facts],
      warnings: [...primary.warnings, ...fallback.warnings],
    };
  }

  /** A session that is about to move may be in both for a moment. */
  async count(): Promise<number> {
    const [primary, fallback] = await Promise.all([this.#primary.count?.() ?? 0, this.#fallback.count?.() ?? 0]);
    return primary + fallback;
  }

  async close(): Promise<void> {
    await Promise.all([this.#primary.close(), this.#fallback.close()]);
  }

  override setAll(key: SessionKey, changes: AttributeChanges, base?: Session): Promise<AttributeResult> {
    return this.#moved(
      key,
      () => this.#primary.setAll(key, changes, base),
      ({ outcome }) => outcome === "unknown",
    );
  }

  override clear(key: SessionKey): Promise<AttributeResult> {
    return this.#moved(
      key,
      () => this.#primary.clear(key),
      ({ outcome }) => outcome === "unknown",
    );
  }

  /** Asks the primary, and once more if the session had not been moved yet. */
  async #moved<T>(key: SessionKey, ask: () => MaybePromise<T>, isUnknown: (answer: T) => boolean): Promise<T> {
    const answer = await ask();
    return isUnknown(answer) && (await this.find(key)).outcome === "hit" ? ask() : answer;
  }

  async #move(key: SessionKey): Promise<FindResult> {
    const askedAt = this.#now();
    const found = await this.#fallback.find(key);
    if (found.outcome !== "hit") {
      // Another gateway may have moved it since the primary was asked.
      const again = await this.#primary.find(key);
      return again.outcome === "unknown" ? found : again;
    }
    if (this.#now() - askedAt > MAX_MOVE_MS) throw storeUnavailable("the gateway stood still while it moved a session");
    if ((await this.#primary.create(key, found.session)) === "conflict") return this.#primary.find(key);
    await this.#fallback.destroy(key);
    return found;
  }

  #tombstone(): Session {
    const ended = this.#now() - MAX_CLOCK_SKEW_MS;
    return { user: null, data: {}, createdAt: ended, expiresAt: ended, usedAt: ended, version: 1 };
  }
}

function peek(store: SessionStore, key: SessionKey): MaybePromise<Peek> {
  return store.peek === undefined ? store.find(key) : store.peek(key);
}

async function inspected(role: string, store: SessionStore): Promise<StoreInspection> {
  const { facts = [], warnings = [] } = (await store.inspect?.()) ?? {};
  return {
    facts: facts.map(({ name, value }) => ({ name: `${role}: ${name}`, value })),
    warnings: warnings.map((warning) => `${role}: ${warning}`),
  };
}
