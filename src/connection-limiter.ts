import type { Socket } from "node:net";
import type { ConnectionRefusal } from "./core/limits.ts";
import { networkOf, plainAddress, type TrustedProxies } from "./core/peer.ts";

/** File descriptors that are not for connections of clients: listeners, store, files, and some to spare. */
const SPARE_DESCRIPTORS = 128;
const MIN_AUTO_TOTAL = 64;

export interface ConnectionLimits {
  /** Connections at one time. */
  readonly total: number;
  /** Of one address, or one /64 of IPv6; 0: no limit. */
  readonly perAddress: number;
  /** Who connects for many, and is not held to `perAddress`. */
  readonly trusted: TrustedProxies;
}

export interface ConnectionLimiterOptions extends ConnectionLimits {
  readonly onRefused: (reason: ConnectionRefusal, address: string) => void;
}

/** Counts the connections of clients, whatever they speak, and says which are too many. */
export class ConnectionLimiter {
  readonly #onRefused: ConnectionLimiterOptions["onRefused"];
  #limits: ConnectionLimits;
  /** As many entries as there are connections at most. */
  readonly #byNetwork = new Map<string, number>();
  #open = 0;

  constructor(options: ConnectionLimiterOptions) {
    this.#onRefused = options.onRefused;
    this.#limits = options;
  }

  /** Other limits, for connections that come from now on. */
  adjust(limits: ConnectionLimits): void {
    this.#limits = limits;
  }

  get open(): number {
    return this.#open;
  }

  /** Counts a connection until it is closed. @returns whether it may stay; otherwise it has been closed. */
  admit(socket: Socket): boolean {
    const { total, perAddress, trusted } = this.#limits;
    if (this.#open >= total) return this.#refuse(socket, "total");
    const address = plainAddress(socket.remoteAddress ?? "");
    const network = networkOf(address);
    const before = this.#byNetwork.get(network) ?? 0;
    if (perAddress > 0 && before >= perAddress && !trusted.includes(address)) return this.#refuse(socket, "address");
    this.#open++;
    this.#byNetwork.set(network, before + 1);
    socket.once("close", () => {
      this.#open--;
      const left = (this.#byNetwork.get(network) ?? 1) - 1;
      if (left > 0) this.#byNetwork.set(network, left);
      else this.#byNetwork.delete(network);
    });
    return true;
  }

  #refuse(socket: Socket, reason: ConnectionRefusal): false {
    const address = plainAddress(socket.remoteAddress ?? "");
    socket.on("error", () => {});
    // A reset: with an orderly end, it is we who would remember the connection for a minute.
    socket.resetAndDestroy();
    this.#onRefused(reason, address);
    return false;
  }
}

/**
 * How many clients there is room for, beside the connections upstream.
 * @param descriptors that the process may have; `undefined` where nobody says.
 * @param upstreamConnections that there can be at most.
 */
export function autoTotal(descriptors: number | undefined, upstreamConnections: number): number {
  if (descriptors === undefined || !Number.isFinite(descriptors)) return Number.POSITIVE_INFINITY;
  const reserved = SPARE_DESCRIPTORS + Math.min(upstreamConnections, Math.floor(descriptors / 2));
  return Math.max(MIN_AUTO_TOTAL, descriptors - reserved);
}
