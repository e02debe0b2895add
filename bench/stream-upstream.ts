/** The application for `throughput.ts`: 1 MiB down, anything up, and an echo of WebSocket messages. */
import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { endOnSignal } from "./end-on-signal.ts";

const BODY = Buffer.alloc(1024 * 1024, "x");

const server = createServer((req, res) => {
  req.resume();
  if (req.method === "GET") res.writeHead(200, { "content-length": BODY.length }).end(BODY);
  else
    req.once("end", () => {
      if (req.url === "/login") res.setHeader("x-session-start", '{"user":{"id":"1"}}');
      res.writeHead(200, { "content-length": 0 }).end();
    });
});
server.keepAliveTimeout = 600_000;
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket) => socket.on("message", (data) => socket.send(data, { binary: true })));
server.listen(Number(process.argv[2]), "127.0.0.1");

endOnSignal();
