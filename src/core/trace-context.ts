import { randomFillSync } from "node:crypto";

/** W3C Trace Context: ids, reading and writing of `traceparent`. @see https://www.w3.org/TR/trace-context/ */

const POOL = Buffer.allocUnsafeSlow(8 * 1024);
let used = POOL.length;

/** Random hex from a pool that is refilled every few hundred requests: 16 bytes for a trace id, 8 for a span id. */
function randomHex(bytes: number): string {
  if (used + bytes > POOL.length) {
    randomFillSync(POOL);
    used = 0;
  }
  const hex = POOL.toString("hex", used, used + bytes);
  used += bytes;
  return hex;
}

/** 32 lower-case hex digits. */
export function newTraceId(): string {
  return randomHex(16);
}

/** 16 lower-case hex digits. */
export function newSpanId(): string {
  return randomHex(8);
}

export interface TraceParent {
  readonly traceId: string;
  readonly spanId: string;
  readonly sampled: boolean;
}

/**
 * Reads a `traceparent`; later versions are read as version 00, as §3.2.4 asks.
 * @returns `undefined` when it is malformed: the trace then starts here.
 */
export function parseTraceParent(value: string): TraceParent | undefined {
  const match = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(value);
  if (match === null) return undefined;
  const [, version, traceId = "", spanId = "", flags = "", rest] = match;
  if (version === "ff" || (version === "00" && rest !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

export function formatTraceParent(traceId: string, spanId: string, sampled: boolean): string {
  return `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`;
}
