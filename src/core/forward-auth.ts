import { badRequest, ProxyError } from "./errors.ts";
import type { Exchange } from "./exchange.ts";
import { isToken } from "./header-names.ts";
import { type RequestTarget, readRequestTarget } from "./request-target.ts";

/**
 * Forward-auth: another proxy keeps the request, and asks here whether it may go on and in whose name. What it asks
 * about is in headers that anybody could write, so it is believed from trusted peers only, and of two that disagree
 * neither is (CVE-2026-40575: oauth2-proxy let through what a client's own `X-Forwarded-Uri` said).
 */

/** How a proxy asks, told by where it says what it asks about. */
export const VERIFICATION_PROTOCOLS = [
  /** nginx: `X-Original-URL` or `X-Original-URI`. It understands 2xx, 401 and 403, and takes everything else for a failure. */
  "auth-request",
  /** Traefik's ForwardAuth and Caddy's `forward_auth`: `X-Forwarded-Uri`. Whatever is not 2xx goes to the client as it is. */
  "forward-auth",
  /** Envoy's ext_authz over HTTP: the request's own method and host, its path behind ours. As before. */
  "ext-authz",
  /** Refused before that was known. */
  "unknown",
] as const;
export type VerificationProtocol = (typeof VERIFICATION_PROTOCOLS)[number];

/** A request that another proxy asks about. */
export interface AskedAbout {
  readonly protocol: VerificationProtocol;
  readonly method: string;
  readonly scheme: "http" | "https";
  readonly target: RequestTarget;
}

/** Names that say what is asked about; each may come once. */
export const VERIFICATION_NAMES = [
  "x-forwarded-method",
  "x-original-method",
  "x-forwarded-proto",
  "x-forwarded-host",
  "x-forwarded-uri",
  "x-original-uri",
  "x-original-url",
] as const;
type Told = Partial<Record<(typeof VERIFICATION_NAMES)[number], string>>;

const MAX_METHOD_LENGTH = 32;

/**
 * Whether a request is a verification: at `path` itself, or below it as Envoy asks.
 * @param path where verifications are answered, without a slash at the end.
 */
export function isVerification(path: string, asked: string): boolean {
  if (!asked.startsWith(path)) return false;
  // Envoy puts its prefix before whatever the client asked for, also before the * of OPTIONS.
  return asked.length === path.length || asked.charCodeAt(path.length) === 0x2f || asked === `${path}*`;
}

/**
 * Reads what a verification is about.
 * @param path where verifications are answered.
 * @param wire the target of the verification itself.
 * @param raw its header section, names and values in turn.
 * @param exchange its record, which has counted the headers that a client may not send.
 * @throws ProxyError `http_request_denied` (403) for a client that tries to say who it is: only the asking proxy could
 *   keep that from the application, and proxies compare names by the letter (CVE-2026-30851, CVE-2026-52845).
 * @throws ProxyError `http_request_error` (400, 405) for what is not said, or in two ways.
 */
export function readVerification(
  path: string,
  wire: RequestTarget,
  raw: readonly string[],
  exchange: Exchange,
): AskedAbout {
  const { managed, alias, connection, internal } = exchange.stripped ?? {};
  if (managed || alias || connection || internal)
    throw new ProxyError(
      "http_request_denied",
      "the request that is asked about carries an identity header, or another that only Coatcheck may say",
    );
  const told = readTold(raw);
  const below = wire.pathAndQuery.slice(path.length);
  const isBelow = below !== "" && !below.startsWith("?");
  const methods = [told["x-forwarded-method"], told["x-original-method"]].filter(isTold);
  const method = methods[0] ?? exchange.method;
  if (methods.some((other) => other !== method) || (isBelow && method !== exchange.method))
    throw badRequest("a verification with two methods");
  if (!isToken(method) || method.length > MAX_METHOD_LENGTH) throw badRequest("a verification with an invalid method");
  if (method === "TRACE" || method === "CONNECT") throw badRequest(`${method} is not forwarded`, 405);

  const originals = [told["x-original-url"], told["x-original-uri"]].filter(isTold);
  const uris = [...originals, told["x-forwarded-uri"]].filter(isTold);
  const scheme = schemeOf(told["x-forwarded-proto"], uris) ?? exchange.connectionScheme;
  const targets = uris.map((uri) => read(uri, told["x-forwarded-host"], scheme));
  if (isBelow) targets.push(read(below, wire.authority, scheme));
  const [target] = targets;
  if (target === undefined)
    throw badRequest(
      "a verification that names no path: the asking proxy has to send X-Original-URL (nginx) or X-Forwarded-Uri (Traefik, Caddy), or to put the path behind ours (Envoy)",
    );
  const forwardedHost = told["x-forwarded-host"];
  if (forwardedHost !== undefined) targets.push(read(target.pathAndQuery, forwardedHost, scheme));
  for (const other of targets) {
    if (other.pathAndQuery !== target.pathAndQuery) throw badRequest("a verification with two paths");
    if (other.hostname !== target.hostname) throw badRequest("a verification with two hosts");
  }
  // nginx cannot follow what the others can, so it is taken for nginx if it may be.
  const protocol = originals.length > 0 ? "auth-request" : isBelow ? "ext-authz" : "forward-auth";
  return { protocol, method, scheme, target };
}

function readTold(raw: readonly string[]): Told {
  const told: Told = {};
  for (let i = 0; i < raw.length; i += 2) {
    const name = (raw[i] as string).toLowerCase() as keyof Told;
    if (!VERIFICATION_NAMES.includes(name)) continue;
    if (told[name] !== undefined) throw badRequest(`a verification with more than one ${name}`);
    const value = raw[i + 1] as string;
    if (value !== "") told[name] = value;
  }
  return told;
}

function isTold(value: string | undefined): value is string {
  return value !== undefined;
}

/** @param uri a path, or a URL with a host of its own. */
function read(uri: string, host: string | undefined, scheme: "http" | "https"): RequestTarget {
  if (uri.startsWith("/") && host === undefined)
    throw badRequest("a verification that names no host: the asking proxy has to send X-Forwarded-Host");
  if (!uri.startsWith("/") && !/^https?:/i.test(uri))
    throw badRequest("a verification of what is neither a path nor a URL");
  return readRequestTarget("GET", uri, host ?? "unused", "1.1", scheme);
}

/** As the client sees it. Traefik says `wss` for a WebSocket. */
function schemeOf(proto: string | undefined, uris: readonly string[]): "http" | "https" | undefined {
  const schemes = uris.map((uri) => /^(https?):/i.exec(uri)?.[1]?.toLowerCase()).filter(isTold);
  if (proto !== undefined) schemes.push(proto.replace(/^ws/, "http"));
  const [scheme] = schemes;
  if (scheme === undefined) return undefined;
  if (schemes.some((other) => other !== scheme)) throw badRequest("a verification with two schemes");
  if (scheme !== "http" && scheme !== "https")
    throw badRequest("a verification with a scheme other than http and https");
  return scheme;
}

/** Where the login is, for whoever reads a `Location` as relative to this gateway instead of to the site (Traefik). */
export function absoluteLocation({ scheme, target }: AskedAbout, location: string): string {
  return location.startsWith("/") ? `${scheme}://${target.authority}${location}` : location;
}
