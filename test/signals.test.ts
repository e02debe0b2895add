/** Signals to a process of its own: a request in flight is answered, a second signal does not wait, exit statuses. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { ask, until } from "./support/client.ts";
import { command } from "./support/command.ts";
import { freePort, startUpstream, type Teardown, temporaryFolder } from "./support/servers.ts";

interface Shutdown {
  readonly delay?: string;
  readonly timeout?: string;
}

async function startServing(t: Teardown, upstream: string, shutdown: Shutdown) {
  const [port, adminPort] = [await freePort(), await freePort()];
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  const listen = { host: "127.0.0.1", port };
  const settings = { listen, admin: { port: adminPort }, store: "memory:", shutdown };
  await writeFile(file, JSON.stringify({ ...settings, routes: [{ upstream, session: "none" }] }));
  const running = command(t, ["serve", "--config", file]);
  const events = (name: string) =>
    running
      .stdout()
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line))
      .filter(({ event }) => event === name);
  await until(() => events("gateway.started").length === 1);
  return { ...running, events, url: `http://127.0.0.1:${port}` };
}

t.test("SIGTERM and SIGINT: what is in flight is answered, the status is 0", async (t) => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    let finish: (() => void) | undefined;
    const app = await startUpstream(t, (_received, _req, res) => {
      finish = () => res.end("whole");
    });
    const serving = await startServing(t, app.url, { timeout: "60s" });
    const slow = ask(serving.url);
    await until(() => finish);
    serving.child.kill(signal);
    await until(() => serving.events("gateway.draining").length === 1);
    finish?.();
    t.match(await slow, { status: 200, body: "whole" });
    t.equal(await serving.ended, 0);
    t.match(serving.events("gateway.stopped"), [{ level: "info", requests_cut: 0 }]);
    t.equal(serving.stderr(), "");
  }
});

t.test("what does not end in time is answered with 503 and recorded, and the status is 0 all the same", async (t) => {
  const app = await startUpstream(t, () => {});
  const serving = await startServing(t, app.url, { timeout: "300ms" });
  const hanging = ask(serving.url);
  await until(() => app.received.length === 1);
  serving.child.kill("SIGTERM");
  t.match(await hanging, { status: 503, headers: { "proxy-status": "coatcheck; error=proxy_shutdown" } });
  t.equal(await serving.ended, 0);
  t.match(serving.events("http.access"), [{ "error.type": "proxy_shutdown", "http.response.status_code": 503 }]);
  t.match(serving.events("gateway.stopped"), [{ level: "warn", requests_cut: 1 }]);
});

t.test("a second signal ends it at once, and it says what that cuts off", async (t) => {
  const app = await startUpstream(t, () => {});
  const serving = await startServing(t, app.url, { delay: "10m", timeout: "1h" });
  const hanging = t.rejects(ask(serving.url));
  await until(() => app.received.length === 1);
  serving.child.kill("SIGTERM");
  await until(() => serving.events("gateway.draining").length === 1);
  serving.child.kill("SIGINT");
  t.equal(await serving.ended, 1);
  await hanging;
  t.equal(serving.stderr(), "coatcheck: SIGINT a second time: ended at once; cut off: 1 requests, 0 WebSockets\n");
  t.match(serving.events("gateway.abandoned"), [{ level: "warn", requests: 1, websockets: 0 }]);
});
