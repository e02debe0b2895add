/** What a client sees, and what the record says, when the application fails or the client goes away. */
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect, type Socket } from "node:net";
import t from "tap";
import { ask, raw, until } from "./support/client.ts";
import {
  freePort,
  type RunningGateway,
  startGateway,
  startHttp,
  startTcp,
  startUpstream,
  type Teardown,
} from "./support/servers.ts";

const timeouts = { connect: "200ms", firstByte: "200ms", idle: "200ms" };
const routeTo = (url: string) => ({ routes: [{ upstream: { targets: [url], timeouts }, session: "none" }] });

/** The gateway in front of an upstream at the level of bytes. */
async function inFrontOf(test: Test, onConnection: (socket: Socket) => void): Promise<RunningGateway> {
  const upstream = await startTcp(test, onConnection);
  return startGateway(test, routeTo(upstream.url));
}

type Test = Teardown & Pick<typeof t, "equal" | "match" | "notMatch">;

/** Status, `Proxy-Status`, log, metric and recorder name the same failure. */
async function expectFailure(test: Test, gateway: RunningGateway, error: string, status: number): Promise<void> {
  const exchange = await until(async () => (await gateway.exchanges("errors"))[0]);
  test.equal(exchange.error?.type, error);
  test.equal(exchange.response.status, status);
  test.match(gateway.logs.at(-1), { "error.type": error, "http.response.status_code": status, event: "http.access" });
  const metrics = await gateway.metrics();
  test.match(metrics, new RegExp(`^http_server_request_duration_seconds_count\\{.*error_type="${error}".*\\} 1$`, "m"));
  test.match(metrics, new RegExp(`^http_client_request_duration_seconds_count\\{.*error_type="${error}".*\\} 1$`, "m"));
}

async function expectAnswer(test: Test, gateway: RunningGateway, error: string, status: number): Promise<void> {
  const reply = await ask(gateway.url);
  test.equal(reply.status, status);
  test.equal(reply.headers["proxy-status"], `coatcheck; error=${error}`);
  test.match(JSON.parse(reply.body), { status, error, traceId: /^[0-9a-f]{32}$/ });
  test.notMatch(reply.body, /127\.0\.0\.1|node_modules|\bat\b/, "no address and no stack");
  await expectFailure(test, gateway, error, status);
}

t.test("refused", async (t) => {
  const gateway = await startGateway(t, routeTo(`http://127.0.0.1:${await freePort()}`));
  await expectAnswer(t, gateway, "connection_refused", 502);
});

t.test("a name that does not resolve", async (t) => {
  const gateway = await startGateway(t, routeTo("http://does-not-exist.invalid:80"));
  await expectAnswer(t, gateway, "dns_error", 502);
});

t.test("reset before the first byte", async (t) => {
  const gateway = await inFrontOf(t, (socket) => socket.once("data", () => socket.resetAndDestroy()));
  await expectAnswer(t, gateway, "connection_terminated", 502);
});

t.test("closed before the first byte", async (t) => {
  const gateway = await inFrontOf(t, (socket) => socket.once("data", () => socket.end()));
  await expectAnswer(t, gateway, "connection_terminated", 502);
});

t.test("silent", async (t) => {
  const gateway = await inFrontOf(t, () => {});
  await expectAnswer(t, gateway, "http_response_timeout", 504);
});

const notHttp: Record<string, string> = {
  "not HTTP": "SSH-2.0-OpenSSH_9.2\r\n",
  "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
  "length and chunks": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
  "a space before the colon": "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
  "status 000": "HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n",
  "a length that no number holds": "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\nx",
  "chunked twice": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
  "a coding that is not chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
  "status 600": "HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n",
  "unasked 101": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
  "interim responses without end": "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50),
};
for (const [name, octets] of Object.entries(notHttp)) {
  t.test(`malformed: ${name}`, async (t) => {
    const gateway = await inFrontOf(t, (socket) => socket.once("data", () => socket.end(octets)));
    const reply = await ask(gateway.url);
    t.equal(reply.status, 502);
    t.match(reply.headers["proxy-status"], /^coatcheck; error=(http_protocol_error|connection_terminated)$/);
    t.equal((await gateway.exchanges("errors")).length, 1);
  });
}

t.test("a head that is too large", async (t) => {
  const octets = `HTTP/1.1 200 OK\r\nX: ${"x".repeat(70_000)}\r\nContent-Length: 0\r\n\r\n`;
  const gateway = await inFrontOf(t, (socket) => socket.once("data", () => socket.end(octets)));
  await expectAnswer(t, gateway, "http_response_header_section_size", 502);
});

const cutShort: Record<string, [head: string, end: (socket: Socket) => void, error: string]> = {
  "reset after the first byte": [
    "Content-Length: 100",
    (socket) => socket.resetAndDestroy(),
    "http_response_incomplete",
  ],
  "closed in the middle of a length": ["Content-Length: 100", (socket) => socket.end(), "http_response_incomplete"],
  "closed in the middle of chunks": [
    "Transfer-Encoding: chunked",
    (socket) => socket.end(),
    "http_response_incomplete",
  ],
  "silent in the middle": ["Content-Length: 100", () => {}, "connection_read_timeout"],
};
for (const [name, [field, end, error]] of Object.entries(cutShort)) {
  t.test(`a response cut short is seen as cut short: ${name}`, async (t) => {
    const piece = field.startsWith("Transfer") ? "5\r\nhello\r\n" : "hello";
    const gateway = await inFrontOf(t, (socket) =>
      socket.once("data", () => socket.write(`HTTP/1.1 200 OK\r\n${field}\r\n\r\n${piece}`, () => end(socket))),
    );
    await t.rejects(ask(gateway.url), { code: "ECONNRESET" });
    await expectFailure(t, gateway, error, 200);
  });
}

t.test("a slow response is not cut: only silence is", async (t) => {
  const { port } = await startHttp(t, async (_req, res) => {
    for (let i = 0; i < 6; i++) {
      res.write("x");
      await new Promise((resolve) => setTimeout(resolve, 60));
    }
    res.end();
  });
  const gateway = await startGateway(t, routeTo(`http://127.0.0.1:${port}`));
  t.equal((await ask(gateway.url)).body, "xxxxxx");
});

t.test("a failed upload is answered, and the client's connection is not torn", async (t) => {
  const gateway = await startGateway(t, routeTo(`http://127.0.0.1:${await freePort()}`));
  const reply = await ask(gateway.url, { method: "POST", body: "x".repeat(1000) });
  t.equal(reply.status, 502);
});

t.test("an upstream that answers without reading the upload", async (t) => {
  const gateway = await inFrontOf(t, (socket) =>
    socket.once("data", () => socket.write("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")),
  );
  const reply = await raw(gateway.port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome");
  t.match(reply, /^HTTP\/1.1 413 /);
  t.match(reply, /connection: close/i, "what is left of the content is no request");
});

t.test("a client that goes away before the answer ends the upstream request: 499, no error, no strike", async (t) => {
  const gone = Promise.withResolvers<void>();
  const asked = Promise.withResolvers<void>();
  const { port } = await startHttp(t, (req) => {
    req.socket.once("close", () => gone.resolve());
    asked.resolve();
  });
  const gateway = await startGateway(t, { routes: [{ upstream: `http://127.0.0.1:${port}`, session: "none" }] });
  const client = connect(gateway.port, "127.0.0.1");
  client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await asked.promise;
  client.destroy();
  await gone.promise;
  const exchange = await until(async () => (await gateway.exchanges())[0]);
  t.match(exchange, { response: { status: 499, clientGone: true } });
  t.equal(exchange.error, undefined);
  t.same(await gateway.exchanges("errors"), []);
});

t.test("a client that goes away during an upload or a download frees the upstream connection", async (t) => {
  for (const kind of ["upload", "download"]) {
    const gone = Promise.withResolvers<void>();
    const begun = Promise.withResolvers<void>();
    const { port } = await startHttp(t, (req, res) => {
      req.socket.once("close", () => gone.resolve());
      if (kind === "download") {
        const write = (): void => {
          while (!res.destroyed && res.write(Buffer.alloc(65_536)));
          res.once("drain", write);
        };
        write();
      }
      req.once(kind === "upload" ? "data" : "pause", () => begun.resolve());
      if (kind === "download") begun.resolve();
    });
    const gateway = await startGateway(t, { routes: [{ upstream: `http://127.0.0.1:${port}`, session: "none" }] });
    const client = connect(gateway.port, "127.0.0.1");
    client.on("error", () => {});
    client.write(
      kind === "upload"
        ? "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome"
        : "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    await begun.promise;
    if (kind === "download") await once(client, "data");
    client.destroy();
    await gone.promise;
    const exchange = await until(async () => (await gateway.exchanges())[0]);
    t.match(exchange, { response: { clientGone: true, status: 499 } }, kind);
  }
});

t.test("back-pressure: neither a slow reader nor a slow upstream fills the memory", async (t) => {
  const size = 256 * 1024 * 1024;
  const { port } = await startHttp(t, (req, res) => {
    if (req.method === "POST") return; // reads nothing
    res.writeHead(200, { "content-length": size });
    const chunk = Buffer.alloc(65_536);
    let sent = 0;
    const write = (): void => {
      while (sent < size && !res.destroyed) {
        sent += chunk.length;
        if (!res.write(chunk)) return void res.once("drain", write);
      }
    };
    write();
  });
  const gateway = await startGateway(t, { routes: [{ upstream: `http://127.0.0.1:${port}`, session: "none" }] });
  const download = connect(gateway.port, "127.0.0.1");
  download.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await once(download, "readable");
  const upload = httpRequest(gateway.url, { method: "POST", agent: false });
  upload.on("error", () => {});
  let uploaded = 0;
  const stalled = Promise.withResolvers<void>();
  const push = (): void => {
    let idle: NodeJS.Timeout | undefined;
    const step = (): void => {
      clearTimeout(idle);
      while (uploaded < size) {
        uploaded += 65_536;
        if (!upload.write(Buffer.alloc(65_536))) break;
      }
      idle = setTimeout(() => stalled.resolve(), 300);
    };
    upload.on("drain", step);
    step();
  };
  push();
  await stalled.promise;
  t.ok(uploaded < size / 4, `the upload stalls (${uploaded} octets)`);
  t.ok(process.memoryUsage.rss() < 400 * 1024 * 1024, "the download waits for its reader");
  download.destroy();
  upload.destroy();
});

t.test("the exhaustion traps of undici: whatever is refused, the upstream pool serves the next request", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const hostile = [
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: something\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\xe9\r\nConnection: close\r\n\r\n",
    "GET /\xe9 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
  ];
  for (let i = 0; i < 40; i++) await Promise.all(hostile.map((octets) => raw(gateway.port, octets)));
  t.equal((await ask(gateway.url)).status, 200);
});
