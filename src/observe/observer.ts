import type { Exchange } from "../core/exchange.ts";
import type { SessionEvent, SessionKey } from "../core/session.ts";
import type { FeedState, SessionStore, StoreObserver } from "../core/store.ts";
import { InstrumentedStore } from "./instrumented-store.ts";
import { type AccessLines, Log, type LogDestination } from "./logging.ts";
import { Metrics } from "./metrics.ts";
import { Recorder } from "./recorder.ts";
import { RefusedWriteBacks, SpoofAttempts } from "./suspicions.ts";
import { Tracing } from "./tracing.ts";
import { type Watch, Watches } from "./watches.ts";

export interface ObserverOptions {
  readonly version: string;
  readonly nodeVersion: string;
  readonly log: { readonly level: string; readonly access: AccessLines; readonly sample: number };
  readonly traces: {
    readonly ratio: number;
    readonly slowerThanMs: number;
    readonly errors: boolean;
    readonly exported: boolean;
    readonly exportDelayMs: number;
  };
  readonly recorder: { readonly exchanges: number; readonly slow: number; readonly errors: number };
  readonly logDestination?: LogDestination;
  /** See `LogOptions`. */
  readonly prettyLog?: { readonly colours: boolean };
}

/** One record, four renderings: takes every closed exchange once. */
export class Observer {
  readonly metrics: Metrics;
  readonly log: Log;
  readonly recorder: Recorder;
  readonly watches: Watches;
  readonly #tracing: Tracing | undefined;
  readonly #ratio: number;
  readonly #spoofAttempts: SpoofAttempts;
  readonly #refusedWriteBacks: RefusedWriteBacks;

  constructor(options: ObserverOptions) {
    const { version, traces, recorder, logDestination, prettyLog } = options;
    this.metrics = new Metrics(options);
    this.log = new Log({
      ...options.log,
      slowerThanMs: traces.slowerThanMs,
      onDropped: (lines) => this.metrics.logLinesDropped(lines),
      ...(prettyLog && { pretty: prettyLog }),
      ...(logDestination && { destination: logDestination }),
    });
    this.#spoofAttempts = new SpoofAttempts(this.log);
    this.#refusedWriteBacks = new RefusedWriteBacks(this.log);
    this.recorder = new Recorder({ ...recorder, slowerThanMs: traces.slowerThanMs });
    this.watches = new Watches({
      onBegan: (watch) => this.#watchChanged("watch.began", watch, { until: new Date(watch.endsAt).toISOString() }),
      onEnded: (watch, by) => this.#watchChanged("watch.ended", watch, { by, requests: watch.requests }),
    });
    this.#ratio = traces.ratio;
    if (traces.exported) {
      this.#tracing = new Tracing({ ...traces, version, onDropped: (spans) => this.metrics.spansDropped(spans) });
    }
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

  /** A session that an operator ended. */
  sessionRevoked(fields: Readonly<Record<string, unknown>>): void {
    this.metrics.sessionEvent("revoked");
    this.log.event("info", "session.revoked", "session revoked", fields);
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
  cacheObserver(ended: (key: SessionKey) => void) {
    let before: FeedState | undefined;
    return {
      ended,
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
    const timeout = new Promise<void>((resolve) => setTimeout(resolve, timeoutMs).unref());
    this.#spoofAttempts.close();
    this.#refusedWriteBacks.close();
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
