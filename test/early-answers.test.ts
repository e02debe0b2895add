/**
 * Answers that end before the upload beside them does. A connection that is closed under what its client still sends is reset,
 * and the reset takes along what the client has not read. So it is closed in stages (RFC 9112 §9.6), and what comes in the
 * meantime is dropped. Most clients here send everything before they read anything, as simple ones do.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import type { RequestListener } from "node:http";
import { connect as connectTcp, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import t from "tap";
import { makeCertificate } from "./support/certificates.ts";
import { ask, until } from "./support/client.ts";
import { http2Connect } from "./support/http2-client.ts";
import { startGateway, startHttp, startUpstream, temporaryFolder } from "./support/servers.ts";

// Each has a gateway of its own, and one waits for a silence.
t.jobs = 4;

const MIB = 1024 * 1024;
/** More than the buffers of two sockets and a gateway hold. */
const UPLOAD = 16 * MIB;
/** Less than they hold: nobody reads it, and the application does not read the upload, until one of the two is all sent. */
const ANSWER = MIB;
const PIECE = Buffer.alloc(65_536, "x");

/** Applications that answer without having read the content. */
const APPLICATIONS: Record<string, RequestListener> = {
  "an answer with a length": (_req, res) => {
    res.writeHead(200, { "content-length": ANSWER });
    writeAll(res, ANSWER);
  },
  "an answer in chunks": (_req, res) => {
    res.writeHead(200);
    writeAll(res, ANSWER);
  },
  "a refusal that closes": (_req, res) => res.writeHead(413, { connection: "close" }).end("too large"),
  "a refusal that does not": (req, res) => {
    req.resume();
    res.writeHead(413).end("too large");
  },
};

function writeAll(stream: NodeJS.WritableStream, octets: number): void {
  let left = octets;
  const go = (): void => {
    for (; left > 0; left -= PIECE.length) {
      if (stream.write(PIECE)) continue;
      left -= PIECE.length;
      stream.once("drain", go);
      return;
    }
    stream.end();
  };
  go();
}

/** Sends a request, all of its content, and then reads. @returns how long the answer's content is, by its framing. */
async function sendThenRead(socket: Socket, head = ""): Promise<{ status: string; octets: number }> {
  const failed = once(socket, "error").then(([error]) => Promise.reject(error));
  socket.pause();
  socket.write(`POST /upload HTTP/1.1\r\nHost: localhost\r\n${head}Content-Length: ${UPLOAD}\r\n\r\n`);
  const sent = (async () => {
    for (let left = UPLOAD; left > 0; left -= PIECE.length) if (!socket.write(PIECE)) await once(socket, "drain");
    const pieces: Buffer[] = [];
    for await (const piece of socket) pieces.push(piece);
    socket.end();
    return Buffer.concat(pieces);
  })();
  const answer = await Promise.race([sent, failed]);
  const at = answer.indexOf("\r\n\r\n") + 4;
  const fields = answer.toString("latin1", 0, at);
  const content = answer.subarray(at);
  const chunked = /^transfer-encoding: chunked/im.test(fields);
  return { status: fields.slice(9, 12), octets: chunked ? lengthOfChunks(content) : content.length };
}

/** @throws Error where the last chunk is missing. */
function lengthOfChunks(content: Buffer): number {
  let octets = 0;
  for (let at = 0; ; ) {
    const end = content.indexOf("\r\n", at);
    const length = Number.parseInt(content.toString("latin1", at, end), 16);
    if (length === 0) return octets;
    if (!(length > 0)) throw new Error("cut short");
    octets += length;
    at = end + 2 + length + 2;
  }
}

for (const scheme of ["http", "https"] as const) {
  t.test(`${scheme}: whole, though the client reads it only after it has sent everything`, async (t) => {
    const folder = await temporaryFolder(t);
    const files = makeCertificate(folder, "own");
    const ca = readFileSync(files.cert);
    const listen = { host: "127.0.0.1", port: 0, ...(scheme === "https" && { tls: files }) };
    const opened = async (port: number): Promise<Socket> => {
      const socket =
        scheme === "http"
          ? connectTcp({ port, host: "127.0.0.1", allowHalfOpen: true })
          : connectTls({ port, host: "127.0.0.1", ca, servername: "localhost", allowHalfOpen: true } as object);
      await once(socket, scheme === "http" ? "connect" : "secureConnect");
      return socket;
    };
    for (const [name, application] of Object.entries(APPLICATIONS)) {
      const { port } = await startHttp(t, application);
      const gateway = await startGateway(t, { listen, upstream: `http://127.0.0.1:${port}` });
      for (let n = 0; n < 2; n++) {
        const { status, octets } = await sendThenRead(await opened(gateway.port));
        t.equal(status, name.startsWith("an answer") ? "200" : "413", name);
        t.equal(octets, status === "200" ? ANSWER : "too large".length, name);
      }
      const records = await gateway.exchanges();
      t.equal(records.length, 2);
      for (const { error, response } of records)
        t.match({ error, response }, { error: undefined, response: { source: "upstream", clientGone: false } });
    }
    const own = await startGateway(t, {
      listen,
      routes: [{ match: { path: "/" }, upstream: "http://127.0.0.1:9", session: "required" }],
    });
    for (let n = 0; n < 2; n++) {
      const { status, octets } = await sendThenRead(await opened(own.port));
      t.equal(status, "401");
      t.ok(octets > 0);
    }
  });
}

t.test(
  "what comes behind an upload that was answered early is no request, and a silent client is not waited for",
  async (t) => {
    const seen: string[] = [];
    const { port } = await startHttp(t, (req, res) => {
      seen.push(req.url ?? "");
      res.end("early");
    });
    const gateway = await startGateway(t, { upstream: `http://127.0.0.1:${port}` });
    const socket = connectTcp({ port: gateway.port, host: "127.0.0.1", allowHalfOpen: true });
    socket.on("error", () => {});
    socket.write("POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx");
    let answer = "";
    socket.setEncoding("latin1").on("data", (piece) => {
      answer += piece;
    });
    await once(socket, "end");
    t.match(answer, /^HTTP\/1\.1 200 OK\r\n[\s\S]*connection: close\r\n[\s\S]*early$/i);
    socket.write(`${"x".repeat(99_999)}GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    socket.write("GET /upgrade HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    // It keeps its side open, and is let go of: what it writes then is refused.
    const closed = new Promise((resolve) => socket.once("close", resolve));
    while (!socket.destroyed) {
      await Promise.race([closed, delay(5_000)]);
      socket.write("GET /third HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    t.same(seen, ["/upload"]);
    t.equal((await gateway.exchanges()).length, 1);
  },
);

t.test("HTTP/2: whole, then the stream ends without an error", async (t) => {
  const files = makeCertificate(await temporaryFolder(t), "own");
  for (const [name, application] of Object.entries(APPLICATIONS)) {
    const { port } = await startHttp(t, application);
    const listen = { host: "127.0.0.1", port: 0, tls: files };
    const gateway = await startGateway(t, { listen, upstream: `http://127.0.0.1:${port}` });
    const session = http2Connect(t, gateway.url, readFileSync(files.cert));
    for (let n = 0; n < 2; n++) {
      const stream = session.request({ ":method": "POST", ":path": "/upload" }, { endStream: false });
      stream.on("error", () => {});
      const push = (): void => {
        while (stream.writable && stream.write(PIECE));
      };
      stream.on("drain", push);
      push();
      let octets = 0;
      stream.on("data", (piece: Buffer) => {
        octets += piece.length;
      });
      await once(stream, "close");
      t.equal(octets, name.startsWith("an answer") ? ANSWER : "too large".length, name);
      t.equal(stream.rstCode, 0, name);
    }
  }
});

const HANDSHAKE =
  "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

t.test("refusals of what is no request reach a client that sends on, and nothing of that is read", async (t) => {
  const upstream = await startUpstream(t);
  const perAddress = { rate: "1/h", burst: 1 };
  const gateway = await startGateway(t, {
    routes: [
      { match: { path: "/" }, upstream: upstream.url, session: "optional" },
      { match: { path: "/members" }, upstream: upstream.url, session: "required" },
      { match: { path: "/once" }, upstream: upstream.url, session: "none", limits: { requests: { perAddress } } },
    ],
  });
  await ask(`${gateway.url}/once`);
  const smuggled = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const cases: [name: string, first: string, status: string][] = [
    ["a malformed field", "GET / HTTP/1.1\r\nHost: localhost\r\nno field\r\n\r\n", "400"],
    ["cookies that have piled up", `GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ${"c".repeat(40_000)}`, "431"],
    ["a target that is too long", `GET /${"t".repeat(40_000)}`, "414"],
    ["a malformed chunk", "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"],
    ["two Hosts", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n", "400"],
    ["a handshake of no version", `${HANDSHAKE}\r\n`, "426"],
    [
      "a handshake from elsewhere",
      `${HANDSHAKE}Sec-WebSocket-Version: 13\r\nOrigin: https://evil.example\r\n\r\n`,
      "403",
    ],
    ["a handshake of nobody", `${HANDSHAKE.replace(" / ", " /members ")}Sec-WebSocket-Version: 13\r\n\r\n`, "401"],
    ["a handshake too many", `${HANDSHAKE.replace(" / ", " /once ")}Sec-WebSocket-Version: 13\r\n\r\n`, "429"],
  ];
  let refused = 1;
  for (const [name, first, status] of cases) {
    const socket = connectTcp({ port: gateway.port, host: "127.0.0.1", allowHalfOpen: true });
    await once(socket, "connect");
    socket.on("error", () => {});
    socket.write(first);
    await until(async () => (await gateway.exchanges()).length > refused);
    refused++;
    // What makes no sense, what does, and more than anybody would keep of it.
    for (const piece of ["\0\0\0\0", smuggled.repeat(150), smuggled, Buffer.alloc(MIB, "x")]) {
      socket.write(piece);
      await delay(20);
    }
    let text = "";
    for await (const piece of socket.setEncoding("latin1")) text += piece;
    t.match(text, new RegExp(`^HTTP/1\\.1 ${status} `), name);
    t.match(text, /("traceId":"\w{32}"\}|<\/html>)\n$/, "all of it");
    t.equal(text.match(/HTTP\/1\.1/g)?.length, 1);
    if (status === "426") t.match(text, /^connection: upgrade, close\r$/m);
  }
  t.equal((await gateway.exchanges()).length, refused, "one record each");
  t.same(
    upstream.received.map(({ url }) => url),
    ["/once"],
  );
});
