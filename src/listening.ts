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

/** Before its deadline, a drain asks those to end that it would otherwise have waited for till then. */
const FAREWELL_MS = 1_000;

/** The sockets of a server, with those that node has let go of after a CONNECT. */
export class Connections {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #closeSessions: () => void;
  readonly #lastToGo: LastToGo | undefined;

  /** @param closeSessions tells clients on connections that are not node's to close that they are to go. */
  constructor(server: Server, closeSessions = () => {}, lastToGo?: LastToGo) {
    this.#server = server;
    this.#lastToGo = lastToGo;
    this.#closeSessions = closeSessions;
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  /** A connection becomes idle when its answer is out; one that has never said anything is idle too, also for Node 24. */
  #closeIdle(): void {
    this.#server.closeIdleConnections();
    // Again and again: a handshake that was under way may have ended since.
    this.#closeSessions();
    for (const socket of this.#sockets) if (socket.bytesRead === 0) socket.destroy();
    if (this.#lastToGo !== undefined && this.#lastToGo.open >= this.#sockets.size) this.#lastToGo.closeAll();
  }

  /** Stops accepting, waits for the requests in flight, and closes what is left when the time is over. */
  drain(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const deadline = setTimeout(() => {
        for (const socket of this.#sockets) socket.destroy();
      }, timeoutMs);
      const farewell = setTimeout(() => this.#lastToGo?.closeAll(), Math.max(0, timeoutMs - FAREWELL_MS));
      this.#closeSessions();
      const idle = setInterval(() => this.#closeIdle(), IDLE_CHECK_MS);
      // Also called, with an error that does not matter, when the server was not listening.
      this.#server.close(() => {
        clearTimeout(deadline);
        clearTimeout(farewell);
        clearInterval(idle);
        resolve();
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
