/** A TCP proxy with the faults of real networks, switched on and off while connections live. */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { freePort, type Teardown } from "./resources.ts";

export type Direction = "toServer" | "toClient";

/** All switches act on the connections that are there and on those that come. */
export interface TcpProxy {
  readonly port: number;
  /** Delivered so far. */
  readonly bytes: Readonly<Record<Direction, number>>;
  /** Connections of clients that are open now. */
  readonly open: number;
  /** Connections of clients since the start. */
  readonly accepted: number;
  /** Latency each way, from 0. */
  delay(ms: number): void;
  /** Delivers in pieces of so many bytes, one every `ms`; `drip(0, 0)` ends it. */
  drip(bytes: number, ms: number): void;
  /**
   * Half-open: nothing is delivered any more, and neither side learns that the other has gone. New connections are
   * accepted and get no answer.
   */
  stall(only?: Direction): void;
  /** Ends the stall. `deliver: false` resets the connections instead of delivering what was held back. */
  resume(options?: { readonly deliver: boolean }): void;
  /** Resets all connections at once (RST, both sides). */
  cut(): void;
  /** New connections are refused; those that are there go on. */
  refuse(): void;
  /** Listens again, on the same port. */
  accept(): Promise<void>;
}

/** Held back for each direction of a connection; beyond it the sender is no longer read from. */
const MAX_HELD_BYTES = 1024 * 1024;

/** @param targetPort on loopback; nobody needs to listen there yet. */
export async function startProxy(t: Teardown, targetPort: number): Promise<TcpProxy> {
  const port = await freePort();
  const faults = new Faults();
  const connections = new Set<readonly [Socket, Socket]>();
  const bytes = { toServer: 0, toClient: 0 };
  let accepted = 0;
  let server: Server | undefined;

  const join = (client: Socket) => {
    accepted++;
    const target = connect({ port: targetPort, host: "127.0.0.1", noDelay: true, allowHalfOpen: true });
    const pair = [client, target] as const;
    connections.add(pair);
    client.once("close", () => connections.delete(pair));
    for (const [direction, from, to] of [
      ["toServer", client, target],
      ["toClient", target, client],
    ] as const) {
      const deliver = (piece: Buffer) => {
        bytes[direction] += piece.length;
      };
      carry(from, to, { direction, faults, deliver });
    }
  };
  const cut = () => {
    for (const [client, target] of connections) {
      client.resetAndDestroy();
      target.resetAndDestroy();
    }
    connections.clear();
  };
  const refuse = () => {
    server?.close();
    server = undefined;
  };
  const accept = async () => {
    if (server !== undefined) return;
    server = createServer({ noDelay: true, allowHalfOpen: true }, join).listen(port, "127.0.0.1");
    await once(server, "listening");
  };

  await accept();
  t.teardown(() => {
    refuse();
    cut();
    faults.set({ stalled: [] });
  });
  return {
    port,
    bytes,
    get open() {
      return connections.size;
    },
    get accepted() {
      return accepted;
    },
    delay: (delayMs) => faults.set({ delayMs }),
    drip: (pieceBytes, pieceMs) => faults.set({ pieceBytes, pieceMs }),
    stall: (only) => faults.set({ stalled: only === undefined ? ["toServer", "toClient"] : [only] }),
    resume: ({ deliver } = { deliver: true }) => {
      if (!deliver) cut();
      faults.set({ stalled: [] });
    },
    cut,
    refuse,
    accept,
  };
}

interface Weather {
  readonly delayMs: number;
  /** 0: whatever there is at once. */
  readonly pieceBytes: number;
  readonly pieceMs: number;
  readonly stalled: readonly Direction[];
}

/** What the network is like at the moment. */
class Faults {
  now: Weather = { delayMs: 0, pieceBytes: 0, pieceMs: 0, stalled: [] };
  #changed = Promise.withResolvers<void>();

  set(changes: Partial<Weather>): void {
    this.now = { ...this.now, ...changes };
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  async passable(direction: Direction): Promise<void> {
    while (this.now.stalled.includes(direction)) await this.#changed.promise;
  }
}

interface Carrying {
  readonly direction: Direction;
  readonly faults: Faults;
  readonly deliver: (piece: Buffer) => void;
}

/** Hands on what one side says to the other: bytes, its end (FIN), and that it broke off (RST), in this order. */
function carry(from: Socket, to: Socket, { direction, faults, deliver }: Carrying): void {
  let heldBytes = 0;
  let before: Promise<unknown> = Promise.resolve();
  /** One after the other, each after its delay. */
  const inTurn = (act: () => unknown) => {
    const due = performance.now() + faults.now.delayMs;
    before = before.then(async () => {
      const remainingMs = due - performance.now();
      if (remainingMs > 0) await elapsed(remainingMs);
      await faults.passable(direction);
      await act();
    });
  };
  const write = (piece: Buffer) =>
    new Promise<void>((resolve) => {
      if (to.destroyed) return resolve();
      deliver(piece);
      to.write(piece, () => resolve());
    });

  from.on("data", (data: Buffer) => {
    heldBytes += data.length;
    if (heldBytes > MAX_HELD_BYTES) from.pause();
    inTurn(async () => {
      for (let at = 0; at < data.length && !to.destroyed; ) {
        const { pieceBytes, pieceMs } = faults.now;
        const piece = data.subarray(at, pieceBytes > 0 ? at + pieceBytes : undefined);
        await write(piece);
        at += piece.length;
        if (pieceBytes > 0) await elapsed(pieceMs);
        await faults.passable(direction);
      }
      heldBytes -= data.length;
      if (heldBytes <= MAX_HELD_BYTES) from.resume();
    });
  });
  from.on("end", () => inTurn(() => to.end()));
  from.on("error", () => inTurn(() => to.resetAndDestroy()));
  from.on("close", () => inTurn(() => to.destroySoon()));
}

function elapsed(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
