import type { ExplainedStep, Explanation, ExplanationStep } from "../core/explanation.ts";
import { WRITE_BACK_HEADERS } from "../core/header-names.ts";
import type { RouteTable } from "../core/routes.ts";
import type { ExchangeRecord } from "../observe/record.ts";
import { LIMIT_TEXTS } from "../observe/steps.ts";
import {
  adviceFor,
  COOKIE_FINDINGS,
  END_FINDINGS,
  type Facts,
  notAsked,
  policyFinding,
  REMOVAL_REASONS,
  reasonOf,
  SESSION_FINDINGS,
  secretFinding,
  type Verdict,
} from "./words.ts";

/**
 * What became of a request, from its record: what the record has, in the words of `words.ts`.
 * @param count how many exchanges of the trace are recorded; this is the newest.
 */
export function explainRecord(record: ExchangeRecord, count: number, routes: RouteTable, facts: Facts): Explanation {
  const { session } = record;
  const route = record.route === undefined ? undefined : routes.byId(record.route);
  const verdict: Verdict = { ...session, hasUser: session.decision === "identified" };
  const steps: ExplanationStep[] = [];
  const tell = (step: ExplainedStep, finding: string, ok = true, detail: readonly string[] = []): void => {
    steps.push({ step, finding, ok, ...(detail.length > 0 && { detail }) });
  };
  tell("record", `${record.time}, trace ${record.traceId}`, true, siblingsIn(count));
  const { request, error } = record;
  tell("request", `${request.method} ${request.host}${request.path}`, error?.type !== "http_request_error");
  if (request.client !== "") tell("client", request.client);
  if (record.route === undefined) tell("route", "none", false);
  else tell("route", route === undefined ? `${record.route}, which is no longer configured` : record.route);
  if (record.limited !== undefined) tell("limits", LIMIT_TEXTS[record.limited], false);
  if (session.decision !== "undecided" || session.outcome !== "not-asked") {
    tellSession(record, facts, tell);
    if (route !== undefined) tell("policy", policyFinding(route, verdict), PASSING.has(verdict.decision));
  }
  tellHeaders(record, tell);
  tellUpstream(record, tell);
  const advice = adviceOn(record, verdict, routes, facts);
  return { steps, conclusion: conclude(record, verdict), ...(advice !== undefined && { advice }) };
}

const PASSING: ReadonlySet<Verdict["decision"]> = new Set(["identified", "anonymous"]);

type Tell = (step: ExplainedStep, finding: string, ok?: boolean, detail?: readonly string[]) => void;

function siblingsIn(count: number): readonly string[] {
  return count === 1 ? [] : [`${count} exchanges of this trace are recorded; this is the newest`];
}

function tellSession({ session, timings }: ExchangeRecord, facts: Facts, tell: Tell): void {
  const { name, secrets } = facts.cookie;
  if (session.cookie === "absent") tell("cookie", `none named ${name}`, session.outcome === "not-asked");
  else tell("cookie", `one named ${name}: ${COOKIE_FINDINGS[session.cookie]}`, session.cookie === "valid");
  if (session.cookieSecret !== undefined) tell("signature", secretFinding(session.cookieSecret, secrets));
  const { outcome } = session;
  if (outcome === "absent" || (outcome === "malformed" && session.cookie !== "valid")) {
    tell("session", notAsked(outcome), false);
    return;
  }
  const { resolveStarted, resolved } = timings;
  const told = session.source === undefined ? [] : [SOURCES[session.source]];
  const took = resolveStarted === undefined || resolved === undefined ? [] : [`after ${ms(resolved - resolveStarted)}`];
  const detail = told.length + took.length === 0 ? [] : [[...told, ...took].join(", ")];
  const handle = session.handle === undefined ? "" : `${session.handle}: `;
  const fine = outcome === "hit" || outcome === "not-asked";
  const end = session.logout && END_FINDINGS[session.logout];
  tell("session", `${handle}${SESSION_FINDINGS[outcome]}`, fine, end === undefined ? detail : [...detail, end]);
}

const SOURCES = {
  cache: "told by the near cache",
  coalesced: "told by the store, to another request that had asked already",
  store: "told by the store",
  stale: "as it was read before the store stopped answering",
} as const;

function tellHeaders({ headers: { stripped, strippedNames, identity }, writeBack }: ExchangeRecord, tell: Tell): void {
  const classes = Object.entries(REMOVAL_REASONS).flatMap(([name, why]) => {
    const count = stripped[name as keyof typeof REMOVAL_REASONS];
    return count === undefined ? [] : [`${count} of class ${name}: ${why}`];
  });
  if (classes.length > 0) tell("removed", strippedNames.join(", "), true, classes);
  if (identity.length > 0) tell("identity", identity.join(", "));
  for (const { command, result } of writeBack ?? [])
    tell("write-back", `${WRITE_BACK_HEADERS[command]}: ${result}`, result === "saved");
}

function tellUpstream({ upstream, timings }: ExchangeRecord, tell: Tell): void {
  if (upstream === undefined) return;
  const { forwarded, upstreamHead } = timings;
  const waited = forwarded === undefined || upstreamHead === undefined ? "" : ` after ${ms(upstreamHead - forwarded)}`;
  const answer = upstream.status === undefined ? "gave no answer" : `answered ${upstream.status}${waited}`;
  tell("upstream", `${upstream.address} ${answer}`, upstream.status !== undefined && upstream.status < 500);
}

function conclude({ upstream, response, error, session }: ExchangeRecord, verdict: Verdict): string {
  const status = `${response.status}${error === undefined ? "" : ` (${error.type}: ${error.message ?? "no reason"})`}`;
  if (upstream === undefined) {
    const why = error === undefined && verdict.decision !== "undecided" ? `: ${reasonOf(verdict)}` : "";
    return `Coatcheck answered ${status} and forwarded nothing${why}.`;
  }
  const whom =
    session.decision === "identified"
      ? `as the user of session ${session.handle}`
      : `without a user: ${reasonOf(verdict)}`;
  const end = response.clientGone
    ? "the client went away before the response was complete"
    : `the client got ${status} from ${response.source === "upstream" ? "the application" : "Coatcheck"}`;
  return `The request was forwarded to ${upstream.address} ${whom}; ${end}.`;
}

function adviceOn(
  { error, limited, route: id, traceId }: ExchangeRecord,
  verdict: Verdict,
  routes: RouteTable,
  facts: Facts,
): string | undefined {
  const route = id === undefined ? undefined : routes.byId(id);
  const ofSession = error === undefined || error.type === "session_store_unavailable";
  if (ofSession && route !== undefined) return adviceFor(verdict, facts, route);
  if (error === undefined) return undefined;
  if (limited !== undefined)
    return "raise the limit if the client is one that should be served; docs/limits.md tells how to choose";
  if (error.type === "destination_not_found") return "add a route whose match has this host and path";
  return error.type === "http_request_error"
    ? "correct the client, or whatever proxy is between it and Coatcheck: a request must have one reading"
    : `look at the application and at the log lines of trace ${traceId}`;
}

function ms(time: number): string {
  return `${time.toFixed(1)} ms`;
}
