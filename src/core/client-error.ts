import type { LimitReason } from "./limits.ts";

/** What is wrong with a message that never became a request, as far as node tells. */

import { isForPersonIn } from "./navigation.ts";

export interface ClientError extends Error {
  readonly code?: string;
  readonly rawPacket?: Buffer;
  readonly bytesParsed?: number;
}

export interface Refusal {
  readonly status: number;
  readonly message: string;
  /** Whether a person waits for the answer, as far as can be told. */
  readonly forPerson?: boolean;
  /** Which limit was passed, if it is that. */
  readonly limit?: LimitReason;
}

/** @returns `undefined` for a connection that is gone or never was one: there is nobody to answer. */
export function describeClientError(error: ClientError): Refusal | undefined {
  const refusal = describe(error);
  if (refusal === undefined) return undefined;
  const { rawPacket } = error;
  const hinted = rawPacket === undefined ? undefined : isForPersonIn(rawPacket);
  // A head that is too large for one packet is a browser's with too many cookies, and its person has to be told.
  return { ...refusal, forPerson: hinted ?? refusal.status === 431 };
}

function describe(error: ClientError): Refusal | undefined {
  // A handshake that failed: what would be written could not be read.
  if (/^ERR_(SSL|TLS)_/.test(error.code ?? "")) return undefined;
  switch (error.code) {
    case "ECONNRESET":
    case "EPIPE":
    case "HPE_INVALID_EOF_STATE": // it closed in the middle of a message
      return undefined;
    case "HPE_HEADER_OVERFLOW":
      return isInRequestLine(error)
        ? { status: 414, message: "the request line is too long", limit: "target-bytes" }
        : { status: 431, message: "the header section is too large", limit: "head-bytes" };
    case "HPE_CHUNK_EXTENSIONS_OVERFLOW":
      return { status: 413, message: "too many chunk extensions" };
    case "ERR_HTTP_REQUEST_TIMEOUT":
      return { status: 408, message: "the request head took too long", limit: "head-timeout" };
    case "HPE_INVALID_METHOD":
      return { status: 501, message: "an unknown method" };
    default:
      return { status: 400, message: `malformed HTTP (${error.code ?? "unknown"})` };
  }
}

function isInRequestLine({ rawPacket, bytesParsed }: ClientError): boolean {
  const parsed = rawPacket?.toString("latin1", 0, bytesParsed) ?? "";
  return /^[A-Z]+ /.test(parsed) && !parsed.includes("\r\n");
}
