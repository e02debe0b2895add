import type { Session, SessionLife } from "../core/session.ts";

export interface ExpiryPolicy {
  /** Sliding window after the last use, milliseconds. */
  readonly idleTimeoutMs: number;
  /** From creation, never extended, milliseconds. */
  readonly absoluteTimeoutMs: number;
}

/** Longest time between a use and its touch. (mod_auth_openidc: min(10 % of the timeout, 60 s).) */
const MAX_TOUCH_DEBOUNCE_MS = 60_000;

/** How long the id before a login goes on answering, so that requests already under way survive the rotation. */
export const ROTATION_OVERLAP_MS = 10_000;

/** The one place where expiry is computed: min(absolute, last use + idle). */
export function expiryAfterUse(createdAt: number, now: number, policy: ExpiryPolicy): number {
  return Math.min(createdAt + policy.absoluteTimeoutMs, now + policy.idleTimeoutMs);
}

/**
 * Why a session has ended by itself. `replaced`: by a login, which leaves the id before it a short overlap.
 * @param life `undefined`: the store did not tell, and neither does this.
 */
export function expiryReason(life: SessionLife | undefined, policy: ExpiryPolicy): ExpiryReason | undefined {
  if (life === undefined) return undefined;
  if (life.retiresAt !== undefined && life.retiresAt <= life.expiresAt) return "replaced";
  // What never lived is the mark that a store leaves of a session that was ended while it was being replaced.
  if (life.expiresAt <= life.createdAt) return "ended";
  return life.expiresAt >= life.createdAt + policy.absoluteTimeoutMs ? "absolute" : "idle";
}

export type ExpiryReason = "idle" | "absolute" | "replaced" | "ended";

/**
 * The new expiry when a use of the session is worth writing down.
 * @returns `undefined` while the stored expiry is less than the debounce interval away from it.
 */
export function dueTouch(session: Session, now: number, policy: ExpiryPolicy): number | undefined {
  if (session.retiresAt !== undefined) return undefined;
  const expiresAt = expiryAfterUse(session.createdAt, now, policy);
  const debounceMs = Math.min(policy.idleTimeoutMs / 10, MAX_TOUCH_DEBOUNCE_MS);
  return Math.abs(expiresAt - session.expiresAt) >= debounceMs ? expiresAt : undefined;
}
