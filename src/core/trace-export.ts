/** How spans are encoded on their way to a collector, by the names of OpenTelemetry's `OTEL_EXPORTER_OTLP_PROTOCOL`. */
export const OTLP_PROTOCOLS = ["http/protobuf", "http/json", "grpc"] as const;
export type OtlpProtocol = (typeof OTLP_PROTOCOLS)[number];

/** Where the exporter goes and with which headers it reads from the `OTEL_*` variables itself. */
export interface TraceExport {
  readonly protocol: OtlpProtocol;
  /** How long spans wait for others before they are sent, milliseconds. */
  readonly scheduleDelayMs: number;
  /** How long one batch may take. */
  readonly exportTimeoutMs: number;
  /** Spans that may wait; beyond these they are dropped and counted. */
  readonly maxQueuedSpans: number;
  readonly maxBatchSpans: number;
}
