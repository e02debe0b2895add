/** Limits of connections, who waits for one, and how upstreams are let go of. */
import { once } from "node:events";
import { connect } from "node:net";
import t from "tap";
import { WebSocket } from "ws";
import { loadConfig } from "../src/config/load.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, until } from "./support/client.ts";
import { startGateway, startHttp } from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";
import {
  balanced,
  counted,
  RESETTING,
  shown,
  startTargets,
  statesOf,
  type TestTarget,
  WELL,
} from "./support/targets.ts";
import { startWebSocketApp } from "./support/websockets.ts";

/** Targets that answer when they are told to. */
function hold(targets: readonly TestTarget[]): (() => void)[] {
  const held: (() => void)[] = [];
  for (const target of targets) target.behaviour = (req, res) => held.push(() => WELL(req, res));
  return held;
}

for (const count of [1, 2]) {
  t.test(`${count} targets: what is beyond the limit waits, and what is beyond that gets 503`, async (t) => {
    const targets = await startTargets(t, count);
    const held = hold(targets);
    const settings = { maxConnections: 2, queue: { size: 2, timeout: "1m" } };
    const gateway = await startGateway(t, balanced(targets, settings));
    const room = 2 * count;
    const served = Array.from({ length: room }, () => ask(gateway.url));
    await until(() => held.length === room);
    const waiting = [ask(gateway.url), ask(gateway.url)];
    await until(async () => (await shown(gateway)).queued === 2);
    t.equal(await counted(gateway, "coatcheck_upstream_queue_length"), 2);
    t.equal(await counted(gateway, "coatcheck_upstream_connections_in_use"), room);
    const refused = await ask(gateway.url);
    t.equal(refused.status, 503);
    t.equal(refused.headers["proxy-status"], "coatcheck; error=connection_limit_reached");
    t.ok(refused.headers["retry-after"]);
    const [record] = await gateway.exchanges();
    t.match(record, { queueRefused: "full", error: { type: "connection_limit_reached" } });
    t.equal(held.length, room, "nobody has more than it may");
    for (let i = 0; i < room + 2; i++) {
      await until(() => held.length > i);
      held[i]?.();
    }
    for (const { status } of await Promise.all([...served, ...waiting])) t.equal(status, 200);
    t.equal((await shown(gateway)).queued, 0);
    t.equal(await counted(gateway, "coatcheck_upstream_connections_in_use"), 0);
    t.equal(await counted(gateway, "coatcheck_upstream_queue_wait_seconds_count"), 2);
    t.equal(await counted(gateway, "coatcheck_upstream_queue_refused_total", { reason: "full" }), 1);
    const waited = (await gateway.exchanges()).filter(({ upstream }) => (upstream?.waitedMs ?? 0) > 0);
    t.equal(waited.length, 2);
    t.ok(
      (waited[0] as unknown as { steps: { step: string }[] }).steps.some(({ step }) => step === "waited"),
      "it is told",
    );
  });
}

t.test("a wait has an end", async (t) => {
  const targets = await startTargets(t, 1);
  const held = hold(targets);
  const settings = { maxConnections: 1, queue: { timeout: "100ms" } };
  const gateway = await startGateway(t, balanced(targets, settings));
  const first = ask(gateway.url);
  await until(() => held.length === 1);
  const late = await ask(gateway.url, { method: "POST", body: "x".repeat(200_000) });
  t.equal(late.status, 503);
  t.equal(late.headers["proxy-status"], "coatcheck; error=connection_limit_reached");
  t.equal(await counted(gateway, "coatcheck_upstream_queue_refused_total", { reason: "timeout" }), 1);
  held[0]?.();
  t.equal((await first).status, 200);
  t.equal(targets[0]?.requests.length, 1);
});

t.test("a client that goes away while it waits leaves its place to the next", async (t) => {
  const targets = await startTargets(t, 1);
  const held = hold(targets);
  const gateway = await startGateway(t, balanced(targets, { maxConnections: 1, queue: { size: 1 } }));
  const first = ask(gateway.url);
  await until(() => held.length === 1);
  const impatient = connect(gateway.port, "127.0.0.1");
  impatient.write("GET /impatient HTTP/1.1\r\nHost: a\r\n\r\n");
  await until(async () => (await shown(gateway)).queued === 1);
  impatient.destroy();
  await until(async () => (await shown(gateway)).queued === 0);
  const next = ask(gateway.url);
  await until(async () => (await shown(gateway)).queued === 1);
  held[0]?.();
  await until(() => held.length === 2);
  held[1]?.();
  t.same(
    (await Promise.all([first, next])).map(({ status }) => status),
    [200, 200],
  );
  t.notOk(targets[0]?.requests.includes("GET /impatient"));
});

t.test("places come back whatever becomes of a request", async (t) => {
  const { server, port } = await startHttp(t, (req, res) => {
    if (req.url === "/reset") return void req.socket.resetAndDestroy();
    if (req.url === "/short") return void res.writeHead(200, { "content-length": 10 }).write("x", () => res.destroy());
    if (req.url === "/hang") return;
    if (req.url === "/bad") return void req.socket.end("HTTP/1.1 600 x\r\n\r\n");
    req.resume();
    res.end("ok");
  });
  const settings = { maxConnections: 1, queue: { size: 0 }, timeouts: { firstByte: "200ms", idle: "200ms" } };
  const gateway = await startGateway(t, balanced([`http://127.0.0.1:${port}`], settings));
  const isFree = () => until(async () => (await counted(gateway, "coatcheck_upstream_connections_in_use")) === 0);
  for (const path of ["/reset", "/short", "/hang", "/bad", "/", "/"]) {
    await ask(gateway.url + path).catch(() => {});
    await isFree();
    t.equal((await ask(gateway.url)).status, 200, path);
    await isFree();
  }
  const gone = connect(gateway.port, "127.0.0.1");
  gone.write("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
  await once(server, "request");
  gone.destroy();
  await isFree();
  t.equal((await ask(gateway.url)).status, 200, "after a client that went away");
});

t.test("a WebSocket has a connection for as long as it lasts, and its target by the same choice", async (t) => {
  const targets = await startTargets(t, 2);
  const { WebSocketServer } = await import("ws");
  const ports: number[] = [];
  const apps = await Promise.all(
    [1, 2].map(async () => {
      const { server, port } = await startHttp(t, (_req, res) => void res.end("ok"));
      const sockets = new WebSocketServer({ server });
      sockets.on("connection", (socket) => {
        ports.push(port);
        socket.on("message", (data) => socket.send(data));
      });
      t.teardown(() => {
        for (const socket of sockets.clients) socket.terminate();
      });
      return `http://127.0.0.1:${port}`;
    }),
  );
  const gateway = await startGateway(t, balanced(apps, { maxConnections: 1, queue: { size: 0 } }));
  const open = async () => {
    const socket = new WebSocket(gateway.url.replace("http", "ws"));
    await once(socket, "open");
    return socket;
  };
  const sockets = [await open(), await open()];
  t.equal(new Set(ports).size, 2, "one at each");
  const refused = new WebSocket(gateway.url.replace("http", "ws"));
  const [, reply] = await once(refused, "unexpected-response");
  t.equal(reply.statusCode, 503);
  reply.resume();
  refused.on("error", () => {}).terminate();
  t.equal((await ask(gateway.url)).status, 503);
  sockets[0]?.close();
  await until(async () => (await counted(gateway, "coatcheck_upstream_connections_in_use")) === 1);
  t.equal((await ask(gateway.url)).status, 200);
  sockets[1]?.close();
  await until(async () => (await counted(gateway, "coatcheck_upstream_connections_in_use")) === 0);
  t.equal(targets.length, 2);
});

t.test("WebSockets shut nobody out where no limit is set", async (t) => {
  const app = await startWebSocketApp(t, { greets: false });
  const gateway = await startGateway(t, { upstream: app.url });
  const sockets: WebSocket[] = [];
  t.teardown(() => {
    for (const socket of sockets) socket.terminate();
  });
  const open = async () => {
    const socket = new WebSocket(gateway.url.replace("http", "ws"));
    sockets.push(socket);
    await once(socket, "open");
  };
  for (let i = 0; i < 21; i++) await Promise.all(Array.from({ length: 50 }, open));
  t.equal(await counted(gateway, "coatcheck_upstream_connections_in_use"), 1050, "more than requests at a time");
  t.equal((await ask(gateway.url)).status, 200);
});

t.test(
  "a reload keeps the upstreams that stay the same, with what they have learnt, and lets go of the others",
  async (t) => {
    const [bad, good, other] = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
    bad.behaviour = RESETTING;
    const settings = {
      ejection: { failures: 1, duration: "1h", maxDuration: "1h" },
      retries: { attempts: 1, on: ["closed"] },
    };
    const gateway = await startGateway(t, balanced([bad, good], settings));
    await ask(gateway.url);
    await ask(gateway.url);
    t.same(await statesOf(gateway), ["ejected", "in-service"]);
    const read = (value: object) => loadConfig({ store: "memory:", ...value }, {}).config;
    await gateway.gateway.reload(read({ ...balanced([bad, good], settings), shutdown: { delay: "1ms" } }));
    t.same(await statesOf(gateway), ["ejected", "in-service"], "it is still out");

    const held = hold([good]);
    const underWay = ask(gateway.url);
    await until(() => held.length === 1);
    await gateway.gateway.reload(read(balanced([other])));
    t.equal((await ask(gateway.url)).body, `${other.port}`);
    t.notMatch(await gateway.metrics(), new RegExp(`coatcheck_upstream_up.*${bad.port}`), "what is gone is not down");
    held[0]?.();
    t.equal((await underWay).body, `${good.port}`);
  },
);

for (const gone of ["the save fails", "the client leaves"] as const) {
  t.test(`a place is given back when the answer to a login is whole before it is saved, and ${gone}`, async (t) => {
    const saving: (() => void)[] = [];
    const store = new SteppedStore(new MemoryStore(), (step) => {
      if (step !== "create") return Promise.resolve();
      if (gone === "the save fails") return Promise.reject(new Error("it is down"));
      return new Promise<void>((resolve) => saving.push(resolve));
    });
    const app = await startHttp(t, (req, res) => {
      req.resume();
      const start = req.url === "/login" && { "X-Session-Start": '{"user":{"id":"7"}}' };
      res.writeHead(204, { ...start }).end();
    });
    const upstream = { targets: [`http://127.0.0.1:${app.port}`], maxConnections: 1, queue: { size: 0 } };
    const gateway = await startGateway(t, { routes: [{ upstream, session: "optional", write: ["user"] }] }, { store });
    if (gone === "the save fails") t.equal((await ask(`${gateway.url}/login`)).status, 503);
    else {
      const socket = connect(gateway.port, "127.0.0.1");
      socket.write("GET /login HTTP/1.1\r\nHost: a\r\n\r\n");
      await until(() => saving.length === 1);
      socket.destroy();
      await until(async () => (await shown(gateway)).targets[0]?.endpoints[0]?.active === 0);
      saving[0]?.();
    }
    t.equal((await shown(gateway)).targets[0]?.endpoints[0]?.active, 0);
    t.equal((await ask(gateway.url)).status, 204);
  });
}
