/** The demo, as a person uses it: every line of the tour does what it says. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import t from "tap";
import { ask, cookiePair, type Reply, until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { freePort, startRedis, temporaryFolder } from "./support/servers.ts";

const redis = await startRedis(t);

for (const [store, environment] of Object.entries({ SQLite: {}, Redis: { REDIS_URL: redis.url } })) {
  t.test(`over ${store}`, async (t) => {
    const [port, adminPort] = [await freePort(), await freePort()];
    const demo = command(t, ["demo", "--port", String(port), "--admin-port", String(adminPort)], environment);
    await until(() => demo.stdout().includes("Ctrl-C"));
    const tour = demo.stdout();
    t.match(tour, `Sessions are kept in ${store}`);
    t.match(tour, `http://localhost:${port}`);
    const url = `http://127.0.0.1:${port}`;
    let cookie = "";
    const get = (path: string, headers = {}) =>
      ask(url + path, { headers: { cookie, accept: "text/html", ...headers } });
    const post = (path: string, form: Record<string, string> = {}) =>
      ask(url + path, {
        method: "POST",
        headers: { cookie, "content-type": "application/x-www-form-urlencoded" },
        body: new URLSearchParams(form).toString(),
      });
    const keep = (reply: Reply) => {
      cookie = cookiePair(reply.setCookie[0]);
    };

    await t.test("signing in, a cart, a page by role, signing out", async (t) => {
      t.match(await get("/account"), { status: 302, headers: { location: "/login" } });
      t.equal((await post("/login", { user: "ada", password: "wrong" })).status, 403);
      keep(await post("/login", { user: "ada", password: "ada" }));
      t.match((await get("/")).body, "Welcome, Ada Lovelace");
      t.match((await get("/admin")).body, "The till is open");
      await post("/cart", { item: "umbrella" });
      await post("/cart", { item: "hat" });
      t.match((await get("/")).body, '<b id="cart">umbrella, hat</b>');
      t.match((await get("/headers")).body, /^X-User-Roles: admin,staff$/m);
      t.notMatch((await get("/headers")).body, /session=/);
      keep(await post("/logout"));
      t.equal(cookie, "session=");
      t.equal((await get("/admin")).status, 302);
    });

    await t.test("a name beyond ASCII arrives whole", async (t) => {
      keep(await post("/login", { user: "zoë", password: "zoë" }));
      t.match((await get("/account")).body, "Zoë Ångström");
      t.match((await get("/admin")).body, "Staff only");
    });

    await t.test("forged headers do nothing", async (t) => {
      cookie = "";
      const { body } = await get("/headers", { "X-User-Id": "1", "X_User.Roles": "admin" });
      t.match(body, /^X-User-Id: $/m);
      t.match(body, /^X-User-Roles: $/m);
    });

    await t.test("the curl lines of the tour run as printed", async (t) => {
      const lines = tour.split("\n").filter((line) => line.startsWith("  curl "));
      t.ok(lines.length >= 6);
      const cwd = await temporaryFolder(t);
      const shell = spawn("bash", ["-e", "-o", "pipefail", "-c", lines.join("\n")], {
        cwd,
        stdio: ["ignore", "pipe", "pipe"],
      });
      let output = "";
      for (const stream of [shell.stdout, shell.stderr])
        stream.setEncoding("utf8").on("data", (piece) => (output += piece));
      const [status] = await once(shell, "close");
      t.equal(status, 0, output);
      t.match(output, /^HTTP\/1.1 303/m);
      t.match(output, /^set-cookie: session=/m);
      t.match(output, /^X-Cart: umbrella$/m);
      t.match(output, /^HTTP\/1.1 401/m);
      t.match(output, /coatcheck_headers_stripped_total\{class="alias"\}/);
    });

    await t.test("the commands for operators run as printed", async (t) => {
      const lines = [...tour.matchAll(/ (?:coatcheck (\w+.*))$/gm)].map(([, rest = ""]) => rest.split(" "));
      const cwd = await temporaryFolder(t);
      const named = lines.filter((args) => args.includes("--admin"));
      t.same(named.map(([name]) => name).sort(), ["dump", "exchanges", "explain", "top", "watch"]);
      for (const args of named)
        t.match(await run(t, args, {}, { cwd }), { status: 0, stdout: /\S/, stderr: "" }, args.join(" "));
    });

    await t.test("Ctrl-C ends everything cleanly", async (t) => {
      const shop = /legacy shop (http:\S+)/.exec(tour)?.[1] ?? "";
      const log = /tail -f (\S+)/.exec(tour)?.[1] ?? "";
      t.equal((await ask(shop)).status, 200);
      t.ok(existsSync(log));
      demo.child.kill("SIGINT");
      t.equal(await demo.ended, 0);
      t.equal(demo.stderr(), "");
      await t.rejects(ask(shop), { code: "ECONNREFUSED" });
      t.notOk(existsSync(log));
    });
  });
}

t.test("a port that is taken is named", async (t) => {
  const taken = createServer().listen(0, "0.0.0.0");
  await once(taken, "listening");
  t.teardown(() => taken.close());
  const { port } = taken.address() as { port: number };
  const { status, stderr } = await run(t, ["demo", "--port", String(port), "--admin-port", "0"]);
  t.equal(status, 1);
  t.match(stderr, `coatcheck: port ${port} on 0.0.0.0 is in use by another program; choose another with --port`);
});
