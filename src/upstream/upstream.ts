import { isIP } from "node:net";
import { buildConnector, type Dispatcher, Pool } from "undici";
import { readOn } from "./read-on.ts";

/** How the target of a route is spoken to over TLS. It is always verified: there is no option that turns that off. */
export interface UpstreamTls {
  /** PEM: whom to trust in place of the authorities that node knows. */
  readonly ca: Buffer | undefined;
  /** PEM: a certificate of our own and its key, for a target that asks for one. */
  readonly cert: Buffer | undefined;
  readonly key: Buffer | undefined;
  /** The name that is asked for and has to be in the target's certificate, where it is another than its host. */
  readonly serverName: string | undefined;
}

export interface UpstreamOptions {
  /** Scheme, host and port. */
  readonly target: string;
  readonly connectTimeoutMs: number;
  /** From the request to the head of the response. */
  readonly firstByteTimeoutMs: number;
  /** Between two pieces of content, in either direction. */
  readonly idleTimeoutMs: number;
  readonly tls?: UpstreamTls | undefined;
}

/** Connections to one target; a request beyond these waits for one to become free. */
export const MAX_CONNECTIONS = 1024;
const MAX_RESPONSE_HEAD_BYTES = 64 * 1024;

/** The application behind a route, and the connections to it. */
export class Upstream {
  /** `host:port`, from the configuration: safe as a label. */
  readonly address: string;
  readonly scheme: "http" | "https";
  readonly host: string;
  readonly port: number;
  readonly idleTimeoutMs: number;
  /** What it was made with. */
  readonly options: UpstreamOptions;
  readonly #pool: Pool;
  /** For undici: the same with every request, which otherwise asks for the `Host` that the client has chosen. */
  readonly #serverName: string | undefined;
  #hasJustConnected = false;

  constructor(options: UpstreamOptions) {
    const url = new URL(options.target);
    this.options = options;
    this.idleTimeoutMs = options.idleTimeoutMs;
    this.scheme = url.protocol === "https:" ? "https" : "http";
    this.host = url.hostname;
    this.port = url.port !== "" ? Number(url.port) : this.scheme === "https" ? 443 : 80;
    this.address = `${this.host}:${this.port}`;
    this.#serverName = this.scheme === "https" ? (options.tls?.serverName ?? this.host) : undefined;
    this.#pool = new Pool(options.target, {
      connections: MAX_CONNECTIONS,
      pipelining: 1,
      connect: readOn(
        this.scheme === "https"
          ? tlsConnector(this.host, options)
          : buildConnector({ timeout: options.connectTimeoutMs, allowH2: false }),
      ),
      allowH2: false,
      headersTimeout: options.firstByteTimeoutMs,
      bodyTimeout: options.idleTimeoutMs,
      maxHeaderSize: MAX_RESPONSE_HEAD_BYTES,
    });
    this.#pool.on("connect", () => {
      this.#hasJustConnected = true;
      queueMicrotask(() => {
        this.#hasJustConnected = false;
      });
    });
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

  /** Whether requests may go to this `host:port`. */
  isAt(address: string): boolean {
    return address === this.address;
  }

  /** Ends the connections, those in use included: whoever calls this has waited for the requests before. */
  async close(): Promise<void> {
    await this.#pool.destroy();
  }
}

/** undici's types do not know of this option. */
function withServerName(options: Dispatcher.DispatchOptions, servername: string): Dispatcher.DispatchOptions {
  const named: Dispatcher.DispatchOptions & { servername: string } = { ...options, servername };
  return named;
}

/**
 * Connects by the name in the configuration, whatever undici has in mind: the certificate is verified by it. An address is
 * verified as one, and not sent as a name (RFC 6066 §3).
 */
function tlsConnector(host: string, { connectTimeoutMs, tls }: UpstreamOptions): buildConnector.connector {
  const { ca, cert, key } = tls ?? {};
  const name = tls?.serverName ?? host.replace(/^\[|\]$/g, "");
  const connect = buildConnector({
    timeout: connectTimeoutMs,
    allowH2: false,
    minVersion: "TLSv1.2",
    rejectUnauthorized: true, // whatever NODE_TLS_REJECT_UNAUTHORIZED says
    ...(ca && { ca }),
    ...(cert && { cert }),
    ...(key && { key }),
  });
  return isIP(name) === 0
    ? (options, callback) => connect({ ...options, servername: name }, callback)
    : ({ servername: _, ...options }, callback) => connect(options, callback);
}
