/**
 * Two gateways on one Redis, and sessions that are read, written, touched and ended through both at random. Every answer
 * is held against the history: it may be so old and no older. CONSISTENCY_SECONDS (6) says for how long.
 */
import { createHash } from "node:crypto";
import { Agent, request } from "node:http";
import t from "tap";
import { startRedis } from "./support/redis.ts";
import { startCluster } from "./support/redis-cluster.ts";
import { eventually, type Teardown } from "./support/resources.ts";
import { type RunningGateway, startGateway, startHttp } from "./support/servers.ts";

const SECONDS = Number(process.env.CONSISTENCY_SECONDS ?? 6);
const SESSIONS = 200;
const CLIENTS = 12;
/** What one gateway has acknowledged, the other knows after so long. */
const STALENESS_MS = 50;

t.setTimeout(60_000 + 3_000 * SECONDS);

interface Acknowledged {
  readonly value: number;
  readonly at: number;
  readonly by: RunningGateway;
}

/** A session as those who use it know it. All times are of `performance.now()`. */
interface History {
  readonly userId: string;
  readonly cookie: string;
  readonly key: string;
  /** In the order of the answers. */
  readonly written: Acknowledged[];
  /** How many increments were acknowledged: none may be lost. */
  increments: number;
  /** The highest value that anybody may have written. */
  highest: number;
  /** When the first request to end it was sent. */
  endSentAt: number;
  ended: Acknowledged | undefined;
}

interface Counts {
  reads: number;
  increments: number;
  conflicts: number;
  ends: number;
  /** Reads that did not yet know what the other gateway had acknowledged before they began. */
  stale: number;
  /** By how much the oldest of these was behind. */
  stalestMs: number;
  longestMs: number;
  readonly wrong: string[];
}

/** It counts in the session, on top of what it is told: an application that loses an update if the gateway lets it. */
async function startCounter(t: Teardown): Promise<string> {
  const { port } = await startHttp(t, async (req, res) => {
    let body = "";
    for await (const piece of req.setEncoding("latin1")) body += piece;
    const user = String(req.headers["x-user-id"]);
    let value = Number(req.headers["x-counter"]);
    if (req.url === "/start") res.setHeader("X-Session-Start", body);
    if (req.url === "/end") res.setHeader("X-Session-End", "this");
    if (req.url === "/increment" && user !== "") res.setHeader("X-Session-Set", JSON.stringify({ cart: ++value }));
    res.end(JSON.stringify({ user, value }));
  });
  return `http://127.0.0.1:${port}`;
}

interface Answer {
  readonly status: number;
  readonly user: string;
  readonly value: number;
  readonly setCookie: string;
  readonly sentAt: number;
  readonly doneAt: number;
}

const agent = new Agent({ keepAlive: true, maxSockets: CLIENTS });

function send(url: string, cookie: string, method = "GET", body = ""): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sentAt = performance.now();
    const req = request(url, { agent, method, headers: cookie === "" ? {} : { cookie } }, (res) => {
      let text = "";
      res.setEncoding("utf8").on("data", (piece) => {
        text += piece;
      });
      res.on("end", () => {
        const { user = "", value = 0 } = res.statusCode === 200 ? JSON.parse(text) : {};
        const [setCookie = ""] = res.headers["set-cookie"] ?? [];
        resolve({ status: res.statusCode ?? 0, user, value, setCookie, sentAt, doneAt: performance.now() });
      });
    });
    req.on("error", reject);
    req.end(body);
  });
}

let users = 0;
async function begin(gateway: RunningGateway): Promise<History> {
  const userId = `user-${users++}`;
  const start = JSON.stringify({ user: { id: userId }, data: { cart: 0 } });
  const { status, setCookie, doneAt } = await send(`${gateway.url}/start`, "", "POST", start);
  if (status !== 200) throw new Error(`the login was answered with ${status}`);
  const [cookie = ""] = setCookie.split(";", 1);
  const token = cookie.slice(cookie.indexOf("=") + 1).split(".", 1)[0] ?? "";
  const key = createHash("sha256").update(token).digest("base64url");
  const written = [{ value: 0, at: doneAt, by: gateway }];
  return { userId, cookie, key, written, increments: 0, highest: 0, endSentAt: Infinity, ended: undefined };
}

/** Whether what was acknowledged had to be known to a request of that moment. */
function isKnown({ at, by }: Acknowledged, gateway: RunningGateway, sentAt: number): boolean {
  return by === gateway ? at <= sentAt : at <= sentAt - STALENESS_MS;
}

/** Holds what a gateway told its application against what had to be known, and what can be known. */
function judge(history: History, gateway: RunningGateway, answer: Answer, counts: Counts): void {
  const { user, value, sentAt, doneAt } = answer;
  const { userId, ended, endSentAt, written } = history;
  const behind = (unseen: Acknowledged) => {
    if (unseen.at > sentAt) return;
    counts.stale++;
    counts.stalestMs = Math.max(counts.stalestMs, sentAt - unseen.at);
  };
  if (user === "") {
    if (endSentAt > doneAt) counts.wrong.push(`${userId} was logged out`);
    return;
  }
  if (user !== userId) counts.wrong.push(`${userId} was told to be ${user}`);
  if (ended !== undefined) {
    if (isKnown(ended, gateway, sentAt)) counts.wrong.push(`${userId} had ended ${sentAt - ended.at} ms before`);
    behind(ended);
  }
  if (value > history.highest) counts.wrong.push(`${userId} had ${value}, which nobody wrote`);
  // Beside an end a write may be acknowledged and have nothing to be written to.
  if (endSentAt < doneAt) return;
  const unseen = written.filter((each) => each.value > value);
  for (const each of unseen) {
    if (isKnown(each, gateway, sentAt)) {
      counts.wrong.push(`${userId} had ${value} and not ${each.value} of ${sentAt - each.at} ms before`);
    }
  }
  if (unseen[0] !== undefined) behind(unseen[0]);
}

async function increment(history: History, gateway: RunningGateway, counts: Counts): Promise<void> {
  // As high as it may become, if this and all before it succeed.
  history.highest++;
  const answer = await send(`${gateway.url}/increment`, history.cookie, "POST");
  counts.longestMs = Math.max(counts.longestMs, answer.doneAt - answer.sentAt);
  if (answer.status === 409) counts.conflicts++;
  else if (answer.status !== 200) counts.wrong.push(`an increment was answered with ${answer.status}`);
  else if (answer.user !== "") {
    counts.increments++;
    history.increments++;
    history.written.push({ value: answer.value, at: answer.doneAt, by: gateway });
  }
}

async function end(history: History, gateway: RunningGateway, counts: Counts): Promise<void> {
  history.endSentAt = performance.now();
  const [url, method] =
    Math.random() < 0.5
      ? ([`${gateway.url}/end`, "POST"] as const)
      : ([`${gateway.adminUrl}/sessions/${history.key}`, "DELETE"] as const);
  const { status, doneAt } = await send(url, history.cookie, method);
  if (status !== 200) counts.wrong.push(`an end was answered with ${status}`);
  history.ended = { value: 0, at: doneAt, by: gateway };
  counts.ends++;
}

const topologies = {
  "one server": async (t: Teardown) => (await startRedis(t)).url,
  "a cluster": async (t: Teardown) => (await startCluster(t)).url,
};

for (const [topology, open] of Object.entries(topologies)) {
  t.test(topology, async (t) => {
    const store = await open(t);
    const upstream = await startCounter(t);
    const settings = {
      upstream,
      store,
      identity: { headers: { "X-User-Id": "/user/id", "X-Counter": "/data/cart" } },
      // Touches, once a second for each, are writes too.
      session: {
        idleTimeout: "10s",
        cookie: { name: "session", secure: false, secrets: ["a secret of 32 characters, or more"] },
      },
      observe: { log: { access: "none" } },
    };
    const gateways = [await startGateway(t, settings), await startGateway(t, settings)] as const;
    for (const gateway of gateways) {
      await eventually("the feed", async () => /session_feed\{state="tracking"\} 1/.test(await gateway.metrics()));
    }
    const anyGateway = () => gateways[Math.random() < 0.5 ? 0 : 1] as RunningGateway;
    const histories = await Promise.all(Array.from({ length: SESSIONS }, () => begin(anyGateway())));
    const counts: Counts = {
      reads: 0,
      increments: 0,
      conflicts: 0,
      ends: 0,
      stale: 0,
      stalestMs: 0,
      longestMs: 0,
      wrong: [],
    };

    const untilMs = performance.now() + SECONDS * 1_000;
    const client = async () => {
      while (performance.now() < untilMs) {
        // Some are in much demand: what happens at the same time to the same session is what matters.
        const place = Math.floor(Math.random() ** 3 * SESSIONS);
        const history = histories[place] as History;
        const gateway = anyGateway();
        const dice = Math.random();
        if (dice < 0.15) await increment(history, gateway, counts);
        else if (dice < 0.17 && history.endSentAt === Infinity) {
          await end(history, gateway, counts);
          // The others go on with the ended one for a while, and must be denied.
          setTimeout(async () => {
            histories[place] = await begin(anyGateway());
          }, 150);
        } else {
          const answer = await send(gateway.url, history.cookie);
          counts.reads++;
          counts.longestMs = Math.max(counts.longestMs, answer.doneAt - answer.sentAt);
          if (answer.status === 200) judge(history, gateway, answer, counts);
          else counts.wrong.push(`a read was answered with ${answer.status}`);
        }
      }
    };
    await Promise.all(Array.from({ length: CLIENTS }, client));
    await eventually("all are logged in again", () => histories.every(({ ended }) => ended === undefined));

    for (const history of histories) {
      for (const gateway of gateways) {
        const { value } = await send(gateway.url, history.cookie);
        if (value !== history.increments) counts.wrong.push(`${history.increments} increments made ${value}`);
      }
    }
    agent.destroy();
    const { reads, increments, conflicts, ends, stale, stalestMs, longestMs } = counts;
    t.comment(
      `${topology}: ${reads} reads, ${increments} increments, ${conflicts} conflicts, ${ends} ends; ` +
        `${stale} reads behind, at most ${stalestMs.toFixed(1)} ms; longest answer ${longestMs.toFixed(0)} ms`,
    );
    t.same(counts.wrong.slice(0, 10), []);
    t.ok(reads > 100 * SECONDS && increments > 10 * SECONDS && ends > SECONDS, "enough has happened");
  });
}
