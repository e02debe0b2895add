/** A load on a gateway that judges every answer: was it served, refused for an outage, or somebody else's? */
import { Agent, type IncomingMessage, request } from "node:http";
import type { Socket } from "node:net";
import { ask, cookiePair } from "./client.ts";
import { startHttp, type Teardown } from "./servers.ts";

/** Somebody who is logged in. */
export interface Visitor {
  readonly userId: string;
  /** As the browser sends it: `name=value`. */
  readonly cookie: string;
}

export interface TrafficOptions {
  readonly cookies: readonly Visitor[];
  /** Requests under way at the same time, each on a connection of its own that is kept. */
  readonly connections: number;
  /** At most, when there is a `signal`. */
  readonly forMs: number;
  /** Ends the load; requests under way are waited for. */
  readonly signal?: AbortSignal;
  /** Told of each answer. @param sentAt by `performance.now()`. */
  readonly onAnswer?: (verdict: Verdict, sentAt: number, tookMs: number, of: Particulars) => void;
  /** Default `GET`. */
  readonly method?: "GET" | "POST";
  /** Default `/`. Its upstream has to echo the headers as JSON: `startIdentityApp`, or `startApp` for few requests. */
  readonly path?: string | (() => string);
  /** Between an answer and the next request of the same connection: leaves the cores to the gateway. Default 2. */
  readonly pauseMs?: number;
  /** A request without an answer for so long hangs, and is given up. Default 10,000. */
  readonly hungAfterMs?: number;
}

/** Tells one request from the others. */
export interface Particulars {
  readonly path: string;
  /** Of the connection, on this side; 0 if there never was one. */
  readonly localPort: number;
  /** Field of the answer. */
  readonly proxyStatus: string;
}

/** Each request is exactly one of `served`, `outages`, `wrong`, `loggedOut`, `hung` and `failed`. */
export interface Counts {
  requests: number;
  /** The upstream saw the user to whom the cookie belongs. */
  served: number;
  /** 503. */
  outages: number;
  /** The upstream saw somebody else. */
  wrong: number;
  /** The upstream saw nobody, or the answer was 401 or a redirection. */
  loggedOut: number;
  hung: number;
  /** Any other status, or a connection that broke. */
  failed: number;
  /** Milliseconds until the answer was complete; a hung request counts as long as it was waited for. */
  longestMs: number;
}

export interface TrafficReport extends Readonly<Counts> {
  /** Answers that told the browser to forget a cookie. */
  readonly cookiesCleared: number;
  /** How often each status came; `0` for a connection that broke or was given up. */
  readonly statuses: Readonly<Record<number, number>>;
  /** By the second in which the request began. */
  readonly perSecond: readonly Readonly<Counts>[];
}

export type Verdict = Exclude<keyof Counts, "requests" | "longestMs">;

interface Answer {
  readonly verdict: Verdict;
  readonly status: number;
  readonly cookieCleared: boolean;
  readonly localPort: number;
  readonly proxyStatus: string;
}

/** Runs the load to its end; what happens to the gateway in the meantime is the test's affair. */
export async function traffic(gatewayUrl: string, options: TrafficOptions): Promise<TrafficReport> {
  const { cookies, connections, forMs, pauseMs = 2 } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const began = performance.now();
  const total = noCounts();
  const perSecond: Counts[] = [];
  const statuses: Record<number, number> = {};
  let cookiesCleared = 0;
  let next = 0;

  const once = async () => {
    const visitor = cookies[next++ % cookies.length];
    if (visitor === undefined) throw new TypeError("traffic needs a visitor at least");
    const path = typeof options.path === "function" ? options.path() : (options.path ?? "/");
    const sentAt = performance.now();
    const answer = await visit(gatewayUrl, visitor, { ...options, agent, path });
    const tookMs = performance.now() - sentAt;
    options.onAnswer?.(answer.verdict, sentAt, tookMs, { ...answer, path });
    const second = Math.floor((sentAt - began) / 1000);
    while (perSecond.length <= second) perSecond.push(noCounts());
    for (const counts of [total, perSecond[second] ?? total]) count(counts, answer.verdict, tookMs);
    statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
    if (answer.cookieCleared) cookiesCleared++;
  };
  const keepOn = async () => {
    while (performance.now() - began < forMs && options.signal?.aborted !== true) {
      await once();
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  };
  try {
    await Promise.all(Array.from({ length: connections }, keepOn));
  } finally {
    agent.destroy();
  }
  return { ...total, cookiesCleared, statuses, perSecond };
}

export function count(counts: Counts, verdict: Verdict, tookMs: number): void {
  counts.requests++;
  counts[verdict]++;
  counts.longestMs = Math.max(counts.longestMs, tookMs);
}

export function noCounts(): Counts {
  return { requests: 0, served: 0, outages: 0, wrong: 0, loggedOut: 0, hung: 0, failed: 0, longestMs: 0 };
}

interface Visit {
  readonly agent: Agent;
  readonly method?: string;
  readonly path: string;
  readonly hungAfterMs?: number;
}

function visit(url: string, visitor: Visitor, { agent, method, path, hungAfterMs = 10_000 }: Visit): Promise<Answer> {
  return new Promise((resolve) => {
    let localPort = 0;
    const none = (verdict: Verdict) =>
      resolve({ verdict, status: 0, cookieCleared: false, localPort, proxyStatus: "" });
    const headers = { cookie: visitor.cookie };
    const req = request(url + path, { agent, method, headers }, (res) => {
      let body = "";
      res.setEncoding("utf8");
      res.on("data", (piece) => {
        body += piece;
      });
      res.on("end", () => resolve({ ...judge(res, body, visitor), localPort }));
      res.on("error", () => none("failed"));
    });
    // A socket that is closed has no port any more.
    const noteTheSocket = (socket: Socket) => {
      localPort = socket.localPort ?? 0;
    };
    req.on("socket", (socket) => {
      if (socket.connecting) socket.once("connect", () => noteTheSocket(socket));
      else noteTheSocket(socket);
    });
    // Whatever comes afterwards finds the promise resolved.
    const timer = setTimeout(() => {
      none("hung");
      req.destroy();
    }, hungAfterMs);
    req.on("error", () => none("failed"));
    req.on("close", () => clearTimeout(timer));
    req.end();
  });
}

function judge(res: IncomingMessage, body: string, { userId, cookie }: Visitor): Omit<Answer, "localPort"> {
  const { statusCode: status = 0, headers } = res;
  const name = `${cookie.split("=", 1)[0]}=`;
  const cookieCleared = (headers["set-cookie"] ?? []).some((field) => field.startsWith(name) && clears(field));
  const proxyStatus = String(headers["proxy-status"] ?? "");
  return { verdict: verdictOf(status, body, userId), status, cookieCleared, proxyStatus };
}

function verdictOf(status: number, body: string, userId: string): Verdict {
  if (status === 503) return "outages";
  if (status === 401 || status === 302) return "loggedOut";
  if (status !== 200) return "failed";
  let seen: unknown;
  try {
    seen = JSON.parse(body).headers["x-user-id"];
  } catch {
    return "failed";
  }
  if (seen === userId) return "served";
  return seen === undefined || seen === "" ? "loggedOut" : "wrong";
}

/** @see https://www.rfc-editor.org/rfc/rfc6265#section-5.2 */
function clears(setCookie: string): boolean {
  const [pair = "", ...attributes] = setCookie.split(";").map((part) => part.trim());
  if (pair.endsWith("=")) return true;
  return attributes.some((attribute) => {
    const [name = "", value = ""] = attribute.split("=");
    if (name.toLowerCase() === "max-age") return Number(value) <= 0;
    return name.toLowerCase() === "expires" && Date.parse(value) <= Date.now();
  });
}

/**
 * An application for much traffic: it remembers nothing and echoes the user that it was told. `POST /start` begins a
 * session with what it is sent, on a route that may write `user`.
 */
export async function startIdentityApp(t: Teardown): Promise<{ readonly url: string; readonly port: number }> {
  const { port } = await startHttp(t, async (req, res) => {
    let body = "";
    for await (const piece of req.setEncoding("latin1")) body += piece;
    if (req.url === "/start") res.setHeader("X-Session-Start", body);
    res.setHeader("content-type", "application/json");
    res.end(JSON.stringify({ headers: { "x-user-id": req.headers["x-user-id"] } }));
  });
  return { url: `http://127.0.0.1:${port}`, port };
}

/** Logs in so many users, `user-1` and on, through the application's `POST /start`. */
export async function logIn(gatewayUrl: string, users: number): Promise<Visitor[]> {
  const visitors: Visitor[] = [];
  for (let n = 1; n <= users; n++) {
    const userId = `user-${n}`;
    const { status, setCookie } = await ask(`${gatewayUrl}/start`, {
      method: "POST",
      body: JSON.stringify({ user: { id: userId } }),
    });
    const [field] = setCookie;
    if (status !== 200 || field === undefined) throw new Error(`the login of ${userId} was answered with ${status}`);
    visitors.push({ userId, cookie: cookiePair(field) });
  }
  return visitors;
}

/** One line for each fault, for `t.comment`. */
export function trafficTable(reports: Readonly<Record<string, TrafficReport>>): string {
  const columns = ["requests", "served", "outages", "wrong", "loggedOut", "hung", "failed", "cookiesCleared"] as const;
  const titles: Partial<Record<(typeof columns)[number], string>> = {
    outages: "503",
    loggedOut: "logged out",
    cookiesCleared: "cookies cleared",
  };
  const rows = [
    ["", ...columns.map((column) => titles[column] ?? column), "longest ms"],
    ...Object.entries(reports).map(([name, report]) => [
      name,
      ...columns.map((column) => String(report[column])),
      report.longestMs.toFixed(0),
    ]),
  ];
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  const pad = (cell: string, column: number) =>
    column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0);
  return rows.map((row) => row.map(pad).join("  ")).join("\n");
}
