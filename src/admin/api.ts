import { ProxyError } from "../core/errors.ts";
import type { MaybePromise } from "../core/store.ts";
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

/** A request to the admin API, by whichever way it came, from somebody who may ask. */
export interface AdminRequest {
  readonly method: string;
  readonly path: string;
  /** Without the question mark. */
  readonly query: string;
  /** Asked for at most once. @throws BadCall when it cannot be read. */
  readonly body: () => MaybePromise<string>;
  /** Address of whoever asks. */
  readonly client: string;
  /** A browser asks: it would rather have a page than JSON. */
  readonly wantsPage: boolean;
  /** Names what is begun by it, 16 hex digits, where several processes are to call it the same. */
  readonly id?: string | undefined;
  /** Aborted when the client has gone. */
  readonly signal: AbortSignal;
}

/** What the admin listener answers with: of one process, or of many that answer as one. */
export interface AdminApi {
  /** Whether everybody may ask there. */
  isOpen(path: string): boolean;
  /** Does not throw. */
  perform(request: AdminRequest): Promise<Reply>;
}

/** The admin API of this process. @param onUnexpected told of a failure that is nobody's who asks. */
export function localApi(endpoints: Endpoints, onUnexpected: (error: unknown) => void): AdminApi {
  return {
    isOpen: (path) => find(endpoints, path)[0]?.open === true,
    perform: (request) => perform(request, endpoints).catch((error: unknown) => failure(error, request, onUnexpected)),
  };
}

/** What is answered in place of what could not be done. */
export function failure(error: unknown, { signal }: AdminRequest, onUnexpected: (error: unknown) => void): Reply {
  if (error instanceof BadCall) return json(error.status, { error: error.message });
  if (error instanceof ProxyError) return json(error.status, { error: error.message, code: error.code });
  if (!signal.aborted) onUnexpected(error);
  return json(500, { error: "something went wrong; see the log" });
}

async function perform(request: AdminRequest, endpoints: Endpoints): Promise<Reply> {
  const { method, path, query, client, wantsPage, id, signal } = request;
  const [endpoint, name] = find(endpoints, path);
  if (endpoint === undefined) return json(404, { error: "not found; see / for what is here" });
  const action = actionFor(endpoint, method);
  if (action === undefined) {
    const allow = allowed(endpoint);
    return { ...json(405, { error: `only ${allow} here` }), fields: { allow } };
  }
  const call = {
    query: action.query === undefined ? {} : readQuery(query, action.query),
    body: action.body === undefined ? undefined : readBody(await request.body(), action.body),
    name: endpoint.name === undefined ? "" : readName(name, endpoint.name),
    client,
    wantsPage,
    id,
    signal,
  };
  return action.reply(call as Call<never, never>);
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

function actionFor({ actions }: Endpoint, method: string): Action | undefined {
  const name = method === "HEAD" ? "GET" : method;
  return (ACTION_METHODS as readonly string[]).includes(name) ? actions[name as ActionMethod] : undefined;
}

function allowed({ actions }: Endpoint): string {
  const methods = Object.keys(actions);
  return (actions.GET === undefined ? methods : ["GET", "HEAD", ...methods.filter((name) => name !== "GET")]).join(
    ", ",
  );
}
