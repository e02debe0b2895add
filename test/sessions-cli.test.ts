/** `coatcheck sessions list | show | end`, against a running gateway. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { UsageError } from "../src/cli/arguments.ts";
import { runSessions } from "../src/cli/sessions.ts";
import { fromNow, plain, table } from "../src/cli/text.ts";
import { handleOf, type Session, type SessionKey } from "../src/core/session.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { run } from "./support/command.ts";
import { freePort, startGateway, startHttp, type Teardown, temporaryFolder } from "./support/servers.ts";

const TOKEN = "t".repeat(40);
const keyOf = (start: string): SessionKey => start.padEnd(43, "k");

async function setUp(t: Teardown) {
  const store = new MemoryStore();
  const gateway = await startGateway(t, { admin: { port: 0, token: TOKEN } }, { store });
  const now = Date.now();
  const put = (start: string, changes: Partial<Session>) => {
    const session = { user: { id: "ada" }, data: {}, createdAt: now, expiresAt: now + 90_000_000, usedAt: now };
    store.create(keyOf(start), { ...session, version: 1, ...changes });
    return keyOf(start);
  };
  const config = join(await temporaryFolder(t), "coatcheck.yaml");
  const port = new URL(gateway.adminUrl).port;
  await writeFile(
    config,
    `admin: { port: ${port}, token: "\${TOKEN}" }\nstore: "memory:"\nroutes: [{ upstream: "http://localhost:3000" }]\n`,
  );
  const sessions = (...args: string[]) =>
    run(t, ["sessions", ...args, "--admin", gateway.adminUrl], { COATCHECK_ADMIN_TOKEN: TOKEN });
  return { store, gateway, put, config, sessions, now };
}

t.test("list, show and end, as tables and as JSON", async (t) => {
  const { store, put, sessions, now } = await setUp(t);
  const key = put("-begins-with-a-dash", {
    user: { id: "ada", name: "Ada Secretname" },
    data: { cart: ["hidden"] },
    createdAt: now - 3 * 3_600_000,
    usedAt: now - 180_000,
    client: { address: "2001:db8::1", userAgent: "Evil\u{9b}2J/\u{202e}1" },
  });
  const handle = handleOf(key);
  put("second-session", { createdAt: now - 4 * 3_600_000, retiresAt: now + 8_500 });

  const list = await sessions("list", "--user", "ada");
  t.match(list, { status: 0, stderr: "" });
  const [heading, first, second] = list.stdout.split("\n");
  t.match(heading, /^HANDLE {8}CREATED \(UTC\) {8}LAST USE {2,}EXPIRES {3,}ADDRESS {6}USER AGENT$/);
  t.match(
    first,
    /^-begins-with {2}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}3 min ago {2}in 1 d {2,}2001:db8::1 {2}Evil\ufffd2J\/\ufffd1$/u,
  );
  t.match(second, /^second-sessi .* in \d s, replaced {2}-/);
  const json = JSON.parse((await sessions("list", "--user", "ada", "--json")).stdout);
  t.match(json, { count: 2, sessions: [{ handle, client: { userAgent: "Evil\u{9b}2J/\u{202e}1" } }, {}] });
  t.match(await sessions("list", "--user", "nobody"), { status: 0, stdout: "No live session.\n" });

  for (const args of [[handle], [handle, "--user", "ada"], [key]]) {
    const shown = await sessions("show", ...args);
    t.match(shown, { status: 0, stderr: "" }, args.join(" "));
    for (const line of [
      /^handle +-begins-with$/m,
      /^user +ada$/m,
      /^claims +name$/m,
      /^ATTRIBUTE {2}BYTES$/m,
      /^cart +10$/m,
    ])
      t.match(shown.stdout, line);
    for (const secret of [key, "hidden", "Secretname"]) t.notMatch(shown.stdout, secret);
  }
  t.match(JSON.parse((await sessions("show", handle, "--json")).stdout), { attributes: [{ name: "cart", bytes: 10 }] });

  t.match(await sessions("end", handle), { status: 0, stdout: `${handle}\n1 session ended.\n`, stderr: "" });
  t.equal(store.find(key).outcome, "unknown");
  t.match(await sessions("end", handle), {
    status: 1,
    stdout: "",
    stderr: /^coatcheck: there is no live session that begins with -begins-with\n$/,
  });
  t.match(await sessions("show", handle), { status: 1, stderr: /no live session/ });
});

t.test("end all of a user, or all but one", async (t) => {
  const { store, put, sessions } = await setUp(t);
  const keys = ["--------one", "two", "three"].map((start) => put(`${start}-session-`, { user: { id: "a b&c=ü" } }));
  const other = put("of-somebody-else", {});
  const [kept = ""] = keys;
  const ended = await sessions("end", "--user", "a b&c=ü", "--except", handleOf(kept));
  t.match(ended, { status: 0, stdout: /^(.{12}\n){2}2 sessions ended\.\n$/, stderr: "" });
  t.equal(store.find(kept).outcome, "hit");
  t.match(JSON.parse((await sessions("end", "--user", "a b&c=ü", "--json")).stdout), {
    count: 1,
    ended: [handleOf(kept)],
    complete: true,
  });
  t.match(await sessions("end", "--user", "a b&c=ü"), { status: 0, stdout: "0 sessions ended.\n" });
  t.equal(store.find(other).outcome, "hit");
});

t.test("--config gives address and token", async (t) => {
  const { put, config } = await setUp(t);
  put("a-session-of-ada", {});
  t.match(await run(t, ["sessions", "list", "--user", "ada", "-c", config], { TOKEN }), {
    status: 0,
    stdout: /^a-session-of /m,
  });
  const wrong = await run(t, ["sessions", "list", "--user", "ada", "-c", config], { TOKEN: "w".repeat(40) });
  t.match(wrong, { status: 1, stdout: "", stderr: /refuses the token: admin\.token in .* is not the right one/ });
  t.notMatch(wrong.stderr, "wwww");
  t.match(await run(t, ["sessions", "list", "--user", "ada", "-c", config]), { status: 1, stderr: /TOKEN is not set/ });
});

t.test("errors say what is wrong: nothing there, no token, a stranger", async (t) => {
  const { gateway } = await setUp(t);
  const list = ["sessions", "list", "--user", "ada", "--admin"];
  const nowhere = `http://127.0.0.1:${await freePort()}`;
  t.match(await run(t, [...list, nowhere]), {
    status: 1,
    stdout: "",
    stderr: `coatcheck: nothing listens there, so no Coatcheck is running at ${nowhere}; say where it is with --config FILE or --admin URL\n`,
  });
  t.match(await run(t, [...list, gateway.adminUrl]), { status: 1, stderr: /COATCHECK_ADMIN_TOKEN is not set/ });
  t.match(await run(t, [...list, gateway.adminUrl], { COATCHECK_ADMIN_TOKEN: "two\nlines" }), {
    status: 1,
    stderr: /COATCHECK_ADMIN_TOKEN holds a blank/,
  });
  t.match(await run(t, [...list, gateway.adminUrl], { COATCHECK_ADMIN_TOKEN: "x" }), {
    status: 1,
    stderr: /COATCHECK_ADMIN_TOKEN is not the right one/,
  });
  let asked: string | undefined = "";
  const stranger = await startHttp(t, (req, res) => {
    asked = req.headers.authorization;
    if (req.url?.startsWith("/moved")) res.writeHead(302, { location: gateway.adminUrl });
    res.end("<h1>hello</h1>");
  });
  const url = `http://127.0.0.1:${stranger.port}`;
  t.match(await run(t, [...list, url]), { status: 1, stderr: /is not the admin listener of Coatcheck \(status 200\)/ });
  t.equal(asked, undefined);
  t.match(await run(t, [...list, `${url}/moved`]), {
    status: 1,
    stderr: /is not the admin listener of Coatcheck \(status 302\)/,
  });
});

t.test("usage", async (t) => {
  const help = await run(t, ["sessions", "--help"]);
  t.match(help, { status: 0, stdout: /list --user ID[\s\S]*--except HANDLE[\s\S]*migrate --from URL/, stderr: "" });
  t.match(await run(t, ["sessions"]), { status: 0, stdout: help.stdout });
  t.match(await run(t, ["sessions", "end", "-h"]), { status: 0, stdout: help.stdout });
  t.match(await run(t, ["--help"]), { stdout: /coatcheck sessions [\s\S]*COATCHECK_ADMIN_TOKEN/ });
  const cases: [args: string[], message: RegExp][] = [
    [["lst"], /unknown command "sessions lst"; known: list, show, end, migrate, sweep/],
    [["list"], /list needs --user ID/],
    [["list", "aaaaaaaaaaaa"], /to see one session: show HANDLE/],
    [["show"], /show needs a HANDLE/],
    [["show", "short"], /"short" is no handle/],
    [["show", "aaaaaaaaaaaa", "bbbbbbbbbbbb"], /unexpected "bbbbbbbbbbbb"/],
    [["end"], /say what to end: HANDLE or --user ID/],
    [["end", "--except", "aaaaaaaaaaaa"], /--except goes with: end --user ID/],
    [["end", "aaaaaaaaaaaa", "--user", "u", "--except", "bbbbbbbbbbbb"], /--except goes with: end --user ID/],
    [["end", "--user", "u", "--except", "*"], /"\*" is no handle/],
    [["end", "--all"], /Unknown option '--all'/],
    [["list", "--user", "u", "--admin", "ftp://x"], /--admin must be a URL/],
    [["list", "--user", "u", "--admin", "http://u:hunter2@x"], /without user and password/],
    [["list", "--user", "u", "--admin", "http://x", "--config", "f"], /--admin does not go with --config/],
  ];
  for (const [args, message] of cases) {
    const error = await runSessions(args, {}).catch((reason: unknown) => reason);
    t.type(error, UsageError, args.join(" "));
    t.match(error, { message });
    t.notMatch(error, { message: "hunter2" });
  }
  t.match(await run(t, ["sessions", "lst"]), { status: 2, stdout: "", stderr: /^coatcheck: unknown command/ });
});

t.test("tables are aligned, and nothing in them commands the terminal", (t) => {
  const rows = [
    ["A", "B", "C"],
    ["long", "1", ""],
    ["x", "1000", "end"],
  ];
  t.equal(table(rows, [1]), "A        B  C\nlong     1\nx     1000  end\n");
  t.equal(plain("a\u{1b}[2Jb\r\nc\u{2028}d\u{202e}\u{9b}"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}\u{fffd}");
  t.equal(plain("abcdef", 4), "abc…");
  const now = Date.parse("2026-05-01T12:00:00Z");
  t.equal(fromNow("2026-05-01T12:00:00.400Z", now), "in 0 s");
  t.equal(fromNow("2026-05-01T11:59:01Z", now), "59 s ago");
  t.equal(fromNow("2026-05-01T12:27:00Z", now), "in 27 min");
  t.equal(fromNow("2026-04-28T12:00:00Z", now), "3 d ago");
  t.end();
});
