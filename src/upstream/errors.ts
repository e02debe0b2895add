import { AssertionError } from "node:assert";
import { errors } from "undici";
import { type ErrorCode, ProxyError } from "../core/errors.ts";

/** What node and undici call a failure, and what RFC 9209 calls it. */
const CODES: Readonly<Record<string, ErrorCode>> = {
  ENOTFOUND: "dns_error",
  EAI_AGAIN: "dns_error",
  EAI_FAIL: "dns_error",
  ECONNREFUSED: "connection_refused",
  ECONNRESET: "connection_terminated",
  EPIPE: "connection_terminated",
  UND_ERR_SOCKET: "connection_terminated",
  UND_ERR_CLOSED: "connection_terminated",
  UND_ERR_DESTROYED: "connection_terminated",
  ETIMEDOUT: "connection_timeout",
  UND_ERR_CONNECT_TIMEOUT: "connection_timeout",
  // No file descriptor left for another connection: it is the gateway that is full, not the upstream.
  EMFILE: "connection_limit_reached",
  ENFILE: "connection_limit_reached",
  EHOSTUNREACH: "destination_ip_unroutable",
  ENETUNREACH: "destination_ip_unroutable",
  UND_ERR_HEADERS_TIMEOUT: "http_response_timeout",
  UND_ERR_BODY_TIMEOUT: "connection_read_timeout",
  UND_ERR_HEADERS_OVERFLOW: "http_response_header_section_size",
};

/**
 * What node calls it when the certificate of a server cannot be verified.
 * @see https://nodejs.org/api/tls.html#x509-certificate-error-codes
 */
const CERTIFICATE_CODES: ReadonlySet<string> = new Set([
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_CRL",
  "UNABLE_TO_DECRYPT_CERT_SIGNATURE",
  "UNABLE_TO_DECRYPT_CRL_SIGNATURE",
  "UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY",
  "CERT_SIGNATURE_FAILURE",
  "CRL_SIGNATURE_FAILURE",
  "CERT_NOT_YET_VALID",
  "CERT_HAS_EXPIRED",
  "CRL_NOT_YET_VALID",
  "CRL_HAS_EXPIRED",
  "ERROR_IN_CERT_NOT_BEFORE_FIELD",
  "ERROR_IN_CERT_NOT_AFTER_FIELD",
  "ERROR_IN_CRL_LAST_UPDATE_FIELD",
  "ERROR_IN_CRL_NEXT_UPDATE_FIELD",
  "OUT_OF_MEM",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_CHAIN_TOO_LONG",
  "CERT_REVOKED",
  "INVALID_CA",
  "PATH_LENGTH_EXCEEDED",
  "INVALID_PURPOSE",
  "CERT_UNTRUSTED",
  "CERT_REJECTED",
  "HOSTNAME_MISMATCH",
  "ERR_TLS_CERT_ALTNAME_INVALID",
]);

/**
 * Names an upstream failure.
 * @param headSeen whether the response head had arrived: a connection lost after it makes the response incomplete.
 */
export function upstreamError(error: unknown, headSeen: boolean): ProxyError {
  if (error instanceof ProxyError) return error;
  // Two readings of the framing; undici says the same of content that ends early.
  if (error instanceof errors.HTTPParserError || error instanceof errors.ResponseContentLengthMismatchError) {
    return new ProxyError(headSeen ? "http_response_incomplete" : "http_protocol_error", error.message, {
      cause: error,
    });
  }
  // undici asserts a status of three digits from 100.
  if (error instanceof AssertionError && !headSeen) {
    return new ProxyError("http_protocol_error", "an impossible status", { cause: error });
  }
  const native = firstCoded(error);
  const code = codeFor(native?.code);
  const message = native?.message ?? String(error);
  return new ProxyError(headSeen && code === "connection_terminated" ? "http_response_incomplete" : code, message, {
    cause: error,
  });
}

function codeFor(code: string | undefined): ErrorCode {
  if (code === undefined) return "proxy_internal_error";
  if (CERTIFICATE_CODES.has(code)) return "tls_certificate_error";
  if (/^ERR_SSL_.*ALERT/.test(code)) return "tls_alert_received";
  if (code.startsWith("ERR_SSL_") || code.startsWith("ERR_TLS_")) return "tls_protocol_error";
  return CODES[code] ?? "proxy_internal_error";
}

/** The error itself, or the first that it wraps, that has a code (several addresses give an AggregateError). */
function firstCoded(error: unknown): (Error & { code: string }) | undefined {
  if (!(error instanceof Error)) return undefined;
  if ("code" in error && typeof error.code === "string" && error.code in CODES)
    return error as Error & { code: string };
  const inner = error instanceof AggregateError ? error.errors[0] : error.cause;
  return (
    firstCoded(inner) ??
    ("code" in error && typeof error.code === "string" ? (error as Error & { code: string }) : undefined)
  );
}
