/**
 * Every metric, with what it means: the registry, docs/metrics.md, dashboards and tests are made from or held against
 * this list. A renamed metric is a breaking change.
 */

/** OpenTelemetry's advice for HTTP durations (semantic conventions 1.44), seconds. */
const HTTP_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10];
/** A look-up takes microseconds in SQLite and a fraction of a millisecond in Redis, seconds. */
const FINE_BUCKETS = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1];

/** OpenTelemetry's advice for database operations, and two finer ones: Redis answers in less than a millisecond. */
const DB_BUCKETS = [0.00025, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10];

/**
 * What several processes that answer as one say of a metric: their sum, the value of the one that has most or least, or
 * what the primary knows and the workers do not.
 */
export type AcrossWorkers = "sum" | "max" | "min" | "primary";

export interface MetricDefinition {
  readonly type: "counter" | "gauge" | "histogram";
  readonly help: string;
  readonly labels: readonly string[];
  readonly buckets?: readonly number[];
  /** Absent of a counter or a histogram: the sum. */
  readonly acrossWorkers?: AcrossWorkers;
  /** What to look at when it moves. */
  readonly advice: string;
}

/** A gauge has to say what it is across workers: the sum of two that are 1 while all is well would be 2. */
type CompleteDefinition = MetricDefinition &
  ({ readonly type: "counter" | "histogram" } | { readonly type: "gauge"; readonly acrossWorkers: AcrossWorkers });

export const METRICS = {
  http_server_request_duration_seconds: {
    type: "histogram",
    help: "Duration of requests to the gateway, from the request head to the end of the response.",
    labels: ["http_request_method", "http_response_status_code", "http_route", "error_type", "url_scheme"],
    buckets: HTTP_BUCKETS,
    advice:
      "OpenTelemetry's `http.server.request.duration`. Compare with `http_client_request_duration_seconds`: if both rose it is the application, if only this one it is the gateway, the store or slow clients. `error_type` names the cause; 499 is a client that went away.",
  },
  http_server_active_requests: {
    type: "gauge",
    help: "Requests in flight.",
    labels: ["http_request_method", "url_scheme"],
    acrossWorkers: "sum",
    advice: "Rises when the upstream slows down or clients read slowly; never falls to zero when a request hangs.",
  },
  http_client_request_duration_seconds: {
    type: "histogram",
    help: "Duration of attempts upstream, from dispatch to the end of the response.",
    labels: ["http_request_method", "http_response_status_code", "server_address", "server_port", "error_type"],
    buckets: HTTP_BUCKETS,
    advice:
      "OpenTelemetry's `http.client.request.duration`, one per attempt. `error_type` tells a refused connection from a silent application.",
  },
  coatcheck_proxy_overhead_seconds: {
    type: "histogram",
    help: "Time that the gateway itself took: server duration without the time upstream.",
    labels: [],
    buckets: FINE_BUCKETS,
    advice:
      "The number that an operator asks for first. It holds the session look-up: when it rises, look at `coatcheck_session_operation_duration_seconds` and at the event loop lag.",
  },
  coatcheck_session_resolutions_total: {
    type: "counter",
    help: "Session look-ups by what was found and where.",
    labels: ["outcome", "source"],
    advice:
      "`unknown` rising: the store lost sessions (eviction, flush, failover) or somebody guesses. `expired`: people come back too late; see `idleTimeout`. `malformed`: bad signatures, a lost secret, or corrupt values. `ambiguous`: two live cookies of one name, one of them perhaps planted by a neighbouring host. `unavailable`: the store is down; nobody has been logged out. `newer`: written by a later version, as during a rollout. `mismatch`: used by another client than it was begun by (`session.bind`). `source`: `cache`, `coalesced` (another request had asked already), `store`, `stale` (from before an outage), `none` (nobody had to be asked, or nobody answered).",
  },
  coatcheck_session_logouts_total: {
    type: "counter",
    help: "Visitors who brought a session cookie of ours and were not recognised, by reason; each cookie once in ten minutes.",
    labels: ["reason"],
    advice:
      "Why people are being logged out. `expired` and `ended` (a logout, an operator, `maxPerUser`) are how it should be. The others are surprises: `lost`: the store does not know the session and nobody ended it, so it was evicted or flushed, lost in a failover, or ended before this instance started. `signature`: no configured secret verifies the cookie; after a rotation, put the old secret back behind the new one. `malformed`: what is stored cannot be read, perhaps for want of an encryption key. `newer`: a rollout that goes back. `mismatch`: `session.bind`. `ambiguous`: two live cookies of one name. The recorder has the requests: `/debug/exchanges`.",
  },
  coatcheck_cookie_verifications_total: {
    type: "counter",
    help: "Session cookies by the secret that verified them: the first, which signs, an older one, or none.",
    labels: ["secret"],
    advice:
      "After a rotation `older` falls as cookies are renewed; once it stays at 0 for `absoluteTimeout`, the old secret can go. `none` rising: a secret was removed too early, or somebody makes up cookies.",
  },
  coatcheck_session_operations_total: {
    type: "counter",
    help: "Operations on the session store by answer.",
    labels: ["operation", "status", "store"],
    advice: '`status="error"` is an outage. `conflict` on `setAll` is two requests that changed the same attribute.',
  },
  coatcheck_session_operation_duration_seconds: {
    type: "histogram",
    help: "Duration of operations on the session store.",
    labels: ["operation", "store"],
    buckets: FINE_BUCKETS,
    advice: "Above a millisecond at the median, Redis is far away or busy: look at its SLOWLOG and at the network.",
  },
  db_client_operation_duration_seconds: {
    type: "histogram",
    help: "Duration of commands to the server of the session store, one for each attempt.",
    labels: ["db_system_name", "db_operation_name", "error_type"],
    buckets: DB_BUCKETS,
    advice:
      "OpenTelemetry's `db.client.operation.duration`. An answer from the near cache sends no command, and a login sends several (`EVALSHA`). `error_type` is a reason as in `coatcheck_session_store_failures_total`, absent where there was an answer.",
  },
  coatcheck_session_events_total: {
    type: "counter",
    help: "Changes in the life of sessions.",
    labels: ["event"],
    advice: "Many `rotated` for few `created`: people log in again and again, so something logs them out.",
  },
  coatcheck_session_touches_dropped_total: {
    type: "counter",
    help: "Touches that were not written because too many were waiting.",
    labels: [],
    advice: "The store is slower than the traffic; sessions slide late and may expire early.",
  },
  coatcheck_session_store_up: {
    type: "gauge",
    help: "Whether the session store answered last time (1) or not (0).",
    labels: ["store"],
    acrossWorkers: "min",
    advice: "0: requests that need a session get 503, cookies are left alone, and everything goes on when it is back.",
  },
  coatcheck_session_store_sessions: {
    type: "gauge",
    help: "About how many live sessions the store holds; asked once a minute.",
    labels: ["store"],
    acrossWorkers: "max",
    advice:
      "All gateways on one store say the same, so take the maximum and not the sum. In Redis it is an estimate beyond a thousand keys. A sudden fall without log-outs: sessions were lost.",
  },
  coatcheck_session_store_failures_total: {
    type: "counter",
    help: "Attempts that the session store gave no answer to, by reason.",
    labels: ["reason"],
    advice:
      "`timeout`: it hangs or is overloaded. `closed`: it is down or cannot be reached. `loading`, `readonly`, `master-down`, `cluster-down`: a restart or a failover; it passes. `moved` in numbers: a cluster is addressed as a single server. `not-authorized`: the user, the password or the rights. `out-of-memory`: nobody can log in. `breaker`: requests that were spared the wait.",
  },
  coatcheck_session_store_connections_total: {
    type: "counter",
    help: "Connections to the session store that became ready or were lost.",
    labels: ["connection", "event"],
    advice: "`lost` going up steadily: something between here and the store cuts connections.",
  },
  coatcheck_session_store_resting: {
    type: "gauge",
    help: "Servers of the session store that are not asked, because they have not answered lately.",
    labels: [],
    acrossWorkers: "max",
    advice: "Above 0: an outage, in a cluster perhaps of one node. It is asked in the background until it answers.",
  },
  coatcheck_session_cache_entries: {
    type: "gauge",
    help: "Sessions in the near cache.",
    labels: [],
    acrossWorkers: "sum",
    advice: "Much fewer than active users: see evictions, and `cache.maxAge`.",
  },
  coatcheck_session_cache_bytes: {
    type: "gauge",
    help: "About how much memory they take, bytes.",
    labels: [],
    acrossWorkers: "sum",
    advice: "Near `cache.maxBytes` with evictions: raise it, or store less in a session.",
  },
  coatcheck_session_cache_evictions_total: {
    type: "counter",
    help: "Sessions that left the near cache for want of room.",
    labels: [],
    advice: "Each is one more look-up later on.",
  },
  coatcheck_session_cache_invalidations_total: {
    type: "counter",
    help: "Sessions that left the near cache because they were changed.",
    labels: [],
    advice:
      "About one a minute for each active session is the touch; many more: something writes the sessions all the time.",
  },
  coatcheck_session_feed: {
    type: "gauge",
    help: "How the session store tells of changes: 1 for the current state, 0 for the others.",
    labels: ["state"],
    acrossWorkers: "max",
    advice:
      "`tracking` is the normal state. `messages`: the server refuses CLIENT TRACKING. `lost`: the near cache is bypassed. `refused`: it is off.",
  },
  coatcheck_session_change_delay_seconds: {
    type: "histogram",
    help: "How long a change of our own took to come back from the store, measured once a second.",
    labels: ["by"],
    buckets: FINE_BUCKETS,
    advice:
      "How old a cached session can be, in the normal state. Rises with the load of the store and of this process.",
  },
  coatcheck_session_revocation_delay_seconds: {
    type: "histogram",
    help: "From the end of a session, on whichever instance, to the moment when this one knew; by both clocks.",
    labels: [],
    buckets: FINE_BUCKETS,
    advice: "Should stay below 50 ms. Clocks that differ between machines show here.",
  },
  coatcheck_upstream_up: {
    type: "gauge",
    help: "Whether the target is in service and its last request was answered (1) or not (0): refused, cut, or too slow.",
    labels: ["server_address", "server_port"],
    acrossWorkers: "min",
    advice:
      "0: visitors get 502 or 504. `error_type` of `http_client_request_duration_seconds` says how it fails. Absent until the first request.",
  },
  coatcheck_upstream_ejections_total: {
    type: "counter",
    help: "Targets that were taken out of service, by reason.",
    labels: ["server_address", "server_port", "reason"],
    advice:
      "`failures`: requests in a row got no answer; `server-errors`: a status from 500 on (`ejection`). `health-check`: the checks fail. The same target again and again: it flaps; the line `upstream.ejected` says what was wrong the last time.",
  },
  coatcheck_upstream_returns_total: {
    type: "counter",
    help: "Targets that are in service again: after the time that an ejection takes, or because checks succeed.",
    labels: ["server_address", "server_port", "reason"],
    advice: "Fewer than ejections: something is still out; `GET /upstreams` says which. As many, and many: it flaps.",
  },
  coatcheck_upstream_ejections_spared_total: {
    type: "counter",
    help: "Targets that should have been taken out, and were the last in service.",
    labels: ["server_address", "server_port"],
    advice: "All targets are in trouble: look at what they share, such as their database.",
  },
  coatcheck_upstream_panic: {
    type: "gauge",
    help: "Whether no target of an upstream is in service, so that all of them get requests (1), or not (0); by the first route that has it.",
    labels: ["http_route"],
    acrossWorkers: "max",
    advice: "1: every health check fails. If visitors are served all the same, it is the check that is wrong.",
  },
  coatcheck_upstream_endpoints: {
    type: "gauge",
    help: "Addresses of a target by whether they are in service; one, unless Coatcheck resolves its name.",
    labels: ["server_address", "server_port", "state"],
    acrossWorkers: "max",
    advice:
      "`out` above 0: see `coatcheck_upstream_ejections_total`. Both 0: the name has no address; see `upstream.resolve-failed`.",
  },
  coatcheck_upstream_connections_in_use: {
    type: "gauge",
    help: "Requests under way and WebSockets, by target.",
    labels: ["server_address", "server_port"],
    acrossWorkers: "sum",
    advice:
      "Near `maxConnections`: requests are about to wait. Uneven: one target is slower than the others, or has more weight.",
  },
  coatcheck_upstream_health_checks_total: {
    type: "counter",
    help: "Active health checks by result.",
    labels: ["server_address", "server_port", "result"],
    advice: "`failed`: `GET /upstreams` has the last answer of each target.",
  },
  coatcheck_upstream_resolutions_total: {
    type: "counter",
    help: "Look-ups of names that gave other addresses than before, or none.",
    labels: ["server_address", "server_port", "result"],
    advice:
      "`failed`: what was known before goes on. `changed` all the time: the name has more addresses than one answer tells.",
  },
  coatcheck_upstream_retries_total: {
    type: "counter",
    help: "Requests that were sent again, by the target that failed and why.",
    labels: ["server_address", "server_port", "reason"],
    advice:
      "`idle-closed`: the target closed an idle connection at that very moment; a few are normal, many mean that its keep-alive timeout is shorter than ours (4 seconds). `connect`, `closed`, `timeout`, `status`: visitors were spared a failure; see `coatcheck_upstream_ejections_total`.",
  },
  coatcheck_upstream_retries_refused_total: {
    type: "counter",
    help: "Requests that were not sent again, because the budget of retries was used up.",
    labels: ["server_address", "server_port"],
    advice:
      "So much fails that sending it again would make it worse. Look at the targets; raise `retries.budget` only if they can bear it.",
  },
  coatcheck_upstream_queue_length: {
    type: "gauge",
    help: "Requests that wait for a connection, by the first route that has the upstream.",
    labels: ["http_route"],
    acrossWorkers: "sum",
    advice: "Above 0: `maxConnections` is reached. The application is slow, or may have more at a time.",
  },
  coatcheck_upstream_queue_wait_seconds: {
    type: "histogram",
    help: "How long requests waited for a connection, of those that had to.",
    labels: [],
    buckets: HTTP_BUCKETS,
    advice: "It is part of the duration of requests, and of nothing else. See `coatcheck_upstream_queue_length`.",
  },
  coatcheck_upstream_queue_refused_total: {
    type: "counter",
    help: "Requests that got 503 because no connection became free: too many waited, or one for too long.",
    labels: ["reason"],
    advice: "`full`: more than `queue.size`. `timeout`: longer than `queue.timeout`. The application does not keep up.",
  },
  coatcheck_requests_limited_total: {
    type: "counter",
    help: "Requests that were refused because they passed a limit, by limit.",
    labels: ["reason"],
    advice:
      "[limits.md](limits.md) has the limits. `address-rate`, `session-rate`: somebody asks too often, or the limit is too low; the recorder has who. `head-timeout`, `body-timeout`: clients that are slow, or pretend to be. `head-bytes`: mostly cookies that have piled up. `body-bytes`: an upload beyond `limits.body.maxBytes`. `http2-frames`, `pipelined`: attacks, or broken clients.",
  },
  coatcheck_request_limiter_answers_total: {
    type: "counter",
    help: "Checks of `limits.requests`, by who answered.",
    labels: ["by"],
    advice:
      "`shared`: Redis, for all gateways. `memory`: the bucket was known to be empty still, and Redis was spared. `fallback`: Redis gave no answer within 50 ms, so this process counts for itself: each address may then send as much to each gateway. `local`: the store is not shared.",
  },
  coatcheck_request_limiter_fallback: {
    type: "gauge",
    help: "Whether this process counts requests for itself because Redis gives no answer (1) or not (0).",
    labels: [],
    acrossWorkers: "max",
    advice: "1: as `coatcheck_session_store_up`; requests are not held up, and limits hold for each gateway by itself.",
  },
  coatcheck_connections_open: {
    type: "gauge",
    help: "Connections of clients, whatever they speak.",
    labels: [],
    acrossWorkers: "sum",
    advice: "Near `limits.connections.total`: more gateways, a shorter `limits.idleTimeout`, or an attack.",
  },
  coatcheck_connections_refused_total: {
    type: "counter",
    help: "Connections of clients that were closed at once, by limit.",
    labels: ["reason"],
    advice:
      "`total`: all of `limits.connections.total` are in use. `address`: one address has all that it may; the log line `connections.refused` names it.",
  },
  coatcheck_headers_stripped_total: {
    type: "counter",
    help: "Request headers that a client may not send and that were removed.",
    labels: ["class"],
    advice:
      "`managed`, `alias` and `connection` are attempts to forge or remove an identity header; look for their source in the recorder. `forwarded` is normal behind a proxy that is not in `trustedProxies`.",
  },
  coatcheck_verifications_total: {
    type: "counter",
    help: "Requests that another proxy asked about (`forwardAuth`), by how it asked and what was decided.",
    labels: ["protocol", "decision"],
    advice:
      "`identified` and `anonymous` were allowed. `undecided` were refused: a proxy that is not in `listen.trustedProxies`, a request that can be read in two ways, or one that carries an identity header; the log line `verification.refused` says which. `outage`: the store does not answer, and the asking proxy was told 503. `protocol` is `auth-request` (nginx), `forward-auth` (Traefik, Caddy), `ext-authz` (Envoy), or `unknown` when it was refused before that was known.",
  },
  coatcheck_write_back_total: {
    type: "counter",
    help: "Session commands in upstream responses by what became of them.",
    labels: ["command", "result"],
    advice:
      "`not-allowed`: a route without `write` sends them, by mistake or by an attack on the application. `malformed`: a bug in the application. `failed`: the store was down and the response became 503.",
  },
  coatcheck_write_back_keys_dropped_total: {
    type: "counter",
    help: "Session keys in write-back headers that the route's `write` does not list.",
    labels: [],
    advice: "The application writes more than it is configured for: add the key to `write`, or find out why it does.",
  },
  coatcheck_watches_active: {
    type: "gauge",
    help: "Users and sessions under watch.",
    labels: [],
    acrossWorkers: "max",
    advice:
      "Each watched request is traced and recorded with its header sections. Watches end by themselves; `coatcheck watch --list` tells which there are.",
  },
  coatcheck_websockets_open: {
    type: "gauge",
    help: "WebSockets that are open.",
    labels: [],
    acrossWorkers: "sum",
    advice:
      "Each takes a connection to the client and one to the application. `GET /websockets` tells whose they are. Falls to 0 at once: an application was restarted, or a gateway is about to end.",
  },
  coatcheck_websockets_closed_total: {
    type: "counter",
    help: "WebSockets that were closed, by whose doing it was.",
    labels: ["reason"],
    advice:
      "`client` and `upstream` are normal. `session-ended`: a logout or a revocation that took the sockets along. `session-expired` in numbers: pages that stay open and only listen. `idle`: nothing was said for `websockets.idleTimeout`; applications should send pings. `shutdown`: the gateway ended.",
  },
  coatcheck_websocket_bytes_total: {
    type: "counter",
    help: "Octets that passed through open WebSockets: from clients (in) and from applications (out). Counted every few seconds.",
    labels: ["direction"],
    advice: "They are in no other metric: to these, the request of a WebSocket has ended with its handshake.",
  },
  coatcheck_spans_exported_total: {
    type: "counter",
    help: "Spans that the collector took.",
    labels: [],
    advice:
      "About four for each exported request. Much more than usual: the ratio was raised and not lowered again; ask `GET /observe`.",
  },
  coatcheck_log_lines_dropped_total: {
    type: "counter",
    help: "Log lines that were lost because standard output was blocked or closed.",
    labels: [],
    advice:
      "Whoever reads the log is too slow: 16 MiB were waiting. Requests are not affected, but the audit trail has a gap.",
  },
  coatcheck_certificate_not_after_timestamp_seconds: {
    type: "gauge",
    help: "Until when the certificate of a listener is valid, seconds since the epoch.",
    labels: ["listener"],
    acrossWorkers: "min",
    advice:
      "Renew it before: new files are taken up within half a minute. Renewed, and still near its end: see `certificate.refused` in the log.",
  },
  coatcheck_tls_handshake_failures_total: {
    type: "counter",
    help: "TLS handshakes with clients that failed, by reason.",
    labels: ["reason"],
    advice:
      "`closed` and `not_tls` are mostly port scans and health checks. `alert`: clients refuse the certificate, which may have expired or lack its chain. `version` and `cipher`: clients that are too old for `listen.tls.minVersion`.",
  },
  coatcheck_spans_dropped_total: {
    type: "counter",
    help: "Spans that did not reach the collector.",
    labels: [],
    advice: "The collector is down or too slow; requests are not affected.",
  },
  coatcheck_config_reloads_total: {
    type: "counter",
    help: "Attempts to read the configuration file again, by what became of it.",
    labels: ["result"],
    acrossWorkers: "primary",
    advice: "`refused`: the log line `config.reload-refused` has every problem; what was in effect before goes on.",
  },
  coatcheck_config_last_reload_successful: {
    type: "gauge",
    help: "Whether the configuration was applied the last time it was read (1) or refused (0).",
    labels: [],
    acrossWorkers: "primary",
    advice: "0: the file is broken, and the next restart would fail. `coatcheck check --config FILE` says why.",
  },
  coatcheck_config_last_reload_timestamp_seconds: {
    type: "gauge",
    help: "When the configuration that is in effect was read, seconds since the epoch.",
    labels: [],
    acrossWorkers: "primary",
    advice: "Differs between instances that should have been reloaded together: one did not hear of it, or refused.",
  },
  coatcheck_workers: {
    type: "gauge",
    help: "Processes that serve, by what they are doing.",
    labels: ["state"],
    acrossWorkers: "primary",
    advice:
      "`serving` is what `workers` says when all is well, 1 for a single process. `starting`: not ready yet. `waiting`: it ended and is started again after a pause, which grows while that goes on. `draining`: it ends and still has requests.",
  },
  coatcheck_worker_restarts_total: {
    type: "counter",
    help: "Workers that ended unasked and were replaced, by how they ended.",
    labels: ["reason"],
    acrossWorkers: "primary",
    advice:
      "`killed`: a signal; look for the kernel's out-of-memory killer. `crashed`: a mistake in Coatcheck or in a store of your own; `error.unexpected` in the log is what went wrong. `exited`: somebody ended that process by hand. `not_started`: it ended before it was ready; `worker.exited` says why. Requests in flight on it were lost, sessions never are.",
  },
  coatcheck_worker_cpu_seconds_total: {
    type: "counter",
    help: "Processor time of each worker and of those that it replaced, user and system. None of a single process.",
    labels: ["worker"],
    acrossWorkers: "primary",
    advice:
      "Much more in one than in the others: a few busy connections, such as those of one HTTP/2 proxy in front, are with that one. Each near 1 a second: the machine needs more cores.",
  },
  coatcheck_worker_memory_bytes: {
    type: "gauge",
    help: "Resident memory of each worker. None of a single process.",
    labels: ["worker"],
    acrossWorkers: "primary",
    advice: "Grows in all of them: sessions in the near cache. Grows without end: take a heap profile of that worker.",
  },
  coatcheck_config_restart_needed: {
    type: "gauge",
    help: "Keys of the configuration that was read last which differ from what is in effect, because a restart is needed.",
    labels: [],
    acrossWorkers: "primary",
    advice:
      "Above 0: the log line `config.reloaded` names them (`needs_restart`). Restart, one instance after the other.",
  },
  coatcheck_configs_in_use: {
    type: "gauge",
    help: "Configurations that requests go by: the one in effect, and those before it whose requests have not ended.",
    labels: [],
    acrossWorkers: "max",
    advice:
      "Above 1 for long after a reload: requests that last, such as server-sent events, go on by the configuration that they began with.",
  },
  coatcheck_draining: {
    type: "gauge",
    help: "Whether the gateway is about to end (1): no longer ready, while requests in flight finish.",
    labels: [],
    acrossWorkers: "primary",
    advice:
      "For longer than `shutdown.delay` and `shutdown.timeout` together: it hangs; the supervisor should kill it.",
  },
  coatcheck_build_info: {
    type: "gauge",
    help: "Always 1; the labels tell what runs.",
    labels: ["version", "node_version"],
    acrossWorkers: "max",
    advice: "Differs between instances during a rollout only.",
  },
} as const satisfies Record<string, CompleteDefinition>;

export type MetricName = keyof typeof METRICS;

/** Attribute names of the access line and of spans. OpenTelemetry's where it has one; ours under `coatcheck.`. */
export const ATTRIBUTES = {
  method: "http.request.method",
  status: "http.response.status_code",
  route: "http.route",
  path: "url.path",
  scheme: "url.scheme",
  host: "server.address",
  client: "client.address",
  protocolVersion: "network.protocol.version",
  tlsVersion: "tls.protocol.version",
  tlsCipher: "tls.cipher",
  resendCount: "http.request.resend_count",
  errorType: "error.type",
  limited: "coatcheck.limited",
  serverAddress: "server.address",
  serverPort: "server.port",
  peer: "network.peer.address",
  url: "url.full",
  dbSystem: "db.system.name",
  dbOperation: "db.operation.name",
  dbNamespace: "db.namespace",
  dbScript: "db.stored_procedure.name",
  dbStatus: "db.response.status_code",
  sessionOutcome: "coatcheck.session.outcome",
  sessionSource: "coatcheck.session.source",
  handle: "coatcheck.session.handle",
  decision: "coatcheck.policy.decision",
  source: "coatcheck.response.source",
  verification: "coatcheck.verification.protocol",
} as const;
