import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { COUNT_PATH, ECHO_PATH, type Echo, ITEM_BODY, LOGIN_PATH } from "./answers.ts";
import { endOnSignal } from "./end-on-signal.ts";

/** The application behind every peer: a small JSON answer, a login, and an echo that the checks look at. */

const [port] = process.argv.slice(2);

const ITEM_FIELDS = [
  ["Content-Type", "application/json; charset=utf-8"],
  ["Content-Length", String(Buffer.byteLength(ITEM_BODY))],
  ["Cache-Control", "private, no-cache"],
  ["ETag", '"5f3a-18c2e0b7d40"'],
  ["Vary", "Accept-Encoding"],
].flat();

let items = 0;

const server = createServer((req, res) => {
  if (req.url === COUNT_PATH) {
    res.end(String(items));
    return;
  }
  const handler = req.url === ECHO_PATH ? echo : req.url === LOGIN_PATH ? logIn : undefined;
  if (handler === undefined) {
    items++;
    res.writeHead(200, ITEM_FIELDS).end(ITEM_BODY);
  } else
    read(req).then(
      (content) => handler(req, res, content),
      () => res.destroy(),
    );
});
// Longer than a peer rests between rounds: nobody is to meet a connection that closes.
server.keepAliveTimeout = 600_000;
server.listen(Number(port), "127.0.0.1");

endOnSignal();

function echo(req: IncomingMessage, res: ServerResponse, content: Buffer): void {
  const contentHash = createHash("sha256").update(content).digest("hex");
  const answer: Echo = { rawHeaders: req.rawHeaders, contentHash };
  res.writeHead(200, ["content-type", "application/json"]).end(JSON.stringify(answer));
}

/** The content is the user. */
function logIn(_req: IncomingMessage, res: ServerResponse, content: Buffer): void {
  res.writeHead(204, ["X-Session-Start", `{"user":${content.toString("latin1")}}`]).end();
}

async function read(req: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of req) chunks.push(chunk);
  return Buffer.concat(chunks);
}
