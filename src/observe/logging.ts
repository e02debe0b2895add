import pino from "pino";
import type { Exchange } from "../core/exchange.ts";
import type { AccessLines, LogLevel } from "../core/observe-settings.ts";
import { isoTime, renderAccessLine } from "./access-line.ts";
import { BatchedOutput } from "./batched-output.ts";
import type { EventName, Level } from "./events.ts";
import { ATTRIBUTES as A } from "./names.ts";
import { renderPretty } from "./pretty.ts";
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
  /** Share of the successful and fast requests that get an access line, 0 to 1. */
  readonly sample: number;
  /** Requests that took longer always get one, milliseconds. */
  readonly slowerThanMs: number;
  /** Lines for a person at a terminal; absent: JSON. */
  readonly pretty?: { readonly colours: boolean };
  /** Number of this process among several, in each line; absent: there is one process. */
  readonly worker?: number;
  /** Default: standard output, written in batches. */
  readonly destination?: LogDestination;
  /** Told how many lines were lost, because standard output was blocked or closed. */
  readonly onDropped?: (lines: number) => void;
}

/**
 * One access line a request, one event line a change of a session or of the gateway itself. Fields are picked by name,
 * so nothing of a request gets into a line by accident; `events.ts` lists them all.
 */
export class Log {
  /** These may be changed at any time; see `LogOptions`. */
  access: AccessLines;
  sample: number;
  slowerThanMs: number;
  readonly #worker: number | undefined;
  readonly #pino: pino.Logger;
  readonly #destination: LogDestination;
  readonly #output: BatchedOutput | undefined;
  readonly #requestEvents = new Ring<LogEvent>(EVENTS_KEPT);
  readonly #gatewayEvents = new Ring<LogEvent>(EVENTS_KEPT);

  constructor(options: LogOptions) {
    const { pretty, worker } = options;
    this.#worker = worker;
    this.access = options.access;
    this.sample = options.sample;
    this.slowerThanMs = options.slowerThanMs;
    this.#output =
      options.destination === undefined ? new BatchedOutput(STANDARD_OUTPUT, options.onDropped) : undefined;
    const destination = options.destination ?? (this.#output as BatchedOutput);
    this.#destination =
      pretty === undefined
        ? destination
        : { write: (line) => void destination.write(renderPretty(line, pretty.colours)) };
    this.#pino = pino(
      {
        level: options.level,
        base: worker === undefined ? null : { worker },
        timestamp: () => `,"time":"${isoTime(Date.now())}"`,
        formatters: { level: (label) => ({ level: label }) },
      },
      this.#destination,
    );
  }

  /** The lowest level that is written. */
  get level(): string {
    return this.#pino.level;
  }

  set level(level: LogLevel) {
    this.#pino.level = level;
  }

  /** The access line. */
  exchange(exchange: Exchange): void {
    if (this.access === "none") return;
    let share = 1;
    if (exchange.error === undefined && exchange.status < 500 && !exchange.watched) {
      if (this.access === "errors") return;
      if (this.sample < 1 && (exchange.endedMs ?? 0) <= this.slowerThanMs) {
        share = this.sample;
        if (Math.random() >= share) return;
      }
    }
    const level = exchange.status >= 500 ? "error" : exchange.error === "session_write_conflict" ? "warn" : "info";
    if (this.#pino.isLevelEnabled(level))
      this.#destination.write(renderAccessLine(exchange, level, share, this.#worker));
  }

  /** Something that happened in a request. @param fields names and values that are safe to show. */
  requestEvent(
    level: Level,
    event: EventName,
    message: string,
    exchange: Exchange,
    fields: Readonly<Record<string, unknown>>,
  ): void {
    const named = { event, ...requestFields(exchange), ...fields };
    this.#keep(level, named);
    this.#pino[level](named, message);
  }

  /** Something about the gateway itself. @param fields names and values that are safe to show. */
  event(level: Level, event: EventName, message: string, fields: Readonly<Record<string, unknown>> = {}): void {
    const named = { event, ...fields };
    if (level !== "debug") this.#keep(level, { ...named, msg: message });
    this.#pino[level](named, message);
  }

  /** A failure that nobody expected; the stack is for the log only. */
  unexpected(error: unknown, exchange?: Exchange): void {
    // What else is thrown may hold anything, and need not have a text.
    const err =
      error instanceof Error ? error : new Error(typeof error === "string" ? error : `a thrown ${typeof error}`);
    const named = {
      event: "error.unexpected" satisfies EventName,
      ...(exchange && requestFields(exchange)),
      "exception.type": err.name,
    };
    this.#keep("error", { ...named, "exception.stacktrace": framesOf(err) });
    this.#pino.error(
      { ...named, "exception.message": err.message, "exception.stacktrace": err.stack },
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

  /** Passes on lines that another process has made. @param lines whole ones. */
  relay(lines: Buffer): void {
    if (this.#output === undefined) this.#destination.write(lines.toString());
    else this.#output.writeLines(lines);
  }

  /** Writes what is gathered, and waits for it a little; the end. */
  async close(): Promise<void> {
    await this.#output?.end();
  }

  /** Writes what is gathered at once: the process ends now. */
  flush(): void {
    this.#output?.flush();
  }
}

/** The stack without the message, which may repeat what the failure was about. */
function framesOf({ stack = "" }: Error): string {
  return stack
    .split("\n")
    .filter((line) => /^ {4}at /.test(line))
    .join("\n");
}

function requestFields(exchange: Exchange) {
  return {
    trace_id: exchange.traceId,
    span_id: exchange.spanId,
    trace_flags: exchange.sampled ? "01" : "00",
    [A.client]: exchange.clientAddress,
    [A.route]: exchange.route?.id,
  };
}
