import type { Exchange } from "../core/exchange.ts";
import { ATTRIBUTES as A } from "./names.ts";

/**
 * The access line, in the shape of pino's other lines. It is written piece by piece because an object of twenty fields
 * through a general serializer cost as much as the rest of a request's records together. An allow-list: a new field of
 * the exchange appears here or nowhere. Words of our own are put in as they are, everything else through `JSON.stringify`.
 *
 * @param share of such lines that is written; 1: all.
 * @param worker number of the one of several processes that served it; absent: there is one process.
 */
export function renderAccessLine(
  exchange: Exchange,
  level: "info" | "warn" | "error",
  share = 1,
  worker?: number,
): string {
  const { route, error, errorMessage, handle, upstream, stripped } = exchange;
  const durationMs = exchange.endedMs ?? 0;
  let line =
    `{"level":"${level}","time":"${isoTime(Date.now())}","event":"http.access","trace_id":"${exchange.traceId}"` +
    `,"span_id":"${exchange.spanId}","trace_flags":"${exchange.sampled ? "01" : "00"}"` +
    `,"${A.method}":${JSON.stringify(exchange.method)},"${A.host}":${JSON.stringify(exchange.host)}` +
    `,"${A.path}":${JSON.stringify(exchange.path)},"${A.status}":${exchange.status},"${A.source}":"${exchange.source}"` +
    `,"${A.client}":"${exchange.clientAddress}","${A.sessionOutcome}":"${exchange.session}"` +
    `,"${A.decision}":"${exchange.decision}","duration_s":${durationMs / 1000}` +
    `,"bytes_in":${exchange.requestBytes},"bytes_out":${exchange.responseBytes}`;
  if (route !== undefined) line += `,"${A.route}":${JSON.stringify(route.id)}`;
  if (exchange.verification !== undefined) line += `,"${A.verification}":"${exchange.verification.protocol}"`;
  if (exchange.sessionSource !== undefined) line += `,"${A.sessionSource}":"${exchange.sessionSource}"`;
  if (handle !== undefined) line += `,"handle":"${handle}"`;
  if (exchange.logout !== undefined) line += `,"logout":"${exchange.logout}"`;
  if (upstream !== undefined) line += `,"upstream":"${upstream}"`;
  if (error !== undefined) line += `,"${A.errorType}":"${error}","error_message":${JSON.stringify(errorMessage ?? "")}`;
  if (exchange.limited !== undefined) line += `,"limited":"${exchange.limited}"`;
  if (share < 1) line += `,"sample":${share}`;
  if (stripped !== undefined) line += `,"stripped":${JSON.stringify(stripped)}`;
  if (worker !== undefined) line += `,"worker":${worker}`;
  return `${line},"msg":"request"}\n`;
}

let lastSecond = 0;
/** Up to and with the point before the milliseconds. */
let lastText = "";

/** ISO 8601 in UTC; formatted once a second. */
export function isoTime(ms: number): string {
  const second = Math.floor(ms / 1000);
  if (second !== lastSecond) {
    lastSecond = second;
    lastText = new Date(second * 1000).toISOString().slice(0, -4);
  }
  const fraction = ms - second * 1000;
  return `${lastText}${fraction < 10 ? "00" : fraction < 100 ? "0" : ""}${fraction}Z`;
}
