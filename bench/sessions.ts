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

const AT_ONCE = 20;

/** Logs in as many users as there are visitors, through the gateway as a browser would. */
export async function logIn(url: string, count: number): Promise<Visitor[]> {
  const visitors: Visitor[] = [];
  for (let first = 0; first < count; first += AT_ONCE) {
    const ids = Array.from({ length: Math.min(AT_ONCE, count - first) }, (_, i) => `user-${first + i}`);
    visitors.push(...(await Promise.all(ids.map((id) => logInOne(url, id)))));
  }
  return visitors;
}

async function logInOne(url: string, userId: string): Promise<Visitor> {
  const user = { id: userId, name: `Visitor ${userId}`, email: `${userId}@example.com`, roles: ["customer", "beta"] };
  const { status, headers } = await ask(url + LOGIN_PATH, { method: "POST", body: JSON.stringify(user) });
  const [setCookie] = headers["set-cookie"] ?? [];
  if (status !== 204 || setCookie === undefined) throw new Error(`login of ${userId} failed: ${status}`);
  return { userId, cookie: `${setCookie.split(";")[0]}; ${OTHER_COOKIES}` };
}

/** Cookies of the same size, for peers that do not read them. */
export function strangers(count: number): Visitor[] {
  const random = () => randomBytes(32).toString("base64url");
  return Array.from({ length: count }, () => ({
    userId: "",
    cookie: `__Host-session=${random()}.${random()}; ${OTHER_COOKIES}`,
  }));
}
