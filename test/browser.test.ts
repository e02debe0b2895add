/** A real browser before a real application: what a person does in it, over HTTPS with HTTP/2 and over HTTP/1.1. */
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startBrowser, visit } from "./support/browser.ts";
import { makeCertificate } from "./support/certificates.ts";
import { ask, until } from "./support/client.ts";
import { startNoticeBoard } from "./support/notice-board.ts";
import { SECRET, startGateway, temporaryFolder } from "./support/servers.ts";

/** A folder for pictures of the pages, to look at. */
const { PICTURES } = process.env;

for (const encrypted of [true, false]) {
  const name = encrypted ? "HTTPS and HTTP/2" : "HTTP/1.1";
  t.test(`a person's day, over ${name}`, async (t) => {
    const board = await startNoticeBoard(t);
    const tls = encrypted ? makeCertificate(await temporaryFolder(t), "own") : undefined;
    const to = { upstream: board.url, session: "required", onMissing: { redirect: "/login" } };
    const gateway = await startGateway(t, {
      listen: { host: "127.0.0.1", port: 0, ...(tls && { tls }) },
      session: {
        cookie: { name: encrypted ? "__Host-session" : "session", secure: encrypted, secrets: [SECRET] },
      },
      routes: [
        { match: { path: "/" }, ...to },
        { match: { path: "/login" }, upstream: board.url, session: "optional", write: ["user"] },
      ],
    });
    const { context, page, console } = await visit(await startBrowser(t), { ignoreHTTPSErrors: true });
    const { url } = gateway;
    const countOf = (selector: string) => page.locator(`${selector} li`).count();
    const textOf = (selector: string) => page.textContent(selector);

    t.comment("signs in");
    await page.goto(url);
    t.equal(new URL(page.url()).pathname, "/login", "whoever is a stranger is sent to sign in");
    await page.fill("input", "Ada");
    await page.click("button");
    t.equal(await textOf("h1"), "Hello, Ada");
    const [cookie] = await context.cookies();
    t.match(cookie, { httpOnly: true, secure: encrypted, sameSite: "Lax" });
    t.equal(await page.evaluate("document.cookie"), "", "no script sees the cookie");

    t.comment("is told the news");
    await until(() => board.listeners().length === 1);
    for (const id of [1, 2, 3]) {
      board.tell(id, `news ${id}`);
      await until(async () => (await countOf("#news")) === id);
    }
    board.endStreams();
    await until(() => board.listeners().includes("3"));
    board.tell(4, "after a new deployment");
    await until(async () => (await countOf("#news")) === 4);
    t.equal(await textOf("#news li:last-child"), "after a new deployment", "the browser came back, from where it was");

    t.comment("talks");
    await until(async () => (await countOf("#talk")) === 1);
    await page.evaluate("say('Grüße'); say('x'.repeat(1_000_000))");
    await until(async () => (await countOf("#talk")) === 3);
    t.equal(await textOf("#talk li:nth-child(2)"), "Ada: Grüße");
    t.equal((await textOf("#talk li:nth-child(3)"))?.length, 1_000_005);

    t.comment("is signed out by an operator, with the page open");
    await page.evaluate("sessionStorage.clear()");
    await ask(`${gateway.adminUrl}/sessions?user=Ada`, { method: "DELETE" });
    await page.waitForURL(`${url}/login`);
    t.equal(await page.evaluate("sessionStorage.closed"), "1008 session ended", "the WebSocket said why");
    await until(() => board.sockets() === 0);
    await page.fill("input", "Ada");
    await page.click("button");
    t.equal(await textOf("h1"), "Hello, Ada");

    t.comment("uploads and downloads");
    const photo = randomBytes(5_000_000);
    const hash = createHash("sha256").update(photo).digest("hex");
    await page.setInputFiles("input[type=file]", {
      name: "photo.bin",
      mimeType: "application/octet-stream",
      buffer: photo,
    });
    await page.click("button");
    t.equal(await textOf("#hash"), hash);
    t.ok(board.file().equals(photo));
    await page.goBack();
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("a")]);
    const saved = join(await temporaryFolder(t), "photo.bin");
    await download.saveAs(saved);
    t.ok(readFileSync(saved).equals(photo));

    t.comment("lives through an outage");
    await until(async () => (await textOf("#stream")) === "listening");
    await board.stop();
    await until(async () => (await textOf("#stream")) === "not listening");
    const problem = await page.evaluate(async () => (await fetch("/file")).json());
    t.match(problem, { status: 502, error: "connection_refused" }, "scripts get problem details");
    const outage = await page.goto(url);
    t.equal(outage?.status(), 502);
    const record = (await gateway.exchanges()).find(
      ({ request, response }) => request.path === "/" && response.status === 502,
    );
    t.equal(await textOf("code"), record?.traceId, "what a person tells the support is what operators look for");
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      for (const width of [1280, 320]) {
        await page.setViewportSize({ width, height: 568 });
        t.ok((await page.evaluate<number>("document.documentElement.scrollWidth")) <= width, `${width} px`);
        if (PICTURES !== undefined)
          await page.screenshot({ path: join(PICTURES, `outage-${encrypted}-${colorScheme}-${width}.png`) });
      }
    }
    await board.start();
    await until(async () => (await page.reload())?.status() === 200);
    t.equal(await textOf("h1"), "Hello, Ada", "still signed in");

    const versions = new Set((await gateway.exchanges()).map(({ request }) => request.httpVersion));
    t.same([...versions].sort(), encrypted ? ["1.1", "2"] : ["1.1"], "WebSockets have a connection of HTTP/1.1");
    const upgraded = (await gateway.exchanges()).filter(({ request }) => request.httpVersion === "1.1");
    if (encrypted) t.ok(upgraded.every(({ request }) => request.path === "/talk"));
    const failed = console.filter((line) => !/Failed to load|net::ERR|WebSocket connection/.test(line));
    t.same(failed, [], "no script failed");
  });
}
