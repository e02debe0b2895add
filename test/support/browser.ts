/** A real browser for the tests: Debian's Chromium, as a person uses it. */
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import type { Teardown } from "./resources.ts";

export const CHROMIUM = "/usr/bin/chromium";

/** Without a sandbox, because tests run as root in containers; it sees nothing but what a test serves. */
export async function startBrowser(t: Teardown, args: readonly string[] = []): Promise<Browser> {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-quic", "--disable-background-networking", ...args],
  });
  t.teardown(() => browser.close());
  return browser;
}

export interface Visit {
  readonly context: BrowserContext;
  readonly page: Page;
  /** What the page wrote to the console, and scripts that failed: violations of a policy are among them. */
  readonly console: string[];
  /** Everything that was asked for, in order. */
  readonly requests: string[];
}

/** A person with cookies of their own. */
export async function visit(browser: Browser, options: BrowserContextOptions = {}): Promise<Visit> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const console: string[] = [];
  const requests: string[] = [];
  page.on("console", (message) => console.push(message.text()));
  page.on("pageerror", (error) => console.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  return { context, page, console, requests };
}
