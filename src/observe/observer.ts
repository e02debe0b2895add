import { withoutContents } from "../core/errors.ts";
import type { Exchange } from "../core/exchange.ts";
import type { ConnectionRefusal } from "../core/limits.ts";
import { LOG_LEVELS, type ObserveSettings } from "../core/observe-settings.ts";
import { servedExchange } from "../core/on-behalf.ts";
import type { ReloadCause, ReloadResult } from "../core/reload.ts";
import type { Handle, SessionEvent, SessionKey } from "../core/session.ts";
import type { FeedState, SessionStore, StoreObserver } from "../core/store.ts";
import type { TraceExport } from "../core/trace-export.ts";
import type { EndpointName, UpstreamObserver } from "../core/upstream.ts";
import type { WebSocketCloseReason } from "../core/websocket.ts";
import { InstrumentedStore } from "./instrumented-store.ts";
import { Log, type LogDestination } from "./logging.ts";
import { Metrics } from "./metrics.ts";
import { ATTRIBUTES as A } from "./names.ts";
import { Recorder } from "./recorder.ts";
import { RuntimeSettings, type SettingsChange } from "./settings.ts";
import { RefusedConnections, RefusedVerifications, RefusedWriteBacks, SpoofAttempts } from "./suspicions.ts";
import type { Tracing } from "./tracing.ts";
import { type Watch, Watches } from "./watches.ts";

/** What the configuration says of the observation. */
export interface ObserveConfig extends ObserveSettings {
  readonly recorder: { readonly exchanges: number; readonly slow: number; readonly errors: number };
}

export interface ObserverOptions extends ObserveConfig {
  readonly version: string;
  readonly nodeVersion: string;
  /** `undefined`: no spans are exported. */
  readonly traceExport: TraceExport | undefined;
  readonly logDestination?: LogDestination;
  /** See `LogOptions`. */
  readonly prettyLog?: { readonly colours: boolean };
  /** See `LogOptions`. */
  readonly worker?: number;
}

/** How a WebSocket ended; bytes are from the client and from the application. */
interface WebSocketEnd {
  readonly reason: WebSocketCloseReason;
  readonly durationMs: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
}

/** A file that is something else altogether has a problem in every line. */
const PROBLEMS_TOLD = 50;

/** One record, four renderings: takes every closed exchange once. */
export class Observer {
  readonly metrics: Metrics;
  readonly log: Log;
  readonly recorder: Recorder;
  readonly watches: Watches;
  /** Told of sessions that a watch has met, for other processes that watch the same. */
  onMet: ((watchId: string, handle: Handle) => void) | undefined;
  readonly #spoofAttempts: SpoofAttempts;
  readonly #refusedVerifications: RefusedVerifications;
  readonly #refusedWriteBacks: RefusedWriteBacks;
  readonly #refusedConnections: RefusedConnections;
  readonly settings: RuntimeSettings;
  #recorderSizes: ObserveConfig["recorder"];
  #tracing: Tracing | undefined;
  #ratio: number;

  static async create(options: ObserverOptions): Promise<Observer> {
    const observer = new Observer(options);
    if (options.traceExport !== undefined) await observer.#openTracing(options.traceExport, options);
    return observer;
  }

  private constructor(options: ObserverOptions) {
    const { traces, recorder, logDestination, prettyLog, worker } = options;
    this.metrics = new Metrics(options);
    this.log = new Log({
      ...options.log,
      slowerThanMs: traces.slowerThanMs,
      onDropped: (lines) => this.metrics.logLinesDropped(lines),
      ...(prettyLog && { pretty: prettyLog }),
      ...(worker !== undefined && { worker }),
      ...(logDestination && { destination: logDestination }),
    });
    this.#spoofAttempts = new SpoofAttempts(this.log);
    this.#refusedVerifications = new RefusedVerifications(this.log);
    this.#refusedWriteBacks = new RefusedWriteBacks(this.log);
    this.#refusedConnections = new RefusedConnections(this.log);
    this.recorder = new Recorder({ ...recorder, slowerThanMs: traces.slowerThanMs });
    this.watches = new Watches({
      onBegan: (watch) => this.#watchChanged("watch.began", watch, { until: new Date(watch.endsAt).toISOString() }),
      onEnded: (watch, by) => this.#watchChanged("watch.ended", watch, { by, requests: watch.requests }),
      onMet: (id, handle) => this.onMet?.(id, handle),
    });
    this.#ratio = traces.ratio;
    this.#recorderSizes = recorder;
    this.settings = new RuntimeSettings({ log: options.log, traces }, (change) => this.#changed(change));
  }

  /** OpenTelemetry is loaded only where spans are exported. */
  async #openTracing(traceExport: TraceExport, { traces, version }: ObserverOptions): Promise<void> {
    const { Tracing } = await import("./tracing.ts");
    this.#tracing = await Tracing.open({
      rules: traces,
      traceExport,
      version,
      onExported: (spans) => this.metrics.spansExported(spans),
      onDropped: (spans) => this.metrics.spansDropped(spans),
      onCollector: (failure) => {
        if (failure === undefined) this.log.event("info", "traces.up", "the collector takes spans again");
        else this.log.event("warn", "traces.down", "the collector does not take spans; they are dropped", { failure });
      },
    });
  }

  /** A new configuration: it replaces what operators changed meanwhile. */
  reconfigure({ log, traces, recorder }: ObserveConfig): void {
    this.#recorderSizes = recorder;
    this.recorder.adjust({ ...recorder, slowerThanMs: traces.slowerThanMs });
    this.settings.replace({ log, traces });
  }

  /** @param keys of the configuration, by name. */
  reloaded({ applied, needsRestart }: ReloadResult, by: ReloadCause): void {
    this.metrics.reloaded(needsRestart.length);
    const waits = needsRestart.length > 0 ? `; a restart is needed for ${needsRestart.join(", ")}` : "";
    const level = needsRestart.length > 0 ? "warn" : "info";
    this.log.event(level, "config.reloaded", `configuration read again${waits}`, {
      by,
      applied,
      needs_restart: needsRestart,
    });
  }

  reloadRefused(problems: readonly string[], by: ReloadCause): void {
    this.metrics.reloadRefused();
    const message = "the configuration has problems; what was in effect goes on";
    const more = problems.length - PROBLEMS_TOLD;
    const told = more > 0 ? [...problems.slice(0, PROBLEMS_TOLD), `and ${more} more`] : problems;
    this.log.event("error", "config.reload-refused", message, { by, problems: told });
  }

  nothingToReload(by: ReloadCause): void {
    const message = "the configuration came from the command line, so there is nothing to read again";
    this.log.event("warn", "config.nothing-to-reload", message, { by });
  }

  #changed({ by, before, after, changed, until }: SettingsChange): void {
    const tell = () =>
      this.log.event("info", "observe.changed", "what is observed was changed", { by, changed, until });
    // Told while more is written, or nobody would see the step towards silence.
    const quieter = LOG_LEVELS.indexOf(after.log.level) > LOG_LEVELS.indexOf(before.log.level);
    if (quieter) tell();
    this.log.level = after.log.level;
    this.log.access = after.log.access;
    this.log.sample = after.log.sample;
    this.log.slowerThanMs = after.traces.slowerThanMs;
    this.#ratio = after.traces.ratio;
    this.recorder.adjust({ ...this.#recorderSizes, slowerThanMs: after.traces.slowerThanMs });
    if (this.#tracing !== undefined) this.#tracing.rules = after.traces;
    if (!quieter) tell();
  }

  /** The head decision for a trace that begins here. */
  sample(): boolean {
    return this.#ratio > 0 && Math.random() < this.#ratio;
  }

  started(exchange: Exchange): void {
    this.metrics.requestStarted(exchange);
  }

  /** Closes the record: from here on nothing in it changes. */
  ended(exchange: Exchange): void {
    exchange.endedMs ??= exchange.elapsedMs();
    this.metrics.requestEnded(exchange);
    this.log.exchange(exchange);
    if (exchange.spoofedNames !== undefined) this.#spoofAttempts.note(exchange);
    if (exchange.verification !== undefined) this.#refusedVerifications.note(exchange);
    if (exchange.writeBack !== undefined) this.#refusedWriteBacks.note(exchange);
    this.#tracing?.exchange(exchange);
    this.recorder.keep(exchange);
    if (exchange.watched) this.watches.keep(exchange);
  }

  /** A handle is said, a user is not: an id may be a name or an address, and a log lives long. */
  #watchChanged(
    event: "watch.began" | "watch.ended",
    { target }: Watch,
    fields: Readonly<Record<string, unknown>>,
  ): void {
    this.metrics.watchesActive(this.watches.size);
    const whom = "handle" in target ? { watch: "session", handle: target.handle } : { watch: "user" };
    this.log.event("info", event, event.replace(".", " "), { ...whom, ...fields });
  }

  /** A change in the life of a session. @param fields beside the handle, which is the exchange's if they do not say. */
  sessionEvent(event: SessionEvent, exchange: Exchange, fields: Readonly<Record<string, unknown>> = {}): void {
    this.metrics.sessionEvent(event);
    const level = event === "mismatch" ? "warn" : "info";
    const all = { handle: exchange.handle, ...fields };
    this.log.requestEvent(level, `session.${event}`, `session ${event}`, exchange, all);
  }

  connectionRefused(reason: ConnectionRefusal, address: string): void {
    this.metrics.connectionRefused(reason);
    this.#refusedConnections.note(reason, address);
  }

  /** @param active whether this process counts requests for itself. */
  limiterFellBack(active: boolean, failure: unknown): void {
    this.metrics.limiterFallback(active);
    if (active) {
      const told = withoutContents(failure instanceof Error ? failure.message : String(failure));
      this.log.event("warn", "limits.fallback", "rate limits hold for each gateway by itself", { failure: told });
    } else this.log.event("info", "limits.shared", "rate limits hold for all gateways together again");
  }

  /** A session that an operator ended. */
  sessionRevoked(fields: Readonly<Record<string, unknown>>): void {
    this.metrics.sessionEvent("revoked");
    this.log.event("info", "session.revoked", "session revoked", fields);
  }

  /** What the registry of WebSockets tells, in the shape that it asks for. */
  webSocketObserver() {
    return {
      opened: () => this.metrics.webSocketOpened(),
      passed: (bytesIn: number, bytesOut: number) => this.metrics.webSocketPassed(bytesIn, bytesOut),
      closed: (exchange: Exchange, { reason, durationMs, bytesIn, bytesOut }: WebSocketEnd) => {
        this.metrics.webSocketClosed(reason);
        this.log.requestEvent("info", "websocket.closed", `WebSocket closed: ${reason}`, exchange, {
          ...(exchange.handle !== undefined && { handle: exchange.handle }),
          upstream: exchange.upstream,
          reason,
          duration_s: Math.round(durationMs) / 1000,
          bytes_in: bytesIn,
          bytes_out: bytesOut,
        });
      },
    };
  }

  /**
   * What an upstream tells of its targets.
   * @param route the first that has it.
   */
  upstreamObserver(route: string): UpstreamObserver {
    const { metrics, log } = this;
    const fieldsOf = ({ address, peer }: EndpointName) => ({ upstream: address, ...(peer !== undefined && { peer }) });
    return {
      ejected: (name, reason, forMs, left, failure) => {
        metrics.upstreamEjected(name.address, reason, name.peer === undefined);
        log.event("warn", "upstream.ejected", `${name.address} is out of service: ${reason}`, {
          ...fieldsOf(name),
          reason,
          failure,
          ...(forMs !== undefined && { for_s: forMs / 1000 }),
          in_service: left,
        });
      },
      returned: (name, reason) => {
        metrics.upstreamReturned(name.address, reason, name.peer === undefined);
        log.event("info", "upstream.returned", `${name.address} is in service again`, { ...fieldsOf(name), reason });
      },
      spared: (name, reason) => {
        metrics.upstreamSpared(name.address);
        const text = `${name.address} fails, and stays in service: it is the last one`;
        log.event("error", "upstream.spared", text, { ...fieldsOf(name), reason });
      },
      panic: (isOn, upstreams) => {
        const fields = { [A.route]: route, upstreams };
        if (isOn) log.event("error", "upstream.panic", "no target is in service: all of them get requests", fields);
        else log.event("info", "upstream.panic-over", "a target is in service again", fields);
      },
      checked: ({ address }, ok) => metrics.upstreamChecked(address, ok),
      resolved: (address, all, added, removed) => {
        metrics.upstreamResolved(address, "changed");
        const text = `${address} has ${all.length} addresses`;
        log.event("info", "upstream.resolved", text, { upstream: address, addresses: all, added, removed });
      },
      resolutionFailed: (address, failure, isFirst) => {
        metrics.upstreamResolved(address, "failed");
        const text = `the name of ${address} cannot be resolved; what was known goes on`;
        if (isFirst) log.event("warn", "upstream.resolve-failed", text, { upstream: address, failure });
      },
    };
  }

  /** The store, counted and timed. @param onWritten see `InstrumentedStore`. */
  instrument(store: SessionStore, onWritten: (key: SessionKey, operation: string) => void): SessionStore {
    let up: boolean | undefined;
    const onAnswer = (answered: boolean): void => {
      if (answered === up) return;
      if (up !== undefined || !answered) {
        const [level, event, text] = answered
          ? (["info", "store.up", "session store answers again"] as const)
          : (["error", "store.down", "session store does not answer"] as const);
        this.log.event(level, event, text, { store: store.kind });
      }
      up = answered;
      this.metrics.storeUp(store.kind, answered);
    };
    return new InstrumentedStore(store, this.metrics, onAnswer, onWritten);
  }

  storeObserver(): StoreObserver {
    return {
      command: (command) => {
        const exchange = servedExchange();
        exchange?.countStoreCommand(command);
        this.metrics.storeCommand(command, exchange);
      },
      failed: (reason) => this.metrics.storeFailed(reason),
      connection: (connection, event) => {
        this.metrics.storeConnection(connection, event);
        this.log.event("debug", `store.connection-${event}`, `${connection} connection ${event}`, { connection });
      },
      resting: (servers) => {
        this.metrics.storeResting(servers);
        const level = servers > 0 ? "warn" : "info";
        this.log.event(level, "store.resting", `${servers} servers of the session store are given a rest`, { servers });
      },
    };
  }

  /** What the near cache tells, in the shape that it asks for. */
  cacheObserver(told: { readonly ended: (key: SessionKey) => void; readonly changed: (key: SessionKey) => void }) {
    let before: FeedState | undefined;
    return {
      ...told,
      evicted: () => this.metrics.cacheEvicted(),
      invalidated: () => this.metrics.cacheInvalidated(),
      feed: (state: FeedState) => {
        this.metrics.changeFeed(state);
        const [level, text] = FEED_MESSAGES[state];
        // It begins like that: nothing has been lost.
        if (before !== undefined || state !== "lost") this.log.event(level, "store.feed", text, { feed: state });
        before = state;
      },
      changeDelay: (by: string, ms: number) => this.metrics.changeDelay(by, ms / 1000),
      revocationDelay: (ms: number) => this.metrics.revocationDelay(ms / 1000),
    };
  }

  /** Sends what is gathered; a collector that does not answer is not waited for longer than `timeoutMs`. */
  async close(timeoutMs: number): Promise<void> {
    this.settings.close();
    const timeout = new Promise<void>((resolve) => setTimeout(resolve, timeoutMs).unref());
    this.#spoofAttempts.close();
    this.#refusedVerifications.close();
    this.#refusedWriteBacks.close();
    this.#refusedConnections.close();
    await Promise.race([this.#tracing?.close().catch(() => {}), timeout]);
    this.watches.close();
    await this.log.close();
  }
}

const FEED_MESSAGES: Readonly<Record<FeedState, readonly ["info" | "warn", string]>> = {
  tracking: ["info", "near cache on: the store tells of every change"],
  messages: [
    "warn",
    "near cache on published messages and cache.maxAge alone: the store refuses CLIENT TRACKING; changes made by other programs are seen late",
  ],
  lost: ["warn", "near cache bypassed: the store cannot be heard telling of changes"],
  refused: ["warn", "near cache off: the store refuses CLIENT TRACKING and SUBSCRIBE; each request reads the store"],
};
