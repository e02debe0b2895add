import type { Session, SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import { dueTouch, type ExpiryPolicy } from "./expiry.ts";

/** Touches that may wait or be under way at once; beyond these they are dropped, and a later request tries again. */
const MAX_PENDING = 1000;
/** Touches of this time go to the store together, and the touch of a session that many requests use goes once. */
const BATCH_MS = 20;

export interface ToucherOptions {
  readonly store: Pick<SessionStore, "touch">;
  readonly now: () => number;
  readonly onDropped: () => void;
}

/**
 * Writes down that a session was used: debounced, in batches, and off the way of the response. A touch that fails is no
 * reason to fail a request; the store's own metrics tell of it. A crash loses at most the sliding of one debounce interval.
 */
export class Toucher {
  readonly #options: ToucherOptions;
  /** Waiting or under way, with the expiry that is written. */
  readonly #pending = new Map<SessionKey, number>();
  #waiting: SessionKey[] = [];
  readonly #underWay = new Set<Promise<void>>();

  constructor(options: ToucherOptions) {
    this.#options = options;
  }

  /** @returns the new expiry when this use is going to be written down, `undefined` otherwise. */
  used(key: SessionKey, session: Session, expiry: ExpiryPolicy): number | undefined {
    const { now, onDropped } = this.#options;
    const expiresAt = dueTouch(session, now(), expiry);
    if (expiresAt === undefined || this.#pending.has(key)) return undefined;
    if (this.#pending.size >= MAX_PENDING) {
      onDropped();
      return undefined;
    }
    this.#pending.set(key, expiresAt);
    if (this.#waiting.push(key) === 1) setTimeout(() => this.flush(), BATCH_MS);
    return expiresAt;
  }

  /** Sends what waits. @returns done when the store has answered to all of it, and to what was under way before. */
  async flush(): Promise<void> {
    const batch = this.#waiting;
    this.#waiting = [];
    for (const key of batch) {
      const touching: Promise<void> = this.#touch(key).finally(() => this.#underWay.delete(touching));
      this.#underWay.add(touching);
    }
    await Promise.all(this.#underWay);
  }

  async #touch(key: SessionKey): Promise<void> {
    try {
      await this.#options.store.touch(key, this.#pending.get(key) as number);
    } catch {
      // Counted by the store's metrics; the next use tries again.
    } finally {
      this.#pending.delete(key);
    }
  }
}
