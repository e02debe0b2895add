import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  hkdfSync,
  type KeyObject,
  randomFillSync,
} from "node:crypto";

/**
 * AES-256-GCM around a payload. The nonces are random, so that a key is good for some four thousand million writes
 * (NIST SP 800-38D, 8.3); then it is time for a new one.
 *
 * Envelope: format octet, 4 octets key id, 12 octets nonce, ciphertext, 16 octets tag.
 */

const ALGORITHM = "aes-256-gcm";
const INFO = "coatcheck session encryption v1";
const KEY_BYTES = 32;
const ID_BYTES = 4;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const NONCE_AT = 1 + ID_BYTES;
const HEADER_BYTES = NONCE_AT + NONCE_BYTES;

/** A secret as it is used: what is shown of it, by accident even, tells nothing about the secret. */
export interface EncryptionKey {
  /** Tells the keys of a list apart; the same in every process. */
  readonly id: number;
  readonly key: KeyObject;
}

/** Derives key and id from a secret (HKDF-SHA256, RFC 5869). */
export function deriveKey(secret: string): EncryptionKey {
  const derived = Buffer.from(hkdfSync("sha256", secret, "", INFO, KEY_BYTES + ID_BYTES));
  return { id: derived.readUInt32BE(KEY_BYTES), key: createSecretKey(derived.subarray(0, KEY_BYTES)) };
}

/**
 * Encrypts a payload.
 * @param associatedData has to be given again to `unseal`: what the payload belongs to.
 */
export function seal(format: number, { id, key }: EncryptionKey, payload: Buffer, associatedData: string): Buffer {
  const sealed = Buffer.allocUnsafe(HEADER_BYTES + payload.length + TAG_BYTES);
  sealed.writeUInt8(format);
  sealed.writeUInt32BE(id, 1);
  randomFillSync(sealed, NONCE_AT, NONCE_BYTES);
  const nonce = sealed.subarray(NONCE_AT, HEADER_BYTES);
  const cipher = createCipheriv(ALGORITHM, key, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(Buffer.from(associatedData));
  cipher.update(payload).copy(sealed, HEADER_BYTES);
  cipher.final();
  cipher.getAuthTag().copy(sealed, HEADER_BYTES + payload.length);
  return sealed;
}

/** Which key made an envelope; `undefined` when it is too short to be one. */
export function keyIdOf(sealed: Buffer): number | undefined {
  return sealed.length < HEADER_BYTES + TAG_BYTES ? undefined : sealed.readUInt32BE(1);
}

/** @returns `undefined` when none of the keys made it, or not for this associated data. Never throws. */
export function unseal(keys: readonly EncryptionKey[], sealed: Buffer, associatedData: string): Buffer | undefined {
  const id = keyIdOf(sealed);
  if (id === undefined) return undefined;
  for (const { id: candidate, key } of keys) {
    if (candidate !== id) continue;
    try {
      const nonce = sealed.subarray(NONCE_AT, HEADER_BYTES);
      const decipher = createDecipheriv(ALGORITHM, key, nonce, { authTagLength: TAG_BYTES });
      decipher.setAAD(Buffer.from(associatedData));
      decipher.setAuthTag(sealed.subarray(-TAG_BYTES));
      const payload = decipher.update(sealed.subarray(HEADER_BYTES, -TAG_BYTES));
      // Throws when the tag is wrong; until then the payload is nobody's.
      decipher.final();
      return payload;
    } catch {}
  }
  return undefined;
}
