/** HTTP/2 goes the same way as HTTP/1.1: what the application sees, what the client gets, and who notices what. */
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { ClientHttp2Session, ClientHttp2Stream } from "node:http2";
import { join } from "node:path";
import t, { type Test } from "tap";
import { makeCertificate } from "./support/certificates.ts";
import { until } from "./support/client.ts";
import { http2Ask, http2Connect } from "./support/http2-client.ts";
import { FRAME, FrameClient, GET } from "./support/http2-frames.ts";
import { type Received, type RunningGateway, startGateway, startHttp, temporaryFolder } from "./support/servers.ts";

type Respond = (req: IncomingMessage, res: ServerResponse) => void;

interface Setup {
  readonly gateway: RunningGateway;
  readonly session: ClientHttp2Session;
  readonly caFile: string;
  readonly received: Received[];
  connect(): ClientHttp2Session;
}

/** An application that records the head of each request, and what it answers. */
async function setup(t: Test, respond: Respond, settings: object = {}): Promise<Setup> {
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const ca = readFileSync(tls.cert);
  const received: Received[] = [];
  const app = await startHttp(t, (req, res) => {
    const { method = "", url = "", headers, rawHeaders } = req;
    received.push({ method, url, headers, rawHeaders, body: "" });
    respond(req, res);
  });
  const gateway = await startGateway(t, {
    listen: { host: "127.0.0.1", port: 0, tls },
    routes: [{ upstream: `http://127.0.0.1:${app.port}`, session: "optional" }],
    ...settings,
  });
  const connect = () => http2Connect(t, gateway.url, ca);
  return { gateway, session: connect(), caFile: tls.cert, received, connect };
}

const echo: Respond = async (req, res) => {
  const pieces: Buffer[] = [];
  for await (const piece of req) pieces.push(piece as Buffer);
  res.end(Buffer.concat(pieces));
};

t.test("the application gets one plain HTTP/1.1 request", async (t) => {
  const { session, received, gateway } = await setup(t, echo);
  const reply = await http2Ask(session, {
    ":path": "/a?b=c",
    ":authority": "app.example",
    "x-user-id": "forged",
    x_user_id: "forged",
    "x-forwarded-for": "1.2.3.4",
    cookie: ["a=1", "b=2"],
    te: "trailers",
    "x-octets": "caf\xe9",
  });
  t.equal(reply.status, 200);
  const [{ method, url, headers, rawHeaders } = {} as Received] = received;
  t.match({ method, url }, { method: "GET", url: "/a?b=c" });
  t.match(headers, {
    host: "app.example",
    cookie: "a=1; b=2",
    via: "2 coatcheck",
    "x-user-id": "",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-proto": "https",
    "x-octets": "caf\xe9",
  });
  for (const name of [":path", ":authority", "te", "transfer-encoding", "content-length", "x_user_id"])
    t.notOk(rawHeaders.includes(name), name);
  const [record] = await gateway.exchanges();
  t.match(record, {
    request: { method: "GET", host: "app.example", path: "/a", httpVersion: "2", tls: { version: "1.3" } },
    headers: { strippedNames: ["x-user-id", "x_user_id", "x-forwarded-for"] },
    response: { status: 200 },
  });
});

t.test("what HTTP/1.1 would have been refused for is refused, with an answer", async (t) => {
  const { session, received } = await setup(t, echo);
  const status = async (fields: Record<string, string>) => (await http2Ask(session, fields)).status;
  t.equal(await status({ ":authority": "a", host: "a" }), 200, "Host that says the same");
  t.equal(received.at(-1)?.rawHeaders.filter((name) => name === "host").length, 1);
  t.equal(await status({ ":authority": "a", host: "b" }), 400, "Host that says something else");
  await t.rejects(status({ ":authority": "user@a" }), "nghttp2 knows that this is no host");
  t.equal(await status({ ":authority": "a:99999" }), 400);
  t.equal(await status({ ":scheme": "http" }), 400, "a scheme that is not the connection's");
  t.equal(await status({ ":scheme": "ftp", ":path": "a" }), 400);
  t.equal(await status({ ":path": "/%00" }), 400);
  t.equal(await status({ ":path": "/a#b" }), 400);
  t.equal(await status({ ":path": "/a\\b" }), 400);
  t.equal(await status({ ":method": "TRACE" }), 405);
  t.equal(await status({ ":method": "INVENTED" }), 501);
  t.equal(await status({ ":method": "get" }), 501);
  t.equal(await status({ ":method": "OPTIONS", ":path": "*" }), 204);
  t.equal(await status({ expect: "the impossible" }), 417);
  await t.resolveMatch(
    new Promise((resolve, reject) => {
      const stream = session.request({ ":method": "CONNECT", ":authority": "a:443" });
      stream.on("response", (headers) => resolve(headers[":status"]));
      stream.on("error", reject);
    }),
    405,
  );
  t.equal(received.length, 1);
});

t.test("content in both directions, with and without a length", async (t) => {
  const { session, received } = await setup(t, echo);
  const body = randomBytes(3_000_000);
  for (const fields of [{}, { "content-length": String(body.length) }]) {
    const reply = await http2Ask(session, { ":method": "POST", ...fields }, { body });
    t.equal(reply.body, body.toString("latin1"));
  }
  t.match(received[0]?.headers, { "transfer-encoding": "chunked" });
  t.match(received[1]?.headers, { "content-length": "3000000" });
  t.equal((await http2Ask(session, { ":method": "PUT", "content-length": "0" })).body, "");
  t.equal((await http2Ask(session, { ":method": "POST" }, { body: "" })).body, "", "an end without content");
  t.equal((await http2Ask(session, { ":method": "DELETE" }, { body: "odd" })).body, "odd");
  t.equal((await http2Ask(session)).status, 200, "and on");
});

t.test("heads without content, and fields of the connection", async (t) => {
  const { session, received } = await setup(t, (req, res) => {
    const [, status = ""] = (req.url ?? "").split("/");
    res.setHeader("set-cookie", ["a=1", "b=2"]);
    res.setHeader("connection", "keep-alive, x-hop");
    res.setHeader("x-hop", "1");
    res.setHeader("x-twice", ["1", "2"]);
    if (req.method === "HEAD") res.setHeader("content-length", "12345");
    if (status !== "205") res.writeHead(Number(status));
    else res.writeHead(205, { "content-length": "0" });
    res.end();
  });
  for (const status of [200, 204, 205, 304, 404]) {
    for (const method of ["GET", "HEAD"]) {
      const reply = await http2Ask(session, { ":method": method, ":path": `/${status}` });
      t.match(reply, { status, body: "" }, `${method} ${status}`);
      const names = reply.rawHeaders.filter((_, i) => i % 2 === 0);
      for (const name of ["connection", "keep-alive", "transfer-encoding", "x-hop"])
        t.notOk(names.includes(name), name);
      t.equal(names.filter((name) => name === "set-cookie").length, 2);
      t.equal(names.filter((name) => name === "x-twice").length, 2);
      t.equal(names.filter((name) => name === "date").length, 1);
    }
  }
  t.equal((await http2Ask(session, { ":method": "HEAD", ":path": "/200" })).headers["content-length"], "12345");
  t.ok(received.every(({ method }) => method === "GET" || method === "HEAD"));
});

t.test("Expect: 100-continue is answered when the application is to have the content", async (t) => {
  const { session } = await setup(t, echo);
  const reply = await http2Ask(
    session,
    { ":method": "POST", expect: "100-continue" },
    { onStream: (stream) => stream.on("continue", () => stream.end("after 100")) },
  );
  t.match(reply, { status: 200, body: "after 100" });
});

t.test("an answer does not wait for content that nobody reads", async (t) => {
  const { session, gateway } = await setup(t, (_req, res) => res.end("early"));
  const routes = await http2Ask(session, { ":method": "POST", ":path": "/%00" }, { onStream: (s) => s.write("begun") });
  t.equal(routes.status, 400, "one of ours");
  const early = await http2Ask(session, { ":method": "POST" }, { onStream: (stream) => stream.write("begun") });
  t.match(early, { status: 200, body: "early" }, "one of the application's");
  t.equal((await http2Ask(session)).status, 200, "and on");
  t.equal((await gateway.exchanges()).length, 3);
});

t.test("a response cut short is seen as cut short", async (t) => {
  const { session, gateway } = await setup(t, (req, res) => {
    res.writeHead(200, req.url === "/length" ? { "content-length": "100" } : {});
    res.write("half");
    setImmediate(() => res.destroy());
  });
  for (const path of ["/length", "/chunked"]) await t.rejects(http2Ask(session, { ":path": path }), path);
  const records = await until(async () => {
    const found = await gateway.exchanges();
    return found.length === 2 ? found : undefined;
  });
  for (const { error } of records) t.equal(error?.type, "http_response_incomplete");
});

t.test("a client that resets its stream is gone, and the application hears of it", async (t) => {
  let upstreamClosed = 0;
  const { session, gateway } = await setup(t, (req, res) => {
    res.once("close", () => upstreamClosed++);
    req.resume();
    if (req.url === "/streaming") res.write("some");
  });
  const cases: [string, boolean][] = [
    ["/waiting", false],
    ["/streaming", false],
    ["/uploading", true],
  ];
  for (const [path, hasContent] of cases) {
    const stream = session.request(
      { ":path": path, ":method": hasContent ? "POST" : "GET" },
      { endStream: !hasContent },
    );
    stream.on("error", () => {});
    if (hasContent) stream.write("some");
    const before = upstreamClosed;
    if (path === "/streaming") await once(stream, "response");
    else await until(async () => /http_server_active_requests\{[^}]*\} 1/.test(await gateway.metrics()));
    stream.close(8);
    await until(() => upstreamClosed > before || undefined);
  }
  const records = await until(async () => {
    const found = await gateway.exchanges();
    return found.length === 3 ? found : undefined;
  });
  for (const { response, error } of records)
    t.match({ response, error }, { response: { status: 499, clientGone: true }, error: undefined });
  t.equal((await http2Ask(session, { ":path": "/%00" })).status, 400, "the connection goes on");
});

t.test("both ways at the pace of the slower side", async (t) => {
  const chunk = Buffer.alloc(64 * 1024);
  let [written, read] = [0, 0];
  let upload: IncomingMessage | undefined;
  const { session } = await setup(t, (req, res) => {
    if (req.method === "POST") {
      upload = req;
      req.on("data", (piece: Buffer) => {
        read += piece.length;
      });
      req.on("end", () => res.end("all"));
      req.pause();
      return;
    }
    const more = (): void => {
      while (written < 1024 * chunk.length) {
        written += chunk.length;
        if (!res.write(chunk)) {
          res.once("drain", more);
          return;
        }
      }
      res.end();
    };
    more();
  });
  const settled = async (look: () => number) => {
    let before = -1;
    await until(async () => {
      const now = look();
      const isSame = now > 0 && now === before;
      before = now;
      await new Promise((resolve) => setTimeout(resolve, 100));
      return isSame || undefined;
    });
    return look();
  };
  const download: ClientHttp2Stream = session.request({});
  await once(download, "response");
  download.pause();
  t.ok((await settled(() => written)) < 16 * 1024 * 1024, `${written} octets of 64 MiB wait for the client`);
  let length = 0;
  download.on("data", (piece: Buffer) => {
    length += piece.length;
  });
  download.resume();
  await once(download, "end");
  t.equal(length, 1024 * chunk.length);

  const post = session.request({ ":method": "POST" });
  let sent = 0;
  const send = (): void => {
    while (sent < 512 * chunk.length) {
      sent += chunk.length;
      if (!post.write(chunk)) {
        post.once("drain", send);
        return;
      }
    }
    post.end();
  };
  send();
  t.ok((await settled(() => sent)) < 16 * 1024 * 1024, `${sent} octets of 32 MiB wait for the application`);
  upload?.resume();
  await once(post, "response");
  t.equal(read, 512 * chunk.length);
});

t.test("a hundred requests at once on one connection", async (t) => {
  const { session, gateway } = await setup(t, echo);
  const replies = await Promise.all(
    Array.from({ length: 500 }, (_, i) => http2Ask(session, { ":method": "POST" }, { body: `${i}` })),
  );
  t.same(
    replies.map(({ body }) => body),
    replies.map((_, i) => String(i)),
  );
  t.equal(/http_server_active_requests\{[^}]*\} ([1-9])/.exec(await gateway.metrics()), null);
});

t.test("a shutdown says GOAWAY, lets requests end, and cuts what takes too long", async (t) => {
  let finish: (() => void) | undefined;
  const settings = { shutdown: { delay: "0s", timeout: "1s" } };
  const { session, gateway, connect } = await setup(
    t,
    (req, res) => {
      if (req.url === "/ends") finish = () => res.end("ended");
    },
    settings,
  );
  const idle = connect();
  const stuck = connect();
  await Promise.all([idle, stuck].map((each) => once(each, "connect")));
  const ends = http2Ask(session, { ":path": "/ends" });
  const never = http2Ask(stuck, { ":path": "/never" });
  await until(() => finish);
  await until(
    async () => (await gateway.exchanges()).length === 0 && /active_requests\{[^}]*\} 2/.test(await gateway.metrics()),
  );
  const goaway = Promise.all([session, idle].map((each) => once(each, "goaway")));
  const closed = gateway.gateway.close();
  for (const [code] of await goaway) t.equal(code, 0, "no error");
  finish?.();
  t.equal((await ends).body, "ended");
  t.match(await never, { status: 503, headers: { "proxy-status": "coatcheck; error=proxy_shutdown" } });
  await closed;
  await Promise.all([session, idle, stuck].map((each) => each.closed || once(each, "close")));
});

t.test(
  "during the delay, a connection is used once more; what comes behind the GOAWAY is not begun, and it says so",
  async (t) => {
    const settings = { shutdown: { delay: "2s" } };
    const { gateway, received, caFile } = await setup(t, (_req, res) => res.end("fine"), settings);
    const client = await FrameClient.connect(gateway.port, readFileSync(caFile));
    t.teardown(() => client.socket.destroy());
    client.request(1);
    t.equal(await client.outcome(1), "answered");
    const closed = gateway.gateway.close();
    client.request(3, [...GET.slice(0, -1), "/during"]);
    t.equal(await client.outcome(3), "answered");
    await client.until(({ type }) => type === FRAME.goaway);
    client.request(5, [...GET.slice(0, -1), "/behind"]);
    await client.ended();
    t.same(
      client.frames.filter(({ type }) => type === FRAME.goaway).map(({ payload }) => payload.readUInt32BE(0)),
      [3],
    );
    t.equal((await http2Ask(http2Connect(t, gateway.url, readFileSync(caFile)))).status, 200, "others are served");
    await closed;
    t.same(
      received.map(({ url }) => url),
      ["/", "/during", "/"],
    );
  },
);

t.test("curl, over both protocols", async (t) => {
  const { gateway, caFile } = await setup(t, echo);
  const file = join(await temporaryFolder(t), "content");
  const content = randomBytes(2_000_000);
  writeFileSync(file, content);
  for (const version of ["2", "1.1"]) {
    const args = ["-sS", "--cacert", caFile, `--http${version}`, "-w", "%{stderr}%{http_version} %{response_code}"];
    const url = gateway.url.replace("127.0.0.1", "localhost");
    for (const how of [
      ["--data-binary", `@${file}`],
      ["-T", file],
    ]) {
      const { stdout, stderr } = await curl([...args, ...how, url]);
      t.equal(stderr, `${version} 200`);
      t.equal(hash(stdout), hash(content));
    }
    t.match(await curl([...args, "-I", url]), { stderr: `${version} 200` });
  }
});

for (const options of [[], ["--h1"]])
  t.test(`h2load ${options}: ten connections with ten requests at once each`, async (t) => {
    const { gateway, received } = await setup(t, echo);
    const { stdout } = await program("h2load", ["-n", "2000", "-c", "10", "-m", "10", ...options, gateway.url]);
    t.match(String(stdout), /2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout/);
    t.match(String(stdout), /status codes: 2000 2xx/);
    t.equal(received.length, 2000);
  });

const hash = (octets: Buffer) => createHash("sha256").update(octets).digest("hex");
const curl = (args: readonly string[]) => program("curl", args);

/** Not with spawnSync: the gateway is in this process. */
async function program(name: string, args: readonly string[]): Promise<{ stdout: Buffer; stderr: string }> {
  const child = spawn(name, args, { stdio: ["ignore", "pipe", "pipe"] });
  const pieces: Buffer[] = [];
  let stderr = "";
  child.stdout.on("data", (piece: Buffer) => pieces.push(piece));
  child.stderr.on("data", (piece: Buffer) => {
    stderr += piece;
  });
  await once(child, "close");
  return { stdout: Buffer.concat(pieces), stderr };
}
