/**
 * The header sections of a request under watch, as an operator may see them. Masked where they are taken, so that no
 * secret is kept until somebody shows it. A value is shown because its name is on a list; nothing is shown because
 * nobody thought of hiding it.
 */

export interface MaskedField {
  /** As sent; what is longer than 64 characters is cut. */
  readonly name: string;
  /** The value if it may be shown, and otherwise `*** (N)`, N being its length. */
  readonly value: string;
}

/**
 * Fields that say how a message is read, kept and shown, which no application puts a secret into. Not among them:
 * identity and session headers (that is what is protected here), ETag and its conditions (their text is the
 * application's, and some put ids into it), challenges and authorizations, and every name that is not known.
 */
const SHOWN: ReadonlySet<string> = new Set([
  "accept",
  "accept-charset",
  "accept-encoding",
  "accept-language",
  "accept-ranges",
  "access-control-allow-credentials",
  "access-control-allow-headers",
  "access-control-allow-methods",
  "access-control-allow-origin",
  "access-control-expose-headers",
  "access-control-max-age",
  "access-control-request-headers",
  "access-control-request-method",
  "age",
  "allow",
  "cache-control",
  "connection",
  "content-encoding",
  "content-language",
  "content-length",
  "content-range",
  "content-type",
  "date",
  "dnt",
  "expect",
  "expires",
  "forwarded",
  "host",
  "if-modified-since",
  "if-unmodified-since",
  "keep-alive",
  "last-modified",
  "max-forwards",
  "origin",
  "pragma",
  "priority",
  "proxy-status",
  "range",
  "referrer-policy",
  "retry-after",
  "sec-fetch-dest",
  "sec-fetch-mode",
  "sec-fetch-site",
  "sec-fetch-user",
  "sec-gpc",
  "server",
  "strict-transport-security",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "upgrade-insecure-requests",
  "user-agent",
  "vary",
  "via",
  "x-content-type-options",
  "x-forwarded-for",
  "x-forwarded-host",
  "x-forwarded-proto",
  "x-frame-options",
]);

/** Fields of which a part is shown. */
const PARTLY_SHOWN: Readonly<Record<string, (value: string) => string>> = {
  cookie: (value) => value.split(";").map(maskPair).join("; "),
  "set-cookie": maskSetCookie,
  location: maskReference,
  "content-location": maskReference,
  referer: maskReference,
};

/** What tells the browser when to send a cookie: where people are logged out by surprise, it is often one of these. */
const COOKIE_ATTRIBUTES: ReadonlySet<string> = new Set([
  "domain",
  "expires",
  "httponly",
  "max-age",
  "partitioned",
  "path",
  "samesite",
  "secure",
]);

const NAME_CHARACTERS_SHOWN = 64;
const VALUE_CHARACTERS_SHOWN = 256;
const PATH_CHARACTERS_SHOWN = 512;
/** Shorter than a token or a signature: one of these in the place of a cookie's name stays hidden. */
const COOKIE_NAME_CHARACTERS_SHOWN = 40;

/** What a capture takes of `IncomingMessage`. */
export interface WatchedRequest {
  readonly url?: string | undefined;
  /** Names and values in turn, as sent. */
  readonly rawHeaders: readonly string[];
}

/** What a watched request looked like on both sides, in the order in which it was sent. */
export class Capture {
  /** Ids of the watches that it is for. */
  readonly watches = new Set<string>();
  /** Ids of those that will know the session again that the request ends with. */
  readonly followers = new Set<string>();
  /** The query, masked; absent when there was none. */
  readonly query: string | undefined;
  /** From the client. */
  readonly request: readonly MaskedField[];
  /** To the application; absent when the watch began to apply later, with a login. */
  forwarded: readonly MaskedField[] | undefined = undefined;
  /** From the application. */
  upstreamResponse: readonly MaskedField[] | undefined = undefined;
  /** To the client. */
  response: readonly MaskedField[] | undefined = undefined;

  constructor({ url = "", rawHeaders }: WatchedRequest) {
    const mark = url.indexOf("?");
    this.query = mark === -1 ? undefined : mask(url.slice(mark + 1));
    this.request = maskFields(rawHeaders);
  }
}

/** @param raw names and values in turn; octets are Latin-1. */
export function maskFields(raw: readonly (string | Buffer)[]): MaskedField[] {
  const fields: MaskedField[] = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = text(raw[i]);
    fields.push({ name: name.slice(0, NAME_CHARACTERS_SHOWN), value: maskValue(name.toLowerCase(), text(raw[i + 1])) });
  }
  return fields;
}

function maskValue(name: string, value: string): string {
  if (SHOWN.has(name))
    return value.length > VALUE_CHARACTERS_SHOWN ? `${value.slice(0, VALUE_CHARACTERS_SHOWN)}…` : value;
  return Object.hasOwn(PARTLY_SHOWN, name) ? (PARTLY_SHOWN[name] ?? mask)(value) : mask(value);
}

function text(octets: string | Buffer = ""): string {
  return typeof octets === "string" ? octets : octets.toString("latin1");
}

/** An empty value is shown: an identity header is empty for a visitor whom nobody knows. */
function mask(value: string): string {
  return value === "" ? "" : `*** (${value.length})`;
}

/** `name=*** (43)`. What has no name is no cookie, and is hidden whole. */
function maskPair(pair: string): string {
  const [, name = "", value = ""] = /^\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(.*)$/s.exec(pair) ?? [];
  if (name === "" || name.length > COOKIE_NAME_CHARACTERS_SHOWN) return mask(pair.trim());
  return `${name}=${mask(value.trim())}`;
}

function maskSetCookie(value: string): string {
  const [pair = "", ...attributes] = value.split(";");
  const shown = attributes.map((attribute) => {
    const [name = ""] = attribute.split("=", 1);
    return COOKIE_ATTRIBUTES.has(name.trim().toLowerCase()) ? attribute.trim().slice(0, 100) : mask(attribute.trim());
  });
  return [maskPair(pair), ...shown].join("; ");
}

/** Host and path, as the records of requests show them; user, query and fragment may hold secrets. */
function maskReference(value: string): string {
  const base = "http://base.invalid";
  const url = URL.canParse(value, base) ? new URL(value, base) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol)) return mask(value);
  const path = url.pathname.slice(0, PATH_CHARACTERS_SHOWN);
  return `${url.host === "base.invalid" ? "" : url.origin}${path}${url.search && "?***"}${url.hash && "#***"}`;
}
