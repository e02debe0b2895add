import { type IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { endLingering } from "./core/linger.ts";

/** What a client says before it is answered, octets; more than that is not read. */
const MAX_EARLY_BYTES = 64 * 1024;

/** Whether a request asks for a WebSocket in a way that can be granted. Anything else that it asks for is ignored (RFC 9110 §7.8). */
export function asksForWebSocket(req: Pick<IncomingMessage, "method" | "httpVersion" | "headers">): boolean {
  const isWebSocket = req.headers.upgrade?.toLowerCase() === "websocket";
  return isWebSocket && req.method === "GET" && req.httpVersion === "1.1" && !hasContent(req);
}

/** Whether content follows the head. */
export function hasContent({ headers }: Pick<IncomingMessage, "headers">): boolean {
  const { "content-length": length = "0" } = headers;
  return headers["transfer-encoding"] !== undefined || length !== "0";
}

/**
 * The client's side of an upgrade: a connection that node has let go of, on which one more response is possible: a 101,
 * or one like any other, after which the connection ends.
 */
export class ClientUpgrade {
  readonly res: ServerResponse;
  readonly #socket: Duplex;
  #early: Buffer[] = [];
  #earlyBytes = 0;
  #isOpen = false;

  /** @param head octets that came right behind the request. */
  constructor(req: IncomingMessage, socket: Duplex, head: Buffer) {
    this.res = new ServerResponse(req);
    this.res.shouldKeepAlive = false;
    this.#socket = socket;
    this.res.assignSocket(req.socket);
    this.res.once("finish", () => {
      if (!this.#isOpen) this.#refused(req.socket);
    });
    // Node does this for the connections that it has not let go of.
    socket.on("drain", this.#onDrain);
    // Without reading on, nobody would see that the client leaves.
    socket.on("data", this.#onEarly);
    socket.on("end", this.#onEnd);
    this.#keepEarly(head);
  }

  /** The client may have said more already, as if it were granted: closed under that, the answer would be lost. */
  #refused(socket: Socket): void {
    const { res } = this;
    socket.off("end", this.#onEnd);
    this.#early = [];
    res.detachSocket(socket);
    endLingering.call(socket);
    res.emit("close");
  }

  readonly #onDrain = (): void => void this.res.emit("drain");
  readonly #onEarly = (chunk: Buffer): void => this.#keepEarly(chunk);
  readonly #onEnd = (): void => void this.#socket.destroy();

  #keepEarly(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#early.push(chunk);
    this.#earlyBytes += chunk.length;
    if (this.#earlyBytes > MAX_EARLY_BYTES) this.#socket.pause();
  }

  /**
   * Sends the 101; `onOpen` is called when it is out, before the response closes.
   * @param fields names and values in turn.
   */
  open(fields: readonly string[], onOpen: (socket: Duplex) => void): void {
    const { res } = this;
    const socket = this.#socket;
    this.#isOpen = true;
    res.once("finish", () => {
      const connection = res.socket as NonNullable<typeof res.socket>;
      res.detachSocket(connection);
      // The server's own, for requests; a WebSocket may be silent for longer.
      connection.setTimeout(0);
      socket.off("drain", this.#onDrain);
      socket.off("data", this.#onEarly);
      socket.off("end", this.#onEnd);
      socket.pause();
      if (this.#early.length > 0) socket.unshift(Buffer.concat(this.#early));
      this.#early = [];
      onOpen(socket);
      socket.resume();
      res.emit("close");
    });
    res.writeHead(101, "Switching Protocols", [...fields, "connection", "Upgrade", "upgrade", "websocket"]);
    res.end();
  }
}
