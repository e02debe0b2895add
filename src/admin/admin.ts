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
import type { Explainer } from "../core/explanation.ts";
import type { ReloadOutcome } from "../core/reload.ts";
import type { MaybePromise, StoreCheck } from "../core/store.ts";
import type { UpstreamSummary } from "../core/upstream.ts";
import type { Observer } from "../observe/observer.ts";
import { Profiler } from "../observe/profiler.ts";
import type { AdminApi } from "./api.ts";
import { dumpEndpoint, type TakenDump } from "./dump.ts";
import { BadCall, type Endpoint, type Endpoints, json, type Reply } from "./endpoint.ts";
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
  readonly api: AdminApi;
  /** Bearer token for everything but the probes; `undefined`: the listener is on loopback. */
  readonly token: string | undefined;
  /** PEM; absent: HTTP without TLS. */
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
}

/** What the endpoints need of a gateway. */
export interface EndpointOptions {
  /** Whether there is a token: some things are given to nobody without one. */
  readonly hasToken: boolean;
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
  readonly explainer: Explainer;
}

const MAX_BODY_BYTES = 64 * 1024;
/** Methods that change something. */
const CHANGING: ReadonlySet<string> = new Set(["POST", "DELETE"]);

/** The listener for operators. Errors are JSON, and so is nearly everything else. */
export function createAdmin({ api, token, tls }: AdminOptions): Server {
  const tokenHash = token === undefined ? undefined : hash("sha256", token, "buffer");
  const listener = (req: IncomingMessage, res: ServerResponse): void => {
    const gone = new AbortController();
    res.once("close", () => gone.abort());
    respond(req, { api, tokenHash, signal: gone.signal }).then((reply) => write(req, res, reply));
  };
  // Whether there is a Host is checked with the rest, where it gets a reason.
  const base = { requireHostHeader: false };
  const server = tls === undefined ? createServer(base, listener) : createTlsServer({ ...base, ...tls }, listener);
  answerMalformed(server, (req, res, refusal) => write(req, res, json(refusal.status, { error: refusal.message })));
  return server;
}

interface Context {
  readonly api: AdminApi;
  readonly tokenHash: Buffer | undefined;
  readonly signal: AbortSignal;
}

async function respond(req: IncomingMessage, { api, tokenHash, signal }: Context): Promise<Reply> {
  const { method = "", headers, url = "" } = req;
  if (headers.host === undefined && req.httpVersion === "1.1") return json(400, { error: "a request without Host" }); // RFC 9112 §3.2
  const [, path = "", query = ""] = /^([^?]*)\??(.*)$/s.exec(url) ?? [];
  const isOpen = api.isOpen(path);
  // What checks health over HTTP/1.0 names no Host, and browsers always do.
  const isHealthCheck = isOpen && headers.host === undefined;
  if (tokenHash === undefined && !isHealthCheck && !isLoopbackHost(headers.host)) {
    // Without a token, a web page whose name was pointed at 127.0.0.1 must not read this (DNS rebinding).
    return json(403, { error: "without a token, this listener answers to localhost and loopback addresses only" });
  }
  if (tokenHash !== undefined && !isOpen && !isAuthorized(headers.authorization, tokenHash)) {
    return json(401, { error: "send the admin token: Authorization: Bearer …" });
  }
  if (CHANGING.has(method) && isCrossSite(headers)) {
    return json(403, { error: "a web page of another origin may not ask for this" });
  }
  return api.perform({
    method,
    path,
    query,
    body: () => bodyOf(req),
    client: req.socket.remoteAddress ?? "",
    wantsPage: prefersPage(headers.accept),
    signal,
  });
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

/** Browsers name `text/html` first; programs ask for JSON, or for anything. */
function prefersPage(accept = ""): boolean {
  return /^\s*text\/html\s*(,|;|$)/i.test(accept);
}

/** Whether a browser sends this for a page of another origin, which then rides on the address of whoever looks at it. */
function isCrossSite({ origin, host, "sec-fetch-site": site }: IncomingHttpHeaders): boolean {
  if (site !== undefined && site !== "same-origin") return true;
  return origin !== undefined && !(URL.canParse(origin) && new URL(origin).host === host);
}

/** All endpoints of a gateway. */
export function adminEndpoints(options: EndpointOptions): Endpoints {
  const { hasToken, observer, version, isDraining, checkStore, probeStore, isUpstreamOut } = options;
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
    ...profileEndpoints({ profiler: new Profiler(), hasToken }),
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
