import { badRequest } from "./errors.ts";
import { readings } from "./request-path.ts";

export type SessionPolicy = "required" | "optional" | "none";

/** Where requests go and what session they need. Made once from the configuration. */
export interface Route {
  /** Host and path prefix as configured, `*` for any host: the `http.route` of metrics and spans. */
  readonly id: string;
  /** Lower case, without port; `undefined` matches every host. */
  readonly host: string | undefined;
  /** Without a trailing slash; `""` matches every path. */
  readonly prefix: string;
  readonly session: SessionPolicy;
  /** Where page navigations without a session are sent; `undefined`: everybody gets 401. */
  readonly loginRedirect: string | undefined;
  /** Session keys that this upstream may write; `undefined`: it may not command the session at all. */
  readonly write: ReadonlySet<string> | undefined;
  /** Position in the configuration: the index of the upstream and of the metrics that belong to the route. */
  readonly index: number;
}

/** Chooses the route: most specific host, then longest path. */
export class RouteTable {
  readonly #byHost = new Map<string, readonly Route[]>();
  readonly #anyHost: readonly Route[];

  constructor(routes: readonly Route[]) {
    const longestFirst = [...routes].sort((a, b) => b.prefix.length - a.prefix.length);
    this.#anyHost = longestFirst.filter((route) => route.host === undefined);
    for (const host of new Set(routes.map((route) => route.host))) {
      if (host === undefined) continue;
      this.#byHost.set(
        host,
        longestFirst.filter((route) => route.host === host),
      );
    }
  }

  /**
   * The route for a request.
   * @param host lower case, without port.
   * @param path as sent, without query.
   * @returns `undefined` when no route matches.
   * @throws ProxyError `http_request_error` (400) when the path, read as an upstream may read it (dots resolved,
   *   escapes decoded, slashes merged), belongs to another route: forwarding it would step round that route's policy.
   *   See the advisories GHSA-p224-6x5r-fjpm (Oathkeeper) and GHSA-7rh7-c77v-6434 (oauth2-proxy).
   */
  match(host: string, path: string): Route | undefined {
    const route = this.#find(host, path);
    for (const reading of readings(path)) {
      if (this.#find(host, reading) !== route) throw badRequest("the path can be read as that of another route");
    }
    return route;
  }

  #find(host: string, path: string): Route | undefined {
    const routes = this.#byHost.get(host);
    return (routes !== undefined ? longestPrefix(routes, path) : undefined) ?? longestPrefix(this.#anyHost, path);
  }
}

function longestPrefix(routes: readonly Route[], path: string): Route | undefined {
  for (let i = 0; i < routes.length; i++) {
    const route = routes[i] as Route;
    const { prefix } = route;
    if (!path.startsWith(prefix)) continue;
    if (prefix.length === path.length || prefix.length === 0 || path.charCodeAt(prefix.length) === 0x2f) return route;
  }
  return undefined;
}
