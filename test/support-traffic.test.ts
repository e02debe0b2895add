/** The judge of the fault tests: it has to see every kind of answer for what it is, or `wrong: 0` means nothing. */
import t from "tap";
import { startGateway, startHttp, startRedis, type Teardown } from "./support/servers.ts";
import { logIn, startIdentityApp, traffic, trafficTable, type Visitor } from "./support/traffic.ts";

const VISITORS: readonly Visitor[] = [1, 2].map((n) => ({ userId: `user-${n}`, cookie: `session=${n}` }));

/** Something that answers in the gateway's place, rightly or wrongly. */
async function startGatewayThatAnswers(t: Teardown, answer: Parameters<typeof startHttp>[1]): Promise<string> {
  const { port } = await startHttp(t, answer);
  return `http://127.0.0.1:${port}`;
}

const options = { cookies: VISITORS, connections: 2, forMs: 100 };
const echo = (userId: string | undefined) => JSON.stringify({ headers: { "x-user-id": userId } });

t.test("sees who was served, and how long it took", async (t) => {
  const url = await startGatewayThatAnswers(t, (req, res) => {
    const id = String(req.headers.cookie).slice("session=".length);
    setTimeout(() => res.end(echo(`user-${id}`)), id === "2" ? 40 : 0);
  });
  const report = await traffic(url, options);
  t.ok(report.requests > 4);
  t.equal(report.served, report.requests);
  t.same(report.statuses, { 200: report.requests });
  t.ok(report.longestMs >= 39 && report.longestMs < 1_000);
  t.equal(report.cookiesCleared, 0);
});

t.test("sees each kind of failure", async (t) => {
  const answers: Record<string, [expected: Record<string, number>, Parameters<typeof startHttp>[1]]> = {
    "somebody else": [{ wrong: 1 }, (_req, res) => res.end(echo("user-3"))],
    "nobody, by an empty header": [{ loggedOut: 1 }, (_req, res) => res.end(echo(""))],
    "nobody, by no header": [{ loggedOut: 1 }, (_req, res) => res.end(echo(undefined))],
    "401": [{ loggedOut: 1 }, (_req, res) => res.writeHead(401).end()],
    "302": [{ loggedOut: 1 }, (_req, res) => res.writeHead(302, { location: "/login" }).end()],
    "503": [{ outages: 1 }, (_req, res) => res.writeHead(503).end()],
    "500": [{ failed: 1 }, (_req, res) => res.writeHead(500).end()],
    "no echo": [{ failed: 1 }, (_req, res) => res.end("null")],
    "no JSON": [{ failed: 1 }, (_req, res) => res.end("{")],
    "a reset": [{ failed: 1 }, (req) => req.socket.resetAndDestroy()],
    "half an answer": [
      { failed: 1 },
      (_req, res) => res.writeHead(200, { "content-length": "9" }).write("{", () => res.destroy()),
    ],
    "no answer": [{ hung: 1 }, () => {}],
    "half an answer, and then nothing": [{ hung: 1 }, (_req, res) => res.write("{")],
    "a cookie with no time left": [
      { outages: 1, cookiesCleared: 1 },
      (_req, res) => res.writeHead(503, { "set-cookie": "session=1; Path=/; Max-Age=0" }).end(),
    ],
    "a cookie of the past": [
      { outages: 1, cookiesCleared: 1 },
      (_req, res) => res.writeHead(503, { "set-cookie": "session=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT" }).end(),
    ],
    "an empty cookie": [
      { outages: 1, cookiesCleared: 1 },
      (_req, res) => res.writeHead(503, { "set-cookie": "session=; Path=/" }).end(),
    ],
    "a cookie prolonged, and another one cleared": [
      { outages: 1, cookiesCleared: 0 },
      (_req, res) => res.writeHead(503, { "set-cookie": ["session=1; Max-Age=60", "other=; Max-Age=0"] }).end(),
    ],
  };
  for (const [name, [expected, answer]] of Object.entries(answers)) {
    const url = await startGatewayThatAnswers(t, answer);
    const report = await traffic(url, { ...options, connections: 1, forMs: 1, hungAfterMs: 60 });
    t.match(
      report,
      { requests: 1, served: 0, wrong: 0, loggedOut: 0, outages: 0, hung: 0, failed: 0, ...expected },
      name,
    );
  }
});

t.test("counts by the second", async (t) => {
  let broken = false;
  const url = await startGatewayThatAnswers(t, (_req, res) => {
    if (broken) res.writeHead(503);
    res.end(echo("user-1"));
  });
  const running = traffic(url, { ...options, cookies: VISITORS.slice(0, 1), forMs: 1_500 });
  setTimeout(() => {
    broken = true;
  }, 1_200);
  const { perSecond, requests } = await running;
  t.equal(perSecond.length, 2);
  t.equal(perSecond[0]?.outages, 0);
  t.ok((perSecond[1]?.outages ?? 0) > 0 && (perSecond[1]?.served ?? 0) > 0);
  t.equal((perSecond[0]?.requests ?? 0) + (perSecond[1]?.requests ?? 0), requests);
});

t.test("a real gateway whose Redis is killed and comes back", async (t) => {
  const redis = await startRedis(t, { save: true });
  const app = await startIdentityApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  const cookies = await logIn(gateway.url, 20);
  t.equal(new Set(cookies.map(({ cookie }) => cookie)).size, 20);
  const cpu = process.cpuUsage();
  const running = traffic(gateway.url, { cookies, connections: 10, forMs: 1_500 });
  setTimeout(() => redis.kill(), 300);
  setTimeout(() => redis.start(), 800);
  const report = await running;
  const { user, system } = process.cpuUsage(cpu);
  t.comment(
    `${Math.round((user + system) / report.requests)} µs CPU a request, gateway, application and load together`,
  );
  t.comment(trafficTable({ "kill -9 and start": report }));
  t.ok(report.served > 0 && report.outages > 0);
  t.match(report, { wrong: 0, loggedOut: 0, hung: 0, failed: 0, cookiesCleared: 0 });
  t.equal(report.perSecond.at(-1)?.longestMs !== undefined, true);
});

t.test("the table is one", (t) => {
  const counts = { requests: 12, served: 10, outages: 2, wrong: 0, loggedOut: 0, hung: 0, failed: 0, longestMs: 12.6 };
  const table = trafficTable({ "cut off": { ...counts, cookiesCleared: 0, statuses: {}, perSecond: [] } });
  t.same(table.split("\n"), [
    "         requests  served  503  wrong  logged out  hung  failed  cookies cleared  longest ms",
    "cut off        12      10    2      0           0     0       0                0          13",
  ]);
  t.end();
});
