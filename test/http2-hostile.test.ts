/** HTTP/2 that is malformed or meant to exhaust: the stream or the connection ends, and everybody else is served. */
import { readFileSync } from "node:fs";
import t, { type Test } from "tap";
import { makeCertificate } from "./support/certificates.ts";
import { http2Ask, http2Connect } from "./support/http2-client.ts";
import { CODE, FLAG, FRAME, FrameClient, frame, GET, headerBlock, uint32 } from "./support/http2-frames.ts";
import { type RunningGateway, startGateway, startUpstream, temporaryFolder, type Upstream } from "./support/servers.ts";

interface Setup {
  readonly gateway: RunningGateway;
  readonly app: Upstream;
  readonly ca: Buffer;
  connect(settings?: Buffer): Promise<FrameClient>;
  /** Whether another client, on a connection of its own, is served. */
  isServing(): Promise<boolean>;
}

async function setup(t: Test): Promise<Setup> {
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const ca = readFileSync(tls.cert);
  const app = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/slow") return;
    res.end(received.url === "/big" ? Buffer.alloc(4 * 1024 * 1024) : "fine");
  });
  const gateway = await startGateway(t, { upstream: app.url, listen: { host: "127.0.0.1", port: 0, tls } });
  return {
    gateway,
    app,
    ca,
    connect: async (settings) => {
      const client = await FrameClient.connect(gateway.port, ca, settings);
      t.teardown(() => client.socket.destroy());
      return client;
    },
    isServing: async () => {
      const session = http2Connect(t, gateway.url, ca);
      const reply = await http2Ask(session, { ":path": "/other" });
      session.close();
      return reply.status === 200 && reply.body === "fine";
    },
  };
}

const without = (name: string) => GET.filter((_, i) => GET[i - (i % 2)] !== name);
const changed = (name: string, value: string) =>
  GET.map((each, i) => (i % 2 === 1 && GET[i - 1] === name ? value : each));

t.test("a malformed request is reset with PROTOCOL_ERROR, and nothing of it goes upstream", async (t) => {
  const { app, connect, isServing } = await setup(t);
  const malformed: Record<string, readonly string[]> = {
    "no :method": without(":method"),
    "no :scheme": without(":scheme"),
    "no :path": without(":path"),
    "neither :authority nor Host": without(":authority"),
    "an empty :path": changed(":path", ""),
    "a :path that is no path": changed(":path", "a"),
    "a :path that is a URL": changed(":path", "http://other/"),
    "* with GET": changed(":path", "*"),
    ":path twice": [...GET, ":path", "/admin"],
    ":authority twice": [":authority", "other", ...GET],
    "a pseudo-header field after the others": [...without(":path"), "accept", "*/*", ":path", "/"],
    "an unknown pseudo-header field": [":unknown", "1", ...GET],
    "a pseudo-header field of responses": [":status", "200", ...GET],
    ":protocol, which was not offered": [":method", "CONNECT", ":protocol", "websocket", ...GET.slice(2)],
    "an upper-case letter": [...GET, "X-Upper", "1"],
    connection: [...GET, "connection", "keep-alive"],
    "keep-alive": [...GET, "keep-alive", "timeout=5"],
    "proxy-connection": [...GET, "proxy-connection", "close"],
    "transfer-encoding": [...GET, "transfer-encoding", "chunked"],
    upgrade: [...GET, "upgrade", "websocket"],
    "te other than trailers": [...GET, "te", "gzip"],
    "content-length of a request that has ended": [...GET, "content-length", "5"],
    "content-length twice": [...GET, "content-length", "0", "content-length", "0"],
    "content-length that is no number": [...GET, "content-length", "+5"],
    "content-length that is a list": [...GET, "content-length", "5, 5"],
  };
  for (const [what, fields] of Object.entries(malformed)) {
    const client = await connect();
    client.request(1, fields);
    t.equal(await client.outcome(1), CODE.protocolError, what);
    // The connection goes on.
    client.request(3);
    t.equal(await client.outcome(3), "answered", what);
    client.socket.destroy();
  }
  t.ok(app.received.every(({ method, url, body }) => method === "GET" && url === "/" && body === ""));
  t.equal(app.received.length, Object.keys(malformed).length);
  t.ok(await isServing());
});

t.test("content that is not as long as content-length says never reaches the application whole", async (t) => {
  const { app, connect, isServing } = await setup(t);
  const post = changed(":method", "POST");
  for (const [length, content] of [
    ["5", "four"],
    ["3", "four"],
  ]) {
    const client = await connect();
    client.request(1, [...post, "content-length", length as string], FLAG.endHeaders);
    client.send(frame(FRAME.data, FLAG.endStream, 1, content));
    // For too much of it, the connection ends.
    t.ok(([CODE.protocolError, "closed"] as unknown[]).includes(await client.outcome(1)));
  }
  t.same(app.received, []);
  t.ok(await isServing());
});

t.test("a value with a control character is not passed on, whatever it is in", async (t) => {
  const { app, connect } = await setup(t);
  for (const octet of ["\0", "\r", "\n", "\r\nx-user-id: 1\r\n", "\x7f"]) {
    for (const fields of [
      [...GET, "x-custom", `a${octet}b`],
      [...GET, "cookie", `a=1${octet}`],
      [...GET, `x${octet}y`, "1"],
      changed(":path", `/a${octet}b`),
      changed(":authority", `local${octet}host`),
    ]) {
      const client = await connect();
      client.request(1, fields);
      await client.outcome(1);
      client.socket.destroy();
    }
  }
  for (const { url, rawHeaders } of app.received) {
    t.equal(url, "/");
    t.notOk(rawHeaders.some((text) => /[\0\r\n\x7f]/.test(text)));
    t.notOk(rawHeaders.some((text) => /^(x-custom|x.*y)$/.test(text) || text.startsWith("a=1")));
  }
});

t.test("what breaks the connection ends it, and nobody else's", async (t) => {
  const { connect, isServing } = await setup(t);
  const settings = (id: number, value: number) => Buffer.concat([Buffer.from([0, id]), uint32(value)]);
  const breaks: Record<string, readonly Buffer[]> = {
    "a stream of an even number": [frame(FRAME.headers, 5, 2, headerBlock(GET))],
    "DATA of an idle stream": [frame(FRAME.data, 1, 7, "x")],
    "CONTINUATION without HEADERS": [frame(FRAME.continuation, 4, 1, headerBlock(GET))],
    "a frame between HEADERS and CONTINUATION": [
      frame(FRAME.headers, FLAG.endStream, 1, headerBlock(GET)),
      frame(FRAME.ping, 0, 0, "12345678"),
    ],
    "a frame longer than allowed": [frame(FRAME.data, 0, 1, Buffer.alloc(20_000))],
    "a header block that is no HPACK": [frame(FRAME.headers, 5, 1, Buffer.alloc(40, 0xff))],
    "SETTINGS of an odd length": [frame(FRAME.settings, 0, 0, "12345")],
    "a window beyond 2^31": [frame(FRAME.settings, 0, 0, settings(4, 0xffffffff))],
    "WINDOW_UPDATE beyond 2^31": [frame(FRAME.windowUpdate, 0, 0, uint32(0x7fffffff))],
    "PING of an odd length": [frame(FRAME.ping, 0, 0, "123")],
    "RST_STREAM of an idle stream": [frame(FRAME.reset, 0, 9, uint32(8))],
    "PUSH_PROMISE of a client": [frame(5, 4, 1, Buffer.concat([uint32(2), headerBlock(GET)]))],
  };
  for (const [what, frames] of Object.entries(breaks)) {
    const client = await connect();
    client.send(...frames);
    await client.ended();
    t.pass(what);
  }
  t.ok(await isServing());
});

t.test("HTTP/1.1 on a connection that chose HTTP/2", async (t) => {
  const { connect, isServing, app } = await setup(t);
  const client = await connect();
  client.socket.write("GET /h1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await client.ended();
  t.notOk(app.received.some(({ url }) => url === "/h1"));
  t.ok(await isServing());
});

/** Sends until the gateway has had enough. @returns how often. */
async function flood(client: FrameClient, most: number, send: (i: number) => boolean): Promise<number> {
  let sent = 0;
  while (sent < most && !client.closed) {
    const goesOn = send(sent++);
    if (!goesOn || sent % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  return sent;
}

t.test("floods end the connection that they come from, and others are served meanwhile", async (t) => {
  const { gateway, app, connect, isServing } = await setup(t);
  const most = 200_000;

  await t.test("rapid reset (CVE-2023-44487)", async (t) => {
    const client = await connect();
    const sent = await flood(client, most, (i) =>
      client.send(
        frame(FRAME.headers, 5, 2 * i + 1, headerBlock(changed(":path", "/slow"))),
        frame(FRAME.reset, 0, 2 * i + 1, uint32(CODE.cancel)),
      ),
    );
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(app.received.length < 2_000, `${app.received.length} of them went upstream`);
    t.ok(await isServing());
  });

  await t.test("streams that make the gateway reset them (CVE-2025-8671)", async (t) => {
    const client = await connect();
    const sent = await flood(client, most, (i) =>
      client.send(
        frame(FRAME.headers, 5, 2 * i + 1, headerBlock(changed(":path", "/slow"))),
        // An increment of nothing is an error of the stream.
        frame(FRAME.windowUpdate, 0, 2 * i + 1, uint32(0)),
      ),
    );
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("malformed requests without an end", async (t) => {
    const client = await connect();
    const sent = await flood(client, most, (i) => client.request(2 * i + 1, [...GET, "connection", "close"]));
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("CONTINUATION without an end (CVE-2024-27983)", async (t) => {
    const client = await connect();
    client.send(frame(FRAME.headers, 0, 1, headerBlock(GET)));
    const block = headerBlock(["x-more", "x".repeat(10_000)]);
    const sent = await flood(client, 10_000, () => client.send(frame(FRAME.continuation, 0, 1, block)));
    await client.ended();
    t.ok(sent < 10_000, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("PING (CVE-2019-9512)", async (t) => {
    const client = await connect();
    const sent = await flood(client, most, () => client.send(frame(FRAME.ping, 0, 0, "12345678")));
    t.equal(await client.goaway(), CODE.enhanceYourCalm);
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("SETTINGS (CVE-2019-9515)", async (t) => {
    const client = await connect();
    const sent = await flood(client, most, () => client.send(frame(FRAME.settings, 0, 0)));
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("empty DATA (CVE-2019-9518)", async (t) => {
    const client = await connect();
    client.request(1, changed(":method", "POST"), FLAG.endHeaders);
    const sent = await flood(client, most, () => client.send(frame(FRAME.data, 0, 1)));
    await client.ended();
    t.ok(sent < most, `ended after ${sent}`);
    t.ok(await isServing());
  });

  await t.test("more streams at once than are allowed", async (t) => {
    const client = await connect();
    for (let i = 0; i < 200; i++) client.request(2 * i + 1, changed(":path", "/slow"));
    const refused = await client.until(
      ({ type, payload }) => type === FRAME.reset && payload.readUInt32BE(0) === CODE.refusedStream,
    );
    t.ok(refused, "REFUSED_STREAM: the client may try again");
    t.ok(await isServing());
    client.socket.destroy();
  });

  await t.test("answers that nobody reads (CVE-2019-9517)", async (t) => {
    // A window of nothing, so that no content can be sent.
    const client = await connect(Buffer.concat([Buffer.from([0, 4]), uint32(0)]));
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 100; i++) client.request(2 * i + 1, changed(":path", "/big"));
    t.ok(await isServing());
    await client.until(({ type }) => type === FRAME.headers);
    t.ok(await isServing());
    // 400 MiB wait in the application; of them a few here.
    t.ok(process.memoryUsage().rss - before < 200 * 1024 * 1024);
    client.socket.destroy();
  });

  // What was counted here is in the log, and none has broken anything.
  const messages = gateway.logs.map(({ error_message }) => error_message);
  t.ok(messages.includes("too many HTTP/2 control frames"));
  t.ok(messages.includes("too many malformed HTTP/2 frames"));
  t.equal(gateway.logs.filter(({ event }) => event === "error.unexpected").length, 0);
});

t.test("a header section that is too large is refused, and the connection goes on", async (t) => {
  const { ca, gateway, app, isServing } = await setup(t);
  const session = http2Connect(t, gateway.url, ca);
  const fields = (count: number, length: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`x-${i}`, "x".repeat(length)]));
  t.equal((await http2Ask(session, fields(220, 1))).status, 431);
  await t.rejects(http2Ask(session, fields(400, 1)), /ENHANCE_YOUR_CALM|closed with 11/);
  t.equal((await http2Ask(session, fields(10, 4_000))).status, 431);
  t.equal((await http2Ask(session, fields(10, 1_000))).status, 200);
  t.equal(app.received.length, 1);
  t.ok(await isServing());
});

t.test(
  "a response that nobody reads is reset after limits.sendTimeout; what is yet to be said is waited for",
  async (t) => {
    const late = Promise.withResolvers<void>();
    const upstream = await startUpstream(t, async (received, _req, res) => {
      if (received.url === "/late") {
        res.write("first");
        await late.promise;
      }
      res.end("content");
    });
    const files = makeCertificate(await temporaryFolder(t), "own");
    const listen = { host: "127.0.0.1", port: 0, tls: files };
    const gateway = await startGateway(t, { listen, upstream: upstream.url, limits: { sendTimeout: "300ms" } });
    const ca = readFileSync(files.cert);
    const patient = await FrameClient.connect(gateway.port, ca);
    t.teardown(() => patient.socket.destroy());
    patient.request(1, changed(":path", "/late"));
    const client = await FrameClient.connect(gateway.port, ca, Buffer.concat([Buffer.from([0, 4]), uint32(0)]));
    t.teardown(() => client.socket.destroy());
    for (let stream = 1; stream < 40; stream += 2) client.request(stream);
    client.request(41, [...GET.slice(0, -1), "/", "content-length", "3"], FLAG.endHeaders);
    for (let stream = 1; stream < 40; stream += 2) t.equal(await client.outcome(stream), CODE.internalError);
    const slow = await FrameClient.connect(gateway.port, ca, Buffer.concat([Buffer.from([0, 4]), uint32(0)]));
    slow.request(1);
    // "content", an octet at a time: longer than the timeout all in all.
    const timer = setInterval(() => slow.send(frame(FRAME.windowUpdate, 0, 1, uint32(1))), 100);
    t.teardown(() => {
      clearInterval(timer);
      slow.socket.destroy();
    });
    t.equal(await slow.outcome(1), "answered");
    late.resolve();
    t.equal(await patient.outcome(1), "answered");
    t.match(
      (await gateway.exchanges()).filter(({ response }) => response.clientGone).map(({ response }) => response.status),
      new Array(20).fill(499),
    );
  },
);
