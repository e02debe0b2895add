import { randomBytes } from "node:crypto";
import { LOGIN_PATH } from "./answers.ts";
import { ask } from "./ask.ts";

/** A browser of the load generator: its `Cookie` field, and who it is logged in as. */
export interface Visitor {
  readonly userId: string;
  readonly cookie: string;
}

/** Cookies of the application and of its analytics, which a proxy has to pass. */
export const OTHER_COOKIES = "theme=dark; _ga=GA1.1.1234567890.1234567890";

/** What browsers send besides the cookie. */
export const BROWSER_HEADERS: Readonly<Record<string, string>> = {
  "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
  Accept: "application/json, text/plain, */*",
  "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
  "Accept-Encoding": "gzip, deflate, br, zstd",
  Referer: "http://127.0.0.1/items",
  "Sec-Fetch-Dest": "empty",
  "Sec-Fetch-Mode": "cors",
  "Sec-Fetch-Site": "same-origin",
};

/** Name of the session cookie, and of what peers without sessions get in its place. */
const COOKIE = "__Host-session";

const AT_ONCE = 20;

/**
 * Logs in as many users as there are visitors, as browsers would. A peer without sessions gets the same requests, and
 * its visitors cookies of the same size: what V8 learns from the first requests is part of what is measured.
 */
export async function logIn(url: string, count: number, gateway: boolean): Promise<Visitor[]> {
  const visitors: Visitor[] = [];
  for (let first = 0; first < count; first += AT_ONCE) {
    const ids = Array.from({ length: Math.min(AT_ONCE, count - first) }, (_, i) => `user-${first + i}`);
    visitors.push(...(await Promise.all(ids.map((id) => logInOne(url, id, gateway)))));
  }
  return visitors;
}

async function logInOne(url: string, userId: string, gateway: boolean): Promise<Visitor> {
  const user = { id: userId, name: `Visitor ${userId}`, email: `${userId}@example.com`, roles: ["customer", "beta"] };
  const { status, headers } = await ask(url + LOGIN_PATH, { method: "POST", body: JSON.stringify(user) });
  const session = gateway ? headers["set-cookie"]?.[0]?.split(";")[0] : inventedCookie();
  if (status !== 204 || session === undefined) throw new Error(`the login of ${userId} failed: ${status}`);
  return { userId, cookie: `${session}; ${OTHER_COOKIES}` };
}

/** A cookie that nobody issued. */
export function inventedCookie(): string {
  return `${COOKIE}=${random()}.${random()}`;
}

function random(): string {
  return randomBytes(32).toString("base64url");
}
