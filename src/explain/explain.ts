import { statusFor } from "../answers.ts";
import { type ErrorCode, ProxyError } from "../core/errors.ts";
import { Exchange, type StripClass } from "../core/exchange.ts";
import type {
  AskedRequest,
  ExplainedStep,
  Explainer,
  Explanation,
  ExplanationStep,
  Unexplained,
} from "../core/explanation.ts";
import type { AskedAbout } from "../core/forward-auth.ts";
import { parsePointer, valueAt } from "../core/json.ts";
import { methodLabel } from "../core/labels.ts";
import type { RouteLimits } from "../core/limits.ts";
import { isForPerson } from "../core/navigation.ts";
import { clientAddressOf, describePeer, type Peer } from "../core/peer.ts";
import { type RequestHead, readRequestHead } from "../core/request-head.ts";
import type { RequestTarget } from "../core/request-target.ts";
import type { Route } from "../core/routes.ts";
import { handleOf, type SessionClient } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import { newSpanId, newTraceId, parseTraceParent } from "../core/trace-context.ts";
import type { Observer } from "../observe/observer.ts";
import type { ExchangeRecord } from "../observe/record.ts";
import {
  checkContentLength,
  checkUpgrade,
  clientOf,
  fieldsFor,
  type Gate,
  isForGateway,
  loginLocation,
  mismatched,
  pushIdentity,
  readTarget,
  refuseLoop,
  upstreamOf,
  verificationIn,
} from "../pipeline.ts";
import { isMismatch } from "../session/binding.ts";
import type { CookieNote, PresentedCookie } from "../session/cookie.ts";
import { DryLookup, type Sighting } from "../session/dry-lookup.ts";
import { NearCache } from "../session/near-cache.ts";
import { decide } from "../session/policy.ts";
import { NOT_ASKED, type Resolution, resolveSession } from "../session/resolver.ts";
import { explain as adviceOnFailure } from "../store/failures.ts";
import {
  chosenAmong,
  type NotedHeader,
  namesIn,
  othersConsidered,
  removedHeaders,
  shapesOf,
  shown,
  similarCookies,
  valueIn,
} from "./findings.ts";
import { composeHead, type ParsedHead, parseHead } from "./head.ts";
import { explainRecord } from "./record.ts";
import { bindingStep, cacheStep, expiryStep, storeStep } from "./session.ts";
import {
  adviceFor,
  counted,
  END_FINDINGS,
  type Facts,
  notAsked,
  policyFinding,
  reasonOf,
  SESSION_FINDINGS,
  secretFinding,
  type Verdict,
} from "./words.ts";

export interface ExplainerOptions {
  readonly gate: Gate;
  /** As it is, without the counting. */
  readonly store: Pick<SessionStore, "kind" | "find" | "peek" | "watch">;
  readonly ephemeralSecret: boolean;
}

function factsOf({ gate, ephemeralSecret }: ExplainerOptions): Facts {
  return { cookie: gate.cookie.facts, ephemeralSecret };
}

/**
 * Says what would become of a request, and why, with the very functions that requests go through.
 * @param options as they are at the moment: the configuration changes.
 */
export function createExplainer(options: () => ExplainerOptions): Explainer {
  return {
    request: (asked) => explainAsked(options(), asked),
    trace: (traceId) => {
      const { gate } = options();
      const records = recordsOf(gate.observer, traceId);
      const [record] = records;
      if (record === undefined)
        return { problem: "no exchange with this trace id is recorded: it was overwritten, or met another instance" };
      return explainRecord(record, records.length, gate.routes, factsOf(options()));
    },
  };
}

/** Each exchange of a trace that is kept in any ring, newest first. */
function recordsOf({ recorder, watches }: Observer, traceId: string): readonly ExchangeRecord[] {
  const found = new Map<string, ExchangeRecord>();
  const watched = watches.records().filter((record) => record.traceId === traceId);
  for (const record of [...recorder.ofTrace(traceId), ...watched]) found.set(record.spanId, record);
  return [...found.values()].sort((a, b) => Date.parse(b.time) - Date.parse(a.time));
}

async function explainAsked(options: ExplainerOptions, asked: AskedRequest): Promise<Explanation | Unexplained> {
  const octets = composeHead(asked);
  if ("problem" in octets) return octets;
  const parsed = await parseHead(octets, options.gate.limits);
  if ("rawHeaders" in parsed) return new Replay(options, parsed, asked.client).run();
  const steps = [{ step: "request", finding: parsed.message, ok: false }] as const;
  return answered(steps, parsed.status, "http_request_error", parsed.message, "send a request that is sound HTTP/1.1");
}

/** @param perSecond requests. */
function formatRate(perSecond: number): string {
  if (perSecond >= 1) return `${perSecond}/s`;
  return perSecond * 60 >= 1 ? `${Math.round(perSecond * 6000) / 100}/m` : `${Math.round(perSecond * 360_000) / 100}/h`;
}

/** An exchange that keeps the name of every header that was taken out, and is never shown to the observer. */
class NotedExchange extends Exchange {
  readonly noted: NotedHeader[] = [];

  override countStripped(stripClass: StripClass, name: string): void {
    super.countStripped(stripClass, name);
    this.noted.push({ name, stripClass });
  }
}

/** One request on its way through the steps of `pipeline.ts`, each written down. */
class Replay {
  readonly #gate: Gate;
  readonly #options: ExplainerOptions;
  readonly #facts: Facts;
  readonly #parsed: ParsedHead;
  readonly #client: string | undefined;
  readonly #peer: Peer;
  readonly #exchange: NotedExchange;
  readonly #lookup: DryLookup;
  readonly #steps: ExplanationStep[] = [];
  /** Where it stands, for a failure. */
  #at: ExplainedStep = "request";
  /** Whole, as the exchange does not have it. */
  #path = "";
  #hostname = "";

  constructor(options: ExplainerOptions, parsed: ParsedHead, client: string | undefined) {
    const { gate, store } = options;
    this.#options = options;
    this.#gate = gate;
    this.#facts = factsOf(options);
    this.#parsed = parsed;
    this.#client = client;
    this.#peer = describePeer(client, undefined, gate.trusted);
    const { method, httpVersion } = parsed;
    const ids = { traceId: newTraceId(), spanId: newSpanId() };
    this.#exchange = new NotedExchange({ method, methodLabel: methodLabel(method), httpVersion, ...ids });
    this.#exchange.scheme = this.#peer.scheme;
    this.#exchange.clientAddress = this.#peer.address;
    this.#lookup = new DryLookup(gate.lookup instanceof NearCache ? gate.lookup : undefined, store);
  }

  async run(): Promise<Explanation> {
    try {
      return withForm(await this.#walk(), this.#parsed.rawHeaders);
    } catch (error) {
      if (!(error instanceof ProxyError)) throw error;
      this.#tell(this.#at, error.message, false, this.#circumstances);
      const { code, message } = error;
      const status = statusFor(this.#exchange, error);
      const explanation = answered(this.#steps, status, code, message, this.#adviceOn(error));
      return withForm(explanation, this.#parsed.rawHeaders);
    }
  }

  async #walk(): Promise<Explanation> {
    const gate = this.#gate;
    const exchange = this.#exchange;
    const head = readRequestHead(this.#parsed.rawHeaders, gate.requestRules, this.#peer.trusted, exchange);
    if (head.forwardedFor !== undefined)
      exchange.clientAddress = clientAddressOf(this.#peer, head.forwardedFor, gate.trusted);
    exchange.parentSpanId = head.traceparent === undefined ? undefined : parseTraceParent(head.traceparent)?.spanId;
    if (head.via !== undefined) refuseLoop(head.via);
    const wire = readTarget(this.#parsed.url, exchange, head);
    const asked = gate.forwardAuth && this.#verification(gate.forwardAuth.path, wire);
    const target = asked?.target ?? wire;
    const forGateway = asked === undefined && isForGateway(exchange, wire, head);
    const about =
      asked === undefined ? exchange.method : `another proxy asks (${asked.protocol}) about ${asked.method}`;
    this.#tell("request", `${about} ${target.hostname}${exchange.path}`, true);
    this.#tellClient(head);
    if (forGateway) return answered(this.#steps, 204, undefined, "an OPTIONS whose last hop this is");

    this.#at = "route";
    [this.#hostname, this.#path] = [target.hostname, target.path];
    const route = gate.routes.match(target.hostname, target.path);
    if (route === undefined) throw new ProxyError("destination_not_found", "no route for this host and path");
    this.#tellRoute(route, target);
    this.#at = "limits";
    if (asked === undefined) checkContentLength(route.limits, head);
    this.#tellLimits(route.limits);
    this.#at = "route";
    if (asked === undefined) upstreamOf(gate, route);
    if (asked === undefined && this.#parsed.asksForWebSocket) {
      checkUpgrade(route, head, target, exchange);
      this.#tell("route", "a WebSocket, which the route takes from pages of this origin", true);
    }

    const notes: CookieNote[] = [];
    const cookie = gate.cookie.read(head.cookie, notes);
    this.#tellCookie(route, head, cookie, notes);
    const resolved = route.session === "none" ? NOT_ASKED : await resolveSession(this.#lookup, cookie);
    this.#tellSession(resolved);
    const resolution = this.#hold(resolved, head);
    if (resolution.key !== undefined) exchange.handle = handleOf(resolution.key);
    const logout = gate.logouts.reasonFor(cookie, resolution);
    const end = logout && END_FINDINGS[logout];
    if (end !== undefined) this.#tell("session", end, false);

    const decision = decide(route, resolution, asked?.method ?? exchange.method, head);
    const verdict = { ...this.#verdict(cookie, resolution, decision), logout };
    const passes = decision === "identified" || decision === "anonymous";
    this.#tell("policy", policyFinding(route, verdict), passes);
    if (!passes) return this.#turnedAway(route, verdict, resolution, asked);
    if (asked !== undefined) return this.#allowed(route, verdict, resolution);
    return this.#forwarded(route, verdict, resolution, head, target, cookie);
  }

  #tell(step: ExplainedStep, finding: string, ok: boolean, detail: readonly string[] = []): void {
    this.#steps.push({ step, finding, ok, ...(detail.length > 0 && { detail }) });
  }

  /** Who does not say where a request comes from wants to know what becomes of one that comes from where it should. */
  #verification(path: string, wire: RequestTarget): AskedAbout | undefined {
    const peer = this.#client === undefined ? { address: "", trusted: true } : this.#peer;
    return verificationIn(path, wire, this.#parsed.rawHeaders, peer, this.#exchange);
  }

  #tellClient(head: RequestHead): void {
    const { address, trusted } = this.#peer;
    const { clientAddress, noted } = this.#exchange;
    if (this.#client === undefined) {
      const ignored = noted.some(({ name }) => name.toLowerCase() === "x-forwarded-for");
      const detail = ignored
        ? [
            "X-Forwarded-For is not believed, because nothing says that it came through a proxy: give its address as client",
          ]
        : [];
      this.#tell("client", "its address is not given, and taken to be the right one", true, detail);
    } else if (!trusted)
      this.#tell("client", `${address}: no proxy in listen.trustedProxies, so it is the client`, true);
    else if (head.forwardedFor === undefined)
      this.#tell("client", `${address}: a trusted proxy, which names no client in X-Forwarded-For`, true);
    else this.#tell("client", `${clientAddress}, as the trusted proxy ${address} says in X-Forwarded-For`, true);
  }

  #tellRoute(route: Route, { hostname, path }: RequestTarget): void {
    const { considered, readings = [] } = this.#gate.routes.explain(hostname, path);
    const host = route.host === undefined ? "any host" : "this host";
    const finding = `${route.id}, for ${host}: the longest of the paths that the request's begins with`;
    this.#tell("route", finding, true, [
      ...readings.map((reading) => `read as loosely as a server may, ${shown(reading.path)}: the same route`),
      ...othersConsidered(considered),
    ]);
  }

  /** No token is taken, and nobody is asked how many are left: whoever explains must not change what happens. */
  #tellLimits({ perAddress, perSession }: RouteLimits): void {
    const rules = [perAddress, perSession].filter((rule) => rule !== undefined);
    if (rules.length === 0) return;
    const subject = { "address-rate": "each address", "session-rate": "each session" };
    this.#tell(
      "limits",
      rules
        .map(({ reason, rate, burst }) => `${subject[reason]} may send ${formatRate(rate)}, ${burst} at once`)
        .join("; "),
      true,
    );
  }

  #tellCookie(route: Route, head: RequestHead, cookie: PresentedCookie, notes: readonly CookieNote[]): void {
    const { name } = this.#facts.cookie;
    const needless = route.session === "none";
    const [first, ...more] = notes;
    if (first === undefined) {
      this.#tell("cookie", `none named ${name}`, needless, similarCookies(name, head.cookie));
      return;
    }
    const count = more.length === 0 ? "one" : String(notes.length);
    const badShape = cookie.verdict === "bad-shape";
    this.#tell("cookie", `${count} named ${name}`, !badShape, shapesOf(notes));
    if (badShape) return;
    const signed = notes.filter(({ verdict }) => verdict === "valid" || verdict === "bad-signature");
    for (const note of signed) this.#tellSignature(note, cookie.verdict === "valid");
  }

  /** @param ok another one may have verified. */
  #tellSignature({ handle, secret }: CookieNote, ok: boolean): void {
    const { secrets } = this.#facts.cookie;
    if (handle !== undefined && secret !== undefined) {
      this.#tell("signature", `${secretFinding(secret, secrets)}; it opens session ${handle}`, true);
      return;
    }
    const tried = secrets === 1 ? "the one secret was tried" : `all ${secrets} secrets were tried`;
    this.#tell("signature", "no configured secret verifies it: was a secret removed?", ok, [tried]);
  }

  #tellSession({ outcome, session, ...rest }: Resolution): void {
    const { seen } = this.#lookup;
    for (const sighting of seen) this.#tellSighting(sighting, seen.length > 1 ? `${handleOf(sighting.key)}: ` : "");
    if (outcome === "not-asked") this.#tell("session", SESSION_FINDINGS[outcome], true);
    else if (seen.length === 0) this.#tell("session", notAsked(outcome), false);
    else if (seen.length > 1) this.#tell("session", chosenAmong({ outcome, ...rest }), outcome === "hit");
    if (session?.user === null) this.#tell("session", "nobody has signed in to it", false);
  }

  #tellSighting(sighting: Sighting, prefix: string): void {
    const { lifecycle, lookup } = this.#gate;
    const { kind, watch } = this.#options.store;
    const steps = [
      cacheStep(sighting, lookup instanceof NearCache, watch !== undefined),
      storeStep(sighting, kind),
      expiryStep(sighting, lifecycle.expiry, lifecycle.now()),
    ];
    for (const step of steps) if (step !== undefined) this.#steps.push({ ...step, finding: prefix + step.finding });
  }

  /** As the pipeline holds a session to its client, without counting. */
  #hold(resolution: Resolution, head: RequestHead): Resolution {
    const { binding } = this.#gate;
    const { session, key } = resolution;
    if (session === undefined || key === undefined) return resolution;
    const client = clientOf(head, this.#exchange);
    const addressKnown = this.#client !== undefined;
    const asked: SessionClient = addressKnown ? client : { ...client, address: session.client?.address ?? "" };
    const mismatch = isMismatch(binding.to, session, asked);
    this.#steps.push(bindingStep(binding, session, asked, { mismatch, addressKnown }));
    return mismatch && binding.onMismatch === "deny" ? mismatched(resolution) : resolution;
  }

  #verdict(cookie: PresentedCookie, { outcome, source, session, error }: Resolution, decision: Verdict["decision"]) {
    return {
      outcome,
      source,
      decision,
      cookie: cookie.verdict,
      hasUser: Boolean(session?.user),
      unreadable: this.#lookup.seen.find(({ store }) => store?.unreadable !== undefined)?.store?.unreadable,
      storeAdvice: error && adviceOnFailure(error).advice,
    } satisfies Verdict;
  }

  #turnedAway(route: Route, verdict: Verdict, { error }: Resolution, asked: AskedAbout | undefined): Explanation {
    const advice = adviceFor(verdict, this.#facts, route);
    const why = `route ${route.id} needs ${verdict.decision === "outage" ? "to know the session" : "somebody signed in"}, and ${reasonOf(verdict)}`;
    if (verdict.decision === "outage")
      return answered(this.#steps, error?.status ?? 503, error?.code ?? "session_store_unavailable", why, advice);
    if (verdict.decision === "login-redirect" && route.loginRedirect !== undefined) {
      const { status, location } = loginLocation(route.loginRedirect, asked);
      return answered(this.#steps, status, undefined, why, advice, location);
    }
    return answered(this.#steps, 401, undefined, why, advice);
  }

  /** The asking proxy may let the request go on. */
  #allowed(route: Route, verdict: Verdict, resolution: Resolution): Explanation {
    const fields: string[] = [];
    pushIdentity(this.#gate, fields, resolution, this.#exchange);
    this.#tellIdentity(fields, resolution);
    const { user } = resolution.session ?? {};
    const whom = user ? `as user ${user.id}, session ${this.#exchange.handle}` : `without a user: ${reasonOf(verdict)}`;
    const advice = user ? undefined : adviceFor(verdict, this.#facts, route);
    return answered(this.#steps, 200, undefined, `the proxy that asks may let the request go on ${whom}`, advice);
  }

  #forwarded(
    route: Route,
    verdict: Verdict,
    resolution: Resolution,
    head: RequestHead,
    target: RequestTarget,
    cookie: PresentedCookie,
  ): Explanation {
    const gate = this.#gate;
    const exchange = this.#exchange;
    const upstream = upstreamOf(gate, route);
    const fields = fieldsFor(gate, head, target, cookie, resolution, this.#peer, exchange);
    const removed = removedHeaders(this.#parsed.rawHeaders, fields, exchange.noted, cookie);
    this.#tell(
      "removed",
      removed.length === 0 ? "no header of the client" : `${counted(removed.length, "header")} of the client`,
      true,
      removed.map(({ name, why }) => `${name}: ${why}`),
    );
    this.#tellIdentity(fields, resolution);
    const { address, why } = upstream.preview(resolution.key);
    this.#tell("upstream", why === "only" ? address : `${address}: ${why}`, true);
    const user = resolution.session?.user ?? null;
    const handle = user === null ? null : (exchange.handle ?? null);
    const advice =
      user === null
        ? adviceFor(verdict, this.#facts, route)
        : `to sign this user out: coatcheck sessions end ${handle}`;
    const whom = user === null ? `without a user: ${reasonOf(verdict)}` : `as user ${user.id}, session ${handle}`;
    return {
      steps: this.#steps,
      conclusion: `The request would be forwarded to ${address} ${whom}.`,
      ...(advice !== undefined && { advice }),
      wouldForward: {
        upstream: address,
        user: user?.id ?? null,
        handle,
        injected: exchange.identified,
        removed,
        headers: namesIn(fields),
      },
    };
  }

  #tellIdentity(fields: readonly string[], { session, staleMs }: Resolution): void {
    const { identity } = this.#gate;
    const { identified, handle } = this.#exchange;
    const detail = identity.sources.map(([name, source]) => {
      const value = valueIn(fields, name);
      if (source === "handle") return `${name}: ${value === "" ? "empty" : (handle ?? "")}`;
      if (value !== "") return `${name}: ${counted(value.length, "character")} from ${source}`;
      const there = session !== undefined && valueAt(session, parsePointer(source)) !== undefined;
      return `${name}: empty${there ? `, because what is at ${source} is empty, too long, or not to be said in a header` : `, nothing is at ${source}`}`;
    });
    if (staleMs !== undefined)
      detail.push("X-Coatcheck-Session: stale, with the age of what was read before the outage");
    const finding = `${identified.length} of ${identity.names.length} identity headers carry a value`;
    this.#tell("identity", finding, true, detail);
  }

  #adviceOn({ code }: ProxyError): string {
    if (code === "http_request_denied" && this.#exchange.verification !== undefined) {
      return this.#exchange.stripped === undefined
        ? "list the address of the proxy in listen.trustedProxies, if it is one of yours"
        : "let no proxy ask twice about one request, or after it has set identity headers of its own; if a client sent them, nothing is wrong";
    }
    if (code === "destination_not_found" && this.#gate.routes.match(this.#hostname, this.#path) !== undefined)
      return `give the route an upstream; or explain what the other proxy asks: ${this.#gate.forwardAuth?.path ?? ""} with X-Forwarded-Host and X-Forwarded-Uri`;
    if (code === "destination_not_found")
      return "add a route whose match has this host (or none, for any) and a path that the request's begins with";
    if (code === "proxy_configuration_error") return "give the route an upstream";
    if (code === "http_request_denied")
      return "list the origin of the page in websockets.origins of the route, if its pages may act in the name of whoever looks at them";
    if (this.#parsed.asksForWebSocket && code === "http_request_error" && this.#steps.length > 2)
      return "correct the client: this is no WebSocket handshake of RFC 6455";
    if (this.#at === "route")
      return "spell the path in its plain form, or let every reading of it belong to one route: Coatcheck does not guess which one the application takes";
    return "correct the client, or whatever proxy is between it and Coatcheck: a request must have one reading";
  }

  /** What there is to say about the step that failed. */
  get #circumstances(): readonly string[] {
    if (this.#at !== "route") return [];
    const { considered, readings } = this.#gate.routes.explain(this.#hostname, this.#path);
    if (readings === undefined) return [];
    const chosen = considered.find(({ verdict }) => verdict === "chosen")?.route.id ?? "no route";
    return [
      ...(readings.length > 0 ? [`as it is spelled: ${chosen}`] : []),
      ...readings.map((reading) => `read as ${shown(reading.path)}: ${reading.route?.id ?? "no route"}`),
      ...othersConsidered(considered),
    ];
  }
}

function answered(
  steps: readonly ExplanationStep[],
  status: number,
  error: ErrorCode | undefined,
  why: string,
  advice?: string,
  location?: string,
): Explanation {
  const told = location === undefined ? String(status) : `${status} to ${location}`;
  return {
    steps,
    conclusion: `Coatcheck would answer ${told} and forward nothing: ${why}.`,
    ...(advice !== undefined && { advice }),
    wouldAnswer: { status, ...(error && { error }), ...(location !== undefined && { location }) },
  };
}

/** Says in which of its two forms an answer of Coatcheck's own would be sent. */
function withForm(explanation: Explanation, rawHeaders: readonly string[]): Explanation {
  const { wouldAnswer } = explanation;
  if (wouldAnswer === undefined || wouldAnswer.status < 400) return explanation;
  const form = isForPerson(rawHeaders) ? "page" : "problem-details";
  return { ...explanation, wouldAnswer: { ...wouldAnswer, form } };
}
