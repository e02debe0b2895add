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
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { delay: "300ms", timeout: "5s" } });
  const slow = ask(`${gateway.url}/slow`);
  await asked.promise;
  const closed = gateway.gateway.close();
  t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 503);
  t.equal((await fetch(`${gateway.adminUrl}/livez`)).status, 200);
  const during = await ask(gateway.url);
  t.equal(during.status, 200, "while load balancers notice, requests are served");
  t.equal(during.headers.connection, "close");
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
    gateway.logs.map((line) => line.event).filter((event) => String(event).startsWith("gateway.")),
    ["gateway.started", "gateway.draining", "gateway.stopped"],
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

t.test("what does not finish is cut when the time is over", async (t) => {
  const asked = Promise.withResolvers<void>();
  const upstream = await startUpstream(t, () => asked.resolve());
  const gateway = await startGateway(t, { upstream: upstream.url, shutdown: { timeout: "200ms" } });
  const hanging = raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await asked.promise;
  await gateway.gateway.close();
  t.equal(await hanging, "");
});

t.test("closing twice is closing once", async (t) => {
  const gateway = await startGateway(t, {});
  await Promise.all([gateway.gateway.close(), gateway.gateway.close()]);
  t.equal(gateway.logs.filter((line) => line.event === "gateway.stopped").length, 1);
});
