/** Slow and greedy clients: what is refused, with what, what is left to others, and who notices. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";
import { loadConfig } from "../src/config/load.ts";
import type { ConfigError } from "../src/config/problems.ts";
import { makeCertificate } from "./support/certificates.ts";
import { ask, collect, raw, until } from "./support/client.ts";
import { http2Ask, http2Connect } from "./support/http2-client.ts";
import { eventually } from "./support/resources.ts";
import { type RunningGateway, startGateway, startHttp, startUpstream, temporaryFolder } from "./support/servers.ts";

const GET = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const FIRST_LINE = /HTTP\/1\.1 (\d{3}) /g;

const statuses = (text: string) => [...text.matchAll(FIRST_LINE)].map(([, status]) => Number(status));

/** That all records agree on which limit it was. */
async function noticed(t: Test, gateway: RunningGateway, reason: string, status: number, count = 1): Promise<void> {
  const records = await until(async () => {
    const found = (await gateway.exchanges()).filter(({ limited }) => limited === reason);
    return found.length >= count ? found : undefined;
  });
  t.equal(records[0]?.response.status, status);
  t.match(
    gateway.logs.filter(({ event, limited }) => event === "http.access" && limited === reason),
    [{ "http.response.status_code": status }],
  );
  t.match(
    await gateway.metrics(),
    new RegExp(`^coatcheck_requests_limited_total\\{reason="${reason}"\\} ${count}$`, "m"),
  );
  const steps = (records[0] as unknown as { steps: { step: string; detail: string }[] }).steps;
  t.match(steps.find(({ step }) => step === "limit")?.detail, /limits\.|more HTTP\/2/);
}

/** @param localAddress whose connection it is: all of 127.0.0.0/8 is this machine. */
async function open(t: Test, port: number, localAddress = "127.0.0.1"): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", localAddress });
  socket.on("error", () => {});
  t.teardown(() => socket.destroy());
  await once(socket, "connect");
  return socket;
}

/** Sends a piece again and again until the other side has had enough. */
function dribble(socket: Socket, piece: string, everyMs = 20): void {
  const timer = setInterval(() => (socket.writable ? socket.write(piece) : clearInterval(timer)), everyMs);
  socket.on("close", () => clearInterval(timer));
}

t.test("a head that dribbles gets 408, and the others are served meanwhile", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, limits: { head: { timeout: "400ms" } } });
  const slow = await open(t, gateway.port);
  slow.write("GET / HTTP/1.1\r\nHost: a\r\n");
  dribble(slow, "x: y\r\n");
  const answer = collect(slow);
  for (let i = 0; i < 5; i++) t.equal((await ask(gateway.url)).status, 200);
  const text = await answer;
  t.same(statuses(text), [408]);
  t.match(text, /connection: close/i);
  t.equal(upstream.received.length, 5, "nothing of it went upstream");
  await noticed(t, gateway, "head-timeout", 408);
});

t.test("a connection that says nothing is closed without a word", async (t) => {
  const gateway = await startGateway(t, { limits: { head: { timeout: "200ms" } } });
  t.equal(await collect(await open(t, gateway.port)), "");
  t.same(await gateway.exchanges(), []);
});

t.test("TLS: neither a handshake nor a first request over HTTP/2 is waited for without end", async (t) => {
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const gateway = await startGateway(t, {
    listen: { host: "127.0.0.1", port: 0, tls },
    limits: { head: { timeout: "300ms" } },
  });
  t.equal(await collect(await open(t, gateway.port)), "", "no ClientHello");
  const session = http2Connect(t, gateway.url, readFileSync(tls.cert));
  await once(session, "connect");
  await once(session, "close");
  t.equal((await http2Ask(http2Connect(t, gateway.url, readFileSync(tls.cert)), {})).status, 502, "others go on");
});

t.test("a connection waits for its next request as long as it may", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, limits: { idleTimeout: "1s" } });
  const startedMs = performance.now();
  const socket = await open(t, gateway.port);
  socket.write(GET);
  t.same(statuses(await collect(socket)), [200]);
  t.ok(performance.now() - startedMs >= 900);
});

t.test("heads: 431 for size and for fields, 414 for the target", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    limits: { head: { maxBytes: "2KiB", maxFields: 10 } },
  });
  const fields = (count: number) => "a: b\r\n".repeat(count);
  t.same(statuses(await raw(gateway.port, `GET / HTTP/1.1\r\nHost: a\r\nCookie: ${"c".repeat(3000)}\r\n\r\n`)), [431]);
  t.same(statuses(await raw(gateway.port, `GET /${"p".repeat(3000)} HTTP/1.1\r\nHost: a\r\n\r\n`)), [414]);
  t.same(statuses(await raw(gateway.port, `GET / HTTP/1.1\r\nHost: a\r\n${fields(10)}\r\n`)), [431]);
  t.equal(upstream.received.length, 0);
  const most = `GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${fields(8)}\r\n`;
  t.same(statuses(await raw(gateway.port, most)), [200], "as many as are allowed");
  await noticed(t, gateway, "head-bytes", 431);
  await noticed(t, gateway, "target-bytes", 414);
  await noticed(t, gateway, "head-fields", 431);
});

t.test("HTTP/2: cookies that have piled up are 431 on their stream, and the connection goes on", async (t) => {
  const upstream = await startUpstream(t);
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const gateway = await startGateway(t, { upstream: upstream.url, listen: { host: "127.0.0.1", port: 0, tls } });
  const session = http2Connect(t, gateway.url, readFileSync(tls.cert));
  const cookies = (bytes: number) => Array.from({ length: bytes / 1000 }, (_, i) => `c${i}=${"~".repeat(1000)}`);
  for (const bytes of [33_000, 48_000, 60_000]) {
    const reply = await http2Ask(session, {
      cookie: cookies(bytes),
      accept: "text/html",
      "sec-fetch-mode": "navigate",
    });
    t.equal(reply.status, 431);
    t.match(reply.body, /clear the cookies/, "a page, for people");
  }
  t.equal((await http2Ask(session, { ":path": `/${"p".repeat(40_000)}` })).status, 414);
  t.equal((await http2Ask(session, { cookie: cookies(10_000) })).status, 200, "on the same connection");
  t.notOk(session.closed);
  t.equal(upstream.received.length, 1);
  await noticed(t, gateway, "head-bytes", 431, 3);
});

t.test("content that is announced too large is refused before anything of it goes upstream", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    routes: [
      { upstream: upstream.url, session: "none" },
      { match: { path: "/upload" }, upstream: upstream.url, session: "none", limits: { body: { maxBytes: "2KiB" } } },
      { match: { path: "/any" }, upstream: upstream.url, session: "none", limits: { body: { maxBytes: "none" } } },
    ],
    limits: { body: { maxBytes: "1KiB" } },
  });
  const post = (path: string, bytes: number) => ask(gateway.url + path, { method: "POST", body: "x".repeat(bytes) });
  t.equal((await post("/", 1024)).status, 200);
  const refused = await post("/", 1025);
  t.equal(refused.status, 413);
  t.match(JSON.parse(refused.body), { status: 413, error: "http_request_error" });
  t.equal((await post("/upload", 2048)).status, 200, "a route of its own");
  t.equal((await post("/upload", 2049)).status, 413);
  t.equal((await post("/any", 100_000)).status, 200);
  t.same(
    upstream.received.map(({ body }) => body.length),
    [1024, 2048, 100_000],
  );
  const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n";
  t.same(statuses(await raw(gateway.port, head)), [413], "whoever asks first is not told to go on");
  await noticed(t, gateway, "body-bytes", 413, 3);
});

t.test("content in chunks is counted as it comes, and the application never takes it for whole", async (t) => {
  let [begun, whole] = [0, 0];
  const aborted: boolean[] = [];
  const app = await startHttp(t, (req, res) => {
    begun++;
    req.resume();
    req.on("end", () => {
      whole++;
      res.end("whole");
    });
    req.on("error", () => aborted.push(true));
  });
  const gateway = await startGateway(t, {
    upstream: `http://127.0.0.1:${app.port}`,
    limits: { body: { maxBytes: "10KiB" } },
  });
  const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  const chunk = `1000\r\n${"x".repeat(4096)}\r\n`;
  const socket = await open(t, gateway.port);
  socket.write(head + chunk);
  await until(() => begun === 1);
  socket.write(`${chunk.repeat(3)}0\r\n\r\n${GET}`);
  const text = await collect(socket);
  t.same(statuses(text), [413], "and what follows is no request");
  t.match(text, /connection: close/i);
  await until(() => aborted.length === 1);
  t.equal(whole, 0);
  const both = await raw(
    gateway.port,
    `${head}${chunk.repeat(2)}0\r\n\r\n${GET}`,
    (seen) => statuses(seen).length === 2,
  );
  t.same(statuses(both), [200, 200], "within the limit the connection goes on");
  await noticed(t, gateway, "body-bytes", 413);
});

t.test("HTTP/2: content beyond the limit is 413, with and without its length, and other streams go on", async (t) => {
  const upstream = await startUpstream(t);
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    listen: { host: "127.0.0.1", port: 0, tls },
    limits: { body: { maxBytes: "10KiB" } },
  });
  const session = http2Connect(t, gateway.url, readFileSync(tls.cert));
  const post = { ":method": "POST" };
  const announced = await http2Ask(
    session,
    { ...post, "content-length": "20000" },
    { onStream: (stream) => stream.write("x") },
  );
  t.equal(announced.status, 413);
  const counted = await http2Ask(session, post, { onStream: (stream) => stream.write("x".repeat(20_000)) });
  t.equal(counted.status, 413);
  t.equal((await http2Ask(session, post, { body: "x".repeat(10_240) })).status, 200);
  t.same(
    upstream.received.map(({ body }) => body.length),
    [10_240],
  );
  await noticed(t, gateway, "body-bytes", 413, 2);
});

t.test("content that dribbles is 408; an application that reads slowly is no fault of the client's", async (t) => {
  const app = await startHttp(t, (req, res) => {
    if (req.url === "/slow-reader") setTimeout(() => req.resume(), 1_000);
    else req.resume();
    req.on("end", () => res.end("whole"));
    req.on("error", () => {});
  });
  const gateway = await startGateway(t, {
    upstream: `http://127.0.0.1:${app.port}`,
    limits: { body: { minRate: "1KiB", window: "250ms" } },
  });
  const slow = await open(t, gateway.port);
  slow.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
  dribble(slow, "x");
  t.same(statuses(await collect(slow)), [408]);
  await noticed(t, gateway, "body-timeout", 408);
  const large = await ask(`${gateway.url}/slow-reader`, { method: "POST", body: Buffer.alloc(8 * 1024 * 1024) });
  t.equal(large.status, 200);
});

t.test("connections of one address, and all together; what is refused is closed at once and counted", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    limits: { connections: { perAddress: 3, total: 5 } },
  });
  const metrics = () => gateway.metrics();
  const mine = [await open(t, gateway.port), await open(t, gateway.port), await open(t, gateway.port)];
  await until(async () => /^coatcheck_connections_open 3$/m.test(await metrics()));
  for (let i = 0; i < 10; i++) t.equal(await raw(gateway.port, GET).catch(() => ""), "");
  t.match(await metrics(), /^coatcheck_connections_refused_total\{reason="address"\} 10$/m);
  const others = [await open(t, gateway.port, "127.0.0.2"), await open(t, gateway.port, "127.0.0.3")];
  t.ok(others.every((socket) => socket.writable));
  await until(async () => /^coatcheck_connections_open [45]$/m.test(await metrics()));
  mine[0]?.write(GET);
  await once(mine[0] as Socket, "data");
  t.pass("those that are there are served");
  for (const socket of mine) socket.destroy();
  await until(async () => !/^coatcheck_connections_open [3-9]$/m.test(await metrics()));
  t.equal((await ask(gateway.url)).status, 200, "there is room again");
  const lines = gateway.logs.filter(({ event }) => event === "connections.refused");
  t.match(lines, [{ reason: "address", "client.address": "127.0.0.1", suppressed: 0 }], "one line, not ten");
});

t.test("connections in all, HTTP/2 among them; a trusted proxy is many clients", async (t) => {
  const upstream = await startUpstream(t);
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    listen: { host: "127.0.0.1", port: 0, tls, trustedProxies: ["127.0.0.1"] },
    limits: { connections: { perAddress: 1, total: 3 } },
  });
  const connected = () => http2Connect(t, gateway.url, readFileSync(tls.cert));
  const sessions = [connected(), connected(), connected()];
  for (const session of sessions) t.equal((await http2Ask(session, {})).status, 200);
  await t.rejects(http2Ask(connected(), {}));
  t.match(await gateway.metrics(), /^coatcheck_connections_refused_total\{reason="total"\} 1$/m);
  t.match(await gateway.metrics(), /^coatcheck_connections_open 3$/m);
  sessions[0]?.destroy();
  await until(async () => /^coatcheck_connections_open 2$/m.test(await gateway.metrics()));
  t.equal((await http2Ask(connected(), {})).status, 200);
});

t.test("what makes no sense is told, all of it, with its place", async (t) => {
  const route = { upstream: "http://127.0.0.1:9", session: "none" };
  const settings = {
    routes: [{ ...route, limits: { requests: { perSession: { rate: "1/s" } }, body: { maxByte: "1KiB" } } }],
    limits: {
      head: { maxBytes: "1MiB", timeout: "soon" },
      body: { maxBytes: "lots" },
      connections: { total: 0 },
      requests: { perAddress: { rate: "10 per second" }, perSession: { burst: 3 } },
    },
  };
  try {
    loadConfig(settings, {});
    t.fail("accepted");
  } catch (error) {
    const { problems } = error as ConfigError;
    t.match(problems.filter((line) => line.startsWith("limits.")).sort(), [
      /^limits\.body\.maxBytes: /,
      /^limits\.connections\.total: must be a whole number from 1 to 1000000/,
      /^limits\.head\.maxBytes: must be between 1KiB and 128KiB/,
      /^limits\.head\.timeout: "soon" is not a duration/,
      /^limits\.requests\.perAddress\.rate: "10 per second" is not a rate/,
      /^limits\.requests\.perSession\.rate: /,
    ]);
    t.match(problems.join("\n"), /routes\[0\]\.limits\.body\.maxByte: unknown key/);
  }
  const { routes, limits } = settings;
  const only = { routes: [{ ...route, limits: { requests: routes[0]?.limits.requests } }] };
  t.throws(() => loadConfig(only, {}), /perSession: needs session "optional" or "required"/, limits);
});

t.test("few file descriptors: connections beyond them are refused, and the process goes on", async (t) => {
  const upstream = await startUpstream(t);
  const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
  const folder = await temporaryFolder(t);
  // 128 are spare, and up to half are for the application: 64 are left for clients.
  const script = `ulimit -n 384 && exec "$0" "$@"`;
  const args = [main, "--upstream", upstream.url, "--port", "0", "--admin-port", "0"];
  const child = spawn("sh", ["-c", script, process.execPath, ...args], { cwd: folder });
  t.teardown(() => child.kill("SIGKILL"));
  let text = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
    });
  const port = await eventually(
    "it is ready",
    () => Number(/"url":"http:\/\/[^:]+:(\d+)"/.exec(text)?.[1]) || undefined,
  );
  const sockets: Socket[] = [];
  for (let i = 0; i < 300; i++) {
    const socket = await open(t, port).catch(() => undefined);
    if (socket !== undefined) sockets.push(socket);
  }
  await eventually("it says so", () => text.includes('"connections.refused"'));
  const [alive] = sockets;
  alive?.write(GET);
  await once(alive as Socket, "data");
  for (const socket of sockets) socket.destroy();
  await eventually("there is room again", async () => {
    const reply = await ask(`http://127.0.0.1:${port}/`).catch(() => undefined);
    return reply !== undefined && reply.status < 500;
  });
  t.notMatch(text, /error\.unexpected/);
  t.equal(child.exitCode, null);
});
