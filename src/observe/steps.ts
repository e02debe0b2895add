import type { LimitReason } from "../core/limits.ts";
import type { ExchangeRecord } from "./record.ts";

/** A record told as a story: what happened, in order, in words. It is made from the record alone, so it cannot differ. */

export const STEPS = [
  "received",
  "verification",
  "stripped",
  "route",
  "cookie",
  "session",
  "store-command",
  "policy",
  "injected",
  "waited",
  "attempt",
  "forwarded",
  "upstream-head",
  "write-back",
  "upstream-end",
  "limit",
  "ended",
] as const;

export interface Step {
  readonly step: (typeof STEPS)[number];
  /** Milliseconds after the request began; absent where that is not measured: between the steps before and after it. */
  readonly atMs?: number | undefined;
  /** Milliseconds that it took; absent where it took none to speak of, or did not come to its end. */
  readonly tookMs?: number | undefined;
  readonly detail: string;
}

/** The steps that a request came to. */
export function stepsOf(record: ExchangeRecord): Step[] {
  const { headers, route, session, error, timings } = record;
  const steps: Step[] = [{ step: "received", atMs: 0, detail: receivedText(record) }];
  if (record.verification !== undefined) steps.push({ step: "verification", detail: verificationText(record) });
  if (headers.strippedNames.length > 0) steps.push({ step: "stripped", detail: strippedText(headers) });
  if (route !== undefined) {
    steps.push({ step: "route", detail: route });
    steps.push({ step: "cookie", detail: cookieText(session) });
    steps.push({
      step: "session",
      atMs: rounded(timings.resolveStarted),
      tookMs: between(timings.resolveStarted, timings.resolved),
      detail: sessionText(record),
    });
    steps.push(...commandSteps(record, (startedMs) => startedMs <= (timings.resolved ?? Infinity)));
    if (session.decision !== "undecided") steps.push({ step: "policy", detail: decisionText(record) });
  } else if (error?.type === "destination_not_found") {
    steps.push({ step: "route", detail: "none for this host and path" });
  }
  if (record.verification !== undefined && error === undefined && isAllowed(record))
    steps.push({ step: "injected", detail: injectedText(headers) });
  steps.push(...upstreamSteps(record));
  if (record.limited !== undefined) steps.push({ step: "limit", detail: LIMIT_TEXTS[record.limited] });
  steps.push({ step: "ended", atMs: rounded(timings.ended), detail: endText(record) });
  return steps;
}

function upstreamSteps(record: ExchangeRecord): Step[] {
  const { upstream, headers, timings, writeBack = [] } = record;
  if (upstream === undefined) return refusedSteps(record);
  const { upstreamHead, saved, upstreamEnd } = timings;
  const forwarded = timings.attempt ?? timings.forwarded;
  const steps: Step[] = [
    { step: "injected", detail: injectedText(headers) },
    ...attemptSteps(upstream),
    { step: "forwarded", atMs: rounded(forwarded), detail: `to ${targetText(upstream)}` },
  ];
  if (upstream.status !== undefined) {
    const tookMs = between(forwarded, upstreamHead);
    const interim = upstream.interimHeads > 0 ? `, after ${upstream.interimHeads} interim responses` : "";
    const detail = `status ${upstream.status}${interim}`;
    steps.push({ step: "upstream-head", atMs: rounded(upstreamHead), tookMs, detail });
  }
  steps.push(...commandSteps(record, (startedMs) => startedMs > (timings.resolved ?? Infinity)));
  if (writeBack.length > 0) {
    const tookMs = between(upstreamHead, saved);
    steps.push({ step: "write-back", atMs: rounded(saved), tookMs, detail: writeBackText(record) });
  }
  if (upstreamEnd !== undefined) {
    const unable = upstream.retryRefused ? "; not sent again: the budget of retries is used up" : "";
    const detail = `nothing more comes from the application${unable}`;
    steps.push({ step: "upstream-end", atMs: rounded(upstreamEnd), tookMs: between(forwarded, upstreamEnd), detail });
  }
  return steps;
}

type UpstreamRecord = NonNullable<ExchangeRecord["upstream"]>;

/** A request that never got as far as a target. */
function refusedSteps({ queueRefused }: ExchangeRecord): Step[] {
  return queueRefused === undefined ? [] : [{ step: "waited", detail: QUEUE_TEXTS[queueRefused] }];
}

const QUEUE_TEXTS: Readonly<Record<NonNullable<ExchangeRecord["queueRefused"]>, string>> = {
  full: "not at all: all connections are in use, and as many requests wait as may",
  timeout: "for a connection, until the time for that was over",
};

/** What came before the last attempt. */
function attemptSteps({ waitedMs, attempts = [] }: UpstreamRecord): Step[] {
  const steps: Step[] = [];
  if (waitedMs > 0)
    steps.push({ step: "waited", tookMs: rounded(waitedMs), detail: "for a connection to become free" });
  for (const attempt of attempts) {
    const { started, ended, error, status, retry } = attempt;
    const why = retry === "status" ? `status ${status}` : `${error}, ${RETRY_TEXTS[retry]}`;
    const detail = `to ${targetText(attempt)}: ${why}; so it was sent again`;
    steps.push({ step: "attempt", atMs: rounded(started), tookMs: between(started, ended), detail });
  }
  return steps;
}

const RETRY_TEXTS: Readonly<Record<NonNullable<UpstreamRecord["attempts"]>[number]["retry"], string>> = {
  "idle-closed": "a connection from before that was closed at that moment",
  connect: "nothing had been sent",
  closed: "before an answer began",
  timeout: "no answer began in time",
  status: "an answer that another target may better",
};

function targetText({ address, peer, choice }: Pick<UpstreamRecord, "address" | "peer" | "choice">): string {
  const where = peer === undefined ? address : `${address} at ${peer}`;
  return choice === undefined || choice === "only" ? where : `${where}, chosen by ${choice}`;
}

function injectedText({ identity }: ExchangeRecord["headers"]): string {
  return identity.join(", ") || "identity headers, all of them empty";
}

function isAllowed({ session: { decision } }: ExchangeRecord): boolean {
  return decision === "identified" || decision === "anonymous";
}

function verificationText({ verification }: ExchangeRecord): string {
  const { protocol = "unknown", method = "" } = verification ?? {};
  return protocol === "unknown" ? "another proxy asks" : `another proxy asks about a ${method}, by ${protocol}`;
}

/** @param isMeant by when the command was sent: for the look-up, or after it. */
function commandSteps({ storeCommands = [] }: ExchangeRecord, isMeant: (startedMs: number) => boolean): Step[] {
  return storeCommands
    .filter(({ started }) => isMeant(started))
    .map(({ name, script, server, started, ended, failure, code }) => ({
      step: "store-command",
      atMs: rounded(started),
      tookMs: between(started, ended),
      detail: `${script === undefined ? name : `${name} ${script}`} to ${server}${failure === undefined ? "" : `: ${code ?? failure}`}`,
    }));
}

function between(fromMs: number | undefined, toMs: number | undefined): number | undefined {
  return fromMs === undefined || toMs === undefined ? undefined : rounded(toMs - fromMs);
}

/** To the microsecond: what is beyond that is noise. */
function rounded(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms * 1000) / 1000;
}

/** One clause for people: what became of the request, and why. */
export function reasonOf(record: ExchangeRecord): string {
  const { error, response, session, upstream, route, writeBack = [] } = record;
  if (response.clientGone) return "the client went away before the response was complete";
  if (error !== undefined) return `${error.type}: ${error.message ?? ""}`.replace(/: $/, "");
  if (session.decision === "denied" || session.decision === "login-redirect") {
    const verb = session.decision === "denied" ? "turned away" : "sent to the login";
    return `${verb}: the route needs a session, and ${sessionReason(record)}`;
  }
  if (upstream === undefined && record.verification === undefined)
    return route === undefined ? "answered by Coatcheck" : decisionText(record);
  const who =
    session.decision === "identified" ? decisionText(record) : `${decisionText(record)}: ${sessionReason(record)}`;
  return writeBack.length === 0 ? who : `${who}; ${writeBackText(record)}`;
}

const DECISION_TEXTS: Readonly<Record<ExchangeRecord["session"]["decision"], string>> = {
  undecided: "the request ended before it was decided",
  identified: "passed on with the identity of the session",
  anonymous: "passed on as anonymous",
  "login-redirect": "sent to the login: the route needs a session",
  denied: "turned away: the route needs a session",
  outage: "turned away for now: the session store gives no answer, so nobody knows; the cookie is left alone",
};

function decisionText({ verification, session: { decision } }: ExchangeRecord): string {
  if (verification !== undefined && decision === "identified") return "allowed, with the identity of the session";
  if (verification !== undefined && decision === "anonymous") return "allowed as anonymous";
  return DECISION_TEXTS[decision];
}

export const LIMIT_TEXTS: Readonly<Record<LimitReason, string>> = {
  "target-bytes": "the target is longer than limits.head.maxBytes",
  "head-bytes": "the head is larger than limits.head.maxBytes",
  "head-fields": "more fields than limits.head.maxFields",
  "head-timeout": "the head took longer than limits.head.timeout",
  "body-bytes": "the content is larger than limits.body.maxBytes",
  "body-timeout": "the content came slower than limits.body.minRate, or stopped for upstream.timeouts.idle",
  pipelined: "more requests at once than limits.maxPipelined",
  "http2-frames": "more HTTP/2 frames without a request than a client needs",
  "address-rate": "its address has sent more than limits.requests.perAddress",
  "session-rate": "its session has sent more than limits.requests.perSession",
};

const OUTCOME_TEXTS: Readonly<Record<ExchangeRecord["session"]["outcome"], string>> = {
  "not-asked": "the route asks for no session",
  absent: "no session cookie came",
  hit: "the session is there",
  unknown: "the store does not know the session of the cookie",
  expired: "the session has expired",
  malformed: "what the store holds for the cookie cannot be read",
  newer: "the session was written by a later version of Coatcheck",
  mismatch: "the session is used by another client than it was begun by (session.bind)",
  ambiguous: "two cookies of the name belong to live sessions, so neither is believed",
  unavailable: "the session store gave no answer",
};

function sessionReason({ session: { outcome, logout, cookie } }: ExchangeRecord): string {
  // A cookie that does not verify never gets as far as the store.
  if (outcome === "malformed" && cookie !== "valid") return `the session cookie is ${REFUSED[cookie]}`;
  if (logout === "ended") return "the session was ended: by a logout, an operator, or maxPerUser";
  if (logout === "lost") return "the store has lost the session: it does not know it, and nobody was heard ending it";
  return OUTCOME_TEXTS[outcome];
}

const REFUSED = {
  absent: "missing",
  "bad-shape": "not in the shape of ours",
  "bad-signature": "signed with none of the configured secrets",
} as const;

function receivedText({ request: { method, host, httpVersion, tls, client } }: ExchangeRecord): string {
  const what = method === "" ? "what was no request" : method;
  const over = tls === undefined ? "" : ` over TLS ${tls.version}`;
  return `${what}${host && ` for ${host}`}, HTTP/${httpVersion}${over}, from ${client || "an unknown address"}`;
}

function cookieText({ cookie, cookieSecret = 0 }: ExchangeRecord["session"]): string {
  if (cookie === "absent") return "no session cookie";
  if (cookie !== "valid") return REFUSED[cookie];
  return cookieSecret === 0
    ? "verified with the first secret"
    : `verified with secret ${cookieSecret + 1} of session.cookie.secrets, an older one`;
}

function sessionText(record: ExchangeRecord): string {
  const { outcome, source, staleMs, handle } = record.session;
  // A login has put its own in the place of the one that was found.
  const found = hasStarted(record) ? undefined : handle;
  const age = staleMs === undefined ? "" : `, read ${(staleMs / 1000).toFixed(1)} s ago`;
  const from = source === undefined ? "" : ` (${source}${age})`;
  const whose = found === undefined ? "" : `, handle ${found}`;
  return `${outcome}${from}${whose}: ${sessionReason(record)}`;
}

function writeBackText(record: ExchangeRecord): string {
  const { writeBack = [], writeBackKeysDropped, session } = record;
  const results = writeBack.map(({ command, result }) => `${command} ${result}`);
  if (hasStarted(record)) results.push(`the session is now ${session.handle ?? ""}`);
  if (writeBackKeysDropped > 0)
    results.push(`keys that the route may not write, and that were dropped: ${writeBackKeysDropped}`);
  return results.join(", ");
}

function hasStarted({ writeBack = [] }: ExchangeRecord): boolean {
  return writeBack.some(({ command, result }) => command === "start" && result === "saved");
}

function strippedText({ stripped, strippedNames }: ExchangeRecord["headers"]): string {
  const counts = Object.entries(stripped).map(([stripClass, count]) => `${count} ${stripClass}`);
  return `${strippedNames.join(", ")} (${counts.join(", ")})`;
}

function endText({ response, error }: ExchangeRecord): string {
  if (response.clientGone) return "the client went away";
  const by = response.source === "upstream" ? "the application" : "Coatcheck";
  const why = error === undefined ? "" : `: ${error.type}, ${error.message ?? ""}`;
  return `${response.status} by ${by}, ${response.bytes} bytes${why}`;
}
