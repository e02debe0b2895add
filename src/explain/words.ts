import type {
  CookieVerdict,
  LogoutReason,
  PolicyDecision,
  SessionOutcome,
  SessionSource,
  StripClass,
} from "../core/exchange.ts";
import type { Route } from "../core/routes.ts";
import type { Unreadable } from "../core/session.ts";
import type { CookieSettings } from "../session/cookie.ts";

/** The sentences of explanations: what happened to a request, and what to do about it. */

/** What of a gateway's settings the sentences name. */
export interface Facts {
  readonly cookie: Omit<CookieSettings, "secrets"> & { readonly secrets: number };
  /** The secret was made at start, because none is configured. */
  readonly ephemeralSecret: boolean;
}

/** What became of the session of a request, however that is known. */
export interface Verdict {
  readonly outcome: SessionOutcome;
  readonly source: SessionSource | undefined;
  readonly cookie: CookieVerdict;
  readonly decision: PolicyDecision;
  /** Why a cookie of ours was of no use. */
  readonly logout?: LogoutReason | undefined;
  /** Whether somebody is signed in to it. */
  readonly hasUser: boolean;
  /** With the outcome `malformed` of a store. */
  readonly unreadable?: Unreadable | undefined;
  /** With the outcome `unavailable`: what to do about the store. */
  readonly storeAdvice?: string | undefined;
}

export const COOKIE_FINDINGS: Readonly<Record<Exclude<CookieVerdict, "absent">, string>> = {
  valid: "its signature is good",
  "bad-shape": "it does not look like one of ours",
  "bad-signature": "no configured secret verifies it",
};

export const SESSION_FINDINGS: Readonly<Record<SessionOutcome, string>> = {
  "not-asked": "not asked for: the route has session: none",
  absent: "none: there is no session cookie",
  hit: "found",
  unknown: "the store does not know this id",
  expired: "it has ended",
  malformed: "what the cookie or the store holds cannot be read",
  newer: "it was written by a later version of Coatcheck, in a format that this one does not know",
  mismatch: "it is used by another client than the one that began it, and is not believed",
  ambiguous: "several cookies, each of a live session: none is believed",
  unavailable: "nobody knows: the session store gives no answer",
};

export const UNREADABLE_FINDINGS: Readonly<Record<Unreadable, string>> = {
  "unknown-key": "it is encrypted with a key that session.encryptionKeys does not have",
  "not-encrypted": "it is not encrypted, and session.encryptionKeys refuses that",
  damaged: "it is damaged, or something else has written it",
};

const UNREADABLE_ADVICE: Readonly<Record<Unreadable, string>> = {
  "unknown-key":
    "give this gateway the key that the others encrypt with: put a new key last in session.encryptionKeys everywhere before one of them uses it first",
  "not-encrypted":
    "put the word plaintext last in session.encryptionKeys until session.absoluteTimeout has passed, so that sessions from before are read",
  damaged:
    "find out what else writes under these keys (another program, another prefix, a restored dump); the visitor gets a new session by signing in again",
};

/** What this gateway knows of the end of a session that is not there. */
export const END_FINDINGS: Readonly<Partial<Record<LogoutReason, string>>> = {
  ended: "somebody has ended it: a logout, an operator, or session.maxPerUser",
  lost: "nobody has told this gateway of its end: the store has lost it, or it ended before this gateway was there",
};

const ENDED_ADVICE =
  "the log lines session.ended, session.revoked and session.evicted with this handle say who ended it, on whichever instance it was";

/** Why a header of the client does not go on. */
export const REMOVAL_REASONS: Readonly<Record<StripClass, string>> = {
  managed: "only Coatcheck says who is asking",
  alias: "applications may read it as a header that is Coatcheck's to set",
  connection: "listed in Connection, by which a client cannot take away what Coatcheck says",
  forwarded: "it is told anew; only a proxy in listen.trustedProxies may say it",
  internal: "it is Coatcheck's own",
  underscore: "applications may read it as its twin with dashes",
};

export function policyFinding(route: Route, { decision, outcome, hasUser }: Verdict): string {
  const rule = `session: ${route.session}`;
  switch (decision) {
    case "identified":
      return `${rule}: somebody is signed in, so the request goes on in their name`;
    case "anonymous":
      if (route.session === "none") return `${rule}: the request goes on without a user`;
      if (outcome === "unavailable") return `${rule}, onOutage: anonymous: the request goes on as if it had no cookie`;
      return `${rule}: ${hasUser ? "" : "nobody is signed in, and "}nobody has to be`;
    case "login-redirect":
      return `${rule}: nobody is signed in, and a person waits for a page, who is sent to ${route.loginRedirect}`;
    case "denied":
      return route.loginRedirect === undefined
        ? `${rule}: nobody is signed in`
        : `${rule}: nobody is signed in; a page navigation would be sent to ${route.loginRedirect}, and this is none`;
    case "outage":
      return route.session === "required"
        ? `${rule}: nobody passes while nobody can tell who is signed in`
        : `${rule}, onOutage: 503: whoever brings a cookie has to wait for the store`;
    case "undecided":
      return "the request did not come to that";
  }
}

/** Why there is no user, as the end of a sentence. */
export function reasonOf({ outcome, cookie, hasUser }: Verdict): string {
  switch (outcome) {
    case "hit":
      return hasUser ? "somebody is signed in" : "nobody has signed in to the session";
    case "absent":
      return "it has no session cookie";
    case "malformed":
      if (cookie === "bad-signature") return "no configured secret verifies its cookie";
      if (cookie === "bad-shape") return "its cookie is none of ours";
      return "its session cannot be read";
    case "unknown":
      return "the store does not know its session";
    case "expired":
      return "its session has ended";
    case "newer":
      return "its session was written by a later version";
    case "mismatch":
      return "its session is bound to another client";
    case "ambiguous":
      return "it has several cookies of live sessions";
    case "unavailable":
      return "the session store gives no answer";
    case "not-asked":
      return "the route does not ask for sessions";
  }
}

/** Why there is no id that the store could be asked for. */
export function notAsked(outcome: SessionOutcome): string {
  return `the store is not asked: ${outcome === "absent" ? "there is no cookie" : "no cookie has verified"}`;
}

/** What to do when somebody should have been signed in. */
export function adviceFor(verdict: Verdict, facts: Facts, route: Route): string | undefined {
  const { name, secure, path } = facts.cookie;
  switch (verdict.outcome) {
    case "hit":
      return verdict.hasUser
        ? undefined
        : `nobody has signed in to this session: the application signs a visitor in with X-Session-Start and a user${route.write === undefined ? ", from a route with write" : ""}`;
    case "not-asked":
      return `for a user on this route, set session: optional or required in routes (${route.id})`;
    case "absent":
      return `the client has to send the cookie named ${name}: a browser has it after signing in, and sends it ${secure ? "over HTTPS only, " : ""}for paths below ${path}; whoever asks by hand gives the whole Cookie header`;
    case "malformed":
      return verdict.cookie === "valid"
        ? UNREADABLE_ADVICE[verdict.unreadable ?? "damaged"]
        : cookieAdvice(verdict, facts);
    case "unknown":
      return verdict.logout === "ended"
        ? ENDED_ADVICE
        : `${ENDED_ADVICE}; if there is none, ask whether the store was emptied, evicts keys, or is another one than where people sign in (coatcheck check --store)`;
    case "expired":
      if (verdict.logout === "ended") return ENDED_ADVICE;
      return "if it should have lived longer, raise the timeout that ended it: session.idleTimeout or session.absoluteTimeout";
    case "newer":
      return "a later version has written to this store: run that version, or let the sessions end";
    case "mismatch":
      return "if the client is the right one, widen session.bind, or set session.onMismatch: log; if not, somebody may have stolen the cookie: end the session";
    case "ambiguous":
      return `delete one of the cookies named ${name} in the browser; they come from another path or domain, where a second application or an earlier session.cookie.path or domain has set one`;
    case "unavailable":
      return verdict.storeAdvice ?? "look at the store: coatcheck check --store";
  }
}

function cookieAdvice({ cookie }: Verdict, { cookie: { name, secrets }, ephemeralSecret }: Facts): string {
  if (cookie === "bad-shape")
    return `it was cut on the way or comes from another program: if another one sets a cookie named ${name}, choose a session.cookie.name of its own; otherwise delete it in the browser and sign in again`;
  if (ephemeralSecret)
    return "session.cookie.secrets is empty, so that every start makes a new secret and ends all sessions: configure one";
  return `was a secret removed or replaced? Put it back behind the first in session.cookie.secrets (there ${secrets === 1 ? "is 1" : `are ${secrets}`}) until session.absoluteTimeout has passed, and look whether all gateways have the same; if none was, the cookie comes from another installation or is forged`;
}

export function secretFinding(secret: number, secrets: number): string {
  if (secrets === 1) return "good, by the only secret";
  if (secret === 0) return "good, by the first secret, which signs new cookies";
  return `good, by secret ${secret + 1} of ${secrets}, an older one: the cookie is signed anew when it is next renewed`;
}

/** `1 header`, `2 headers`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

const UNITS: readonly (readonly [ms: number, name: string])[] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1_000, "s"],
];

/** `26 min 40 s`, `3 h 5 min`, `850 ms`. @param ms not negative. */
export function inWords(ms: number): string {
  const first = UNITS.findIndex(([unit]) => ms >= unit);
  const [unit, name] = UNITS[first] ?? [1, "ms"];
  const [next, nextName] = (first === -1 ? undefined : UNITS[first + 1]) ?? [1, ""];
  const rest = Math.floor((ms % unit) / next);
  const whole = `${Math.floor(ms / unit)} ${name}`;
  return nextName === "" || rest === 0 ? whole : `${whole} ${rest} ${nextName}`;
}

/** Beyond this a `Date` cannot hold it, milliseconds since the epoch. */
const LAST_TIME = 8.64e15;

/** `2026-05-01 12:00:00 UTC` */
export function timeInWords(at: number): string {
  if (!(Math.abs(at) <= LAST_TIME)) return "no date";
  return `${new Date(at).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** `3 min ago`, `in 3 min`. */
export function relative(at: number, now: number): string {
  return at <= now ? `${inWords(now - at)} ago` : `in ${inWords(at - now)}`;
}
