import type { Json } from "./json.ts";

/** SHA-256 of the token, base64url, 43 characters: what the store sees. It opens nothing by itself. */
export type SessionKey = string;

/** The first 12 characters of the session key: what logs, traces, the recorder and people see. */
export type Handle = string;

export function handleOf(key: SessionKey): Handle {
  return key.slice(0, 12);
}

/** Who is asking. Everything but `id` is optional; further claims are kept as the application gave them. */
export interface SessionUser {
  readonly id: string;
  readonly name?: string;
  readonly email?: string;
  readonly roles?: readonly string[];
  readonly [claim: string]: Json | undefined;
}

export type SessionData = Readonly<Record<string, Json>>;

/** What of its client a session can be bound to. */
export const BINDINGS = ["none", "user-agent", "ip-prefix", "both"] as const;
export type Binding = (typeof BINDINGS)[number];

/** Who began a session, as far as it can be told apart: for the list of a user's sessions, and for `session.bind`. */
export interface SessionClient {
  /** IP address in text form; empty when it is not known. */
  readonly address: string;
  /** The `User-Agent` field, cut to `MAX_USER_AGENT_LENGTH`; empty when there was none. */
  readonly userAgent: string;
}

export const MAX_USER_AGENT_LENGTH = 256;
export const MAX_USER_ID_LENGTH = 256;

/** One session as a store keeps it. All times are milliseconds since the epoch. */
export interface Session {
  /** `null`: a session that nobody has logged in to (a cart before the login). */
  readonly user: SessionUser | null;
  readonly data: SessionData;
  readonly createdAt: number;
  /** min(absolute, last use + idle), set by `session/expiry.ts` at creation and at every touch. */
  readonly expiresAt: number;
  /** The last use that was written down: creation, and each touch since. */
  readonly usedAt: number;
  /** Counts the commits, from 1; a commit names the version that it read. */
  readonly version: number;
  /** Set when the session was replaced at login: it answers until then, however often it is touched. */
  readonly retiresAt?: number;
  /** The other ids of the same visitor after a rotation: of the new one the old, of the old one each that replaced it. */
  readonly siblings?: readonly SessionKey[];
  readonly client?: SessionClient;
}

/** What a store makes of a key. Absence is an answer, not an error; only an outage throws. (After scs `Store.Find`.) */
export type FindResult =
  | { readonly outcome: "hit"; readonly session: Session }
  /** `life`: of the session that has ended; absent where the store does not tell. */
  | { readonly outcome: "expired"; readonly life?: SessionLife }
  | { readonly outcome: "unknown" | "malformed" | "newer" };

/** When a session began and ends: what tells why it has expired. */
export type SessionLife = Pick<Session, "createdAt" | "expiresAt" | "retiresAt">;

export const UNKNOWN: FindResult = { outcome: "unknown" };
export const EXPIRED: FindResult = { outcome: "expired" };
export const MALFORMED: FindResult = { outcome: "malformed" };
/** Written by a later version, in a format that this one does not know: as good as absent, and left alone. */
export const NEWER: FindResult = { outcome: "newer" };

/** What happens to a session in the course of a request. */
export type SessionEvent = "created" | "rotated" | "ended" | "expired" | "evicted" | "mismatch";

/** Why a session cannot be read: encrypted with a key that is not configured, in the clear where that is refused, or broken. */
export const UNREADABLE = ["unknown-key", "not-encrypted", "damaged"] as const;
export type Unreadable = (typeof UNREADABLE)[number];

/** What a store makes of a key, with what an operator asks and a request does not. */
export interface Peek {
  readonly outcome: FindResult["outcome"];
  /** Also one that has ended, for as long as it is kept. */
  readonly session?: Session;
  /** With the outcome `malformed`, where it can be told. */
  readonly unreadable?: Unreadable;
  /** Of two stores, the one that answered this. */
  readonly place?: "primary" | "fallback";
}

/**
 * How long a store keeps an expired session, so that a returning visitor is counted as `expired` and not as
 * `unknown`: at 3 a.m. these are two different problems.
 */
export const EXPIRED_GRACE_MS = 300_000;

/** The moment from which a session no longer answers. */
export function endOf(session: Pick<Session, "expiresAt" | "retiresAt">): number {
  return session.retiresAt === undefined ? session.expiresAt : Math.min(session.expiresAt, session.retiresAt);
}

/** The answer for a session that is there; whether it still lives is decided at read, whatever TTL its key has. */
export function judge(session: Session, now: number): FindResult {
  if (now < endOf(session)) return { outcome: "hit", session };
  const { createdAt, expiresAt, retiresAt } = session;
  return { outcome: "expired", life: { createdAt, expiresAt, ...(retiresAt !== undefined && { retiresAt }) } };
}

/** Attribute values to write; `undefined` removes the attribute. */
export type AttributeChanges = Readonly<Record<string, Json | undefined>>;

export function withChanges(data: SessionData, changes: AttributeChanges): SessionData {
  const changed: Record<string, Json> = { ...data };
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined) delete changed[name];
    else changed[name] = value;
  }
  return changed;
}
