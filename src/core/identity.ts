import { isJsonObject, type Json, type JsonPointer, parsePointer, valueAt } from "./json.ts";
import type { Handle, Session } from "./session.ts";

/** Upstream servers limit a header section to 8 KiB or more; a value beyond this is left out rather than cut. */
export const MAX_IDENTITY_VALUE_LENGTH = 4096;

/** One bit each in a number. */
export const MAX_IDENTITY_HEADERS = 30;
const REMEMBERED_LISTS = 1024;

/** How an application that takes values as they are reads a list. */
export interface ListFormat {
  readonly separator: string;
  /** What is in no item: it would be read as two, or as another. */
  readonly unsafe: RegExp;
}

export interface IdentityHeader {
  readonly name: string;
  /** `handle`, or a JSON pointer into `{user, data, createdAt, expiresAt}`. */
  readonly source: string;
  /** The value goes as UTF-8, and lists are written like this; absent: printable ASCII, see `headerValue`. */
  readonly list?: ListFormat;
}

interface CompiledHeader extends IdentityHeader {
  /** `undefined` stands for the session handle. */
  readonly pointer: JsonPointer | undefined;
}

/** The values of all identity headers for one session, and the names of those that are not empty. */
export interface IdentityValues {
  /** Whose headers they are for: a session outlives a configuration, in the near cache. */
  readonly of: IdentityHeaders;
  readonly values: readonly string[];
  readonly names: readonly string[];
}

export interface Identified {
  readonly session?: Session;
  /** Filled in at the first use. */
  identity?: IdentityValues;
}

const NO_NAMES: readonly string[] = [];

/** The headers that tell upstream who is asking: always all of them, empty where there is no value. */
export class IdentityHeaders {
  readonly names: readonly string[];
  /** Where each value comes from: `handle`, or a JSON pointer. */
  readonly sources: readonly (readonly [name: string, source: string])[];
  readonly #headers: readonly CompiledHeader[];
  /** The lists that `inject` gives back; sessions look alike, so a handful serves all requests. */
  readonly #nameLists = new Map<number, readonly string[]>();

  constructor(headers: readonly IdentityHeader[]) {
    this.sources = headers.map(({ name, source }) => [name, source]);
    this.#headers = headers.map((header) => ({
      ...header,
      pointer: header.source === "handle" ? undefined : parsePointer(header.source),
    }));
    this.names = this.#headers.map((header) => header.name);
  }

  /**
   * Appends every identity header.
   * @param found what was resolved; when it comes from a cache it is the same object each time, and keeps the values.
   * @returns the names of those that carry a value.
   */
  inject(fields: string[], found: Identified, handle: Handle | undefined): readonly string[] {
    const { session } = found;
    if (session === undefined) {
      for (const { name } of this.#headers) fields.push(name, "");
      return NO_NAMES;
    }
    if (found.identity?.of !== this) found.identity = this.#valuesOf(session, handle);
    const { values, names } = found.identity;
    for (let i = 0; i < values.length; i++) fields.push((this.#headers[i] as CompiledHeader).name, values[i] as string);
    return names;
  }

  #valuesOf(session: Session, handle: Handle | undefined): IdentityValues {
    let mask = 0;
    const values = this.#headers.map(({ pointer, list }, i) => {
      const found = pointer === undefined ? handle : valueAt(session, pointer);
      const value = list === undefined ? headerValue(found) : plainValue(found, list);
      if (value !== "") mask |= 1 << i;
      return value;
    });
    return { of: this, values, names: this.#namesOf(mask) };
  }

  #namesOf(mask: number): readonly string[] {
    let names = this.#nameLists.get(mask);
    if (names === undefined) {
      names = this.names.filter((_, i) => (mask & (1 << i)) !== 0);
      if (this.#nameLists.size < REMEMBERED_LISTS) this.#nameLists.set(mask, names);
    }
    return names;
  }
}

/**
 * A JSON value as a header value: printable ASCII, everything else percent-encoded as UTF-8, so that
 * `decodeURIComponent` gives the text back. Lists are joined with commas (a comma inside an item is `%2C`), objects
 * are JSON. Nothing that a user put into a profile can begin a new header line.
 */
export function headerValue(value: Json | undefined): string {
  if (value === undefined || value === null) return "";
  const text = Array.isArray(value) && value.every(isScalar) ? value.map(encodeItem).join(",") : encode(asText(value));
  return text.length > MAX_IDENTITY_VALUE_LENGTH ? "" : text;
}

/**
 * A JSON value as UTF-8, for an application that takes it as it is. What cannot be said like that without becoming something
 * else is not said: a text with a control character or with blanks at its ends is left empty, and so is a list without the
 * items that the application would read as two.
 * @returns a character for each octet, which is what node and undici write.
 */
export function plainValue(value: Json | undefined, { separator, unsafe }: ListFormat): string {
  if (value === undefined || value === null) return "";
  const text =
    Array.isArray(value) && value.every(isScalar)
      ? value
          .map(asText)
          .filter((item) => item !== "" && isSayable(item) && !unsafe.test(item))
          .join(separator)
      : asText(value);
  if (!isSayable(text)) return "";
  const octets = Buffer.from(text, "utf8");
  return octets.length > MAX_IDENTITY_VALUE_LENGTH ? "" : octets.toString("latin1");
}

function isSayable(text: string): boolean {
  return text.isWellFormed() && !UNSAYABLE.test(text);
}

/** Control characters, and blanks that are cut off on the way. */
const UNSAYABLE = /\p{Cc}|^\s|\s$/u;

function isScalar(value: Json): boolean {
  return !Array.isArray(value) && !isJsonObject(value);
}

function encodeItem(item: Json): string {
  return encode(asText(item)).replaceAll(",", "%2C");
}

function asText(value: Json): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function encode(text: string): string {
  return isPlainText(text) ? text : text.toWellFormed().replace(/[^\x20-\x24\x26-\x7e]+|^ | $/gu, encodeURIComponent);
}

/** Printable ASCII without `%`, which would make the encoding ambiguous, and without blanks at the ends. */
function isPlainText(text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code < 0x20 || code > 0x7e || code === 0x25) return false;
  }
  return text.charCodeAt(0) !== 0x20 && text.charCodeAt(text.length - 1) !== 0x20;
}
