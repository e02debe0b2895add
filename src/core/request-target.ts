import { isIPv6 } from "node:net";
import { badRequest } from "./errors.ts";

export interface RequestTarget {
  /** Origin form as it goes upstream: path and query. `*` for `OPTIONS *`. */
  readonly pathAndQuery: string;
  readonly path: string;
  /** As it goes upstream in `Host`. */
  readonly authority: string;
  /** Lower case, without port: what routes are chosen by. */
  readonly hostname: string;
}

/** Control characters, space, `#`, `\` and everything beyond ASCII: no two servers agree on these. */
const FORBIDDEN = /[^\x21-\x7e]|[#\\]/;

/**
 * Reads the request target (RFC 9112 §3.2).
 * @param target as sent; the authority of an absolute form replaces `Host`.
 * @param host the `Host` field; absent is allowed in HTTP/1.0 only.
 * @param scheme of the connection.
 * @throws ProxyError `http_request_error` (400, or 501 for a scheme that is not forwarded).
 */
export function readRequestTarget(
  method: string,
  target: string,
  host: string | undefined,
  httpVersion: string,
  scheme: "http" | "https",
): RequestTarget {
  if (!host && httpVersion !== "1.0") throw badRequest("no Host");
  if (FORBIDDEN.test(target)) throw badRequest("a forbidden character in the request target");
  if (target.charCodeAt(0) === 0x2f) return originForm(target, host ?? "");
  if (target === "*") {
    if (method !== "OPTIONS") throw badRequest("the target * is for OPTIONS only");
    return { pathAndQuery: "*", path: "*", authority: host ?? "", hostname: hostnameOf(host ?? "") };
  }
  const absolute = /^(https?):\/\/([^/?]+)([/?].*)?$/i.exec(target);
  if (absolute === null) throw badRequest("neither a path nor a URL of HTTP in the request target");
  const [, named = "", authority = "", rest = "/"] = absolute;
  // Another scheme is about another resource (RFC 9110 §4.2.2), and applications are told this one.
  if (named.toLowerCase() !== scheme) throw badRequest("another scheme in the request target than the connection's");
  return originForm(rest.startsWith("/") ? rest : `/${rest}`, authority);
}

function originForm(pathAndQuery: string, authority: string): RequestTarget {
  const query = pathAndQuery.indexOf("?");
  const path = query === -1 ? pathAndQuery : pathAndQuery.slice(0, query);
  if (path.includes("%00")) throw badRequest("a NUL in the path");
  return { pathAndQuery, path, authority, hostname: hostnameOf(authority) };
}

/** The authority seen last and its hostname: most requests of a process name the same few hosts. */
const remembered = new Map<string, string>();
const REMEMBERED_HOSTS = 256;

/**
 * @throws ProxyError `http_request_error` (400) for what is not a host: userinfo, a path, a bad port, a list.
 * @see https://www.rfc-editor.org/rfc/rfc9110#section-7.2
 */
function hostnameOf(authority: string): string {
  const known = remembered.get(authority);
  if (known !== undefined) return known;
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._~!$&'()*+;=-]*))(?::(\d{0,5}))?$/i.exec(authority);
  if (match === null) throw badRequest("an invalid Host");
  const [, ipv6, name = "", port] = match;
  if (ipv6 !== undefined && !isIPv6(ipv6)) throw badRequest("an invalid Host");
  if (ipv6 === undefined && name === "" && authority !== "") throw badRequest("an invalid Host");
  if (port !== undefined && Number(port) > 65535) throw badRequest("an invalid port in Host");
  const hostname = (ipv6 !== undefined ? `[${ipv6}]` : name).toLowerCase().replace(/\.$/, "");
  if (authority.length <= 255) {
    if (remembered.size >= REMEMBERED_HOSTS) remembered.clear();
    remembered.set(authority, hostname);
  }
  return hostname;
}
