import { isJsonObject, type Json } from "../core/json.ts";
import type { Session, SessionKey, SessionUser } from "../core/session.ts";

/** What a store keeps as one text; version and expiry stand beside it, where the store can compare and move them. */
export function encodeSession({ user, data, createdAt, retiresAt, siblings, client }: Session): string {
  return JSON.stringify({ user, data, createdAt, retiresAt, siblings, client });
}

/** @returns `undefined` for anything that `encodeSession` did not write: `malformed`, never an exception. */
export function decodeSession(text: string, version: number, expiresAt: number, usedAt: number): Session | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isJsonObject(value)) return undefined;
  const { user, data, createdAt, retiresAt, siblings, client } = value;
  if (user !== null && !(isJsonObject(user) && typeof user.id === "string")) return undefined;
  if (!isJsonObject(data) || typeof createdAt !== "number") return undefined;
  if (retiresAt !== undefined && typeof retiresAt !== "number") return undefined;
  if (!Number.isSafeInteger(version) || !Number.isFinite(expiresAt) || !Number.isFinite(usedAt)) return undefined;
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

function isClient(value: Json): value is { readonly address: string; readonly userAgent: string } {
  return isJsonObject(value) && typeof value.address === "string" && typeof value.userAgent === "string";
}

function isKeyList(value: Json): value is readonly SessionKey[] {
  return Array.isArray(value) && value.every((key) => typeof key === "string");
}
