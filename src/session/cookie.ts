import { createHmac, createSecretKey, hash, type KeyObject, randomBytes, timingSafeEqual } from "node:crypto";
import type { CookieVerdict } from "../core/exchange.ts";
import { type Handle, handleOf, type SessionKey } from "../core/session.ts";

/** 256 random bits as base64url, and the same for HMAC-SHA-256. */
export const TOKEN_LENGTH = 43;
const SIGNATURE_LENGTH = 43;
export const VALUE_LENGTH = TOKEN_LENGTH + 1 + SIGNATURE_LENGTH;

/** Cookies of the session cookie's name that are looked at in one request; the others are ignored. */
const MAX_CANDIDATES = 4;

export interface CookieSettings {
  readonly name: string;
  /** The first signs, all verify: put a new one first and drop the old one after `absoluteTimeout`. */
  readonly secrets: readonly string[];
  readonly sameSite: "Strict" | "Lax" | "None";
  readonly secure: boolean;
  readonly path: string;
  readonly domain: string | undefined;
}

export interface PresentedCookie {
  readonly verdict: CookieVerdict;
  /** Store keys of the verified tokens. More than one when the browser holds several cookies of the name. */
  readonly keys: readonly SessionKey[];
  /** The key that a cookie of the right shape would open if a secret verified it: to count it, never to look it up. */
  readonly unverified?: SessionKey | undefined;
  /** Which secret verified the first of them. */
  readonly secret: number | undefined;
  /** The `Cookie` field for upstream: without the session cookie; `undefined` when nothing is left. */
  readonly others: string | undefined;
}

/** What was made of one cookie of the name, for an operator. */
export interface CookieNote {
  /** `ignored`: it came behind so many others that it was not looked at. */
  readonly verdict: "valid" | "bad-shape" | "bad-signature" | "ignored";
  /** Characters of its value. */
  readonly length: number;
  /** Whether it is made of the characters that a cookie of ours is made of. */
  readonly plausible: boolean;
  readonly handle?: Handle;
  /** Which secret verified it. */
  readonly secret?: number;
}

export interface IssuedCookie {
  readonly key: SessionKey;
  /** The `Set-Cookie` value; it holds the token, so it goes to the browser and nowhere else. */
  readonly setCookie: string;
}

/** Verified signatures that are remembered; the oldest goes first. */
const REMEMBERED = 10_000;

/** A signature that verified, by the key that its token opens: neither is a credential without the token. */
interface Verified {
  readonly signature: string;
  readonly secret: number;
}

const NO_KEYS: readonly SessionKey[] = [];

/**
 * The session cookie: `token.signature`, the signature being HMAC-SHA-256 over `name=token`, so that neither an
 * invented token nor one of another cookie reaches the store. The token itself is never kept: the store key is its hash.
 */
export class SessionCookie {
  readonly #settings: CookieSettings;
  readonly #secrets: readonly KeyObject[];
  readonly #attributes: string;
  /** Spares a visitor's second request the HMAC, which cost a tenth of the CPU of a request. */
  readonly #verified = new Map<SessionKey, Verified>();
  readonly #expected = Buffer.alloc(SIGNATURE_LENGTH);
  readonly #presented = Buffer.alloc(SIGNATURE_LENGTH);

  constructor(settings: CookieSettings) {
    this.#settings = settings;
    this.#secrets = settings.secrets.map((secret) => createSecretKey(secret, "utf8"));
    const { path, domain, secure, sameSite } = settings;
    this.#attributes = `; Path=${path}${domain === undefined ? "" : `; Domain=${domain}`}; HttpOnly${secure ? "; Secure" : ""}; SameSite=${sameSite}`;
  }

  /** What an operator may know of the settings. */
  get facts(): Omit<CookieSettings, "secrets"> & { readonly secrets: number } {
    return { ...this.#settings, secrets: this.#secrets.length };
  }

  /**
   * Takes the session cookie out of a `Cookie` field and verifies it.
   * @param notes where to write down what was made of each cookie of the name, for whom that is of interest.
   */
  read(header: string | undefined, notes?: CookieNote[]): PresentedCookie {
    const { name } = this.#settings;
    if (header === undefined || !header.includes(name)) {
      return { verdict: "absent", keys: NO_KEYS, secret: undefined, others: header };
    }
    const candidates: string[] = [];
    let others = "";
    // Each request comes through here: no list of pairs, and no copy of what is not passed on.
    for (let next = 0; next < header.length; ) {
      const end = header.indexOf(";", next);
      const to = end === -1 ? header.length : end;
      const from = skipBlanks(header, next, to);
      const equals = header.indexOf("=", from);
      if (equals !== -1 && equals < to && trimmedSlice(header, from, equals) === name) {
        candidates.push(trimmedSlice(header, equals + 1, to));
      } else if (from < to) {
        others = others === "" ? trimmedSlice(header, from, to) : `${others}; ${trimmedSlice(header, from, to)}`;
      }
      next = to + 1;
    }
    return this.#verifyAll(candidates, others === "" ? undefined : others, notes);
  }

  #verifyAll(
    candidates: readonly string[],
    others: string | undefined,
    notes: CookieNote[] | undefined,
  ): PresentedCookie {
    let verdict: CookieVerdict = "absent";
    let firstSecret: number | undefined;
    let unverified: SessionKey | undefined;
    const keys: SessionKey[] = [];
    for (const value of candidates.slice(0, MAX_CANDIDATES)) {
      if (value.length !== VALUE_LENGTH || value[TOKEN_LENGTH] !== ".") {
        if (verdict === "absent") verdict = "bad-shape";
        notes?.push(noteOf("bad-shape", value));
        continue;
      }
      const token = value.slice(0, TOKEN_LENGTH);
      const key = keyOf(token);
      const secret = this.#verifyingSecret(token, key, value.slice(TOKEN_LENGTH + 1));
      if (secret === undefined) {
        unverified ??= key;
        if (verdict !== "valid") verdict = "bad-signature";
        notes?.push(noteOf("bad-signature", value));
        continue;
      }
      verdict = "valid";
      firstSecret ??= secret;
      notes?.push({ ...noteOf("valid", value), handle: handleOf(key), secret });
      if (!keys.includes(key)) keys.push(key);
    }
    if (notes !== undefined) for (const value of candidates.slice(MAX_CANDIDATES)) notes.push(noteOf("ignored", value));
    return { verdict, keys, secret: firstSecret, others, unverified };
  }

  #verifyingSecret(token: string, key: SessionKey, signature: string): number | undefined {
    this.#presented.write(signature, 0, SIGNATURE_LENGTH, "latin1");
    const before = this.#verified.get(key);
    if (before !== undefined && this.#matches(before.signature)) return before.secret;
    for (let secret = 0; secret < this.#secrets.length; secret++) {
      const expected = this.#sign(token, this.#secrets[secret] as KeyObject);
      if (!this.#matches(expected)) continue;
      if (this.#verified.size >= REMEMBERED) this.#verified.delete(this.#verified.keys().next().value as SessionKey);
      this.#verified.set(key, { signature: expected, secret });
      return secret;
    }
    return undefined;
  }

  /** Compares with the signature in `#presented`, in constant time. */
  #matches(signature: string): boolean {
    this.#expected.write(signature, 0, SIGNATURE_LENGTH, "latin1");
    return timingSafeEqual(this.#expected, this.#presented);
  }

  #sign(token: string, secret: KeyObject): string {
    return createHmac("sha256", secret).update(`${this.#settings.name}=${token}`).digest("base64url");
  }

  /**
   * A new token, as the cookie that carries it and the key that it opens.
   * @param lifetimeMs how long the browser keeps it, unless it is renewed.
   */
  issue(lifetimeMs: number): IssuedCookie {
    const token = randomBytes(32).toString("base64url");
    return { key: keyOf(token), setCookie: this.#setCookie(token, lifetimeMs) };
  }

  /**
   * The cookie of the request once more, to be kept for another `lifetimeMs`, and signed with the first secret.
   * @param header the `Cookie` field that `read` has verified.
   * @returns `undefined` when it does not hold the token of that key.
   */
  renew(header: string, key: SessionKey, lifetimeMs: number): string | undefined {
    const start = `${this.#settings.name}=`;
    for (const pair of header.split(";")) {
      const text = pair.trim();
      const token = text.startsWith(start) ? text.slice(start.length, start.length + TOKEN_LENGTH) : "";
      if (token.length === TOKEN_LENGTH && keyOf(token) === key) return this.#setCookie(token, lifetimeMs);
    }
    return undefined;
  }

  #setCookie(token: string, lifetimeMs: number): string {
    const value = `${token}.${this.#sign(token, this.#secrets[0] as KeyObject)}`;
    return `${this.#settings.name}=${value}; Max-Age=${Math.ceil(lifetimeMs / 1000)}${this.#attributes}`;
  }

  /** The `Set-Cookie` value that makes the browser forget the cookie. */
  clear(): string {
    return `${this.#settings.name}=; Max-Age=0${this.#attributes}`;
  }
}

/** @returns the place of the first character that is not blank, or `to`. */
function skipBlanks(text: string, from: number, to: number): number {
  let start = from;
  while (start < to && isBlank(text.charCodeAt(start))) start++;
  return start;
}

function trimmedSlice(text: string, from: number, to: number): string {
  const start = skipBlanks(text, from, to);
  let end = to;
  while (end > start && isBlank(text.charCodeAt(end - 1))) end--;
  return text.slice(start, end);
}

/** What `String.trim` takes for white space, of the characters that a header can hold. */
function isBlank(code: number): boolean {
  return code === 0x20 || (code >= 0x09 && code <= 0x0d) || code === 0xa0;
}

function noteOf(verdict: CookieNote["verdict"], value: string): CookieNote {
  return { verdict, length: value.length, plausible: /^[\w.-]*$/.test(value) };
}

function keyOf(token: string): SessionKey {
  return hash("sha256", token, "base64url");
}
