import { hash } from "node:crypto";
import type { UpstreamFigures, UpstreamObserver, UpstreamSettings, UpstreamSummary } from "../core/upstream.ts";
import type { UpstreamTls } from "./endpoint.ts";
import { Upstream } from "./upstream.ts";

export interface RouteUpstream {
  /** Of the route. */
  readonly id: string;
  readonly settings: UpstreamSettings;
  readonly tls: UpstreamTls | undefined;
}

/** The upstreams of all routes. Routes that say the same of theirs share one: connections, health and limits. */
export class Upstreams {
  /** In the order of the routes. */
  readonly byRoute: readonly Upstream[];
  readonly #byKey = new Map<string, { readonly upstream: Upstream; readonly routes: string[] }>();

  /**
   * @param observerOf by the first route that has it.
   * @param before upstreams in use: what has not changed goes on with its connections and its health.
   */
  constructor(
    routes: readonly RouteUpstream[],
    observerOf: (route: string, addresses: () => readonly string[]) => UpstreamObserver,
    before?: Upstreams,
  ) {
    const inUse = before === undefined ? undefined : before.#byKey;
    this.byRoute = routes.map(({ id, settings, tls }) => {
      const key = keyOf(settings, tls);
      const known = this.#byKey.get(key);
      if (known !== undefined) {
        known.routes.push(id);
        return known.upstream;
      }
      const upstream: Upstream =
        inUse?.get(key)?.upstream ??
        new Upstream({ ...settings, tls, observer: observerOf(id, () => upstream.addresses) });
      this.#byKey.set(key, { upstream, routes: [id] });
      return upstream;
    });
  }

  /** Resolves names, and waits for the first answers, but not for long. Those that were in use already are not affected. */
  async begin(): Promise<void> {
    await Promise.all(this.all.map((upstream) => upstream.begin()));
  }

  get all(): Upstream[] {
    return [...this.#byKey.values()].map(({ upstream }) => upstream);
  }

  /** Whether one that the configuration makes readiness depend on has no target in service. */
  get isUnready(): boolean {
    return this.all.some((upstream) => upstream.gatesReadiness && !upstream.isUp);
  }

  /** For metrics, at each scrape. */
  figures(): UpstreamFigures[] {
    return [...this.#byKey.values()].map(({ upstream, routes: [route = ""] }) => ({
      route,
      queued: upstream.queued,
      targets: upstream.figures(),
    }));
  }

  summaries(): UpstreamSummary[] {
    return [...this.#byKey.values()].map(({ upstream, routes }) => upstream.summary(routes));
  }

  /** Lets go of those that `after` does not have, each when what it has under way is over. */
  async replacedBy(after: Upstreams): Promise<void> {
    const kept = new Set(after.all);
    await Promise.all(this.all.filter((upstream) => !kept.has(upstream)).map((upstream) => upstream.drain()));
  }

  async close(): Promise<void> {
    await Promise.all(this.all.map((upstream) => upstream.close()));
  }
}

function keyOf(settings: UpstreamSettings, tls: UpstreamTls | undefined): string {
  const { ca = "", cert = "", key = "", serverName = "" } = tls ?? {};
  const material = hash("sha256", [ca, cert, key, serverName].map(String).join("\n"));
  return JSON.stringify([settings, material]);
}
