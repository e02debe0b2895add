/** Certificates for the tests, made by openssl. */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

/** PEM files. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

export interface CertificateOptions {
  /** Subject alternative names. */
  readonly names?: readonly string[];
  /** How long it is valid from now on; below 0 it has ended. */
  readonly days?: number;
  /** Whose key signs it; by default its own. */
  readonly signedBy?: Certificate;
}

export function makeCertificate(folder: string, name: string, options: CertificateOptions = {}): Certificate {
  const { names = ["IP:127.0.0.1", "DNS:localhost"], days = 30, signedBy } = options;
  const file = (end: string) => join(folder, `${name}.${end}`);
  const [cert, key, request, extensions] = [file("pem"), file("key"), file("csr"), file("ext")];
  const isAuthority = signedBy === undefined ? "TRUE" : "FALSE";
  writeFileSync(extensions, `subjectAltName=${names.join(",")}\nbasicConstraints=CA:${isAuthority}\n`);
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", `/CN=${name}`];
  openssl("req", "-new", ...kind, "-keyout", key, "-out", request);
  const signer =
    signedBy === undefined ? ["-signkey", key] : ["-CA", signedBy.cert, "-CAkey", signedBy.key, "-CAcreateserial"];
  openssl("x509", "-req", "-in", request, ...signer, "-extfile", extensions, "-days", String(days), "-out", cert);
  return { cert, key };
}

function openssl(...args: string[]): void {
  const { status, stderr } = spawnSync("openssl", args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`openssl made no certificate: ${stderr}`);
}
