import { type SpanContext, SpanKind, SpanStatusCode, TraceFlags } from "@opentelemetry/api";
import {
  defaultResource,
  detectResources,
  envDetector,
  type Resource,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter } from "@opentelemetry/sdk-trace";
import type { Exchange } from "../core/exchange.ts";
import type { ObserveSettings } from "../core/observe-settings.ts";
import type { TraceExport } from "../core/trace-export.ts";
import { exportFailure, openExporter } from "./exporter.ts";
import { renderSpans, type SpanInit } from "./spans.ts";

export interface TracingOptions {
  readonly rules: ObserveSettings["traces"];
  readonly traceExport: TraceExport;
  readonly version: string;
  readonly onExported: (spans: number) => void;
  readonly onDropped: (spans: number) => void;
  /** Told when the collector stops taking spans, with a word for the reason, and when it takes them again. */
  readonly onCollector: (failure: string | undefined) => void;
}

/**
 * Spans, rendered from a closed exchange and only when they are to be exported: a request that is not exported has
 * never made one. The standard OTEL_* variables say where they go.
 */
export class Tracing {
  /** Which exchanges are exported; replaced when the settings change. */
  rules: ObserveSettings["traces"];
  readonly #options: TracingOptions;
  readonly #processor: BatchSpanProcessor;
  readonly #resource: Resource;
  readonly #scope: { readonly name: string; readonly version: string };
  #queued = 0;
  #failing = false;

  /** Loads the exporter that the environment asks for. */
  static async open(options: TracingOptions): Promise<Tracing> {
    return new Tracing(options, await openExporter(options.traceExport.protocol));
  }

  private constructor(options: TracingOptions, exporter: SpanExporter) {
    const { rules, version, traceExport } = options;
    this.rules = rules;
    this.#options = options;
    this.#scope = { name: "coatcheck", version };
    this.#resource = defaultResource()
      .merge(resourceFromAttributes({ "service.name": "coatcheck", "service.version": version }))
      .merge(detectResources({ detectors: [envDetector] }));
    this.#processor = new BatchSpanProcessor({
      exporter: this.#counting(exporter),
      maxQueueSize: traceExport.maxQueuedSpans,
      maxExportBatchSize: traceExport.maxBatchSpans,
      scheduledDelayMillis: traceExport.scheduleDelayMs,
      exportTimeoutMillis: traceExport.exportTimeoutMs,
    });
  }

  /** The export decision, taken when everything is known. */
  exchange(exchange: Exchange): void {
    if (!this.#isWanted(exchange)) return;
    const spans = renderSpans(exchange);
    if (this.#queued + spans.length > this.#options.traceExport.maxQueuedSpans) {
      this.#options.onDropped(spans.length);
      return;
    }
    this.#queued += spans.length;
    for (const span of spans) this.#processor.onEnd(this.#readable(exchange, span));
  }

  #isWanted(exchange: Exchange): boolean {
    const { errors, slowerThanMs } = this.rules;
    if (exchange.sampled || exchange.watched) return true;
    if (errors && (exchange.error !== undefined || exchange.status >= 500)) return true;
    return (exchange.endedMs ?? 0) > slowerThanMs;
  }

  close(): Promise<void> {
    return this.#processor.shutdown();
  }

  #counting(exporter: SpanExporter): SpanExporter {
    return {
      export: (spans, done) =>
        exporter.export(spans, (result) => {
          this.#queued -= spans.length;
          const failed = result.code !== 0;
          if (failed) this.#options.onDropped(spans.length);
          else this.#options.onExported(spans.length);
          if (failed !== this.#failing) {
            this.#failing = failed;
            this.#options.onCollector(failed ? exportFailure(result.error) : undefined);
          }
          done(result);
        }),
      shutdown: () => exporter.shutdown(),
      ...(exporter.forceFlush && { forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve() }),
    };
  }

  #readable({ traceId, startedAt }: Exchange, span: SpanInit): ReadableSpan {
    const { kind, parentSpanId } = span;
    const context = (spanId: string): SpanContext => ({ traceId, spanId, traceFlags: TraceFlags.SAMPLED });
    const own = context(span.spanId);
    return {
      name: span.name,
      kind,
      spanContext: () => own,
      ...(parentSpanId !== undefined && {
        parentSpanContext: { ...context(parentSpanId), isRemote: kind === SpanKind.SERVER },
      }),
      startTime: toHrTime(startedAt + span.startMs),
      endTime: toHrTime(startedAt + span.endMs),
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

/** Seconds and nanoseconds. */
function toHrTime(ms: number): [seconds: number, nanoseconds: number] {
  const seconds = Math.floor(ms / 1000);
  return [seconds, Math.round((ms - seconds * 1000) * 1e6)];
}
