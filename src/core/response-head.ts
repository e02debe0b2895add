import { ProxyError } from "./errors.ts";
import type { WriteBackCommand } from "./exchange.ts";
import { foldName, HOP_BY_HOP, INTERNAL_PREFIX, WRITE_BACK_HEADERS } from "./header-names.ts";

type Verdict =
  | "keep"
  | "transfer-encoding"
  | "drop"
  | "connection"
  | "content-length"
  | "set-cookie"
  | "via"
  | WriteBackCommand;

/** A name as sent, in lower case, and what happens to its field. */
interface Judged {
  readonly key: string;
  readonly verdict: Verdict;
}

/** A header section as undici hands it over beside the octets: names in lower case, values as Latin-1. */
export type ParsedHeaders = Readonly<Record<string, string | readonly string[] | undefined>>;

const REMEMBERED_NAMES = 1024;

/** Fields that have a meaning in the head of a final response only. */
const HEAD_ONLY: ReadonlySet<string> = new Set([
  "age",
  "authorization",
  "cache-control",
  "content-encoding",
  "content-range",
  "content-type",
  "cookie",
  "date",
  "expires",
  "host",
  "location",
  "pragma",
  "retry-after",
  "strict-transport-security",
  "vary",
  "warning",
  "www-authenticate",
]);
const PLAIN_VALUE = /^[\t\x20-\x7e]*$/;

export const STRICT_TRANSPORT = "strict-transport-security";

/** The header section of an upstream's response: what goes to the client, and what it commands. */
export class ResponseHead {
  /** Names and values in turn. `Set-Cookie` fields stay separate. */
  readonly kept: string[] = [];
  contentLength: string | undefined = undefined;
  /** Values of the write-back headers; more than one of a kind is for the parser to refuse. */
  commands: Partial<Record<WriteBackCommand, string[]>> | undefined = undefined;
}

const COMMAND_BY_NAME: ReadonlyMap<string, WriteBackCommand> = new Map([
  [WRITE_BACK_HEADERS.start, "start"],
  [WRITE_BACK_HEADERS.set, "set"],
  [WRITE_BACK_HEADERS.end, "end"],
]);

/** Reads and cleans response headers; the verdict on a name is remembered, as in `HeaderRules`. */
export class ResponseHeaderRules {
  readonly #sessionCookie: string;
  readonly #strictTransport: string | undefined;
  readonly #judged = new Map<string, Judged>();

  /**
   * @param sessionCookie name of the session cookie.
   * @param strictTransport value of `Strict-Transport-Security` in place of the upstream's own.
   */
  constructor(sessionCookie: string, strictTransport?: string) {
    this.#sessionCookie = sessionCookie;
    this.#strictTransport = strictTransport;
  }

  /**
   * @param raw names and values in turn, as octets from the wire: kept as Latin-1, so that no byte is changed.
   * @param parsed the same section; it has lost order and spelling, but spares a field that comes once another decoding.
   */
  read(raw: readonly (Buffer | string)[], parsed: ParsedHeaders): ResponseHead {
    const head = new ResponseHead();
    let connection: string | undefined;
    let via: string | undefined;
    let chunked = false;
    for (let i = 0; i < raw.length; i += 2) {
      const name = latin1(raw[i] as Buffer | string);
      const { key, verdict } = this.#judge(name);
      const once = parsed[key];
      const value = typeof once === "string" ? once : latin1(raw[i + 1] as Buffer | string);
      if (verdict === "keep") head.kept.push(name, value);
      else if (verdict === "content-length") {
        // As in a request: no number here holds it.
        if (value.length > 15 && Number(value) > Number.MAX_SAFE_INTEGER)
          throw new ProxyError("http_protocol_error", "a Content-Length beyond 2^53");
        head.contentLength = value;
        head.kept.push(name, value);
      } else if (verdict === "set-cookie") {
        // The session cookie is not the application's to set.
        if (value.split("=", 1)[0]?.trim() !== this.#sessionCookie) head.kept.push(name, value);
      } else if (verdict === "connection") connection = connection === undefined ? value : `${connection},${value}`;
      else if (verdict === "transfer-encoding") {
        requireChunked(value, chunked);
        chunked = true;
      } else if (verdict === "via") via = via === undefined ? value : `${via}, ${value}`;
      else if (verdict !== "drop") {
        const values = head.commands?.[verdict] ?? [];
        values.push(value);
        head.commands = { ...head.commands, [verdict]: values };
      }
    }
    head.kept.push("via", via === undefined ? "1.1 coatcheck" : `${via}, 1.1 coatcheck`);
    if (connection !== undefined) removeListed(head.kept, connection);
    if (this.#strictTransport !== undefined) head.kept.push(STRICT_TRANSPORT, this.#strictTransport);
    return head;
  }

  /**
   * The fields of an interim head (103 and its like), or those after the content: what they may say is less than in a head.
   * Nothing in them commands the session, sets a cookie or says how a message is read, kept or gone on with (RFC 9110 §6.5.1).
   * @returns names and values, in the order of the wire. What is not ASCII is left out: node would change it.
   */
  readAside(raw: readonly (Buffer | string)[]): [name: string, value: string][] {
    const kept: [string, string][] = [];
    let connection = "";
    for (let i = 0; i < raw.length; i += 2) {
      const name = latin1(raw[i] as Buffer | string);
      const value = latin1(raw[i + 1] as Buffer | string);
      const { key, verdict } = this.#judge(name);
      if (verdict === "connection") connection += `,${value}`;
      else if (verdict === "keep" && !HEAD_ONLY.has(key) && PLAIN_VALUE.test(value)) kept.push([name, value]);
    }
    if (connection === "") return kept;
    const listed = new Set(connection.split(",").map((name) => name.trim().toLowerCase()));
    return kept.filter(([name]) => !listed.has(name.toLowerCase()));
  }

  #judge(name: string): Judged {
    const known = this.#judged.get(name);
    if (known !== undefined) return known;
    const key = name.toLowerCase();
    const replaced = key === STRICT_TRANSPORT && this.#strictTransport !== undefined;
    const judged: Judged = { key, verdict: replaced ? "drop" : judgeAfresh(key) };
    if (this.#judged.size < REMEMBERED_NAMES && name.length <= 64) this.#judged.set(name, judged);
    return judged;
  }
}

function judgeAfresh(name: string): Verdict {
  const command = COMMAND_BY_NAME.get(name);
  if (command !== undefined) return command;
  if (
    name === "connection" ||
    name === "transfer-encoding" ||
    name === "content-length" ||
    name === "set-cookie" ||
    name === "via"
  )
    return name;
  if (HOP_BY_HOP.has(name)) return "drop";
  const folded = foldName(name);
  // An alias of a command is no command, but it is not for the browser to see either.
  return COMMAND_BY_NAME.has(folded) || folded.startsWith(INTERNAL_PREFIX) ? "drop" : "keep";
}

/** Content in another coding, or chunked twice (RFC 9112 §7.1), would reach the client without its name. */
function requireChunked(value: string, before: boolean): void {
  if (before || value.toLowerCase() !== "chunked")
    throw new ProxyError("http_protocol_error", "a Transfer-Encoding other than chunked");
}

function removeListed(fields: string[], connection: string): void {
  const listed = connection.toLowerCase();
  if (listed === "keep-alive" || listed === "close") return;
  const names = new Set(listed.split(",").map((name) => name.trim()));
  names.delete("content-length");
  names.delete("set-cookie");
  names.delete("via");
  for (let i = fields.length - 2; i >= 0; i -= 2) {
    if (names.has((fields[i] as string).toLowerCase())) fields.splice(i, 2);
  }
}

function latin1(octets: Buffer | string): string {
  return typeof octets === "string" ? octets : octets.toString("latin1");
}

/** What allows a cache that serves many people to keep a response, or tells it to. */
const SHARED_CACHE_FIELDS = /^(surrogate-control|x-accel-expires|(?:[a-z0-9-]+-)?cdn-cache-control)$/i;
const SHARED_DIRECTIVES = /^(public|s-maxage|private)(=|$)/i;
/** Between commas, but for those in quotes. */
const DIRECTIVES = /(?:[^,"]|"(?:[^"\\]|\\.)*"?)+/g;

/**
 * Adds the session cookie, and sees to it that no shared cache keeps the response: RFC 9111 §7.3 lets one store a
 * `Set-Cookie` and hand it to somebody else.
 */
export function addSessionCookie(fields: string[], setCookie: string): void {
  const directives: string[] = [];
  for (let i = fields.length - 2; i >= 0; i -= 2) {
    const name = (fields[i] as string).toLowerCase();
    if (name !== "cache-control" && !SHARED_CACHE_FIELDS.test(name)) continue;
    if (name === "cache-control")
      directives.unshift(...((fields[i + 1] as string).match(DIRECTIVES) ?? []).map((item) => item.trim()));
    fields.splice(i, 2);
  }
  const kept = directives.filter((directive) => directive !== "" && !SHARED_DIRECTIVES.test(directive));
  fields.push("cache-control", ["private", ...kept].join(", "), "set-cookie", setCookie);
}
