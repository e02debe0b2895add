import type { Server } from "node:http";
import { isatty } from "node:tty";
import { adminEndpoints, createAdmin } from "./admin/admin.ts";
import { type AdminApi, localApi } from "./admin/api.ts";
import { type KeyPair, readTls, type TlsMaterial } from "./certificate.ts";
import { renewCertificate } from "./certificate-renewal.ts";
import { changedKeys } from "./config/changes.ts";
import type { Config } from "./config/compile.ts";
import { IdentityHeaders } from "./core/identity.ts";
import { TrustedProxies } from "./core/peer.ts";
import { HeaderRules } from "./core/request-head.ts";
import { ResponseHeaderRules } from "./core/response-head.ts";
import { RouteTable } from "./core/routes.ts";
import type { SessionKey } from "./core/session.ts";
import type { SessionStore } from "./core/store.ts";
import { takeDump as takeDumpOf } from "./dump.ts";
import { DumpFiles } from "./dump-files.ts";
import { ErrorPages } from "./error-pages.ts";
import { createExplainer } from "./explain/explain.ts";
import { createListener, type ListenerOptions } from "./listener.ts";
import { Connections, open, portOf, urlOf } from "./listening.ts";
import type { Log, LogDestination } from "./observe/logging.ts";
import type { Metrics } from "./observe/metrics.ts";
import { Observer, type ReloadResult } from "./observe/observer.ts";
import type { Gate } from "./pipeline.ts";
import { redirectTo } from "./redirect.ts";
import { createSessionAdministration } from "./session/administration.ts";
import { Census } from "./session/census.ts";
import { SessionCookie } from "./session/cookie.ts";
import { Logouts } from "./session/logouts.ts";
import { NearCache, type NearCacheObserver } from "./session/near-cache.ts";
import { StoreLookup } from "./session/resolver.ts";
import { Toucher } from "./session/touch.ts";
import { SessionCodec } from "./store/codec.ts";
import { GuardedStore } from "./store/guarded.ts";
import { type OpenStoreOptions, openStore } from "./store/open.ts";
import { probeStore } from "./store/probe.ts";
import { listenerTls, secureContext } from "./tls.ts";
import { Upstream } from "./upstream/upstream.ts";
import { VERSION } from "./version.ts";
import { WebSockets } from "./websockets.ts";

export interface GatewayOptions {
  /** Where log lines go; standard output by default. */
  readonly logDestination?: LogDestination;
  /** A store of your own, instead of the one that `config.store` names; the gateway closes it. */
  readonly store?: SessionStore;
  /** How often the files of certificates are looked at, milliseconds; default ten seconds. */
  readonly certificatePollMs?: number;
  /** Milliseconds since the epoch. */
  readonly now?: () => number;
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
}

/** What takes a while to make. */
interface GatewayParts {
  readonly observer: Observer;
  readonly plainStore: SessionStore;
  readonly tls: TlsMaterial;
  readonly errorPages: ErrorPages;
}

const STANDARD_OUTPUT = 1;
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
  readonly #upstreams: readonly Upstream[];
  readonly #server: Server;
  readonly #admin: Server;
  readonly #isWorker: boolean;
  /** What the admin listener answers with. */
  readonly api: AdminApi;
  /** Another worker has ended a session, and the store does not tell. */
  readonly endedElsewhere: (key: SessionKey) => void;
  readonly #serverConnections: Connections;
  readonly #adminConnections: Connections;
  #draining = false;
  #closing: Promise<void> | undefined;
  /** The listener that only redirects to HTTPS. */
  readonly #redirector: Server | undefined;
  readonly #redirectorConnections: Connections | undefined;
  readonly #unwatchCertificates: (() => void)[] = [];

  private constructor(config: Config, parts: GatewayParts, options: GatewayOptions) {
    const { observer, plainStore, tls, errorPages } = parts;
    const { session, routes } = config;
    const { now = Date.now, command = [], worker } = options;
    this.#config = config;
    this.#isWorker = worker !== undefined;
    this.observer = observer;
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
    this.#upstreams = config.upstreams.map(
      (upstream, index) => new Upstream({ ...upstream, tls: tls.upstreams[index] }),
    );
    this.#toucher = new Toucher({ store, expiry: session, now, onDropped: () => observer.metrics.touchDropped() });
    const lookup = cache ?? new StoreLookup(store);
    const webSockets = new WebSockets({
      lookup,
      toucher: this.#toucher,
      sessionIdleTimeoutMs: session.idleTimeoutMs,
      now,
      observer: observer.webSocketObserver(),
    });
    this.#webSockets = webSockets;
    const cookie = new SessionCookie(session.cookie);
    const identity = new IdentityHeaders(config.identityHeaders);
    const gate: Gate = {
      trusted: new TrustedProxies(config.listen.trustedProxies),
      requestRules: new HeaderRules(identity.names),
      responseRules: new ResponseHeaderRules(session.cookie.name, config.listen.tls?.strictTransport),
      routes: new RouteTable(routes),
      upstreams: this.#upstreams,
      cookie,
      lookup,
      binding: { to: session.bind, onMismatch: session.onMismatch },
      lifecycle: {
        store,
        cookie,
        expiry: session,
        maxPerUser: session.maxPerUser,
        now,
        onEvent: (event, exchange, fields) => observer.sessionEvent(event, exchange, fields),
      },
      toucher: this.#toucher,
      logouts,
      identity,
      observer,
      errorPages,
      webSockets,
      isDraining: () => this.#draining,
    };
    const listener = createListener(gate, listenerOptions(config, tls));
    this.#server = listener.server;
    this.#serverConnections = new Connections(this.#server, listener.closeSessions, webSockets);
    const { redirectFrom } = config.listen.tls ?? {};
    if (redirectFrom !== undefined) {
      const httpsPort = () => redirectFrom.httpsPort ?? portOf(this.#server);
      this.#redirector = createListener(gate, { respond: redirectTo(httpsPort) }).server;
      this.#redirectorConnections = new Connections(this.#redirector);
    }
    const takeDump = shared(() =>
      takeDumpOf({
        config: () => this.#config,
        command,
        observer,
        store,
        isCustomStore: options.store !== undefined || isCustom(config.store),
        cache,
        isDraining: gate.isDraining,
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
      isDraining: gate.isDraining,
      checkStore: () => store.check(),
      probeStore: () => probeStore(store, now),
      explainer: createExplainer({ gate, store: plainStore, ephemeralSecret: session.ephemeralSecret }),
      sessions: createSessionAdministration({
        store,
        onRevoked: (handle, scope, by) => observer.sessionRevoked({ handle, scope, "client.address": by }),
      }),
      webSockets: (whose) => webSockets.list(whose),
      takeDump,
    });
    this.api = localApi(endpoints, (error) => observer.log.unexpected(error));
    this.#admin = createAdmin({ api: this.api, token: config.admin.token, tls: tls.admin });
    this.#adminConnections = new Connections(this.#admin);
    const { certificatePollMs: pollMs } = options;
    if (tls.admin !== undefined && config.admin.tls !== undefined && worker === undefined) {
      const [listener, server, files, pair] = ["admin", this.#admin, config.admin.tls, tls.admin] as const;
      this.#unwatchCertificates.push(renewCertificate({ listener, server, files, pair, pollMs, observer }));
    }
    if (tls.listen !== undefined && config.listen.tls !== undefined) {
      const { minVersion } = config.listen.tls;
      const contextOf = (pair: KeyPair) => secureContext(minVersion, pair);
      const [listener, server, files, pair] = ["listen", this.#server, config.listen.tls, tls.listen] as const;
      this.#unwatchCertificates.push(renewCertificate({ listener, server, files, pair, pollMs, observer, contextOf }));
    }
  }

  /**
   * Builds a gateway; `listen` starts it.
   * @throws Error when a certificate cannot be used, or the store cannot be opened. A store that is merely down is
   *   reported by `/readyz` and found later.
   */
  static async create(config: Config, options: GatewayOptions = {}): Promise<Gateway> {
    const { logDestination, now = Date.now, worker } = options;
    const tls = await readTls(config);
    const errorPages = await readErrorPages(config);
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
      const plainStore = options.store
        ? new GuardedStore(options.store)
        : await openStore(config.store, { ...storeOptions(config, now), observer: observer.storeObserver() });
      return new Gateway(config, { observer, plainStore, tls, errorPages }, options);
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
   * Takes over what of a new configuration can change while the gateway runs: the section `observe`, for now.
   * @returns the keys that differ from what was in effect.
   */
  reload({ observe, settings, shown }: Config): ReloadResult {
    const before = this.#config;
    const { format } = before.observe.log;
    const keys = changedKeys(before.settings, settings);
    const isApplied = (key: string) => key.startsWith("observe.") && key !== "observe.log.format";
    const inEffect = (read: Config["settings"]["observe"]) => ({ ...read, log: { ...read.log, format } });
    this.#config = {
      ...before,
      observe: { ...observe, log: { ...observe.log, format }, traceExport: before.observe.traceExport },
      settings: { ...before.settings, observe: inEffect(settings.observe) },
      shown: { ...before.shown, observe: inEffect(shown.observe) },
    };
    this.observer.reconfigure(observe);
    const result = { applied: keys.filter(isApplied), needsRestart: keys.filter((key) => !isApplied(key)) };
    this.observer.reloaded(result);
    return result;
  }

  /** A configuration that makes no sense: logged and counted, and everything goes on. @param problems a line each. */
  refuseReload(problems: readonly string[]): void {
    this.observer.reloadRefused(problems);
  }

  /**
   * Ends: readiness first, then the requests in flight, then the sockets, then the store. Bounded by
   * `shutdown.delay` + `shutdown.timeout`, and two seconds for the last spans.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { delayMs, timeoutMs } = this.#config.shutdown;
    this.#draining = true;
    this.observer.log.event("info", "gateway.draining", "no longer ready; requests in flight go on", {
      delay_s: delayMs / 1000,
      timeout_s: timeoutMs / 1000,
    });
    if (delayMs > 0) await new Promise((resolve) => setTimeout(resolve, delayMs));
    await Promise.all([this.#serverConnections.drain(timeoutMs), this.#redirectorConnections?.drain(timeoutMs)]);
    this.observer.log.event("info", "gateway.stopped", "stopped");
    await this.#release();
  }

  /** Lets go of everything that is held open. */
  async #release(): Promise<void> {
    for (const unwatch of this.#unwatchCertificates) unwatch();
    await Promise.all([this.#serverConnections.drain(0), this.#redirectorConnections?.drain(0)]);
    await this.#webSockets.end();
    await Promise.all(this.#upstreams.map((upstream) => upstream.close()));
    await this.#toucher.flush();
    await this.#census.end();
    await this.#store.close();
    await this.#adminConnections.drain(0);
    await this.observer.close(FLUSH_TIMEOUT_MS);
  }
}

function listenerOptions({ listen }: Config, { listen: pair }: TlsMaterial): ListenerOptions {
  if (listen.tls === undefined || pair === undefined) return {};
  const { minVersion, http2, strictTransport } = listen.tls;
  return { tls: { options: listenerTls(minVersion, http2, pair), http2 }, strictTransport };
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
