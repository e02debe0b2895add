import { isSurprise, type LogoutReason, type PolicyDecision, type SessionOutcome } from "../core/exchange.ts";
import type { ExchangeRecord, WatchedRecord } from "./record.ts";

/** What a request must be like to be shown; all that is given must hold. */
export interface ExchangeFilter {
  readonly route?: string | undefined;
  readonly outcome?: SessionOutcome | undefined;
  /** `surprise`: every reason but an expiry and an end that somebody wanted. */
  readonly logout?: LogoutReason | "surprise" | undefined;
  readonly decision?: PolicyDecision | undefined;
  /** `503`, or `5xx` for a class. */
  readonly status?: string | undefined;
  readonly error?: string | undefined;
  readonly handle?: string | undefined;
  readonly traceId?: string | undefined;
  /** How the path begins. */
  readonly path?: string | undefined;
  /** Milliseconds. */
  readonly slowerThan?: number | undefined;
  /** Id of a watch. */
  readonly watch?: string | undefined;
}

export interface Selection<T> {
  /** How many were looked at. */
  readonly kept: number;
  /** How many of them are what was asked for. */
  readonly matched: number;
  /** The first ones of these. */
  readonly found: readonly T[];
}

/** Records that are looked at before others get their turn: a ring may hold a hundred thousand. */
const STEP = 1000;

/**
 * Picks records.
 * @param records newest first.
 * @param after span id of a record that is known, like all that come behind it: where it is met, the search is over.
 */
export async function select<T extends ExchangeRecord>(
  records: Iterable<T>,
  options: { readonly filter: ExchangeFilter; readonly limit: number; readonly after?: string | undefined },
): Promise<Selection<T>> {
  const { filter, limit, after } = options;
  const found: T[] = [];
  let [kept, matched] = [0, 0];
  for (const record of records) {
    if (record.spanId === after) break;
    if (++kept % STEP === 0) await new Promise((resolve) => setImmediate(resolve));
    if (!matches(record, filter)) continue;
    if (++matched <= limit) found.push(record);
  }
  return { kept, matched, found };
}

function matches(record: ExchangeRecord & Partial<WatchedRecord>, filter: ExchangeFilter): boolean {
  const { session, response } = record;
  return (
    is(filter.route, record.route) &&
    is(filter.outcome, session.outcome) &&
    (filter.logout === undefined || isLogout(session.logout, filter.logout)) &&
    is(filter.decision, session.decision) &&
    is(filter.handle, session.handle) &&
    is(filter.error, record.error?.type) &&
    is(filter.traceId, record.traceId) &&
    (filter.status === undefined || hasStatus(response.status, filter.status)) &&
    (filter.path === undefined || record.request.path.startsWith(filter.path)) &&
    (filter.slowerThan === undefined || (record.timings.ended ?? 0) > filter.slowerThan) &&
    (filter.watch === undefined || record.watch?.ids.includes(filter.watch) === true)
  );
}

function is<T>(wanted: T | undefined, value: T | undefined): boolean {
  return wanted === undefined || wanted === value;
}

function isLogout(reason: LogoutReason | undefined, wanted: LogoutReason | "surprise"): boolean {
  if (wanted !== "surprise") return reason === wanted;
  return reason !== undefined && isSurprise(reason);
}

/** @param wanted `503`, or `5xx`. */
function hasStatus(status: number, wanted: string): boolean {
  return wanted.endsWith("xx") ? Math.floor(status / 100) === Number(wanted[0]) : status === Number(wanted);
}
