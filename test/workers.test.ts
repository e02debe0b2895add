/** Several processes that serve on one port: what becomes of requests, sessions and counts when one of them ends. */
import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { freePort, SECRET, startApp, startHttp, temporaryFolder } from "./support/servers.ts";
import { clientOfEach, startWorkers } from "./support/workers.ts";

/** Of all label sets. */
function total(metrics: string, name: string, labels = ""): number {
  return [...metrics.matchAll(new RegExp(`^${name}\\{([^}]*)\\} (\\S+)`, "gm"))]
    .filter(([, set]) => set?.includes(labels))
    .reduce((sum, [, , value]) => sum + Number(value), 0);
}

t.test("a worker that is killed takes the requests in flight on it along, and nothing else", async (t) => {
  const held: (() => void)[] = [];
  const app = await startApp(t);
  const { port } = await startHttp(t, (req, res) => {
    if (req.url === "/held") held.push(() => res.end("done"));
    else res.end();
  });
  const route = (path: string, upstream: string) => ({
    match: { path },
    upstream,
    session: "optional",
    write: ["user"],
  });
  const gateway = await startWorkers(t, {
    routes: [route("/", app.url), route("/held", `http://127.0.0.1:${port}`)],
  });
  t.match(gateway.events("gateway.started")[0], { workers: 2, store: "sqlite" });

  const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"42"}}' });
  const headers = { cookie: cookiePair(login.setCookie[0]) };
  const each = await clientOfEach(t, gateway);
  for (const [worker, client] of each) {
    const seen = JSON.parse((await client.ask("/", { headers })).body).headers["x-user-id"];
    t.equal(seen, "42", `worker ${worker} knows the session`);
  }

  const inFlight = Array.from({ length: 12 }, () => ask(`${gateway.url}/held`));
  const outcomes = Promise.allSettled(inFlight);
  await until(() => held.length === 12);
  const before = await gateway.metrics();
  t.equal(total(before, "http_server_active_requests"), 12, "requests in flight are those of both");
  const [killed, other] = [gateway.pidOf(1), gateway.pidOf(2)];
  process.kill(killed, "SIGKILL");
  const stillThere = each.get(2);
  for (let i = 0; i < 20; i++) t.equal((await ask(gateway.url)).status, 200, "the port is never closed");
  t.equal((await stillThere?.ask("/", { headers }))?.status, 200, "a connection of the other worker goes on");
  for (const release of held) release();
  const failed = (await outcomes).filter(({ status }) => status === "rejected").length;
  const { body } = await gateway.admin("/debug/exchanges?path=/held&limit=100");
  t.same(new Set(body.exchanges.map(({ worker }: { worker: number }) => worker)), new Set(failed === 12 ? [] : [2]));
  t.equal(body.exchanges.length, 12 - failed, "those on the other worker were answered");

  await until(() => gateway.events("worker.started").length === 3);
  t.match(gateway.events("worker.exited"), [
    { level: "error", worker: 1, pid: killed, signal: "SIGKILL", reason: "killed" },
  ]);
  t.notSame(gateway.pidOf(1), killed);
  t.equal(gateway.pidOf(2), other);
  t.same((await gateway.admin("/readyz")).body, { status: "ok", workers: { ready: 2, configured: 2 } });
  const fresh = (await clientOfEach(t, gateway)).get(1);
  const seen = JSON.parse((await fresh?.ask("/", { headers }))?.body ?? "").headers["x-user-id"];
  t.equal(seen, "42", "nobody was logged out");
  const after = await gateway.metrics();
  t.match(after, /^coatcheck_worker_restarts_total\{reason="killed"\} 1$/m);
  t.match(after, /^coatcheck_workers\{state="serving"\} 2$/m);
  const count = "http_server_request_duration_seconds_count";
  t.ok(total(after, count) > total(before, count), "sums never fall");

  gateway.running.child.kill("SIGTERM");
  t.equal(await gateway.running.ended, 0);
  t.equal(gateway.running.stderr(), "");
});

t.test("metrics are the sum over the workers, exactly, and remember those that ended", async (t) => {
  const app = await startApp(t);
  const gateway = await startWorkers(t, {
    upstream: app.url,
    observe: { traces: { ratio: 1 } },
  });
  const each = await clientOfEach(t, gateway);
  const served = () => gateway.metrics().then((it) => total(it, "http_server_request_duration_seconds_count", "200"));
  const before = await served();
  for (const client of each.values()) for (let i = 0; i < 50; i++) await client.ask("/");
  t.equal(await served(), before + 100);
  const metrics = await gateway.metrics();
  t.match(metrics, /# EOF\n$/, "OpenMetrics");
  t.equal(metrics.match(/^# TYPE coatcheck_session_store_up /gm)?.length, 1, "each metric once");
  t.match(metrics, /^coatcheck_build_info\{.*\} 1$/m, "what is 1 stays 1");
  t.match(metrics, /_bucket\{.*\} \d+ # \{trace_id="[0-9a-f]{32}"\} /, "exemplars are kept");
  for (const worker of ["1", "2"]) t.ok(total(metrics, "coatcheck_worker_memory_bytes", `worker="${worker}"`) > 0);
  process.kill(gateway.pidOf(2), "SIGKILL");
  await until(() => gateway.events("worker.exited").length === 1);
  t.equal(await served(), before + 100, "what was counted stays, or Prometheus would count everything anew");
  await until(() => gateway.events("worker.started").length === 3);
  t.equal(await served(), before + 100);
});

t.test("a worker that cannot start is tried again, after pauses that grow; the others serve", async (t) => {
  const app = await startApp(t);
  const folder = await temporaryFolder(t);
  const pages = join(folder, "pages");
  await mkdir(pages);
  await writeFile(join(pages, "error.html"), "<p>sorry</p>");
  const gateway = await startWorkers(t, { upstream: app.url, errors: { pages } });
  await rename(pages, `${pages}-away`);
  process.kill(gateway.pidOf(1), "SIGKILL");
  await until(() => gateway.events("worker.exited").length >= 3);
  const [first, ...others] = gateway.events("worker.exited");
  t.match(first, { reason: "killed", pause_s: 0.25 });
  for (const [index, line] of others.slice(0, 2).entries())
    t.match(line, { worker: 1, reason: "not_started", served_s: 0, pause_s: 0.5 * 2 ** index, problem: /pages/ });
  const { status, body } = await gateway.admin("/readyz");
  t.equal(status, 200);
  t.same(body.workers, { ready: 1, configured: 2 });
  for (let i = 0; i < 20; i++) t.equal((await ask(gateway.url)).status, 200);
  t.ok(total(await gateway.metrics(), "coatcheck_worker_restarts_total", "not_started") >= 2);
  await rename(`${pages}-away`, pages);
  await until(async () => (await gateway.admin("/readyz")).body.workers.ready === 2);
  process.kill(gateway.pidOf(2), "SIGTERM");
  await until(() => gateway.events("worker.exited").some(({ reason }) => reason === "exited"));
});

t.test("what is wrong is said at the start", async (t) => {
  const folder = await temporaryFolder(t);
  const taken = await startHttp(t, (_req, res) => res.end());
  const admin = ["--admin-port", String(await freePort())];
  const store = ["--store", `sqlite:${join(folder, "sessions.db")}`];
  const upstream = ["--upstream", "http://127.0.0.1:9"];
  const secret = { COATCHECK_SECRET: SECRET };
  const port = await run(t, [...upstream, ...store, ...admin, "--workers", "2", "--port", String(taken.port)], secret);
  t.equal(port.status, 1);
  t.match(
    port.stderr,
    /^coatcheck: port \d+ on 0\.0\.0\.0 is in use by another program; choose another with --port\n$/,
  );
  const memory = await run(t, [...upstream, ...admin, "--store", "memory:", "--workers", "auto"], secret);
  t.equal(memory.status, 1);
  t.match(memory.stderr, /workers: must be 1 with the store memory:/);
});
