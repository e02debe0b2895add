import type { MaybePromise } from "./store.ts";

/** Which limit ended a request. A closed set, for labels. */
export const LIMIT_REASONS = [
  /** `limits.head.maxBytes`, in the request line (414). */
  "target-bytes",
  /** `limits.head.maxBytes` (431). */
  "head-bytes",
  /** `limits.head.maxFields` (431). */
  "head-fields",
  /** `limits.head.timeout` (408). */
  "head-timeout",
  /** `limits.body.maxBytes` (413). */
  "body-bytes",
  /** `limits.body.minRate`, or nothing at all for `upstream.timeouts.idle` (408). */
  "body-timeout",
  /** `limits.maxPipelined` (429, which nobody reads any more). */
  "pipelined",
  /** Frames of HTTP/2 that ask for work and carry no request (429, likewise). */
  "http2-frames",
  /** `limits.requests.perAddress` (429). */
  "address-rate",
  /** `limits.requests.perSession` (429). */
  "session-rate",
] as const;
export type LimitReason = (typeof LIMIT_REASONS)[number];

/** Why a connection was not taken. */
export const CONNECTION_REFUSALS = ["total", "address"] as const;
export type ConnectionRefusal = (typeof CONNECTION_REFUSALS)[number];

/** A token bucket: each request takes a token; without one it is refused. */
export interface BucketRule {
  readonly reason: "address-rate" | "session-rate";
  /** Names its buckets in the store: `address`, or `session ID` of a route that has its own. */
  readonly name: string;
  /** Tokens that come back in a second. */
  readonly rate: number;
  /** Tokens that a full bucket holds, a whole number. */
  readonly burst: number;
}

/** What a route allows. */
export interface RouteLimits {
  /** Octets of a request's content; `Infinity`: no limit. */
  readonly maxBodyBytes: number;
  /** Octets a second that a request's content has to arrive with; 0: no limit. */
  readonly minBodyRate: number;
  /** What that is an average over, milliseconds. */
  readonly bodyWindowMs: number;
  readonly perAddress: BucketRule | undefined;
  readonly perSession: BucketRule | undefined;
}

export const NO_ROUTE_LIMITS: RouteLimits = {
  maxBodyBytes: Number.POSITIVE_INFINITY,
  minBodyRate: 0,
  bodyWindowMs: 10_000,
  perAddress: undefined,
  perSession: undefined,
};

/** Buckets that several gateways share. */
export interface SharedBuckets {
  /**
   * Takes a token.
   * @param subject whose bucket: an address or a session key.
   * @returns milliseconds until there is a token; 0: one was taken. Rejects when the store gives no answer.
   */
  take(rule: BucketRule, subject: string): MaybePromise<number>;
}

/** Who answered. `memory`: without being asked, the bucket was known to be empty still. `fallback`: nobody shared, in an outage. */
export const LIMITER_ANSWERS = ["shared", "memory", "fallback", "local"] as const;
export type LimiterAnswer = (typeof LIMITER_ANSWERS)[number];
