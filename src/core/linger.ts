import type { Socket } from "node:net";

/** How often a lingering connection is looked at; without an octet from one look to the next, it is over. Milliseconds. */
const LOOK_MS = 2_000;
/** Looks until it is over whatever still comes. */
const MOST_LOOKS = 15;
/** Octets that are read and dropped at most. */
const MOST_BYTES = 1024 * 1024 * 1024;

/**
 * Makes the end of the response that is being written to this socket a lingering one, where node would close it with
 * `destroySoon`. For a response after which no other request is read, and whose client may still be sending.
 */
export function lingerAtEnd(socket: Socket | null | undefined): void {
  if (socket) socket.destroySoon = endLingering;
}

/**
 * Closes in stages (RFC 9112 §9.6): first only the writing side; then what the client still sends is read and dropped, until
 * it closes too, is silent for two seconds or has gone on for thirty. Closed under what it sends, TCP would reset the
 * connection, and a reset takes along what the client has not read of the answer.
 */
export function endLingering(this: Socket): void {
  // Nobody parses it any more: what makes no sense in it would be refused, and the connection closed, a second time.
  this.removeAllListeners("data").on("data", drop);
  this.resume();
  // All of the answer first, at the pace of the client, which has a minute for each step as ever.
  this.end(() => {
    if (this.destroyed) return;
    const most = this.bytesRead + MOST_BYTES;
    let looks = 0;
    let seen = -1;
    const watch = setInterval(() => {
      const { bytesRead } = this;
      if (++looks === MOST_LOOKS || bytesRead === seen || bytesRead > most) this.destroy();
      seen = bytesRead;
    }, LOOK_MS).unref();
    this.once("close", () => clearInterval(watch));
  });
}

function drop(): void {}
