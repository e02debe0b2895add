/** Ending: readiness first, then what is in flight, then the sockets; bounded. */
import { once } from "node:events";
import { Agent, get } from "node:http";
import { connect } from "node:net";
import t from "tap";
import { ask, raw, until } from "./support/client.ts";
import { startGateway, startUpstream } from "./support/servers.ts";

t.test("readiness goes first, requests in flight finish, then nobody listens", async (t) => {
  const asked = Promise.withResolvers<void>();
  const finish = Promise.withResolvers<void>();
  const upstream = await startUpstream(t, async (received, _req, res) => {
    if (received.url === "/slow") {
      asked.resolve();
      await finish.promise;
    }
    res.end("done");
  });
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { delay: "3s", timeout: "10s" } });
  const slow = ask(`${gateway.url}/slow`);
  await asked.promise;
  const closed = gateway.gateway.close();
  t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 503);
  t.equal((await fetch(`${gateway.adminUrl}/livez`)).status, 200);
  t.match(await gateway.metrics(), /^coatcheck_draining 1$/m);
  const during = await ask(gateway.url);
  t.equal(during.status, 200, "while load balancers notice, requests are served");
  t.equal(during.headers.connection, "close");
  const own = await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\nTRACE / HTTP/1.1\r\nHost: a\r\n\r\n");
  t.match(own, /^HTTP\/1\.1 200 .*Connection: close\r\n/is, "what comes behind is for another connection");
  t.notMatch(own, "405");
  t.match(await raw(gateway.port, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), /^HTTP\/1\.1 405 .*Connection: close\r\n/is);
  await until(
    () =>
      new Promise<boolean>((resolve) =>
        connect(gateway.port, "127.0.0.1")
          .once("connect", () => resolve(false))
          .once("error", () => resolve(true)),
      ),
  );
  finish.resolve();
  t.equal((await slow).body, "done", "what was in flight finished");
  await closed;
  t.match(
    gateway.logs.filter(({ event }) => String(event).startsWith("gateway.")),
    [
      { event: "gateway.started" },
      { event: "gateway.draining", delay_s: 3, timeout_s: 10, requests: 1, websockets: 0 },
      { event: "gateway.stopped", level: "info", requests_cut: 0 },
    ],
  );
});

t.test("idle connections do not hold it up", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { timeout: "10s" } });
  const agent = new Agent({ keepAlive: true });
  t.teardown(() => agent.destroy());
  const [res] = await once(get(gateway.url, { agent }), "response");
  res.resume();
  await once(res, "end");
  const idle = connect(gateway.port, "127.0.0.1");
  await once(idle, "connect");
  const startedMs = performance.now();
  await gateway.gateway.close();
  t.ok(performance.now() - startedMs < 5_000);
  idle.destroy();
});

t.test("what does not finish is answered, or cut, when the time is over, and recorded as what it is", async (t) => {
  const upstream = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/begun") res.write("the beginning");
  });
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { timeout: "300ms" } });
  const silent = raw(gateway.port, "GET /silent HTTP/1.1\r\nHost: a\r\n\r\n");
  const begun = raw(gateway.port, "GET /begun HTTP/1.1\r\nHost: a\r\n\r\n");
  const sending = raw(gateway.port, "POST /sending HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
  await until(() => upstream.received.length === 2);
  await until(async () => /active_requests\{[^}]*"POST"[^}]*\} 1/.test(await gateway.metrics()));
  await gateway.gateway.close();
  for (const answer of [await silent, await sending]) {
    t.match(answer, /^HTTP\/1\.1 503 .*proxy-status: coatcheck; error=proxy_shutdown\r\n.*Connection: close\r\n/is);
    t.match(answer, /retry-after: \d+\r\n/);
  }
  t.match(await begun, /^HTTP\/1\.1 200 .*the beginning\r\n$/s, "without its end");
  const lines = gateway.logs.filter(({ event }) => event === "http.access");
  const statuses = Object.fromEntries(lines.map((line) => [line["url.path"], line["http.response.status_code"]]));
  t.same(statuses, { "/silent": 503, "/begun": 200, "/sending": 503 });
  for (const line of lines) t.match(line, { "error.type": "proxy_shutdown", error_message: /shutdown\.timeout/ });
  const stopped = gateway.logs.find(({ event }) => event === "gateway.stopped");
  t.match(stopped, { level: "warn", requests_cut: 3 });
  t.match(stopped?.msg, /3 requests had not ended in time/);
});

t.test("a drain has the times that its caller says", async (t) => {
  const upstream = await startUpstream(t, () => {});
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { delay: "10m", timeout: "1h" } });
  const hanging = raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await until(() => upstream.received.length === 1);
  await gateway.gateway.close({ delayMs: 0, timeoutMs: 50 });
  t.match(await hanging, /^HTTP\/1\.1 503 /);
});

t.test("closing twice is closing once", async (t) => {
  const gateway = await startGateway(t, {});
  await Promise.all([gateway.gateway.close(), gateway.gateway.close()]);
  t.equal(gateway.logs.filter((line) => line.event === "gateway.stopped").length, 1);
});

t.test("a client that sends on behind its last answer does not hold it up", async (t) => {
  const gateway = await startGateway(t, { shutdown: { timeout: "20s" } });
  const socket = connect({ port: gateway.port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => {});
  await once(socket, "connect");
  socket.write("POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 1000000\r\n\r\n");
  const [answer] = await once(socket, "data");
  t.match(String(answer), /^HTTP\/1\.1 400 /);
  const timer = setInterval(() => socket.writable && socket.write("x"), 50);
  const startedMs = performance.now();
  await gateway.gateway.close();
  t.ok(performance.now() - startedMs < 10_000);
  clearInterval(timer);
  socket.destroy();
});
