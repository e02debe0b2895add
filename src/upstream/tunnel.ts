import type { Duplex } from "node:stream";
import { CLOSE_CODES, closeFrame, FrameTracker, type WebSocketCloseReason } from "../core/websocket.ts";

/** How long the two sides may take to end after a close frame of ours, or after the client has gone. */
const CLOSE_TIMEOUT_MS = 2_000;
/** How long one side may go on after the other has said all that it has to say. */
const HALF_CLOSED_TIMEOUT_MS = 30_000;

/** What a close frame says beside its code. */
const CLOSE_WORDS: Readonly<Record<keyof typeof CLOSE_CODES, string>> = {
  idle: "idle timeout",
  "route-changed": "route changed",
  shutdown: "going away",
  "session-ended": "session ended",
  "session-expired": "session expired",
};

export interface TunnelOptions {
  readonly client: Duplex;
  readonly upstream: Duplex;
  readonly idleTimeoutMs: number;
  /** Called once, when both sides have ended. */
  readonly onClosed: (reason: WebSocketCloseReason) => void;
}

/** One of the two sides, and what it says. */
interface Side {
  readonly socket: Duplex;
  readonly frames: FrameTracker;
  bytes: number;
}

/**
 * An open WebSocket: passes octets on, both ways, at the pace of the slower side, and follows the frames, so that it can
 * be ended between two of them.
 */
export class Tunnel {
  readonly #client: Side;
  readonly #upstream: Side;
  readonly #options: TunnelOptions;
  readonly #idle: NodeJS.Timeout;
  #deadline: NodeJS.Timeout | undefined;
  /** Whose doing the end is: the first who said so. */
  #reason: WebSocketCloseReason | undefined;
  /** Set when the end is ours to say, as soon as no frame is half said. */
  #farewell: keyof typeof CLOSE_CODES | undefined;
  #isOver = false;

  constructor(options: TunnelOptions) {
    const { client, upstream, idleTimeoutMs } = options;
    this.#options = options;
    this.#client = { socket: client, frames: new FrameTracker(), bytes: 0 };
    this.#upstream = { socket: upstream, frames: new FrameTracker(), bytes: 0 };
    this.#idle = setTimeout(() => this.close("idle"), idleTimeoutMs);
    this.#relay(this.#client, this.#upstream, "client");
    this.#relay(this.#upstream, this.#client, "upstream");
    if (upstream.closed) this.#lost(this.#upstream, this.#client, "upstream");
    if (client.closed) this.#lost(this.#client, this.#upstream, "client");
  }

  /** Octets from the client. */
  get bytesIn(): number {
    return this.#client.bytes;
  }

  /** Octets from the application. */
  get bytesOut(): number {
    return this.#upstream.bytes;
  }

  /** Frames of messages from the client: what a browser answers to a ping by itself is none. */
  get messageFramesIn(): number {
    return this.#client.frames.messageFrames;
  }

  #relay(from: Side, to: Side, reason: "client" | "upstream"): void {
    from.socket.on("data", (chunk: Buffer) => this.#pass(from, to, chunk, reason));
    to.socket.on("drain", () => from.socket.resume());
    from.socket.on("error", () => from.socket.destroy());
    from.socket.once("end", () => {
      this.#reason ??= reason;
      to.socket.end();
      this.#expectEnd(HALF_CLOSED_TIMEOUT_MS);
    });
    from.socket.once("close", () => this.#lost(from, to, reason));
  }

  #lost(from: Side, to: Side, reason: "client" | "upstream"): void {
    this.#reason ??= reason;
    if (!to.socket.writableEnded) to.socket.end();
    // Nobody is left to pass its words on to.
    to.socket.resume();
    this.#expectEnd(from === this.#client ? CLOSE_TIMEOUT_MS : HALF_CLOSED_TIMEOUT_MS);
    if (to.socket.closed) this.#end();
  }

  #pass(from: Side, to: Side, chunk: Buffer, reason: "client" | "upstream"): void {
    this.#idle.refresh();
    if (this.#farewell !== undefined) {
      // Only the frame that is half said is passed on yet.
      if (from.frames.atBoundary || to.socket.writableEnded) return;
      const rest = chunk.subarray(0, from.frames.read(chunk, true));
      from.bytes += rest.length;
      if (!to.socket.write(rest)) from.socket.pause();
      this.#sayFarewell();
      return;
    }
    from.bytes += chunk.length;
    from.frames.read(chunk);
    if (from.frames.sawClose) this.#reason ??= reason;
    if (to.socket.writable && !to.socket.write(chunk)) from.socket.pause();
  }

  /** Ends it with a close frame to both sides, each between two frames; within two seconds in any case. */
  close(reason: keyof typeof CLOSE_CODES): void {
    if (this.#farewell !== undefined || this.#isOver) return;
    this.#reason ??= reason;
    this.#farewell = reason;
    this.#expectEnd(CLOSE_TIMEOUT_MS);
    this.#sayFarewell();
  }

  /** Cuts it off. */
  destroy(): void {
    this.#client.socket.destroy();
    this.#upstream.socket.destroy();
  }

  #sayFarewell(): void {
    this.#endBetweenFrames(this.#upstream, this.#client, false);
    this.#endBetweenFrames(this.#client, this.#upstream, true);
  }

  /** @param from whose words go to the side that is to end. @param masked as it has to be towards an application. */
  #endBetweenFrames(from: Side, to: Side, masked: boolean): void {
    if (this.#farewell === undefined || to.socket.writableEnded || !from.frames.atBoundary) return;
    if (from.frames.sawClose) to.socket.end();
    else to.socket.end(closeFrame(CLOSE_CODES[this.#farewell], CLOSE_WORDS[this.#farewell], masked));
    from.socket.resume();
  }

  #expectEnd(withinMs: number): void {
    if (this.#isOver) return;
    if (withinMs === HALF_CLOSED_TIMEOUT_MS && this.#deadline !== undefined) return;
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.destroy(), withinMs);
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#idle);
    clearTimeout(this.#deadline);
    this.#options.onClosed(this.#reason ?? "upstream");
  }
}
