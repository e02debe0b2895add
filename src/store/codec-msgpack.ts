import { Decoder, Encoder } from "@msgpack/msgpack";
import type { Json } from "../core/json.ts";

/** MessagePack as another spelling of JSON: nothing is written that does not read back the same, or is not JSON. */

/** Levels of arrays and objects; what is deeper is written as JSON. */
const MAX_DEPTH = 100;

const encoder = new Encoder({ ignoreUndefined: true, maxDepth: MAX_DEPTH });
const decoder = new Decoder();

/**
 * @returns octets that are valid until the next call; `undefined` for a value that would not read back as JSON gives it
 *   back.
 */
export function encodeMsgpack(value: unknown): Uint8Array | undefined {
  return isFaithful(value, 1) ? encoder.encodeSharedRef(value) : undefined;
}

/** @returns `undefined` for what is no MessagePack, or holds what JSON cannot (octets, dates, NaN). Never throws. */
export function decodeMsgpack(bytes: Buffer): { readonly value: Json } | undefined {
  try {
    return endOfValue(bytes, 0, 1) === bytes.length ? { value: decoder.decode(bytes) as Json } : undefined;
  } catch {
    return undefined;
  }
}

/** Whether MessagePack gives back what JSON does, member by member. */
function isFaithful(value: unknown, depth: number): boolean {
  if (value === null || typeof value === "boolean") return true;
  if (typeof value === "string") return isFaithfulText(value);
  if (typeof value === "number") return Number.isFinite(value);
  if (typeof value !== "object" || depth > MAX_DEPTH) return false;
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) if (!isFaithful(value[i], depth + 1)) return false;
    return true;
  }
  const prototype = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) return false;
  for (const [name, member] of Object.entries(value)) {
    // The decoder refuses the name; both encodings leave out a member that is undefined.
    if (name === "__proto__" || !isFaithfulText(name)) return false;
    if (member !== undefined && !isFaithful(member, depth + 1)) return false;
  }
  return true;
}

/** Lone surrogates have no UTF-8, and the decoder takes a byte order mark off a long text. */
function isFaithfulText(text: string): boolean {
  return text.isWellFormed() && text.charCodeAt(0) !== 0xfeff;
}

/**
 * Where the value that begins at an offset ends. The decoder makes room for as many items as an array announces, and
 * knows no depth: five octets could ask for gigabytes. So nothing gets to it whose lengths are not all true.
 * @throws Error when a value is not JSON; RangeError beyond the end.
 * @see https://github.com/msgpack/msgpack/blob/master/spec.md#formats
 */
function endOfValue(bytes: Buffer, at: number, depth: number): number {
  const head = bytes.readUInt8(at);
  const next = at + 1;
  if (head < 0x80 || head >= 0xe0) return next;
  if (head < 0x90) return endOfMembers(bytes, next, head & 0x0f, depth);
  if (head < 0xa0) return endOfItems(bytes, next, head & 0x0f, depth);
  if (head < 0xc0) return next + (head & 0x1f);
  switch (head) {
    case 0xc0:
    case 0xc2:
    case 0xc3:
      return next;
    case 0xca:
      return next + (Number.isFinite(bytes.readFloatBE(next)) ? 4 : notJson());
    case 0xcb:
      return next + (Number.isFinite(bytes.readDoubleBE(next)) ? 8 : notJson());
    case 0xcc:
    case 0xd0:
      return next + 1;
    case 0xcd:
    case 0xd1:
      return next + 2;
    case 0xce:
    case 0xd2:
      return next + 4;
    case 0xcf:
    case 0xd3:
      return next + 8;
    case 0xd9:
      return next + 1 + bytes.readUInt8(next);
    case 0xda:
      return next + 2 + bytes.readUInt16BE(next);
    case 0xdb:
      return next + 4 + bytes.readUInt32BE(next);
    case 0xdc:
      return endOfItems(bytes, next + 2, bytes.readUInt16BE(next), depth);
    case 0xdd:
      return endOfItems(bytes, next + 4, bytes.readUInt32BE(next), depth);
    case 0xde:
      return endOfMembers(bytes, next + 2, bytes.readUInt16BE(next), depth);
    case 0xdf:
      return endOfMembers(bytes, next + 4, bytes.readUInt32BE(next), depth);
    default:
      return notJson();
  }
}

function endOfItems(bytes: Buffer, at: number, count: number, depth: number): number {
  if (depth > MAX_DEPTH) return notJson();
  let end = at;
  for (let i = 0; i < count; i++) end = endOfValue(bytes, end, depth + 1);
  return end;
}

function endOfMembers(bytes: Buffer, at: number, count: number, depth: number): number {
  if (depth > MAX_DEPTH) return notJson();
  let end = at;
  for (let i = 0; i < count; i++) {
    const head = bytes.readUInt8(end);
    if ((head & 0xe0) !== 0xa0 && (head < 0xd9 || head > 0xdb)) return notJson();
    end = endOfValue(bytes, endOfValue(bytes, end, depth), depth + 1);
  }
  return end;
}

function notJson(): never {
  throw new Error("not JSON");
}
