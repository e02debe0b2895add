import { badRequest } from "./errors.ts";
import type { RouteLimits } from "./limits.ts";
import { loosest, loosestReadings } from "./request-path.ts";
import type { WebSocketPolicy } from "./websocket.ts";

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
  /** What becomes of a request with a cookie while the store does not answer, where nobody has to be signed in. */
  readonly onOutage: "503" | "anonymous";
  /** Session keys that this upstream may write; `undefined`: it may not command the session at all. */
  readonly write: ReadonlySet<string> | undefined;
  /** `undefined`: the route takes no WebSockets. */
  readonly webSockets: WebSocketPolicy | undefined;
  readonly limits: RouteLimits;
  /** Position in the configuration: the index of the upstream and of the metrics that belong to the route. */
  readonly index: number;
}

/** What became of a route when one was chosen. */
export interface ConsideredRoute {
  readonly route: Route;
  /**
   * `less-specific`: it matches, and another one has the host of the request or a longer path. `part-of-segment`: its path
   * is a beginning of the request's, and ends within a segment.
   */
  readonly verdict: "chosen" | "less-specific" | "other-host" | "other-path" | "part-of-segment";
}

export interface RouteChoice {
  /** In the order of the configuration. */
  readonly considered: readonly ConsideredRoute[];
  /** The loosest readings of the path, where they differ from it, and the route that each belongs to; `undefined`: too many meanings. */
  readonly readings: readonly { readonly path: string; readonly route: Route | undefined }[] | undefined;
}

/** Chooses the route: most specific host, then longest path. */
export class RouteTable {
  readonly #routes: readonly Route[];
  readonly #exact: PrefixTable;
  /** The same with prefixes as the loosest reading of a path has them. */
  readonly #loose: PrefixTable;

  constructor(routes: readonly Route[]) {
    this.#routes = routes;
    this.#exact = new PrefixTable(routes, (route) => route.prefix);
    this.#loose = new PrefixTable(routes, (route) => loosest(route.prefix));
  }

  /**
   * The route for a request.
   * @param host lower case, without port.
   * @param path as sent, without query.
   * @returns `undefined` when no route matches.
   * @throws ProxyError `http_request_error` (400) when the path can be read as that of another route: forwarding it
   *   would step round that route's policy. See GHSA-p224-6x5r-fjpm (Oathkeeper) and GHSA-7rh7-c77v-6434
   *   (oauth2-proxy).
   */
  match(host: string, path: string): Route | undefined {
    const route = this.#exact.find(host, path);
    const readings = loosestReadings(path);
    if (readings === undefined) throw badRequest("a path that servers do not agree on: dot segments, //, ; or %");
    for (const reading of readings) {
      if (this.#loose.find(host, reading) !== route) throw badRequest("the path can be read as that of another route");
    }
    return route;
  }

  /** Why `match` chooses what it does, or refuses to: for an operator. */
  explain(host: string, path: string): RouteChoice {
    const chosen = this.#exact.find(host, path);
    const readings = loosestReadings(path);
    return {
      considered: this.#routes.map((route) => ({ route, verdict: verdictOn(route, chosen, host, path) })),
      readings:
        readings &&
        [...new Set(readings)]
          .filter((reading) => reading !== path)
          .map((reading) => ({ path: reading, route: this.#loose.find(host, reading) })),
    };
  }

  /** @param id of a route, as records have it. */
  byId(id: string): Route | undefined {
    return this.#routes.find((route) => route.id === id);
  }
}

function verdictOn(route: Route, chosen: Route | undefined, host: string, path: string): ConsideredRoute["verdict"] {
  if (route === chosen) return "chosen";
  if (route.host !== undefined && route.host !== host) return "other-host";
  if (isPrefix(route.prefix, path)) return "less-specific";
  return path.startsWith(route.prefix) ? "part-of-segment" : "other-path";
}

interface Prefixed {
  readonly prefix: string;
  readonly route: Route;
}

class PrefixTable {
  readonly #byHost = new Map<string, readonly Prefixed[]>();
  readonly #anyHost: readonly Prefixed[];

  constructor(routes: readonly Route[], prefixOf: (route: Route) => string) {
    const longestFirst = routes
      .map((route) => ({ prefix: prefixOf(route), route }))
      .sort((a, b) => b.prefix.length - a.prefix.length);
    this.#anyHost = longestFirst.filter(({ route }) => route.host === undefined);
    for (const { host } of routes) {
      if (host !== undefined)
        this.#byHost.set(
          host,
          longestFirst.filter(({ route }) => route.host === host),
        );
    }
  }

  find(host: string, path: string): Route | undefined {
    const routes = this.#byHost.get(host);
    return (routes !== undefined ? longestPrefix(routes, path) : undefined) ?? longestPrefix(this.#anyHost, path);
  }
}

function longestPrefix(routes: readonly Prefixed[], path: string): Route | undefined {
  for (let i = 0; i < routes.length; i++) {
    const { prefix, route } = routes[i] as Prefixed;
    if (isPrefix(prefix, path)) return route;
  }
  return undefined;
}

/** By whole segments: `/admin` is a prefix of `/admin` and `/admin/x`, not of `/administrator`. */
function isPrefix(prefix: string, path: string): boolean {
  if (!path.startsWith(prefix)) return false;
  return prefix.length === path.length || prefix.length === 0 || path.charCodeAt(prefix.length) === 0x2f;
}
