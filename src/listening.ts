import type { Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { Server as TlsServer } from "node:tls";

/** Opening and closing of the two listeners. */

const IDLE_CHECK_MS = 50;

/** A port could not be taken; the message names it and the setting that chooses another. */
export class ListenError extends Error {
  override readonly name = "ListenError";
}

/** @throws ListenError when the port is taken or may not be used. */
export function open(
  server: Server,
  { host, port }: { host: string; port: number },
  setting: "listen" | "listen.tls.redirectFrom" | "admin",
): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const reason =
        error.code === "EADDRINUSE"
          ? "is in use by another program"
          : error.code === "EACCES"
            ? "may not be used without more rights"
            : `cannot be used (${error.message})`;
      reject(
        new ListenError(`port ${port} on ${host} ${reason}; choose another with ${setting}.port`, { cause: error }),
      );
    });
    server.listen(port, host, () => resolve());
  });
}

/** Connections that are in use for as long as both sides like, and that are asked to end when nothing else is left. */
export interface LastToGo {
  /** How many there are. */
  readonly open: number;
  closeAll(): void;
}

/** What is to be known of connections beyond their sockets, to end them in order. */
export interface ConnectionCare {
  /** Tells clients to go whose connections are not node's to close. Called again and again. */
  readonly leave?: () => void;
  /** The time is over: requests in flight end, with an answer where that is possible. @returns how many there were. */
  readonly cut?: () => number;
  readonly lastToGo?: LastToGo;
}

/** Before its deadline, a drain asks those to end that it would otherwise have waited for till then. */
const FAREWELL_MS = 1_000;
/** How long a client may go on sending after its answer is out, milliseconds. */
const LAST_LINGERING_MS = 1_000;
/** How long the last answers may take to go out. */
const LAST_ANSWERS_MS = 250;

/** The sockets of a server, with those that node has let go of after a CONNECT. */
export class Connections {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** TLS over them: what is underneath does not know whether all has been said. */
  readonly #encrypted = new Set<Socket>();
  readonly #care: ConnectionCare;
  /** Since when a connection has been seen with all said on our side, by `performance.now()`. */
  readonly #finished = new WeakMap<Socket, number>();

  constructor(server: Server, care: ConnectionCare = {}) {
    this.#server = server;
    this.#care = care;
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
    server.on("secureConnection", (socket: Socket) => {
      this.#encrypted.add(socket);
      socket.once("close", () => this.#encrypted.delete(socket));
    });
  }

  /** A connection becomes idle when its answer is out; one that has never said anything is idle too, also for Node 24. */
  #closeIdle(): void {
    this.#server.closeIdleConnections();
    // Again and again: a handshake that was under way may have ended since.
    this.#care.leave?.();
    for (const socket of this.#sockets) if (socket.bytesRead === 0 || this.#hasLingered(socket)) socket.destroy();
    for (const socket of this.#encrypted) if (this.#hasLingered(socket)) socket.destroy();
    const { lastToGo } = this.#care;
    if (lastToGo !== undefined && lastToGo.open >= this.#sockets.size) lastToGo.closeAll();
  }

  /** A client that sends on behind its last answer (`core/linger.ts`) does not hold up the end. */
  #hasLingered(socket: Socket): boolean {
    if (!socket.writableFinished) return false;
    const now = performance.now();
    const since = this.#finished.get(socket) ?? now;
    this.#finished.set(socket, since);
    return now - since > LAST_LINGERING_MS;
  }

  /** Ends what is left. @returns how many requests had not ended. */
  #cut(): number {
    const requests = this.#care.cut?.() ?? 0;
    const destroyAll = () => {
      for (const socket of this.#sockets) socket.destroy();
    };
    if (requests === 0) destroyAll();
    else setTimeout(destroyAll, LAST_ANSWERS_MS);
    return requests;
  }

  /**
   * Stops accepting, waits for the requests in flight, and closes what is left when the time is over.
   * @returns how many requests had not ended by then.
   */
  drain(timeoutMs: number): Promise<number> {
    return new Promise((resolve) => {
      let cut = 0;
      const deadline = setTimeout(() => {
        cut = this.#cut();
      }, timeoutMs);
      const farewell = setTimeout(() => this.#care.lastToGo?.closeAll(), Math.max(0, timeoutMs - FAREWELL_MS));
      this.#care.leave?.();
      const idle = setInterval(() => this.#closeIdle(), IDLE_CHECK_MS);
      // Also called, with an error that does not matter, when the server was not listening.
      this.#server.close(() => {
        clearTimeout(deadline);
        clearTimeout(farewell);
        clearInterval(idle);
        resolve(cut);
      });
    });
  }
}

export function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}

/** A URL by a name that works on this machine. */
export function urlOf(server: Server): string {
  const { address, port, family } = server.address() as AddressInfo;
  const host = address === "0.0.0.0" || address === "::" ? "localhost" : family === "IPv6" ? `[${address}]` : address;
  return `${server instanceof TlsServer ? "https" : "http"}://${host}:${port}`;
}
