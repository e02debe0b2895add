/** Why a client and the listener did not agree on TLS: what an operator can act on, out of OpenSSL's hundreds of codes. */
export const HANDSHAKE_FAILURES = [
  /** The client closed the connection: a port scan, a health check of TCP, a browser that changed its mind. */
  "closed",
  "timeout",
  /** Something else than TLS, mostly plain HTTP. */
  "not_tls",
  /** No protocol version in common. */
  "version",
  /** No cipher, curve or signature algorithm in common. */
  "cipher",
  /** No application protocol in common: neither HTTP/2 nor HTTP/1.1. */
  "application_protocol",
  /** The client refused: mostly because it does not trust the certificate. */
  "alert",
  "other",
] as const;
export type HandshakeFailure = (typeof HANDSHAKE_FAILURES)[number];

const REASONS: readonly (readonly [RegExp, HandshakeFailure])[] = [
  [/^(ECONNRESET|EPIPE|ECONNABORTED)$/, "closed"],
  [/^ERR_TLS_HANDSHAKE_TIMEOUT$/, "timeout"],
  [
    /HTTP_REQUEST|HTTPS_PROXY_REQUEST|WRONG_VERSION_NUMBER|BAD_RECORD_TYPE|RECORD_LAYER_FAILURE|PACKET_LENGTH/,
    "not_tls",
  ],
  [/UNSUPPORTED_PROTOCOL|VERSION_TOO_LOW|ALERT_PROTOCOL_VERSION/, "version"],
  [/NO_APPLICATION_PROTOCOL/, "application_protocol"],
  [/NO_SHARED_CIPHER|NO_SUITABLE|NO_SHARED_SIGNATURE|NO_SHARED_GROUP/, "cipher"],
  [/ALERT/, "alert"],
];

/** @param code of node's error. */
export function handshakeFailure(code: string | undefined): HandshakeFailure {
  return REASONS.find(([pattern]) => pattern.test(code ?? ""))?.[1] ?? "other";
}
