import { of, quantile, sumRate } from "./model.ts";

/** Everything but `expired` and `ended`. */
export const SURPRISES = 'reason=~"lost|signature|malformed|newer|mismatch|ambiguous"';
/** Not what proxies in front of us add by habit. */
export const SPOOFS = 'class=~"managed|alias|connection|internal"';

export const STORE_WORDS = { 0: ["DOWN", "red"], 1: ["up", "green"] } as const;

export function surpriseLogouts(): string {
  return sumRate("coatcheck_session_logouts_total", SURPRISES);
}

export function spoofAttempts(): string {
  return sumRate("coatcheck_headers_stripped_total", SPOOFS);
}

export function lookupsP99(): string {
  return quantile(0.99, "coatcheck_session_operation_duration_seconds", 'operation="find"');
}

/** All instances on a store say about the same. */
export function liveSessions(): string {
  return `max(${of("coatcheck_session_store_sessions")})`;
}

/** Of the sessions that were found. */
export function cacheHitRatio(): string {
  const total = "coatcheck_session_resolutions_total";
  return `${sumRate(total, 'outcome="hit", source=~"cache|coalesced"')} / ${sumRate(total, 'outcome="hit"')}`;
}
