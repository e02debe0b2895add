/** What header names mean to the gateway. Names are compared in lower case. */

/** The write-back headers of an application's response (design §6); in a request they are nobody's. */
export const WRITE_BACK_HEADERS = {
  start: "x-session-start",
  set: "x-session-set",
  end: "x-session-end",
} as const;

/** Our own prefix: whatever a client sends under it is removed (CVE-2023-27487). */
export const INTERNAL_PREFIX = "x-coatcheck-";

/** Meant for one connection, in either direction (RFC 9110 §7.6.1), whether `Connection` lists them or not. */
export const HOP_BY_HOP: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-authentication-info",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "http2-settings",
]);

/**
 * Where the request came from and what it asked for, as an earlier proxy tells it. The whole family goes, by prefix
 * (CVE-2026-35051, CVE-2026-54764), and is rebuilt; so do the names by which applications let a header replace the
 * path that the route was chosen by.
 */
const FORWARDED_NAMES: ReadonlySet<string> = new Set([
  "forwarded",
  "x-forwarded",
  "x-real-ip",
  "x-client-ip",
  "x-cluster-client-ip",
  "true-client-ip",
  "x-original-url",
  "x-original-uri",
  "x-original-host",
  "x-rewrite-url",
  "x-url-scheme",
]);

/** Of the family, but about who is asking, which is for nobody to say but us: what oauth2-proxy and Jenkins call it. */
export const FORWARDED_IDENTITY: ReadonlySet<string> = new Set([
  "x-forwarded-user",
  "x-forwarded-preferred-username",
  "x-forwarded-displayname",
  "x-forwarded-email",
  "x-forwarded-mail",
  "x-forwarded-groups",
]);

export function isForwardedFamily(name: string): boolean {
  return name.startsWith("x-forwarded-") || FORWARDED_NAMES.has(name);
}

/**
 * The name as applications behind CGI-like interfaces see it: every character that is no letter or digit is the same
 * (`X_User.Id` and `X-User-Id` are both `HTTP_X_USER_ID`; CVE-2025-64484, CVE-2026-39858, CVE-2026-88011).
 */
export function foldName(name: string): string {
  return name.toLowerCase().replace(/[^a-z0-9]/g, "-");
}

/** A field name of RFC 9110 §5.1. */
export function isToken(name: string): boolean {
  return /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(name);
}
