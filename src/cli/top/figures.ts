import { isSurprise } from "../../core/exchange.ts";
import type { Scrape } from "../open-metrics.ts";
import { Change, type Counted, type Labels, type Quantiles } from "./change.ts";

/** What a gateway said of itself at one moment. */
export interface Reading {
  readonly scrape: Scrape;
  /** The last failed exchanges, newest first. */
  readonly errors: readonly Failure[];
  /** Milliseconds since the epoch. */
  readonly at: number;
}

export interface Failure {
  readonly time: string;
  readonly method: string;
  readonly path: string;
  readonly route: string;
  readonly status: number;
  /** Of RFC 9209, or ours. */
  readonly cause: string | undefined;
  readonly message: string | undefined;
  readonly traceId: string;
}

export interface Row extends Omit<Counted, "labels"> {
  readonly name: string;
}

export interface TimedRow extends Row {
  /** Failures a second. */
  readonly errorRate: number;
  readonly latency: Quantiles;
}

/** What `top` shows. Rates are a second, durations seconds, ratios 0 to 1; `undefined` is what nothing is known of. */
export interface Figures {
  readonly at: number;
  /** Over which the rates are, seconds. */
  readonly seconds: number;
  /** There is nothing to compare with yet: the rates are averages since the process began. */
  readonly sinceStart: boolean;
  readonly restarted: boolean;
  readonly version: string;
  readonly uptimeSeconds: number | undefined;
  readonly requests: { readonly rate: number; readonly inFlight: number; readonly errorRatio: number | undefined };
  readonly latency: Quantiles;
  /** What the gateway itself took of it. */
  readonly overhead: Quantiles;
  readonly routes: readonly TimedRow[];
  readonly upstreams: readonly TimedRow[];
  readonly causes: readonly Row[];
  readonly statuses: readonly Row[];
  readonly outcomes: readonly Row[];
  readonly sources: readonly Row[];
  readonly events: readonly Row[];
  readonly stripped: readonly Row[];
  readonly logouts: readonly Row[];
  /** Log-outs that nobody wanted. */
  readonly surprises: readonly Row[];
  /** Cookies that were recognised, of all that came. */
  readonly recognisedRatio: number | undefined;
  readonly store: {
    readonly kind: string;
    readonly up: boolean | undefined;
    readonly feed: string | undefined;
    readonly resting: number;
    readonly rate: number;
    readonly latency: Quantiles;
    readonly operations: readonly TimedRow[];
    readonly failures: readonly Row[];
    /** Live ones, about; asked once a minute. */
    readonly sessions: number | undefined;
  };
  readonly cache: { readonly entries: number; readonly bytes: number; readonly hitRatio: number | undefined };
  readonly process: {
    readonly loopLagSeconds: number | undefined;
    readonly heapBytes: number | undefined;
    readonly cpuRatio: number;
  };
  readonly errors: readonly Failure[];
}

const SERVER = "http_server_request_duration_seconds";
const CLIENT = "http_client_request_duration_seconds";
const OPERATION = "coatcheck_session_operation_duration_seconds";
const RESOLUTIONS = "coatcheck_session_resolutions_total";
const LOGOUTS = "coatcheck_session_logouts_total";

/** Whether this is a scrape of Coatcheck at all. */
export function isOfCoatcheck(scrape: Scrape): boolean {
  return scrape.has("coatcheck_build_info");
}

/** @param before the reading before this one, if there is one. */
export function figuresOf(now: Reading, before: Reading | undefined): Figures {
  const change = changeBetween(before, now);
  const { change: since, restarted } = change;
  const kind = since.labels("coatcheck_session_store_up")[0]?.store ?? "store";
  const served = since.counters(`${SERVER}_count`);
  const requestRate = total(served);
  const failed = served.filter(({ labels }) => isFailure(labels));
  const logouts = rows(since.by(LOGOUTS, label("reason")));
  return {
    at: now.at,
    seconds: since.seconds,
    sinceStart: before === undefined,
    restarted,
    version: since.labels("coatcheck_build_info")[0]?.version ?? "",
    uptimeSeconds: uptimeOf(now),
    requests: {
      rate: requestRate,
      inFlight: since.gauge("http_server_active_requests") ?? 0,
      errorRatio: ratio(total(failed), requestRate),
    },
    latency: since.quantiles(SERVER),
    overhead: since.quantiles("coatcheck_proxy_overhead_seconds"),
    routes: timed(since, SERVER, label("http_route")),
    upstreams: timed(since, CLIENT, upstreamOf),
    causes: rows(since.by(`${SERVER}_count`, label("error_type"))),
    statuses: rows(since.by(`${SERVER}_count`, label("http_response_status_code"))),
    outcomes: rows(since.by(RESOLUTIONS, label("outcome"))),
    sources: rows(since.by(RESOLUTIONS, label("source"))),
    events: rows(since.by("coatcheck_session_events_total", label("event"))),
    stripped: rows(since.by("coatcheck_headers_stripped_total", label("class"))),
    logouts,
    surprises: logouts.filter(({ name }) => isSurprise(name)),
    recognisedRatio: recognised(since),
    store: {
      kind,
      up: upOf(since),
      feed: feedOf(now),
      resting: since.gauge("coatcheck_session_store_resting") ?? 0,
      rate: total(since.counters(`${OPERATION}_count`)),
      latency: since.quantiles(OPERATION),
      operations: timed(since, OPERATION, label("operation"), operationErrors(since)),
      failures: rows(since.by("coatcheck_session_store_failures_total", label("reason"))),
      sessions: since.gauge("coatcheck_session_store_sessions"),
    },
    cache: {
      entries: since.gauge("coatcheck_session_cache_entries") ?? 0,
      bytes: since.gauge("coatcheck_session_cache_bytes") ?? 0,
      hitRatio: cacheHits(since),
    },
    process: {
      loopLagSeconds: since.gauge("nodejs_eventloop_lag_p99_seconds"),
      heapBytes: since.gauge("nodejs_heap_size_used_bytes"),
      cpuRatio: total(since.counters("process_cpu_seconds_total")),
    },
    errors: now.errors,
  };
}

/** After a restart nothing of the process before is compared with: its counters may have been smaller. */
function changeBetween(before: Reading | undefined, now: Reading): { change: Change; restarted: boolean } {
  const uptime = uptimeOf(now) ?? 0;
  if (before === undefined) return { change: new Change(undefined, now.scrape, uptime), restarted: false };
  const seconds = (now.at - before.at) / 1000;
  const restarted = startOf(before) !== startOf(now);
  return restarted
    ? { change: new Change(undefined, now.scrape, Math.min(seconds, uptime)), restarted }
    : { change: new Change(before.scrape, now.scrape, seconds), restarted };
}

function startOf({ scrape }: Reading): number | undefined {
  return scrape.get("process_start_time_seconds")?.[0]?.value;
}

function uptimeOf(reading: Reading): number | undefined {
  const start = startOf(reading);
  return start === undefined ? undefined : Math.max(reading.at / 1000 - start, 0);
}

function rows(groups: ReadonlyMap<string, Omit<Counted, "labels">>): Row[] {
  return [...groups].map(([name, { rate, total }]) => ({ name, rate, total }));
}

const label =
  (name: string) =>
  (labels: Labels): string | undefined =>
    labels[name];

/** A histogram in groups, each with its failures and quantiles. */
function timed(
  since: Change,
  metric: string,
  group: (labels: Labels) => string | undefined,
  errors?: ReadonlyMap<string, number>,
): TimedRow[] {
  return rows(since.by(`${metric}_count`, group)).map((row) => ({
    ...row,
    errorRate:
      errors === undefined
        ? total(since.counters(`${metric}_count`, (labels) => group(labels) === row.name && isFailure(labels)))
        : (errors.get(row.name) ?? 0),
    latency: since.quantiles(metric, (labels) => group(labels) === row.name),
  }));
}

/** A status of the server's, or a cause. 499, a client that went away, has none. */
function isFailure(labels: Labels): boolean {
  return labels.error_type !== undefined || Number(labels.http_response_status_code) >= 500;
}

function upstreamOf({ server_address, server_port }: Labels): string {
  return `${server_address ?? ""}:${server_port ?? ""}`;
}

function operationErrors(since: Change): ReadonlyMap<string, number> {
  const failed = (labels: Labels) => (labels.status === "error" ? labels.operation : undefined);
  const groups = since.by("coatcheck_session_operations_total", failed);
  return new Map([...groups].map(([operation, { rate }]) => [operation, rate]));
}

/** Of those who brought a cookie of ours. An outage says nothing of anybody's. */
function recognised(since: Change): number | undefined {
  const brought = since
    .counters(RESOLUTIONS)
    .filter(({ labels }) => labels.outcome !== "absent" && labels.outcome !== "unavailable");
  return ratio(total(brought.filter(({ labels }) => labels.outcome === "hit")), total(brought));
}

/** Of the look-ups that a near cache could have answered: with `none` there was nothing to look up. */
function cacheHits(since: Change): number | undefined {
  if (since.labels("coatcheck_session_feed").length === 0) return undefined;
  const asked = since.counters(RESOLUTIONS).filter(({ labels }) => labels.source !== "none");
  return ratio(total(asked.filter(({ labels }) => labels.source === "cache")), total(asked));
}

function upOf(since: Change): boolean | undefined {
  const up = since.gauge("coatcheck_session_store_up");
  return up === undefined ? undefined : up >= since.labels("coatcheck_session_store_up").length;
}

function feedOf({ scrape }: Reading): string | undefined {
  return scrape.get("coatcheck_session_feed")?.find(({ value }) => value === 1)?.labels.state;
}

function total(counted: readonly Counted[]): number {
  return counted.reduce((sum, { rate }) => sum + rate, 0);
}

function ratio(part: number, whole: number): number | undefined {
  return whole > 0 ? part / whole : undefined;
}
