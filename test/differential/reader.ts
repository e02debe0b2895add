/**
 * A reference reader of HTTP/1.1 messages, to judge what a proxy has written: strict by RFC 9112, or lenient in ways that
 * real servers are. What the two read must be the same, or the message has two readings.
 */

export type Field = readonly [name: string, value: string];

export interface RequestMessage {
  readonly method: string;
  readonly target: string;
  readonly version: string;
  readonly fields: readonly Field[];
  readonly body: string;
  readonly trailers: readonly Field[];
}

export interface ResponseMessage {
  readonly status: number;
  readonly version: string;
  readonly fields: readonly Field[];
  readonly body: string;
  readonly trailers: readonly Field[];
}

/** What was read before the octets came to an end, or to something that cannot be read. */
export interface Reading<M> {
  readonly messages: readonly M[];
  /** Octets of a message that goes on. */
  readonly rest: string;
  readonly error: string | undefined;
  /** The head of the message that goes on is complete. */
  readonly headSeen: boolean;
}

export interface Leniency {
  /** A line ends at LF, whatever is before it. */
  readonly bareLf?: boolean;
  /** A line ends at CR too. */
  readonly bareCr?: boolean;
  /** Content-Length wins over Transfer-Encoding. */
  readonly lengthWins?: boolean;
  /** Of several lengths this one counts. */
  readonly length?: "first" | "last";
  /** Any Transfer-Encoding in which "chunked" occurs is one. */
  readonly looseCoding?: boolean;
  /** `_` in a name is `-`, and white space around it is nothing. */
  readonly foldNames?: boolean;
  /** Chunk sizes as parseInt reads them. */
  readonly looseChunks?: boolean;
  /** The content of GET, HEAD, DELETE and OPTIONS is not read; `Connection: close` ends the connection. */
  readonly ignoresContent?: boolean;
  /** Empty lines before a request line are skipped (RFC 9112 §2.2). */
  readonly emptyLines?: boolean;
  /** Several spaces in a request line are as one. */
  readonly spaces?: boolean;
  /** Any version and any reason in a status line; the content that a 204 announces is not there. */
  readonly statusLines?: boolean;
  /** A value ends at NUL. */
  readonly nul?: boolean;
}

/** Servers that are lenient each in its own way. */
export const LENIENT: Readonly<Record<string, Leniency>> = {
  "bare LF": { bareLf: true, looseCoding: true, foldNames: true, looseChunks: true, length: "last" },
  "length first": { bareLf: true, lengthWins: true, foldNames: true, looseChunks: true, length: "first" },
  "bare CR": { bareLf: true, bareCr: true, looseCoding: true, foldNames: true, looseChunks: true, nul: true },
  "ignored content": { ignoresContent: true },
};

class Malformed extends Error {}
/** The message goes on. */
class Short extends Error {}

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
const STATUS_LINE = /^(HTTP\/1\.[01]) ([0-9]{3})(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const ANY_STATUS_LINE = /^(HTTP\/\d\.\d) ([0-9]{3})(?: .*)?$/s;
const MAX_LINE = 1 << 20;

/** Reads octets (as Latin-1 text) from the beginning to the end. */
class Cursor {
  at = 0;
  readonly text: string;
  readonly leniency: Leniency;

  constructor(text: string, leniency: Leniency) {
    this.text = text;
    this.leniency = leniency;
  }

  get done(): boolean {
    return this.at >= this.text.length;
  }

  line(): string {
    const { bareLf = false, bareCr = false } = this.leniency;
    const lf = this.text.indexOf("\n", this.at);
    const cr = bareCr ? this.text.indexOf("\r", this.at) : -1;
    if (cr !== -1 && cr !== lf - 1 && (lf === -1 || cr < lf)) return this.#take(cr, cr + 1);
    if (lf === -1) {
      if (this.text.length - this.at > MAX_LINE) throw new Malformed("an endless line");
      throw new Short();
    }
    const crlf = lf > this.at && this.text[lf - 1] === "\r";
    if (!crlf && !bareLf) throw new Malformed("a bare LF");
    const line = this.#take(crlf ? lf - 1 : lf, lf + 1);
    if (line.includes("\r") && !bareLf) throw new Malformed("a bare CR");
    return line;
  }

  #take(end: number, next: number): string {
    const line = this.text.slice(this.at, end);
    this.at = next;
    return line;
  }

  octets(count: number): string {
    if (this.text.length - this.at < count) throw new Short();
    const octets = this.text.slice(this.at, this.at + count);
    this.at += count;
    return octets;
  }

  remainder(): string {
    return this.octets(this.text.length - this.at);
  }
}

function readFields(cursor: Cursor): Field[] {
  const { bareLf = false, foldNames = false, nul = false } = cursor.leniency;
  const fields: Field[] = [];
  for (;;) {
    const line = cursor.line();
    if (line === "") return fields;
    if (/^[ \t]/.test(line)) {
      const last = fields.pop();
      if (!bareLf || last === undefined) throw new Malformed("a folded line");
      fields.push([last[0], `${last[1]} ${line.trim()}`]);
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === -1) {
      if (bareLf) continue;
      throw new Malformed("a field without a colon");
    }
    let name = line.slice(0, colon);
    let value = line.slice(colon + 1).replace(/^[ \t]+|[ \t]+$/g, "");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: as such servers trim
    if (foldNames) name = name.replace(/^[\x00-\x20]+|[\x00-\x20]+$/g, "").replaceAll("_", "-");
    if (nul) value = value.split("\0", 1)[0] ?? "";
    if (!bareLf && !TOKEN.test(name)) throw new Malformed("no field name");
    if (!bareLf && !VALUE.test(value)) throw new Malformed("a control character in a value");
    fields.push([name, value]);
  }
}

export function valuesOf(fields: readonly Field[], name: string): string[] {
  return fields.filter(([key]) => key.toLowerCase() === name).map(([, value]) => value);
}

/** How the content is framed: chunks, a length, or nothing said. */
function framingOf(fields: readonly Field[], leniency: Leniency): "chunked" | number | undefined {
  const codings = valuesOf(fields, "transfer-encoding");
  const lengths = valuesOf(fields, "content-length");
  const { looseCoding = false, lengthWins = false, length } = leniency;
  if (length === undefined) {
    if (codings.length > 0 && lengths.length > 0) throw new Malformed("a length and a coding");
    if (codings.length > 1 || (codings.length === 1 && codings[0]?.toLowerCase() !== "chunked"))
      throw new Malformed("a coding other than chunked");
    if (lengths.length > 1 || (lengths.length === 1 && !/^0*\d{1,15}$/.test(lengths[0] ?? "")))
      throw new Malformed("a bad length");
  }
  const chunked = codings.some((value) => (looseCoding ? /chunked/i.test(value) : value.toLowerCase() === "chunked"));
  const chosen = length === "last" ? lengths.at(-1) : lengths[0];
  const counted = chosen === undefined ? undefined : Math.max(0, Number.parseInt(chosen, 10) || 0);
  if (lengthWins && counted !== undefined) return counted;
  return chunked ? "chunked" : counted;
}

function readChunks(cursor: Cursor): { body: string; trailers: Field[] } {
  const { looseChunks = false } = cursor.leniency;
  let body = "";
  for (;;) {
    const line = cursor.line();
    const [, digits = "", rest = ""] = /^([0-9a-fA-F]*)(.*)$/s.exec(line) ?? [];
    if (!looseChunks && (digits === "" || digits.replace(/^0+/, "").length > 12 || !/^([ \t]*;.*)?$/.test(rest)))
      throw new Malformed("a bad chunk size");
    const size = looseChunks ? Number.parseInt(line, 16) : Number.parseInt(digits, 16);
    if (!(size >= 0 && size < Number.MAX_SAFE_INTEGER)) throw new Malformed("no chunk size");
    if (size === 0) return { body, trailers: readFields(cursor) };
    body += cursor.octets(size);
    if (cursor.line() !== "") throw new Malformed("no line end after a chunk");
  }
}

const IGNORED_CONTENT: ReadonlySet<string> = new Set(["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"]);

function readRequest(cursor: Cursor): RequestMessage {
  const { bareLf = false, ignoresContent = false, spaces = false } = cursor.leniency;
  const line = cursor.line();
  const parts = bareLf ? line.trim().split(/[ \t]+/) : line.split(spaces ? / +/ : " ");
  const [method = "", target = "", version = ""] = parts;
  if (parts.length !== 3 || !TOKEN.test(method) || !/^HTTP\/1\.[01]$/.test(version) || target === "")
    throw new Malformed("a bad request line");
  if (!bareLf && method !== "CONNECT" && !/^(\/|\*$|[a-z][a-z0-9+.-]*:)[\x21-\x7e]*$/i.test(target))
    throw new Malformed("a bad request target");
  const fields = readFields(cursor);
  const hosts = valuesOf(fields, "host");
  if (!bareLf && hosts.length !== 1 && !(version === "HTTP/1.0" && hosts.length === 0))
    throw new Malformed("not one Host");
  const framing = framingOf(fields, cursor.leniency);
  const request = { method, target, version, fields };
  if (ignoresContent && IGNORED_CONTENT.has(method)) {
    if (/close/i.test(valuesOf(fields, "connection").join())) cursor.remainder();
    return { ...request, body: "", trailers: [] };
  }
  if (framing === "chunked") return { ...request, ...readChunks(cursor) };
  return { ...request, body: cursor.octets(framing ?? 0), trailers: [] };
}

/** The messages that one connection carried, in a strict reading or a lenient one. */
export function readRequests(octets: string, leniency: Leniency = {}): Reading<RequestMessage> {
  return readAll(octets, leniency, readRequest);
}

/**
 * The responses on one connection.
 * @param methods of the requests that they answer, in turn.
 * @param closed whether the connection was closed after the octets: the end of content without a length.
 */
export function readResponses(
  octets: string,
  methods: readonly string[],
  closed: boolean,
  leniency: Leniency = {},
): Reading<ResponseMessage> {
  let finals = 0;
  return readAll(octets, leniency, (cursor) => {
    const line = cursor.line();
    const [, version = "", code = ""] = (leniency.statusLines ? ANY_STATUS_LINE : STATUS_LINE).exec(line) ?? [];
    const status = Number(code);
    if (version === "" || status < 100 || status > 599) throw new Malformed("a bad status line");
    const fields = readFields(cursor);
    const response = { status, version, fields };
    if (status < 200) return { ...response, body: "", trailers: [] };
    const method = methods[Math.min(finals++, methods.length - 1)] ?? "GET";
    const framing = framingOf(fields, leniency);
    if (status === 204 && framing !== undefined && !leniency.statusLines)
      throw new Malformed("a 204 that announces content");
    if (method === "HEAD" || status === 204 || status === 304) return { ...response, body: "", trailers: [] };
    if (framing === "chunked") return { ...response, ...readChunks(cursor) };
    if (framing === undefined && !closed) throw new Short();
    return { ...response, body: framing === undefined ? cursor.remainder() : cursor.octets(framing), trailers: [] };
  });
}

function readAll<M>(octets: string, leniency: Leniency, read: (cursor: Cursor) => M): Reading<M> {
  const cursor = new Cursor(octets, leniency);
  const messages: M[] = [];
  let from = 0;
  let error: string | undefined;
  while (!cursor.done && error === undefined) {
    from = cursor.at;
    // RFC 9112 §2.2: a server should ignore an empty line before a request line.
    if ((leniency.bareLf || leniency.emptyLines) && /^[\r\n]/.test(octets.slice(from, from + 1))) {
      cursor.at++;
      continue;
    }
    try {
      messages.push(read(cursor));
      from = cursor.at;
    } catch (thrown) {
      if (thrown instanceof Malformed) error = thrown.message;
      else if (!(thrown instanceof Short)) throw thrown;
      break;
    }
  }
  const rest = octets.slice(from);
  return { messages, rest, error, headSeen: rest.includes("\r\n\r\n") };
}

/** The lenient servers that would read something else in these octets than the strict one does, by name. */
export function otherReadings(octets: string): string[] {
  const strict = readRequests(octets);
  return Object.entries(LENIENT)
    .filter(([, leniency]) => {
      const lenient = readRequests(octets, leniency);
      // Who does not read content has the request before its content is there; what matters is what is behind it.
      if (leniency.ignoresContent && strict.headSeen) return lenient.messages.length > strict.messages.length + 1;
      return summary(lenient.messages) !== summary(strict.messages);
    })
    .map(([name]) => name);
}

function summary(messages: readonly RequestMessage[]): string {
  return JSON.stringify(
    messages.map(({ method, target, body }) => [method, target, IGNORED_CONTENT.has(method) ? "" : body]),
  );
}
