/** Clients that leave, stall, hold on or send nonsense: nothing of ours may stay behind, and nobody else may suffer. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import t from "tap";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, collect, cookiePair, raw, until } from "./support/client.ts";
import { type RunningGateway, startApp, startGateway, startHttp, startTcp, startUpstream } from "./support/servers.ts";

/** A store that answers when it is told to, as one on a network might. */
class SlowStore extends MemoryStore {
  gate: Promise<void> = Promise.resolve();
  asked = Promise.withResolvers<void>();

  override find(key: string): ReturnType<MemoryStore["find"]> {
    this.asked.resolve();
    return this.gate.then(() => super.find(key)) as unknown as ReturnType<MemoryStore["find"]>;
  }

  override create(...args: Parameters<MemoryStore["create"]>): ReturnType<MemoryStore["create"]> {
    return this.gate.then(() => super.create(...args)) as unknown as ReturnType<MemoryStore["create"]>;
  }
}

async function opened(port: number, octets: string): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  await once(socket, "connect");
  socket.write(octets, "latin1");
  return socket;
}

const active = async (gateway: RunningGateway) =>
  [...(await gateway.metrics()).matchAll(/^http_server_active_requests\{.*\} (-?\d+)$/gm)].map(([, value]) =>
    Number(value),
  );

t.test("a CONNECT whose socket is reset harms nobody", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  for (let i = 0; i < 20; i++) {
    const socket = await opened(gateway.port, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    socket.resetAndDestroy();
  }
  await until(async () => (await gateway.exchanges("errors")).length === 20);
  t.equal((await ask(gateway.url)).status, 200);
});

t.test("a client that leaves during the look-up begins nothing upstream", async (t) => {
  const store = new SlowStore();
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url }, { store });
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const cookie = cookiePair(login.setCookie[0]);
  const before = app.received.length;
  for (const request of ["GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 100\r\n"]) {
    const go = Promise.withResolvers<void>();
    store.gate = go.promise;
    store.asked = Promise.withResolvers();
    const socket = await opened(gateway.port, `${request}Host: a\r\nCookie: ${cookie}\r\n\r\nsome`);
    await store.asked.promise;
    socket.destroy();
    await until(async () => (await gateway.exchanges())[0]?.response.clientGone);
    go.resolve();
  }
  store.gate = Promise.resolve();
  t.equal((await ask(gateway.url, { headers: { cookie } })).status, 200);
  t.equal(app.received.length, before + 1);
  t.same(
    (await active(gateway)).filter((value) => value !== 0),
    [],
  );
});

t.test("a reason phrase beyond ASCII does not hang the request", async (t) => {
  for (const phrase of ["caf\xe9", "Zo\xe2\x82\xac", "\x07bell"]) {
    for (const command of ["", 'X-Session-Start: {"user":{"id":"1"}}\r\n']) {
      const upstream = await startTcp(t, (socket) =>
        socket.once("data", () =>
          socket.end(`HTTP/1.1 200 ${phrase}\r\n${command}Content-Length: 2\r\n\r\nok`, "latin1"),
        ),
      );
      const gateway = await startGateway(t, { upstream: upstream.url });
      const reply = await ask(gateway.url);
      if (phrase.startsWith("\x07")) t.ok([200, 502].includes(reply.status));
      else t.match(reply, { status: 200, body: "ok" });
    }
  }
});

t.test("refused sockets that the client keeps open do not stay, and do not hold up the shutdown", async (t) => {
  const gateway = await startGateway(t, { shutdown: { timeout: "500ms" } });
  const refused = ["CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "nonsense\r\n\r\n"];
  const sockets = await Promise.all(refused.map((octets) => opened(gateway.port, octets)));
  for (const socket of sockets) socket.resume();
  await Promise.all(sockets.map((socket) => once(socket, "close")));

  const held = connect({ port: gateway.port, host: "127.0.0.1", allowHalfOpen: true });
  held.on("error", () => {}).resume();
  held.write("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
  await once(held, "end");
  const startedMs = performance.now();
  await gateway.gateway.close();
  t.ok(performance.now() - startedMs < 3_000, "bounded");
  held.destroy();
});

t.test("a malformed chunk ends the exchange and the upstream request, and the records say 400", async (t) => {
  const gone = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const { port } = await startHttp(t, (req) => {
    req.once("data", () => begun.resolve());
    req.socket.once("close", () => gone.resolve());
  });
  const gateway = await startGateway(t, { upstream: `http://127.0.0.1:${port}` });
  const socket = await opened(
    gateway.port,
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
  );
  await begun.promise;
  socket.write("zz\r\n");
  const reply = collect(socket);
  await gone.promise;
  t.match(await reply, /^HTTP\/1.1 400 /);
  const exchange = await until(async () => (await gateway.exchanges())[0]);
  t.match(exchange, { response: { status: 400 }, error: { type: "http_request_error" } });
  t.same(
    (await active(gateway)).filter((value) => value !== 0),
    [],
  );
});

t.test("write-back waits for the save on HEAD, 204 and 304 too, whatever the store's pace", async (t) => {
  for (const [method, status] of [
    ["HEAD", 404],
    ["GET", 204],
    ["GET", 304],
    ["GET", 200],
  ] as const) {
    const store = new SlowStore();
    const upstream = await startUpstream(t, (_received, _req, res) => {
      res
        .writeHead(status, {
          "X-Session-Start": '{"user":{"id":"1"}}',
          "X-Mine": "1",
          ...(status === 200 && { "content-length": "0" }),
        })
        .end();
    });
    const gateway = await startGateway(t, { upstream: upstream.url }, { store });
    const go = Promise.withResolvers<void>();
    store.gate = go.promise;
    let answered = false;
    const reply = ask(gateway.url, { method }).then((value) => {
      answered = true;
      return value;
    });
    await until(() => upstream.received.length === 1);
    await new Promise((resolve) => setImmediate(resolve));
    t.equal(answered, false, "nothing is released before the save");
    go.resolve();
    t.match(await reply, { status, headers: { "x-mine": "1" }, setCookie: [/^session=/] }, `${method} ${status}`);
  }
});

t.test("a save that fails after a HEAD turns the response into 503", async (t) => {
  const store = new SlowStore();
  const upstream = await startUpstream(t, (_received, _req, res) =>
    res.setHeader("X-Session-Start", '{"user":{"id":"1"}}').end(),
  );
  const gateway = await startGateway(t, { upstream: upstream.url }, { store });
  store.gate = Promise.reject(new Error("down"));
  store.gate.catch(() => {});
  const reply = await ask(gateway.url, { method: "HEAD" });
  t.equal(reply.setCookie.length, 0);
  t.ok(reply.status >= 500);
});

const timeouts = { idle: "300ms", firstByte: "2s" };

t.test("a client that stops in the middle of an upload gets 408 and frees the upstream connection", async (t) => {
  const gone = Promise.withResolvers<void>();
  const { port } = await startHttp(t, (req) => req.resume().socket.once("close", () => gone.resolve()));
  const gateway = await startGateway(t, {
    routes: [{ upstream: { targets: [`http://127.0.0.1:${port}`], timeouts }, session: "none" }],
  });
  const reply = await raw(gateway.port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
  t.match(reply, /^HTTP\/1.1 408 /);
  await gone.promise;
});

t.test("an upstream that stops reading an upload ends in 504, not in a hanging request", async (t) => {
  const upstream = await startTcp(t, (socket) => socket.once("data", () => socket.pause()));
  const gateway = await startGateway(t, {
    routes: [{ upstream: { targets: [upstream.url], timeouts }, session: "none" }],
  });
  const socket = await opened(gateway.port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
  const chunk = Buffer.alloc(1024 * 1024);
  const push = (): void => {
    while (socket.writable && socket.write(chunk));
    socket.once("drain", push);
  };
  push();
  t.match(await collect(socket, (text) => text.includes("}\n")), /^HTTP\/1.1 504 [\s\S]*connection_write_timeout/);
});

t.test("a client that stops reading frees the upstream connection", async (t) => {
  const gone = Promise.withResolvers<void>();
  const { port } = await startHttp(t, (_req, res) => {
    res.once("close", () => gone.resolve());
    const write = (): void => {
      while (!res.destroyed && res.write(Buffer.alloc(65_536)));
      res.once("drain", write);
    };
    write();
  });
  const gateway = await startGateway(t, {
    routes: [{ upstream: { targets: [`http://127.0.0.1:${port}`], timeouts }, session: "none" }],
  });
  const socket = await opened(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await gone.promise;
  const exchange = await until(async () => (await gateway.exchanges())[0]);
  t.match(exchange, { response: { clientGone: true } });
  socket.destroy();
});

t.test("an upload that is refused early can read why", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "required" }] });
  for (let i = 0; i < 10; i++) {
    const reply = await ask(gateway.url, { method: "POST", body: Buffer.alloc(4 * 1024 * 1024) });
    t.equal(reply.status, 401);
  }
});

t.test("the gauge of active requests returns to zero behind a proxy that speaks TLS", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    listen: { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] },
  });
  for (let i = 0; i < 3; i++) await ask(gateway.url, { headers: { "x-forwarded-proto": "https" } });
  t.same(
    (await active(gateway)).filter((value) => value !== 0),
    [],
  );
});

t.test("a refused target is not shown: it may hold a password or a fragment", async (t) => {
  const gateway = await startGateway(t, {});
  for (const target of ["http://user:hunter2@h/", "/cb#access_token=hunter2", "/a?token=hunter2\\"]) {
    t.match(
      await raw(gateway.port, `GET ${target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`),
      /^HTTP\/1.1 400 /,
    );
  }
  t.notMatch(gateway.logText() + JSON.stringify(await gateway.exchanges()), "hunter2");
});

t.test("an unknown expectation is refused with a record", async (t) => {
  const gateway = await startGateway(t, {});
  t.match(
    await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nConnection: close\r\n\r\n"),
    /^HTTP\/1.1 417 /,
  );
  t.equal((await gateway.exchanges("errors")).length, 1);
});

t.test("pipelined requests that wait are bounded", async (t) => {
  const upstream = await startUpstream(t, () => {});
  const gateway = await startGateway(t, { upstream: upstream.url });
  const socket = await opened(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5_000));
  await new Promise((resolve) => socket.resume().once("close", resolve));
  const flood = await until(async () => (await gateway.exchanges("errors"))[0]);
  t.match(flood, { response: { status: 429 } });
  t.ok(upstream.received.length <= 1, "the others were never started");
});

t.test("a CONNECT behind a request waits for its answer", async (t) => {
  const upstream = await startUpstream(t, (_received, _req, res) => setTimeout(() => res.end("first"), 50));
  const gateway = await startGateway(t, { upstream: upstream.url });
  const reply = await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
  t.match(reply, /^HTTP\/1.1 200 [\s\S]*first[\s\S]*HTTP\/1.1 405 /);
});

t.test("a client that leaves behind a CONNECT takes its request along", async (t) => {
  const asked = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<void>();
  const upstream = await startUpstream(t, (_received, _req, res) => {
    res.once("close", gone.resolve);
    asked.resolve();
  });
  const gateway = await startGateway(t, { upstream: upstream.url });
  const socket = await opened(
    gateway.port,
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
  );
  await asked.promise;
  socket.destroy();
  await gone.promise;
  t.match(await until(async () => (await gateway.exchanges())[0]), { response: { status: 499, clientGone: true } });
  t.same(await active(gateway), [0]);
});

t.test("a malformed chunk of a pipelined request is answered after the earlier one, at once", async (t) => {
  const upstream = await startUpstream(t, (_received, _req, res) => setTimeout(() => res.end("first"), 50));
  const gateway = await startGateway(t, { upstream: upstream.url });
  const reply = await raw(
    gateway.port,
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
  );
  t.match(reply, /^HTTP\/1.1 200 [\s\S]*first[\s\S]*HTTP\/1.1 400 /);
  t.equal(upstream.received.length, 1);
});
