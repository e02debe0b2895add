/**
 * A small application with what people do in a browser: they sign in, upload a file and download it, see news as they
 * come (server-sent events), and talk (a WebSocket). It knows nothing of Coatcheck but the headers.
 */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { WebSocketServer } from "ws";
import { freePort, type Teardown } from "./resources.ts";

export interface NoticeBoard {
  readonly url: string;
  /** Octets of what was uploaded last. */
  readonly file: () => Buffer;
  /** Who is being told the news now: the `Last-Event-ID` of each. */
  readonly listeners: () => readonly string[];
  /** Tells everybody who listens. */
  tell(id: number, text: string): void;
  /** Ends the streams of news, as an application does that is deployed anew. */
  endStreams(): void;
  readonly sockets: () => number;
  /** Goes away, with all its connections. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

const PAGE = (name: string) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>Notice board</title>
<h1>Hello, ${name}</h1>
<form action="/upload" method="post" enctype="multipart/form-data"><input type="file" name="file"><button>Upload</button></form>
<a href="/file" download="photo.bin">Download</a>
<ul id="news"></ul><p id="stream"></p><ul id="talk"></ul><p id="notice"></p>
<script>
const add = (id, text) => { const li = document.createElement("li"); li.textContent = text; document.getElementById(id).append(li); };
const news = new EventSource("/news");
news.onopen = () => { document.getElementById("stream").textContent = "listening"; };
news.onerror = () => { document.getElementById("stream").textContent = "not listening"; };
news.onmessage = ({ data }) => add("news", data);
const talk = new WebSocket(location.origin.replace("http", "ws") + "/talk");
talk.onopen = () => talk.send("hello");
talk.onmessage = ({ data }) => add("talk", data);
talk.onclose = ({ code, reason }) => {
  document.getElementById("notice").textContent = code + " " + reason;
  sessionStorage.closed = code + " " + reason;
  // The session has ended: whoever asks again is sent to sign in.
  if (code === 1008) location.reload();
};
window.say = (text) => talk.send(text);
</script></html>`;

const LOGIN = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<form method="post"><input name="user"><button>Sign in</button></form></html>`;

export async function startNoticeBoard(t: Teardown): Promise<NoticeBoard> {
  const port = await freePort();
  const streams = new Map<ServerResponse, string>();
  let file: Buffer = Buffer.alloc(0);

  const respond = async (req: IncomingMessage, res: ServerResponse): Promise<void> => {
    const { method, url } = req;
    const content = await read(req);
    res.setHeader("content-type", "text/html; charset=utf-8");
    if (method === "POST" && url === "/login") {
      const id = new URLSearchParams(content.toString()).get("user") ?? "";
      res.setHeader("x-session-start", JSON.stringify({ user: { id, name: id } }));
      res.writeHead(303, { location: "/" }).end();
    } else if (method === "POST" && url === "/upload") {
      file = fileOf(content);
      const hash = createHash("sha256").update(file).digest("hex");
      res.end(`<!doctype html><title>Uploaded</title><p id="hash">${hash}</p>`);
    } else if (url === "/login") res.end(LOGIN);
    else if (url === "/") res.end(PAGE(String(req.headers["x-user-name"])));
    else if (url === "/file") res.writeHead(200, { "content-type": "application/octet-stream" }).end(file);
    else if (url === "/news") {
      res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
      res.write("retry: 50\n\n");
      streams.set(res, String(req.headers["last-event-id"] ?? ""));
      res.once("close", () => streams.delete(res));
    } else res.writeHead(404).end();
  };

  const server = createServer((req, res) => void respond(req, res).catch(() => res.destroy()));
  const talk = new WebSocketServer({ server });
  talk.on("error", () => {});
  talk.on("connection", (socket, req) => {
    socket.on("error", () => {});
    socket.on("message", (data) => {
      for (const other of talk.clients) other.send(`${req.headers["x-user-name"]}: ${data}`);
    });
  });
  const start = async (): Promise<void> => {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
  };
  const stop = async (): Promise<void> => {
    if (!server.listening) return;
    for (const socket of talk.clients) socket.terminate();
    const closed = once(server, "close");
    server.close();
    server.closeAllConnections();
    await closed;
  };
  await start();
  t.teardown(stop);
  return {
    url: `http://127.0.0.1:${port}`,
    file: () => file,
    listeners: () => [...streams.values()],
    tell: (id, text) => {
      for (const stream of streams.keys()) stream.write(`id: ${id}\ndata: ${text}\n\n`);
    },
    endStreams: () => {
      for (const stream of streams.keys()) stream.end();
    },
    sockets: () => talk.clients.size,
    stop,
    start,
  };
}

async function read(req: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of req) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

/** The one file of a `multipart/form-data` (RFC 7578). */
function fileOf(content: Buffer): Buffer {
  const boundary = content.subarray(0, content.indexOf("\r\n"));
  return content.subarray(content.indexOf("\r\n\r\n") + 4, content.lastIndexOf(`\r\n${boundary}`));
}
