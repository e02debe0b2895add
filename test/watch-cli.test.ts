/** `coatcheck watch` and `coatcheck exchanges`, against a running gateway. */
import t, { type Test } from "tap";
import { UsageError } from "../src/cli/arguments.ts";
import { type ExchangeList, renderList, runExchanges } from "../src/cli/exchanges.ts";
import { shownMs } from "../src/cli/text.ts";
import { runWatch } from "../src/cli/watch.ts";
import { handleOf } from "../src/core/session.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { freePort, startApp, startGateway } from "./support/servers.ts";

const TOKEN = "t".repeat(40);

async function setUp(t: Test) {
  const app = await startApp(t);
  const store = new MemoryStore();
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/account" }, upstream: app.url, session: "required" },
    { match: { path: "/gone" }, upstream: `http://127.0.0.1:${await freePort()}`, session: "none" },
  ];
  const gateway = await startGateway(t, { routes, admin: { port: 0, token: TOKEN } }, { store });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  const cookie = cookiePair(started.setCookie[0]);
  const handle = String(gateway.logs.find(({ event }) => event === "session.created")?.handle);
  const environment = { COATCHECK_ADMIN_TOKEN: TOKEN };
  const call = (...args: string[]) => run(t, [...args, "--admin", gateway.adminUrl], environment);
  /** Where nothing is printed, no process is needed. */
  const refused = (runCommand: typeof runWatch, args: string[], message: RegExp) =>
    t.rejects(runCommand([...args, "--admin", gateway.adminUrl], environment), { message });
  const start = (...args: string[]) => command(t, [...args, "--admin", gateway.adminUrl], environment);
  const visit = (path: string) => ask(gateway.url + path, { headers: { cookie } });
  const closed = (path: string) => until(() => gateway.logs.some((line) => line["url.path"] === path));
  return { gateway, store, handle, cookie, call, refused, start, visit, closed };
}

t.test("followed: a line for each request as it comes, and Ctrl-C ends the watch", async (t) => {
  const { gateway, start, visit, call } = await setUp(t);
  await visit("/before");
  const following = start("watch", "--user", "ada", "--for", "5m", "--follow");
  await until(() =>
    /^Watching user ada until \d\d:\d\d:\d\d UTC \(in [45] min\)\. Ctrl-C ends it\.\n$/.test(following.stdout()),
  );
  await visit("/cart?voucher=hunter2");
  await visit("/gone");
  await ask(`${gateway.url}/of-nobody`);
  await until(() => following.stdout().includes("/gone"));
  await visit("/account");
  await until(() => following.stdout().includes("/account"));
  following.child.kill("SIGINT");
  t.equal(await following.ended, 0);
  const [, cart, gone, account, ended, rest] = following.stdout().split("\n");
  t.match(
    cart,
    /^\d\d:\d\d:\d\d\.\d{3} {2}200 {2} *[\d.]+ m?s {2}GET 127\.0\.0\.1\/cart · hit \(store\) · passed on with the identity of the session · trace [0-9a-f]{32}$/,
  );
  t.match(gone, /502 .* GET 127\.0\.0\.1\/gone · not-asked · connection_refused: /);
  t.match(account, /200 .* GET 127\.0\.0\.1\/account · hit/);
  t.equal(ended, "Ended. 3 requests: 2 hit, 1 not-asked; 1 failed.");
  t.equal(rest, "");
  t.equal(following.stderr(), "");
  t.notMatch(following.stdout(), "hunter2");
  t.match(await call("watch", "--list"), {
    status: 0,
    stdout:
      /^Nobody is under watch\.\n3 requests are kept until \d\d:\d\d:\d\d UTC: coatcheck exchanges --ring watch\n$/,
  });
});

t.test("followed as JSON: a record a line, and an end that comes from elsewhere", async (t) => {
  const { start, visit, call, handle } = await setUp(t);
  const following = start("watch", "--handle", handle, "--follow", "--json");
  await until(() => following.stderr().includes("Watching session"));
  await visit("/one");
  await until(() => following.stdout().includes("/one"));
  t.match(await call("watch", "--list"), {
    stdout: new RegExp(
      `^WHO +ENDS +GATHERED\nsession ${handle} +in 1[45] min +1 request: 1 hit\\.\n1 requests? (is|are) kept`,
    ),
  });
  await visit("/two");
  t.match(await call("watch", "--end", "--handle", handle), { status: 0, stdout: /^Ended\. 2 requests: 2 hit\.\n$/ });
  t.equal(await following.ended, 0);
  const records = following
    .stdout()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.match(records, [
    { request: { path: "/one" }, watch: { request: [{ name: "cookie", value: /^session=\*\*\*/ }, {}, {}] } },
    { request: { path: "/two" } },
  ]);
  const steps = await call("exchanges", "--ring", "watch", "--steps", "--limit", "1");
  t.match(
    steps.stdout,
    /^GET 127\.0\.0\.1\/two · 200 [\s\S]*\nfrom the client\n {2}cookie: session=\*\*\* \(87\)\n[\s\S]*\nto the application\n[\s\S]* {2}X-User-Id: \*\*\* \(3\)\n[\s\S]*\nfrom the application\n[\s\S]*\nto the client\n/,
  );
  t.match(following.stderr(), /^Watching session .{12} until .*\nThe watch has ended\. 2 requests shown\.\n$/);
});

t.test("without a terminal it is begun and left alone", async (t) => {
  const { call, refused } = await setUp(t);
  t.match(await call("watch", "--user", "ada"), {
    status: 0,
    stdout: /^Watching user ada until .* UTC \(in 15 min\)\.\n$/,
  });
  const handle = handleOf("-begins-with-a-dash");
  const json = await call("watch", "--handle", handle, "--for", "90m", "--json");
  t.match(JSON.parse(json.stdout), { handle, user: null, requests: 0 });
  t.match(JSON.parse((await call("watch", "--list", "--json")).stdout), { watches: [{ user: "ada" }, { handle }] });
  t.match(await call("exchanges", "--handle", handle), { status: 0, stdout: /^None of the 1 requests/ });
  t.match(JSON.parse((await call("watch", "--end", "--handle", handle, "--json")).stdout), { handle });
  await refused(runWatch, ["--end", "--handle", handle], /^there is no such watch/);
  await refused(runWatch, ["--user", "ada", "--for", "2d"], /^--for must be a duration from 1s to 24h/);
  await refused(runExchanges, ["--status", "bad"], /^--status must be a status such as 503/);
});

t.test("exchanges: a table, the steps of one, and what to think of nothing", async (t) => {
  const { call, visit, closed, handle, gateway } = await setUp(t);
  t.match(await call("exchanges", "--ring", "errors"), { status: 0, stdout: "The ring errors is empty.\n" });
  await visit("/account/me");
  await ask(`${gateway.url}/account/none`);
  await visit("/gone");
  for (const path of ["/account/me", "/account/none", "/gone"]) await closed(path);
  const all = await call("exchanges");
  t.match(all, { status: 0, stderr: "" });
  const [heading, gone, none, me, started, rest] = all.stdout.split("\n");
  t.match(heading, /^TIME \(UTC\) +STATUS +TOOK +REQUEST +SESSION +HANDLE +TRACE +WHAT BECAME OF IT$/);
  t.match(
    gone,
    /^\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} +502 .* GET 127\.0\.0\.1\/gone +not-asked +- +[0-9a-f]{32} +connection_refused: /,
  );
  t.match(none, /401 .* absent +- .* turned away: the route needs a session, and no session cookie came$/);
  t.ok(me?.includes(` hit (store)  ${handle}  `));
  t.match(started, /POST 127\.0\.0\.1\/start/);
  t.equal(rest, "");

  const filtered = await call("exchanges", "--route", "*/account", "--status", "4xx", "--limit", "1", "--json");
  const { exchanges } = JSON.parse(filtered.stdout);
  t.match(exchanges, [{ request: { path: "/account/none" } }]);
  const steps = await call("exchanges", "--trace", exchanges[0].traceId);
  t.match(
    steps.stdout,
    /^GET 127\.0\.0\.1\/account\/none · 401 · .*Z · trace [0-9a-f]{32}\nturned away: .*\n +AT +STEP +WHAT \[HOW LONG\]\n/,
  );
  t.match(steps.stdout, /^ +cookie +no session cookie$/m);
  t.match(steps.stdout, /^ *[\d.]+ ms +ended +401 by Coatcheck, \d+ bytes$/m);
  t.match(await call("exchanges", "--limit", "1"), { stdout: /\n3 more; see --limit\.\n$/ });
  t.match(await call("exchanges", "--handle", handle, "--slower-than", "0ms"), { stderr: "", stdout: /\/account\/me/ });
  t.match(await call("exchanges", "--outcome", "expired"), {
    stdout:
      "None of the 4 requests in the ring recent is like that; --ring errors and --ring slow reach further back.\n",
  });
});

t.test("in a narrow terminal the list is one of paragraphs", async (t) => {
  const { call, visit, closed, handle } = await setUp(t);
  await visit("/account/me");
  await closed("/account/me");
  const list: ExchangeList = JSON.parse((await call("exchanges", "--limit", "1", "--json")).stdout);
  const id = list.exchanges[0]?.traceId;
  t.equal(
    renderList(list, 80).replace(/^\S+ {2}200 {2}[\d.]+ ms/, "TIME  200  TOOK"),
    `TIME  200  TOOK  GET 127.0.0.1/account/me · hit (store) · ${handle}\n  passed on with the identity of the session\n  trace ${id}\n1 more; see --limit.\n`,
  );
  t.match(renderList(list, 250), /^TIME \(UTC\)/);
});

t.test("what clients send does not command the terminal", async (t) => {
  const { call, gateway, closed } = await setUp(t);
  await ask(`${gateway.url}/%1b[2J`);
  await closed("/%1b[2J");
  for (const args of [[], ["--steps"]]) {
    const { stdout } = await call("exchanges", ...args);
    t.ok(stdout.includes("/%1b[2J"));
    t.notMatch(stdout, "\u{1b}");
  }
});

t.test("usage", async (t) => {
  const help = await run(t, ["watch", "--help"]);
  t.match(help, { status: 0, stdout: /watch --user ID\|--handle HANDLE[\s\S]*--no-follow/, stderr: "" });
  t.match(await run(t, ["exchanges", "-h"]), { status: 0, stdout: /--slower-than TIME[\s\S]*--trace ID/ });
  t.match(await run(t, ["--help"]), { stdout: /coatcheck exchanges [\s\S]*coatcheck watch / });
  const cases: [command: typeof runWatch, args: string[], message: RegExp][] = [
    [runWatch, ["--for", "5m"], /say whom: --user ID or --handle HANDLE/],
    [runWatch, ["--user", "a", "--handle", "aaaaaaaaaaaa"], /say whom/],
    [runWatch, ["--end"], /say whom/],
    [runWatch, ["--handle", "short"], /"short" is no handle/],
    [runWatch, ["--list", "--end"], /--list and --end do not go together/],
    [runWatch, ["--list", "--user", "a"], /--list shows all watches/],
    [runWatch, ["--end", "--user", "a", "--for", "1m"], /--for goes with a watch that begins/],
    [runWatch, ["--list", "--follow"], /--follow goes with a watch that begins/],
    [runWatch, ["--user", "a", "--follow", "--no-follow"], /do not go together/],
    [runWatch, ["ada"], /unexpected "ada"/],
    [runExchanges, ["slow"], /unexpected "slow"/],
    [runExchanges, ["--colour", "red"], /Unknown option '--colour'/],
  ];
  for (const [command, args, message] of cases) {
    const error = await command(args, {}).catch((reason: unknown) => reason);
    t.type(error, UsageError, args.join(" "));
    t.match(error, { message });
  }
  const nowhere = `http://127.0.0.1:${await freePort()}`;
  const follow = ["--user", "a", "--follow", "--admin", nowhere];
  await t.rejects(runWatch(follow, {}), { message: /no Coatcheck is running at/ });
});

t.test("durations are short", (t) => {
  const cases: [ms: number | undefined, text: string][] = [
    [undefined, "-"],
    [0.04, "0.0 ms"],
    [9.94, "9.9 ms"],
    [9.96, "10 ms"],
    [999.4, "999 ms"],
    [999.6, "1.0 s"],
    [9_990, "10.0 s"],
    [12_345, "12 s"],
  ];
  for (const [ms, text] of cases) t.equal(shownMs(ms), text);
  t.end();
});
