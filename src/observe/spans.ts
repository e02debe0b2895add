import type { Attributes } from "@opentelemetry/api";
import { SpanKind } from "@opentelemetry/api";
import type { Exchange } from "../core/exchange.ts";
import type { StoreCommand } from "../core/store.ts";
import { newSpanId } from "../core/trace-context.ts";
import type { UpstreamAttempt } from "../core/upstream.ts";
import { ATTRIBUTES as A } from "./names.ts";

/**
 * What a closed exchange looks like as spans (OpenTelemetry's semantic conventions 1.44). Attributes are picked here by
 * name: no query, no header value, no key of the store and nothing of what is stored.
 */
export interface SpanInit {
  readonly name: string;
  readonly spanId: string;
  readonly parentSpanId: string | undefined;
  readonly kind: SpanKind;
  /** Milliseconds after the start of the exchange. */
  readonly startMs: number;
  readonly endMs: number;
  readonly failed: boolean;
  readonly attributes: Attributes;
}

/** The server span first; below it the look-up with its commands, and the attempt upstream. */
export function renderSpans(exchange: Exchange): SpanInit[] {
  const endMs = exchange.endedMs ?? 0;
  const spans = [serverSpan(exchange, endMs)];
  const resolveStartMs = exchange.resolveStartedMs ?? Infinity;
  const resolveEndMs = exchange.resolvedMs ?? endMs;
  const resolveSpanId = newSpanId();
  if (exchange.resolveStartedMs !== undefined)
    spans.push(resolveSpan(exchange, resolveSpanId, resolveStartMs, resolveEndMs));
  for (const command of exchange.storeCommands ?? []) {
    const startMs = exchange.sinceStart(command.startedMs);
    // What is asked later saves what the application wrote.
    const looksUp = startMs >= resolveStartMs && startMs <= resolveEndMs;
    spans.push(commandSpan(exchange, command, looksUp ? resolveSpanId : exchange.spanId));
  }
  for (const [index, attempt] of (exchange.upstreamAttempts ?? []).entries())
    spans.push(attemptSpan(exchange, attempt, index));
  if (exchange.forwardedMs !== undefined)
    spans.push(upstreamSpan(exchange, exchange.attemptMs ?? exchange.forwardedMs, endMs));
  return spans;
}

function serverSpan(exchange: Exchange, endMs: number): SpanInit {
  const { methodLabel, route, status, error } = exchange;
  const method = methodLabel === "_OTHER" ? "HTTP" : methodLabel;
  return {
    name: route === undefined ? method : `${method} ${route.id}`,
    spanId: exchange.spanId,
    parentSpanId: exchange.parentSpanId,
    kind: SpanKind.SERVER,
    startMs: 0,
    endMs,
    failed: status >= 500,
    attributes: {
      [A.method]: methodLabel,
      [A.path]: exchange.path,
      [A.scheme]: exchange.scheme,
      [A.host]: exchange.host,
      [A.client]: exchange.clientAddress,
      [A.protocolVersion]: exchange.httpVersion,
      [A.status]: status,
      [A.sessionOutcome]: exchange.session,
      [A.decision]: exchange.decision,
      [A.source]: exchange.source,
      ...optional(A.tlsVersion, exchange.tls?.version),
      ...optional(A.tlsCipher, exchange.tls?.cipher),
      ...optional(A.route, route?.id),
      ...optional(A.verification, exchange.verification?.protocol),
      ...optional(A.errorType, error ?? (status >= 500 ? String(status) : undefined)),
      ...optional(A.handle, exchange.handle),
      ...optional(A.limited, exchange.limited),
    },
  };
}

function resolveSpan(exchange: Exchange, spanId: string, startMs: number, endMs: number): SpanInit {
  const failed = exchange.session === "unavailable";
  return {
    name: "session resolve",
    spanId,
    parentSpanId: exchange.spanId,
    kind: SpanKind.INTERNAL,
    startMs,
    endMs,
    failed,
    attributes: {
      [A.sessionOutcome]: exchange.session,
      ...optional(A.sessionSource, exchange.sessionSource),
      ...optional(A.handle, exchange.handle),
      ...optional(A.errorType, failed ? "session_store_unavailable" : undefined),
    },
  };
}

function commandSpan(exchange: Exchange, command: StoreCommand, parentSpanId: string): SpanInit {
  const { server, name, script, failure, code } = command;
  return {
    name,
    spanId: newSpanId(),
    parentSpanId,
    kind: SpanKind.CLIENT,
    startMs: exchange.sinceStart(command.startedMs),
    endMs: exchange.sinceStart(command.endedMs),
    failed: failure !== undefined,
    attributes: {
      [A.dbSystem]: server.system,
      [A.dbOperation]: name,
      [A.dbNamespace]: server.namespace,
      ...optional(A.dbScript, script),
      ...optional(A.serverAddress, server.address),
      ...optional(A.serverPort, server.port),
      ...optional(A.dbStatus, code),
      ...optional(A.errorType, failure),
    },
  };
}

function upstreamSpan(exchange: Exchange, startMs: number, endMs: number): SpanInit {
  const { upstream = "", upstreamPeer, upstreamStatus, upstreamRetries, upstreamError } = exchange;
  const refused = upstreamStatus !== undefined && upstreamStatus >= 400 ? String(upstreamStatus) : undefined;
  return {
    ...clientSpan(exchange, upstream, upstreamPeer, {
      ...optional(A.status, upstreamStatus),
      ...optional(A.resendCount, upstreamRetries > 0 ? upstreamRetries : undefined),
      ...optional(A.errorType, upstreamError ?? refused),
    }),
    spanId: exchange.upstreamSpanId ?? newSpanId(),
    startMs,
    endMs: exchange.upstreamEndMs ?? endMs,
    failed: upstreamError !== undefined || refused !== undefined,
  };
}

/** One that failed, and was followed by another. */
function attemptSpan(exchange: Exchange, attempt: UpstreamAttempt, resends: number): SpanInit {
  const { upstream, peer, startedMs, endedMs, status, error, spanId } = attempt;
  return {
    ...clientSpan(exchange, upstream, peer, {
      ...optional(A.status, status),
      ...optional(A.resendCount, resends > 0 ? resends : undefined),
      ...optional(A.errorType, error ?? String(status)),
    }),
    spanId,
    startMs: startedMs,
    endMs: endedMs,
    failed: true,
  };
}

function clientSpan(exchange: Exchange, upstream: string, peer: string | undefined, more: Attributes) {
  const { upstreamScheme, methodLabel } = exchange;
  const colon = upstream.lastIndexOf(":");
  return {
    name: methodLabel === "_OTHER" ? "HTTP" : methodLabel,
    parentSpanId: exchange.spanId,
    kind: SpanKind.CLIENT,
    attributes: {
      [A.method]: methodLabel,
      // Without the query, which may carry secrets; the path is the one of the server span.
      [A.url]: `${upstreamScheme}://${upstream}${exchange.path}`,
      [A.serverAddress]: upstream.slice(0, colon),
      [A.serverPort]: Number(upstream.slice(colon + 1)),
      ...optional(A.peer, peer?.slice(0, peer.lastIndexOf(":")).replace(/^\[|\]$/g, "")),
      ...more,
    },
  };
}

function optional(name: string, value: string | number | undefined): Attributes {
  return value === undefined ? {} : { [name]: value };
}
