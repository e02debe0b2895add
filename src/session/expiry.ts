import type { Session } from "../core/session.ts";

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
 * The new expiry when a use of the session is worth writing down.
 * @returns `undefined` while the stored expiry is less than the debounce interval away from it.
 */
export function dueTouch(session: Session, now: number, policy: ExpiryPolicy): number | undefined {
  if (session.retiresAt !== undefined) return undefined;
  const expiresAt = expiryAfterUse(session.createdAt, now, policy);
  const debounceMs = Math.min(policy.idleTimeoutMs / 10, MAX_TOUCH_DEBOUNCE_MS);
  return Math.abs(expiresAt - session.expiresAt) >= debounceMs ? expiresAt : undefined;
}
