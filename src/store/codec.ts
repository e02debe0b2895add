import { isJsonObject } from "../core/json.ts";
import type { Session, SessionUser } from "../core/session.ts";

/** What a store keeps as one text; version and expiry stand beside it, where the store can compare and move them. */
export function encodeSession({ user, data, createdAt, retiresAt, sibling }: Session): string {
  return JSON.stringify({ user, data, createdAt, retiresAt, sibling });
}

/** @returns `undefined` for anything that `encodeSession` did not write: `malformed`, never an exception. */
export function decodeSession(text: string, version: number, expiresAt: number): Session | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isJsonObject(value)) return undefined;
  const { user, data, createdAt, retiresAt, sibling } = value;
  if (user !== null && !(isJsonObject(user) && typeof user.id === "string")) return undefined;
  if (!isJsonObject(data) || typeof createdAt !== "number") return undefined;
  if (retiresAt !== undefined && typeof retiresAt !== "number") return undefined;
  if (!Number.isSafeInteger(version) || !Number.isFinite(expiresAt)) return undefined;
  if (sibling !== undefined && typeof sibling !== "string") return undefined;
  const session: Session = { user: user as SessionUser | null, data, createdAt, expiresAt, version };
  if (retiresAt === undefined && sibling === undefined) return session;
  return { ...session, ...(retiresAt !== undefined && { retiresAt }), ...(sibling !== undefined && { sibling }) };
}
