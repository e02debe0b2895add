import { readFileSync } from "node:fs";
import { readProblem } from "../core/file-problems.ts";
import { OTLP_PROTOCOLS, type OtlpProtocol, type TraceExport } from "../core/trace-export.ts";
import { maskUrl } from "./fields.ts";
import type { Environment } from "./load.ts";

/**
 * The `OTEL_*` variables that decide whether and how spans leave. The rest is read by OpenTelemetry's exporters, which
 * go on without what they cannot use and tell nobody: so it is looked at here, and a mistake is a problem.
 */

/** The specification's defaults, but for the queue: one busy second at 100 % is more than 2048 spans. */
const BATCH_DEFAULTS = {
  OTEL_BSP_SCHEDULE_DELAY: 5_000,
  OTEL_BSP_EXPORT_TIMEOUT: 30_000,
  OTEL_BSP_MAX_QUEUE_SIZE: 4_096,
  OTEL_BSP_MAX_EXPORT_BATCH_SIZE: 512,
} as const;
const MAX_WHOLE = 2 ** 31 - 1;

/**
 * What the standard variables say, so that nothing is sent anywhere that nobody named: an endpoint has to be set, or
 * `OTEL_TRACES_EXPORTER` has to be `otlp`.
 * @param problems gets a line for each variable that cannot be obeyed.
 * @returns `undefined`: no spans are exported.
 */
export function readTraceExport(environment: Environment, problems: string[]): TraceExport | undefined {
  if (environment.OTEL_SDK_DISABLED?.trim().toLowerCase() === "true") return undefined;
  const exporter = environment.OTEL_TRACES_EXPORTER?.trim() || undefined;
  if (exporter === "none") return undefined;
  if (exporter !== undefined && exporter !== "otlp") {
    problems.push(`OTEL_TRACES_EXPORTER: "${exporter.slice(0, 100)}" is not supported; write otlp or none`);
    return undefined;
  }
  const endpoint = specific(environment, "ENDPOINT");
  if (exporter === undefined && endpoint === undefined) return undefined;
  const protocol = readProtocol(environment, problems);
  if (endpoint !== undefined && !isEndpoint(endpoint[1], protocol)) {
    problems.push(`${endpoint[0]}: "${maskUrl(endpoint[1])}" is not a URL such as http://127.0.0.1:4318`);
  }
  checkRest(environment, problems);
  const whole = (name: keyof typeof BATCH_DEFAULTS) => readWhole(environment, name, problems);
  const maxQueuedSpans = whole("OTEL_BSP_MAX_QUEUE_SIZE");
  return {
    protocol,
    scheduleDelayMs: whole("OTEL_BSP_SCHEDULE_DELAY"),
    exportTimeoutMs: whole("OTEL_BSP_EXPORT_TIMEOUT"),
    maxQueuedSpans,
    maxBatchSpans: Math.min(whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"), maxQueuedSpans),
  };
}

/** A variable that may be set for traces alone, and its name. An empty one is as good as none, by the specification. */
function specific(environment: Environment, name: string): [name: string, value: string] | undefined {
  for (const full of [`OTEL_EXPORTER_OTLP_TRACES_${name}`, `OTEL_EXPORTER_OTLP_${name}`]) {
    const value = environment[full]?.trim();
    if (value) return [full, value];
  }
  return undefined;
}

function readProtocol(environment: Environment, problems: string[]): OtlpProtocol {
  const [name, value] = specific(environment, "PROTOCOL") ?? ["", OTLP_PROTOCOLS[0]];
  const protocol = OTLP_PROTOCOLS.find((known) => known === value);
  if (protocol === undefined)
    problems.push(`${name}: "${value.slice(0, 100)}" is not supported; write ${OTLP_PROTOCOLS.join(", ")}`);
  return protocol ?? OTLP_PROTOCOLS[0];
}

/** With gRPC, `host:port` will do. */
function isEndpoint(text: string, protocol: OtlpProtocol): boolean {
  if (protocol === "grpc" && /^[\w.-]+:\d{1,5}$/.test(text)) return true;
  return /^https?:\/\//i.test(text) && URL.canParse(text);
}

/** What only the exporters use. No value is told: headers hold tokens, and a key may stand where its file should. */
function checkRest(environment: Environment, problems: string[]): void {
  const [timeout, compression, headers] = ["TIMEOUT", "COMPRESSION", "HEADERS"].map((n) => specific(environment, n));
  if (timeout !== undefined && !(Number(timeout[1]) > 0))
    problems.push(`${timeout[0]}: must be a number of milliseconds, such as 10000`);
  if (compression !== undefined && compression[1] !== "gzip" && compression[1] !== "none")
    problems.push(`${compression[0]}: must be gzip or none`);
  if (headers !== undefined && !headers[1].split(",").every((pair) => /^\s*([^\s=]+\s*=.*)?$/.test(pair)))
    problems.push(`${headers[0]}: must be name=value, separated by commas`);
  for (const name of ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"]) {
    const file = specific(environment, name);
    if (file === undefined) continue;
    try {
      readFileSync(file[1]);
    } catch (error) {
      problems.push(`${file[0]}: the file ${readProblem(error)}`);
    }
  }
}

function readWhole(environment: Environment, name: keyof typeof BATCH_DEFAULTS, problems: string[]): number {
  const text = environment[name]?.trim();
  if (!text) return BATCH_DEFAULTS[name];
  const value = /^\d{1,10}$/.test(text) ? Number(text) : 0;
  if (value >= 1 && value <= MAX_WHOLE) return value;
  problems.push(`${name}: must be a whole number from 1 to ${MAX_WHOLE}`);
  return BATCH_DEFAULTS[name];
}
