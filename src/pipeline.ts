import { answer, type Conversation, fail } from "./answers.ts";
import type { LimitsConfig } from "./config/limits.ts";
import type { ConnectionLimiter } from "./connection-limiter.ts";
import { maskFields } from "./core/capture.ts";
import { badRequest, ProxyError } from "./core/errors.ts";
import type { Exchange } from "./core/exchange.ts";
import { type AskedAbout, absoluteLocation, isVerification, readVerification } from "./core/forward-auth.ts";
import type { IdentityHeaders } from "./core/identity.ts";
import type { RouteLimits } from "./core/limits.ts";
import { onBehalfOf } from "./core/on-behalf.ts";
import { clientAddressOf, networkOf, type Peer, type TrustedProxies } from "./core/peer.ts";
import { type HeaderRules, type RequestHead, readRequestHead } from "./core/request-head.ts";
import { type RequestTarget, readRequestTarget } from "./core/request-target.ts";
import type { ResponseHead, ResponseHeaderRules } from "./core/response-head.ts";
import type { Route, RouteTable } from "./core/routes.ts";
import { type Binding, handleOf, MAX_USER_AGENT_LENGTH, type SessionClient } from "./core/session.ts";
import { parseTraceParent } from "./core/trace-context.ts";
import { upstreamFields } from "./core/upstream-fields.ts";
import { checkHandshake } from "./core/websocket.ts";
import type { ErrorPages } from "./error-pages.ts";
import type { Observer } from "./observe/observer.ts";
import type { RequestLimiter } from "./request-limiter.ts";
import { isMismatch } from "./session/binding.ts";
import type { PresentedCookie, SessionCookie } from "./session/cookie.ts";
import { expiryAfterUse, expiryReason } from "./session/expiry.ts";
import { type Lifecycle, obey } from "./session/lifecycle.ts";
import type { Logouts } from "./session/logouts.ts";
import { decide } from "./session/policy.ts";
import { NOT_ASKED, type Resolution, resolveSession, type SessionLookup } from "./session/resolver.ts";
import type { Toucher } from "./session/touch.ts";
import { parseCommands } from "./session/write-back.ts";
import { forward, type UpgradeRequest } from "./upstream/forward.ts";
import type { Upstream } from "./upstream/upstream.ts";
import type { WebSockets } from "./websockets.ts";

/** Everything that the way of a request needs; made once for each configuration, and shared by all of its requests. */
export interface Gate {
  readonly trusted: TrustedProxies;
  readonly requestRules: HeaderRules;
  readonly responseRules: ResponseHeaderRules;
  /** Value of `Strict-Transport-Security`, for what goes out over TLS. */
  readonly strictTransport: string | undefined;
  readonly routes: RouteTable;
  /** By `Route.index`; absent where a route is there for verifications only. */
  readonly upstreams: readonly (Upstream | undefined)[];
  /** Where other proxies ask; absent: nobody may. */
  readonly forwardAuth: { readonly path: string } | undefined;
  readonly cookie: SessionCookie;
  readonly lookup: SessionLookup;
  readonly binding: { readonly to: Binding; readonly onMismatch: "log" | "deny" };
  readonly lifecycle: Lifecycle;
  readonly toucher: Toucher;
  readonly logouts: Logouts;
  readonly identity: IdentityHeaders;
  readonly limits: LimitsConfig;
  readonly limiter: RequestLimiter;
  readonly connections: ConnectionLimiter;
  readonly observer: Observer;
  readonly errorPages: ErrorPages;
  readonly webSockets: WebSockets;
  readonly isDraining: () => boolean;
}

/** An option of `TE` (RFC 9110 §10.1.4). */
const TRAILERS = /(?:^|[,\s])trailers(?:[,;\s]|$)/i;

/** Further mentions of ourselves in `Via` are a loop: a few gateways in a row are meant, this many are not. */
const MAX_MENTIONS = 8;

/** How long a response waits to learn whether its cookie may be renewed, milliseconds. Too late is no harm: the next touch asks again. */
const RENEWAL_PATIENCE_MS = 100;

/** The way of one request (design §2). Whatever goes wrong ends in one place, and the exchange knows its name. */
export async function handle(gate: Gate, conversation: Conversation): Promise<void> {
  const { req, peer, exchange } = conversation;
  try {
    const head = readRequestHead(req.rawHeaders, gate.requestRules, peer.trusted, exchange);
    exchange.requestHasContent = head.hasContent;
    if (head.forwardedFor !== undefined) {
      exchange.clientAddress = clientAddressOf(peer, head.forwardedFor, gate.trusted);
    }
    joinTrace(gate, exchange, head);
    if (head.via !== undefined) refuseLoop(head.via);
    const wire = readTarget(req.url ?? "", exchange, head);
    const asked = gate.forwardAuth && verificationIn(gate.forwardAuth.path, wire, req.rawHeaders, peer, exchange);
    if (asked === undefined && isForGateway(exchange, wire, head)) {
      answer(conversation, { status: 204, fields: ["allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"] });
      return;
    }

    const target = asked?.target ?? wire;
    const route = gate.routes.match(target.hostname, target.path);
    exchange.route = route;
    const limits = route === undefined ? gate.limits.routeless : route.limits;
    // Before anything is asked of the store: whoever floods must not load that.
    if (limits.perAddress !== undefined) {
      const checking = gate.limiter.check(limits.perAddress, networkOf(exchange.clientAddress), exchange);
      if (checking !== undefined && !(await goesOn(exchange, checking))) return;
    }
    if (route === undefined) throw new ProxyError("destination_not_found", "no route for this host and path");
    if (asked === undefined) checkContentLength(limits, head);
    if (asked === undefined) upstreamOf(gate, route);
    const accept =
      asked === undefined && conversation.upgrade ? checkUpgrade(route, head, target, exchange) : undefined;

    const cookie = gate.cookie.read(head.cookie);
    const resolving = resolve(gate, route, cookie, exchange);
    const resolved = resolving instanceof Promise ? await pending(exchange, resolving) : resolving;
    const resolution = gate.binding.to === "none" ? resolved : hold(gate, resolved, head, exchange);
    note(gate, exchange, cookie, resolution);
    if (gate.observer.watches.size > 0)
      gate.observer.watches.look(req, { keys: cookie.keys, session: resolution.session }, exchange);
    // The client left, or sent nonsense, while the store was asked: nobody would ever end what began now.
    if (exchange.endedMs !== undefined || exchange.error !== undefined) return;

    if (limits.perSession !== undefined && resolution.session !== undefined && resolution.key !== undefined) {
      const checking = gate.limiter.check(limits.perSession, resolution.key, exchange);
      if (checking !== undefined && !(await goesOn(exchange, checking))) return;
    }
    exchange.decision = decide(route, resolution, asked?.method ?? exchange.method, head);
    if (exchange.decision !== "identified" && exchange.decision !== "anonymous") {
      turnAway(conversation, route, resolution, asked);
      return;
    }
    const slides =
      resolution.session !== undefined &&
      resolution.key !== undefined &&
      gate.toucher.used(resolution.key, resolution.session, gate.lifecycle.expiry) !== undefined;

    if (asked !== undefined) {
      await allow(gate, conversation, head, resolution, slides);
      return;
    }
    const fields = fieldsFor(gate, head, target, cookie, resolution, peer, exchange);
    if (exchange.capture !== undefined) exchange.capture.forwarded = maskFields(fields);
    send(gate, conversation, route, head, target, fields, resolution, slides, accept);
  } catch (error) {
    fail(conversation, error, gate.observer);
  }
}

/** @throws ProxyError `proxy_loop_detected`: a route that leads back here would go round for ever (RFC 9110 §7.6.3). */
export function refuseLoop(via: string): void {
  if (via.split(" coatcheck").length > MAX_MENTIONS)
    throw new ProxyError(
      "proxy_loop_detected",
      `Via names this kind of gateway ${MAX_MENTIONS} times: a route leads back here`,
    );
}

/** Continues the trace of a trusted peer, or begins one: nobody else's word decides what is sampled. */
function joinTrace(gate: Gate, exchange: Exchange, head: RequestHead): void {
  const parent = head.traceparent === undefined ? undefined : parseTraceParent(head.traceparent);
  if (parent === undefined) {
    exchange.sampled = gate.observer.sample();
    return;
  }
  exchange.traceId = parent.traceId;
  exchange.parentSpanId = parent.spanId;
  exchange.sampled = parent.sampled;
}

export function readTarget(url: string, exchange: Exchange, head: RequestHead): RequestTarget {
  let target: RequestTarget;
  try {
    target = readRequestTarget(exchange.method, url, head.host, exchange.httpVersion, exchange.connectionScheme);
  } catch (error) {
    // What is no plain path may hold a password or a fragment.
    if (url.startsWith("/")) exchange.setPath(url.split(/[?#]/, 1)[0] ?? "", url);
    throw error;
  }
  exchange.setPath(target.path, url);
  exchange.setHost(target.hostname);
  // RFC 9112 §6.1: an HTTP/1.0 recipient does not know what a chunk is, so its sender cannot have meant it.
  if (head.chunked && exchange.httpVersion === "1.0") throw badRequest("Transfer-Encoding in HTTP/1.0");
  return target;
}

/**
 * Whether a request is for the gateway itself: `OPTIONS *`, and the last hop of an `OPTIONS`.
 * @throws ProxyError `http_request_error` (400, 405, 417) for `TRACE`, and what would have to be done by whoever answers.
 */
export function isForGateway(exchange: Exchange, target: RequestTarget, head: RequestHead): boolean {
  // It would send back the cookies that this gateway is there to hide (RFC 9110 §9.3.8).
  if (exchange.method === "TRACE") throw badRequest("TRACE is not forwarded", 405);
  if (head.expect !== undefined && head.expect.toLowerCase() !== "100-continue") {
    throw badRequest("an expectation other than 100-continue", 417);
  }
  if (exchange.method !== "OPTIONS") return false;
  if (head.maxForwards !== undefined && !/^\d{1,9}$/.test(head.maxForwards))
    throw badRequest("an invalid Max-Forwards");
  return target.pathAndQuery === "*" || head.maxForwards === "0";
}

/**
 * What another proxy asks about, when that is what the request is. The record is about that from here on, and marked.
 * @throws ProxyError `http_request_denied` (403) for whoever is not trusted, and as `readVerification`.
 */
export function verificationIn(
  path: string,
  wire: RequestTarget,
  raw: readonly string[],
  peer: Pick<Peer, "address" | "trusted">,
  exchange: Exchange,
): AskedAbout | undefined {
  if (!isVerification(path, wire.path)) return undefined;
  exchange.verification = UNKNOWN;
  if (!peer.trusted)
    throw new ProxyError(
      "http_request_denied",
      `${peer.address} asks for a verification, and is not in listen.trustedProxies`,
    );
  const asked = readVerification(path, wire, raw, exchange);
  exchange.verification = { protocol: asked.protocol, method: asked.method };
  exchange.scheme = asked.scheme;
  exchange.setPath(asked.target.path, asked.target.pathAndQuery);
  exchange.setHost(asked.target.hostname);
  return asked;
}

const UNKNOWN = { protocol: "unknown", method: "" } as const;

/** @throws ProxyError `destination_not_found` (404) for a route that is there for other proxies to ask about. */
export function upstreamOf(gate: Pick<Gate, "upstreams">, route: Route): Upstream {
  const upstream = gate.upstreams[route.index];
  if (upstream === undefined)
    throw new ProxyError("destination_not_found", "the route has no upstream: it is there for verifications");
  return upstream;
}

/** @returns the `Sec-WebSocket-Accept` of the answer. @throws ProxyError: see `checkHandshake`. */
export function checkUpgrade(route: Route, head: RequestHead, target: RequestTarget, exchange: Exchange): string {
  const { forwardedHost, forwardedProto } = head;
  const scheme = forwardedProto === "https" || forwardedProto === "http" ? forwardedProto : exchange.scheme;
  return checkHandshake(route.webSockets, head, forwardedHost ?? target.authority, scheme);
}

function resolve(
  gate: Gate,
  route: Route,
  cookie: PresentedCookie,
  exchange: Exchange,
): Resolution | Promise<Resolution> {
  exchange.cookie = cookie.verdict;
  exchange.cookieSecret = cookie.secret;
  if (route.session === "none") return NOT_ASKED;
  exchange.resolveStartedMs = exchange.elapsedMs();
  return resolveSession(gate.lookup, cookie, exchange);
}

/** Waits for the store, and so does the record: what comes of it belongs in there, whether or not the client waits. */
async function pending<T>(exchange: Exchange, answer: Promise<T>): Promise<T> {
  exchange.pending = answer;
  try {
    return await answer;
  } finally {
    exchange.pending = undefined;
  }
}

/** Waits as `pending` does. @returns false when the client has left meanwhile, or has sent nonsense: nothing may begin then. */
async function goesOn(exchange: Exchange, answer: Promise<void>): Promise<boolean> {
  await pending(exchange, answer);
  return exchange.endedMs === undefined && exchange.error === undefined;
}

/** @throws ProxyError (413). What comes in chunks is counted as it comes. */
export function checkContentLength({ maxBodyBytes }: RouteLimits, { contentLength }: RequestHead): void {
  if (contentLength !== undefined && Number(contentLength) > maxBodyBytes)
    throw badRequest(`a Content-Length beyond ${maxBodyBytes}`, 413, "body-bytes");
}

/** A session that is used by another client than it was begun by is counted, and not believed if so configured. */
function hold(gate: Gate, resolution: Resolution, head: RequestHead, exchange: Exchange): Resolution {
  const { session, key } = resolution;
  if (session === undefined || key === undefined) return resolution;
  if (!isMismatch(gate.binding.to, session, clientOf(head, exchange))) return resolution;
  exchange.handle = handleOf(key);
  const denied = gate.binding.onMismatch === "deny";
  gate.observer.sessionEvent("mismatch", exchange, { bind: gate.binding.to, denied });
  return denied ? mismatched(resolution) : resolution;
}

/** What is left of a session that is not believed, because another client uses it. */
export function mismatched({ key, source }: Resolution): Resolution {
  return { outcome: "mismatch", ...(key && { key }), ...(source && { source }) };
}

export function clientOf(head: RequestHead, exchange: Exchange): SessionClient {
  return {
    address: exchange.clientAddress,
    userAgent: (head.userAgent ?? "").slice(0, MAX_USER_AGENT_LENGTH).toWellFormed(),
  };
}

function note(gate: Gate, exchange: Exchange, cookie: PresentedCookie, resolution: Resolution): void {
  exchange.session = resolution.outcome;
  exchange.sessionSource = resolution.source;
  exchange.staleMs = resolution.staleMs;
  if (resolution.outcome === "not-asked") return;
  exchange.resolvedMs = exchange.elapsedMs();
  if (resolution.key !== undefined) exchange.handle = resolution.handle ??= handleOf(resolution.key);
  if (resolution.outcome !== "hit") exchange.logout = gate.logouts.notice(cookie, resolution);
  if (resolution.outcome === "expired") {
    const reason = expiryReason(resolution.life, gate.lifecycle.expiry);
    gate.observer.sessionEvent("expired", exchange, { reason });
  }
}

/** The header section for upstream. */
export function fieldsFor(
  gate: Pick<Gate, "identity">,
  head: RequestHead,
  target: RequestTarget,
  cookie: PresentedCookie,
  resolution: Resolution,
  peer: Peer,
  exchange: Exchange,
): string[] {
  const fields = upstreamFields(head, target, cookie.others, peer, exchange);
  pushIdentity(gate, fields, resolution, exchange);
  return fields;
}

/** Who is asking, and how old the session is that says so, if it is. */
export function pushIdentity(
  gate: Pick<Gate, "identity">,
  fields: string[],
  resolution: Resolution,
  exchange: Exchange,
): void {
  exchange.identified = gate.identity.inject(fields, resolution, exchange.handle);
  if (resolution.staleMs !== undefined) {
    fields.push("x-coatcheck-session", `stale; age=${Math.ceil(resolution.staleMs / 1000)}`);
  }
}

/** The answer to a proxy that may let the request go on: identity as for upstream, and the renewed cookie if there is one. */
async function allow(
  gate: Gate,
  conversation: Conversation,
  head: RequestHead,
  resolution: Resolution,
  slides: boolean,
): Promise<void> {
  const { exchange } = conversation;
  const fields: string[] = [];
  pushIdentity(gate, fields, resolution, exchange);
  const setCookie = slides ? await renewedCookie(gate, exchange, head, resolution) : undefined;
  if (exchange.endedMs !== undefined) return;
  if (setCookie !== undefined) fields.push("set-cookie", setCookie);
  answer(conversation, { status: 200, fields });
}

/**
 * Where a person is sent who has to sign in. nginx would take a 302 for a failure; its `error_page 401` can go where this
 * says.
 */
export function loginLocation(loginRedirect: string, asked: AskedAbout | undefined) {
  if (asked === undefined) return { status: 302, location: loginRedirect };
  return { status: asked.protocol === "auth-request" ? 401 : 302, location: absoluteLocation(asked, loginRedirect) };
}

/** RFC 9110 §11.6.1 wants one with every 401. */
const CHALLENGE = ["www-authenticate", 'Cookie realm="coatcheck"'];

/** Nobody passes here without a session, or nobody can tell because the store is away. */
function turnAway(
  conversation: Conversation,
  route: Route,
  resolution: Resolution,
  asked: AskedAbout | undefined,
): void {
  const { exchange } = conversation;
  if (exchange.decision === "outage")
    throw resolution.error ?? new ProxyError("session_store_unavailable", "no answer");
  if (exchange.decision === "login-redirect" && route.loginRedirect !== undefined) {
    const { status, location } = loginLocation(route.loginRedirect, asked);
    const fields = ["location", location, "vary", "cookie, accept, sec-fetch-mode"];
    answer(conversation, { status, fields: status === 401 ? [...CHALLENGE, ...fields] : fields });
    return;
  }
  answer(conversation, { status: 401, fields: CHALLENGE });
}

function send(
  gate: Gate,
  conversation: Conversation,
  route: Route,
  head: RequestHead,
  target: RequestTarget,
  headers: string[],
  resolution: Resolution,
  slides: boolean,
  accept: string | undefined,
): void {
  const { req, res, exchange, expectsContinue } = conversation;
  const upstream = upstreamOf(gate, route);
  const { hasContent, chunked } = head;
  const upgrade = accept === undefined ? undefined : upgradeFor(gate, conversation, route, head, resolution, accept);
  const abandon = forward(
    {
      upstream,
      sessionKey: resolution.key,
      method: exchange.method,
      path: target.pathAndQuery,
      headers,
      hasContent,
      chunked,
      limits: route.limits,
      responseRules: gate.responseRules,
      onHead: (response) => beforeHead(gate, conversation, route, head, resolution, response, slides),
      holdsHead: slides,
      onFailure: (error) => fail(conversation, error, gate.observer),
      closeConnection: gate.isDraining,
      wantsTrailers: head.te !== undefined && TRAILERS.test(head.te),
      onConnected: expectsContinue ? () => goOn(conversation) : undefined,
      upgrade,
    },
    req,
    res,
    exchange,
  );
  const { onClose } = conversation;
  conversation.onClose =
    onClose === undefined
      ? abandon
      : () => {
          abandon();
          onClose();
        };
}

/** What becomes of a 101. The session is watched from here on: it may end before the application has answered. */
function upgradeFor(
  gate: Gate,
  conversation: Conversation,
  route: Route,
  head: RequestHead,
  resolution: Resolution,
  accept: string,
): UpgradeRequest | undefined {
  const { exchange, upgrade } = conversation;
  if (upgrade === undefined || route.webSockets === undefined) return undefined;
  const webSocket = gate.webSockets.expect(exchange, resolution, route.webSockets);
  conversation.onClose = () => webSocket.abandon();
  return {
    accept,
    onHead: async ({ commands }) => {
      if (commands !== undefined) refuseCommands(exchange, commands);
      webSocket.requireWanted();
      // What the client says later slides the session, and there will be no response to renew the cookie with.
      const setCookie = await renewedCookie(gate, exchange, head, resolution, gate.lifecycle.expiry.absoluteTimeoutMs);
      webSocket.requireWanted();
      return setCookie;
    },
    open: (fields, upstream) =>
      upgrade.open(fields, (client) => {
        conversation.onClose = () => {};
        webSocket.begin(client, upstream);
      }),
  };
}

/** Tells a client that waits for it to send the content (RFC 9110 §10.1.1). */
function goOn(conversation: Conversation): void {
  conversation.res.writeContinue();
  conversation.expectsContinue = false;
}

/** What the session needs before the response head is released. @returns the `Set-Cookie` for the browser, if any. */
async function beforeHead(
  gate: Gate,
  conversation: Conversation,
  route: Route,
  head: RequestHead,
  resolution: Resolution,
  response: ResponseHead,
  slides: boolean,
): Promise<string | undefined> {
  if (response.commands !== undefined) {
    const setCookie = await writeBack(gate, conversation, route, head, resolution, response);
    if (setCookie !== undefined) return setCookie;
  }
  return slides ? renewedCookie(gate, conversation.exchange, head, resolution) : undefined;
}

/**
 * The browser keeps the cookie for as long as the session would live without another use, so it is told when that has
 * become longer. Not if the session was ended or replaced in the meantime: the old cookie must not overwrite a new one.
 */
async function renewedCookie(
  gate: Gate,
  exchange: Exchange,
  head: RequestHead,
  resolution: Resolution,
  idleTimeoutMs = gate.lifecycle.expiry.idleTimeoutMs,
): Promise<string | undefined> {
  if (head.cookie === undefined || resolution.key === undefined) return undefined;
  const found = gate.lookup.find(resolution.key, exchange);
  const { session } = found instanceof Promise ? await ifSoon(found, RENEWAL_PATIENCE_MS, NOT_ASKED) : found;
  if (session === undefined || session.retiresAt !== undefined) return undefined;
  const { expiry, now } = gate.lifecycle;
  const at = now();
  const expiresAt = expiryAfterUse(session.createdAt, at, { ...expiry, idleTimeoutMs });
  return gate.cookie.renew(head.cookie, resolution.key, expiresAt - at);
}

/** What the promise gives, or `otherwise` when that takes too long. */
async function ifSoon<T>(promise: Promise<T>, patienceMs: number, otherwise: T): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<T>((resolve) => {
    timer = setTimeout(resolve, patienceMs, otherwise);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Obeys and saves what the response commands, before its head is released (design §6). */
async function writeBack(
  gate: Gate,
  { req, exchange }: Conversation,
  route: Route,
  head: RequestHead,
  resolution: Resolution,
  response: ResponseHead,
): Promise<string | undefined> {
  const values = response.commands ?? {};
  if (route.write === undefined) {
    refuseCommands(exchange, values);
    return undefined;
  }
  const commands = parseCommands(values, route.write);
  if ("malformed" in commands) {
    exchange.countWriteBack(commands.command, "malformed");
    throw new ProxyError("http_protocol_error", `X-Session-${commands.command}: ${commands.malformed}`);
  }
  exchange.countDropped(commands.dropped);
  // A login of somebody under watch counts, also one that is about to fail.
  if (commands.start !== undefined && gate.observer.watches.size > 0)
    gate.observer.watches.look(
      req,
      { keys: resolution.key ? [resolution.key] : [], session: commands.start },
      exchange,
    );
  const client = clientOf(head, exchange);
  const obeying = onBehalfOf(exchange, obey, gate.lifecycle, commands, resolution, client, exchange);
  const setCookie = await pending(exchange, obeying);
  exchange.savedMs = exchange.elapsedMs();
  return setCookie;
}

function refuseCommands(exchange: Exchange, { start, set, end }: NonNullable<ResponseHead["commands"]>): void {
  if (start) exchange.countWriteBack("start", "not-allowed");
  if (set) exchange.countWriteBack("set", "not-allowed");
  if (end) exchange.countWriteBack("end", "not-allowed");
}
