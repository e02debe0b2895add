import { badRequest } from "./errors.ts";
import { loosestReadings } from "./request-path.ts";

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
  /** Position in the configuration: the index of the upstream and of the metrics that belong to the route. */
  readonly index: number;
}

/** Chooses the route: most specific host, then longest path. */
export class RouteTable {
  readonly #exact: PrefixTable;
  /** The same with prefixes in lower case, for the loosest reading of a path. */
  readonly #loose: PrefixTable;

  constructor(routes: readonly Route[]) {
    this.#exact = new PrefixTable(routes, (route) => route.prefix);
    this.#loose = new PrefixTable(routes, (route) => route.prefix.toLowerCase());
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

/** By whole segments: `/admin` is a prefix of `/admin` and `/admin/x`, not of `/administrator`. */
function longestPrefix(routes: readonly Prefixed[], path: string): Route | undefined {
  for (let i = 0; i < routes.length; i++) {
    const { prefix, route } = routes[i] as Prefixed;
    if (!path.startsWith(prefix)) continue;
    if (prefix.length === path.length || prefix.length === 0 || path.charCodeAt(prefix.length) === 0x2f) return route;
  }
  return undefined;
}
