/** `GET /debug/exchanges`: finding a request again, and what it tells. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import t from "tap";
import { SHOWN_EXCHANGE, type ShownExchange } from "../src/admin/exchange-schema.ts";
import { Exchange } from "../src/core/exchange.ts";
import { handleOf } from "../src/core/session.ts";
import { select } from "../src/observe/exchange-filter.ts";
import { renderRecord } from "../src/observe/record.ts";
import { reasonOf, stepsOf } from "../src/observe/steps.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { freePort, type RunningGateway, startApp, startGateway, startRedis, startUpstream } from "./support/servers.ts";

interface Answer {
  readonly ring: string;
  readonly kept: number;
  readonly matched: number;
  readonly exchanges: readonly ShownExchange[];
}

async function find(gateway: RunningGateway, query: string): Promise<Answer> {
  const reply = await ask(`${gateway.adminUrl}/debug/exchanges?${query}`);
  if (reply.status !== 200) throw new Error(reply.body);
  return JSON.parse(reply.body);
}

const paths = ({ exchanges }: Answer) => exchanges.map(({ request }) => request.path);

/** A gateway that has seen requests of many kinds. */
async function seasoned(t: Parameters<typeof startApp>[0]) {
  const app = await startApp(t);
  const slow = await startUpstream(t, (received, _req, res) => {
    if (received.url.startsWith("/slow/200")) setTimeout(() => res.end("late"), 350);
    else res.writeHead(500).end();
  });
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/account" }, upstream: app.url, session: "required" },
    { match: { path: "/slow" }, upstream: slow.url, session: "none" },
    { match: { path: "/gone" }, upstream: `http://127.0.0.1:${await freePort()}`, session: "none" },
  ];
  const gateway = await startGateway(t, { routes });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"},"data":{"no":1}}' });
  const cookie = cookiePair(started.setCookie[0]);
  await ask(`${gateway.url}/account/me?token=1`, { headers: { cookie, "x-user-id": "root" } });
  await ask(`${gateway.url}/account/forged`, { headers: { cookie: `${cookie.slice(0, -3)}abc` } });
  for (const path of ["/account/none", "/slow/200", "/slow/500", "/gone"]) await ask(gateway.url + path);
  await until(async () => (await gateway.exchanges()).length === 7);
  return { gateway, cookie };
}

t.test("hosts are cut like paths", async (t) => {
  const gateway = await startGateway(t, {});
  const host = `${"h".repeat(20_000)}.example`;
  await ask(`${gateway.url}/${"p".repeat(2_000)}?q`, { headers: { host } });
  const record = await until(async () => (await gateway.exchanges())[0]);
  t.equal(record.request.host, `${"h".repeat(255)}…`);
  t.equal(record.request.path, `/${"p".repeat(511)}…`);
  t.match(gateway.logs.find(({ event }) => event === "http.access")?.["server.address"], /^h{255}…$/);
});

t.test("what is kept of a long request keeps no more of it in memory", (t) => {
  setFlagsFromString("--expose-gc");
  const collectGarbage = runInNewContext("gc");
  const ids = { traceId: "0".repeat(32), spanId: "0".repeat(16) };
  const long = (text: string) => Buffer.from(text.padEnd(30_000, "x")).toString();
  const kept: Exchange[] = [];
  collectGarbage();
  const before = process.memoryUsage().heapUsed;
  for (let i = 0; i < 500; i++) {
    const exchange = new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", ...ids });
    const target = long(`/a/rather/short/path/${i}?token=`);
    exchange.setPath(target.slice(0, target.indexOf("?")), target);
    exchange.setHost(long(`host-${i}`).toLowerCase());
    exchange.countStripped("underscore", long(`x_name_${i}`));
    kept.push(exchange);
  }
  collectGarbage();
  const bytes = (process.memoryUsage().heapUsed - before) / kept.length;
  t.ok(bytes < 10_000, `${bytes} bytes for each exchange`);
  t.end();
});

t.test("each filter picks what it says, and several are joined by and", async (t) => {
  const { gateway } = await seasoned(t);
  const [me] = (await find(gateway, "path=/account/me")).exchanges;
  const handle = me?.session.handle ?? "";
  t.equal(handle.length, 12);
  const cases: [query: string, paths: string[]][] = [
    ["route=*/account", ["/account/none", "/account/forged", "/account/me"]],
    ["outcome=hit", ["/account/me"]],
    ["outcome=absent", ["/account/none", "/start"]],
    ["outcome=malformed", ["/account/forged"]],
    ["logout=signature", ["/account/forged"]],
    ["logout=surprise", ["/account/forged"]],
    ["logout=lost", []],
    ["decision=denied", ["/account/none", "/account/forged"]],
    ["status=500", ["/slow/500"]],
    ["status=5xx", ["/gone", "/slow/500"]],
    ["status=401", ["/account/none", "/account/forged"]],
    ["error=connection_refused", ["/gone"]],
    [`handle=${handle}`, ["/account/me", "/start"]],
    ["path=/slow&slowerThan=300ms", ["/slow/200"]],
    [`traceId=${me?.traceId}`, ["/account/me"]],
    ["path=/slow", ["/slow/500", "/slow/200"]],
    ["route=*/account&status=4xx&limit=1", ["/account/none"]],
    [`route=*/account&handle=${handle}`, ["/account/me"]],
    ["route=*/slow&status=401", []],
    ["ring=errors", ["/gone", "/slow/500"]],
    ["ring=errors&error=connection_refused", ["/gone"]],
    [`after=${me?.spanId}`, ["/gone", "/slow/500", "/slow/200", "/account/none", "/account/forged"]],
    ["ring=watch", []],
  ];
  for (const [query, expected] of cases) t.same(paths(await find(gateway, query)), expected, query);
});

t.test("an empty answer explains itself: how many there are, and how many were meant", async (t) => {
  const { gateway } = await seasoned(t);
  t.match(await find(gateway, "status=418"), { ring: "recent", kept: 7, matched: 0, exchanges: [] });
  t.match(await find(gateway, "route=*/account&limit=1"), { kept: 7, matched: 3, exchanges: [{}] });
  t.match(await find(gateway, "ring=slow"), { ring: "slow", kept: 0, matched: 0 });
  t.match(await find(gateway, "ring=watch"), { ring: "watch", kept: 0 });
});

t.test("the answer is what its schema says", async (t) => {
  const { gateway } = await seasoned(t);
  const { exchanges } = await find(gateway, "limit=1000");
  t.equal(exchanges.length, 7);
  for (const exchange of exchanges) t.same(SHOWN_EXCHANGE.safeParse(exchange).error?.issues ?? [], []);
});

t.test("what cannot be asked is refused with what to write instead", async (t) => {
  const gateway = await startGateway(t, {});
  const cases: [query: string, message: RegExp][] = [
    ["ring=other", /^ring must be one of recent, slow, errors, watch$/],
    ["outcome=lost", /^outcome must be one of not-asked, absent, hit, /],
    ["logout=bored", /^logout must be one of expired, ended, lost, .*, surprise$/],
    ["decision=maybe", /^decision must be one of /],
    ["status=600", /^status must be a status such as 503, or a class such as 5xx$/],
    ["status=5x", /class such as 5xx/],
    ["error=oops", /^error must be one of dns_error, /],
    ["handle=short", /^handle must be a handle: 12 characters/],
    ["slowerThan=250", /^slowerThan must be a duration from 0ms to 1d, such as 250ms$/],
    ["slowerThan=9d", /duration from 0ms to 1d/],
    ["traceId=xyz", /^traceId must be 32 hex digits/],
    ["path=shop", /^path must begin with a slash$/],
    ["after=1", /^after must be 16 hex digits$/],
    ["limit=1001", /^limit must be 1 to 1000$/],
    ["status=500&status=501", /the parameter status comes more than once/],
    ["state=5xx", /unknown parameter "state"; known: ring, limit, route, outcome/],
  ];
  for (const [query, message] of cases) {
    const reply = await ask(`${gateway.adminUrl}/debug/exchanges?${query}`);
    t.equal(reply.status, 400, query);
    t.match(JSON.parse(reply.body).error, message);
  }
});

t.test("a record tells its steps in order, in words", async (t) => {
  const { gateway } = await seasoned(t);
  const [me] = (await find(gateway, "path=/account/me")).exchanges;
  t.same(
    me?.steps.map(({ step }) => step),
    [
      "received",
      "stripped",
      "route",
      "cookie",
      "session",
      "policy",
      "injected",
      "forwarded",
      "upstream-head",
      "upstream-end",
      "ended",
    ],
  );
  t.match(me?.steps, [
    { atMs: 0, detail: /^GET for 127\.0\.0\.1, HTTP\/1\.1, from 127\.0\.0\.1$/ },
    { detail: "x-user-id (1 managed)" },
    { detail: "*/account" },
    { detail: "verified with the first secret" },
    { atMs: Number, tookMs: Number, detail: /^hit \(store\), handle .{12}: the session is there$/ },
    { detail: "passed on with the identity of the session" },
    { detail: /(^|, )x-user-id(,|$)/i },
    { atMs: Number, detail: /^to 127\.0\.0\.1:\d+$/ },
    { atMs: Number, tookMs: Number, detail: "status 200" },
    { atMs: Number, tookMs: Number },
    { atMs: Number, detail: /^200 by the application, \d+ bytes$/ },
  ]);
  const times = (me?.steps ?? []).flatMap(({ atMs }) => atMs ?? []);
  t.same(
    [...times].sort((a, b) => a - b),
    times,
  );
  t.match(me?.reason, /^passed on with the identity of the session$/);
  t.notMatch(JSON.stringify(me), "token=1");

  const [start] = (await find(gateway, "path=/start")).exchanges;
  t.match(
    start?.steps.find(({ step }) => step === "write-back"),
    {
      atMs: Number,
      tookMs: Number,
      detail: /^start saved, the session is now .{12}, keys that the route may not write, and that were dropped: 1$/,
    },
  );
});

t.test("the reason says why somebody is not signed in", async (t) => {
  const { gateway } = await seasoned(t);
  const reason = async (path: string) => (await find(gateway, `path=${path}`)).exchanges[0]?.reason;
  t.equal(await reason("/account/none"), "turned away: the route needs a session, and no session cookie came");
  t.equal(
    await reason("/account/forged"),
    "turned away: the route needs a session, and the session cookie is signed with none of the configured secrets",
  );
  t.match(await reason("/gone"), /^connection_refused: /);
  t.equal(await reason("/slow/500"), "passed on as anonymous: the route asks for no session");
});

t.test("an outage reads as an outage, and a stale session tells its age", async (t) => {
  const app = await startApp(t);
  const redis = await startRedis(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "required", write: ["user"] }];
  const anyone = [{ match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] }];
  const signIn = await startGateway(t, { routes: anyone, store: redis.url });
  const started = await ask(`${signIn.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  const cookie = cookiePair(started.setCookie[0]);
  const gateway = await startGateway(t, { routes, store: redis.url, cache: { staleOnOutage: "1m" } });
  await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  t.equal((await ask(gateway.url, { headers: { cookie } })).status, 200);
  await redis.kill();
  const stale = await until(async () => {
    t.equal((await ask(gateway.url, { headers: { cookie } })).status, 200);
    return (await gateway.exchanges()).find(({ session }) => session.source === "stale");
  });
  t.ok(Number(stale.session.staleMs) >= 0);
  t.match(stepsOf(stale).find(({ step }) => step === "session")?.detail, /^hit \(stale, read \d+\.\d s ago\), handle /);
  t.equal((await ask(signIn.url, { headers: { cookie } })).status, 503);
  t.match((await find(signIn, "status=503&outcome=unavailable")).exchanges, [
    {
      reason: /^session_store_unavailable: /,
      steps: [{}, {}, {}, { detail: /^unavailable: the session store gave no answer$/ }, {}, {}],
    },
  ]);
});

t.test("every outcome of a session has a reason of its own", (t) => {
  const exchange = new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "", spanId: "" });
  exchange.decision = "denied";
  exchange.cookie = "valid";
  const outcomes = ["absent", "unknown", "expired", "malformed", "newer", "mismatch", "ambiguous"] as const;
  const reasons = outcomes.map((outcome) => {
    exchange.session = outcome;
    return reasonOf(renderRecord(exchange));
  });
  exchange.session = "unknown";
  for (const logout of ["ended", "lost"] as const) {
    exchange.logout = logout;
    reasons.push(reasonOf(renderRecord(exchange)));
  }
  t.equal(new Set(reasons).size, outcomes.length + 2);
  exchange.clientGone = true;
  t.match(reasonOf(renderRecord(exchange)), /the client went away/);
  t.end();
});

t.test("other requests get their turn while a large ring is looked through", async (t) => {
  const exchange = new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "", spanId: "" });
  const records = Array.from({ length: 5_000 }, () => renderRecord(exchange));
  let turns = 0;
  const counting = setInterval(() => turns++, 0);
  const selection = await select(records, { filter: {}, limit: 3 });
  clearInterval(counting);
  t.match(selection, { kept: 5_000, matched: 5_000, found: { length: 3 } });
  t.ok(turns >= 1);
});

t.test("a handle is its first twelve characters, however much of the key is given", async (t) => {
  const { gateway } = await seasoned(t);
  const [me] = (await find(gateway, "path=/account/me")).exchanges;
  const handle = handleOf(me?.session.handle ?? "");
  t.same(paths(await find(gateway, `handle=${handle}${"A".repeat(31)}`)), ["/account/me", "/start"]);
});
