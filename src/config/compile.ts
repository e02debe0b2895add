import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import type { IdentityHeader } from "../core/identity.ts";
import type { ObserveSettings } from "../core/observe-settings.ts";
import type { Route } from "../core/routes.ts";
import type { Binding } from "../core/session.ts";
import type { TraceExport } from "../core/trace-export.ts";
import { parseDuration, parseSize } from "../core/units.ts";
import type { UpstreamSettings } from "../core/upstream.ts";
import { compileLimits, compileRouteLimits, type LimitsConfig } from "./limits.ts";
import { maskSettings } from "./mask.ts";
import { identityHeaders } from "./presets.ts";
import type { Settings } from "./schema.ts";

/** One upstream; `index` of its route finds it. */
export interface UpstreamConfig extends UpstreamSettings {
  /** Paths of files, and a name. */
  readonly tls: UpstreamTlsConfig | undefined;
}

export interface UpstreamTlsConfig {
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  readonly serverName: string | undefined;
}

export interface ListenTlsConfig {
  /** Paths of files. */
  readonly cert: string;
  readonly key: string;
  readonly minVersion: "1.2" | "1.3";
  readonly http2: boolean;
  /** `httpsPort`: where clients are sent to; absent: to the port of the listener. */
  readonly redirectFrom: { readonly port: number; readonly httpsPort: number | undefined } | undefined;
  /** Value of `Strict-Transport-Security`. */
  readonly strictTransport: string | undefined;
}

/**
 * What the code works with: made once, frozen, times in milliseconds. Data that can be cloned, because workers are sent it.
 */
export interface Config {
  /** What this was made from, in the words of the file, with secrets: two configurations are compared by it. */
  readonly settings: Settings;
  readonly listen: {
    readonly host: string;
    readonly port: number;
    readonly trustedProxies: readonly string[];
    readonly tls: ListenTlsConfig | undefined;
  };
  readonly admin: {
    readonly host: string;
    readonly port: number;
    readonly token: string | undefined;
    /** Paths of files. */
    readonly tls: { readonly cert: string; readonly key: string } | undefined;
  };
  /** Processes that serve, at least one. */
  readonly workers: number;
  readonly store: string | { readonly primary: string; readonly fallback: string };
  readonly session: {
    readonly idleTimeoutMs: number;
    readonly absoluteTimeoutMs: number;
    readonly cookie: {
      readonly name: string;
      readonly secrets: readonly string[];
      readonly sameSite: "Strict" | "Lax" | "None";
      readonly secure: boolean;
      readonly path: string;
      readonly domain: string | undefined;
    };
    readonly bind: Binding;
    readonly onMismatch: "log" | "deny";
    readonly maxPerUser: number;
    readonly layout: "blob" | "fields";
    /** No secret was configured, so that the one above ends with this process. */
    readonly ephemeralSecret: boolean;
    readonly codec: "json" | "msgpack";
    readonly encryptionKeys: readonly string[];
  };
  readonly cache: { readonly maxBytes: number; readonly maxAgeMs: number; readonly staleOnOutageMs: number };
  readonly identityHeaders: readonly IdentityHeader[];
  readonly routes: readonly Route[];
  /** By `Route.index`; absent where a route is there for verifications only. */
  readonly upstreams: readonly (UpstreamConfig | undefined)[];
  /** Where other proxies ask; absent: nobody may. */
  readonly forwardAuth: { readonly path: string } | undefined;
  readonly observe: ObserveSettings & {
    readonly log: { readonly format: "auto" | "json" | "pretty" };
    /** From the environment; `undefined`: no spans are exported. */
    readonly traceExport: TraceExport | undefined;
    readonly recorder: { readonly exchanges: number; readonly slow: number; readonly errors: number };
    /** Where SIGUSR2 writes; absent: the system's folder for temporary files. */
    readonly dumps: { readonly folder: string | undefined };
  };
  readonly limits: LimitsConfig;
  readonly errors: { readonly pages: string | undefined };
  /** Whether a change of the file is enough. */
  readonly reload: { readonly watch: boolean };
  readonly shutdown: { readonly delayMs: number; readonly timeoutMs: number };
  /** What this was made from, secrets masked: for people. */
  readonly shown: Settings;
}

/**
 * Turns checked settings, and what the environment says of traces, into what the code works with.
 * @param ephemeralSecret signs cookies where no secret is configured.
 */
export function compile(
  settings: Settings,
  traceExport: TraceExport | undefined,
  ephemeralSecret = randomBytes(32).toString("base64url"),
): Config {
  const { listen, admin, session, observe } = settings;
  const { cookie } = session;
  const isEphemeral = cookie.secrets.length === 0;
  return deepFreeze({
    settings,
    listen: { ...listen, tls: listen.tls && compileListenTls(listen.tls) },
    admin: { host: admin.host, port: admin.port, token: admin.token, tls: admin.tls },
    workers: settings.workers === "auto" ? availableParallelism() : settings.workers,
    store: settings.store,
    session: {
      idleTimeoutMs: ms(session.idleTimeout),
      absoluteTimeoutMs: ms(session.absoluteTimeout),
      cookie: {
        ...cookie,
        domain: cookie.domain,
        secrets: isEphemeral ? [ephemeralSecret] : cookie.secrets,
      },
      ephemeralSecret: isEphemeral,
      codec: session.codec,
      encryptionKeys: session.encryptionKeys,
      layout: session.layout,
      bind: session.bind,
      onMismatch: session.onMismatch,
      maxPerUser: session.maxPerUser,
    },
    cache: {
      maxBytes: parseSize(settings.cache.maxBytes) as number,
      maxAgeMs: ms(settings.cache.maxAge),
      staleOnOutageMs: ms(settings.cache.staleOnOutage),
    },
    identityHeaders: identityHeaders(settings.identity.preset, settings.identity.headers),
    routes: settings.routes.map((route, index) => compileRoute(route, index, settings.limits)),
    upstreams: settings.routes.map(({ upstream }) => upstream && compileUpstream(upstream)),
    forwardAuth: settings.forwardAuth,
    observe: {
      log: observe.log,
      traces: {
        ratio: observe.traces.ratio,
        slowerThanMs: ms(observe.traces.slowerThan),
        errors: observe.traces.errors,
      },
      traceExport,
      recorder: observe.recorder,
      dumps: { folder: observe.dumps.folder },
    },
    limits: compileLimits(settings.limits),
    errors: { pages: settings.errors.pages },
    reload: settings.reload,
    shutdown: { delayMs: ms(settings.shutdown.delay), timeoutMs: ms(settings.shutdown.timeout) },
    shown: maskSettings(settings),
  });
}

function compileListenTls({ hsts, redirectFrom, ...tls }: NonNullable<Settings["listen"]["tls"]>): ListenTlsConfig {
  const strictTransport = hsts && [
    `max-age=${Math.floor(ms(hsts.maxAge) / 1000)}`,
    ...(hsts.includeSubDomains ? ["includeSubDomains"] : []),
    ...(hsts.preload ? ["preload"] : []),
  ];
  return {
    ...tls,
    redirectFrom: redirectFrom && { port: redirectFrom.port, httpsPort: redirectFrom.httpsPort },
    strictTransport: strictTransport?.join("; "),
  };
}

/** Requests; a WebSocket lasts for hours, and a number that nobody has chosen must not shut people out. */
const DEFAULT_MAX_CONNECTIONS = 1024;

function compileUpstream(upstream: NonNullable<Settings["routes"][number]["upstream"]>): UpstreamConfig {
  const { targets, balance, timeouts, maxConnections, queue, health, ejection, retries, resolve, tls } = upstream;
  // One target that is not resolved: there is nothing to choose, to take out, or to try instead.
  const isOne = targets.length === 1 && resolve === undefined;
  return {
    targets: targets.map(({ url, weight }) => ({ url: new URL(url).origin, weight })),
    balance,
    connectTimeoutMs: ms(timeouts.connect),
    firstByteTimeoutMs: ms(timeouts.firstByte),
    idleTimeoutMs: ms(timeouts.idle),
    maxConnections: maxConnections ?? DEFAULT_MAX_CONNECTIONS,
    limitsWebSockets: maxConnections !== undefined,
    queue: { size: queue.size, timeoutMs: ms(queue.timeout) },
    health: health && {
      path: health.path,
      host: health.host,
      intervalMs: ms(health.interval),
      timeoutMs: ms(health.timeout),
      healthyAfter: health.healthyAfter,
      unhealthyAfter: health.unhealthyAfter,
      status: statusRange(health.status),
      readiness: health.readiness,
    },
    ejection:
      isOne || ejection === false
        ? undefined
        : {
            failures: ejection.failures,
            serverErrors: ejection.serverErrors,
            forMs: ms(ejection.duration),
            atMostMs: ms(ejection.maxDuration),
          },
    slowStartMs: ms(upstream.slowStart),
    retries: isOne || retries === false ? undefined : retries,
    resolve: resolve && { intervalMs: ms(resolve.interval), servers: resolve.servers },
    tls: tls && { ca: tls.ca, cert: tls.cert, key: tls.key, serverName: tls.serverName },
  };
}

/** `200`, or `200-399`. */
function statusRange(text: string): [lowest: number, highest: number] {
  const [lowest, highest = lowest] = text.split("-").map(Number) as [number, number?];
  return [lowest, highest];
}

function compileRoute(route: Settings["routes"][number], index: number, limits: Settings["limits"]): Route {
  const prefix = route.match.path.replace(/\/$/, "");
  const id = `${route.match.host ?? "*"}${prefix === "" ? "/" : prefix}`;
  return {
    id,
    host: route.match.host,
    prefix,
    session: route.session,
    loginRedirect: route.onMissing === 401 ? undefined : route.onMissing.redirect,
    onOutage: route.onOutage === 503 ? "503" : "anonymous",
    write: route.write === undefined ? undefined : new Set(route.write),
    webSockets:
      route.websockets !== false
        ? { origins: new Set(route.websockets.origins), idleTimeoutMs: ms(route.websockets.idleTimeout) }
        : undefined,
    limits: compileRouteLimits(limits, route.limits, id),
    index,
  };
}

function ms(duration: string): number {
  return parseDuration(duration) as number;
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !(value instanceof Set || value instanceof RegExp)) {
    for (const item of Object.values(value)) deepFreeze(item);
    Object.freeze(value);
  }
  return value;
}
