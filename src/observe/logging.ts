import pino from "pino";
import type { Exchange } from "../core/exchange.ts";
import { isoTime, renderAccessLine } from "./access-line.ts";
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

/** How much is gathered before a write, and how long it waits: a write every few lines cost more CPU than all else. */
const BATCH_BYTES = 64 * 1024;
/** Lines that a blocked standard output keeps waiting, at most; beyond this they are lost, not the process. */
const MAX_WAITING_BYTES = 16 * 1024 * 1024;
const FLUSH_INTERVAL_MS = 250;

/**
 * JSON lines: one access line a request, one event line a change of a session or of the gateway itself. Fields are
 * picked here by name, so nothing of a request gets into a line by accident.
 */
export class Log {
  readonly #pino: pino.Logger;
  readonly #access: LogOptions["access"];
  readonly #destination: LogDestination;
  readonly #flush: () => void;

  constructor(options: LogOptions) {
    const { destination, flush } =
      options.destination === undefined ? standardOutput() : { destination: options.destination, flush: () => {} };
    this.#access = options.access;
    this.#destination = destination;
    this.#flush = flush;
    this.#pino = pino(
      {
        level: options.level,
        base: null,
        timestamp: () => `,"time":"${isoTime(Date.now())}"`,
        formatters: { level: (label) => ({ level: label }) },
      },
      destination,
    );
  }

  /** The access line. */
  exchange(exchange: Exchange): void {
    if (this.#access === "none" || (this.#access === "errors" && exchange.error === undefined && exchange.status < 500))
      return;
    const level = exchange.status >= 500 ? "error" : exchange.error === "session_write_conflict" ? "warn" : "info";
    if (this.#pino.isLevelEnabled(level)) this.#destination.write(renderAccessLine(exchange, level));
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
  const stdout = pino.destination({
    fd: 1,
    sync: false,
    minLength: BATCH_BYTES,
    maxWrite: 2 * BATCH_BYTES,
    maxLength: MAX_WAITING_BYTES,
  });
  const timer = setInterval(() => stdout.flush(), FLUSH_INTERVAL_MS).unref();
  return {
    destination: stdout,
    flush: () => {
      clearInterval(timer);
      stdout.flushSync();
    },
  };
}
