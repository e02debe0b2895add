import type { LogoutReason } from "../core/exchange.ts";
import type { SessionKey } from "../core/session.ts";
import type { PresentedCookie } from "./cookie.ts";
import type { Resolution } from "./resolver.ts";

/** Ends that are remembered, to tell them from sessions that the store has lost. */
const ENDS_REMEMBERED = 50_000;
/** Visitors who were counted lately: a page is many requests, and one visitor who was logged out. */
const COUNTED_REMEMBERED = 10_000;
const COUNTED_AGAIN_AFTER_MS = 600_000;

export interface LogoutsOptions {
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  /** Told once for each cookie in ten minutes. */
  readonly onLoggedOut: (reason: LogoutReason) => void;
}

/**
 * Why somebody who brings a session cookie of ours is not recognised. "Unknown" is not enough for an operator: a session
 * that was ended is how it should be, and one that the store has lost is not.
 */
export class Logouts {
  readonly #options: LogoutsOptions;
  readonly #ended = new Map<SessionKey, true>();
  readonly #counted = new Map<SessionKey, number>();

  constructor(options: LogoutsOptions) {
    this.#options = options;
  }

  /** The session was ended on purpose, here or by another instance. */
  ended(key: SessionKey): void {
    remember(this.#ended, key, true, ENDS_REMEMBERED);
  }

  /** @returns `undefined` for somebody who was recognised, brought no cookie of ours, or met an outage. */
  notice(cookie: PresentedCookie, resolution: Resolution): LogoutReason | undefined {
    const key = keyMeant(cookie, resolution);
    if (key === undefined) return undefined;
    const reason = this.#reasonOf(cookie, resolution.outcome, key);
    if (reason !== undefined && this.#isNew(key)) this.#options.onLoggedOut(reason);
    return reason;
  }

  /** What `notice` would answer, for an operator who asks: nobody is counted. */
  reasonFor(cookie: PresentedCookie, resolution: Resolution): LogoutReason | undefined {
    const key = keyMeant(cookie, resolution);
    return key === undefined ? undefined : this.#reasonOf(cookie, resolution.outcome, key);
  }

  #reasonOf(cookie: PresentedCookie, outcome: Resolution["outcome"], key: SessionKey): LogoutReason | undefined {
    switch (outcome) {
      case "unknown":
        return this.#ended.has(key) ? "ended" : "lost";
      case "malformed":
        return cookie.verdict === "bad-signature" ? "signature" : "malformed";
      // A store that has to keep the place of a session that was ended says that it has expired.
      case "expired":
        return this.#ended.has(key) ? "ended" : "expired";
      case "newer":
      case "mismatch":
      case "ambiguous":
        return outcome;
      default:
        return undefined;
    }
  }

  #isNew(key: SessionKey): boolean {
    const now = this.#options.now();
    const before = this.#counted.get(key);
    if (before !== undefined && Math.abs(now - before) < COUNTED_AGAIN_AFTER_MS) return false;
    remember(this.#counted, key, now, COUNTED_REMEMBERED);
    return true;
  }
}

function keyMeant(cookie: PresentedCookie, { key, keys }: Resolution): SessionKey | undefined {
  return key ?? keys?.[0] ?? cookie.unverified;
}

/** The oldest goes first. */
function remember<T>(map: Map<SessionKey, T>, key: SessionKey, value: T, most: number): void {
  map.delete(key);
  if (map.size >= most) map.delete(map.keys().next().value as SessionKey);
  map.set(key, value);
}
