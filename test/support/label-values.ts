/** The closed sets from which label values come, by label; the compiler holds them against the code. */
import { ERROR_CODES } from "../../src/core/errors.ts";
import {
  LOGOUT_REASONS,
  POLICY_DECISIONS,
  type SessionOutcome,
  type SessionSource,
  STRIP_CLASSES,
  type WriteBackCommand,
  type WriteBackResult,
} from "../../src/core/exchange.ts";
import { VERIFICATION_PROTOCOLS } from "../../src/core/forward-auth.ts";
import { HANDSHAKE_FAILURES } from "../../src/core/handshake-failure.ts";
import { METHOD_LABELS } from "../../src/core/labels.ts";
import { CONNECTION_REFUSALS, LIMIT_REASONS, LIMITER_ANSWERS } from "../../src/core/limits.ts";
import { FEED_STATES, type SessionStore, STORE_FAILURES, type StoreObserver } from "../../src/core/store.ts";
import { EJECTION_REASONS, QUEUE_REFUSALS, RETRY_REASONS, RETURN_REASONS } from "../../src/core/upstream.ts";
import { WEBSOCKET_CLOSE_REASONS } from "../../src/core/websocket.ts";
import { WORKER_ENDS, WORKER_STATES } from "../../src/core/workers.ts";
import type { Lifecycle } from "../../src/session/lifecycle.ts";
import { KNOWN, metricOf } from "./dashboards.ts";

/** All words of a type: one more or one less does not compile. */
const words = <T extends string>(all: Readonly<Record<T, true>>) => Object.keys(all);

const OUTCOMES = words<Exclude<SessionOutcome, "not-asked">>({
  absent: true,
  hit: true,
  unknown: true,
  expired: true,
  malformed: true,
  newer: true,
  mismatch: true,
  ambiguous: true,
  unavailable: true,
});

/** What the instrumented store counts: everything that can be asked. */
const OPERATIONS = words<
  Exclude<keyof SessionStore, "kind" | "watch" | "peek" | "sweep" | "close" | "count" | "openBuckets">
>({
  find: true,
  create: true,
  commit: true,
  touch: true,
  destroy: true,
  byUser: true,
  scan: true,
  check: true,
  inspect: true,
  get: true,
  getAll: true,
  size: true,
  set: true,
  setAll: true,
  remove: true,
  clear: true,
});

const STATUSES = Array.from({ length: 500 }, (_, i) => String(100 + i));

const BY_METRIC: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  coatcheck_requests_limited_total: { reason: LIMIT_REASONS },
  coatcheck_request_limiter_answers_total: { by: LIMITER_ANSWERS },
  coatcheck_connections_refused_total: { reason: CONNECTION_REFUSALS },
  coatcheck_session_logouts_total: { reason: LOGOUT_REASONS },
  coatcheck_session_store_failures_total: { reason: STORE_FAILURES },
  coatcheck_session_events_total: {
    event: words<Parameters<Lifecycle["onEvent"]>[0] | "revoked">({
      created: true,
      rotated: true,
      ended: true,
      expired: true,
      evicted: true,
      mismatch: true,
      revoked: true,
    }),
  },
  coatcheck_session_store_connections_total: {
    event: words<Parameters<StoreObserver["connection"]>[1]>({ ready: true, lost: true }),
  },
  coatcheck_write_back_total: {
    result: words<WriteBackResult>({
      saved: true,
      "not-allowed": true,
      malformed: true,
      "no-session": true,
      conflict: true,
      failed: true,
    }),
  },
  coatcheck_tls_handshake_failures_total: { reason: HANDSHAKE_FAILURES },
  coatcheck_websockets_closed_total: { reason: WEBSOCKET_CLOSE_REASONS },
  coatcheck_websocket_bytes_total: { direction: ["in", "out"] },
  coatcheck_workers: { state: WORKER_STATES },
  coatcheck_worker_restarts_total: { reason: WORKER_ENDS },
  coatcheck_upstream_ejections_total: { reason: EJECTION_REASONS },
  coatcheck_upstream_returns_total: { reason: RETURN_REASONS },
  coatcheck_upstream_retries_total: { reason: RETRY_REASONS },
  coatcheck_upstream_queue_refused_total: { reason: QUEUE_REFUSALS },
  coatcheck_upstream_endpoints: { state: ["in-service", "out"] },
  coatcheck_upstream_health_checks_total: { result: ["ok", "failed"] },
  coatcheck_upstream_resolutions_total: { result: ["changed", "failed"] },
  coatcheck_config_reloads_total: { result: ["applied", "refused"] },
};

const BY_LABEL: Readonly<Record<string, readonly string[]>> = {
  http_request_method: METHOD_LABELS,
  http_response_status_code: STATUSES,
  url_scheme: ["http", "https"],
  error_type: ERROR_CODES,
  outcome: OUTCOMES,
  source: words<SessionSource | "none">({ cache: true, coalesced: true, store: true, stale: true, none: true }),
  operation: OPERATIONS,
  state: FEED_STATES,
  connection: words<Parameters<StoreObserver["connection"]>[0]>({ data: true, tracking: true, messages: true }),
  class: STRIP_CLASSES,
  command: words<WriteBackCommand>({ start: true, set: true, end: true }),
  by: ["tracking", "messages"],
  protocol: VERIFICATION_PROTOCOLS,
  decision: POLICY_DECISIONS,
  secret: ["first", "older", "none"],
};

/** What the label of a series can be; `undefined`: anything, as routes and addresses are. The empty word is absence. */
export function valuesOf(series: string, label: string): readonly string[] | undefined {
  const metric = metricOf(series);
  if (label === "le") return [...(KNOWN[metric]?.buckets ?? []).map(String), "+Inf"];
  const values = BY_METRIC[metric]?.[label] ?? BY_LABEL[label];
  return values && [...values, ""];
}
