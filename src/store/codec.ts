import { isJsonObject, type Json } from "../core/json.ts";
import type { Session, SessionKey, SessionUser, Unreadable } from "../core/session.ts";
import { PLAINTEXT } from "../core/store.ts";
import { decodeMsgpack, encodeMsgpack } from "./codec-msgpack.ts";
import { deriveKey, type EncryptionKey, keyIdOf, seal, unseal } from "./encryption.ts";

/** The first octet of a payload. Those below `FIRST_NO_FORMAT` that are not here belong to later versions. */
const FORMAT = { json: 1, msgpack: 2, encrypted: 3 } as const;
export const FIRST_NO_FORMAT = 0x20;
export const NEWEST_FORMAT = FORMAT.encrypted;
const JSON_PREFIX = String.fromCharCode(FORMAT.json);

export interface SessionCodecOptions {
  /** What is written; every known format is read. */
  readonly codec: "json" | "msgpack";
  /** As `session.encryptionKeys` of the configuration: the first encrypts, all decrypt; none: no encryption. */
  readonly encryptionKeys: readonly string[];
}

type Read = { readonly value: Json } | "newer" | undefined;

/** What stores keep of a session as one payload, or as one payload for each attribute. */
export class SessionCodec {
  readonly #codec: SessionCodecOptions["codec"];
  readonly #keys: readonly EncryptionKey[];
  /** The key that encrypts; absent: payloads are written as they are. */
  readonly #sealingKey: EncryptionKey | undefined;
  readonly #readsPlaintext: boolean;

  constructor({ codec, encryptionKeys }: SessionCodecOptions) {
    this.#codec = codec;
    this.#keys = encryptionKeys.filter((entry) => entry !== PLAINTEXT).map(deriveKey);
    this.#sealingKey = encryptionKeys[0] === PLAINTEXT ? undefined : this.#keys[0];
    this.#readsPlaintext = this.#keys.length === 0 || encryptionKeys.includes(PLAINTEXT);
  }

  /** All of a session but version, expiry and last use, which stand beside it, where the store can compare and move them. */
  encode(key: SessionKey, { user, data, createdAt, retiresAt, siblings, client }: Session): Buffer {
    return this.#write({ user, data, createdAt, retiresAt, siblings, client }, key);
  }

  /**
   * @param payload as octets; what is not encrypted JSON also as the text that the octets are in UTF-8.
   * @returns `newer` for a format of a later version; `undefined` for anything that no codec with these keys has written
   *   for this session. Never throws.
   */
  decode(
    key: SessionKey,
    payload: Uint8Array | string,
    version: number,
    expiresAt: number,
    usedAt: number,
  ): Session | "newer" | undefined {
    const read = this.#read(payload, key);
    return typeof read === "object" ? sessionFrom(read.value, version, expiresAt, usedAt) : read;
  }

  /** One attribute, for a layout that keeps each by itself. */
  encodeValue(key: SessionKey, name: string, value: Json): Buffer {
    return this.#write(value, associatedDataOf(key, name));
  }

  /** @returns as `decode`, for the attribute of that name. */
  decodeValue(key: SessionKey, name: string, payload: Uint8Array): { readonly value: Json } | "newer" | undefined {
    return this.#read(payload, associatedDataOf(key, name));
  }

  /** Why nothing can be made of a payload, as far as its beginning tells; of one that can be read it says `damaged`. */
  whyUnreadable(payload: Uint8Array | string): Unreadable {
    const format = formatOf(payload);
    if (format === FORMAT.encrypted) {
      const id = typeof payload === "string" ? undefined : keyIdOf(bufferOf(payload));
      return id === undefined || this.#keys.some((key) => key.id === id) ? "damaged" : "unknown-key";
    }
    return this.#refuses(format) ? "not-encrypted" : "damaged";
  }

  /** Whether a payload of that format would have to be encrypted. */
  #refuses(format: number): boolean {
    return !this.#readsPlaintext && (format === FORMAT.json || format === FORMAT.msgpack);
  }

  #write(value: unknown, associatedData: string): Buffer {
    const payload = this.#codec === "msgpack" ? (msgpackPayload(value) ?? jsonPayload(value)) : jsonPayload(value);
    if (this.#sealingKey === undefined) return payload;
    return seal(FORMAT.encrypted, this.#sealingKey, payload, associatedData);
  }

  #read(payload: Uint8Array | string, associatedData: string): Read {
    const format = formatOf(payload);
    if (format !== FORMAT.encrypted) {
      return this.#refuses(format) ? undefined : readPlaintext(payload, format);
    }
    const opened = typeof payload === "string" ? undefined : unseal(this.#keys, bufferOf(payload), associatedData);
    return opened && readPlaintext(opened, formatOf(opened));
  }
}

/** JSON in the open: what is written where nobody asks for anything else. */
export const PLAIN_JSON = new SessionCodec({ codec: "json", encryptionKeys: [] });

/** A session key is base64url and never begins like this, so that the two kinds of payload cannot be exchanged either. */
function associatedDataOf(key: SessionKey, name: string): string {
  return JSON.stringify([key, name]);
}

function jsonPayload(value: unknown): Buffer {
  return Buffer.from(JSON_PREFIX + JSON.stringify(value));
}

function msgpackPayload(value: unknown): Buffer | undefined {
  const bytes = encodeMsgpack(value);
  if (bytes === undefined) return undefined;
  const payload = Buffer.allocUnsafe(1 + bytes.length);
  payload.writeUInt8(FORMAT.msgpack);
  payload.set(bytes, 1);
  return payload;
}

/** NaN for an empty payload. */
function formatOf(payload: Uint8Array | string): number {
  return typeof payload === "string" ? payload.charCodeAt(0) : (payload[0] ?? Number.NaN);
}

function readPlaintext(payload: Uint8Array | string, format: number): Read {
  if (format === FORMAT.json) {
    try {
      const text = typeof payload === "string" ? payload.slice(1) : bufferOf(payload).toString("utf8", 1);
      return { value: JSON.parse(text) };
    } catch {
      return undefined;
    }
  }
  // An envelope in an envelope, or octets read as text, are nothing that a codec writes.
  if (format === FORMAT.encrypted) return undefined;
  if (format === FORMAT.msgpack)
    return typeof payload === "string" ? undefined : decodeMsgpack(bufferOf(payload).subarray(1));
  return format < FIRST_NO_FORMAT ? "newer" : undefined;
}

/** The same octets, not a copy. */
function bufferOf(bytes: Uint8Array): Buffer {
  return bytes instanceof Buffer ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function sessionFrom(value: Json, version: number, expiresAt: number, usedAt: number): Session | undefined {
  if (!isJsonObject(value)) return undefined;
  const { user, data, createdAt, retiresAt, siblings, client } = value;
  if (user !== null && !(isJsonObject(user) && typeof user.id === "string")) return undefined;
  if (!isJsonObject(data) || !isTime(createdAt)) return undefined;
  if (retiresAt !== undefined && !isTime(retiresAt)) return undefined;
  if (!Number.isSafeInteger(version) || !isTime(expiresAt) || !isTime(usedAt)) return undefined;
  if (siblings !== undefined && !isKeyList(siblings)) return undefined;
  if (client !== undefined && !isClient(client)) return undefined;
  return {
    user: user as SessionUser | null,
    data,
    createdAt,
    expiresAt,
    usedAt,
    version,
    ...(retiresAt !== undefined && { retiresAt }),
    ...(siblings !== undefined && { siblings }),
    ...(client !== undefined && { client }),
  };
}

function isTime(value: Json | undefined): value is number {
  return Number.isFinite(value);
}

function isClient(value: Json): value is { readonly address: string; readonly userAgent: string } {
  return isJsonObject(value) && typeof value.address === "string" && typeof value.userAgent === "string";
}

function isKeyList(value: Json): value is readonly SessionKey[] {
  return Array.isArray(value) && value.every((key) => typeof key === "string");
}
