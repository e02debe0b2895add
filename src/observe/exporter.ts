import type { SpanExporter } from "@opentelemetry/sdk-trace";
import type { OtlpProtocol } from "../core/trace-export.ts";

/** Loads OpenTelemetry's exporter for a protocol, and no other: gRPC brings a stack of its own. */
export async function openExporter(protocol: OtlpProtocol): Promise<SpanExporter> {
  switch (protocol) {
    case "http/protobuf":
      return new (await import("@opentelemetry/exporter-trace-otlp-proto")).OTLPTraceExporter();
    case "http/json":
      return new (await import("@opentelemetry/exporter-trace-otlp-http")).OTLPTraceExporter();
    case "grpc":
      return new (await import("@opentelemetry/exporter-trace-otlp-grpc")).OTLPTraceExporter();
  }
}

/**
 * A word for why spans were not taken: a status of HTTP or gRPC, or the code of a broken connection. The message of such
 * an error may hold what the collector answered, so it is not shown.
 */
export function exportFailure(error: unknown): string {
  if (!(error instanceof Error)) return "unknown";
  const { code } = error as { code?: unknown };
  if (typeof code === "string" || typeof code === "number") return String(code).slice(0, 40);
  return error.cause === undefined ? error.name : exportFailure(error.cause);
}
