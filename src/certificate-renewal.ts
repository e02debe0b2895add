import type { Server } from "node:http";
import { type SecureContextOptions, Server as TlsServer } from "node:tls";
import { type CertificateFiles, type KeyPair, watchCertificate } from "./certificate.ts";
import type { Observer } from "./observe/observer.ts";

export interface Renewal {
  /** In metrics and in the log. */
  readonly listener: "listen" | "admin";
  readonly server: Server;
  readonly files: CertificateFiles;
  /** What is in use. */
  readonly pair: KeyPair;
  /** How often the files are looked at, milliseconds. */
  readonly pollMs?: number | undefined;
  readonly observer: Observer;
  /** What else a connection needs. Absent: nothing. */
  readonly contextOf?: (pair: KeyPair) => SecureContextOptions;
}

/** New connections get a renewed certificate; those that are open keep the old one. @returns what ends that. */
export function renewCertificate(renewal: Renewal): () => void {
  const { listener, server, files, pair, pollMs, observer, contextOf = (same) => same } = renewal;
  const { metrics, log } = observer;
  metrics.certificate(listener, pair.notAfter);
  return watchCertificate({
    files,
    pair,
    pollMs,
    onReplaced: (renewed) => {
      if (server instanceof TlsServer) server.setSecureContext(contextOf(renewed));
      metrics.certificate(listener, renewed.notAfter);
      const fields = { listener, not_after: new Date(renewed.notAfter).toISOString() };
      log.event("info", "certificate.replaced", "a renewed certificate is in use", fields);
    },
    onRefused: (problem) =>
      log.event("error", "certificate.refused", "a new certificate cannot be used; the one before goes on", {
        listener,
        problem,
      }),
  });
}
