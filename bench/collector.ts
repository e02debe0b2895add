import { createServer } from "node:http";
import { endOnSignal } from "./end-on-signal.ts";

/** Takes OTLP/HTTP and throws it away. `GET /` tells how many bytes came, so that nobody measures traces that were off. */

const [port] = process.argv.slice(2);

let bytes = 0;

createServer((req, res) => {
  if (req.method === "GET") {
    res.end(String(bytes));
    return;
  }
  req.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
  });
  req.on("end", () => res.writeHead(200, { "content-type": "application/json" }).end("{}"));
}).listen(Number(port), "127.0.0.1");

endOnSignal();
