/** Label values from closed sets: nothing that a client sends may become one. */

/** RFC 9110 §9, PATCH (RFC 5789) and QUERY; anything else is `_OTHER` (OpenTelemetry's rule for `http.request.method`). */
const METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"] as const;

export const METHOD_LABELS = [...METHODS, "_OTHER"] as const;
export type MethodLabel = (typeof METHOD_LABELS)[number];

const KNOWN: ReadonlySet<string> = new Set(METHODS);

export function methodLabel(method: string): MethodLabel {
  return KNOWN.has(method) ? (method as MethodLabel) : "_OTHER";
}
