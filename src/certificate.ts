import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import type { Config, UpstreamTlsConfig } from "./config/compile.ts";
import { readProblem } from "./core/file-problems.ts";
import { stampOf, watchFiles } from "./file-watch.ts";
import type { UpstreamTls } from "./upstream/endpoint.ts";

/** The certificate of a listener, in files that others renew; a few seconds do not matter. */

const POLL_MS = 10_000;

export interface CertificateFiles {
  readonly cert: string;
  readonly key: string;
}

/** PEM. */
export interface KeyPair {
  readonly cert: Buffer;
  readonly key: Buffer;
  /** Milliseconds since the epoch. */
  readonly notAfter: number;
  /** Of the files before they were read. */
  readonly stamp: string;
}

export interface TlsMaterial {
  readonly listen: KeyPair | undefined;
  readonly admin: KeyPair | undefined;
  /** By `Route.index`. */
  readonly upstreams: readonly (UpstreamTls | undefined)[];
}

export interface CertificateWatch {
  readonly files: CertificateFiles;
  /** What is in use. */
  readonly pair: KeyPair;
  readonly onReplaced: (pair: KeyPair) => void;
  /** The pair before goes on. */
  readonly onRefused: (problem: string) => void;
  readonly pollMs?: number | undefined;
}

/** @throws Error that names the file and says what is wrong with it, or that the two do not belong together. */
export async function readKeyPair(files: CertificateFiles): Promise<KeyPair> {
  const { cert, key } = files;
  const stamp = await stampOf([cert, key]);
  const pair = { cert: await read(cert), key: await read(key) };
  let leaf: X509Certificate;
  try {
    leaf = new X509Certificate(pair.cert);
  } catch {
    throw new Error(`${cert} is not a certificate in PEM`);
  }
  try {
    createSecureContext(pair);
  } catch (error) {
    throw new Error(`${key} is not the private key of ${cert}, in PEM without a passphrase (${codeOf(error)})`);
  }
  return { ...pair, stamp, notAfter: leaf.validToDate.getTime() };
}

/** As `readKeyPair`. @throws Error that begins with the setting, such as `admin.tls`. */
async function readConfiguredKeyPair(setting: string, files: CertificateFiles): Promise<KeyPair> {
  try {
    return await readKeyPair(files);
  } catch (error) {
    throw new Error(`${setting}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

/** Certificates of others, PEM. @throws Error that begins with the setting and names the file. */
async function readCertificates(setting: string, file: string): Promise<Buffer> {
  try {
    const pem = await read(file);
    if (!isCertificate(pem)) throw new Error(`${file} is not a certificate in PEM`);
    return pem;
  } catch (error) {
    throw new Error(`${setting}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

/** What an upstream's TLS needs, from files. @throws Error that begins with the setting and names the file. */
async function readUpstreamTls(
  setting: string,
  { ca, cert, key, serverName }: UpstreamTlsConfig,
): Promise<UpstreamTls> {
  const own = cert === undefined || key === undefined ? undefined : await readConfiguredKeyPair(setting, { cert, key });
  const trusted = ca === undefined ? undefined : await readCertificates(`${setting}.ca`, ca);
  return { ca: trusted, cert: own?.cert, key: own?.key, serverName };
}

/** Everything of a configuration that has to do with certificates. @throws Error that names setting and file. */
export async function readTls({ listen, admin, upstreams }: Config): Promise<TlsMaterial> {
  return {
    listen: listen.tls && (await readConfiguredKeyPair("listen.tls", listen.tls)),
    admin: admin.tls && (await readConfiguredKeyPair("admin.tls", admin.tls)),
    upstreams: await Promise.all(
      upstreams.map(
        (upstream, index) => upstream?.tls && readUpstreamTls(`routes[${index}].upstream.tls`, upstream.tls),
      ),
    ),
  };
}

function isCertificate(pem: Buffer): boolean {
  try {
    new X509Certificate(pem);
    return true;
  } catch {
    return false;
  }
}

/** @returns how to end it. */
export function watchCertificate({
  files,
  pair,
  onReplaced,
  onRefused,
  pollMs = POLL_MS,
}: CertificateWatch): () => void {
  let isOver = false;
  const onChanged = async (): Promise<void> => {
    try {
      const renewed = await readKeyPair(files);
      if (isOver) return;
      if (renewed.notAfter <= Date.now()) throw new Error(`${files.cert} has ended already`);
      onReplaced(renewed);
    } catch (error) {
      if (!isOver) onRefused(error instanceof Error ? error.message : String(error));
    }
  };
  const watched = watchFiles({ files: [files.cert, files.key], stamp: pair.stamp, onChanged, pollMs });
  return () => {
    isOver = true;
    watched.end();
  };
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new Error(`${file} ${readProblem(error)}`);
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
