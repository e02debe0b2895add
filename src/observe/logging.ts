import pino from "pino";
import type { Exchange } from "../core/exchange.ts";
import { ATTRIBUTES as A } from "./names.ts";

export interface LogDestination {
  write(line: string): void;
}

export interface LogOptions {
  readonly level: string;
  readonly access: "all" | "errors" | "none";
  /** Default: standard output, written in batches. */
  readonly destination?: LogDestination;
}

/** How much is gathered before a write, and how long it waits at the most. */
const BATCH_BYTES = 4096;
const FLUSH_INTERVAL_MS = 250;

/**
 * JSON lines: one access line a request, one event line a change of a session or of the gateway itself. Fields are
 * picked here by name, so nothing of a request gets into a line by accident.
 */
export class Log {
  readonly #pino: pino.Logger;
  readonly #access: LogOptions["access"];
  readonly #flush: () => void;

  constructor(options: LogOptions) {
    const { destination, flush } =
      options.destination === undefined ? standardOutput() : { destination: options.destination, flush: () => {} };
    this.#access = options.access;
    this.#flush = flush;
    this.#pino = pino(
      {
        level: options.level,
        base: null,
        timestamp: pino.stdTimeFunctions.isoTime,
        formatters: { level: (label) => ({ level: label }) },
      },
      destination,
    );
  }

  /** The access line. */
  exchange(exchange: Exchange): void {
    if (this.#access === "none" || (this.#access === "errors" && exchange.error === undefined && exchange.status < 500))
      return;
    const { status, error, session, stripped } = exchange;
    const line = {
      event: "http.access",
      trace_id: exchange.traceId,
      span_id: exchange.spanId,
      trace_flags: exchange.sampled ? "01" : "00",
      [A.method]: exchange.method,
      [A.host]: exchange.host,
      [A.path]: exchange.path,
      [A.route]: exchange.route?.id,
      [A.status]: status,
      [A.source]: exchange.source,
      [A.errorType]: error,
      error_message: exchange.errorMessage,
      [A.client]: exchange.clientAddress,
      [A.sessionOutcome]: session,
      handle: exchange.handle,
      [A.decision]: exchange.decision,
      stripped: exchange.strippedNames.length === 0 ? undefined : stripped,
      upstream: exchange.upstream,
      duration_s: (exchange.endedMs ?? 0) / 1000,
      bytes_in: exchange.requestBytes,
      bytes_out: exchange.responseBytes,
    };
    if (status >= 500) this.#pino.error(line, "request");
    else if (error === "session_write_conflict") this.#pino.warn(line, "request");
    else this.#pino.info(line, "request");
  }

  /** A change in the life of a session. */
  sessionEvent(event: string, exchange: Exchange): void {
    this.#pino.info(
      {
        event: `session.${event}`,
        trace_id: exchange.traceId,
        span_id: exchange.spanId,
        handle: exchange.handle,
        [A.route]: exchange.route?.id,
      },
      `session ${event}`,
    );
  }

  /** Something about the gateway itself. @param fields names and values that are safe to show. */
  event(
    level: "info" | "warn" | "error",
    event: string,
    message: string,
    fields: Readonly<Record<string, unknown>> = {},
  ): void {
    this.#pino[level]({ event, ...fields }, message);
  }

  /** A failure that nobody expected; the stack is for the log only. */
  unexpected(error: unknown, exchange?: Exchange): void {
    const err = error instanceof Error ? error : new Error(String(error));
    this.#pino.error(
      {
        event: "error.unexpected",
        trace_id: exchange?.traceId,
        "exception.type": err.name,
        "exception.message": err.message,
        "exception.stacktrace": err.stack,
      },
      "unexpected error",
    );
  }

  /** Writes what is gathered. */
  flush(): void {
    this.#flush();
  }
}

function standardOutput(): { destination: LogDestination; flush: () => void } {
  const stdout = pino.destination({ fd: 1, sync: false, minLength: BATCH_BYTES });
  const timer = setInterval(() => stdout.flush(), FLUSH_INTERVAL_MS).unref();
  return {
    destination: stdout,
    flush: () => {
      clearInterval(timer);
      stdout.flushSync();
    },
  };
}
