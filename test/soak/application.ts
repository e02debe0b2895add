/** The application of the soak, a process that is killed and comes back: `node application.ts PORT`. */
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const SMALL = "x".repeat(1024);
const LARGE = Buffer.alloc(512 * 1024, "y");
const EVENT_MS = 100;

const server = createServer(async (req, res) => {
  try {
    const hash = createHash("sha256");
    let text = "";
    for await (const piece of req) {
      hash.update(piece);
      if (req.url === "/login") text += piece;
    }
    res.setHeader("x-user", req.headers["x-user-id"] ?? "");
    if (req.url === "/login") res.setHeader("x-session-start", text).end();
    else if (req.url === "/upload") res.end(hash.digest("hex"));
    else if (req.url === "/download") res.end(LARGE);
    else if (req.url === "/events") {
      res.setHeader("content-type", "text/event-stream");
      const timer = setInterval(() => res.write(`data: ${Date.now()}\n\n`), EVENT_MS);
      res.once("close", () => clearInterval(timer));
    } else res.end(SMALL);
  } catch {
    res.destroy();
  }
});
const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
server.keepAliveTimeout = 2_000;
server.listen(Number(process.argv[2]), "127.0.0.1");
