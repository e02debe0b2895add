import { isJsonObject, type Json, type JsonPointer, parsePointer, valueAt } from "./json.ts";
import type { Handle, Session } from "./session.ts";

/** Upstream servers limit a header section to 8 KiB or more; a value beyond this is left out rather than cut. */
export const MAX_IDENTITY_VALUE_LENGTH = 4096;

/** One bit each in a number. */
export const MAX_IDENTITY_HEADERS = 30;
const REMEMBERED_LISTS = 1024;

interface IdentityHeader {
  readonly name: string;
  /** `undefined` stands for the session handle. */
  readonly pointer: JsonPointer | undefined;
}

/** The values of all identity headers for one session, and the names of those that are not empty. */
export interface IdentityValues {
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
  readonly #headers: readonly IdentityHeader[];
  /** The lists that `inject` gives back; sessions look alike, so a handful serves all requests. */
  readonly #nameLists = new Map<number, readonly string[]>();

  /** @param sources header name → `handle`, or a JSON pointer into `{user, data, createdAt, expiresAt}`. */
  constructor(sources: Readonly<Record<string, string>>) {
    this.sources = Object.entries(sources);
    this.#headers = Object.entries(sources).map(([name, source]) => ({
      name,
      pointer: source === "handle" ? undefined : parsePointer(source),
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
    found.identity ??= this.#valuesOf(session, handle);
    const { values, names } = found.identity;
    for (let i = 0; i < values.length; i++) fields.push((this.#headers[i] as IdentityHeader).name, values[i] as string);
    return names;
  }

  #valuesOf(session: Session, handle: Handle | undefined): IdentityValues {
    let mask = 0;
    const values = this.#headers.map(({ pointer }, i) => {
      const value = pointer === undefined ? (handle ?? "") : headerValue(valueAt(session, pointer));
      if (value !== "") mask |= 1 << i;
      return value;
    });
    return { values, names: this.#namesOf(mask) };
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
