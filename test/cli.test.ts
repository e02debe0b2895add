/** The command line: what it prints, what it returns, and how it ends. */

import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import t from "tap";
import { parse } from "yaml";
import { ask, cookiePair, until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { freePort, startApp, type Teardown, temporaryFolder } from "./support/servers.ts";

const SECRET = "hunter2hunter2hunter2hunter2hunter2";

async function configFile(t: Teardown, text: string): Promise<string> {
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  await writeFile(file, text);
  return file;
}

t.test("--help and --version", async (t) => {
  t.match(await run(t, ["--help"]), {
    status: 0,
    stdout: /Usage:[\s\S]*check --config FILE[\s\S]*COATCHECK_SECRET/,
    stderr: "",
  });
  t.match(await run(t, ["--version"]), { status: 0, stdout: /^\d+\.\d+\.\d+\n$/ });
});

t.test("each command has help that fits a terminal", async (t) => {
  const { stdout: index } = await run(t, ["--help"]);
  const commands = ["demo", "top", "exchanges", "watch", "explain", "observe", "sessions", "dump", "profile"];
  const helps = await Promise.all(commands.map((name) => run(t, [name, "--help"])));
  for (const [position, name] of commands.entries()) {
    const { status, stdout = "" } = helps[position] ?? {};
    t.match(index, `\n  coatcheck ${name} `, name);
    t.equal(status, 0, name);
    t.match(stdout, new RegExp(`^coatcheck ${name}: .*\n\nUsage:\n  coatcheck ${name}`), name);
    t.match(stdout, /\n\nExit status: 0 done, 1 failed, 2 wrong usage\.\n$/, name);
  }
  for (const line of [index, ...helps.map(({ stdout }) => stdout)].join("\n").split("\n"))
    if (line.length > 100) t.fail(line);
});

t.test("a reader that has read enough is no failure", async (t) => {
  const running = command(t, ["sessions", "--help"]);
  running.child.stdout?.destroy();
  t.equal(await running.ended, 0);
  t.equal(running.stderr(), "");
});

t.test("wrong usage: status 2, what is wrong, and where to look", async (t) => {
  const cases: [args: string[], message: RegExp][] = [
    [[], /say what to serve: --config FILE or --upstream URL/],
    [["fly"], /unknown command "fly"; known: serve, check, demo/],
    [["--colour"], /^coatcheck: Unknown option '--colour'\nTry: coatcheck --help\n$/],
    [["top", "--colour"], /^coatcheck: Unknown option '--colour'\nTry: coatcheck top --help\n$/],
    [["check"], /check needs --config FILE/],
    [["serve", "twice"], /unexpected "twice"/],
    [["--config", "a", "--upstream", "http://b"], /--upstream does not go with --config/],
  ];
  for (const [args, message] of cases)
    t.match(await run(t, args), { status: 2, stdout: "", stderr: message }, args.join(" "));
});

t.test("check prints the effective configuration, secrets masked, and status 0", async (t) => {
  const file = await configFile(
    t,
    'store: "redis://user:${PASSWORD}@127.0.0.1/0"\nsession: { cookie: { secrets: ["${SECRET}"] } }\nroutes: [{ upstream: "http://localhost:3000" }]\n',
  );
  const { status, stdout } = await run(t, ["check", "--config", file], { SECRET, PASSWORD: "hunter2" });
  t.equal(status, 0);
  t.match(parse(stdout), {
    session: { idleTimeout: "30m", cookie: { secrets: ["*** (35 characters)"] } },
    store: "redis://user:***@127.0.0.1/0",
    observe: { traces: { ratio: 0.01 } },
  });
  t.notMatch(stdout, "hunter2");
});

t.test("check of a bad file: status 1 and every problem", async (t) => {
  const file = await configFile(t, "rutes: []\nlisten: { port: -1 }\n");
  const { status, stdout, stderr } = await run(t, ["check", "-c", file]);
  t.equal(status, 1);
  t.equal(stdout, "");
  t.match(stderr, /3 problems/);
  for (const problem of [/listen\.port: must be/, /routes: /, /rutes: unknown key; did you mean "routes"\?/])
    t.match(stderr, problem);
});

t.test("a port that is taken gives an error that names it, for either listener", async (t) => {
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  t.teardown(() => taken.close());
  const { port } = taken.address() as { port: number };
  for (const setting of ["listen", "admin"]) {
    const other = setting === "listen" ? "admin" : "listen";
    const file = await configFile(
      t,
      `${setting}: { host: 127.0.0.1, port: ${port} }\n${other}: { host: 127.0.0.1, port: 0 }\nstore: "memory:"\nroutes: [{ upstream: "http://localhost:3000" }]\n`,
    );
    const { status, stderr } = await run(t, ["--config", file]);
    t.equal(status, 1);
    t.match(
      stderr,
      `coatcheck: port ${port} on 127.0.0.1 is in use by another program; choose another with ${setting}.port`,
    );
  }
});

t.test("a SQLite file that cannot be opened", async (t) => {
  const { status, stderr } = await run(t, [
    "--upstream",
    "http://localhost:3000",
    "--store",
    "sqlite:/does/not/exist/sessions.db",
    "--port",
    "0",
    "--admin-port",
    "0",
  ]);
  t.equal(status, 1);
  t.match(stderr, /^coatcheck: .*\/does\/not\/exist\/sessions\.db/);
});

t.test(
  "--upstream serves without a file; SIGTERM ends it with status 0; sessions and cookies survive the restart",
  async (t) => {
    const app = await startApp(t);
    const cwd = await temporaryFolder(t);
    let cookie = "";
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      const [port, adminPort] = [await freePort(), await freePort()];
      const args = [
        "--upstream",
        app.url,
        "--write",
        "user,cart",
        "--port",
        String(port),
        "--admin-port",
        String(adminPort),
      ];
      const running = command(t, args, { COATCHECK_SECRET: SECRET }, { cwd });
      await until(() => running.stdout().includes("gateway.started"));
      if (cookie === "") {
        const login = await ask(`http://127.0.0.1:${port}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
        t.match(login.setCookie, [/^__Host-session=.*; Path=\/; HttpOnly; Secure; SameSite=Lax$/]);
        cookie = cookiePair(login.setCookie[0]);
      }
      const reply = await ask(`http://127.0.0.1:${port}/`, { headers: { cookie } });
      t.equal(JSON.parse(reply.body).headers["x-user-id"], "1");
      running.child.kill(signal);
      t.equal(await running.ended, 0);
      t.match(running.stdout(), /gateway\.draining[\s\S]*gateway\.stopped/);
      t.equal(running.stderr(), "");
      t.notMatch(running.stdout(), SECRET);
    }
  },
);

t.test("without a secret it says what that means", async (t) => {
  const running = command(t, ["-u", "http://localhost:3000", "--store", "memory:", "--port", "0", "--admin-port", "0"]);
  await until(() => running.stdout().includes("gateway.started"));
  t.match(running.stdout(), /config\.ephemeral-secret[\s\S]*openssl rand/);
  running.child.kill("SIGTERM");
  await running.ended;
});

t.test("a second signal ends at once", async (t) => {
  const hanging = createServer().listen(0, "127.0.0.1");
  await once(hanging, "listening");
  t.teardown(() => hanging.close());
  const { port: upstream } = hanging.address() as { port: number };
  const port = await freePort();
  const running = command(t, [
    "-u",
    `http://127.0.0.1:${upstream}`,
    "--store",
    "memory:",
    "--port",
    String(port),
    "--admin-port",
    "0",
  ]);
  await until(() => running.stdout().includes("gateway.started"));
  const asked = once(hanging, "connection");
  ask(`http://127.0.0.1:${port}/`).catch(() => {});
  await asked;
  running.child.kill("SIGTERM");
  await until(() => running.stdout().includes("gateway.draining"));
  running.child.kill("SIGTERM");
  t.equal(await running.ended, 1);
});
