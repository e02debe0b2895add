import type { ErrorCode } from "./errors.ts";

/** The words for targets: how they are chosen, why they are left out, and what became of an attempt. */

export const BALANCES = ["round-robin", "least-requests", "session-hash"] as const;
export type Balance = (typeof BALANCES)[number];

/** Why a request went where it went. */
export const CHOICES = [
  /** There is one target. */
  "only",
  "round-robin",
  "least-requests",
  /** The target of the session. */
  "session-hash",
  /** The target of the session is out of service, or has just failed. */
  "session-fallback",
  /** No target is in service, so that all of them get requests. */
  "panic",
] as const;
export type Choice = (typeof CHOICES)[number];

/** Why a target was taken out of service. */
export const EJECTION_REASONS = ["failures", "server-errors", "health-check"] as const;
export type EjectionReason = (typeof EJECTION_REASONS)[number];

/** Why it is in service again: the time is over, or health checks succeed. */
export const RETURN_REASONS = ["time", "health-check"] as const;
export type ReturnReason = (typeof RETURN_REASONS)[number];

/** Why a request was sent again. */
export const RETRY_REASONS = [
  /** A connection from before was closed under it (RFC 9112 §9.3.1). */
  "idle-closed",
  /** There was no connection, so that nothing had been sent. */
  "connect",
  /** The connection ended before an answer began. */
  "closed",
  /** No answer began within `timeouts.firstByte`. */
  "timeout",
  /** The answer had a status of `retries.on`. */
  "status",
] as const;
export type RetryReason = (typeof RETRY_REASONS)[number];

/** Why a request that had to wait for a connection did not get one. */
export const QUEUE_REFUSALS = ["full", "timeout"] as const;
export type QueueRefusal = (typeof QUEUE_REFUSALS)[number];

/** An attempt that failed and was followed by another. Times are milliseconds after the exchange began. */
export interface UpstreamAttempt {
  /** `host:port` of the target. */
  readonly upstream: string;
  /** The address of it that was asked, where Coatcheck resolves the name. */
  readonly peer: string | undefined;
  readonly choice: Choice | undefined;
  readonly startedMs: number;
  readonly endedMs: number;
  /** Set when it was an answer that was not passed on. */
  readonly status: number | undefined;
  readonly error: ErrorCode | undefined;
  /** Why another one followed. */
  readonly retry: RetryReason;
  readonly spanId: string;
}

/** The application behind a route. Times are milliseconds. */
export interface UpstreamSettings {
  /** `url`: scheme, host and port. */
  readonly targets: readonly { readonly url: string; readonly weight: number }[];
  readonly balance: Balance;
  readonly connectTimeoutMs: number;
  /** From the request to the head of the response. */
  readonly firstByteTimeoutMs: number;
  /** Between two pieces of content, in either direction. */
  readonly idleTimeoutMs: number;
  /** To each address of a target: requests under way, and WebSockets if `limitsWebSockets`. */
  readonly maxConnections: number;
  readonly limitsWebSockets: boolean;
  readonly queue: { readonly size: number; readonly timeoutMs: number };
  /** Absent: no active checks. */
  readonly health: HealthSettings | undefined;
  /** Absent: no target is taken out because of what becomes of requests. */
  readonly ejection: EjectionSettings | undefined;
  readonly slowStartMs: number;
  /** Absent: nothing is sent again, but for what an idle connection did not take. */
  readonly retries: RetrySettings | undefined;
  /** Absent: each new connection asks the operating system. */
  readonly resolve: ResolveSettings | undefined;
}

export interface HealthSettings {
  readonly path: string;
  /** Value of `Host`; absent: that of the target. */
  readonly host: string | undefined;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly healthyAfter: number;
  readonly unhealthyAfter: number;
  /** Lowest and highest status of a good answer. */
  readonly status: readonly [lowest: number, highest: number];
  /** Whether `/readyz` is 503 while no target is in service. */
  readonly readiness: boolean;
}

export interface EjectionSettings {
  /** Failures in a row; 0: they do not count. */
  readonly failures: number;
  /** Answers from 500 on in a row; 0: they do not count. */
  readonly serverErrors: number;
  readonly forMs: number;
  readonly atMostMs: number;
}

export interface RetrySettings {
  /** Beyond the first. */
  readonly attempts: number;
  readonly on: readonly (RetryReason | number)[];
  /** Share of the requests of the last ten seconds. */
  readonly budget: number;
  /** What is allowed whatever the share comes to. */
  readonly minPerSecond: number;
}

export interface ResolveSettings {
  readonly intervalMs: number;
  /** `address:port`; none: the operating system is asked. */
  readonly servers: readonly string[];
}

/** An address of a target, as an operator sees it. */
export interface EndpointSummary {
  /** `address:port`, where Coatcheck resolves the name. */
  readonly peer: string | null;
  readonly state: "in-service" | "slow-start" | "ejected" | "unhealthy" | "draining";
  /** Share of its weight that it has while it returns slowly, 0 to 1. */
  readonly share: number;
  /** Requests under way, and WebSockets. */
  readonly active: number;
  /** In a row. */
  readonly failures: number;
  readonly serverErrors: number;
  /** Why it was taken out, and until when at least; ISO 8601, UTC. */
  readonly reason: EjectionReason | null;
  readonly until: string | null;
  readonly lastCheck: { readonly at: string; readonly ok: boolean; readonly detail: string } | null;
}

export interface TargetSummary {
  /** `host:port`. */
  readonly address: string;
  readonly scheme: "http" | "https";
  readonly weight: number;
  readonly endpoints: readonly EndpointSummary[];
}

export interface UpstreamSummary {
  /** That send requests there. */
  readonly routes: readonly string[];
  readonly balance: Balance | null;
  /** No target is in service, so that all get requests. */
  readonly panic: boolean;
  /** Requests that wait for a connection. */
  readonly queued: number;
  readonly targets: readonly TargetSummary[];
}

/** What metrics say of an upstream at each scrape. */
export interface UpstreamFigures {
  /** The first that has it. */
  readonly route: string;
  readonly panic: boolean;
  readonly queued: number;
  /** `address`: `host:port`. The others are numbers of addresses, all and in service, and of connections in use. */
  readonly targets: readonly {
    readonly address: string;
    readonly active: number;
    readonly inService: number;
    readonly endpoints: number;
  }[];
}

/** What happens to an address of a target. `address` is `host:port` of the target. */
export interface EndpointName {
  readonly address: string;
  readonly peer: string | undefined;
}

/** Told of what happens to targets; requests tell of themselves. */
export interface UpstreamObserver {
  /** @param forMs absent: until health checks succeed. @param left how many are still in service. */
  ejected(name: EndpointName, reason: EjectionReason, forMs: number | undefined, left: number, failure: string): void;
  returned(name: EndpointName, reason: ReturnReason): void;
  /** It should have been taken out, and is the last one. */
  spared(name: EndpointName, reason: EjectionReason): void;
  /** @param addresses `host:port` of all targets. */
  panic(isOn: boolean, addresses: readonly string[]): void;
  checked(name: EndpointName, ok: boolean): void;
  /** @param addresses all that the name has now. */
  resolved(address: string, addresses: readonly string[], added: readonly string[], removed: readonly string[]): void;
  resolutionFailed(address: string, failure: string, isFirst: boolean): void;
}
