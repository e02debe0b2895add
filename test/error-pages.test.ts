import { createHmac, randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { ask, raw } from "./support/client.ts";
import { freePort, SECRET, startGateway, startRedis, temporaryFolder } from "./support/servers.ts";

const CHROME = {
  "sec-fetch-mode": "navigate",
  "sec-fetch-dest": "document",
  accept: "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
};
const OLD_BROWSER = { accept: "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8" };
const FETCH = { "sec-fetch-mode": "cors", accept: "*/*" };
const CURL = { accept: "*/*" };

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
  for (const headers of [CHROME, OLD_BROWSER]) {
    const { status, headers: fields, body } = await ask(`${gateway.url}/closed`, { headers });
    t.equal(status, 502);
    t.match(fields, {
      "content-type": "text/html; charset=utf-8",
      "cache-control": "no-store",
      "proxy-status": "coatcheck; error=connection_refused",
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
      "content-length": String(Buffer.byteLength(body)),
    });
    t.match(body, /<title>The application does not answer<\/title>/);
    t.ok(body.length < 4096, `${body.length} octets`);
    const [record] = await gateway.exchanges();
    t.ok(body.includes(`<code>${record?.traceId}</code>`), "the id by which the record is found");
  }
  for (const headers of [FETCH, CURL, {}]) {
    const { headers: fields, body } = await ask(`${gateway.url}/closed`, { headers });
    t.equal(fields["content-type"], "application/problem+json");
    t.match(JSON.parse(body), { status: 502, title: "The application does not answer", error: "connection_refused" });
  }
  const head = await ask(`${gateway.url}/closed`, { method: "HEAD", headers: CHROME });
  t.match(head, { status: 502, body: "", headers: { "content-type": "text/html; charset=utf-8" } });
  const form = await ask(`${gateway.url}/closed`, { method: "POST", headers: CHROME, body: "a=b" });
  t.match(form, { status: 502, body: /<h1>/ }, "who sends a form waits for a page too");
});

t.test("the page says what to do", async (t) => {
  const gateway = await setUp(t);
  const page = async (path: string) => (await ask(gateway.url + path, { headers: CHROME })).body;
  t.match(await page("/private"), /Sign in first/);
  t.match(await page("/elsewhere"), /Nothing here/);
  const dots = "GET /private/%2e%2e/x HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: navigate\r\n\r\n";
  t.match(await raw(gateway.port, dots), /^HTTP\/1.1 400 .*cannot be understood/s);
  const large = `GET /closed HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: navigate\r\n${"X-A: 1\r\n".repeat(201)}\r\n`;
  t.match(await raw(gateway.port, large), /^HTTP\/1.1 431 .*Deleting the cookies/s);
  t.match(await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\nX A: 1\r\n\r\n"), /^HTTP\/1.1 400 Bad Request\r\n/);
});

t.test("the store is down is never: you are signed out", async (t) => {
  const redis = await startRedis(t);
  const gateway = await setUp(t, { store: redis.url });
  await redis.kill();
  const token = randomBytes(32).toString("base64url");
  const signature = createHmac("sha256", SECRET).update(`session=${token}`).digest("base64url");
  const headers = { ...CHROME, cookie: `session=${token}.${signature}` };
  const { status, body, setCookie, headers: fields } = await ask(`${gateway.url}/private`, { headers });
  t.equal(status, 503);
  t.match(body, /You have not been signed out/);
  t.match(fields, { "retry-after": "5" });
  t.same(setCookie, [], "and the cookie is left alone");
});

t.test("nothing of the inside, and nothing that a client sent, is in an answer", async (t) => {
  const secret = "marker-of-the-inside";
  const routes = [{ match: { path: "/closed" }, upstream: `http://${secret}.invalid:9`, session: "none" }];
  const gateway = await startGateway(t, { routes });
  const sent = "marker-of-the-client";
  for (const headers of [CHROME, CURL]) {
    for (const path of ["/closed", `/${sent}`, `/closed/%00/${sent}`]) {
      const fields = { ...headers, cookie: `session=${sent}`, "x-request-id": `<script>${sent}</script>` };
      const { status, body, rawHeaders } = await ask(gateway.url + path, { headers: fields });
      t.ok(status >= 400);
      for (const marker of [secret, sent]) t.notOk(body.includes(marker) || rawHeaders.join().includes(marker), path);
    }
  }
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
    "readme.txt": "{{no matter}}",
  });
  const gateway = await setUp(t, { errors: { pages } });
  const own = async (path: string, headers: Record<string, string> = CHROME) =>
    await ask(gateway.url + path, { headers });
  t.equal((await own("/private")).body, "<p>Zur Anmeldung: Sign in first</p>");
  const { body, headers } = await own("/closed");
  t.match(
    body,
    /^502 It may be starting again at this very moment\. Please try again in a few seconds\. ([0-9a-f]{32}) \1$/,
  );
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
  });
  const problems = [
    /errors\.pages: \S*503\.html has \{\{secret\}\}; there are only \{\{status\}\}, \{\{title\}\}/,
    /99\.html is not named after a status/,
    /404\.html is not UTF-8/,
    /500\.html is larger than 256 KiB/,
  ];
  for (const problem of problems) await t.rejects(setUp(t, { errors: { pages } }), problem);
  await t.rejects(setUp(t, { errors: { pages: `${pages}/none` } }), /errors\.pages: \S*none cannot be read \(ENOENT\)/);
  await t.rejects(setUp(t, { errors: { pages: await folderWith(t, {}) } }), /has none of 404\.html/);
});
