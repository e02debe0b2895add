import type { SessionOutcome } from "./exchange.ts";
import type { Handle } from "./session.ts";

/** What the admin API and the command line say to each other about watches. */

/** Whom a watch is for: a user, by id, or a visitor, by the handle of a session. */
export type WatchTarget = { readonly user: string } | { readonly handle: Handle };

/** A watch and what it has gathered. Times are ISO 8601, UTC. */
export interface WatchSummary {
  readonly id: string;
  readonly user: string | null;
  readonly handle: Handle | null;
  readonly beganAt: string;
  /** When it ends by itself. */
  readonly endsAt: string;
  readonly requests: number;
  /** Of these, how many ended with an error, or with a status of 500 and above. */
  readonly failed: number;
  /** Of these, how many had which session. */
  readonly outcomes: Readonly<Partial<Record<SessionOutcome, number>>>;
  readonly lastRequestAt: string | null;
  /** The sessions that were met, the one named at the start included. */
  readonly handles: readonly Handle[];
}

export interface WatchList {
  readonly watches: readonly WatchSummary[];
  /** How many requests are kept for `GET /debug/exchanges?ring=watch`. */
  readonly kept: number;
  /** When they are forgotten; `null` while there is a watch, or nothing to forget. */
  readonly keptUntil: string | null;
}

/** How long a watch lasts when nobody says. */
export const DEFAULT_WATCH = "15m";
