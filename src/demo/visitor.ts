import { type Ask, Browser, type BrowserOptions, rest } from "./browser.ts";
import type { Random } from "./random.ts";

/** What somebody does next, with how often compared to the rest: without a session, and with one. */
const AS_A_STRANGER = {
  "look around": 30,
  "sign in": 45,
  "mistype the password": 4,
  "a page for members": 8,
  "a page that is not there": 2,
  "forge an identity": 2,
  "forge a cookie": 1,
} as const;

const AS_A_MEMBER = {
  "look around": 40,
  "put into the cart": 20,
  "a page for members": 12,
  "a page for staff": 2,
  "see the headers": 5,
  "a page that is not there": 1,
  "sign out": 5,
  "sign out everywhere": 2,
  "sign in again": 1.5,
  "take another device": 8,
  "a slow page": 2,
  "leave a slow page": 0.7,
  "a page that fails now and then": 1.5,
  "a page that breaks off": 0.4,
  "a page that writes what it must not": 1,
  "click twice": 1.5,
  "come back too late": 2,
  "forge an identity": 1,
  "forge a cookie": 0.7,
  "bring two cookies": 0.7,
  "steal a cookie": 0.7,
} as const;

export type Act = keyof typeof AS_A_STRANGER | keyof typeof AS_A_MEMBER;
export const ACTS = [...new Set([...Object.keys(AS_A_STRANGER), ...Object.keys(AS_A_MEMBER)])] as readonly Act[];

const ITEMS = ["umbrella", "hat", "scarf", "gloves"];
const USER_AGENTS = [
  "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
  "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.1 Mobile/15E148 Safari/604.1",
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/146.0.0.0 Safari/537.36",
  "ShopApp/7.4 (Android 16)",
];
const OTHER_USER_AGENT = "python-requests/2.32.5";
/** Nobody waits longer for a session to expire. */
const LONGEST_ABSENCE_MS = 90_000;
/** As long as a token and a signature are; no secret has made it. */
const FORGED_COOKIE = `session=${"A".repeat(43)}.${"B".repeat(43)}`;

/** What goes wrong with the application for a while, for everybody. */
export type Spell = "slow" | "failing" | undefined;

export interface VisitorOptions extends Omit<BrowserOptions, "userAgent"> {
  readonly number: number;
  readonly random: Random;
  /** Between two acts, milliseconds, on the average. */
  readonly thinkMs: number;
  readonly spell: () => Spell;
  readonly onAct: (act: Act) => void;
}

/**
 * Somebody with one to three devices, each with a session of its own. What they do next depends on their random numbers
 * and on whether they are signed in: with the same seed the same people do the same things, as far as the gateway
 * answers them the same way.
 */
export class Visitor {
  readonly #options: VisitorOptions;
  readonly #name: string;
  readonly #devices: readonly Browser[];
  #device: Browser;

  constructor(options: VisitorOptions) {
    this.#options = options;
    const { number, random } = options;
    this.#name = `shopper-${number}`;
    const count = 1 + random.below(3);
    const device = (n: number): Browser =>
      new Browser({ ...options, userAgent: USER_AGENTS[(number + n) % USER_AGENTS.length] ?? "" });
    this.#device = device(0);
    this.#devices = [this.#device, ...Array.from({ length: count - 1 }, (_, n) => device(n + 1))];
  }

  get signedIn(): boolean {
    return this.#devices.some((device) => device.cookie !== undefined);
  }

  /** Until the signal; a request under way is finished. */
  async run(signal: AbortSignal): Promise<void> {
    const { random, thinkMs, onAct } = this.#options;
    // Not all at once.
    await rest(random.next() * thinkMs, signal);
    while (!signal.aborted) {
      const act = random.weighted<Act>(this.#device.cookie === undefined ? AS_A_STRANGER : AS_A_MEMBER);
      onAct(act);
      await this.#do(act, signal);
      await rest(random.exponential(thinkMs), signal);
    }
  }

  async #do(act: Act, signal: AbortSignal): Promise<void> {
    const { random } = this.#options;
    const device = this.#device;
    const [name, item] = [this.#name, ITEMS[random.below(ITEMS.length)] ?? ""];
    switch (act) {
      case "look around":
        await device.look(this.#page());
        return;
      case "sign in":
      case "sign in again":
        await device.look("/login");
        await device.post("/login", { user: name, password: name });
        return;
      case "mistype the password":
        await device.post("/login", { user: name, password: "sesame" });
        return;
      case "put into the cart":
        await device.post("/cart", { item });
        return;
      case "click twice":
        await Promise.all([device.post("/cart", { item }), device.post("/cart", { item: "hat" })]);
        return;
      case "a page for members":
        await device.look("/account");
        return;
      case "a page for staff":
        await device.look("/admin");
        return;
      case "see the headers":
        await device.look("/headers");
        return;
      case "a page that is not there":
        await device.look(`/offers/${random.below(1000)}`);
        return;
      case "sign out":
        await device.post("/logout", {});
        return;
      case "sign out everywhere":
        await this.#signOutEverywhere(device);
        return;
      case "take another device":
        this.#device = this.#devices[random.below(this.#devices.length)] ?? device;
        return;
      case "a slow page":
        await device.look(`/slow?ms=${300 + random.below(1200)}`);
        return;
      case "leave a slow page":
        await device.look("/slow?ms=1500", { leaveAfterMs: 100 + random.below(200) });
        return;
      case "a page that fails now and then":
        await device.look("/flaky");
        return;
      case "a page that breaks off":
        await device.look("/cut");
        return;
      case "a page that writes what it must not":
        await device.look("/mistake");
        return;
      case "come back too late":
        await this.#comeBackLate(device, signal);
        return;
      case "forge an identity":
        await device.look("/headers", { headers: FORGERIES[random.below(FORGERIES.length)] ?? {} });
        return;
      case "forge a cookie":
        await device.look("/account", { cookie: FORGED_COOKIE });
        return;
      case "bring two cookies":
        await this.#bringTwo(device);
        return;
      case "steal a cookie":
        await device.look("/account", { cookie: device.cookie, userAgent: OTHER_USER_AGENT });
        return;
    }
  }

  /** What ordinary clicks lead to while the application is not well. */
  #page(): string {
    const { random, spell } = this.#options;
    const affected = random.next() < 0.4;
    if (affected && spell() === "slow") return `/slow?ms=${700 + random.below(800)}`;
    return affected && spell() === "failing" ? "/flaky" : "/";
  }

  /** And the other device finds out with its next click. */
  async #signOutEverywhere(device: Browser): Promise<void> {
    const other = this.#devices.find((candidate) => candidate !== device);
    if (other?.cookie === undefined) await other?.post("/login", { user: this.#name, password: this.#name });
    await device.post("/logout-everywhere", {});
    await other?.look("/account");
  }

  async #comeBackLate(device: Browser, signal: AbortSignal): Promise<void> {
    if (device.lifetimeMs === 0 || device.lifetimeMs > LONGEST_ABSENCE_MS) return;
    await rest(device.lifetimeMs + 1200, signal);
    if (!signal.aborted) await device.look("/account", { cookie: device.lateCookie });
  }

  /** As when another host of the domain has planted one: that of a second session, which is as good as the first. */
  async #bringTwo(device: Browser): Promise<void> {
    const other = new Browser({ ...this.#options, userAgent: device.userAgent });
    await other.post("/login", { user: this.#name, password: this.#name });
    const both = [device.cookie, other.cookie].filter((cookie) => cookie !== undefined).join("; ");
    const ask: Ask = { cookie: both };
    await device.look("/account", ask);
    await other.post("/logout", {});
  }
}

const FORGERIES: readonly Readonly<Record<string, string>>[] = [
  { "X-User-Id": "1" },
  { X_User_Roles: "admin" },
  { "X-User-Id": "1", Connection: "keep-alive, X-User-Id" },
  { "X.User.Roles": "admin", "X-Forwarded-For": "127.0.0.1" },
];
