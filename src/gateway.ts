import type { Server } from "node:http";
import { type SecureContextOptions, Server as TlsServer } from "node:tls";
import { isatty } from "node:tty";
import { adminEndpoints, createAdmin } from "./admin/admin.ts";
import { type AdminApi, localApi } from "./admin/api.ts";
import { type KeyPair, readTls, type TlsMaterial } from "./certificate.ts";
import { renewCertificate } from "./certificate-renewal.ts";
import type { Config } from "./config/compile.ts";
import { change } from "./config/reload.ts";
import { autoTotal, ConnectionLimiter, type ConnectionLimits } from "./connection-limiter.ts";
import { TrustedProxies } from "./core/peer.ts";
import type { ReloadCause, ReloadOutcome, ReloadResult } from "./core/reload.ts";
import type { Handle, SessionKey } from "./core/session.ts";
import type { SessionStore } from "./core/store.ts";
import { maxOpenFiles, takeDump as takeDumpOf } from "./dump.ts";
import { DumpFiles } from "./dump-files.ts";
import { ErrorPages } from "./error-pages.ts";
import { createExplainer } from "./explain/explain.ts";
import { buildGate, type FileContents, Generations, type Shared, wouldOpen } from "./generation.ts";
import { createListener, type ListenerOptions } from "./listener.ts";
import { Connections, open, portOf, urlOf } from "./listening.ts";
import type { Log, LogDestination } from "./observe/logging.ts";
import type { Metrics } from "./observe/metrics.ts";
import { Observer } from "./observe/observer.ts";
import { redirectTo } from "./redirect.ts";
import { type ConfigSource, Reloader } from "./reloader.ts";
import { RequestLimiter } from "./request-limiter.ts";
import { createSessionAdministration } from "./session/administration.ts";
import { Census } from "./session/census.ts";
import { Logouts } from "./session/logouts.ts";
import { NearCache, type NearCacheObserver } from "./session/near-cache.ts";
import { StoreLookup } from "./session/resolver.ts";
import { Toucher } from "./session/touch.ts";
import { SessionCodec } from "./store/codec.ts";
import { GuardedStore } from "./store/guarded.ts";
import { type OpenStoreOptions, openStore } from "./store/open.ts";
import { probeStore } from "./store/probe.ts";
import { listenerTls, secureContext } from "./tls.ts";
import { figuresOf, isUnready, summariesOf } from "./upstream/upstreams.ts";
import { VERSION } from "./version.ts";
import { WebSockets } from "./websockets.ts";

export interface GatewayOptions {
  /** Where log lines go; standard output by default. */
  readonly logDestination?: LogDestination;
  /** A store of your own, instead of the one that `config.store` names; the gateway closes it. */
  readonly store?: SessionStore;
  /** How often the files of certificates are looked at, milliseconds; default ten seconds. */
  readonly certificatePollMs?: number;
  /** How long a request waits for rate limits that gateways share, milliseconds; default 50. */
  readonly limiterPatienceMs?: number;
  /** Milliseconds since the epoch. */
  readonly now?: () => number;
  /** Where the configuration came from, to read it again; absent: nowhere. */
  readonly source?: ConfigSource;
  /** What the process was started as, for a dump: a command and names of options, no values. */
  readonly command?: readonly string[];
  /** It is one of several processes, which have one admin listener together: `api` takes its place. */
  readonly worker?: WorkerOptions;
}

export interface WorkerOptions {
  /** From 1. */
  readonly number: number;
  /** What standard output leads to is for the process above to know. */
  readonly prettyLog: { readonly colours: boolean } | undefined;
  /** A session was ended here, and the store does not tell the other workers. */
  readonly onEnded: (key: SessionKey) => void;
  /** A watch has met another session of whom it is for. */
  readonly onMet: (watchId: string, handle: Handle) => void;
}

/** What takes a while to make. */
interface GatewayParts {
  readonly observer: Observer;
  readonly plainStore: SessionStore;
  readonly files: FileContents;
}

const STANDARD_OUTPUT = 1;
const LAST_RECORDS_MS = 1_000;
/** How long spans that are gathered may take to leave when everything else has ended. */
const FLUSH_TIMEOUT_MS = 2_000;

/** The composition root: builds what the way of a request needs, and the two listeners. */
export class Gateway {
  readonly observer: Observer;
  readonly #dumpFiles: DumpFiles;
  /** What is in effect. */
  #config: Config;
  readonly #store: SessionStore;
  readonly #toucher: Toucher;
  readonly #census: Census;
  readonly #webSockets: WebSockets;
  readonly #shared: Shared;
  readonly #generations: Generations;
  readonly #reloader: Reloader;
  readonly #server: Server;
  readonly #admin: Server;
  readonly #isWorker: boolean;
  /** What the admin listener answers with. */
  readonly api: AdminApi;
  /** Another worker has ended a session, and the store does not tell. */
  readonly endedElsewhere: (key: SessionKey) => void;
  readonly #serverConnections: Connections;
  readonly #adminConnections: Connections;
  readonly #connections: ConnectionLimiter;
  readonly #limiter: RequestLimiter;
  #draining = false;
  #closing: Promise<void> | undefined;
  /** The listener that only redirects to HTTPS. */
  readonly #redirector: Server | undefined;
  readonly #redirectorConnections: Connections | undefined;
  readonly #certificatePollMs: number | undefined;
  /** By listener. */
  readonly #unwatchCertificates = new Map<string, () => void>();

  private constructor(config: Config, parts: GatewayParts, options: GatewayOptions) {
    const { observer, plainStore, files } = parts;
    const { now = Date.now, command = [], worker } = options;
    this.#config = config;
    this.#isWorker = worker !== undefined;
    this.#certificatePollMs = options.certificatePollMs;
    this.observer = observer;
    this.#reloader = new Reloader({
      source: options.source,
      observer,
      isWatched: () => this.#config.reload.watch,
      apply: (read) => this.#reload(read),
    });
    // What this process writes is not in its cache any more when the write is answered, whoever else tells of it.
    const store = observer.instrument(plainStore, (key, operation) => {
      cache?.changed(key);
      if (operation !== "destroy") return;
      onEnded(key);
      if (cache === undefined) worker?.onEnded(key);
    });
    const onEnded = (key: SessionKey): void => {
      logouts.ended(key);
      webSockets.ended(key);
    };
    this.endedElsewhere = onEnded;
    observer.onMet = worker?.onMet;
    const logouts = new Logouts({ now, onLoggedOut: (reason) => observer.metrics.loggedOut(reason) });
    const cache = watchedCache(
      config,
      store,
      now,
      observer.cacheObserver({ ended: onEnded, changed: (key) => webSockets.changed(key) }),
      observer.metrics,
    );
    this.#census = new Census(store, (sessions) => observer.metrics.storeSessions(store.kind, sessions));
    this.#store = store;
    this.#toucher = new Toucher({ store, now, onDropped: () => observer.metrics.touchDropped() });
    const lookup = cache ?? new StoreLookup(store);
    const webSockets = new WebSockets({
      lookup,
      toucher: this.#toucher,
      expiry: () => this.#config.session,
      now,
      observer: observer.webSocketObserver(),
    });
    this.#webSockets = webSockets;
    const isDraining = () => this.#draining;
    this.#connections = new ConnectionLimiter({
      ...connectionLimits(config),
      onRefused: (reason, address) => observer.connectionRefused(reason, address),
    });
    observer.metrics.watchConnections(this.#connections);
    this.#limiter = new RequestLimiter({
      patienceMs: options.limiterPatienceMs,
      openShared: plainStore.openBuckets?.bind(plainStore),
      onFallback: (active, failure) => observer.limiterFellBack(active, failure),
      onChecked: (by) => observer.metrics.limiterAnswered(by),
    });
    this.#shared = {
      store,
      lookup,
      toucher: this.#toucher,
      logouts,
      observer,
      webSockets,
      connections: this.#connections,
      limiter: this.#limiter,
      isDraining,
      now,
    };
    const generations = new Generations(buildGate(config, files, this.#shared), (error) =>
      observer.log.unexpected(error),
    );
    this.#generations = generations;
    observer.metrics.watchConfigs(() => generations.size);
    const upstreams = () => generations.current.gate.upstreams;
    const routeIds = () => this.#config.routes.map(({ id }) => id);
    observer.metrics.watchUpstreams(() => figuresOf(upstreams(), routeIds()));
    const listener = createListener(generations, listenerOptions(config, files.tls));
    this.#server = listener.server;
    this.#serverConnections = new Connections(this.#server, { ...listener.care, lastToGo: webSockets });
    const { redirectFrom } = config.listen.tls ?? {};
    if (redirectFrom !== undefined) {
      const httpsPort = () => redirectFrom.httpsPort ?? portOf(this.#server);
      const redirector = createListener(generations, { respond: redirectTo(httpsPort) });
      this.#redirector = redirector.server;
      this.#redirectorConnections = new Connections(this.#redirector, redirector.care);
    }
    const takeDump = shared(() =>
      takeDumpOf({
        config: () => this.#config,
        command,
        observer,
        store,
        isCustomStore: options.store !== undefined || isCustom(config.store),
        cache,
        isDraining,
      }),
    );
    this.#dumpFiles = new DumpFiles({
      take: takeDump,
      folder: () => this.#config.observe.dumps.folder,
      log: observer.log,
    });
    const endpoints = adminEndpoints({
      hasToken: config.admin.token !== undefined,
      observer,
      version: VERSION,
      isDraining,
      checkStore: () => store.check(),
      probeStore: () => probeStore(store, now),
      explainer: createExplainer(() => ({
        gate: generations.current.gate,
        store: plainStore,
        ephemeralSecret: this.#config.session.ephemeralSecret,
      })),
      sessions: createSessionAdministration({
        store,
        onRevoked: (handle, scope, by) => observer.sessionRevoked({ handle, scope, "client.address": by }),
      }),
      webSockets: (whose) => webSockets.list(whose),
      upstreams: () => summariesOf(upstreams(), routeIds()),
      isUpstreamOut: () => isUnready(upstreams()),
      takeDump,
      reload: () => this.reread("operator"),
    });
    this.api = localApi(endpoints, (error) => observer.log.unexpected(error));
    this.#admin = createAdmin({ api: this.api, token: config.admin.token, tls: files.tls.admin });
    this.#adminConnections = new Connections(this.#admin);
    const { admin } = files.tls;
    if (admin !== undefined && config.admin.tls !== undefined && worker === undefined)
      this.#watchCertificate("admin", this.#admin, config.admin.tls, admin, (pair) => pair);
    this.#watchListenCertificate(config, files.tls);
  }

  #watchListenCertificate({ listen }: Config, { listen: pair }: TlsMaterial): void {
    if (pair === undefined || listen.tls === undefined) return;
    const { minVersion } = listen.tls;
    this.#watchCertificate("listen", this.#server, listen.tls, pair, (renewed) => secureContext(minVersion, renewed));
  }

  /**
   * Builds a gateway; `listen` starts it.
   * @throws Error when a certificate cannot be used, or the store cannot be opened. A store that is merely down is
   *   reported by `/readyz` and found later.
   */
  static async create(config: Config, options: GatewayOptions = {}): Promise<Gateway> {
    const { logDestination, now = Date.now, worker } = options;
    const files = await readFiles(config);
    const prettyLog = worker ? worker.prettyLog : prettyFor(config.observe.log.format, logDestination === undefined);
    const observer = await Observer.create({
      ...config.observe,
      ...(prettyLog && { prettyLog }),
      version: VERSION,
      nodeVersion: process.versions.node,
      ...(logDestination && { logDestination }),
      ...(worker && { worker: worker.number }),
    });
    try {
      const plainStore: SessionStore = options.store
        ? new GuardedStore(options.store)
        : await openStore(config.store, { ...storeOptions(config, now), observer: observer.storeObserver() });
      const gateway = new Gateway(config, { observer, plainStore, files }, options);
      if (limitsRequests(config)) await gateway.#limiter.open();
      return gateway;
    } catch (error) {
      await observer.close(FLUSH_TIMEOUT_MS);
      throw error;
    }
  }

  /**
   * Opens both listeners.
   * @throws ListenError when a port is taken or may not be used.
   */
  async listen(): Promise<void> {
    const { listen, admin, session } = this.#config;
    if (session.ephemeralSecret && !this.#isWorker) warnOfEphemeralSecret(this.observer.log);
    try {
      await Promise.all(this.#generations.upstreams.map((upstream) => upstream.begin()));
      if (!this.#isWorker) await open(this.#admin, admin, "admin");
      await open(this.#server, listen, "listen");
      if (this.#redirector !== undefined && listen.tls?.redirectFrom !== undefined)
        await open(this.#redirector, { ...listen, ...listen.tls.redirectFrom }, "listen.tls.redirectFrom");
    } catch (error) {
      await this.#release();
      throw error;
    }
    for (const server of [this.#admin, this.#server, this.#redirector]) {
      server?.on("error", (error) => this.observer.log.unexpected(error));
    }
    await this.#store.check();
    this.#census.begin();
    this.#reloader.watch();
    if (this.#isWorker) return;
    this.observer.log.event("info", "gateway.started", "ready", {
      version: VERSION,
      url: this.url,
      ...(this.redirectUrl !== undefined && { redirect: this.redirectUrl }),
      admin: this.adminUrl,
      store: this.#store.kind,
    });
  }

  /** Kind of the session store. */
  get storeKind(): string {
    return this.#store.kind;
  }

  /** Base URL of the public listener, by a name that works on this machine. */
  get url(): string {
    return urlOf(this.#server);
  }

  get adminUrl(): string {
    return urlOf(this.#admin);
  }

  /** Of the listener that only redirects to HTTPS, if there is one. */
  get redirectUrl(): string | undefined {
    return this.#redirector && urlOf(this.#redirector);
  }

  /** Writes a dump into `observe.dumps.folder`. What became of it is in the log: `dump.written`, `.refused` or `.failed`. */
  writeDump(): Promise<void> {
    return this.#dumpFiles.write();
  }

  /**
   * Applies another configuration, as far as it can change while the gateway runs (`NEEDS_RESTART`): from one request to
   * the next, while those that have begun go on by the one before. Of several calls, one waits for the other.
   * @param by whose doing it is, for the log.
   * @returns the keys that differ from what was in effect.
   * @throws Error when a file that it names cannot be used, or the gateway is ending: then nothing has changed.
   */
  reload(read: Config, by: ReloadCause = "program"): Promise<ReloadResult> {
    return this.#reloader.reload(read, by);
  }

  async #reload(read: Config): Promise<ReloadResult> {
    const { config, ...result } = change(this.#config, read);
    const files = await readFiles(config);
    if (limitsRequests(config)) await this.#limiter.open();
    const kept = this.#generations.upstreams;
    const gate = buildGate(config, files, this.#shared, kept);
    this.#generations.announce(gate);
    const opened = gate.upstreams.filter((upstream) => upstream !== undefined && !kept.includes(upstream));
    await Promise.all(opened.map((upstream) => upstream?.begin()));
    if (this.#draining) {
      await Promise.all(opened.map((upstream) => upstream?.close()));
      throw new Error("the gateway is about to end");
    }
    this.#config = config;
    this.#generations.replace(gate);
    this.#connections.adjust(connectionLimits(config));
    if (this.#server instanceof TlsServer && files.tls.listen !== undefined && config.listen.tls !== undefined)
      this.#server.setSecureContext(secureContext(config.listen.tls.minVersion, files.tls.listen));
    this.#watchListenCertificate(config, files.tls);
    this.#webSockets.reroute((exchange, hasSession) => wouldOpen(gate, exchange, hasSession));
    this.observer.reconfigure(config.observe);
    return result;
  }

  /**
   * Reads the configuration anew, from where it came, and applies it. One that makes no sense, or names a file that cannot
   * be used, is refused as a whole: everything goes on as it was. What became of it is logged and counted.
   */
  reread(by: ReloadCause): Promise<ReloadOutcome> {
    return this.#reloader.reread(by);
  }

  /**
   * Ends: readiness first, then the requests in flight, then the sockets, then the store. Bounded by
   * `shutdown.delay` + `shutdown.timeout`, and two seconds for the last spans.
   * @param times in place of those of the configuration.
   */
  close(times: Config["shutdown"] = this.#config.shutdown): Promise<void> {
    this.#closing ??= this.#close(times);
    return this.#closing;
  }

  async #close({ delayMs, timeoutMs }: Config["shutdown"]): Promise<void> {
    const began = performance.now();
    const connections = [
      this.#serverConnections,
      ...(this.#redirectorConnections ? [this.#redirectorConnections] : []),
    ];
    this.#draining = true;
    this.observer.metrics.draining();
    this.observer.log.event("info", "gateway.draining", "no longer ready; requests in flight go on", {
      delay_s: delayMs / 1000,
      timeout_s: timeoutMs / 1000,
      requests: this.#generations.requests,
      websockets: this.#webSockets.open,
    });
    if (delayMs > 0) await new Promise((resolve) => setTimeout(resolve, delayMs));
    const cut = await Promise.all(connections.map((each) => each.drain(timeoutMs)));
    // A server is closed a moment before its sockets say so, and so the last records.
    await this.#generations.idle(LAST_RECORDS_MS);
    const requestsCut = cut.reduce((sum, requests) => sum + requests, 0);
    const [level, text] =
      requestsCut === 0
        ? (["info", "stopped"] as const)
        : (["warn", `stopped; ${requestsCut} requests had not ended in time and were cut`] as const);
    this.observer.log.event(level, "gateway.stopped", text, {
      duration_s: Math.round(performance.now() - began) / 1000,
      requests_cut: requestsCut,
    });
    await this.#release();
  }

  /** Tells, for the process that is about to end without any more waiting, what that cuts off. */
  abandon(): { readonly requests: number; readonly websockets: number } {
    const cut = { requests: this.#generations.requests, websockets: this.#webSockets.open };
    this.observer.log.event("warn", "gateway.abandoned", "told a second time to end: at once", cut);
    this.observer.log.flush();
    return cut;
  }

  /** New connections get a renewed certificate; those that are open keep the old one. */
  #watchCertificate(
    listener: "listen" | "admin",
    server: Server,
    files: NonNullable<Config["admin"]["tls"]>,
    pair: KeyPair,
    contextOf: (pair: KeyPair) => SecureContextOptions,
  ): void {
    const [pollMs, observer] = [this.#certificatePollMs, this.observer];
    const unwatch = renewCertificate({ listener, server, files, pair, pollMs, observer, contextOf });
    this.#unwatchCertificates.get(listener)?.();
    this.#unwatchCertificates.set(listener, unwatch);
  }

  /** Lets go of everything that is held open. */
  async #release(): Promise<void> {
    this.#reloader.end();
    for (const unwatch of this.#unwatchCertificates.values()) unwatch();
    await Promise.all([this.#serverConnections.drain(0), this.#redirectorConnections?.drain(0)]);
    await this.#webSockets.end();
    await this.#generations.close();
    await this.#toucher.flush();
    await this.#census.end();
    await this.#store.close();
    await this.#adminConnections.drain(0);
    await this.observer.close(FLUSH_TIMEOUT_MS);
  }
}

function listenerOptions({ listen }: Config, { listen: pair }: TlsMaterial): ListenerOptions {
  if (listen.tls === undefined || pair === undefined) return {};
  const { minVersion, http2 } = listen.tls;
  return { tls: { options: listenerTls(minVersion, http2, pair), http2 } };
}

/** Reads what a configuration names. @throws Error that names setting and file. */
export async function readFiles(config: Config): Promise<FileContents> {
  const [tls, errorPages] = await Promise.all([readTls(config), readErrorPages(config)]);
  return { tls, errorPages };
}

/**
 * Whether log lines are for a person, and in colours. FORCE_COLOR and NO_COLOR are what other programs go by.
 * @param toStandardOutput false: they go to a destination of somebody else's, which is no terminal.
 */
export function prettyFor(
  format: "auto" | "json" | "pretty",
  toStandardOutput: boolean,
): { colours: boolean } | undefined {
  // Not `process.stdout.isTTY`: to look at it makes a pipe non-blocking, and then the log waits a tenth of a second
  // whenever the pipe is full.
  const terminal = toStandardOutput && isatty(STANDARD_OUTPUT);
  if (format === "json" || (format === "auto" && !terminal)) return undefined;
  const { FORCE_COLOR: force, NO_COLOR: no } = process.env;
  if (force !== undefined) return { colours: force !== "0" && force !== "false" };
  return { colours: terminal && !no && process.stdout.hasColors() };
}

/** @throws Error that names the files that cannot be used. */
export function readErrorPages({ errors: { pages } }: Config): Promise<ErrorPages> {
  return pages === undefined ? Promise.resolve(new ErrorPages()) : ErrorPages.read(pages);
}

export function warnOfEphemeralSecret(log: Log): void {
  log.event(
    "warn",
    "config.ephemeral-secret",
    "session.cookie.secrets is empty: a random secret was made, and a restart ends every session; make one with: openssl rand -base64 32",
  );
}

/** What a store has to know of the configuration, whoever opens it. */
export function storeOptions({ session }: Config, now: () => number): OpenStoreOptions {
  return {
    now,
    absoluteTimeoutMs: session.absoluteTimeoutMs,
    codec: new SessionCodec(session),
    layout: session.layout,
  };
}

/** Whoever asks while it is under way gets the same. */
function shared<T>(take: () => Promise<T>): () => Promise<T> {
  let underWay: Promise<T> | undefined;
  return () => {
    underWay ??= take().finally(() => {
      underWay = undefined;
    });
    return underWay;
  };
}

function limitsRequests({ limits, routes }: Config): boolean {
  return [limits.routeless, ...routes.map((route) => route.limits)].some(
    ({ perAddress, perSession }) => perAddress !== undefined || perSession !== undefined,
  );
}

function connectionLimits({ limits, listen, upstreams }: Config): ConnectionLimits {
  const { total, perAddress } = limits.connections;
  const byTarget = new Map<string, number>();
  for (const { targets, maxConnections } of upstreams.filter((upstream) => upstream !== undefined))
    for (const { url } of targets) byTarget.set(url, Math.max(maxConnections, byTarget.get(url) ?? 0));
  const upstreamConnections = [...byTarget.values()].reduce((sum, connections) => sum + connections, 0);
  return {
    total: total ?? autoTotal(maxOpenFiles(), upstreamConnections),
    perAddress,
    trusted: new TrustedProxies(listen.trustedProxies),
  };
}

function isCustom(store: Config["store"]): boolean {
  const urls = typeof store === "string" ? [store] : Object.values(store);
  return urls.some((url) => url.startsWith("module:"));
}

/** The near cache; none for a store that does not tell of changes, and needs none because it is in this process. */
function watchedCache(
  { cache }: Config,
  store: SessionStore,
  now: () => number,
  observer: NearCacheObserver,
  metrics: Metrics,
): NearCache | undefined {
  if (store.watch === undefined || cache.maxBytes === 0) return undefined;
  const nearCache = new NearCache({ ...cache, store, now, observer });
  metrics.watchCache(nearCache);
  store.watch(nearCache);
  return nearCache;
}
