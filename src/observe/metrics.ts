import { Counter, collectDefaultMetrics, Gauge, type Metric } from "prom-client";
import { type Exchange, LOGOUT_REASONS, type LogoutReason } from "../core/exchange.ts";
import { HANDSHAKE_FAILURES, type HandshakeFailure } from "../core/handshake-failure.ts";
import { METHOD_LABELS, type MethodLabel } from "../core/labels.ts";
import {
  CONNECTION_REFUSALS,
  type ConnectionRefusal,
  LIMIT_REASONS,
  LIMITER_ANSWERS,
  type LimiterAnswer,
} from "../core/limits.ts";
import { FEED_STATES, type FeedState, type StoreCommand, type StoreFailure } from "../core/store.ts";
import {
  EJECTION_REASONS,
  type EjectionReason,
  QUEUE_REFUSALS,
  RETRY_REASONS,
  RETURN_REASONS,
  type ReturnReason,
  type UpstreamAttempt,
  type UpstreamFigures,
} from "../core/upstream.ts";
import { WEBSOCKET_CLOSE_REASONS, type WebSocketCloseReason } from "../core/websocket.ts";
import { WORKER_ENDS, WORKER_STATES, type WorkerEnd, type WorkerState } from "../core/workers.ts";
import { PathHistogram, type Series } from "./histogram.ts";
import { type MetricSnapshot, openMetricsRegistry, snapshotOf } from "./merged-metrics.ts";
import { METRICS, type MetricDefinition, type MetricName } from "./names.ts";

/** Of the targets of so many configurations, what was counted is kept: the last of it has yet to be scraped. */
const REMEMBERED_CONFIGS = 10;

const FIRST = { secret: "first" };
const OLDER = { secret: "older" };
const NONE = { secret: "none" };
const BY = { shared: { by: "shared" }, memory: { by: "memory" }, fallback: { by: "fallback" }, local: { by: "local" } };

export interface CacheSize {
  readonly entries: number;
  readonly bytes: number;
}

/**
 * The registry, filled from exchanges. It is always OpenMetrics: prom-client loses the `_total` of counters when the
 * format changes from scrape to scrape. Label values are routes, methods, statuses and words of ours: nothing that a
 * client chooses.
 */
export class Metrics {
  readonly #registry = openMetricsRegistry();
  readonly #serverDuration = this.#histogram("http_server_request_duration_seconds");
  readonly #clientDuration = this.#histogram("http_client_request_duration_seconds");
  readonly #overheadSeries = this.#histogram("coatcheck_proxy_overhead_seconds").add("", {});
  readonly #resolutions = this.#counter("coatcheck_session_resolutions_total");
  readonly #logouts = this.#counter("coatcheck_session_logouts_total");
  readonly #verifications = this.#counter("coatcheck_cookie_verifications_total");
  readonly #storeSessions = this.#gauge("coatcheck_session_store_sessions");
  readonly #upstreamRetries = this.#counter("coatcheck_upstream_retries_total");
  readonly #upstreams = new Map<string, boolean>();
  readonly #ejections = this.#counter("coatcheck_upstream_ejections_total");
  readonly #returns = this.#counter("coatcheck_upstream_returns_total");
  readonly #spared = this.#counter("coatcheck_upstream_ejections_spared_total");
  readonly #healthChecks = this.#counter("coatcheck_upstream_health_checks_total");
  readonly #nameResolutions = this.#counter("coatcheck_upstream_resolutions_total");
  readonly #retriesRefused = this.#counter("coatcheck_upstream_retries_refused_total");
  readonly #queueWait = this.#histogram("coatcheck_upstream_queue_wait_seconds").add("", {});
  readonly #queueRefused = this.#counter("coatcheck_upstream_queue_refused_total");
  #upstreamFigures: () => readonly UpstreamFigures[] = () => [];
  /** `host:port` of the targets of the last configurations, those in effect last. */
  readonly #targets: ReadonlySet<string>[] = [];
  readonly #operations = this.#counter("coatcheck_session_operations_total");
  readonly #operationDuration = this.#histogram("coatcheck_session_operation_duration_seconds");
  readonly #commandDuration = this.#histogram("db_client_operation_duration_seconds");
  readonly #events = this.#counter("coatcheck_session_events_total");
  readonly #touchesDropped = this.#counter("coatcheck_session_touches_dropped_total");
  readonly #storeUp = this.#gauge("coatcheck_session_store_up");
  readonly #storeFailures = this.#counter("coatcheck_session_store_failures_total");
  readonly #storeConnections = this.#counter("coatcheck_session_store_connections_total");
  readonly #storeResting = this.#gauge("coatcheck_session_store_resting");
  readonly #cacheEvictions = this.#counter("coatcheck_session_cache_evictions_total");
  readonly #cacheInvalidations = this.#counter("coatcheck_session_cache_invalidations_total");
  readonly #feed = this.#gauge("coatcheck_session_feed");
  readonly #changeDelay = this.#histogram("coatcheck_session_change_delay_seconds");
  readonly #revocationDelay = this.#histogram("coatcheck_session_revocation_delay_seconds").add("", {});
  readonly #asked = this.#counter("coatcheck_verifications_total");
  readonly #limited = this.#counter("coatcheck_requests_limited_total");
  readonly #limiterAnswers = this.#counter("coatcheck_request_limiter_answers_total");
  readonly #limiterFallback = this.#gauge("coatcheck_request_limiter_fallback");
  readonly #connectionsRefused = this.#counter("coatcheck_connections_refused_total");
  #connections: { readonly open: number } = { open: 0 };
  readonly #stripped = this.#counter("coatcheck_headers_stripped_total");
  readonly #writeBack = this.#counter("coatcheck_write_back_total");
  readonly #writeBackKeysDropped = this.#counter("coatcheck_write_back_keys_dropped_total");
  readonly #watchesActive = this.#gauge("coatcheck_watches_active");
  readonly #webSocketsOpen = this.#gauge("coatcheck_websockets_open");
  readonly #webSocketsClosed = this.#counter("coatcheck_websockets_closed_total");
  readonly #webSocketBytes = this.#counter("coatcheck_websocket_bytes_total");
  readonly #spansExported = this.#counter("coatcheck_spans_exported_total");
  readonly #reloads = this.#counter("coatcheck_config_reloads_total");
  readonly #lastReloadSuccessful = this.#gauge("coatcheck_config_last_reload_successful");
  readonly #lastReloadTimestamp = this.#gauge("coatcheck_config_last_reload_timestamp_seconds");
  readonly #restartNeeded = this.#gauge("coatcheck_config_restart_needed");
  readonly #draining = this.#gauge("coatcheck_draining");
  readonly #logLinesDropped = this.#counter("coatcheck_log_lines_dropped_total");
  readonly #certificateNotAfter = this.#gauge("coatcheck_certificate_not_after_timestamp_seconds");
  readonly #handshakeFailures = this.#counter("coatcheck_tls_handshake_failures_total");
  readonly #workers = this.#gauge("coatcheck_workers");
  readonly #workerRestarts = this.#counter("coatcheck_worker_restarts_total");
  readonly #workerCpu = this.#counter("coatcheck_worker_cpu_seconds_total");
  readonly #workerMemory = this.#gauge("coatcheck_worker_memory_bytes");
  readonly #spansDropped = this.#counter("coatcheck_spans_dropped_total");
  #cache: CacheSize = { entries: 0, bytes: 0 };
  #configsInUse = () => 1;
  readonly #active = { http: new Map<MethodLabel, number>(), https: new Map<MethodLabel, number>() };

  constructor(build: { readonly version: string; readonly nodeVersion: string }) {
    this.#gauge("coatcheck_build_info").set({ version: build.version, node_version: build.nodeVersion }, 1);
    // A rise from nothing to one is no rise for Prometheus: the reasons are there from the beginning.
    for (const reason of LOGOUT_REASONS) this.#logouts.inc({ reason }, 0);
    for (const reason of HANDSHAKE_FAILURES) this.#handshakeFailures.inc({ reason }, 0);
    for (const reason of LIMIT_REASONS) this.#limited.inc({ reason }, 0);
    for (const reason of CONNECTION_REFUSALS) this.#connectionsRefused.inc({ reason }, 0);
    for (const by of LIMITER_ANSWERS) this.#limiterAnswers.inc({ by }, 0);
    this.#limiterFallback.set(0);
    const connections = () => this.#connections;
    this.#gauge("coatcheck_connections_open", function collect(this: Gauge) {
      this.set(connections().open);
    });
    const active = this.#active;
    this.#gauge("http_server_active_requests", function collect(this: Gauge) {
      for (const scheme of ["http", "https"] as const) {
        for (const method of METHOD_LABELS) {
          const value = active[scheme].get(method);
          if (value !== undefined) this.set({ http_request_method: method, url_scheme: scheme }, value);
        }
      }
    });
    const cache = () => this.#cache;
    this.#gauge("coatcheck_session_cache_entries", function collect(this: Gauge) {
      this.set(cache().entries);
    });
    this.#gauge("coatcheck_session_cache_bytes", function collect(this: Gauge) {
      this.set(cache().bytes);
    });
    for (const reason of QUEUE_REFUSALS) this.#queueRefused.inc({ reason }, 0);
    this.#showUpstreams();
    const configsInUse = () => this.#configsInUse();
    this.#gauge("coatcheck_configs_in_use", function collect(this: Gauge) {
      this.set(configsInUse());
    });
    for (const reason of WEBSOCKET_CLOSE_REASONS) this.#webSocketsClosed.inc({ reason }, 0);
    for (const direction of ["in", "out"]) this.#webSocketBytes.inc({ direction }, 0);
    for (const result of ["applied", "refused"]) this.#reloads.inc({ result }, 0);
    for (const reason of WORKER_ENDS) this.#workerRestarts.inc({ reason }, 0);
    this.workers({ serving: 1 });
    this.#restartNeeded.set(0);
    this.#draining.set(0);
    this.#configurationApplied();
    collectDefaultMetrics({ register: this.#registry });
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** The scrape. */
  render(): Promise<string> {
    return this.#registry.metrics();
  }

  /** What there is to render, for a process that renders that of many. */
  snapshot(): Promise<MetricSnapshot[]> {
    return snapshotOf(this.#registry);
  }

  requestStarted({ connectionScheme: scheme, methodLabel }: Exchange): void {
    this.#active[scheme].set(methodLabel, (this.#active[scheme].get(methodLabel) ?? 0) + 1);
  }

  requestEnded(exchange: Exchange): void {
    const { connectionScheme: scheme, methodLabel } = exchange;
    this.#active[scheme].set(methodLabel, (this.#active[scheme].get(methodLabel) ?? 1) - 1);
    const traceId = exchange.sampled ? exchange.traceId : undefined;
    const durationMs = exchange.endedMs ?? 0;
    this.#serverSeries(exchange).observe(durationMs / 1000, traceId);
    let upstreamMs = exchange.upstreamWaitMs;
    if (exchange.forwardedMs !== undefined) {
      if (exchange.upstreamAttempts !== undefined)
        upstreamMs += this.#earlierAttempts(exchange.upstreamAttempts, exchange);
      const attemptMs = (exchange.upstreamEndMs ?? durationMs) - (exchange.attemptMs ?? exchange.forwardedMs);
      upstreamMs += attemptMs;
      const { upstream = "", upstreamStatus, upstreamError } = exchange;
      this.#clientSeries(exchange.methodLabel, upstream, upstreamStatus, upstreamError).observe(
        attemptMs / 1000,
        traceId,
      );
      // A client that went away says nothing of the upstream.
      if (upstreamStatus !== undefined || exchange.error !== undefined)
        this.#upstreamAnswered(upstream, upstreamStatus !== undefined);
      if (exchange.retryRefused) this.#retriesRefused.inc(serverLabels(upstream));
    }
    if (exchange.upstreamWaitMs > 0) this.#queueWait.observe(exchange.upstreamWaitMs / 1000, traceId);
    if (exchange.queueRefused !== undefined) this.#queueRefused.inc({ reason: exchange.queueRefused });
    this.#overheadSeries.observe(Math.max(0, durationMs - upstreamMs) / 1000, traceId);
    if (exchange.session !== "not-asked") {
      this.#resolutions.inc({ outcome: exchange.session, source: exchange.sessionSource ?? "none" });
    }
    if (exchange.cookie === "valid") this.#verifications.inc(exchange.cookieSecret === 0 ? FIRST : OLDER);
    else if (exchange.cookie === "bad-signature") this.#verifications.inc(NONE);
    if (exchange.verification !== undefined)
      this.#asked.inc({ protocol: exchange.verification.protocol, decision: exchange.decision });
    if (exchange.limited !== undefined) this.#limited.inc({ reason: exchange.limited });
    if (exchange.stripped !== undefined) {
      for (const [stripClass, count] of Object.entries(exchange.stripped))
        this.#stripped.inc({ class: stripClass }, count);
    }
    if (exchange.writeBack !== undefined) {
      for (const { command, result } of exchange.writeBack) this.#writeBack.inc({ command, result });
      this.#writeBackKeysDropped.inc(exchange.writeBackDropped);
    }
  }

  /** @returns how long they took together, milliseconds. */
  #earlierAttempts(attempts: readonly UpstreamAttempt[], { methodLabel, sampled, traceId }: Exchange): number {
    let totalMs = 0;
    for (const { upstream, startedMs, endedMs, status, error, retry } of attempts) {
      totalMs += endedMs - startedMs;
      const series = this.#clientSeries(methodLabel, upstream, status, error);
      series.observe((endedMs - startedMs) / 1000, sampled ? traceId : undefined);
      this.#upstreamRetries.inc({ ...serverLabels(upstream), reason: retry });
      if (retry !== "idle-closed") this.#upstreamAnswered(upstream, status !== undefined);
    }
    return totalMs;
  }

  #upstreamAnswered(upstream: string, up: boolean): void {
    // A rise from nothing to one is no rise for Prometheus.
    if (!this.#upstreams.has(upstream)) {
      const labels = serverLabels(upstream);
      for (const reason of RETRY_REASONS) this.#upstreamRetries.inc({ ...labels, reason }, 0);
      this.#retriesRefused.inc(labels, 0);
      this.#spared.inc(labels, 0);
    }
    this.#upstreams.set(upstream, up);
  }

  /** @param figures asked at each scrape. */
  watchUpstreams(figures: () => readonly UpstreamFigures[]): void {
    this.#upstreamFigures = figures;
    this.#rememberTargets();
  }

  #rememberTargets(): void {
    this.#targets.push(
      new Set(this.#upstreamFigures().flatMap(({ targets }) => targets.map(({ address }) => address))),
    );
    if (this.#targets.length <= REMEMBERED_CONFIGS) return;
    for (const address of this.#targets.shift() ?? [])
      if (!this.#targets.some((known) => known.has(address))) this.#forgetTarget(address);
  }

  /** Where targets come and go with each reload, their series would grow without end, and leave no room for new ones. */
  #forgetTarget(address: string): void {
    const labels = serverLabels(address);
    this.#upstreams.delete(address);
    this.#clientDuration.remove(labels);
    for (const reason of RETRY_REASONS) this.#upstreamRetries.remove({ ...labels, reason });
    for (const reason of EJECTION_REASONS) this.#ejections.remove({ ...labels, reason });
    for (const reason of RETURN_REASONS) this.#returns.remove({ ...labels, reason });
    for (const result of ["ok", "failed"]) this.#healthChecks.remove({ ...labels, result });
    for (const result of ["changed", "failed"]) this.#nameResolutions.remove({ ...labels, result });
    for (const counter of [this.#spared, this.#retriesRefused]) counter.remove(labels);
  }

  #showUpstreams(): void {
    const figures = () => this.#upstreamFigures();
    const isUp = this.#upstreams;
    this.#gauge("coatcheck_upstream_up", function collect(this: Gauge) {
      this.reset();
      // One that a reload has taken away is not down.
      const addresses = new Set(figures().flatMap(({ targets }) => targets.map(({ address }) => address)));
      for (const [upstream, up] of isUp) {
        if (addresses.has(upstream)) this.set(serverLabels(upstream), up ? 1 : 0);
        else isUp.delete(upstream);
      }
    });
    this.#gauge("coatcheck_upstream_panic", function collect(this: Gauge) {
      this.reset();
      for (const { route, panic } of figures()) this.set({ http_route: route }, panic ? 1 : 0);
    });
    this.#gauge("coatcheck_upstream_endpoints", function collect(this: Gauge) {
      this.reset();
      for (const { targets } of figures())
        for (const { address, endpoints, inService } of targets) {
          this.set({ ...serverLabels(address), state: "in-service" }, inService);
          this.set({ ...serverLabels(address), state: "out" }, endpoints - inService);
        }
    });
    this.#gauge("coatcheck_upstream_connections_in_use", function collect(this: Gauge) {
      this.reset();
      // Two upstreams may have a target in common.
      for (const { targets } of figures())
        for (const { address, active } of targets) this.inc(serverLabels(address), active);
    });
    this.#gauge("coatcheck_upstream_queue_length", function collect(this: Gauge) {
      this.reset();
      for (const { route, queued } of figures()) this.set({ http_route: route }, queued);
    });
  }

  /** @param upstream `host:port`. @param isWhole whether that is all there is of it, and not one address of several. */
  upstreamEjected(upstream: string, reason: EjectionReason, isWhole: boolean): void {
    this.#ejections.inc({ ...serverLabels(upstream), reason });
    if (isWhole) this.#upstreamAnswered(upstream, false);
  }

  upstreamReturned(upstream: string, reason: ReturnReason, isWhole: boolean): void {
    this.#returns.inc({ ...serverLabels(upstream), reason });
    if (isWhole) this.#upstreamAnswered(upstream, true);
  }

  upstreamSpared(upstream: string): void {
    this.#spared.inc(serverLabels(upstream));
  }

  upstreamChecked(upstream: string, ok: boolean): void {
    this.#healthChecks.inc({ ...serverLabels(upstream), result: ok ? "ok" : "failed" });
  }

  upstreamResolved(upstream: string, result: "changed" | "failed"): void {
    this.#nameResolutions.inc({ ...serverLabels(upstream), result });
  }

  #serverSeries({ scheme, methodLabel, status, route, error }: Exchange): Series {
    const http_route = route?.id ?? "none";
    const key = `${http_route} ${methodLabel} ${status} ${scheme} ${error}`;
    const known = this.#serverDuration.find(key);
    if (known !== undefined) return known;
    return this.#serverDuration.add(key, {
      http_request_method: methodLabel,
      http_response_status_code: status,
      http_route,
      url_scheme: scheme,
      ...errorType(error),
    });
  }

  #clientSeries(
    methodLabel: MethodLabel,
    upstream: string,
    status: number | undefined,
    error: string | undefined,
  ): Series {
    const key = `${upstream} ${methodLabel} ${status} ${error}`;
    const known = this.#clientDuration.find(key);
    if (known !== undefined) return known;
    return this.#clientDuration.add(key, {
      http_request_method: methodLabel,
      ...serverLabels(upstream),
      ...(status !== undefined && { http_response_status_code: status }),
      ...errorType(error),
    });
  }

  storeOperation(operation: string, status: string, store: string, seconds: number): void {
    this.#operations.inc({ operation, status, store });
    const key = `${operation} ${store}`;
    const series = this.#operationDuration.find(key) ?? this.#operationDuration.add(key, { operation, store });
    series.observe(seconds);
  }

  /** @param exchange on whose behalf it was sent. */
  storeCommand({ server, name, startedMs, endedMs, failure }: StoreCommand, exchange: Exchange | undefined): void {
    const key = `${server.system} ${name} ${failure}`;
    const series =
      this.#commandDuration.find(key) ??
      this.#commandDuration.add(key, {
        db_system_name: server.system,
        db_operation_name: name,
        ...errorType(failure),
      });
    series.observe((endedMs - startedMs) / 1000, exchange?.sampled ? exchange.traceId : undefined);
  }

  storeFailed(reason: StoreFailure): void {
    this.#storeFailures.inc({ reason });
  }

  storeConnection(connection: string, event: string): void {
    this.#storeConnections.inc({ connection, event });
  }

  storeResting(servers: number): void {
    this.#storeResting.set(servers);
  }

  /** @param cache asked at each scrape. */
  watchCache(cache: CacheSize): void {
    this.#cache = cache;
  }

  /** @param connections asked at each scrape. */
  watchConnections(connections: { readonly open: number }): void {
    this.#connections = connections;
  }

  connectionRefused(reason: ConnectionRefusal): void {
    this.#connectionsRefused.inc({ reason });
  }

  limiterAnswered(by: LimiterAnswer): void {
    this.#limiterAnswers.inc(BY[by]);
  }

  limiterFallback(active: boolean): void {
    this.#limiterFallback.set(active ? 1 : 0);
  }

  cacheEvicted(): void {
    this.#cacheEvictions.inc();
  }

  cacheInvalidated(): void {
    this.#cacheInvalidations.inc();
  }

  changeFeed(current: FeedState): void {
    for (const state of FEED_STATES) this.#feed.set({ state }, state === current ? 1 : 0);
  }

  changeDelay(by: string, seconds: number): void {
    (this.#changeDelay.find(by) ?? this.#changeDelay.add(by, { by })).observe(seconds);
  }

  revocationDelay(seconds: number): void {
    this.#revocationDelay.observe(seconds);
  }

  storeUp(store: string, up: boolean): void {
    this.#storeUp.set({ store }, up ? 1 : 0);
  }

  storeSessions(store: string, sessions: number): void {
    this.#storeSessions.set({ store }, sessions);
  }

  loggedOut(reason: LogoutReason): void {
    this.#logouts.inc({ reason });
  }

  sessionEvent(event: string): void {
    this.#events.inc({ event });
  }

  touchDropped(): void {
    this.#touchesDropped.inc();
  }

  /** @param counts of the states that there are; the others are 0. */
  workers(counts: Readonly<Partial<Record<WorkerState, number>>>): void {
    for (const state of WORKER_STATES) this.#workers.set({ state }, counts[state] ?? 0);
  }

  workerRestarted(reason: WorkerEnd): void {
    this.#workerRestarts.inc({ reason });
  }

  /** @param cpuSeconds since the last time. */
  workerUse(worker: number, cpuSeconds: number, memoryBytes: number): void {
    this.#workerCpu.inc({ worker }, Math.max(0, cpuSeconds));
    this.#workerMemory.set({ worker }, memoryBytes);
  }

  workerGone(worker: number): void {
    this.#workerMemory.remove({ worker });
  }

  watchesActive(count: number): void {
    this.#watchesActive.set(count);
  }

  /** @param restartNeeded keys that differ from what is in effect. */
  reloaded(restartNeeded: number): void {
    this.#reloads.inc({ result: "applied" });
    this.#restartNeeded.set(restartNeeded);
    this.#configurationApplied();
    this.#rememberTargets();
  }

  reloadRefused(): void {
    this.#reloads.inc({ result: "refused" });
    this.#lastReloadSuccessful.set(0);
  }

  /** @param inUse tells how many configurations requests go by. */
  watchConfigs(inUse: () => number): void {
    this.#configsInUse = inUse;
  }

  draining(): void {
    this.#draining.set(1);
  }

  #configurationApplied(): void {
    this.#lastReloadSuccessful.set(1);
    this.#lastReloadTimestamp.set(Date.now() / 1000);
  }

  webSocketOpened(): void {
    this.#webSocketsOpen.inc();
  }

  webSocketClosed(reason: WebSocketCloseReason): void {
    this.#webSocketsOpen.dec();
    this.#webSocketsClosed.inc({ reason });
  }

  webSocketPassed(bytesIn: number, bytesOut: number): void {
    if (bytesIn > 0) this.#webSocketBytes.inc({ direction: "in" }, bytesIn);
    if (bytesOut > 0) this.#webSocketBytes.inc({ direction: "out" }, bytesOut);
  }

  spansExported(count: number): void {
    this.#spansExported.inc(count);
  }

  logLinesDropped(count: number): void {
    this.#logLinesDropped.inc(count);
  }

  /** @param notAfter until when it is valid, milliseconds since the epoch. */
  certificate(listener: string, notAfter: number): void {
    this.#certificateNotAfter.set({ listener }, notAfter / 1000);
  }

  handshakeFailed(reason: HandshakeFailure): void {
    this.#handshakeFailures.inc({ reason });
  }

  spansDropped(count: number): void {
    this.#spansDropped.inc(count);
  }

  #histogram(name: MetricName): PathHistogram {
    const histogram = new PathHistogram(name, METRICS[name]);
    // The registry asks for a name, a type and `get`; its types ask for one of prom-client's own classes.
    this.#registry.registerMetric(histogram as unknown as Metric);
    return histogram;
  }

  #counter(name: MetricName): Counter {
    const { help, labels }: MetricDefinition = METRICS[name];
    return new Counter({ name, help, labelNames: [...labels], registers: [this.#registry] });
  }

  #gauge(name: MetricName, collect?: (this: Gauge) => void): Gauge {
    const { help, labels }: MetricDefinition = METRICS[name];
    return new Gauge({ name, help, labelNames: [...labels], registers: [this.#registry], ...(collect && { collect }) });
  }
}

/** @param upstream `host:port`. */
function serverLabels(upstream: string): { server_address: string; server_port: string } {
  const colon = upstream.lastIndexOf(":");
  return { server_address: upstream.slice(0, colon), server_port: upstream.slice(colon + 1) };
}

function errorType(error: string | undefined): { error_type?: string } {
  return error === undefined ? {} : { error_type: error };
}
