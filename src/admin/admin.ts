import { hash, timingSafeEqual } from "node:crypto";
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { SessionAdministration, StoreReport, WebSocketList } from "../core/administration.ts";
import { ProxyError } from "../core/errors.ts";
import type { Explainer } from "../core/explanation.ts";
import type { ReloadOutcome } from "../core/reload.ts";
import type { MaybePromise, StoreCheck } from "../core/store.ts";
import type { UpstreamSummary } from "../core/upstream.ts";
import type { Observer } from "../observe/observer.ts";
import { Profiler } from "../observe/profiler.ts";
import { dumpEndpoint, type TakenDump } from "./dump.ts";
import {
  ACTION_METHODS,
  type Action,
  type ActionMethod,
  BadCall,
  type Call,
  type Endpoint,
  type Endpoints,
  json,
  type Reply,
  readBody,
  readName,
  readQuery,
} from "./endpoint.ts";
import { exchangesEndpoint } from "./exchanges.ts";
import { explainEndpoint } from "./explain.ts";
import { answerMalformed } from "./malformed.ts";
import { observeEndpoint } from "./observe.ts";
import { probeEndpoints } from "./probes.ts";
import { profileEndpoints } from "./profiles.ts";
import { reloadEndpoint } from "./reload.ts";
import { sessionEndpoints, storeCheckEndpoint } from "./sessions.ts";
import { upstreamsEndpoint } from "./upstreams.ts";
import { watchEndpoint } from "./watch.ts";
import { webSocketsEndpoint } from "./websockets.ts";

export interface AdminOptions {
  /** Bearer token for everything but the probes; `undefined`: the listener is on loopback. */
  readonly token: string | undefined;
  readonly observer: Observer;
  readonly version: string;
  readonly isDraining: () => boolean;
  readonly checkStore: () => MaybePromise<StoreCheck>;
  readonly probeStore: () => Promise<StoreReport>;
  readonly sessions: SessionAdministration;
  readonly webSockets: (whose: { userId: string | undefined; handle: string | undefined }) => WebSocketList;
  readonly upstreams: () => readonly UpstreamSummary[];
  /** Whether readiness depends on an upstream that has no target in service. */
  readonly isUpstreamOut: () => boolean;
  readonly takeDump: () => Promise<TakenDump>;
  /** Reads the configuration again. */
  readonly reload: () => Promise<ReloadOutcome>;
  /** PEM; absent: HTTP without TLS. */
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  readonly explainer: Explainer;
}

const MAX_BODY_BYTES = 64 * 1024;

/** The listener for operators. Errors are JSON, and so is nearly everything else. */
export function createAdmin(options: AdminOptions): Server {
  const endpoints = adminEndpoints(options);
  const tokenHash = options.token === undefined ? undefined : hash("sha256", options.token, "buffer");
  const listener = (req: IncomingMessage, res: ServerResponse): void => {
    const gone = new AbortController();
    res.once("close", () => gone.abort());
    respond(req, { endpoints, tokenHash, signal: gone.signal })
      .catch((error: unknown) => failure(error, options.observer, gone.signal))
      .then((reply) => write(req, res, reply));
  };
  // Whether there is a Host is checked with the rest, where it gets a reason.
  const base = { requireHostHeader: false };
  const server =
    options.tls === undefined ? createServer(base, listener) : createTlsServer({ ...base, ...options.tls }, listener);
  answerMalformed(server, (req, res, refusal) => write(req, res, json(refusal.status, { error: refusal.message })));
  return server;
}

function failure(error: unknown, observer: Observer, gone: AbortSignal): Reply {
  if (error instanceof BadCall) return json(error.status, { error: error.message });
  if (error instanceof ProxyError) return json(error.status, { error: error.message, code: error.code });
  if (!gone.aborted) observer.log.unexpected(error);
  return json(500, { error: "something went wrong; see the log" });
}

interface Context {
  readonly endpoints: Endpoints;
  readonly tokenHash: Buffer | undefined;
  readonly signal: AbortSignal;
}

async function respond(req: IncomingMessage, { endpoints, tokenHash, signal }: Context): Promise<Reply> {
  if (req.headers.host === undefined && req.httpVersion === "1.1")
    return json(400, { error: "a request without Host" }); // RFC 9112 §3.2
  const [, path = "", query = ""] = /^([^?]*)\??(.*)$/s.exec(req.url ?? "") ?? [];
  const [endpoint, name] = find(endpoints, path);
  // What checks health over HTTP/1.0 names no Host, and browsers always do.
  const isHealthCheck = endpoint?.open === true && req.headers.host === undefined;
  if (tokenHash === undefined && !isHealthCheck && !isLoopbackHost(req.headers.host)) {
    // Without a token, a web page whose name was pointed at 127.0.0.1 must not read this (DNS rebinding).
    return json(403, { error: "without a token, this listener answers to localhost and loopback addresses only" });
  }
  if (tokenHash !== undefined && endpoint?.open !== true && !isAuthorized(req.headers.authorization, tokenHash)) {
    return json(401, { error: "send the admin token: Authorization: Bearer …" });
  }
  if (endpoint === undefined) return json(404, { error: "not found; see / for what is here" });
  const action = actionFor(endpoint, req.method);
  if (action === undefined) {
    const allow = allowed(endpoint);
    return { ...json(405, { error: `only ${allow} here` }), fields: { allow } };
  }
  if (action !== endpoint.actions.GET && isCrossSite(req.headers)) {
    return json(403, { error: "a web page of another origin may not ask for this" });
  }
  const call = {
    query: action.query === undefined ? {} : readQuery(query, action.query),
    body: action.body === undefined ? undefined : readBody(await bodyOf(req), action.body),
    name: endpoint.name === undefined ? "" : readName(name, endpoint.name),
    client: req.socket.remoteAddress ?? "",
    wantsPage: prefersPage(req.headers.accept),
    signal,
  };
  return action.reply(call as Call<never, never>);
}

/** @throws BadCall for what a web page could send without asking (a form), and for more than 64 KiB. */
async function bodyOf(req: IncomingMessage): Promise<string> {
  if (!/^application\/json\s*(;|$)/i.test(req.headers["content-type"] ?? ""))
    throw new BadCall("send JSON: Content-Type: application/json", 415);
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of req as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > MAX_BODY_BYTES) throw new BadCall(`the body is larger than ${MAX_BODY_BYTES} bytes`, 413);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString();
}

/** The endpoint of a path, and what stands in its place for a name. */
function find(endpoints: Endpoints, path: string): [endpoint: Endpoint | undefined, name: string] {
  const exact = endpoints.get(path);
  if (exact !== undefined) return [exact, ""];
  for (const [pattern, endpoint] of endpoints) {
    const [start = "", place] = pattern.split("{");
    if (place !== undefined && path.startsWith(start)) return [endpoint, path.slice(start.length)];
  }
  return [undefined, ""];
}

function actionFor({ actions }: Endpoint, method = ""): Action | undefined {
  const name = method === "HEAD" ? "GET" : method;
  return (ACTION_METHODS as readonly string[]).includes(name) ? actions[name as ActionMethod] : undefined;
}

function allowed({ actions }: Endpoint): string {
  const methods = Object.keys(actions);
  return (actions.GET === undefined ? methods : ["GET", "HEAD", ...methods.filter((name) => name !== "GET")]).join(
    ", ",
  );
}

/** Browsers name `text/html` first; programs ask for JSON, or for anything. */
function prefersPage(accept = ""): boolean {
  return /^\s*text\/html\s*(,|;|$)/i.test(accept);
}

/** Whether a browser sends this for a page of another origin, which then rides on the address of whoever looks at it. */
function isCrossSite({ origin, host, "sec-fetch-site": site }: IncomingHttpHeaders): boolean {
  if (site !== undefined && site !== "same-origin") return true;
  return origin !== undefined && !(URL.canParse(origin) && new URL(origin).host === host);
}

function adminEndpoints(options: AdminOptions): Endpoints {
  const { token, observer, version, isDraining, checkStore, probeStore, isUpstreamOut } = options;
  const { sessions, webSockets, upstreams, explainer, takeDump } = options;
  const endpoints = new Map<string, Endpoint>();
  for (const [path, endpoint] of [
    ...probeEndpoints({ version, observer, isDraining, checkStore, isUpstreamOut, endpoints }),
    exchangesEndpoint(observer),
    watchEndpoint(observer.watches),
    observeEndpoint(observer.settings),
    reloadEndpoint(options.reload),
    explainEndpoint(explainer),
    ...sessionEndpoints(sessions),
    webSocketsEndpoint(webSockets),
    upstreamsEndpoint(upstreams),
    storeCheckEndpoint(probeStore),
    dumpEndpoint(takeDump),
    ...profileEndpoints({ profiler: new Profiler(), hasToken: token !== undefined }),
  ])
    endpoints.set(path, endpoint);
  return endpoints;
}

function isAuthorized(authorization: string | undefined, tokenHash: Buffer): boolean {
  const match = /^Bearer ([\x21-\x7e]{1,4096})$/i.exec(authorization ?? "");
  return match !== null && timingSafeEqual(hash("sha256", match[1] as string, "buffer"), tokenHash);
}

function isLoopbackHost(host: string | undefined): boolean {
  return host !== undefined && /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i.test(host);
}

function write(req: IncomingMessage, res: ServerResponse, { status, type, body, fields = {} }: Reply): void {
  // Answered already, as what it turned out to be later: malformed.
  if (res.headersSent) {
    if (body instanceof Readable) body.destroy();
    return;
  }
  res.writeHead(status, {
    "content-type": type,
    ...(!(body instanceof Readable) && { "content-length": Buffer.byteLength(body) }),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    ...(status === 401 && { "www-authenticate": 'Bearer realm="coatcheck admin"' }),
    ...fields,
    // What is left of a body that was refused is no request.
    ...(!req.complete && { connection: "close" }),
  });
  // A client that goes away before the end is nobody's failure.
  if (body instanceof Readable) pipeline(body, res).catch(() => {});
  else res.end(req.method === "HEAD" ? undefined : body);
}
