/** What operators see of several workers: one gateway. */
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import t from "tap";
import { WebSocket } from "ws";
import { PLANS } from "../src/workers/plans.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { startApp, temporaryFolder } from "./support/servers.ts";
import { startWebSocketApp } from "./support/websockets.ts";
import { clientOfEach, startWorkers, type WorkersGateway } from "./support/workers.ts";

async function logIn(gateway: WorkersGateway, user: string) {
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id: user } }) });
  return { cookie: cookiePair(login.setCookie[0]) };
}

t.test("exchanges, explanations, watches, settings and dumps are those of all", async (t) => {
  const app = await startApp(t);
  const gateway = await startWorkers(t, { upstream: app.url });
  const { admin } = gateway;

  const { paths } = (await admin("/openapi.json")).body;
  const described = Object.entries(paths).flatMap(([path, methods]) =>
    ["get", "post", "delete"].filter((it) => it in (methods as object)).map((it) => `${it.toUpperCase()} ${path}`),
  );
  const planned = Object.entries(PLANS).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  );
  t.same(new Set(planned), new Set(described), "for each endpoint it is known who answers");

  const each = await clientOfEach(t, gateway);
  const [one, two] = [each.get(1), each.get(2)];
  if (one === undefined || two === undefined) throw new Error("no clients");
  const mark = (await admin("/debug/exchanges?limit=1")).body.exchanges[0].spanId;
  for (const [client, path] of [
    [one, "/a"],
    [two, "/b"],
    [one, "/c"],
    [one, "/d"],
    [two, "/e"],
  ] as const)
    await client.ask(path);
  // What happens at two workers within a millisecond has no order.
  const seen = (body: { exchanges: { request: { path: string }; worker: number }[] }) =>
    [1, 2].map((worker) => body.exchanges.filter((it) => it.worker === worker).map(({ request }) => request.path));
  const all = (await admin(`/debug/exchanges?after=${mark}`)).body;
  t.same(
    seen(all),
    [
      ["/d", "/c", "/a"],
      ["/e", "/b"],
    ],
    "newest first",
  );
  t.equal(all.kept, 5);
  t.equal((await admin("/debug/exchanges?limit=3")).body.exchanges.length, 3);
  await two.ask("/f");
  await one.ask("/g");
  const newer = (await admin(`/debug/exchanges?after=${all.exchanges[0].spanId}`)).body;
  t.same(seen(newer), [["/g"], ["/f"]], "what came after a record, whoever served it");
  t.same(seen((await admin(`/debug/exchanges?after=${newer.exchanges[0].spanId}`)).body), [[], []]);

  for (const { traceId, request } of newer.exchanges) {
    const { status, body } = await admin("/debug/explain", { method: "POST", body: { trace: traceId } });
    t.equal(status, 200);
    t.match(JSON.stringify(body), request.path);
  }
  t.equal((await admin("/debug/explain", { method: "POST", body: { trace: "0".repeat(32) } })).status, 404);
  t.equal((await admin("/debug/explain", { method: "POST", body: { url: gateway.url } })).status, 200);

  const first = await logIn(gateway, "ada");
  const begun = (await admin("/debug/watch", { method: "POST", body: { user: "ada" } })).body;
  for (const client of [one, two, one]) await client.ask("/watched", { headers: first });
  const watch = (await admin("/debug/watch")).body;
  t.match(watch.watches, [{ id: begun.id, user: "ada", requests: 3, outcomes: { hit: 3 } }]);
  t.equal(watch.watches[0].handles.length, 1);
  t.equal((await admin(`/debug/exchanges?ring=watch&watch=${begun.id}`)).body.matched, 3);

  // Whoever was met at one worker is known at the other, when the session no longer says whose it is.
  const lost = await logIn(gateway, "ada");
  await one.ask("/watched", { headers: lost });
  await until(async () => (await admin("/debug/watch")).body.watches[0].requests >= 4);
  t.equal((await admin("/sessions?user=ada", { method: "DELETE" })).status, 200);
  await until(async () => {
    await two.ask("/lost", { headers: lost });
    return (await admin("/debug/exchanges?ring=watch&path=/lost")).body.exchanges[0]?.worker === 2;
  });
  const headers = await logIn(gateway, "ada");

  const change = { log: { access: "errors" }, for: "1h" };
  t.equal((await admin("/observe", { method: "POST", body: change })).status, 200);
  process.kill(gateway.pidOf(2), "SIGKILL");
  await until(() => gateway.events("worker.started").length === 3);
  const late = (await clientOfEach(t, gateway)).get(2);
  const lines = () => gateway.events("http.access").map((line) => `${line["url.path"]} ${line.worker}`);
  const watched = () => lines().filter((line) => line === "/watched 2").length;
  // The killed one may have taken its last lines along.
  const earlier = watched();
  await late?.ask("/watched", { headers });
  await late?.ask("/unseen");
  t.match(
    (await admin("/debug/watch")).body.watches,
    [{ id: begun.id }],
    "one that came later watches, too; what the killed one had seen is gone",
  );
  await late?.ask("/watched", { headers });
  await until(() => watched() >= earlier + 2);
  t.notOk(lines().includes("/unseen 2"), "and goes by what was changed while it was not there");
  t.equal((await admin("/observe")).body.log.access, "errors");
  t.match((await admin("/debug/watch?user=ada", { method: "DELETE" })).body, { id: begun.id });
  t.same((await admin("/debug/watch")).body.watches, []);

  const dump = JSON.parse(gunzipSync(await download(`${gateway.adminUrl}/debug/dump`)).toString());
  t.equal(dump.build.pid, gateway.running.child.pid);
  t.match(dump.workers, [
    { worker: 1, state: "serving", pid: gateway.pidOf(1), restarts: 0 },
    { worker: 2, pid: gateway.pidOf(2), restarts: 1 },
  ]);
  t.ok(
    dump.events.some(({ event, signal }: Record<string, unknown>) => event === "worker.exited" && signal === "SIGKILL"),
  );
  t.same(new Set(dump.exchanges.recent.map(({ worker }: { worker: number }) => worker)), new Set([1, 2]));
  t.match(dump.metrics, /# EOF\n$/);
  const file = join(await temporaryFolder(t), "dump.json.gz");
  const shown = await run(t, ["dump", "--admin", gateway.adminUrl, "--out", file]);
  t.equal(shown.status, 0, shown.stderr);
  const opened = await run(t, ["dump", "--open", file]);
  t.match(opened.stdout, /^Workers\n {2}1 {2}serving/m);

  for (const [path, init, status] of [
    ["/nowhere", {}, 404],
    ["/debug/exchanges?limit=0", {}, 400],
    ["/debug/watch", { method: "POST", body: {} }, 400],
    ["/observe", { method: "POST", body: { log: { level: "loud" } } }, 400],
    ["/livez", { method: "DELETE" }, 405],
    ["/debug/heap", { method: "POST", body: { snapshot: true } }, 403],
  ] as const)
    t.equal((await admin(path, init)).status, status, path);
});

t.test("sessions and WebSockets: what is ended at one worker has ended at all", async (t) => {
  const app = await startWebSocketApp(t);
  const gateway = await startWorkers(t, { upstream: app.url });
  const { admin } = gateway;
  const headers = await logIn(gateway, "ada");
  const sockets: WebSocket[] = [];
  const closed: Promise<number>[] = [];
  const workersOf = async () =>
    new Set((await admin("/websockets?user=ada")).body.websockets.map(({ worker }: { worker: number }) => worker));
  while ((await workersOf()).size < 2) {
    const opened = Array.from({ length: 6 }, () => new WebSocket(gateway.url.replace("http", "ws"), { headers }));
    for (const socket of opened) closed.push(once(socket, "close").then(([code]) => code as number));
    await Promise.all(opened.map((socket) => once(socket, "message")));
    sockets.push(...opened);
  }
  t.equal((await admin("/websockets")).body.count, sockets.length);
  const metrics = await gateway.metrics();
  t.match(metrics, new RegExp(`^coatcheck_websockets_open ${sockets.length}$`, "m"));

  const began = performance.now();
  const { status, body } = await admin("/sessions?user=ada", { method: "DELETE" });
  t.equal(status, 200);
  t.equal(body.count, 1);
  const codes = await Promise.all(closed);
  t.same(new Set(codes), new Set([codes[0]]), "each with the same reason");
  t.ok(performance.now() - began < 4_000, "told at once, not found at the next look, which is every five seconds");
  await until(async () => (await admin("/websockets")).body.count === 0);
  t.same((await admin("/websockets")).body, { count: 0, truncated: false, websockets: [] });
  await until(
    async () =>
      /^coatcheck_websockets_closed_total\{.*reason="session-ended".*\} (\d+)$/m.exec(await gateway.metrics())?.[1] ===
      String(sockets.length),
  );
});

t.test("a heap snapshot comes in pieces, from the worker that is asked", async (t) => {
  const token = "a-token-that-operators-have-32-octets";
  const app = await startApp(t);
  const gateway = await startWorkers(t, { upstream: app.url, admin: { port: 0, token } });
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  t.equal((await ask(`${gateway.adminUrl}/metrics`)).status, 401);
  t.equal((await ask(`${gateway.adminUrl}/livez`)).status, 200);
  const snapshot = await ask(`${gateway.adminUrl}/debug/heap?worker=2`, {
    method: "POST",
    headers,
    body: '{"snapshot":true}',
  });
  t.equal(snapshot.status, 200);
  t.equal(snapshot.headers["x-coatcheck-worker"], "2");
  t.ok(JSON.parse(snapshot.body).snapshot.node_count > 0);
  const profile = await ask(`${gateway.adminUrl}/debug/profile`, { method: "POST", headers, body: '{"seconds":1}' });
  t.ok(JSON.parse(profile.body).nodes.length > 0);
  const nobody = await ask(`${gateway.adminUrl}/debug/heap?worker=3`, {
    method: "POST",
    headers,
    body: '{"snapshot":true}',
  });
  t.equal(nobody.status, 404);
  // A client that goes away in the middle leaves nothing behind: the next one is not told that one is being taken.
  const req = httpRequest(`${gateway.adminUrl}/debug/heap?worker=2`, { method: "POST", headers, agent: false });
  req.end('{"snapshot":true}');
  const [res] = await once(req, "response");
  await once(res, "data");
  res.destroy();
  const again = await until(async () => {
    const reply = await ask(`${gateway.adminUrl}/debug/profile?worker=2`, {
      method: "POST",
      headers,
      body: '{"seconds":1}',
    });
    return reply.status === 200 ? reply : undefined;
  });
  t.equal(again.status, 200);
});

async function download(url: string): Promise<Buffer> {
  const response = await fetch(url);
  return Buffer.from(await response.arrayBuffer());
}
