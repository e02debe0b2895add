/** JSON values and the one way to reach into them. */

export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [name: string]: Json;
}

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A JSON Pointer (RFC 6901) split into its reference tokens. */
export type JsonPointer = readonly string[];

/**
 * Splits a JSON Pointer.
 * @param text must be empty or begin with `/`; `~1` stands for `/` and `~0` for `~`.
 * @throws TypeError when it does not.
 * @see https://www.rfc-editor.org/rfc/rfc6901#section-4
 */
export function parsePointer(text: string): JsonPointer {
  if (text === "") return [];
  if (!text.startsWith("/")) throw new TypeError(`"${text}" is not a JSON pointer: it must begin with "/"`);
  return text
    .slice(1)
    .split("/")
    .map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

/**
 * Follows a pointer through own properties only: a session attribute named `__proto__` or `constructor`
 * reaches nothing that is not in the session.
 * @returns `undefined` where the path leads nowhere.
 */
export function valueAt(root: unknown, pointer: JsonPointer): Json | undefined {
  let value: unknown = root;
  for (let i = 0; i < pointer.length; i++) {
    const token = pointer[i] as string;
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, token)) return undefined;
    value = (value as Record<string, unknown>)[token];
  }
  return value as Json | undefined;
}

/** Whether two JSON values are the same, member order aside. */
export function sameJson(a: Json | undefined, b: Json | undefined): boolean {
  if (a === b) return true;
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, i) => sameJson(item, b[i]));
  }
  if (!isJsonObject(a) || !isJsonObject(b)) return false;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length &&
    names.every((name) => Object.hasOwn(b, name) && sameJson(a[name], b[name]))
  );
}

/**
 * About how many bytes a JSON value takes in memory: strings by their length, objects and lists by their entries. An
 * estimate, in one pass and without a copy; `npm run bench:lookups` compares it with the heap.
 */
export function roughSize(value: Json | undefined): number {
  if (typeof value === "string") return 16 + value.length;
  if (typeof value !== "object" || value === null) return 8;
  let bytes = 32;
  if (Array.isArray(value)) for (const item of value) bytes += 8 + roughSize(item);
  // Names are shared by objects of the same shape, as sessions are.
  else for (const name in value) bytes += 8 + roughSize((value as JsonObject)[name]);
  return bytes;
}
