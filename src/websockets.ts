import type { Duplex } from "node:stream";
import type { WebSocketList, WebSocketSummary } from "./core/administration.ts";
import { forEachAtOnce } from "./core/concurrency.ts";
import { ProxyError } from "./core/errors.ts";
import type { Exchange } from "./core/exchange.ts";
import { endOf, type SessionKey } from "./core/session.ts";
import type { WebSocketCloseReason, WebSocketPolicy } from "./core/websocket.ts";
import type { ExpiryPolicy } from "./session/expiry.ts";
import type { Resolution, SessionLookup } from "./session/resolver.ts";
import type { Toucher } from "./session/touch.ts";
import { Tunnel } from "./upstream/tunnel.ts";

/** How often the sessions of open WebSockets are looked at, whether or not the store tells of changes. */
const CHECK_EVERY_MS = 5_000;
/** As a touch is debounced, so that a session in use does not end between two looks. */
const CHECKS_PER_IDLE_TIMEOUT = 10;
const CHECKS_AT_ONCE = 32;
const LISTED = 1000;

/** What happens to WebSockets, as the observer is told. */
export interface WebSocketObserver {
  opened(): void;
  /** @param durationMs since the request began. */
  closed(exchange: Exchange, closing: WebSocketClosing): void;
  /** Octets that were passed on since the last time. */
  passed(bytesIn: number, bytesOut: number): void;
}

export interface WebSocketClosing {
  readonly reason: WebSocketCloseReason;
  readonly durationMs: number;
  /** Octets from the client, and from the application. */
  readonly bytesIn: number;
  readonly bytesOut: number;
}

export interface WebSocketsOptions {
  readonly lookup: SessionLookup;
  readonly toucher: Pick<Toucher, "used">;
  /** That of the configuration in effect. */
  readonly expiry: () => ExpiryPolicy;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  readonly observer: WebSocketObserver;
}

/** All WebSockets, open and about to be, by session: they end with it. */
export class WebSockets {
  readonly #options: WebSocketsOptions;
  readonly #all = new Set<WebSocket>();
  readonly #bySession = new Map<SessionKey, Set<WebSocket>>();
  #timer: NodeJS.Timeout | undefined;
  #isChecking = false;
  #isClosing = false;
  #onAllOver: (() => void) | undefined;

  constructor(options: WebSocketsOptions) {
    this.#options = options;
  }

  /** How many are open. */
  get open(): number {
    let count = 0;
    for (const socket of this.#all) if (socket.isOpen) count++;
    return count;
  }

  /**
   * Keeps an eye on the session of a handshake, from before the application is asked.
   * @throws ProxyError `proxy_shutdown` (503) while the gateway ends.
   */
  expect(exchange: Exchange, { key, session }: Resolution, policy: WebSocketPolicy): WebSocket {
    if (this.#isClosing) throw new ProxyError("proxy_shutdown", "the gateway is about to end");
    const { observer } = this.#options;
    const owner = session === undefined ? undefined : key;
    const socket = new WebSocket({
      exchange,
      key: owner,
      userId: session?.user?.id,
      endsAt: session === undefined ? Infinity : endOf(session),
      idleTimeoutMs: policy.idleTimeoutMs,
      observer,
      onOver: () => this.#forget(socket),
    });
    this.#all.add(socket);
    if (owner !== undefined) {
      const siblings = this.#bySession.get(owner);
      if (siblings === undefined) this.#bySession.set(owner, new Set([socket]));
      else siblings.add(socket);
    }
    this.#timer ??= setInterval(() => void this.#checkAll(), this.#checkEveryMs()).unref();
    return socket;
  }

  #checkEveryMs(): number {
    return Math.min(CHECK_EVERY_MS, this.#options.expiry().idleTimeoutMs / CHECKS_PER_IDLE_TIMEOUT);
  }

  #forget(socket: WebSocket): void {
    this.#all.delete(socket);
    if (socket.key !== undefined) {
      const siblings = this.#bySession.get(socket.key);
      siblings?.delete(socket);
      if (siblings?.size === 0) this.#bySession.delete(socket.key);
    }
    if (this.#all.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#onAllOver?.();
  }

  /** The session was ended on purpose, here or at another instance. */
  ended(key: SessionKey): void {
    this.#close(key, "session-ended");
  }

  /** The session is not what it was: perhaps it is no more. */
  changed(key: SessionKey): void {
    if (this.#bySession.has(key)) setImmediate(() => void this.#check(key));
  }

  #close(key: SessionKey, reason: "session-ended" | "session-expired"): void {
    for (const socket of this.#bySession.get(key) ?? []) socket.close(reason);
  }

  async #checkAll(): Promise<void> {
    if (this.#isChecking) return;
    this.#isChecking = true;
    for (const socket of this.#all) socket.report();
    await forEachAtOnce([...this.#bySession.keys()], CHECKS_AT_ONCE, (key) => this.#check(key));
    this.#isChecking = false;
  }

  /** Looks whether the session lives, and writes down that it was used. A store that gives no answer ends nothing. */
  async #check(key: SessionKey): Promise<void> {
    const { lookup, toucher, expiry, now } = this.#options;
    const { outcome, session } = await lookup.find(key);
    const sockets = this.#bySession.get(key);
    if (sockets === undefined) return;
    if (outcome === "hit" && session !== undefined) {
      let wasUsed = false;
      let endsAt = endOf(session);
      for (const socket of sockets) wasUsed = socket.takeUse() || wasUsed;
      if (wasUsed) endsAt = Math.max(endsAt, toucher.used(key, session, expiry()) ?? 0);
      for (const socket of sockets) socket.endsAt = endsAt;
    } else if (outcome === "expired") this.#close(key, "session-expired");
    else if (outcome === "unknown") {
      for (const socket of sockets) socket.close(now() >= socket.endsAt ? "session-expired" : "session-ended");
    }
  }

  /** Those that are open, newest first. */
  list({ userId, handle }: { userId?: string | undefined; handle?: string | undefined }): WebSocketList {
    const meant = [...this.#all].filter(
      (socket) =>
        socket.isOpen &&
        (userId === undefined || socket.userId === userId) &&
        (handle === undefined || socket.key?.startsWith(handle)),
    );
    const websockets = meant
      .slice(-LISTED)
      .reverse()
      .map((socket) => socket.summary());
    return { count: meant.length, truncated: meant.length > LISTED, websockets };
  }

  /**
   * Another configuration is in effect: those that would not be opened like this any more are told to go, so that their
   * clients open them anew. The others stay as they are.
   */
  reroute(wouldOpen: (exchange: Exchange, hasSession: boolean) => boolean): void {
    for (const socket of this.#all) {
      if (!wouldOpen(socket.exchange, socket.key !== undefined)) socket.close("route-changed");
    }
  }

  /** The gateway ends, and so do they. No more are opened. */
  closeAll(): void {
    this.#isClosing = true;
    for (const socket of this.#all) socket.close("shutdown");
  }

  /** Cuts off those that are left, and waits until all have been told of. */
  async end(): Promise<void> {
    this.closeAll();
    const over = new Promise<void>((resolve) => {
      this.#onAllOver = resolve;
    });
    for (const socket of this.#all) socket.destroy();
    if (this.#all.size > 0) await over;
  }
}

/** Why the gateway itself ends one, but for its silence. */
type EndedByGateway = Exclude<WebSocketCloseReason, "client" | "upstream" | "idle">;

interface WebSocketInit {
  readonly exchange: Exchange;
  readonly key: SessionKey | undefined;
  readonly userId: string | undefined;
  /** Of the session, milliseconds since the epoch. */
  readonly endsAt: number;
  readonly idleTimeoutMs: number;
  readonly observer: WebSocketObserver;
  readonly onOver: () => void;
}

/** One of them, from its handshake to its end. */
export class WebSocket {
  readonly #init: WebSocketInit;
  endsAt: number;
  #tunnel: Tunnel | undefined;
  /** Why it is to end; known before it is open, if the session ends during the handshake. */
  #ending: EndedByGateway | undefined;
  #reportedIn = 0;
  #reportedOut = 0;
  #usesSeen = 0;

  constructor(init: WebSocketInit) {
    this.#init = init;
    this.endsAt = init.endsAt;
  }

  get key(): SessionKey | undefined {
    return this.#init.key;
  }

  get exchange(): Exchange {
    return this.#init.exchange;
  }

  get userId(): string | undefined {
    return this.#init.userId;
  }

  get isOpen(): boolean {
    return this.#tunnel !== undefined;
  }

  /** @throws ProxyError `http_request_denied` (403), `proxy_shutdown` or `destination_unavailable` (503) when it must not be opened any more. */
  requireWanted(): void {
    if (this.#ending === "shutdown") throw new ProxyError("proxy_shutdown", "the gateway is about to end");
    if (this.#ending === "route-changed")
      throw new ProxyError("destination_unavailable", "the route changed during the WebSocket handshake");
    if (this.#ending !== undefined)
      throw new ProxyError("http_request_denied", "the session ended during the WebSocket handshake");
  }

  /** The handshake is over: octets pass. */
  begin(client: Duplex, upstream: Duplex): void {
    const { exchange, idleTimeoutMs, observer, onOver } = this.#init;
    observer.opened();
    const tunnel = new Tunnel({
      client,
      upstream,
      idleTimeoutMs,
      onClosed: (reason) => {
        this.report();
        const { bytesIn, bytesOut } = tunnel;
        observer.closed(exchange, { reason, durationMs: exchange.elapsedMs(), bytesIn, bytesOut });
        onOver();
      },
    });
    this.#tunnel = tunnel;
    if (this.#ending !== undefined) tunnel.close(this.#ending);
  }

  /** The handshake came to nothing; no harm when it did not. */
  abandon(): void {
    if (this.#tunnel === undefined) this.#init.onOver();
  }

  close(reason: EndedByGateway): void {
    this.#ending ??= reason;
    this.#tunnel?.close(reason);
  }

  destroy(): void {
    this.#tunnel?.destroy();
  }

  /** Whether the client has said something since the last time. */
  takeUse(): boolean {
    const uses = this.#tunnel?.messageFramesIn ?? 0;
    const wasUsed = uses > this.#usesSeen;
    this.#usesSeen = uses;
    return wasUsed;
  }

  /** Tells how much has passed since the last time. */
  report(): void {
    if (this.#tunnel === undefined) return;
    const { bytesIn, bytesOut } = this.#tunnel;
    this.#init.observer.passed(bytesIn - this.#reportedIn, bytesOut - this.#reportedOut);
    this.#reportedIn = bytesIn;
    this.#reportedOut = bytesOut;
  }

  summary(): WebSocketSummary {
    const { exchange, userId } = this.#init;
    return {
      handle: exchange.handle ?? null,
      user: userId ?? null,
      route: exchange.route?.id ?? "",
      client: exchange.clientAddress,
      since: new Date(exchange.startedAt).toISOString(),
      bytesIn: this.#tunnel?.bytesIn ?? 0,
      bytesOut: this.#tunnel?.bytesOut ?? 0,
      traceId: exchange.traceId,
    };
  }
}
