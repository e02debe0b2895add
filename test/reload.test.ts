/** SIGHUP and POST /reload read the configuration again: what can change does, a bad file is refused. */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { loadConfig } from "../src/config/load.ts";
import { ask, until } from "./support/client.ts";
import { command } from "./support/command.ts";
import { freePort, startGateway, startUpstream, type Teardown, temporaryFolder } from "./support/servers.ts";

const SECRETS = ["hunter2hunter2hunter2hunter2hunter2", "hunter3hunter3hunter3hunter3hunter3"];

interface Settings {
  readonly observe?: object;
  readonly session?: object;
  readonly upstreams?: readonly string[];
  readonly cache?: object;
}

/** A gateway as a process of its own, and the file that it reads. */
async function startWithFile(t: Teardown, first: Settings = {}) {
  const upstream = await startUpstream(t);
  const [port, adminPort] = [await freePort(), await freePort()];
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  const yaml = ({ observe = {}, session = {}, upstreams = [upstream.url], cache = {} }: Settings) => {
    const routes = upstreams.map((url, i) => ({ match: { path: `/${i || ""}` }, upstream: url, session: "none" }));
    const listen = { host: "127.0.0.1", port };
    const cookie = { secrets: ["${SECRET}"] };
    const settings = {
      listen,
      admin: { port: adminPort },
      store: "memory:",
      session: { cookie, ...session },
      cache,
      observe,
      reload: { watch: false },
      routes,
    };
    return JSON.stringify(settings); // YAML, too
  };
  const write = (settings: Settings) => writeFile(file, yaml(settings));
  await write(first);
  const running = command(t, ["--config", file], { SECRET: SECRETS[0] ?? "" });
  const logs = (): Record<string, unknown>[] =>
    running
      .stdout()
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  const events = (name: string) => logs().filter(({ event }) => event === name);
  await until(() => events("gateway.started").length === 1);
  const adminUrl = `http://127.0.0.1:${adminPort}`;
  const admin = async (path: string) => (await ask(`${adminUrl}${path}`)).body;
  const reload = async (event: "config.reloaded" | "config.reload-refused") => {
    const before = events(event).length;
    running.child.kill("SIGHUP");
    await until(() => events(event).length > before);
    return events(event).at(-1);
  };
  return { running, url: `http://127.0.0.1:${port}`, adminUrl, file, write, reload, events, admin, upstream };
}

t.test("a file that is something else altogether does not fill the log", async (t) => {
  const gateway = await startWithFile(t);
  await writeFile(gateway.file, "a: 1\n".repeat(500));
  const refused = await gateway.reload("config.reload-refused");
  const problems = refused?.problems as string[];
  t.equal(problems.length, 51);
  t.match(problems.at(-1), /^and 4\d\d more$/);
});

t.test("a good file: what can change does, the rest is named, and stays named", async (t) => {
  const gateway = await startWithFile(t);
  await gateway.write({
    observe: { traces: { ratio: 0.5 }, log: { access: "errors", format: "pretty" }, recorder: { exchanges: 2 } },
    session: { idleTimeout: "5m", cookie: { secrets: [SECRETS[1], "${SECRET}"] } },
    cache: { maxBytes: "1MiB" },
  });
  const line = await gateway.reload("config.reloaded");
  t.match(line, {
    level: "warn",
    by: "signal",
    applied: [
      "session.idleTimeout",
      "session.cookie.secrets",
      "observe.log.access",
      "observe.traces.ratio",
      "observe.recorder.exchanges",
    ],
  });
  t.same(line?.needs_restart, ["cache.maxBytes", "observe.log.format"]);
  t.match(line?.msg, /a restart is needed for cache\.maxBytes, observe\.log\.format$/);
  t.match(JSON.parse(await gateway.admin("/observe")), { log: { access: "errors" }, traces: { ratio: 0.5 } });
  for (let i = 0; i < 4; i++) t.equal((await ask(gateway.url)).status, 200);
  await until(async () => JSON.parse(await gateway.admin("/debug/exchanges")).exchanges.length === 2);
  t.same(gateway.events("http.access"), []);
  const metrics = await gateway.admin("/metrics");
  t.match(metrics, /^coatcheck_config_reloads_total\{result="applied"\} 1$/m);
  t.match(metrics, /^coatcheck_config_last_reload_successful 1$/m);
  t.match(metrics, /^coatcheck_config_restart_needed 2$/m);
  for (const secret of SECRETS) t.notMatch(gateway.running.stdout(), secret);

  const again = await gateway.reload("config.reloaded");
  t.same(again?.applied, []);
  t.same(again?.needs_restart, ["cache.maxBytes", "observe.log.format"], "it is still not in effect");
  await gateway.write({ observe: { traces: { ratio: 0.5 } } });
  t.match(await gateway.reload("config.reloaded"), { level: "info", needs_restart: [] });
  t.match(await gateway.admin("/metrics"), /^coatcheck_config_restart_needed 0$/m);
  gateway.running.child.kill("SIGTERM");
  t.equal(await gateway.running.ended, 0);
});

t.test("a bad file is refused with all its problems, and everything goes on", async (t) => {
  const gateway = await startWithFile(t, { observe: { traces: { ratio: 0.25 } } });
  const timestamp = async () =>
    /^coatcheck_config_last_reload_timestamp_seconds (\S+)$/m.exec(await gateway.admin("/metrics"))?.[1];
  const before = await timestamp();
  t.ok(Math.abs(Number(before) - Date.now() / 1000) < 60);
  await writeFile(
    gateway.file,
    `observe: { traces: { ratio: 7 } }\nrutes: []\nsession: { cookie: { secrets: [hunter2] } }\n`,
  );
  const line = await gateway.reload("config.reload-refused");
  t.equal(line?.level, "error");
  const problems = line?.problems as string[] | undefined;
  t.equal(problems?.length, 4);
  for (const problem of ["observe.traces.ratio: ", "routes: ", "rutes: unknown key", "session.cookie.secrets[0]: "])
    t.ok(
      problems?.some((text) => text.startsWith(problem)),
      problem,
    );
  t.notMatch(gateway.running.stdout(), "hunter2");
  t.match(JSON.parse(await gateway.admin("/observe")), { traces: { ratio: 0.25 } });
  t.equal((await ask(gateway.url)).status, 200);
  const metrics = await gateway.admin("/metrics");
  t.match(metrics, /^coatcheck_config_reloads_total\{result="refused"\} 1$/m);
  t.match(metrics, /^coatcheck_config_last_reload_successful 0$/m);
  t.equal(await timestamp(), before, "of what is in effect");

  await gateway.write({ observe: { traces: { ratio: 0.75 } } });
  t.match(await gateway.reload("config.reloaded"), { applied: ["observe.traces.ratio"] });
  t.match(await gateway.admin("/metrics"), /^coatcheck_config_last_reload_successful 1$/m);
  t.ok(Number(await timestamp()) > Number(before));
});

t.test("POST /reload tells what became of it", async (t) => {
  const gateway = await startWithFile(t);
  const reload = () => ask(`${gateway.adminUrl}/reload`, { method: "POST" });
  await gateway.write({ observe: { traces: { ratio: 0.75 } }, cache: { maxAge: "1s" } });
  const applied = await reload();
  t.equal(applied.status, 200);
  t.same(JSON.parse(applied.body), { applied: ["observe.traces.ratio"], needsRestart: ["cache.maxAge"] });
  await until(() => gateway.events("config.reloaded").length === 1);
  t.match(gateway.events("config.reloaded"), [{ by: "operator" }]);
  await writeFile(gateway.file, "routes: []\nsession: { cookie: { secrets: [hunter2] } }");
  const refused = await reload();
  t.equal(refused.status, 422);
  t.match(JSON.parse(refused.body).problems, [/^session\.cookie\.secrets\[0\]: /, /^routes: /]);
  t.notMatch(refused.body, "hunter2");
  t.equal((await ask(`${gateway.adminUrl}/reload`)).status, 405);
  const crossSite = { method: "POST", headers: { origin: "https://evil.example" } };
  t.equal((await ask(`${gateway.adminUrl}/reload`, crossSite)).status, 403);
});

t.test("a file that has gone is refused like a bad one", async (t) => {
  const gateway = await startWithFile(t);
  await rm(gateway.file);
  t.match(await gateway.reload("config.reload-refused"), { problems: [/^the file is not there$/] });
  t.equal((await ask(gateway.url)).status, 200);
});

t.test("routes are named one by one, or as a whole when there are more or fewer", async (t) => {
  const gateway = await startWithFile(t, { upstreams: ["http://127.0.0.1:1", "http://127.0.0.1:2"] });
  await gateway.write({ upstreams: ["http://127.0.0.1:1", "http://127.0.0.1:3"] });
  t.same((await gateway.reload("config.reloaded"))?.applied, ["routes[1].upstream.targets[0].url"]);
  await gateway.write({ upstreams: ["http://127.0.0.1:1"] });
  t.same((await gateway.reload("config.reloaded"))?.applied, ["routes"]);
});

t.test("with --upstream there is nothing to read again, and it says so", async (t) => {
  const upstream = await startUpstream(t);
  const [port, adminPort] = [await freePort(), await freePort()];
  const args = ["-u", upstream.url, "--store", "memory:", "--port", `${port}`, "--admin-port", `${adminPort}`];
  const running = command(t, args);
  await until(() => running.stdout().includes("gateway.started"));
  running.child.kill("SIGHUP");
  await until(() => running.stdout().includes("config.nothing-to-reload"));
  t.equal((await ask(`http://127.0.0.1:${port}/`)).status, 200);
});

t.test("a reload replaces what operators changed, for a while or for good", async (t) => {
  const gateway = await startGateway(t, {});
  gateway.gateway.observer.settings.adjust({ traces: { ratio: 1 } });
  gateway.gateway.observer.settings.adjust({ log: { level: "debug" } }, 60_000);
  const { config } = loadConfig(
    { routes: [{ upstream: "http://127.0.0.1:9" }], observe: { traces: { ratio: 0.2 } } },
    {},
  );
  const result = await gateway.gateway.reload(config);
  t.ok(result.applied.includes("observe.traces.ratio"));
  t.ok(result.needsRestart.includes("store"));
  const settings = JSON.parse((await ask(`${gateway.adminUrl}/observe`)).body);
  t.match(settings, { log: { level: "info" }, traces: { ratio: 0.2 } });
  t.notOk("temporary" in settings);
  const [line] = gateway.logs.filter(({ event, by }) => event === "observe.changed" && by === "reload");
  t.match(line?.changed, { "traces.ratio": { from: 1, to: 0.2 }, "log.level": { from: "debug", to: "info" } });
});

t.test("rings of the recorder grow and shrink, the newest stay", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, observe: { recorder: { exchanges: 3 } } });
  const paths = async () => (await gateway.exchanges()).map(({ request }) => request.path);
  const visit = async (...names: string[]) => {
    for (const name of names) await ask(`${gateway.url}/${name}`);
    await until(async () => (await paths())[0] === `/${names.at(-1)}` || (await paths()).length === 0);
  };
  const resize = async (exchanges: number) => {
    const observe = { recorder: { exchanges } };
    await gateway.gateway.reload(loadConfig({ routes: [{ upstream: upstream.url }], observe }, {}).config);
  };
  await visit("1", "2", "3", "4");
  t.same(await paths(), ["/4", "/3", "/2"]);
  await resize(5);
  await visit("5", "6");
  t.same(await paths(), ["/6", "/5", "/4", "/3", "/2"]);
  await resize(2);
  t.same(await paths(), ["/6", "/5"]);
  await visit("7");
  t.same(await paths(), ["/7", "/6"]);
  await resize(4);
  await visit("8", "9", "10");
  t.same(await paths(), ["/10", "/9", "/8", "/7"]);
  await resize(0);
  await visit("11");
  t.same(await paths(), []);
});
