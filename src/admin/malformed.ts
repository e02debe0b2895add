import { type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { type ClientError, describeClientError, type Refusal } from "../core/client-error.ts";
import { endLingering } from "../core/linger.ts";

/**
 * Says in JSON what is wrong with a message that node would refuse by itself, with no word or with an empty answer.
 * @param answer for a request of which at least the head was understood.
 */
export function answerMalformed(
  server: Server,
  answer: (req: IncomingMessage, res: ServerResponse, refusal: Refusal) => void,
): void {
  /** Requests whose answer is not out, by their connection. */
  const running = new WeakMap<object, ServerResponse>();
  server.prependListener("request", (req, res) => {
    running.set(req.socket, res);
    res.once("close", () => {
      if (running.get(req.socket) === res) running.delete(req.socket);
    });
  });
  server.on("checkExpectation", (req, res) =>
    answer(req, res, { status: 417, message: "an expectation other than 100-continue" }),
  );
  server.on("connect", (_req: IncomingMessage, socket: Socket) => {
    // Node has let go of this socket: without a listener its error would end the process.
    socket.on("error", () => socket.destroy());
    writeRefusal(socket, { status: 405, message: "CONNECT is not for here" });
  });
  server.on("clientError", (error: ClientError, socket: Socket) => {
    const refusal = describeClientError(error);
    const res = running.get(socket);
    if (refusal === undefined || !socket.writable || res?.headersSent) socket.destroy();
    else if (res === undefined) writeRefusal(socket, refusal);
    else answer(res.req, res, refusal);
  });
}

function writeRefusal(socket: Socket, { status, message }: Refusal): void {
  const body = `${JSON.stringify({ error: message }, null, 2)}\n`;
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n${body}`,
  );
  endLingering.call(socket);
}
