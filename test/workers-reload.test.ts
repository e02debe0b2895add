/** A reload and the end of a gateway with several workers, under load: every worker takes part, and no request is lost. */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import { startUpstream, temporaryFolder } from "./support/servers.ts";
import { clientOfEach, openClient, startWorkers } from "./support/workers.ts";

/** Clients that ask without a pause, on connections that stay open and on new ones, until they are told to stop. */
function load(clients: readonly { ask: (path: string) => Promise<{ status: number }> }[]) {
  let stopped = false;
  let answered = 0;
  const failures: unknown[] = [];
  const everyone = clients.map(async (client) => {
    while (!stopped) {
      const reply = await client.ask("/").catch((error: unknown) => ({ status: error }));
      if (reply.status === 200) answered++;
      else failures.push(reply.status);
    }
  });
  return {
    answered: () => answered,
    failures,
    stop: async () => {
      stopped = true;
      await Promise.all(everyone);
    },
  };
}

t.test("a reload reaches every worker, and those that come later; a bad one reaches none", async (t) => {
  const before = await startUpstream(t, (_received, _req, res) => res.end("before"));
  const after = await startUpstream(t, ({ url, headers }, _req, res) => {
    if (url === "/start") res.setHeader("x-session-start", '{"user":{"id":"42"}}');
    res.end(`after ${headers["x-user-id"]}`);
  });
  const gateway = await startWorkers(t, { upstream: before.url });
  const each = await clientOfEach(t, gateway);
  const fresh = { ask: (path: string) => ask(gateway.url + path) };
  const traffic = load([...each.values(), fresh, fresh]);
  await until(() => traffic.answered() > 20);

  await gateway.write({ upstream: after.url, session: { cookie: { name: "session", secure: false, secrets: [] } } });
  const { status, body } = await gateway.admin("/reload", { method: "POST", body: {} });
  t.equal(status, 200);
  t.match(String(body.applied), "routes[0].upstream.targets");
  const late = await clientOfEach(t, gateway);
  for (const [worker, client] of late) t.equal((await client.ask("/")).body, "after ", `worker ${worker}`);
  const login = await ask(`${gateway.url}/start`);
  const headers = { cookie: cookiePair(login.setCookie[0]) };
  for (const client of late.values())
    t.equal((await client.ask("/", { headers })).body, "after 42", "a secret that was made was made for all");
  await until(() => gateway.events("config.reloaded").length === 3);
  t.same(new Set(gateway.events("config.reloaded").map(({ worker }) => worker)), new Set([undefined, 1, 2]));
  t.match(await gateway.metrics(), /^coatcheck_config_reloads_total\{result="applied"\} 1$/m, "it is one");

  await writeFile(gateway.file, "routes: []");
  gateway.running.child.kill("SIGHUP");
  await until(() => gateway.events("config.reload-refused").length > 0);
  const folder = await temporaryFolder(t);
  const pages = join(folder, "pages");
  await gateway.write({ upstream: before.url, errors: { pages } });
  t.equal((await gateway.admin("/reload", { method: "POST", body: {} })).status, 422, "a folder that is not there");
  t.notOk(
    gateway.events("config.reload-refused").some(({ worker }) => worker !== undefined),
    "no worker is asked",
  );
  for (const [worker, client] of late) t.equal((await client.ask("/")).body, "after ", `worker ${worker}`);
  await traffic.stop();
  t.same(traffic.failures, [], "no request was lost");

  process.kill(gateway.pidOf(1), "SIGKILL");
  await until(() => gateway.events("worker.started").length === 3);
  const replaced = (await clientOfEach(t, gateway)).get(1);
  t.equal(
    (await replaced?.ask("/", { headers }))?.body,
    "after 42",
    "a worker that comes later begins with what is in effect",
  );
  await rm(gateway.file);
});

t.test(
  "the end: every worker finishes what it has, new connections find nobody, then the admin listener goes",
  async (t) => {
    const held: (() => void)[] = [];
    const upstream = await startUpstream(t, (received, _req, res) => {
      if (received.url === "/held") held.push(() => res.end("done"));
      else res.end();
    });
    const gateway = await startWorkers(t, { upstream: upstream.url, shutdown: { delay: "2s", timeout: "20s" } });
    const clients = await Promise.all(Array.from({ length: 6 }, () => openClient(t, gateway)));
    const each = await clientOfEach(t, gateway);
    const inFlight = [...each.values()].map((client) => client.ask("/held"));
    await until(() => held.length === 2);
    const traffic = load(clients);
    await until(() => traffic.answered() > 20);
    gateway.running.child.kill("SIGTERM");
    const draining = await until(async () => {
      const probe = await gateway.admin("/readyz");
      return probe.status === 503 ? probe : undefined;
    });
    t.match(draining.body, { status: "draining" });
    t.equal((await ask(gateway.url)).status, 200, "while load balancers notice, requests are served");
    t.match(await gateway.metrics(), /^coatcheck_workers\{state="draining"\} 2$/m);
    await traffic.stop();
    t.same(traffic.failures, [], "no request was lost");
    await until(() =>
      ask(gateway.url).then(
        () => false,
        ({ code }) => code === "ECONNREFUSED",
      ),
    );
    for (const release of held) release();
    for (const reply of await Promise.all(inFlight)) t.equal(reply.body, "done", "what was in flight finished");
    t.equal(await gateway.running.ended, 0);
    t.equal(gateway.running.stderr(), "");
    t.same(
      gateway.events("worker.exited").map(({ level, status }) => [level, status]),
      [
        ["info", 0],
        ["info", 0],
      ],
    );
    t.match(
      gateway.logs().at(-1),
      { event: "gateway.stopped", worker: undefined },
      "the last line is that of the primary",
    );
  },
);

t.test("what does not end in time is killed, and a second signal ends all at once", async (t) => {
  const upstream = await startUpstream(t, (received, _req, res) => {
    if (received.url !== "/held") res.end();
  });
  const gateway = await startWorkers(t, { upstream: upstream.url, shutdown: { delay: "0s", timeout: "1h" } });
  const lost = ask(`${gateway.url}/held`).catch((error: { code: string }) => error.code);
  await until(() => upstream.received.some(({ url }) => url === "/held"));
  gateway.running.child.kill("SIGTERM");
  await until(() => gateway.events("gateway.draining").length === 3);
  const pids = [gateway.pidOf(1), gateway.pidOf(2)];
  gateway.running.child.kill("SIGTERM");
  t.equal(await gateway.running.ended, 1);
  t.equal(await lost, "ECONNRESET");
  // Nobody is left behind that would hold the port.
  await until(() => pids.every((pid) => !isRunning(pid)));
});

t.test("a primary that is killed leaves no worker behind", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startWorkers(t, { upstream: upstream.url });
  const pids = [gateway.pidOf(1), gateway.pidOf(2)];
  gateway.running.child.kill("SIGKILL");
  await until(() => pids.every((pid) => !isRunning(pid)));
  t.equal(await ask(gateway.url).catch(({ code }) => code), "ECONNREFUSED");
});

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
