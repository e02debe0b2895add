import {
  type Attributes,
  type HrTime,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
} from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import {
  defaultResource,
  detectResources,
  envDetector,
  type Resource,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter } from "@opentelemetry/sdk-trace";
import type { Exchange } from "../core/exchange.ts";
import { newSpanId } from "../core/trace-context.ts";
import { ATTRIBUTES as A } from "./names.ts";

export interface TracingOptions {
  readonly ratio: number;
  readonly slowerThanMs: number;
  readonly errors: boolean;
  /** How long spans are gathered before they are sent, milliseconds. */
  readonly exportDelayMs: number;
  readonly version: string;
  readonly onDropped: (spans: number) => void;
}

/** Spans waiting for the collector; beyond these they are dropped and counted. */
const MAX_QUEUED_SPANS = 4096;

/**
 * Spans, rendered from a closed exchange and only when they are to be exported: a request that is not exported has
 * never made one. The standard OTEL_* variables say where they go.
 */
export class Tracing {
  readonly #options: TracingOptions;
  readonly #processor: BatchSpanProcessor;
  readonly #resource: Resource;
  readonly #scope: { readonly name: string; readonly version: string };
  #queued = 0;

  constructor(options: TracingOptions) {
    this.#options = options;
    this.#scope = { name: "coatcheck", version: options.version };
    this.#resource = defaultResource()
      .merge(resourceFromAttributes({ "service.name": "coatcheck", "service.version": options.version }))
      .merge(detectResources({ detectors: [envDetector] }));
    this.#processor = new BatchSpanProcessor({
      exporter: this.#counting(new OTLPTraceExporter()),
      maxQueueSize: MAX_QUEUED_SPANS,
      scheduledDelayMillis: options.exportDelayMs,
    });
  }

  /** The export decision, taken when everything is known. */
  exchange(exchange: Exchange): void {
    const { slowerThanMs, errors } = this.#options;
    const failed = exchange.error !== undefined || exchange.status >= 500;
    if (!exchange.sampled && !(errors && failed) && (exchange.endedMs ?? 0) <= slowerThanMs) return;
    const spans = this.#render(exchange);
    if (this.#queued + spans.length > MAX_QUEUED_SPANS) {
      this.#options.onDropped(spans.length);
      return;
    }
    this.#queued += spans.length;
    for (const span of spans) this.#processor.onEnd(span);
  }

  flush(): Promise<void> {
    return this.#processor.forceFlush();
  }

  close(): Promise<void> {
    return this.#processor.shutdown();
  }

  #counting(exporter: SpanExporter): SpanExporter {
    return {
      export: (spans, done) =>
        exporter.export(spans, (result) => {
          this.#queued -= spans.length;
          if (result.code !== 0) this.#options.onDropped(spans.length);
          done(result);
        }),
      shutdown: () => exporter.shutdown(),
      ...(exporter.forceFlush && { forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve() }),
    };
  }

  #render(exchange: Exchange): ReadableSpan[] {
    const endMs = exchange.endedMs ?? 0;
    const spans = [this.#serverSpan(exchange, endMs)];
    if (exchange.resolveStartedMs !== undefined) {
      spans.push(
        this.#span(exchange, {
          name: "session resolve",
          spanId: newSpanId(),
          kind: SpanKind.INTERNAL,
          startMs: exchange.resolveStartedMs,
          endMs: exchange.resolvedMs ?? endMs,
          failed: exchange.session === "unavailable",
          attributes: { [A.sessionOutcome]: exchange.session, ...optional(A.handle, exchange.handle) },
        }),
      );
    }
    if (exchange.forwardedMs !== undefined) spans.push(this.#upstreamSpan(exchange, exchange.forwardedMs, endMs));
    return spans;
  }

  #serverSpan(exchange: Exchange, endMs: number): ReadableSpan {
    const { methodLabel, route, status, error } = exchange;
    const method = methodLabel === "_OTHER" ? "HTTP" : methodLabel;
    return this.#span(exchange, {
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
        ...optional(A.route, route?.id),
        ...optional(A.errorType, error),
        ...optional(A.handle, exchange.handle),
      },
    });
  }

  #upstreamSpan(exchange: Exchange, startMs: number, endMs: number): ReadableSpan {
    const { upstream = "", upstreamStatus, error } = exchange;
    const colon = upstream.lastIndexOf(":");
    return this.#span(exchange, {
      name: exchange.methodLabel === "_OTHER" ? "HTTP" : exchange.methodLabel,
      spanId: exchange.upstreamSpanId ?? newSpanId(),
      kind: SpanKind.CLIENT,
      startMs,
      endMs: exchange.upstreamEndMs ?? endMs,
      failed: error !== undefined || (upstreamStatus ?? 0) >= 400,
      attributes: {
        [A.method]: exchange.methodLabel,
        [A.serverAddress]: upstream.slice(0, colon),
        [A.serverPort]: Number(upstream.slice(colon + 1)),
        ...optional(A.status, upstreamStatus),
        ...optional(A.errorType, error),
      },
    });
  }

  #span(exchange: Exchange, span: SpanInit): ReadableSpan {
    const context = (spanId: string): SpanContext => ({
      traceId: exchange.traceId,
      spanId,
      traceFlags: TraceFlags.SAMPLED,
    });
    const own = context(span.spanId);
    const parentSpanId = span.kind === SpanKind.SERVER ? span.parentSpanId : exchange.spanId;
    return {
      name: span.name,
      kind: span.kind,
      spanContext: () => own,
      ...(parentSpanId !== undefined && {
        parentSpanContext: { ...context(parentSpanId), isRemote: span.kind === SpanKind.SERVER },
      }),
      startTime: toHrTime(exchange.startedAt + span.startMs),
      endTime: toHrTime(exchange.startedAt + span.endMs),
      duration: toHrTime(span.endMs - span.startMs),
      status: { code: span.failed ? SpanStatusCode.ERROR : SpanStatusCode.UNSET },
      attributes: span.attributes,
      links: [],
      events: [],
      ended: true,
      resource: this.#resource,
      instrumentationScope: this.#scope,
      droppedAttributesCount: 0,
      droppedEventsCount: 0,
      droppedLinksCount: 0,
    };
  }
}

interface SpanInit {
  readonly name: string;
  readonly spanId: string;
  readonly parentSpanId?: string | undefined;
  readonly kind: SpanKind;
  /** Milliseconds after the start of the exchange. */
  readonly startMs: number;
  readonly endMs: number;
  readonly failed: boolean;
  readonly attributes: Attributes;
}

function optional(name: string, value: string | number | undefined): Attributes {
  return value === undefined ? {} : { [name]: value };
}

/** Seconds and nanoseconds. */
function toHrTime(ms: number): HrTime {
  const seconds = Math.floor(ms / 1000);
  return [seconds, Math.round((ms - seconds * 1000) * 1e6)];
}
