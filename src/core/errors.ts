import type { LimitReason } from "./limits.ts";

/**
 * The one vocabulary of failures: RFC 9209 error types. The same string is `ProxyError.code`, the `error.type` of
 * spans and metrics, the field of the log line and the token in `Proxy-Status`; the HTTP status comes from this table.
 * @see https://www.rfc-editor.org/rfc/rfc9209#section-2.3
 */
const STATUS_BY_CODE = {
  dns_error: 502,
  dns_timeout: 504,
  destination_not_found: 404,
  destination_unavailable: 503,
  destination_ip_unroutable: 502,
  connection_refused: 502,
  connection_terminated: 502,
  connection_timeout: 504,
  connection_read_timeout: 504,
  connection_write_timeout: 504,
  connection_limit_reached: 503,
  tls_protocol_error: 502,
  tls_certificate_error: 502,
  tls_alert_received: 502,
  http_request_error: 400,
  http_request_denied: 403,
  http_response_incomplete: 502,
  http_response_header_section_size: 502,
  http_response_timeout: 504,
  http_protocol_error: 502,
  http_upgrade_failed: 502,
  proxy_internal_error: 500,
  proxy_configuration_error: 500,
  proxy_loop_detected: 502,
  /** Ours, outside the RFC: the session store does not answer. Never to be read as "logged out". */
  session_store_unavailable: 503,
  /** Ours: two responses changed the same session attribute; the later one is told. */
  session_write_conflict: 409,
  /** Ours: the gateway ended, and the request had not in the time that `shutdown.timeout` gives. */
  proxy_shutdown: 503,
} as const;

export type ErrorCode = keyof typeof STATUS_BY_CODE;
export const ERROR_CODES = Object.keys(STATUS_BY_CODE) as readonly ErrorCode[];

/** The HTTP status a client sees for a failure. */
export function statusOf(code: ErrorCode): number {
  return STATUS_BY_CODE[code];
}

const NO_FIELDS: readonly string[] = [];

export interface ProxyErrorOptions {
  readonly cause?: unknown;
  /** Where the table's status is too coarse: a malformed request is 400, 405, 413, 414, 431 or 501. */
  readonly status?: number;
  /** Which limit was passed. */
  readonly limit?: LimitReason | undefined;
  /** Further fields of the answer, names and values in turn. */
  readonly fields?: readonly string[];
}

/** A failure that an exchange can end with. The message is for operators: it is logged, never sent to the client. */
export class ProxyError extends Error {
  readonly code: ErrorCode;
  readonly status: number;
  readonly limit: LimitReason | undefined;
  readonly fields: readonly string[];

  constructor(code: ErrorCode, message: string, options: ProxyErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.name = "ProxyError";
    this.code = code;
    this.status = options.status ?? STATUS_BY_CODE[code];
    this.limit = options.limit;
    this.fields = options.fields ?? NO_FIELDS;
  }
}

/**
 * The request cannot be forwarded in one unambiguous reading (RFC 9112 §11.2), or is more than is allowed.
 * @param limit which limit was passed, if it is that.
 */
export function badRequest(message: string, status = 400, limit?: LimitReason): ProxyError {
  return new ProxyError("http_request_error", message, { status, limit });
}

/** The store gave no answer: an outage, which is never the same as a session that is not there. */
export function storeUnavailable(cause: unknown): ProxyError {
  if (cause instanceof ProxyError) return cause;
  const reason = withoutContents(cause instanceof Error ? cause.message : String(cause));
  return new ProxyError("session_store_unavailable", `the session store gave no answer: ${reason}`, { cause });
}

/** As long as a session key or a token, and without a blank. */
const OPAQUE = /[\w-]{40,}/g;

/**
 * A driver's or a server's message without what it repeats of a command. Redis does that when it does not know one:
 * `ERR unknown command 'EVALSHA', with args beginning with: …`, keys and user ids included.
 */
export function withoutContents(message: string): string {
  return message.replace(/,? with args beginning with:.*/is, "").replace(OPAQUE, "***");
}
