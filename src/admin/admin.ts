import { hash, timingSafeEqual } from "node:crypto";
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { SessionAdministration, StoreReport } from "../core/administration.ts";
import { ProxyError } from "../core/errors.ts";
import type { MaybePromise, StoreCheck } from "../core/store.ts";
import type { Observer } from "../observe/observer.ts";
import { RING_NAMES, type RingName } from "../observe/recorder.ts";
import {
  type Action,
  BadCall,
  decode,
  type Endpoint,
  type Endpoints,
  json,
  type Reply,
  readQuery,
} from "./endpoint.ts";
import { sessionEndpoints, storeCheckEndpoint } from "./sessions.ts";

export interface AdminOptions {
  /** Bearer token for everything but the probes; `undefined`: the listener is on loopback. */
  readonly token: string | undefined;
  readonly observer: Observer;
  readonly version: string;
  readonly isDraining: () => boolean;
  readonly checkStore: () => MaybePromise<StoreCheck>;
  readonly probeStore: () => Promise<StoreReport>;
  readonly sessions: SessionAdministration;
}

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1000;

/** The listener for operators. Every answer but the metrics is JSON. */
export function createAdmin(options: AdminOptions): Server {
  const endpoints = adminEndpoints(options);
  const tokenHash = options.token === undefined ? undefined : hash("sha256", options.token, "buffer");
  return createServer((req, res) => {
    const gone = new AbortController();
    res.once("close", () => gone.abort());
    respond(req, { endpoints, tokenHash, signal: gone.signal })
      .catch((error: unknown) => failure(error, options.observer, gone.signal))
      .then((reply) => write(req, res, reply));
  });
}

function failure(error: unknown, observer: Observer, gone: AbortSignal): Reply {
  if (error instanceof BadCall) return json(400, { error: error.message });
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
  if (tokenHash === undefined && !isLoopbackHost(req.headers.host)) {
    // Without a token, a web page whose name was pointed at 127.0.0.1 must not read this (DNS rebinding).
    return json(403, { error: "without a token, this listener answers to localhost and loopback addresses only" });
  }
  const [, path = "", query = ""] = /^([^?]*)\??(.*)$/s.exec(req.url ?? "") ?? [];
  const [endpoint, name] = find(endpoints, path);
  if (tokenHash !== undefined && endpoint?.open !== true && !isAuthorized(req.headers.authorization, tokenHash)) {
    return json(401, { error: "send the admin token: Authorization: Bearer …" });
  }
  if (endpoint === undefined) return json(404, { error: "not found; see / for what is here" });
  const action = actionFor(endpoint, req.method);
  if (action === undefined)
    return { ...json(405, { error: `only ${allowed(endpoint)} here` }), allow: allowed(endpoint) };
  if (action !== endpoint.actions.GET && isCrossSite(req.headers)) {
    return json(403, { error: "a web page of another origin may not ask for this" });
  }
  const parameters = action.parameters === undefined ? new URLSearchParams() : readQuery(query, action.parameters);
  return action.reply({ parameters, name: decode(name), signal });
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
  return name === "GET" || name === "POST" || name === "DELETE" ? actions[name] : undefined;
}

function allowed({ actions }: Endpoint): string {
  const methods = Object.keys(actions);
  return (actions.GET === undefined ? methods : ["GET", "HEAD", ...methods.filter((name) => name !== "GET")]).join(
    ", ",
  );
}

/** Whether a browser sends this for a page of another origin, which then rides on the address of whoever looks at it. */
function isCrossSite({ origin, host, "sec-fetch-site": site }: IncomingHttpHeaders): boolean {
  if (site !== undefined && site !== "same-origin") return true;
  return origin !== undefined && !(URL.canParse(origin) && new URL(origin).host === host);
}

function get(about: string, reply: Action["reply"]): Endpoint {
  return { about, actions: { GET: { reply } } };
}

function adminEndpoints(options: AdminOptions): Endpoints {
  const { observer, version, isDraining, checkStore, probeStore, sessions } = options;
  const endpoints = new Map<string, Endpoint>();
  const index = () => Object.fromEntries([...endpoints].map(([path, { about }]) => [path, about]));
  endpoints.set(
    "/",
    get("this index", () => json(200, { coatcheck: version, endpoints: index() })),
  );
  endpoints.set("/livez", { ...get("200 while the process runs", () => json(200, { status: "ok" })), open: true });
  const readiness = async () => {
    if (isDraining()) return json(503, { status: "draining" });
    const store = await checkStore();
    return store.ok ? json(200, { status: "ok" }) : json(503, { status: "the session store does not answer" });
  };
  endpoints.set("/readyz", {
    ...get(
      "200 while requests are welcome: the store answers and nothing is being shut down; 503 otherwise",
      readiness,
    ),
    open: true,
  });
  endpoints.set(
    "/metrics",
    get("metrics, OpenMetrics text", async () => ({
      status: 200,
      type: observer.metrics.contentType,
      body: await observer.metrics.render(),
    })),
  );
  endpoints.set("/debug/exchanges", {
    about: `the last exchanges, newest first: ?ring=${RING_NAMES.join("|")} (default recent) &limit=1…${MAX_LIMIT} (default ${DEFAULT_LIMIT})`,
    actions: {
      GET: { parameters: ["ring", "limit"], reply: ({ parameters }) => listExchanges(observer, parameters) },
    },
  });
  for (const [path, endpoint] of sessionEndpoints(sessions)) endpoints.set(path, endpoint);
  endpoints.set("/store/check", storeCheckEndpoint(probeStore));
  return endpoints;
}

function listExchanges(observer: Observer, parameters: URLSearchParams): Reply {
  const ring = parameters.get("ring") ?? "recent";
  const limit = Number(parameters.get("limit") ?? DEFAULT_LIMIT);
  if (!isRing(ring)) throw new BadCall(`ring must be one of ${RING_NAMES.join(", ")}`);
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT) throw new BadCall(`limit must be 1 to ${MAX_LIMIT}`);
  return json(200, { exchanges: observer.recorder.list(ring, limit) });
}

function isRing(name: string): name is RingName {
  return (RING_NAMES as readonly string[]).includes(name);
}

function isAuthorized(authorization: string | undefined, tokenHash: Buffer): boolean {
  const match = /^Bearer ([\x21-\x7e]{1,4096})$/i.exec(authorization ?? "");
  return match !== null && timingSafeEqual(hash("sha256", match[1] as string, "buffer"), tokenHash);
}

function isLoopbackHost(host: string | undefined): boolean {
  return host !== undefined && /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i.test(host);
}

function write(req: IncomingMessage, res: ServerResponse, { status, type, body, allow }: Reply): void {
  const fields = {
    "content-type": type,
    "content-length": Buffer.byteLength(body),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    ...(status === 401 && { "www-authenticate": 'Bearer realm="coatcheck admin"' }),
    ...(allow !== undefined && { allow }),
  };
  res.writeHead(status, fields);
  res.end(req.method === "HEAD" ? undefined : body);
}
