import { setTimeout } from "node:timers/promises";
import type { TlsMaterial } from "./certificate.ts";
import type { Config } from "./config/compile.ts";
import type { Exchange } from "./core/exchange.ts";
import { IdentityHeaders } from "./core/identity.ts";
import { TrustedProxies } from "./core/peer.ts";
import { HeaderRules } from "./core/request-head.ts";
import { ResponseHeaderRules } from "./core/response-head.ts";
import { type Route, RouteTable } from "./core/routes.ts";
import type { SessionStore } from "./core/store.ts";
import type { ErrorPages } from "./error-pages.ts";
import type { Gate } from "./pipeline.ts";
import { SessionCookie } from "./session/cookie.ts";
import type { Upstream } from "./upstream/upstream.ts";
import { openUpstreams } from "./upstream/upstreams.ts";

const LOOK_MS = 5;

/** What every configuration of a gateway shares: sessions, and the eyes on everything. */
export interface Shared
  extends Pick<
    Gate,
    "lookup" | "toucher" | "logouts" | "observer" | "webSockets" | "connections" | "limiter" | "isDraining"
  > {
  readonly store: SessionStore;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

/** What was read from files for a configuration. */
export interface FileContents {
  readonly tls: TlsMaterial;
  readonly errorPages: ErrorPages;
}

/**
 * One configuration at work. A request goes by the one that it began with, to its end; what belongs to a configuration
 * alone is let go of when the last of its requests has ended.
 */
export class Generation {
  readonly gate: Gate;
  #requests = 0;
  #onUnused: (() => void) | undefined;

  constructor(gate: Gate) {
    this.gate = gate;
  }

  /** A request begins. */
  begin(): void {
    this.#requests++;
  }

  /** A request that began with it has ended, its upstream included. */
  end(): void {
    if (--this.#requests === 0) this.#onUnused?.();
  }

  /** How many have not ended. */
  get requests(): number {
    return this.#requests;
  }

  /** No more requests begin. @param onUnused is called once none is left, perhaps at once. */
  retire(onUnused: () => void): void {
    if (this.#requests === 0) onUnused();
    else this.#onUnused = onUnused;
  }
}

/** The configurations of a gateway that have requests: the current one, and those before it. */
export class Generations {
  #current: Generation;
  /** What is about to be the current one, and must find its upstreams open. */
  #coming: Gate | undefined;
  readonly #all = new Set<Generation>();
  readonly #onError: (error: unknown) => void;

  /** @param onError an upstream could not be let go of. */
  constructor(gate: Gate, onError: (error: unknown) => void) {
    this.#current = new Generation(gate);
    this.#all.add(this.#current);
    this.#onError = onError;
  }

  /** That of the next request. */
  get current(): Generation {
    return this.#current;
  }

  get size(): number {
    return this.#all.size;
  }

  /** Those in flight. */
  get requests(): number {
    let count = 0;
    for (const { requests } of this.#all) count += requests;
    return count;
  }

  /** Waits until no request is in flight any more. @returns whether that was within the time. */
  async idle(timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    while (this.requests > 0 && performance.now() < deadline) await setTimeout(LOOK_MS);
    return this.requests === 0;
  }

  /** All that have requests, or may have. */
  get upstreams(): readonly Upstream[] {
    const gates = [...this.#all].map(({ gate }) => gate);
    if (this.#coming !== undefined) gates.push(this.#coming);
    return [...new Set(gates.flatMap(({ upstreams }) => upstreams.filter(isUpstream)))];
  }

  /** `replace` follows, in a while: until then nothing that it has taken over is let go of. */
  announce(gate: Gate): void {
    this.#coming = gate;
  }

  /** From the next request on, it is this one; upstreams that only others had go when the requests of those have ended. */
  replace(gate: Gate): void {
    const before = this.#current;
    this.#current = new Generation(gate);
    this.#coming = undefined;
    this.#all.add(this.#current);
    before.retire(() => this.#letGoOf(before));
  }

  #letGoOf(generation: Generation): void {
    this.#all.delete(generation);
    const used = this.upstreams;
    for (const upstream of generation.gate.upstreams.filter(isUpstream)) {
      if (!used.includes(upstream)) upstream.close().catch(this.#onError);
    }
  }

  /** Ends all connections to upstreams, those in use included. */
  async close(): Promise<void> {
    await Promise.all(this.upstreams.map((upstream) => upstream.close()));
  }
}

/**
 * Builds everything of a configuration that may differ from that of the next.
 * @param kept upstreams that are there already: one that would be made alike is taken over, with its connections and what
 *   it has learnt.
 */
export function buildGate(config: Config, files: FileContents, shared: Shared, kept: readonly Upstream[] = []): Gate {
  const { session, listen } = config;
  const { store, now, ...rest } = shared;
  const { observer } = shared;
  const cookie = new SessionCookie(session.cookie);
  const identity = new IdentityHeaders(config.identityHeaders);
  const strictTransport = listen.tls?.strictTransport;
  return {
    ...rest,
    trusted: new TrustedProxies(listen.trustedProxies),
    requestRules: new HeaderRules(identity.names, config.limits.head.maxFields, config.forwardAuth !== undefined),
    responseRules: new ResponseHeaderRules(session.cookie.name, strictTransport),
    strictTransport,
    routes: new RouteTable(config.routes),
    upstreams: upstreamsOf(config, files.tls, kept, observer),
    forwardAuth: config.forwardAuth,
    cookie,
    binding: { to: session.bind, onMismatch: session.onMismatch },
    lifecycle: {
      store,
      cookie,
      expiry: session,
      maxPerUser: session.maxPerUser,
      now,
      onEvent: (event, exchange, fields) => observer.sessionEvent(event, exchange, fields),
    },
    identity,
    limits: config.limits,
    errorPages: files.errorPages,
  };
}

/** Whether a WebSocket would be opened as it was: on a route that takes them, by somebody who may, to the same place. */
export function wouldOpen({ routes, upstreams }: Gate, exchange: Exchange, hasSession: boolean): boolean {
  const route = routeOf(routes, exchange);
  if (route?.webSockets === undefined || (route.session === "required" && !hasSession)) return false;
  return exchange.upstream !== undefined && upstreams[route.index]?.isAt(exchange.upstream) === true;
}

function routeOf(routes: RouteTable, { host, path }: Exchange): Route | undefined {
  try {
    return routes.match(host, path);
  } catch {
    // A path that has two readings since there are other routes.
    return undefined;
  }
}

function isUpstream(upstream: Upstream | undefined): upstream is Upstream {
  return upstream !== undefined;
}

function upstreamsOf(
  { routes, upstreams }: Config,
  tls: TlsMaterial,
  kept: readonly Upstream[],
  observer: Gate["observer"],
): (Upstream | undefined)[] {
  const wanted = upstreams.map((upstream, index) => {
    if (upstream === undefined) return undefined;
    const { tls: _files, ...settings } = upstream;
    return { id: routes[index]?.id ?? "", settings, tls: tls.upstreams[index] };
  });
  return openUpstreams(wanted, kept, (route) => observer.upstreamObserver(route));
}
