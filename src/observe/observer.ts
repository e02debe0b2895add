import type { Exchange } from "../core/exchange.ts";
import { Log, type LogDestination } from "./logging.ts";
import { Metrics } from "./metrics.ts";
import { Recorder } from "./recorder.ts";
import { Tracing } from "./tracing.ts";

export interface ObserverOptions {
  readonly version: string;
  readonly nodeVersion: string;
  readonly log: { readonly level: string; readonly access: "all" | "errors" | "none" };
  readonly traces: {
    readonly ratio: number;
    readonly slowerThanMs: number;
    readonly errors: boolean;
    readonly exported: boolean;
  };
  readonly recorder: { readonly exchanges: number; readonly slow: number; readonly errors: number };
  readonly logDestination?: LogDestination;
}

/** One record, four renderings: takes every closed exchange once. */
export class Observer {
  readonly metrics: Metrics;
  readonly log: Log;
  readonly recorder: Recorder;
  readonly #tracing: Tracing | undefined;
  readonly #ratio: number;

  constructor(options: ObserverOptions) {
    const { version, traces, recorder, logDestination } = options;
    this.metrics = new Metrics(options);
    this.log = new Log({ ...options.log, ...(logDestination && { destination: logDestination }) });
    this.recorder = new Recorder({ ...recorder, slowerThanMs: traces.slowerThanMs });
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
    this.#tracing?.exchange(exchange);
    this.recorder.keep(exchange);
  }

  sessionEvent(event: string, exchange: Exchange): void {
    this.metrics.sessionEvent(event);
    this.log.sessionEvent(event, exchange);
  }

  /** Sends what is gathered; a collector that does not answer is not waited for longer than `timeoutMs`. */
  async close(timeoutMs: number): Promise<void> {
    const timeout = new Promise<void>((resolve) => setTimeout(resolve, timeoutMs).unref());
    await Promise.race([this.#tracing?.close().catch(() => {}), timeout]);
    this.log.close();
  }
}
