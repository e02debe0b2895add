/** `coatcheck explain`, against a running gateway. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { renderExplanation } from "../src/cli/explain.ts";
import { readRequestText } from "../src/cli/request-text.ts";
import type { Explanation } from "../src/core/explanation.ts";
import { handleOf } from "../src/core/session.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask } from "./support/client.ts";
import { run } from "./support/command.ts";
import { sessionOf, ticket } from "./support/explain.ts";
import { SECRET, startApp, startGateway, type Teardown, temporaryFolder } from "./support/servers.ts";

const TOKEN = "t".repeat(40);

async function begin(t: Teardown) {
  const app = await startApp(t);
  const store = new MemoryStore();
  const { key, cookie: pair, value } = ticket();
  store.create(key, sessionOf());
  const routes = [{ upstream: app.url, session: "required" }];
  const session = { cookie: { name: "session", secure: false, secrets: [SECRET] } };
  const gateway = await startGateway(t, { routes, session, admin: { port: 0, token: TOKEN } }, { store });
  const file = join(await temporaryFolder(t), "request.txt");
  const options = ["--admin", gateway.adminUrl];
  const environment = { COATCHECK_ADMIN_TOKEN: TOKEN };
  const cli = (...args: string[]) => run(t, ["explain", ...args, ...options], environment);
  const piped = (input: string, ...args: string[]) =>
    run(t, ["explain", "--headers-file", "-", ...args, ...options], environment, { input });
  return { app, gateway, handle: handleOf(key), pair, value, file, cli, piped };
}

t.test("a file of header lines: every step with its mark, one sentence, and nothing of the cookie", async (t) => {
  const { app, file, handle, pair, value, cli } = await begin(t);
  await writeFile(file, `GET /basket?q=1 HTTP/2\nHost: shop.example.com\nUser-Agent: x\nCookie: ${pair}\n`);
  const { status, stdout, stderr } = await cli("--headers-file", file);
  t.equal(stderr, "");
  t.equal(status, 0);
  t.match(stdout, /^✓ request {4}GET shop\.example\.com\/basket\n✓ client /);
  t.match(stdout, /^✓ store {6}memory, in /m);
  t.match(
    stdout,
    new RegExp(`as user 7, session ${handle}\\.\nIf that is not what was wanted: to sign this user out: `),
  );
  t.notMatch(stdout, "\u001b", "no colours where there is no terminal");
  t.notOk(stdout.includes(value));
  t.equal(app.received.length, 0);
});

t.test("options of its own, JSON, standard input", async (t) => {
  const { pair, handle, cli, piped } = await begin(t);
  const one = await cli(
    "--url",
    "http://a/",
    "-H",
    "Cookie: session=abc",
    "--header",
    "Accept: */*",
    "--client",
    "::1",
  );
  t.match(one.stdout, /^✗ cookie +one named session\n +has 3 characters, one of ours 87/m);
  t.match(one.stdout, /^✓ client +::1: /m);
  t.match(one.stdout, "It would be sent as problem details, because the request does not ask for a page.");
  const { stdout } = await cli("--json", "--url", "http://a/", "--method", "BREW");
  t.equal((JSON.parse(stdout) as Explanation).wouldAnswer?.status, 501);
  const curl = `curl 'https://shop.example.com/x' \\\n  -H 'accept: text/html' -b '${pair}' --compressed`;
  t.match((await piped(curl)).stdout, `as user 7, session ${handle}.`);
});

t.test("a recorded exchange by its trace id", async (t) => {
  const { gateway, cli } = await begin(t);
  const reply = await ask(gateway.url, { headers: { cookie: "session=abc" } });
  const { traceId } = JSON.parse(reply.body);
  const { status, stdout } = await cli("--trace", traceId);
  t.equal(status, 0);
  t.match(stdout, new RegExp(`^✓ record   .*, trace ${traceId}\n`));
  t.match(stdout, /^Coatcheck answered 401 and forwarded nothing: its cookie is none of ours\.$/m);
  const unknown = await cli("--trace", "0".repeat(32));
  t.equal(unknown.status, 1);
  t.match(unknown.stderr, /^coatcheck: no exchange with this trace id is recorded/);
});

t.test("what makes no sense is told, and no cookie with it", async (t) => {
  const { file, pair, value, cli, piped } = await begin(t);
  await writeFile(file, `Cookie ${pair}\n`);
  const cases: [args: string[], status: number, sentence: RegExp][] = [
    [["--header", `Cookie: ${pair}`], 2, /say which request: --url URL/],
    [["--url", "http://a/", "--trace", "0".repeat(32)], 2, /--url does not go with --trace/],
    [["--trace", pair], 2, /--trace needs a trace id/],
    [["--url", "http://a/", pair], 2, /explain takes options only/],
    [["--url", "http://a/", "--headers-file", file], 1, /there is a line that is no header/],
    [["--url", "http://a/", "--headers-file", `${file}.none`], 1, /is not there/],
    [["--url", "http://a/", "--header", `Cookie ${pair}`], 1, /headers\[0\] is no header/],
    [["--url", "ftp://a/"], 2, /--url must begin with http/],
  ];
  const asked = cases.map(async ([args, status, sentence]) => {
    const ended = await cli(...args);
    t.equal(ended.status, status, sentence.source);
    t.match(ended.stderr, sentence);
    t.notOk(ended.stderr.includes(value));
  });
  await Promise.all(asked);
  t.match((await piped("curl 'https://a/ -H x")).stderr, /there is a line that is no header/);
  t.match((await run(t, ["explain", "--help"])).stdout, /--headers-file FILE\n +its head/);
});

t.test("requests as people have them at hand", (t) => {
  const read = (...lines: string[]) => readRequestText(lines.join("\n"));
  t.same(read("> POST /a HTTP/1.1", "> Host: h", "> Cookie: s=1", "> ", "* info", "< HTTP/1.1 200 OK"), {
    method: "POST",
    url: "/a",
    headers: ["Host: h", "Cookie: s=1"],
  });
  t.same(read(":authority: h", ":method: GET", ":path: /a?b", ":scheme: https", "cookie: s=1"), {
    method: "GET",
    url: "/a?b",
    headers: ["Host: h", "cookie: s=1"],
  });
  t.same(read("Cookie: s=1", "", "X-Empty:"), { headers: ["Cookie: s=1", "X-Empty: "] });
  t.same(read("GET /a HTTP/1.1", "Cookie: s=1"), { method: "GET", headers: ["Cookie: s=1"] }, "a path without a host");
  t.equal(read("Cookie: s=1", "no header"), undefined);
  t.same(read(String.raw`curl -X PUT "https://a/\"b" --data-raw $'it\'s \u00e4' -H $'x: \'y' -A agent -o file -k`), {
    method: "PUT",
    url: 'https://a/"b',
    headers: ["x: 'y", "User-Agent: agent"],
  });
  t.same(read("curl https://a/ -d x"), { method: "POST", url: "https://a/", headers: [] });
  t.same(read("curl -I https://a/"), { method: "HEAD", url: "https://a/", headers: [] });
  t.equal(read("curl 'https://a/"), undefined);
  t.end();
});

t.test("what a client chose cannot command the terminal", (t) => {
  const explanation: Explanation = {
    steps: [{ step: "request", finding: "GET a/\u001b[2J", detail: ["x\ny"], ok: true }],
    conclusion: "as user \u001b]0;x\u0007.",
  };
  const text = renderExplanation(explanation);
  for (const command of ["\u001b[2J", "\u001b]0", "\u0007"]) t.notOk(text.includes(command));
  t.match(text, "x\ufffdy");
  t.end();
});
