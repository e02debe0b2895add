import { badRequest } from "./errors.ts";
import type { Exchange, StripClass } from "./exchange.ts";
import { VERIFICATION_NAMES } from "./forward-auth.ts";
import { foldName, HOP_BY_HOP, INTERNAL_PREFIX, isForwardedFamily, WRITE_BACK_HEADERS } from "./header-names.ts";

/** Names that the gateway reads itself; each has a field in `RequestHead`. */
const READ = [
  "host",
  "connection",
  "content-length",
  "transfer-encoding",
  "cookie",
  "expect",
  "max-forwards",
  "te",
  "via",
  "traceparent",
  "tracestate",
  "baggage",
  "x-forwarded-for",
  "x-forwarded-proto",
  "x-forwarded-host",
] as const;
type ReadName = (typeof READ)[number];

/** Names that are read and passed on as they are. */
const PEEKED = ["accept", "sec-fetch-mode", "user-agent"] as const;
type PeekedName = (typeof PEEKED)[number];

/** What happens to a header, decided by its name alone. */
type Verdict = "keep" | "hop-by-hop" | "asked-about" | StripClass | ReadName | PeekedName;

/** Names longer than this are judged afresh each time; of the others this many are remembered. */
const REMEMBERED_NAME_LENGTH = 64;
const REMEMBERED_NAMES = 1024;

/**
 * The rules for request headers: which are the gateway's own to set, and therefore nobody else's.
 * The verdict on a name is remembered, so that a request costs one map look-up a header.
 */
export class HeaderRules {
  /** Fields in one header section. Counted here, because some versions of node drop what is beyond their own limit. */
  readonly maxFields: number;
  readonly #managed: ReadonlySet<string>;
  /** Folded names that only the gateway may set or that decide how a message is read. */
  readonly #guarded: ReadonlySet<string>;
  readonly #verdicts = new Map<string, Verdict>();
  readonly #verifies: boolean;

  /**
   * @param managed the identity header names, in any case.
   * @param verifies whether other proxies may ask, in headers that are nobody's otherwise.
   */
  constructor(managed: readonly string[], maxFields = 200, verifies = false) {
    this.maxFields = maxFields;
    this.#verifies = verifies;
    this.#managed = new Set(managed.map((name) => name.toLowerCase()));
    this.#guarded = new Set(
      [...this.#managed, ...Object.values(WRITE_BACK_HEADERS), ...READ, ...HOP_BY_HOP].map(foldName),
    );
  }

  /** @param name as sent. */
  judge(name: string): Verdict {
    const known = this.#verdicts.get(name);
    if (known !== undefined) return known;
    const verdict = this.#judgeAfresh(name.toLowerCase());
    if (name.length <= REMEMBERED_NAME_LENGTH) {
      // Begun anew when it is full, so that nobody's invented names keep the real ones out.
      if (this.#verdicts.size >= REMEMBERED_NAMES) this.#verdicts.clear();
      this.#verdicts.set(name, verdict);
    }
    return verdict;
  }

  #judgeAfresh(name: string): Verdict {
    if (this.#managed.has(name)) return "managed";
    if (includes(READ, name) || includes(PEEKED, name)) return name;
    if (HOP_BY_HOP.has(name)) return "hop-by-hop";
    const folded = foldName(name);
    if (folded !== name && this.#guarded.has(folded)) return "alias";
    if (includes(Object.values(WRITE_BACK_HEADERS), folded) || folded.startsWith(INTERNAL_PREFIX)) return "internal";
    if (this.#verifies && includes(VERIFICATION_NAMES, name)) return "asked-about";
    if (isForwardedFamily(folded)) return "forwarded";
    // Unknown, but it reaches a CGI-like application as its twin with dashes, which may be framing or worse.
    return name.includes("_") ? "underscore" : "keep";
  }
}

function includes<T extends string>(names: readonly T[], name: string): name is T {
  return (names as readonly string[]).includes(name);
}

/** The request's header section: what goes upstream, and what the gateway has to know. */
export class RequestHead {
  /** Names and values in turn, as sent, without anything that is not the client's to say. */
  readonly kept: string[] = [];
  host: string | undefined = undefined;
  connection: string | undefined = undefined;
  contentLength: string | undefined = undefined;
  chunked = false;
  cookie: string | undefined = undefined;
  expect: string | undefined = undefined;
  maxForwards: string | undefined = undefined;
  via: string | undefined = undefined;
  /** `TE`, of which only "trailers" means anything to a recipient that is not the next hop. */
  te: string | undefined = undefined;
  traceparent: string | undefined = undefined;
  tracestate: string | undefined = undefined;
  baggage: string | undefined = undefined;
  forwardedFor: string | undefined = undefined;
  forwardedProto: string | undefined = undefined;
  forwardedHost: string | undefined = undefined;
  accept: string | undefined = undefined;
  secFetchMode: string | undefined = undefined;
  userAgent: string | undefined = undefined;

  /** Whether content follows (RFC 9112 §6.3). */
  get hasContent(): boolean {
    return this.chunked || (this.contentLength !== undefined && this.contentLength !== "0");
  }
}

/**
 * Reads and cleans the header section in one pass.
 * @param raw names and values in turn, from `IncomingMessage.rawHeaders`: the object form hides duplicates.
 * @param trustedPeer whether `X-Forwarded-*` and trace context come from somebody who may say them.
 * @throws ProxyError `http_request_error` (400, 431, 501) where two readings of the message would be possible.
 */
export function readRequestHead(
  raw: readonly string[],
  rules: HeaderRules,
  trustedPeer: boolean,
  exchange: Exchange,
): RequestHead {
  if (raw.length > 2 * rules.maxFields) throw badRequest("too many header fields", 431, "head-fields");
  const head = new RequestHead();
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i] as string;
    const value = raw[i + 1] as string;
    const verdict = rules.judge(name);
    if (verdict === "keep") head.kept.push(name, value);
    else readField(head, verdict, name, value, trustedPeer, exchange);
  }
  if (head.connection !== undefined) removeConnectionListed(head, rules, exchange);
  return head;
}

function readField(
  head: RequestHead,
  verdict: Exclude<Verdict, "keep">,
  name: string,
  value: string,
  trustedPeer: boolean,
  exchange: Exchange,
): void {
  switch (verdict) {
    case "accept":
      head.accept = value;
      head.kept.push(name, value);
      return;
    case "sec-fetch-mode":
      head.secFetchMode = value;
      head.kept.push(name, value);
      return;
    case "user-agent":
      head.userAgent = value;
      head.kept.push(name, value);
      return;
    case "hop-by-hop":
      return;
    case "host":
      if (head.host !== undefined) throw badRequest("more than one Host"); // RFC 9112 §3.2
      head.host = value;
      return;
    case "connection":
      head.connection = joined(head.connection, value, ", ");
      return;
    case "cookie":
      head.cookie = joined(head.cookie, value, "; "); // RFC 9113 §8.2.3
      return;
    case "content-length":
      if (head.contentLength !== undefined) throw badRequest("more than one Content-Length");
      // Beyond this a number is not the one that was written, neither here nor in what is sent on.
      if (value.length > 15 && Number(value) > Number.MAX_SAFE_INTEGER)
        throw badRequest("a Content-Length beyond 2^53", 413);
      head.contentLength = value;
      head.kept.push(name, value);
      return;
    case "transfer-encoding":
      // llhttp decodes "gzip, chunked" as if it were plain, so nothing but exactly one "chunked" may pass.
      if (head.chunked || value.toLowerCase() !== "chunked") {
        throw badRequest("a Transfer-Encoding other than chunked", 501);
      }
      head.chunked = true;
      return;
    case "expect":
      head.expect = joined(head.expect, value, ", ");
      return;
    case "max-forwards":
      head.maxForwards = value;
      return;
    case "te":
      head.te = joined(head.te, value, ", ");
      return;
    case "via":
      head.via = joined(head.via, value, ", ");
      return;
    case "traceparent":
      head.traceparent = trustedPeer ? value : undefined;
      return;
    case "tracestate":
      head.tracestate = trustedPeer ? joined(head.tracestate, value, ",") : undefined;
      return;
    case "baggage":
      head.baggage = trustedPeer ? joined(head.baggage, value, ",") : undefined;
      return;
    case "x-forwarded-for":
      if (trustedPeer) head.forwardedFor = joined(head.forwardedFor, value, ", ");
      else exchange.countStripped("forwarded", name);
      return;
    case "x-forwarded-proto":
      if (trustedPeer) head.forwardedProto = value;
      else exchange.countStripped("forwarded", name);
      return;
    case "x-forwarded-host":
      if (trustedPeer) head.forwardedHost = value;
      else exchange.countStripped("forwarded", name);
      return;
    case "asked-about":
      // A verification reads them from the section itself (`core/forward-auth.ts`).
      if (!trustedPeer) exchange.countStripped("forwarded", name);
      return;
    default:
      exchange.countStripped(verdict, name);
  }
}

function joined(before: string | undefined, value: string, separator: string): string {
  return before === undefined ? value : before + separator + value;
}

/**
 * Takes out what `Connection` lists (RFC 9110 §7.6.1), before anything of ours is added: a client that lists
 * `X-User-Id` or `Content-Length` must not be able to remove what the gateway says (GHSA-w9mr-28mw-j8hg).
 */
function removeConnectionListed(head: RequestHead, rules: HeaderRules, exchange: Exchange): void {
  const listed = (head.connection as string).toLowerCase();
  if (listed === "keep-alive" || listed === "close") return;
  for (const option of listed.split(",")) {
    const name = option.trim();
    if (name === "" || name === "close" || name === "keep-alive") continue;
    const verdict = rules.judge(name);
    if (verdict === "hop-by-hop") continue;
    if (verdict === "managed" || verdict === "alias" || verdict === "internal") {
      exchange.countStripped("connection", name);
      continue;
    }
    if (name === "content-length") continue;
    removeField(head.kept, name);
  }
}

function removeField(fields: string[], name: string): void {
  for (let i = fields.length - 2; i >= 0; i -= 2) {
    if ((fields[i] as string).toLowerCase() === name) fields.splice(i, 2);
  }
}
