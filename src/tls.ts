import { constants } from "node:crypto";
import type { SecureContextOptions, TlsOptions } from "node:tls";

/** How the listener that browsers reach speaks TLS. */

export type TlsVersion = "1.2" | "1.3";

/**
 * Mozilla's intermediate recommendation for TLS 1.2: forward secrecy and authenticated encryption only. Each is allowed
 * in HTTP/2 (RFC 9113 §9.2.2). TLS 1.3 has none that one would leave out.
 * @see https://wiki.mozilla.org/Security/Server_Side_TLS
 */
const CIPHERS = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_AES_256_GCM_SHA384",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-ECDSA-AES128-GCM-SHA256",
  "ECDHE-RSA-AES128-GCM-SHA256",
  "ECDHE-ECDSA-AES256-GCM-SHA384",
  "ECDHE-RSA-AES256-GCM-SHA384",
  "ECDHE-ECDSA-CHACHA20-POLY1305",
  "ECDHE-RSA-CHACHA20-POLY1305",
].join(":");

/** A handshake takes a few round trips. */
const HANDSHAKE_TIMEOUT_MS = 10_000;

/** Also for a renewed certificate: whatever is left out is at node's default from then on. */
export function secureContext(minVersion: TlsVersion, pair: { cert: Buffer; key: Buffer }): SecureContextOptions {
  return {
    cert: pair.cert,
    key: pair.key,
    minVersion: `TLSv${minVersion}`,
    ciphers: CIPHERS,
    honorCipherOrder: true,
    // A client of TLS 1.2 that negotiates anew on the same connection costs much, and HTTP/2 forbids it.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
  };
}

export function listenerTls(minVersion: TlsVersion, http2: boolean, pair: { cert: Buffer; key: Buffer }): TlsOptions {
  return {
    ...secureContext(minVersion, pair),
    ALPNProtocols: http2 ? ["h2", "http/1.1"] : ["http/1.1"],
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
  };
}
