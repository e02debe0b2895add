import { type Dispatcher, Pool } from "undici";

export interface UpstreamOptions {
  /** Scheme, host and port. */
  readonly target: string;
  readonly connectTimeoutMs: number;
  /** From the request to the head of the response. */
  readonly firstByteTimeoutMs: number;
  /** Between two pieces of content, in either direction. */
  readonly idleTimeoutMs: number;
}

/** Connections to one target; a request beyond these waits for one to become free. */
const MAX_CONNECTIONS = 1024;
const MAX_RESPONSE_HEAD_BYTES = 64 * 1024;

/** The application behind a route, and the connections to it. */
export class Upstream {
  /** `host:port`, from the configuration: safe as a label. */
  readonly address: string;
  readonly scheme: "http" | "https";
  readonly host: string;
  readonly port: number;
  readonly idleTimeoutMs: number;
  readonly #pool: Pool;

  constructor(options: UpstreamOptions) {
    const url = new URL(options.target);
    this.idleTimeoutMs = options.idleTimeoutMs;
    this.scheme = url.protocol === "https:" ? "https" : "http";
    this.host = url.hostname;
    this.port = url.port !== "" ? Number(url.port) : this.scheme === "https" ? 443 : 80;
    this.address = `${this.host}:${this.port}`;
    this.#pool = new Pool(options.target, {
      connections: MAX_CONNECTIONS,
      pipelining: 1,
      connect: { timeout: options.connectTimeoutMs },
      headersTimeout: options.firstByteTimeoutMs,
      bodyTimeout: options.idleTimeoutMs,
      maxHeaderSize: MAX_RESPONSE_HEAD_BYTES,
    });
  }

  dispatch(options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): void {
    this.#pool.dispatch(options, handler);
  }

  /** Ends the connections, those in use included: whoever calls this has waited for the requests before. */
  async close(): Promise<void> {
    await this.#pool.destroy();
  }
}
