/**
 * Two gateways on one Redis under random writes, reads, logouts and revocations: each read is held against what had been
 * acknowledged before it began. `CONSISTENCY_SECONDS=30 node test/consistency.test.ts` for the long form.
 */
import { Agent, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import t from "tap";
import { cookiePair, until } from "./support/client.ts";
import { feedState, type RunningGateway, startGateway, startHttp, startRedis } from "./support/servers.ts";

const SECONDS = Number(process.env.CONSISTENCY_SECONDS ?? 6);
const SESSIONS = 200;
/** How old a read may be, where another instance has written. */
const BOUND_MS = 50;
const ATTRIBUTES = ["cart", "theme"] as const;
type Attribute = (typeof ATTRIBUTES)[number];

t.setTimeout((SECONDS + 60) * 1000);

const agent = new Agent({ keepAlive: true, maxSockets: 64 });
t.teardown(() => agent.destroy());

interface Reply {
  readonly status: number;
  readonly setCookie: string | undefined;
  readonly seen: Readonly<Record<string, string>>;
}

function call(gateway: RunningGateway, path: string, cookie: string, body?: string): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const options = { agent, method: body === undefined ? "GET" : "POST", headers: { cookie } };
    const req = request(gateway.url + path, options, async (res) => {
      let text = "";
      for await (const piece of res.setEncoding("utf8")) text += piece;
      const seen = res.statusCode === 200 && text !== "" ? JSON.parse(text) : {};
      resolve({ status: res.statusCode ?? 0, setCookie: res.headers["set-cookie"]?.[0], seen });
    });
    req.on("error", reject);
    req.end(body);
  });
}

interface Write {
  readonly value: number;
  readonly acknowledgedMs: number;
  readonly gateway: RunningGateway;
}

/** What one visitor has been told, and what may therefore be expected. */
interface Visitor {
  readonly userId: string;
  cookie: string;
  /** When the end of the session was acknowledged, and by whom. */
  ended: { readonly atMs: number; readonly gateway: RunningGateway } | undefined;
  writes: Record<Attribute, Write[]>;
  /** Counts the logins: what was asked before one is not held against what comes after. */
  era: number;
}

const counts = {
  reads: 0,
  writes: 0,
  conflicts: 0,
  ends: 0,
  tooOld: 0,
  afterEnd: 0,
  lost: 0,
  wrongUser: 0,
  unexpected: 0,
};
const longest = { staleMs: 0, afterEndMs: 0 };

t.test(`${SESSIONS} sessions, ${SECONDS} s`, async (t) => {
  const redis = await startRedis(t);
  const app = await startHttp(t, async (req, res) => {
    let body = "";
    for await (const piece of req.setEncoding("latin1")) body += piece;
    const command = /^\/(start|set|end)$/.exec(req.url ?? "")?.[1];
    if (command !== undefined) res.setHeader(`X-Session-${command}`, body);
    const { "x-user-id": user, "x-cart": cart, "x-theme": theme } = req.headers;
    res.end(JSON.stringify({ user, cart, theme }));
  });
  const identity = { headers: { "X-User-Id": "/user/id", "X-Cart": "/data/cart", "X-Theme": "/data/theme" } };
  const settings = {
    upstream: `http://127.0.0.1:${app.port}`,
    store: redis.url,
    identity,
    observe: { log: { access: "none" } },
  };
  const gateways = [await startGateway(t, settings), await startGateway(t, settings)] as const;
  for (const gateway of gateways) await until(async () => (await feedState(gateway)) === "tracking");
  const any = () => gateways[Math.random() < 0.5 ? 0 : 1];

  const logIn = async (visitor: Visitor): Promise<void> => {
    const body = JSON.stringify({ user: { id: visitor.userId }, data: { cart: 0, theme: 0 } });
    const gateway = any();
    const { status, setCookie } = await call(gateway, "/start", "", body);
    if (status !== 200) throw new Error(`the login was answered with ${status}`);
    visitor.cookie = cookiePair(setCookie);
    visitor.ended = undefined;
    const first = { value: 0, acknowledgedMs: performance.now(), gateway };
    visitor.writes = { cart: [first], theme: [first] };
    visitor.era++;
  };

  /** One attribute has one writer, which goes on counting; the two of a session write at the same time. */
  const write = async (visitor: Visitor, attribute: Attribute): Promise<void> => {
    const { era } = visitor;
    const gateway = any();
    const value = (visitor.writes[attribute].at(-1)?.value ?? 0) + 1;
    const { status } = await call(gateway, "/set", visitor.cookie, JSON.stringify({ [attribute]: value }));
    if (era !== visitor.era) return;
    counts.writes++;
    if (status === 409) counts.conflicts++;
    else if (status !== 200) counts.unexpected++;
    else if (visitor.ended === undefined)
      visitor.writes[attribute].push({ value, acknowledgedMs: performance.now(), gateway });
  };

  const read = async (visitor: Visitor): Promise<void> => {
    const { era, ended } = visitor;
    const gateway = any();
    const beganMs = performance.now();
    const expected = ATTRIBUTES.map((attribute) => leastExpected(visitor.writes[attribute], gateway, beganMs));
    const { status, seen } = await call(gateway, "/", visitor.cookie);
    if (era !== visitor.era) return;
    counts.reads++;
    if (status !== 200) counts.unexpected++;
    else if (seen.user === visitor.userId) {
      if (ended !== undefined) {
        const lateMs = beganMs - ended.atMs;
        longest.afterEndMs = Math.max(longest.afterEndMs, lateMs);
        if (lateMs > BOUND_MS || gateway === ended.gateway) counts.afterEnd++;
      } else {
        ATTRIBUTES.forEach((attribute, i) => {
          const value = Number(seen[attribute]);
          if (value < (expected[i] as number)) counts.tooOld++;
          const missed = visitor.writes[attribute].find((write) => write.value === value + 1);
          if (missed !== undefined && missed.acknowledgedMs < beganMs) {
            longest.staleMs = Math.max(longest.staleMs, beganMs - missed.acknowledgedMs);
          }
        });
      }
    } else if (seen.user !== "") counts.wrongUser++;
    else if (ended === undefined && visitor.ended === undefined) counts.lost++;
  };

  const end = async (visitor: Visitor): Promise<void> => {
    const gateway = any();
    visitor.era++;
    if (Math.random() < 0.5) await call(gateway, "/end", visitor.cookie, "this");
    else await fetch(`${gateway.adminUrl}/sessions?user=${visitor.userId}`, { method: "DELETE" });
    visitor.ended = { atMs: performance.now(), gateway };
    counts.ends++;
  };

  const visitors = Array.from({ length: SESSIONS }, (_, i): Visitor => {
    return { userId: `user-${i}`, cookie: "", ended: undefined, writes: { cart: [], theme: [] }, era: 0 };
  });
  for (const visitor of visitors) await logIn(visitor);
  const untilMs = performance.now() + SECONDS * 1000;
  const heapBefore = process.memoryUsage().heapUsed;

  const writer = (attribute: Attribute) => async (visitor: Visitor) => {
    while (performance.now() < untilMs) {
      if (visitor.ended === undefined) await write(visitor, attribute);
      await delay(Math.random() * 400);
    }
  };
  const reader = async (visitor: Visitor) => {
    while (performance.now() < untilMs) {
      await read(visitor);
      await delay(Math.random() * 200);
    }
  };
  const ender = async (visitor: Visitor) => {
    await delay(Math.random() * 2_000);
    while (performance.now() < untilMs) {
      await delay(Math.random() * 4_000);
      await end(visitor);
      await delay(150);
      await logIn(visitor);
    }
  };
  const roles = [writer("cart"), writer("theme"), reader, reader];
  await Promise.all(
    visitors.flatMap((visitor, i) => [...roles, ...(i % 4 === 0 ? [ender] : [])].map((role) => role(visitor))),
  );

  await delay(BOUND_MS);
  for (const visitor of visitors) {
    if (visitor.ended !== undefined) continue;
    for (const gateway of gateways) {
      const { seen } = await call(gateway, "/", visitor.cookie);
      for (const attribute of ATTRIBUTES) {
        if (Number(seen[attribute]) !== visitor.writes[attribute].at(-1)?.value) counts.lost++;
      }
    }
  }
  t.comment(
    JSON.stringify({ ...counts, ...longest, heapGrowthMiB: (process.memoryUsage().heapUsed - heapBefore) / 2 ** 20 }),
  );
  const { tooOld, afterEnd, lost, wrongUser, unexpected } = counts;
  t.same(
    { tooOld, afterEnd, lost, wrongUser, unexpected },
    { tooOld: 0, afterEnd: 0, lost: 0, wrongUser: 0, unexpected: 0 },
  );
  t.ok(counts.reads > SECONDS * 100 && counts.writes > SECONDS * 50 && counts.ends > 10, "there was something to hold");
  t.ok(counts.conflicts < counts.writes / 20, "conflicts are rare");
});

/** The value that a read has to show at least: the last that was acknowledged long enough ago, or by the same instance. */
function leastExpected(writes: readonly Write[], gateway: RunningGateway, beganMs: number): number {
  const known = writes.filter((write) => write.gateway === gateway || beganMs - write.acknowledgedMs > BOUND_MS);
  return known.at(-1)?.value ?? 0;
}
