import { isIP, type LookupFunction } from "node:net";
import { buildConnector, Client, type Dispatcher, errors, Pool } from "undici";
import type { EjectionReason, EndpointSummary, UpstreamSettings } from "../core/upstream.ts";
import { type Candidate, hash32 } from "./balance.ts";
import { readOn } from "./read-on.ts";

/** How a target is spoken to over TLS. It is always verified: there is no option that turns that off. */
export interface UpstreamTls {
  /** PEM: whom to trust in place of the authorities that node knows. */
  readonly ca: Buffer | undefined;
  /** PEM: a certificate of our own and its key, for a target that asks for one. */
  readonly cert: Buffer | undefined;
  readonly key: Buffer | undefined;
  /** The name that is asked for and has to be in the target's certificate, where it is another than its host. */
  readonly serverName: string | undefined;
}

/** As configured. */
export interface Target {
  /** Scheme, host and port. */
  readonly url: string;
  /** `host:port`: safe as a label. */
  readonly address: string;
  readonly scheme: "http" | "https";
  readonly host: string;
  readonly port: number;
  readonly weight: number;
}

export type EndpointSettings = Pick<
  UpstreamSettings,
  "connectTimeoutMs" | "firstByteTimeoutMs" | "idleTimeoutMs" | "maxConnections" | "limitsWebSockets" | "slowStartMs"
>;

const MAX_RESPONSE_HEAD_BYTES = 64 * 1024;
/** What of its weight a target has at the beginning of a slow return. */
const FIRST_SHARE = 0.1;

export function targetOf({ url: text, weight }: UpstreamSettings["targets"][number]): Target {
  const url = new URL(text);
  const scheme = url.protocol === "https:" ? "https" : "http";
  const port = url.port !== "" ? Number(url.port) : scheme === "https" ? 443 : 80;
  return { url: text, address: `${url.hostname}:${port}`, scheme, host: url.hostname, port, weight };
}

/** A target, or one address of it, and the connections to it. */
export class Endpoint implements Candidate {
  readonly target: Target;
  /** Where Coatcheck resolves the name: `address:port`. */
  readonly peer: string | undefined;
  readonly seed: number;
  active = 0;
  /** Of `active`. */
  webSockets = 0;
  credit = 0;
  /** Health checks, as far as they have come; without any it is healthy. */
  isHealthy = true;
  /** Until when it gets no requests, by `performance.now()`; and its timer. */
  ejectedUntil: number | undefined;
  ejection: NodeJS.Timeout | undefined;
  /** Why it is out of service. */
  reason: EjectionReason | undefined;
  /** How often in succession; each takes longer than the one before. */
  ejections = 0;
  /** When it came back, by `performance.now()`; absent: long ago, or never away. */
  returnedAt: number | undefined;
  /** In a row. */
  failures = 0;
  serverErrors = 0;
  /** It was told that the last one in service is failing. */
  isSpared = false;
  /** DNS does not have it any more. */
  isDraining = false;
  lastCheck: EndpointSummary["lastCheck"] = null;
  readonly #settings: EndpointSettings;
  readonly #connect: buildConnector.connector;
  readonly #pool: Pool;
  /** For undici: the same with every request, which otherwise asks for the `Host` that the client has chosen. */
  readonly #serverName: string | undefined;
  #hasJustConnected = false;

  /** @param address of the name, where Coatcheck resolves it. */
  constructor(target: Target, settings: EndpointSettings, tls: UpstreamTls | undefined, address?: string) {
    this.target = target;
    this.#settings = settings;
    this.peer = address === undefined ? undefined : `${isIP(address) === 6 ? `[${address}]` : address}:${target.port}`;
    this.seed = hash32(this.peer ?? target.address);
    this.#serverName = target.scheme === "https" ? (tls?.serverName ?? target.host) : undefined;
    const options = {
      timeout: settings.connectTimeoutMs,
      allowH2: false,
      ...(address !== undefined && { lookup: lookupOf(address) }),
    };
    this.#connect = readOn(
      target.scheme === "https" ? tlsConnector(target.host, options, tls) : buildConnector(options),
    );
    this.#pool = new Pool(target.url, {
      connections: settings.maxConnections,
      pipelining: 1,
      connect: this.#connect,
      allowH2: false,
      headersTimeout: settings.firstByteTimeoutMs,
      bodyTimeout: settings.idleTimeoutMs,
      maxHeaderSize: MAX_RESPONSE_HEAD_BYTES,
    });
    this.#pool.on("connect", () => {
      this.#hasJustConnected = true;
      queueMicrotask(() => {
        this.#hasJustConnected = false;
      });
    });
  }

  get fullWeight(): number {
    return this.target.weight;
  }

  get weight(): number {
    return this.returnedAt === undefined ? this.target.weight : this.target.weight * this.share;
  }

  /** Of its weight, while it returns slowly: 0.1 to 1. */
  get share(): number {
    if (this.returnedAt === undefined) return 1;
    const share = (performance.now() - this.returnedAt) / this.#settings.slowStartMs;
    if (share < 1) return Math.max(FIRST_SHARE, share);
    this.returnedAt = undefined;
    return 1;
  }

  get isInService(): boolean {
    return this.isHealthy && this.ejectedUntil === undefined;
  }

  /** Whether another request may have a connection. */
  get isFree(): boolean {
    const { maxConnections, limitsWebSockets } = this.#settings;
    return this.active - (limitsWebSockets ? 0 : this.webSockets) < maxConnections;
  }

  /**
   * Whether the request that undici begins to send at this moment is the first one on its connection: undici has just told
   * of the connection, in the same turn, and begins with one request.
   */
  hasJustConnected(): boolean {
    const has = this.#hasJustConnected;
    this.#hasJustConnected = false;
    return has;
  }

  dispatch(options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): void {
    this.#pool.dispatch(this.#serverName === undefined ? options : withServerName(options, this.#serverName), handler);
  }

  /**
   * A request of our own, on a connection of its own: that it can be made is part of the answer.
   * @returns the status. @throws what undici says, or AbortError.
   */
  async ask(path: string, host: string, timeoutMs: number): Promise<number> {
    const client = new Client(this.target.url, {
      connect: this.#connect,
      allowH2: false,
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      maxHeaderSize: MAX_RESPONSE_HEAD_BYTES,
    });
    let isConnected = false;
    client.once("connect", () => {
      isConnected = true;
    });
    // undici's own timeouts of this length are up to half a second late, and a connection may take as long as any other's.
    const timeout = setTimeout(
      () => client.destroy(isConnected ? new errors.HeadersTimeoutError() : new errors.ConnectTimeoutError()),
      timeoutMs,
    );
    try {
      const request = {
        method: "GET" as const,
        path,
        headers: { host, "user-agent": "coatcheck-health-check", connection: "close" },
      };
      const { statusCode, body } = await client.request(
        this.#serverName === undefined ? request : withServerName(request, this.#serverName),
      );
      body.on("error", () => {});
      return statusCode;
    } finally {
      clearTimeout(timeout);
      await client.destroy();
    }
  }

  summary(): EndpointSummary {
    const { ejectedUntil, share } = this;
    return {
      peer: this.peer ?? null,
      state: this.#state(),
      share: Math.round(share * 100) / 100,
      active: this.active,
      failures: this.failures,
      serverErrors: this.serverErrors,
      reason: this.isInService ? null : (this.reason ?? null),
      until:
        ejectedUntil === undefined
          ? null
          : new Date(Date.now() + Math.max(0, ejectedUntil - performance.now())).toISOString(),
      lastCheck: this.lastCheck,
    };
  }

  #state(): EndpointSummary["state"] {
    if (this.isDraining) return "draining";
    if (this.ejectedUntil !== undefined) return "ejected";
    if (!this.isHealthy) return "unhealthy";
    return this.returnedAt === undefined ? "in-service" : "slow-start";
  }

  /** Lets the requests under way end, and takes no more. */
  async drain(): Promise<void> {
    clearTimeout(this.ejection);
    await this.#pool.close();
  }

  /** Ends the connections, those in use included. */
  async close(): Promise<void> {
    clearTimeout(this.ejection);
    await this.#pool.destroy();
  }
}

/** Answers with the address, in the form that it is asked for. */
function lookupOf(address: string): LookupFunction {
  const family = isIP(address);
  return (_hostname, { all }, callback) => {
    if (all) callback(null, [{ address, family }]);
    else callback(null, address, family);
  };
}

/** undici's types do not know of this option. */
function withServerName<Options extends object>(options: Options, servername: string): Options {
  const named: Options & { servername: string } = { ...options, servername };
  return named;
}

/**
 * Connects by the name in the configuration, whatever undici has in mind: the certificate is verified by it. An address is
 * verified as one, and not sent as a name (RFC 6066 §3).
 */
function tlsConnector(
  host: string,
  options: buildConnector.BuildOptions,
  tls: UpstreamTls | undefined,
): buildConnector.connector {
  const { ca, cert, key } = tls ?? {};
  const name = tls?.serverName ?? host.replace(/^\[|\]$/g, "");
  const connect = buildConnector({
    ...options,
    minVersion: "TLSv1.2",
    rejectUnauthorized: true, // whatever NODE_TLS_REJECT_UNAUTHORIZED says
    ...(ca && { ca }),
    ...(cert && { cert }),
    ...(key && { key }),
  });
  return isIP(name) === 0
    ? (init, callback) => connect({ ...init, servername: name }, callback)
    : ({ servername: _, ...init }, callback) => connect(init, callback);
}
