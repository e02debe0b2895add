import { type Agent, request } from "node:http";
import { setTimeout as pause } from "node:timers/promises";
import { lookupUnrouted } from "./target.ts";

/** What came back. */
export interface Answer {
  /** 0: no answer, or one that broke off. */
  readonly status: number;
  /** Milliseconds until all of it was there. */
  readonly tookMs: number;
  readonly location: string | undefined;
}

export interface Ask {
  readonly form?: Readonly<Record<string, string>>;
  /** In addition, as somebody would who tries something. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Instead of the one in the jar. */
  readonly cookie?: string | undefined;
  /** Instead of its own. */
  readonly userAgent?: string;
  /** Goes away after so many milliseconds, whether there is an answer or not. */
  readonly leaveAfterMs?: number;
}

export interface BrowserOptions {
  /** Origin of the gateway. */
  readonly url: string;
  readonly agent: Agent;
  readonly userAgent: string;
  /** Told of each answer. */
  readonly onAnswer: (answer: Answer) => void;
}

/** No page takes that long, unless the gateway hangs. */
const PATIENCE_MS = 15_000;

/** One device of somebody: a jar for one cookie, which it forgets when its `Max-Age` has passed, and redirects. */
export class Browser {
  readonly #options: BrowserOptions;
  #cookie: string | undefined;
  #forgetAt = 0;
  /** How long the last session cookie was to be kept, milliseconds. */
  lifetimeMs = 0;

  constructor(options: BrowserOptions) {
    this.#options = options;
  }

  get userAgent(): string {
    return this.#options.userAgent;
  }

  /** The session cookie as it is sent, while there is one. */
  get cookie(): string | undefined {
    return Date.now() < this.#forgetAt ? this.#cookie : undefined;
  }

  /** The session cookie even when it should have been forgotten: some clients keep it. */
  get lateCookie(): string | undefined {
    return this.#cookie;
  }

  async look(path: string, ask: Ask = {}): Promise<Answer> {
    return this.#follow(await this.#send("GET", path, ask));
  }

  async post(path: string, form: Readonly<Record<string, string>>, ask: Ask = {}): Promise<Answer> {
    return this.#follow(await this.#send("POST", path, { ...ask, form }));
  }

  /** To the page that a form or a login wall leads to, once, as somebody who has clicked sees it. */
  async #follow(answer: Answer): Promise<Answer> {
    if (answer.location?.startsWith("/")) await this.#send("GET", answer.location, {});
    return answer;
  }

  #send(method: string, path: string, ask: Ask): Promise<Answer> {
    const { url, agent, onAnswer } = this.#options;
    const cookie = "cookie" in ask ? ask.cookie : this.cookie;
    const began = performance.now();
    return new Promise((resolve) => {
      const done = (status: number, location?: string): void => {
        const answer = { status, tookMs: performance.now() - began, location };
        onAnswer(answer);
        resolve(answer);
      };
      const req = request(url + path, {
        method,
        agent,
        lookup: lookupUnrouted as never,
        signal: AbortSignal.timeout(ask.leaveAfterMs ?? PATIENCE_MS),
        headers: {
          accept: "text/html",
          "user-agent": ask.userAgent ?? this.userAgent,
          ...(cookie !== undefined && { cookie }),
          ...(ask.form !== undefined && { "content-type": "application/x-www-form-urlencoded" }),
          ...ask.headers,
        },
      });
      req.on("error", () => done(0));
      req.on("response", (res) => {
        this.#keep(res.headers["set-cookie"]);
        res.resume();
        res.on("error", () => done(0));
        res.on("end", () => done(res.statusCode ?? 0, res.headers.location));
      });
      req.end(ask.form && new URLSearchParams(ask.form).toString());
    });
  }

  #keep(setCookies: readonly string[] = []): void {
    for (const field of setCookies) {
      const [pair = "", ...attributes] = field.split(";").map((part) => part.trim());
      const maxAge = attributes.find((attribute) => /^max-age=/i.test(attribute))?.slice("max-age=".length);
      const lifetimeMs = Number(maxAge ?? 0) * 1000;
      this.#forgetAt = Date.now() + lifetimeMs;
      this.#cookie = lifetimeMs > 0 ? pair : undefined;
      if (lifetimeMs > 0) this.lifetimeMs = lifetimeMs;
    }
  }
}

/** Waits, or ends sooner without a word. */
export async function rest(ms: number, signal: AbortSignal): Promise<void> {
  await pause(ms, undefined, { signal }).catch(() => {});
}
