import { hash, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { MaybePromise, StoreCheck } from "../core/store.ts";
import type { Observer } from "../observe/observer.ts";
import { RING_NAMES, type RingName } from "../observe/recorder.ts";

export interface AdminOptions {
  /** Bearer token for everything but the probes; `undefined`: the listener is on loopback. */
  readonly token: string | undefined;
  readonly observer: Observer;
  readonly version: string;
  readonly isDraining: () => boolean;
  readonly checkStore: () => MaybePromise<StoreCheck>;
}

interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: string;
}

interface Endpoint {
  readonly about: string;
  /** Probes have no token. */
  readonly open?: boolean;
  readonly reply: (query: URLSearchParams) => MaybePromise<Reply>;
}

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1000;

/** The listener for operators. Read-only; every answer but the metrics is JSON. */
export function createAdmin(options: AdminOptions): Server {
  const endpoints = adminEndpoints(options);
  const tokenHash = options.token === undefined ? undefined : hash("sha256", options.token, "buffer");
  return createServer((req, res) => {
    respond(req, endpoints, tokenHash)
      .catch((error: unknown) => {
        options.observer.log.unexpected(error);
        return json(500, { error: "something went wrong; see the log" });
      })
      .then((reply) => write(req, res, reply));
  });
}

async function respond(
  req: IncomingMessage,
  endpoints: ReadonlyMap<string, Endpoint>,
  tokenHash: Buffer | undefined,
): Promise<Reply> {
  if (tokenHash === undefined && !isLoopbackHost(req.headers.host)) {
    // Without a token, a web page whose name was pointed at 127.0.0.1 must not read this (DNS rebinding).
    return json(403, { error: "without a token, this listener answers to localhost and loopback addresses only" });
  }
  const [path = "", query] = (req.url ?? "").split("?", 2);
  const endpoint = endpoints.get(path);
  if (tokenHash !== undefined && endpoint?.open !== true && !isAuthorized(req.headers.authorization, tokenHash)) {
    return json(401, { error: "send the admin token: Authorization: Bearer …" });
  }
  if (endpoint === undefined) return json(404, { error: "not found; see / for what is here" });
  if (req.method !== "GET" && req.method !== "HEAD") return json(405, { error: "only GET and HEAD here" });
  return endpoint.reply(new URLSearchParams(query));
}

function adminEndpoints({ observer, version, isDraining, checkStore }: AdminOptions): ReadonlyMap<string, Endpoint> {
  const endpoints = new Map<string, Endpoint>();
  endpoints.set("/", {
    about: "this index",
    reply: () =>
      json(200, {
        coatcheck: version,
        endpoints: Object.fromEntries([...endpoints].map(([path, { about }]) => [path, about])),
      }),
  });
  endpoints.set("/livez", {
    about: "200 while the process runs",
    open: true,
    reply: () => json(200, { status: "ok" }),
  });
  endpoints.set("/readyz", {
    about: "200 while requests are welcome: the store answers and nothing is being shut down; 503 otherwise",
    open: true,
    reply: async () => {
      if (isDraining()) return json(503, { status: "draining" });
      const store = await checkStore();
      return store.ok ? json(200, { status: "ok" }) : json(503, { status: "the session store does not answer" });
    },
  });
  endpoints.set("/metrics", {
    about: "metrics, OpenMetrics text",
    reply: async () => ({ status: 200, type: observer.metrics.contentType, body: await observer.metrics.render() }),
  });
  endpoints.set("/debug/exchanges", {
    about: `the last exchanges, newest first: ?ring=${RING_NAMES.join("|")} (default recent) &limit=1…${MAX_LIMIT} (default ${DEFAULT_LIMIT})`,
    reply: (query) => listExchanges(observer, query),
  });
  return endpoints;
}

function listExchanges(observer: Observer, query: URLSearchParams): Reply {
  const ring = query.get("ring") ?? "recent";
  const limit = Number(query.get("limit") ?? DEFAULT_LIMIT);
  for (const name of query.keys()) {
    if (name !== "ring" && name !== "limit")
      return json(400, { error: `unknown parameter "${name}"; known: ring, limit` });
  }
  if (!isRing(ring)) return json(400, { error: `ring must be one of ${RING_NAMES.join(", ")}` });
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT)
    return json(400, { error: `limit must be 1 to ${MAX_LIMIT}` });
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

function json(status: number, value: unknown): Reply {
  return { status, type: "application/json", body: `${JSON.stringify(value, null, 2)}\n` };
}

function write(req: IncomingMessage, res: ServerResponse, { status, type, body }: Reply): void {
  const fields = {
    "content-type": type,
    "content-length": Buffer.byteLength(body),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    ...(status === 401 && { "www-authenticate": 'Bearer realm="coatcheck admin"' }),
    ...(status === 405 && { allow: "GET, HEAD" }),
  };
  res.writeHead(status, fields);
  res.end(req.method === "HEAD" ? undefined : body);
}
