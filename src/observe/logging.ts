import pino from "pino";
import type { Exchange } from "../core/exchange.ts";
import type { AccessLines, LogLevel, ObserveSettings } from "../core/observe-settings.ts";
import type { Handle } from "../core/session.ts";
import { isoTime, renderAccessLine } from "./access-line.ts";
import { BatchedOutput } from "./batched-output.ts";
import { ATTRIBUTES as A } from "./names.ts";
import { Ring } from "./recorder.ts";

const STANDARD_OUTPUT = 1;
/** Event lines that are kept for a dump: of requests, and apart from them of the gateway, which busy hours would wash away. */
const EVENTS_KEPT = 250;

/** An event line that is kept: what the line says, but for the message of a failure that nobody expected. */
export interface LogEvent {
  /** ISO 8601, UTC. */
  readonly time: string;
  readonly level: string;
  readonly event: string;
  readonly [field: string]: unknown;
}

export interface LogDestination {
  write(line: string): void;
}

export interface LogOptions {
  readonly level: LogLevel;
  readonly access: AccessLines;
  /** Default: standard output, written in batches. */
  readonly destination?: LogDestination;
}

/**
 * JSON lines: one access line a request, one event line a change of a session or of the gateway itself. Fields are
 * picked here by name, so nothing of a request gets into a line by accident.
 */
export class Log {
  readonly #pino: pino.Logger;
  #access: AccessLines;
  readonly #destination: LogDestination;
  readonly #output: BatchedOutput | undefined;
  readonly #requestEvents = new Ring<LogEvent>(EVENTS_KEPT);
  readonly #gatewayEvents = new Ring<LogEvent>(EVENTS_KEPT);

  constructor(options: LogOptions) {
    this.#output = options.destination === undefined ? new BatchedOutput(STANDARD_OUTPUT) : undefined;
    const destination = options.destination ?? (this.#output as BatchedOutput);
    this.#access = options.access;
    this.#destination = destination;
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

  /** From now on. */
  adjust({ level, access }: ObserveSettings["log"]): void {
    this.#pino.level = level;
    this.#access = access;
  }

  /** The access line. */
  exchange(exchange: Exchange): void {
    if (this.#access === "none" || (this.#access === "errors" && exchange.error === undefined && exchange.status < 500))
      return;
    const level = exchange.status >= 500 ? "error" : exchange.error === "session_write_conflict" ? "warn" : "info";
    if (this.#pino.isLevelEnabled(level)) this.#destination.write(renderAccessLine(exchange, level));
  }

  /** A change in the life of a session. */
  sessionEvent(event: string, exchange: Exchange, handle: Handle | undefined): void {
    const fields = {
      event: `session.${event}`,
      trace_id: exchange.traceId,
      span_id: exchange.spanId,
      handle,
      [A.route]: exchange.route?.id,
    };
    this.#keep("info", fields);
    this.#pino.info(fields, `session ${event}`);
  }

  /** Something about the gateway itself. @param fields names and values that are safe to show. */
  event(
    level: "debug" | "info" | "warn" | "error",
    event: string,
    message: string,
    fields: Readonly<Record<string, unknown>> = {},
  ): void {
    const named = { event, ...fields };
    if (level !== "debug") this.#keep(level, { ...named, msg: message });
    this.#pino[level](named, message);
  }

  /** A failure that nobody expected; the stack is for the log only. */
  unexpected(error: unknown, exchange?: Exchange): void {
    const err = error instanceof Error ? error : new Error(String(error));
    this.#keep("error", {
      event: "error.unexpected",
      trace_id: exchange?.traceId,
      "exception.type": err.name,
      "exception.stacktrace": framesOf(err),
    });
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

  /** The last events, newest first, whatever the level of the log; access lines are none. */
  events(): LogEvent[] {
    return [...this.#gatewayEvents.newestFirst(EVENTS_KEPT), ...this.#requestEvents.newestFirst(EVENTS_KEPT)].sort(
      (a, b) => b.time.localeCompare(a.time),
    );
  }

  #keep(level: string, fields: { readonly event: string; readonly [field: string]: unknown }): void {
    const ring = fields.trace_id === undefined || level === "error" ? this.#gatewayEvents : this.#requestEvents;
    ring.push({ time: isoTime(Date.now()), level, ...fields });
  }

  /** Writes what is gathered; the end. */
  close(): void {
    this.#output?.end();
  }
}

/** The stack without the message, which may repeat what the failure was about. */
function framesOf({ stack = "" }: Error): string {
  return stack
    .split("\n")
    .filter((line) => /^ {4}at /.test(line))
    .join("\n");
}
