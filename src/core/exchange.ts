import type { Capture } from "./capture.ts";
import type { ErrorCode } from "./errors.ts";
import type { VerificationProtocol } from "./forward-auth.ts";
import type { MethodLabel } from "./labels.ts";
import type { LimitReason } from "./limits.ts";
import { ownCopy, pieceOf } from "./own-copy.ts";
import type { Encryption } from "./peer.ts";
import type { Route } from "./routes.ts";
import type { Handle } from "./session.ts";
import type { StoreCommand } from "./store.ts";
import type { Choice, QueueRefusal, RetryReason, UpstreamAttempt } from "./upstream.ts";

/** How the cookie looked before any store was asked. */
export const COOKIE_VERDICTS = ["absent", "valid", "bad-shape", "bad-signature"] as const;
export type CookieVerdict = (typeof COOKIE_VERDICTS)[number];

/** What became of the session: the store's answer, or why it was not asked. */
export const SESSION_OUTCOMES = [
  "not-asked",
  "absent",
  "hit",
  "unknown",
  "expired",
  "malformed",
  /** Stored by a later version of Coatcheck, in a format that this one does not know. */
  "newer",
  /** Bound to another user agent or network, and `session.onMismatch` is `deny`. */
  "mismatch",
  /** Two cookies of the same name, both of a live session: neither is believed. */
  "ambiguous",
  "unavailable",
] as const;
export type SessionOutcome = (typeof SESSION_OUTCOMES)[number];

/** Why a visitor who brought a session cookie of ours was not recognised. All but the first two are surprises. */
export const LOGOUT_REASONS = [
  /** Their session was idle for too long, or has reached its greatest age. */
  "expired",
  /** A logout, an operator or `maxPerUser` ended it. */
  "ended",
  /** The cookie is ours and the store does not know it, nor did anybody end it: evicted, flushed, lost in a failover. */
  "lost",
  /** No configured secret verifies the cookie: a secret was removed too early, or somebody made it up. */
  "signature",
  "malformed",
  "newer",
  "mismatch",
  "ambiguous",
] as const;
export type LogoutReason = (typeof LOGOUT_REASONS)[number];

/** Whether nobody wanted that. @param reason as in `LOGOUT_REASONS`, perhaps of another version. */
export function isSurprise(reason: string): boolean {
  return reason !== "expired" && reason !== "ended";
}

/** Where the answer came from. `coalesced`: another request had asked already. `stale`: from before an outage. */
export const SESSION_SOURCES = ["cache", "coalesced", "store", "stale"] as const;
export type SessionSource = (typeof SESSION_SOURCES)[number];

/** What the route's policy made of that. */
export const POLICY_DECISIONS = ["undecided", "identified", "anonymous", "login-redirect", "denied", "outage"] as const;
export type PolicyDecision = (typeof POLICY_DECISIONS)[number];

/** Why a request header was taken out before the request went on. */
export const STRIP_CLASSES = ["managed", "alias", "connection", "forwarded", "internal", "underscore"] as const;
export type StripClass = (typeof STRIP_CLASSES)[number];

export const WRITE_BACK_COMMANDS = ["start", "set", "end"] as const;
export type WriteBackCommand = (typeof WRITE_BACK_COMMANDS)[number];
export const WRITE_BACK_RESULTS = [
  "saved",
  /** The route has no `write`. */
  "not-allowed",
  /** The value is not what design §6 describes. */
  "malformed",
  /** There is no session that it could apply to. */
  "no-session",
  "conflict",
  "failed",
] as const;
export type WriteBackResult = (typeof WRITE_BACK_RESULTS)[number];

/** What the gateway could not do, whatever the upstream did. */
const OWN_FAILURES: ReadonlySet<ErrorCode> = new Set([
  "session_store_unavailable",
  "session_write_conflict",
  "proxy_shutdown",
]);

/** Those that are an attempt to forge or remove what only the gateway may say. The others are normal. */
const SPOOF_CLASSES: ReadonlySet<StripClass> = new Set(["managed", "alias", "connection", "internal"]);

/** How many names an exchange keeps of a kind, and how much of each; all of them are counted. */
const NAMES_KEPT = 16;
const NAME_CHARACTERS_KEPT = 64;
const PATH_CHARACTERS_KEPT = 512;
/** Longer than any name that DNS has. */
const HOST_CHARACTERS_KEPT = 255;
/** Commands to the store's server that an exchange keeps; one that ends all sessions of a user may take thousands. */
const STORE_COMMANDS_KEPT = 32;
const NO_NAMES: readonly string[] = [];

/**
 * The record of one request. Every step only fills in fields; metrics, spans, the access line and the recorder entry
 * are rendered from it in one place when the response closes, so they cannot disagree.
 *
 * It must never hold a token, a cookie, a header value or a body: whatever is in here may be shown to an operator.
 * (`capture` holds the header values that are on its allow-list, and only while the request is under watch.)
 * Times are milliseconds after `startedAt`, measured with a monotonic clock; `undefined`: the step was not reached.
 */
export class Exchange {
  /** Wall clock at the start, milliseconds since the epoch. */
  readonly startedAt: number;
  #startedMonotonic: number;

  readonly method: string;
  readonly methodLabel: MethodLabel;
  readonly httpVersion: string;
  /** Without the query, which may carry secrets; at most 512 characters. */
  path = "";
  /** In lower case, without port; at most 255 characters. */
  host = "";
  /** As the client sees it: a trusted proxy may have said so. */
  scheme: "http" | "https" = "http";
  /** Of the connection to the gateway. */
  connectionScheme: "http" | "https" = "http";
  /** Of the connection to the gateway; absent: it is not encrypted. */
  tls: Encryption | undefined = undefined;
  clientAddress = "";
  /** Whether content follows the request head; until that is read, it may. */
  requestHasContent = true;
  /** Bytes of the request content that went upstream. */
  requestBytes = 0;
  /** Bytes of the response content that went to the client. */
  responseBytes = 0;

  /** 32 hex digits; a trusted peer's, where it sent one. Also the name by which people find this request. */
  traceId: string;
  readonly spanId: string;
  parentSpanId: string | undefined = undefined;
  /** The head decision; it travels in `traceparent`. */
  sampled = false;
  /** The span of the upstream attempt; upstream sees it as its parent. */
  upstreamSpanId: string | undefined = undefined;

  /** Another proxy asked whether a request may go on: path, host and route are of that, and so is `method` here. */
  verification: { readonly protocol: VerificationProtocol; readonly method: string } | undefined = undefined;
  route: Route | undefined = undefined;
  cookie: CookieVerdict = "absent";
  /** Which of `session.cookie.secrets` verified the cookie; 0 is the one that signs. */
  cookieSecret: number | undefined = undefined;
  session: SessionOutcome = "not-asked";
  sessionSource: SessionSource | undefined = undefined;
  logout: LogoutReason | undefined = undefined;
  /** How old a session of the source `stale` was, milliseconds. */
  staleMs: number | undefined = undefined;
  handle: Handle | undefined = undefined;
  decision: PolicyDecision = "undecided";
  /** How many headers were stripped, by class. */
  stripped: Partial<Record<StripClass, number>> | undefined = undefined;
  strippedNames: string[] | undefined = undefined;
  /** The names among them by which the client tried to forge or remove an identity header. */
  spoofedNames: string[] | undefined = undefined;
  /** Names of the identity headers that carry a value; the others were sent empty. */
  identified: readonly string[] = NO_NAMES;
  writeBack: { readonly command: WriteBackCommand; readonly result: WriteBackResult }[] | undefined = undefined;
  /** How many attributes the upstream may not write, so that they were dropped. */
  writeBackDropped = 0;
  writeBackDroppedNames: readonly string[] = NO_NAMES;

  /** Commands that went to the store's server for this request, in the order in which they ended. */
  storeCommands: StoreCommand[] | undefined = undefined;
  /** How many more there were. */
  storeCommandsDropped = 0;

  /** `host:port` of the upstream that was asked. */
  upstream: string | undefined = undefined;
  upstreamScheme: "http" | "https" = "http";
  upstreamStatus: number | undefined = undefined;
  /** The address of it, where Coatcheck resolves the name. */
  upstreamPeer: string | undefined = undefined;
  /** Why it was that one; absent: there is no other. */
  upstreamChoice: Choice | undefined = undefined;
  /** How often it was sent again. */
  upstreamRetries = 0;
  /** Those before the last. */
  upstreamAttempts: UpstreamAttempt[] | undefined = undefined;
  /** It could have been sent again, but for the budget. */
  retryRefused = false;
  /** How long it waited for a connection to become free. */
  upstreamWaitMs = 0;
  /** Why it did not get one. */
  queueRefused: QueueRefusal | undefined = undefined;
  /** Interim responses of the upstream (103 and its like) that were passed on. */
  interimHeads = 0;
  status = 0;
  /** Who produced the status: the application, or Coatcheck itself. */
  source: "upstream" | "proxy" = "proxy";
  error: ErrorCode | undefined = undefined;
  /** For operators; from `ProxyError.message`. */
  errorMessage: string | undefined = undefined;
  /** Which limit it passed, if it was refused for that. */
  limited: LimitReason | undefined = undefined;
  /** The client went away before the response was complete: 499 in the records, no error. */
  clientGone = false;

  /** What is being asked on its behalf. The record is closed when that is answered, also if the client has gone. */
  pending: Promise<unknown> | undefined = undefined;

  /** Of a user or a session under watch: always logged, exported and kept (`observe/watches.ts`). */
  watched = false;
  /** The header sections of a watched request, masked, until it is kept. */
  capture: Capture | undefined = undefined;

  // Not a number: not reached. V8 keeps a number in place in a field that never holds anything else; in one that may be
  // `undefined` as well, each is an object of its own.
  #resolveStartedMs = Number.NaN;
  #resolvedMs = Number.NaN;
  #forwardedMs = Number.NaN;
  #attemptMs = Number.NaN;
  #upstreamHeadMs = Number.NaN;
  #upstreamEndMs = Number.NaN;
  #savedMs = Number.NaN;
  #endedMs = Number.NaN;

  constructor(init: {
    method: string;
    methodLabel: MethodLabel;
    httpVersion: string;
    traceId: string;
    spanId: string;
  }) {
    this.startedAt = Date.now();
    this.#startedMonotonic = performance.now();
    this.method = init.method;
    this.methodLabel = init.methodLabel;
    this.httpVersion = init.httpVersion;
    this.traceId = init.traceId;
    this.spanId = init.spanId;
  }

  get resolveStartedMs(): number | undefined {
    return reached(this.#resolveStartedMs);
  }

  set resolveStartedMs(ms: number) {
    this.#resolveStartedMs = ms;
  }

  get resolvedMs(): number | undefined {
    return reached(this.#resolvedMs);
  }

  set resolvedMs(ms: number) {
    this.#resolvedMs = ms;
  }

  get forwardedMs(): number | undefined {
    return reached(this.#forwardedMs);
  }

  set forwardedMs(ms: number) {
    this.#forwardedMs = ms;
  }

  /** When the last attempt began; `forwardedMs` is the first. */
  get attemptMs(): number | undefined {
    return reached(this.#attemptMs);
  }

  set attemptMs(ms: number) {
    this.#attemptMs = ms;
  }

  get upstreamHeadMs(): number | undefined {
    return reached(this.#upstreamHeadMs);
  }

  set upstreamHeadMs(ms: number) {
    this.#upstreamHeadMs = ms;
  }

  get upstreamEndMs(): number | undefined {
    return reached(this.#upstreamEndMs);
  }

  set upstreamEndMs(ms: number) {
    this.#upstreamEndMs = ms;
  }

  get savedMs(): number | undefined {
    return reached(this.#savedMs);
  }

  set savedMs(ms: number) {
    this.#savedMs = ms;
  }

  get endedMs(): number | undefined {
    return reached(this.#endedMs);
  }

  set endedMs(ms: number) {
    this.#endedMs = ms;
  }

  /** Of a closed one; without what nobody asks of a record: `pending`, `capture` and `upstreamSpanId`. */
  static copyOf(other: Exchange): Exchange {
    const copy = new Exchange(other);
    copy.become(other);
    return copy;
  }

  /**
   * Becomes the record of another exchange, which is closed. What keeps records for long keeps them in the same few
   * objects: fresh ones, each of which outlives a garbage collection or two, are dear (bench/README.md).
   */
  become(other: Exchange): void {
    // biome-ignore lint/complexity/noUselessThisAlias: of another type, without `readonly`
    const own: { -readonly [Field in keyof Exchange]: Exchange[Field] } = this;
    this.#startedMonotonic = other.#startedMonotonic;
    own.startedAt = other.startedAt;
    own.method = other.method;
    own.methodLabel = other.methodLabel;
    own.httpVersion = other.httpVersion;
    this.path = other.path;
    this.host = other.host;
    this.scheme = other.scheme;
    this.connectionScheme = other.connectionScheme;
    this.tls = other.tls;
    this.clientAddress = other.clientAddress;
    this.requestHasContent = other.requestHasContent;
    this.requestBytes = other.requestBytes;
    this.responseBytes = other.responseBytes;
    this.traceId = other.traceId;
    own.spanId = other.spanId;
    this.parentSpanId = other.parentSpanId;
    this.sampled = other.sampled;
    this.verification = other.verification;
    this.route = other.route;
    this.cookie = other.cookie;
    this.cookieSecret = other.cookieSecret;
    this.session = other.session;
    this.sessionSource = other.sessionSource;
    this.logout = other.logout;
    this.staleMs = other.staleMs;
    this.handle = other.handle;
    this.decision = other.decision;
    this.stripped = other.stripped;
    this.strippedNames = other.strippedNames;
    this.spoofedNames = other.spoofedNames;
    this.identified = other.identified;
    this.writeBack = other.writeBack;
    this.writeBackDropped = other.writeBackDropped;
    this.writeBackDroppedNames = other.writeBackDroppedNames;
    this.storeCommands = other.storeCommands;
    this.storeCommandsDropped = other.storeCommandsDropped;
    this.upstream = other.upstream;
    this.upstreamScheme = other.upstreamScheme;
    this.upstreamStatus = other.upstreamStatus;
    this.upstreamPeer = other.upstreamPeer;
    this.upstreamChoice = other.upstreamChoice;
    this.upstreamRetries = other.upstreamRetries;
    this.upstreamAttempts = other.upstreamAttempts;
    this.retryRefused = other.retryRefused;
    this.upstreamWaitMs = other.upstreamWaitMs;
    this.queueRefused = other.queueRefused;
    this.interimHeads = other.interimHeads;
    this.status = other.status;
    this.source = other.source;
    this.error = other.error;
    this.errorMessage = other.errorMessage;
    this.limited = other.limited;
    this.clientGone = other.clientGone;
    this.watched = other.watched;
    this.#resolveStartedMs = other.#resolveStartedMs;
    this.#resolvedMs = other.#resolvedMs;
    this.#forwardedMs = other.#forwardedMs;
    this.#attemptMs = other.#attemptMs;
    this.#upstreamHeadMs = other.#upstreamHeadMs;
    this.#upstreamEndMs = other.#upstreamEndMs;
    this.#savedMs = other.#savedMs;
    this.#endedMs = other.#endedMs;
  }

  /** Milliseconds since the request began. */
  elapsedMs(): number {
    return performance.now() - this.#startedMonotonic;
  }

  /** @param at by `performance.now()`. @returns milliseconds after the request began. */
  sinceStart(at: number): number {
    return at - this.#startedMonotonic;
  }

  /**
   * @param path as sent, without the query.
   * @param target that it was cut out of.
   */
  setPath(path: string, target: string): void {
    if (path.length > PATH_CHARACTERS_KEPT) this.path = `${ownCopy(path.slice(0, PATH_CHARACTERS_KEPT))}…`;
    else this.path = pieceOf(target, path);
  }

  setHost(hostname: string): void {
    if (hostname.length > HOST_CHARACTERS_KEPT) this.host = `${ownCopy(hostname.slice(0, HOST_CHARACTERS_KEPT))}…`;
    else this.host = hostname;
  }

  countStripped(stripClass: StripClass, name: string): void {
    this.stripped ??= {};
    this.strippedNames ??= [];
    this.stripped[stripClass] = (this.stripped[stripClass] ?? 0) + 1;
    keepName(this.strippedNames, name);
    if (SPOOF_CLASSES.has(stripClass)) {
      this.spoofedNames ??= [];
      keepName(this.spoofedNames, name);
    }
  }

  /** @param limit which limit was passed, if it is that. */
  fail(code: ErrorCode, message: string, limit?: LimitReason): void {
    if (this.error === undefined) this.limited = limit;
    this.error ??= code;
    this.errorMessage ??= message;
  }

  /** What ends after the record was closed, because nobody waited for it, is not this record's any more. */
  countStoreCommand(command: StoreCommand): void {
    if (this.endedMs !== undefined && this.pending === undefined) return;
    this.storeCommands ??= [];
    if (this.storeCommands.length < STORE_COMMANDS_KEPT) this.storeCommands.push(command);
    else this.storeCommandsDropped++;
  }

  /** Why the attempt upstream failed: not what the gateway itself could not do with a good answer. */
  get upstreamError(): ErrorCode | undefined {
    const { error } = this;
    return error !== undefined && OWN_FAILURES.has(error) ? undefined : error;
  }

  /** The attempt has failed, and another one follows. */
  keepAttempt(retry: RetryReason, status: number | undefined, error: ErrorCode | undefined, spanId: string): void {
    this.upstreamRetries++;
    this.upstreamAttempts ??= [];
    this.upstreamAttempts.push({
      upstream: this.upstream ?? "",
      peer: this.upstreamPeer,
      choice: this.upstreamChoice,
      startedMs: this.attemptMs ?? 0,
      endedMs: this.elapsedMs(),
      status,
      error,
      retry,
      spanId,
    });
  }

  /** @param names of attributes that were dropped. */
  countDropped(names: readonly string[]): void {
    this.writeBackDropped = names.length;
    if (names.length === 0) return;
    const kept: string[] = [];
    for (const name of names) keepName(kept, name);
    this.writeBackDroppedNames = kept;
  }

  countWriteBack(command: WriteBackCommand, result: WriteBackResult): void {
    this.writeBack ??= [];
    this.writeBack.push({ command, result });
  }
}

function keepName(names: string[], name: string): void {
  if (names.length >= NAMES_KEPT) return;
  names.push(name.length > NAME_CHARACTERS_KEPT ? ownCopy(name.slice(0, NAME_CHARACTERS_KEPT)) : name);
}

function reached(ms: number): number | undefined {
  return Number.isNaN(ms) ? undefined : ms;
}
