import type { Handle, SessionClient } from "./session.ts";
import type { StoreInspection } from "./store.ts";

/**
 * What operators ask of sessions and of the store, as the admin API says it in JSON: the API, its implementation and the
 * command line share these shapes. No token, no whole key, and no value of a claim or an attribute is in any of them.
 */

/** A session as far as an operator may see it. Times are ISO 8601, UTC. */
export interface SessionSummary {
  readonly handle: Handle;
  readonly createdAt: string;
  readonly usedAt: string;
  readonly expiresAt: string;
  /** Set while it has been replaced by a login and ends soon. */
  readonly retiresAt: string | null;
  readonly client: SessionClient | null;
}

export interface SessionDetails extends SessionSummary {
  /** The names of the claims beside the id. */
  readonly user: { readonly id: string; readonly claims: readonly string[] } | null;
  /** `bytes`: of the value as JSON. */
  readonly attributes: readonly { readonly name: string; readonly bytes: number }[];
  readonly siblings: readonly Handle[];
  /** How often it was written. */
  readonly version: number;
}

export interface SessionList {
  readonly count: number;
  /** There may be more: a store lists so many and no more at a time. */
  readonly truncated: boolean;
  /** Newest first. */
  readonly sessions: readonly SessionSummary[];
}

export interface Revocation {
  readonly count: number;
  /** Siblings of a rotation included. */
  readonly ended: readonly Handle[];
  /** False when new sessions of the user began as fast as others were ended. */
  readonly complete: boolean;
}

/** Why nothing was done. */
export interface Refusal {
  readonly refused: "not-found" | "conflict";
  /** A sentence for the operator. */
  readonly reason: string;
}

/** Names a session: its handle, its key, or anything between. */
export interface SessionReference {
  readonly prefix: string;
  /** Whose it is: makes the search quick. */
  readonly userId?: string | undefined;
  /** Ends a search that nobody waits for any more. */
  readonly signal?: AbortSignal;
  /** Address of the operator, for the audit trail. */
  readonly by?: string;
}

/** Every operation throws `ProxyError` `session_store_unavailable` when the store gives no answer. */
export interface SessionAdministration {
  list(userId: string): Promise<SessionList>;
  show(reference: SessionReference): Promise<SessionDetails | Refusal>;
  end(reference: SessionReference): Promise<Revocation | Refusal>;
  /** @param except handle of one that stays. @param by address of the operator, for the audit trail. */
  endAll(userId: string, except?: string, by?: string): Promise<Revocation | Refusal>;
}

/** An open WebSocket. */
export interface WebSocketSummary {
  /** Of the session; `null`: it was opened without one. */
  readonly handle: Handle | null;
  readonly user: string | null;
  readonly route: string;
  /** Address of the client. */
  readonly client: string;
  /** When its handshake began, ISO 8601, UTC. */
  readonly since: string;
  /** Octets from the client, and from the application. */
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Of its handshake: finds the access line and the trace. */
  readonly traceId: string;
}

export interface WebSocketList {
  readonly count: number;
  /** There are more than are listed. */
  readonly truncated: boolean;
  /** Newest first. */
  readonly websockets: readonly WebSocketSummary[];
}

/** Which sessions a revocation was meant for: one, all of a user, or all of a user but one. */
export type RevocationScope = "one" | "all" | "others";

/** A handle, a key, or anything between, as text. */
export const REFERENCE_PATTERN = /^[A-Za-z0-9_-]{12,43}$/;

/** What a probe session went through. */
export interface ProbeStep {
  readonly step: string;
  readonly result: "ok" | "failed" | "skipped";
  /** Milliseconds. */
  readonly ms: number;
  /** What is wrong, and what to do about it; set when it failed. */
  readonly problem?: string;
  readonly advice?: string;
}

export interface StoreReport extends StoreInspection {
  /** Whether every step succeeded; warnings are no failure. */
  readonly ok: boolean;
  readonly store: string;
  readonly steps: readonly ProbeStep[];
}
