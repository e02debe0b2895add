/** What a person sees, in a real browser, when something is down. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "playwright-core";
import t from "tap";
import { startBrowser, visit } from "./support/browser.ts";
import { makeCertificate } from "./support/certificates.ts";
import { until } from "./support/client.ts";
import { startApp, startGateway, startRedis, temporaryFolder } from "./support/servers.ts";

/** A folder for pictures of the pages, to look at. */
const { PICTURES } = process.env;

async function picture(page: Page, name: string): Promise<void> {
  if (PICTURES !== undefined) writeFileSync(join(PICTURES, `${name}.png`), await page.screenshot());
}

/** In the browser, as text: the tests have no types of its own. */
const PAPER = "getComputedStyle(document.body).backgroundColor";
const INKS = "[...document.querySelectorAll('h1, p, code')].map((it) => getComputedStyle(it).color)";

/** The least contrast of a text with the page behind it (WCAG 2.2, 1.4.3): 4.5 is wanted. */
async function leastContrast(page: Page): Promise<number> {
  const paper = luminance(await page.evaluate<string>(PAPER));
  const inks = (await page.evaluate<string[]>(INKS)).map(luminance);
  return Math.min(...inks.map((ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)));
}

/** @param color `rgb(1, 2, 3)` */
function luminance(color: string): number {
  const [r = 0, g = 0, b = 0] = (color.match(/\d+/g) ?? []).map((value) => {
    const share = Number(value) / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

t.test("people who are signed in live through an outage of the session store", async (t) => {
  const redis = await startRedis(t, { save: true });
  const app = await startApp(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] }];
  const gateway = await startGateway(t, { store: redis.url, routes, cache: { maxBytes: "0B" } });
  const browser = await startBrowser(t);
  const { context, page, console, requests } = await visit(browser, { viewport: { width: 1280, height: 800 } });
  await context.request.post(`${gateway.url}/start`, { data: '{"user":{"id":"ada"}}' });
  const cookies = await context.cookies();
  t.equal(cookies.length, 1);
  await page.goto(`${gateway.url}/basket`);
  t.match(await page.textContent("body"), /"x-user-id":"ada"/);

  await redis.kill();
  const { type, problem } = await page.evaluate(async () => {
    const response = await fetch("/data");
    return { type: response.headers.get("content-type"), problem: await response.json() };
  });
  t.match({ type, problem }, { type: "application/problem+json", problem: { error: "session_store_unavailable" } });

  console.length = 0;
  requests.length = 0;
  const response = await page.goto(`${gateway.url}/basket`);
  t.equal(response?.status(), 503);
  t.equal(await page.title(), "Back in a moment");
  t.equal(await page.textContent("h1"), "Back in a moment");
  t.equal(await page.getAttribute("html", "lang"), "en");
  t.match(
    await page.textContent("main"),
    /You are still signed in, as far as we know\. Please try again in a moment\./,
  );
  const [record] = await gateway.exchanges();
  t.equal(
    await page.textContent("code"),
    record?.traceId,
    "what a person tells the support is what operators look for",
  );
  t.same(requests, [`${gateway.url}/basket`], "nothing else is loaded");
  t.same(
    console.filter((line) => !line.startsWith("Failed to load resource")),
    [],
    "no violation of its own policy",
  );
  t.equal(await page.evaluate("getComputedStyle(document.body).display"), "grid", "the policy lets the style pass");

  const papers = new Set<string>();
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    papers.add(await page.evaluate<string>(PAPER));
    t.ok((await leastContrast(page)) >= 4.5, `${colorScheme}: ${await leastContrast(page)}`);
    await picture(page, colorScheme);
    await page.setViewportSize({ width: 320, height: 568 });
    const width = await page.evaluate<number>("document.documentElement.scrollWidth");
    t.ok(width <= 320, `${width} px wide on a small phone`);
    await picture(page, `${colorScheme}-phone`);
    await page.setViewportSize({ width: 1280, height: 800 });
  }
  t.equal(papers.size, 2);
  t.same(await context.cookies(), cookies, "the cookie is left alone");

  await redis.start();
  await until(async () => (await page.reload())?.status() === 200);
  t.match(await page.textContent("body"), /"x-user-id":"ada"/, "still signed in");
});

t.test("a browser with too many cookies is told what to do", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const { context, page } = await visit(await startBrowser(t));
  const crumbs = Array.from({ length: 60 }, (_, i) => ({ name: `c${i}`, value: "x".repeat(3_000), url: gateway.url }));
  await context.addCookies(crumbs);
  const response = await page.goto(gateway.url);
  t.equal(response?.status(), 431);
  t.equal(await page.textContent("h1"), "Too many cookies");
  await picture(page, "431");
  await context.clearCookies();
  t.equal((await page.reload())?.status(), 200);
});

t.test("the page over TLS and HTTP/2", async (t) => {
  const tls = makeCertificate(await temporaryFolder(t), "own");
  const routes = [{ match: { path: "/app" }, upstream: "http://127.0.0.1:9", session: "none" }];
  const gateway = await startGateway(t, { listen: { host: "127.0.0.1", port: 0, tls }, routes });
  const { page } = await visit(await startBrowser(t), { ignoreHTTPSErrors: true });
  const response = await page.goto(`${gateway.url}/elsewhere`);
  t.equal(response?.status(), 404);
  t.equal(await page.textContent("h1"), "Nothing here");
  const [record] = await gateway.exchanges();
  t.match(record, { request: { httpVersion: "2" } });
  t.equal(await page.textContent("code"), record?.traceId);
});
