import { createHmac, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { ERROR_CODES, statusOf } from "../src/core/errors.ts";
import { isForPersonIn } from "../src/core/navigation.ts";
import { wordsFor } from "../src/error-pages.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, raw, until } from "./support/client.ts";
import {
  freePort,
  type RunningGateway,
  SECRET,
  startGateway,
  startRedis,
  startTcp,
  startUpstream,
  temporaryFolder,
} from "./support/servers.ts";

const CHROME = {
  "sec-fetch-mode": "navigate",
  "sec-fetch-dest": "document",
  accept: "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
};
const OLD_BROWSER = { accept: "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8" };
const FRAME = { "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe", accept: "text/html" };
const FETCH = { "sec-fetch-mode": "cors", accept: "*/*" };
const CURL = { accept: "*/*" };
const CLIENT = { accept: "application/json, text/plain, */*" };
/** It takes a page if there is nothing better. */
const CHOOSY = { accept: "application/json, text/html;q=0.5" };
const NO_PAGE = { accept: "text/html;q=0, */*" };
/** A script that asks for a piece of a page: it would not show it to anybody. */
const PIECE = { "sec-fetch-mode": "cors", accept: "text/html" };

/** Of a session that may be there. */
function genuineCookie(): string {
  const token = randomBytes(32).toString("base64url");
  return `session=${token}.${createHmac("sha256", SECRET).update(`session=${token}`).digest("base64url")}`;
}

/** A gateway with a route for each kind of failure. */
async function setUp(t: Test, settings: Readonly<Record<string, unknown>> = {}) {
  const closed = `http://127.0.0.1:${await freePort()}`;
  const routes = [
    { match: { path: "/private" }, upstream: closed, session: "required" },
    { match: { path: "/closed" }, upstream: closed, session: "none" },
  ];
  return startGateway(t, { routes, ...settings });
}

t.test("a person gets a page, a program problem details", async (t) => {
  const gateway = await setUp(t);
  for (const headers of [CHROME, OLD_BROWSER, FRAME]) {
    const { status, headers: fields, body } = await ask(`${gateway.url}/closed`, { headers });
    t.equal(status, 502);
    t.match(fields, {
      "content-type": "text/html; charset=utf-8",
      "cache-control": "no-store",
      "proxy-status": "coatcheck; error=connection_refused",
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
      "content-security-policy": /^default-src 'none'; style-src 'sha256-[\w+/=]+';/,
      vary: "accept, sec-fetch-mode",
      "content-length": String(Buffer.byteLength(body)),
    });
    t.match(body, /<title>The application does not answer<\/title>/);
    t.ok(body.length < 4096, `${body.length} octets`);
    const [record] = await gateway.exchanges();
    t.ok(body.includes(`<code>${record?.traceId}</code>`), "the id by which the record is found");
  }
  for (const headers of [FETCH, CURL, CLIENT, CHOOSY, NO_PAGE, PIECE, {}]) {
    const { headers: fields, body } = await ask(`${gateway.url}/closed`, { headers });
    t.match(fields, {
      "content-type": "application/problem+json",
      "cache-control": "no-store",
      "proxy-status": "coatcheck; error=connection_refused",
      "x-content-type-options": "nosniff",
      vary: "accept, sec-fetch-mode",
    });
    const [record] = await gateway.exchanges();
    t.same(JSON.parse(body), {
      type: "about:blank",
      title: "Bad Gateway",
      status: 502,
      detail: "It may be starting again just now. Please try again in a moment.",
      error: "connection_refused",
      traceId: record?.traceId,
    });
  }
  const head = await ask(`${gateway.url}/closed`, { method: "HEAD", headers: CHROME });
  t.match(head, { status: 502, body: "", headers: { "content-type": "text/html; charset=utf-8" } });
  const form = await ask(`${gateway.url}/closed`, { method: "POST", headers: CHROME, body: "a=b" });
  t.match(form, { status: 502, body: /<h1>/ }, "who sends a form waits for a page too");
});

t.test("the page says what to do", async (t) => {
  const gateway = await setUp(t);
  const page = async (path: string) => (await ask(gateway.url + path, { headers: CHROME })).body;
  t.match(await page("/private"), /Please sign in/);
  t.match(await page("/elsewhere"), /Nothing here/);
  const dots = "GET /private/%2e%2e/x HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: navigate\r\n\r\n";
  t.match(await raw(gateway.port, dots), /^HTTP\/1.1 400 .*was not understood/s);
  const large = `GET /closed HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: navigate\r\n${"X-A: 1\r\n".repeat(201)}\r\n`;
  t.match(await raw(gateway.port, large), /^HTTP\/1.1 431 .*clear the cookies/s);
});

t.test("what never became a request gets the same answer", async (t) => {
  const gateway = await setUp(t);
  const answers = async (octets: string, status: string, type: string, text: RegExp) => {
    const [head = "", body = ""] = (await raw(gateway.port, octets)).split("\r\n\r\n");
    await until(async () => (await gateway.exchanges()).some(({ traceId }) => body.includes(traceId)));
    t.ok(head.startsWith(`HTTP/1.1 ${status}\r\n`), head);
    t.match(body, text);
    const fields = [
      `content-type: ${type}`,
      `content-length: ${Buffer.byteLength(body)}`,
      "cache-control: no-store",
      "vary: accept, sec-fetch-mode",
      "connection: close",
    ];
    for (const field of [...fields, "proxy-status: coatcheck; error=http_request_error"])
      t.ok(head.toLowerCase().split("\r\n").includes(field), field);
  };
  const [page, problem] = ["text/html; charset=utf-8", "application/problem+json"];
  const browser = "Host: a\r\nAccept: text/html,*/*;q=0.8\r\n";
  const fetch = "Host: a\r\nAccept: */*\r\nSec-Fetch-Mode: cors\r\n";
  const cookies = `Cookie: ${"c=1; ".repeat(8 * 1024)}\r\n`;
  await answers(`GET / HTTP/1.1\r\n${browser}X A: 1\r\n\r\n`, "400 Bad Request", page, /<h1>The request was not/);
  await answers("GET / HTTP/1.1\r\nHost: a\r\nX A: 1\r\n\r\n", "400 Bad Request", problem, /"title":"Bad Request"/);
  await answers("NONSENSE\r\n\r\n", "501 Not Implemented", problem, /"status":501/);
  const tooLarge = "431 Request Header Fields Too Large";
  await answers(`GET / HTTP/1.1\r\n${browser}${cookies}\r\n`, tooLarge, page, /Please clear the cookies/);
  await answers(`GET / HTTP/1.1\r\n${fetch}${cookies}\r\n`, tooLarge, problem, /"status":431/);
  const chunk = `POST /closed HTTP/1.1\r\n${browser}Transfer-Encoding: chunked\r\n\r\nz\r\n`;
  await answers(chunk, "400 Bad Request", page, /<h1>The request was not/);
  await answers("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "405 Method Not Allowed", problem, /"status":405/);
  const long = `GET /${"a".repeat(40 * 1024)} HTTP/1.1\r\n${browser}\r\n`;
  await answers(long, "414 URI Too Long", problem, /"status":414/);
});

t.test("hints in a head without an end cost little", async (t) => {
  const head = Buffer.from(`GET / HTTP/1.1\r\n${`accept: ${" x".repeat(4000)}y\r\n`.repeat(8)}`);
  const started = performance.now();
  for (let i = 0; i < 100; i++) isForPersonIn(head);
  t.ok(performance.now() - started < 2_000);
});

t.test("the store is down is never: you are signed out", async (t) => {
  const redis = await startRedis(t);
  const gateway = await setUp(t, { store: redis.url });
  await redis.kill();
  const headers = { ...CHROME, cookie: genuineCookie() };
  const { status, body, setCookie, headers: fields } = await ask(`${gateway.url}/private`, { headers });
  t.equal(status, 503);
  t.match(body, /You are still signed in, as far as we know/);
  t.match(fields, { "retry-after": "5" });
  t.same(setCookie, [], "and the cookie is left alone");
});

/** What must be in no answer: words of the inside and of clients, and the looks of addresses, paths and stacks. */
const INSIDE = "marker-of-the-inside";
const SENT = "marker-of-the-client";
const LEAKS = new RegExp(
  [INSIDE, SENT, "127\\.0\\.0\\.1", "localhost", "node:", "/src/", "\\.ts\\b", "\\n +at ", "ECONN", "undici"].join("|"),
  "i",
);

class BrokenStore extends MemoryStore {
  override find(): never {
    throw new Error(`${INSIDE} at 10.1.2.3`);
  }
}

/** Everything that answers `path`, asked by a person and by a program that both send markers. */
async function answersOf(gateway: RunningGateway, path: string, fields = ""): Promise<string[]> {
  const cookie = `Cookie: session=${SENT}; ${SENT}=${SENT}\r\nReferer: http://${SENT}/\r\n`;
  const head = `GET ${path} HTTP/1.1\r\nHost: ${SENT}\r\nConnection: close\r\nX-Request-Id: <script>${SENT}</script>\r\n`;
  const accepts = ["Sec-Fetch-Mode: navigate\r\n", "Accept: */*\r\n"];
  return Promise.all(accepts.map((accept) => raw(gateway.port, `${head}${accept}${cookie}${fields}\r\n`)));
}

t.test("nothing of the inside, and nothing that a client sent, is in an answer", async (t) => {
  const badHead = await startTcp(t, (socket) => socket.once("data", () => socket.end(`HTTP/1.1 ${INSIDE}\r\n\r\n`)));
  const badField = await startTcp(t, (socket) =>
    socket.once("data", () => socket.end(`HTTP/1.1 200 OK\r\n${INSIDE} : a\r\n\r\n`)),
  );
  const ended = await startTcp(t, (socket) => socket.once("data", () => socket.end()));
  const silent = await startTcp(t, () => {});
  const commands = await startUpstream(t, (_received, _req, res) => {
    res.setHeader("x-session-set", `{"${INSIDE}`);
    res.end(INSIDE);
  });
  const refused = await freePort();
  const store = new BrokenStore();
  const route = (path: string, upstream: unknown, more = {}) => ({
    match: { path },
    upstream,
    session: "none",
    ...more,
  });
  const routes = [
    route("/dns", `http://${INSIDE}.invalid:9`),
    route("/refused", `http://127.0.0.1:${refused}`),
    route("/bad-head", badHead.url),
    route("/bad-field", badField.url),
    route("/ended", ended.url),
    route("/silent", { targets: [silent.url], timeouts: { firstByte: "100ms" } }),
    route("/commands", commands.url, { session: "optional", onOutage: "anonymous", write: ["cart"] }),
    route("/private", commands.url, { session: "required" }),
  ];
  const gateway = await startGateway(t, { routes }, { store });
  const seen = new Map<string, number>();
  const look = (answers: readonly string[]) => {
    for (const text of answers) {
      const [head = "", body = ""] = text.split("\r\n\r\n");
      const error = /error=(\w+)/.exec(head)?.[1] ?? "";
      const name = `${head.slice(9, 12)} ${error}`;
      seen.set(name, (seen.get(name) ?? 0) + 1);
      t.notMatch(text, LEAKS, name);
      t.match(head, /\r\ncontent-type: (text\/html; charset=utf-8|application\/problem\+json)\r\n/, name);
      t.match(body, /\b[0-9a-f]{32}\b/, name);
    }
  };
  for (const { match } of routes) look(await answersOf(gateway, match.path));
  look(await answersOf(gateway, "/private", `Cookie: ${genuineCookie()}\r\n`));
  look(await answersOf(gateway, `/${SENT}`));
  look(await answersOf(gateway, `/refused/%00/${SENT}`));
  look(await answersOf(gateway, `/refused?${"a".repeat(33_000)}${SENT}`));
  look(await answersOf(gateway, "/refused", `${SENT} : a\r\n`));
  look(await answersOf(gateway, "/refused", `Cookie: ${SENT.repeat(2_000)}\r\n`));
  look(await answersOf(gateway, "/refused", `Content-Length: ${SENT}\r\n`));
  look(await answersOf(gateway, "/refused", `Via: ${"1.1 coatcheck, ".repeat(20)}${SENT}\r\n`));
  t.same(Object.fromEntries(seen), {
    "400 http_request_error": 6,
    "401 ": 2,
    "404 destination_not_found": 2,
    "414 http_request_error": 2,
    "431 http_request_error": 2,
    "502 connection_refused": 2,
    "502 connection_terminated": 2,
    "502 dns_error": 2,
    "502 http_protocol_error": 6,
    "502 proxy_loop_detected": 2,
    "503 session_store_unavailable": 2,
    "504 http_response_timeout": 2,
  });
  t.ok(gateway.logText().includes(INSIDE), "operators are told");
});

t.test("a defect says nothing of itself", async (t) => {
  let broken = false;
  const now = () => {
    if (broken) throw new Error(`${INSIDE} at 10.1.2.3`);
    return Date.now();
  };
  const { url } = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: url }, { now });
  broken = true;
  const answers = await answersOf(gateway, "/", `Cookie: ${genuineCookie()}\r\n`);
  broken = false;
  for (const text of answers) {
    t.match(text, /^HTTP\/1.1 500 Internal Server Error/);
    t.notMatch(text, LEAKS);
  }
  t.ok(gateway.logText().includes(INSIDE), "operators are told");
});

t.test("docs/errors.md has every error, and what the page says of it", (t) => {
  const rows = readFileSync("docs/errors.md", "utf8").split("\n");
  for (const error of ERROR_CODES) {
    const mentions = rows.filter((row) => row.startsWith("| ") && row.includes(`\`${error}\``));
    const own = mentions.filter((row) => row.includes(wordsFor(Number(row.slice(2, 5)), error).title));
    t.ok(
      own.some((row) => error === "http_request_error" || row.startsWith(`| ${statusOf(error)} `)),
      error,
    );
    t.equal(own.length, mentions.length, `${error}: the words of each row`);
  }
  t.end();
});

async function folderWith(t: Test, files: Readonly<Record<string, string | Buffer>>): Promise<string> {
  const folder = join(await temporaryFolder(t), "pages");
  mkdirSync(folder);
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}

t.test("an operator's own pages, the most specific first", async (t) => {
  const pages = await folderWith(t, {
    "401.html": "<p>Zur Anmeldung: {{ title }}</p>",
    "5xx.html": "{{status}} {{message}} {{requestId}} {{requestId}}",
    "error.html": "any {{status}}",
    "..data": "{{of a mount}}",
  });
  const gateway = await setUp(t, { errors: { pages } });
  const own = async (path: string, headers: Record<string, string> = CHROME) =>
    await ask(gateway.url + path, { headers });
  t.equal((await own("/private")).body, "<p>Zur Anmeldung: Please sign in</p>");
  const { body, headers } = await own("/closed");
  t.match(body, /^502 It may be starting again just now\. Please try again in a moment\. ([0-9a-f]{32}) \1$/);
  t.notOk(headers["content-security-policy"], "theirs to say");
  t.equal((await own("/elsewhere")).body, "any 404");
  t.match(await own("/private", CURL), { headers: { "content-type": "application/problem+json" } });
});

t.test("pages that cannot be used are told by name, all at once", async (t) => {
  const pages = await folderWith(t, {
    "503.html": "{{secret}}",
    "99.html": "",
    "404.html": Buffer.from([0xff, 0xfe]),
    "500.html": "x".repeat(256 * 1024 + 1),
    "4xx.html": "{{ request-id }}",
    "5XX.html": "",
    "readme.txt": "",
  });
  mkdirSync(join(pages, "error.html"));
  const problems = [
    /errors\.pages: \S*503\.html has \{\{secret\}\}; there are only \{\{status\}\}, \{\{title\}\}/,
    /4xx\.html has \{\{request-id\}\}/,
    /5XX\.html is not named after a status/,
    /readme\.txt is not named after a status/,
    /error\.html is not a file/,
    /99\.html is not named after a status/,
    /404\.html is not UTF-8/,
    /500\.html is larger than 256 KiB/,
  ];
  for (const problem of problems) await t.rejects(setUp(t, { errors: { pages } }), problem);
  await t.rejects(setUp(t, { errors: { pages: `${pages}/none` } }), /errors\.pages: \S*none cannot be read \(ENOENT\)/);
  await t.rejects(setUp(t, { errors: { pages: await folderWith(t, {}) } }), /has none of 404\.html/);
});
