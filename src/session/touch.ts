import type { Session, SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import { dueTouch, type ExpiryPolicy } from "./expiry.ts";

/** Touches that may wait for the store at once; beyond these they are dropped, and the next request tries again. */
const MAX_PENDING = 1000;

export interface ToucherOptions {
  readonly store: SessionStore;
  readonly expiry: ExpiryPolicy;
  readonly now: () => number;
  readonly onDropped: () => void;
}

/**
 * Writes down that a session was used: debounced, and off the way of the response. A touch that fails is no reason to
 * fail a request; the store's own metrics tell of it.
 */
export class Toucher {
  readonly #options: ToucherOptions;
  #pending = 0;

  constructor(options: ToucherOptions) {
    this.#options = options;
  }

  used(key: SessionKey, session: Session): void {
    const { store, expiry, now, onDropped } = this.#options;
    const expiresAt = dueTouch(session, now(), expiry);
    if (expiresAt === undefined) return;
    if (this.#pending >= MAX_PENDING) {
      onDropped();
      return;
    }
    this.#pending++;
    const settled = () => {
      this.#pending--;
    };
    setImmediate(() => {
      Promise.try(() => store.touch(key, expiresAt)).then(settled, settled);
    });
  }
}
