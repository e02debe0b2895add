import { isDeepStrictEqual } from "node:util";
import type { UpstreamFigures, UpstreamObserver, UpstreamSettings, UpstreamSummary } from "../core/upstream.ts";
import type { UpstreamTls } from "./endpoint.ts";
import { Upstream } from "./upstream.ts";

/** What a route says of its upstream. */
export interface RouteUpstream {
  /** Of the route. */
  readonly id: string;
  readonly settings: UpstreamSettings;
  readonly tls: UpstreamTls | undefined;
}

/**
 * The upstreams of all routes, in their order; a route may have none. Routes that say the same share one: connections, health and limits.
 * @param kept those of the configuration before: one that would be made alike is taken over, with what it has learnt.
 * @param observerOf by the first route that has it.
 */
export function openUpstreams(
  routes: readonly (RouteUpstream | undefined)[],
  kept: readonly Upstream[],
  observerOf: (route: string) => UpstreamObserver,
): (Upstream | undefined)[] {
  const opened = [...kept];
  return routes.map((route) => {
    if (route === undefined) return undefined;
    const { id, settings, tls } = route;
    const made = { settings, tls };
    const known = opened.find((other) => isDeepStrictEqual(other.made, made));
    if (known !== undefined) return known;
    const upstream = new Upstream(made, observerOf(id));
    opened.push(upstream);
    return upstream;
  });
}

type ByRoute = readonly (Upstream | undefined)[];

function each(upstreams: ByRoute): Upstream[] {
  return [...new Set(upstreams)].filter((upstream) => upstream !== undefined);
}

/** For metrics. @param routes ids, by which the upstreams stand. */
export function figuresOf(upstreams: ByRoute, routes: readonly string[]): UpstreamFigures[] {
  return each(upstreams).map((upstream) => ({
    route: routes[upstreams.indexOf(upstream)] ?? "",
    panic: upstream.isPanic,
    queued: upstream.queued,
    targets: upstream.figures(),
  }));
}

/** For operators. @param routes ids, by which the upstreams stand. */
export function summariesOf(upstreams: ByRoute, routes: readonly string[]): UpstreamSummary[] {
  return each(upstreams).map((upstream) =>
    upstream.summary(routes.filter((_route, index) => upstreams[index] === upstream)),
  );
}

/** Whether readiness depends on one that has no target in service. */
export function isUnready(upstreams: ByRoute): boolean {
  return each(upstreams).some((upstream) => upstream.gatesReadiness && !upstream.isUp);
}
