/** WebSockets from end to end: `ws` and raw sockets on both sides. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import t from "tap";
import { type RawData, WebSocket } from "ws";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import {
  type RunningGateway,
  SECRET,
  startGateway,
  startRedis,
  startTcp,
  startUpstream,
  temporaryFolder,
} from "./support/servers.ts";
import { type Greeting, startWebSocketApp } from "./support/websockets.ts";

const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MIB = 1024 * 1024;

function handshake(...fields: string[]): string {
  return [
    "GET /chat HTTP/1.1",
    "Host: app.example",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    `Sec-WebSocket-Key: ${KEY}`,
    ...fields,
    "",
    "",
  ].join("\r\n");
}

async function login(gateway: RunningGateway, user = { id: "42", name: "Ada" }): Promise<string> {
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user }) });
  return cookiePair(reply.setCookie[0]);
}

interface Client {
  readonly ws: WebSocket;
  readonly closed: Promise<{ code: number; reason: string }>;
  /** The first message, which is what the application received. */
  readonly greeting: Greeting;
  next(): Promise<Buffer>;
}

async function open({ port }: { port: number }, headers: Record<string, string> = {}): Promise<Client> {
  const ws = new WebSocket(`ws://127.0.0.1:${port}/chat`, { headers, perMessageDeflate: false });
  const messages: Buffer[] = [];
  ws.on("message", (data: RawData) => messages.push(data as Buffer));
  const closed = new Promise<{ code: number; reason: string }>((resolve) =>
    ws.once("close", (code, reason) => resolve({ code, reason: String(reason) })),
  );
  ws.on("error", () => {});
  const next = async () => {
    await until(() => messages.length > 0);
    return messages.shift() as Buffer;
  };
  await once(ws, "open");
  return { ws, closed, next, greeting: JSON.parse(String(await next())) };
}

function closings(gateway: RunningGateway): Record<string, unknown>[] {
  return gateway.logs.filter(({ event }) => event === "websocket.closed");
}

async function openCount(gateway: RunningGateway): Promise<number> {
  return Number(/^coatcheck_websockets_open (\d+)$/m.exec(await gateway.metrics())?.[1]);
}

t.test("messages of 1 MiB both ways, identity, and what the records say", async (t) => {
  const app = await startWebSocketApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const cookie = await login(gateway);
  const client = await open(gateway, { cookie, "x-user-id": "1", x_user_id: "1", "x-session-handle": "forged" });
  t.equal(client.greeting.headers["x-user-id"], "42");
  t.notOk("x_user_id" in client.greeting.headers, "a forged alias is removed");
  t.notMatch(client.greeting.headers["x-session-handle"], /forged/);
  t.equal(client.greeting.headers.cookie, undefined, "the session cookie stays here");
  t.equal(client.greeting.headers.connection, "upgrade");
  for (let i = 0; i < 8; i++) {
    const sent = randomBytes(MIB);
    client.ws.send(sent);
    t.ok(sent.equals(await client.next()), "comes back as it was");
  }
  const listed = JSON.parse((await ask(`${gateway.adminUrl}/websockets?user=42`)).body);
  t.match(listed, { count: 1, websockets: [{ user: "42", route: "*/", client: "127.0.0.1" }] });
  t.ok(listed.websockets[0].bytesIn > 8 * MIB);
  t.equal(JSON.parse((await ask(`${gateway.adminUrl}/websockets?user=43`)).body).count, 0);
  const { handle } = listed.websockets[0];
  t.equal(JSON.parse((await ask(`${gateway.adminUrl}/websockets?handle=${handle}`)).body).count, 1);
  client.ws.close(1000, "done");
  t.match(await client.closed, { code: 1000 });
  const [line] = await until(() => (closings(gateway).length > 0 ? closings(gateway) : undefined));
  const access = gateway.logs.find((entry) => entry["http.response.status_code"] === 101);
  t.match(line, { reason: "client", handle, trace_id: access?.trace_id });
  t.equal(access?.["coatcheck.response.source"], "upstream");
  const metrics = await gateway.metrics();
  t.match(metrics, /^coatcheck_websockets_closed_total\{reason="client"\} 1$/m);
  t.match(metrics, /^coatcheck_websockets_open 0$/m);
  t.match(metrics, /^coatcheck_websocket_bytes_total\{direction="in"\} \d{7,}$/m);
  const record = (await gateway.exchanges()).find(({ response }) => response.status === 101);
  t.match(record, { session: { outcome: "hit", decision: "identified" }, response: { source: "upstream" } });
  t.notMatch(gateway.logText(), cookie.split("=")[1] ?? "-");
});

t.test("a 101 keeps what the two agree on, and loses what commands the session", async (t) => {
  const app = await startTcp(t, (socket) =>
    socket.once("data", () =>
      socket.write(
        `HTTP/1.1 101 Sure\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n` +
          "Sec-WebSocket-Protocol: chat\r\nX-Session-End: all\r\nX_Session.Set: {}\r\nSet-Cookie: a=1\r\nKeep-Alive: timeout=5\r\n\r\n\x81\x02hi",
        "latin1",
      ),
    ),
  );
  const gateway = await startGateway(t, { upstream: app.url });
  const text = await raw(gateway.port, handshake("Sec-WebSocket-Protocol: chat"), (seen) =>
    seen.endsWith("\x81\x02hi"),
  );
  const [head = "", rest] = text.split("\r\n\r\n");
  t.equal(rest, "\x81\x02hi", "octets right behind the head are not lost");
  t.match(head, /^HTTP\/1\.1 101 /);
  for (const field of [
    /^upgrade: websocket$/im,
    /^connection: upgrade$/im,
    /^sec-websocket-protocol: chat$/im,
    /^set-cookie: a=1$/im,
  ])
    t.match(head, field);
  t.notMatch(head, /session|keep-alive/i);
  const record = await until(async () => (await gateway.exchanges()).find(({ response }) => response.status === 101));
  t.match(record.writeBack, [{ command: "end", result: "not-allowed" }]);
});

t.test("octets of the client right behind its handshake are not lost", async (t) => {
  const app = await startWebSocketApp(t, { greets: false });
  const gateway = await startGateway(t, { upstream: app.url });
  const text = await raw(gateway.port, `${handshake()}\x81\x82\0\0\0\0hi`, (seen) => seen.endsWith("hi"));
  t.ok(text.endsWith("\x81\x02hi"));
});

t.test("what is not granted is answered in HTTP, and nothing hangs", async (t) => {
  const app = await startUpstream(t);
  const gateway = await startGateway(t, {
    routes: [
      {
        match: { path: "/" },
        upstream: app.url,
        session: "optional",
        websockets: { origins: ["https://partner.example"] },
      },
      { match: { path: "/private" }, upstream: app.url },
      { match: { path: "/none" }, upstream: app.url, session: "none", websockets: false },
    ],
  });
  const cases: [name: string, octets: string, answer: RegExp, forwarded: boolean][] = [
    ["no session", handshake().replace("/chat", "/private"), /^HTTP\/1\.1 401 [\s\S]*www-authenticate/, false],
    ["no route for it", handshake().replace("/chat", "/none"), /^HTTP\/1\.1 403 [\s\S]*http_request_denied/, false],
    ["another origin", handshake("Origin: https://evil.example"), /^HTTP\/1\.1 403 /, false],
    ["no origin at all, as text", handshake("Origin: null"), /^HTTP\/1\.1 403 /, false],
    ["two origins", handshake("Origin: http://app.example", "Origin: https://evil.example"), /^HTTP\/1\.1 403 /, false],
    ["an origin that only begins alike", handshake("Origin: http://app.example.evil"), /^HTTP\/1\.1 403 /, false],
    ["no key", handshake().replace(/Sec-WebSocket-Key.*\r\n/, ""), /^HTTP\/1\.1 400 /, false],
    ["a short key", handshake().replace(KEY, "YQ=="), /^HTTP\/1\.1 400 /, false],
    ["two keys", handshake(`Sec-WebSocket-Key: ${KEY}`), /^HTTP\/1\.1 400 /, false],
    ["another version", handshake().replace(": 13", ": 8"), /^HTTP\/1\.1 426 [\s\S]*sec-websocket-version: 13/, false],
    ["an upstream that does not know it", handshake(), /^HTTP\/1\.1 200 [\s\S]*connection: close/i, true],
    ["the host's own origin", handshake("Origin: https://app.example"), /^HTTP\/1\.1 200 /, true],
    ["a listed origin", handshake("Origin: https://partner.example"), /^HTTP\/1\.1 200 /, true],
  ];
  for (const [name, octets, answer, forwarded] of cases) {
    app.received.length = 0;
    t.match(await raw(gateway.port, octets), answer, name);
    t.equal(app.received.length, forwarded ? 1 : 0, name);
  }
  const ignored: [name: string, octets: string][] = [
    ["h2c", handshake().replace("websocket", "h2c")],
    ["a list", handshake().replace("websocket", "websocket, h2c")],
    ["HTTP/1.0", handshake().replace("HTTP/1.1", "HTTP/1.0")],
    ["without Connection: upgrade", handshake().replace("Connection: Upgrade", "Connection: close")],
    ["with content", `${handshake("Content-Length: 2")}ok`],
    ["POST", handshake("Content-Length: 0").replace("GET", "POST")],
  ];
  for (const [name, octets] of ignored) {
    app.received.length = 0;
    const smuggled = name.includes("without") ? "" : "GET /behind HTTP/1.1\r\nHost: app.example\r\n\r\n";
    const text = await raw(gateway.port, octets + smuggled);
    t.match(text, /^HTTP\/1\.1 200 /, name);
    t.notOk("upgrade" in (app.received[0]?.headers ?? {}), `${name}: not asked for upstream`);
    t.notMatch(app.received[0]?.headers.connection, /upgrade/i, name);
  }
  const refused = (await gateway.exchanges("errors")).map(({ error }) => error?.message ?? "");
  t.ok(refused.some((message) => /Origin/.test(message)) && !refused.some((message) => /evil/.test(message)));
});

t.test("an application that only pretends opens no tunnel", async (t) => {
  const lies: Record<string, string> = {
    "a 200 with the fields of a 101": `HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\nContent-Length: 0\r\n\r\n`,
    "another accept": `HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${KEY}\r\n\r\n`,
    "two accepts": `HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
    "no accept": "HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "another protocol": `HTTP/1.1 101 A\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
    "a 101 without an upgrade": `HTTP/1.1 101 A\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
  };
  for (const [name, lie] of Object.entries(lies)) {
    let fromClient = "";
    const app = await startTcp(t, (socket) => {
      socket.once("data", () => {
        socket.write(lie);
        socket.on("data", (chunk) => {
          fromClient += chunk;
        });
      });
    });
    const gateway = await startGateway(t, { upstream: app.url });
    const text = await raw(gateway.port, `${handshake()}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n`);
    t.match(text, lie.includes(" 200 ") ? /^HTTP\/1\.1 200 / : /^HTTP\/1\.1 502 /, name);
    t.equal(fromClient, "", `${name}: nothing of the client's got through`);
    t.equal(await openCount(gateway), 0, name);
  }
});

t.test("a slow reader holds up the writer, not the memory", async (t) => {
  const total = 64 * MIB;
  let written = 0;
  const app = await startTcp(t, (socket) =>
    socket.once("data", () => {
      socket.write(
        `HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
      );
      const frame = Buffer.concat([Buffer.from([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Buffer.alloc(65536, 7)]);
      const more = (): void => {
        while (written < total) {
          written += frame.length;
          if (!socket.write(frame)) {
            socket.once("drain", more);
            return;
          }
        }
        socket.end();
      };
      more();
    }),
  );
  const gateway = await startGateway(t, { upstream: app.url });
  const socket = connect(gateway.port, "127.0.0.1");
  socket.write(handshake());
  await once(socket, "readable");
  let before = -1;
  await until(async () => {
    const stands = written === before;
    before = written;
    await new Promise((resolve) => setTimeout(resolve, 100));
    return stands && written === before;
  });
  t.ok(written < total, `the writer stands at ${written} octets`);
  let received = 0;
  socket.on("data", (chunk) => {
    received += chunk.length;
  });
  await once(socket, "end");
  socket.end();
  t.ok(received > total, "all of it comes in the end");
  const [line] = await until(() => (closings(gateway).length > 0 ? closings(gateway) : undefined));
  t.match(line, { reason: "upstream" });
});

t.test("closed with a reason", async (t) => {
  const app = await startWebSocketApp(t);
  const session = {
    idleTimeout: "2s",
    absoluteTimeout: "4s",
    cookie: { name: "session", secure: false, secrets: [SECRET] },
  };
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/chat" }, upstream: app.url, session: "optional", websockets: { idleTimeout: "20s" } },
  ];
  const gateway = await startGateway(t, { session, routes });

  const one = await open(gateway, { cookie: await login(gateway) });
  const [, appSide] = [one, await until(() => [...app.server.clients][0])];
  const appClosed = once(appSide, "close");
  await ask(`${gateway.adminUrl}/sessions?user=42`, { method: "DELETE" });
  t.same(await one.closed, { code: 1008, reason: "session ended" });
  const [code, reason] = await appClosed;
  t.same([code, String(reason)], [1008, "session ended"], "the application is told too");

  const two = await open(gateway, { cookie: await login(gateway) });
  t.same(await two.closed, { code: 1008, reason: "session expired" }, "somebody who says nothing");

  const cookie = await login(gateway);
  const began = Date.now();
  const three = await open(gateway, { cookie });
  const talk = setInterval(() => three.ws.send("still here"), 200);
  t.same(await three.closed, { code: 1008, reason: "session expired" });
  clearInterval(talk);
  t.ok(Date.now() - began > 3000, "talking slides the session, up to its greatest age");

  const four = await open(gateway);
  for (const client of app.server.clients) client.close(4000, "enough");
  t.same(await four.closed, { code: 4000, reason: "enough" });

  const five = await open(gateway);
  for (const client of app.server.clients) client.terminate();
  t.match(await five.closed, { code: 1006 });

  const six = await open(gateway);
  six.ws.terminate();
  await until(() => closings(gateway).length === 6);
  t.same(
    closings(gateway).map(({ reason }) => reason),
    ["session-ended", "session-expired", "session-expired", "upstream", "upstream", "client"],
  );
  await until(() => app.server.clients.size === 0);
});

t.test("one over which nothing comes is closed", async (t) => {
  const app = await startWebSocketApp(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "none", websockets: { idleTimeout: "300ms" } }];
  const gateway = await startGateway(t, { routes });
  const client = await open(gateway);
  t.same(await client.closed, { code: 1001, reason: "idle timeout" });
  await until(() => closings(gateway).some(({ reason }) => reason === "idle"));
});

t.test("a frame that is half said is finished before the close frame", async (t) => {
  const half = Buffer.concat([Buffer.from([0x82, 126, 0x10, 0]), Buffer.alloc(1000, 1)]);
  const sockets: Socket[] = [];
  const app = await startTcp(t, (socket) => {
    socket.once("data", (chunk) => {
      if (String(chunk).startsWith("POST")) {
        socket.end('HTTP/1.1 200 OK\r\nX-Session-Start: {"user":{"id":"42"}}\r\nContent-Length: 0\r\n\r\n');
        return;
      }
      socket.write(
        `HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
      );
      socket.write(half);
      sockets.push(socket);
    });
  });
  const gateway = await startGateway(t, { upstream: app.url });
  const client = connect(gateway.port, "127.0.0.1");
  client.write(handshake(`Cookie: ${await login(gateway)}`));
  let text = "";
  client.setEncoding("latin1").on("data", (piece) => {
    text += piece;
  });
  await until(() => text.split("\r\n\r\n")[1]?.length === half.length);
  await ask(`${gateway.adminUrl}/sessions?user=42`, { method: "DELETE" });
  sockets[0]?.write(Buffer.concat([Buffer.alloc(3096, 2), Buffer.from([0x81, 2, 104, 105])]));
  await once(client, "end");
  client.end();
  const frames = text.split("\r\n\r\n")[1] ?? "";
  t.equal(frames.slice(0, 4100), half.toString("latin1") + "\x02".repeat(3096));
  t.equal(frames.slice(4100), "\x88\x0f\x03\xf0session ended", "then the close frame, and nothing after it");
});

t.test("revoked on another instance", async (t) => {
  const redis = await startRedis(t);
  const app = await startWebSocketApp(t);
  const one = await startGateway(t, { upstream: app.url, store: redis.url });
  const two = await startGateway(t, { upstream: app.url, store: redis.url });
  for (const gateway of [one, two])
    await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  const delays: number[] = [];
  for (let i = 0; i < 10; i++) {
    const client = await open(two, { cookie: await login(one, { id: `u${i}`, name: "Ada" }) });
    const at = performance.now();
    await ask(`${one.adminUrl}/sessions?user=u${i}`, { method: "DELETE" });
    t.same(await client.closed, { code: 1008, reason: "session ended" });
    delays.push(performance.now() - at);
  }
  delays.sort((a, b) => a - b);
  t.comment(
    `from the revocation to the close at the client: median ${delays[5]?.toFixed(1)} ms, longest ${delays[9]?.toFixed(1)} ms`,
  );
  t.ok((delays[9] ?? Infinity) < 2000);

  const client = await open(two, { cookie: await login(one) });
  await redis.stop();
  await until(async () => /^coatcheck_session_feed\{state="lost"\} 1$/m.test(await two.metrics()));
  client.ws.send("still there?");
  t.equal(String(await client.next()), "still there?", "an outage ends nobody's socket");
  client.ws.terminate();
});

t.test("revoked on another instance, with a store that does not tell", async (t) => {
  const app = await startWebSocketApp(t);
  const store = `sqlite:${await temporaryFolder(t)}/sessions.db`;
  // Looked at every half second.
  const session = { idleTimeout: "5s", cookie: { name: "session", secure: false, secrets: [SECRET] } };
  const one = await startGateway(t, { upstream: app.url, store, session });
  const two = await startGateway(t, { upstream: app.url, store, session });
  const client = await open(two, { cookie: await login(one) });
  await ask(`${one.adminUrl}/sessions?user=42`, { method: "DELETE" });
  t.same(await client.closed, { code: 1008, reason: "session ended" });
});

t.test("a large response in place of a 101, to a client that reads slowly", async (t) => {
  const app = await startUpstream(t, (_received, _req, res) => void res.end(Buffer.alloc(16 * MIB, "x")));
  const gateway = await startGateway(t, { upstream: app.url });
  const socket = connect(gateway.port, "127.0.0.1");
  socket.write(handshake());
  await once(socket, "readable");
  await new Promise((resolve) => setTimeout(resolve, 200));
  let received = 0;
  socket.on("data", (chunk) => {
    received += chunk.length;
  });
  await once(socket, "end");
  t.ok(received > 16 * MIB);
});

t.test("the 101 renews the cookie for as long as the session can live", async (t) => {
  const app = await startWebSocketApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const octets = handshake(`Cookie: ${await login(gateway)}`);
  const text = await raw(gateway.port, octets, (seen) => seen.includes("\r\n\r\n"));
  const [, age] = /^set-cookie: session=[^;]+; Max-Age=(\d+)/im.exec(text) ?? [];
  t.ok(Number(age) > 11 * 3600, "absoluteTimeout is 12 h, idleTimeout half an hour");
});

t.test("hundreds opened and closed leave nothing", async (t) => {
  const app = await startWebSocketApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const cookie = await login(gateway);
  for (let round = 0; round < 10; round++) {
    const clients = await Promise.all(Array.from({ length: 40 }, () => open(gateway, { cookie })));
    t.equal(await openCount(gateway), 40);
    for (const [i, { ws }] of clients.entries()) {
      if (i % 3 === 0) ws.close();
      else if (i % 3 === 1) ws.terminate();
      else ws.send("x", () => ws.close());
    }
    await Promise.all(clients.map(({ closed }) => closed));
    await until(async () => (await openCount(gateway)) === 0);
  }
  await until(() => app.server.clients.size === 0);
  t.equal(closings(gateway).length, 400);
  t.equal(JSON.parse((await ask(`${gateway.adminUrl}/websockets`)).body).count, 0);
  const connections = () =>
    new Promise<number>((resolve) => app.http.getConnections((_error, count) => resolve(count)));
  await until(async () => (await connections()) <= 2);
});

t.test("a client that leaves during the handshake leaves nothing", async (t) => {
  const asked: Socket[] = [];
  const app = await startTcp(t, (socket) => socket.once("data", () => asked.push(socket)));
  const gateway = await startGateway(t, { upstream: app.url });
  const client = connect(gateway.port, "127.0.0.1");
  client.write(handshake());
  const [upstream] = await until(() => (asked.length > 0 ? asked : undefined));
  client.end();
  await once(upstream as Socket, "close");
  const record = await until(async () => (await gateway.exchanges())[0]);
  t.match(record, { response: { status: 499, clientGone: true } });
});

t.test("shutdown closes them last, and in time", async (t) => {
  const app = await startWebSocketApp(t);
  const gateway = await startGateway(t, { upstream: app.url, shutdown: { timeout: "5s" } });
  const [one, two] = [await open(gateway), await open(gateway)];
  // One that does not answer a close frame holds nothing up.
  two.ws.pause();
  const slow = ask(`${gateway.url}/slow`);
  await until(() => app.slow.length === 1);
  const began = performance.now();
  const closing = gateway.gateway.close();
  await until(() => gateway.logs.some(({ event }) => event === "gateway.draining"));
  one.ws.send("still open");
  t.equal(String(await one.next()), "still open", "while a request is in flight");
  app.slow[0]?.end("done");
  t.equal((await slow).body, "done");
  t.same(await one.closed, { code: 1001, reason: "going away" });
  await closing;
  t.ok(performance.now() - began < 5500);
  t.same(
    closings(gateway).map(({ reason }) => reason),
    ["shutdown", "shutdown"],
  );
  two.ws.terminate();
});
