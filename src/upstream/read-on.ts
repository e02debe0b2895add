import type { Socket } from "node:net";
import type { buildConnector } from "undici";

/** How long a connection that cannot be written to is read on, milliseconds: what it still has to say has been sent. */
const READ_ON_MS = 1_000;

type Done = (error?: Error | null) => void;

/**
 * Connects sockets whose failed write is told a moment late. A server that answers before it has read the request, and closes,
 * resets the connection under what is being sent; node would destroy the socket at once, and with it the answer that has
 * arrived. In that moment it is read: 413 and 401 beside an upload come this way.
 */
export function readOn(connect: buildConnector.connector): buildConnector.connector {
  return (options, callback) =>
    connect(options, (...result) => {
      // Of a failure undici does not say null, but nothing.
      if (result[1]) tellLate(result[1]);
      callback(...result);
    });
}

function tellLate(socket: Socket): void {
  const write = socket._write;
  const writeMany = socket._writev;
  let done: Done = () => {};
  // One for all writes: a stream has one under way, and the request path makes no closures.
  const written: Done = (error) => {
    if (error == null || socket.destroyed) {
      done(error);
      return;
    }
    const timer = setTimeout(() => done(error), READ_ON_MS);
    socket.once("close", () => {
      clearTimeout(timer);
      done(error);
    });
  };
  socket._write = (chunk, encoding, callback) => {
    done = callback;
    write.call(socket, chunk, encoding, written);
  };
  socket._writev = (chunks, callback) => {
    done = callback;
    writeMany?.call(socket, chunks, written);
  };
}
