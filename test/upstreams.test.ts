/** Several targets: who gets a request, what happens when one fails, and what must never be sent twice. */
import t from "tap";
import { byHash, byLoad, byTurns, hash32 } from "../src/upstream/balance.ts";
import { RetryBudget } from "../src/upstream/retry-budget.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { freePort, type RunningGateway, startGateway, startUpstream } from "./support/servers.ts";
import {
  balanced,
  counted,
  FAILING,
  HANGING,
  RESETTING,
  shown,
  shownUpstreams,
  startTargets,
  statesOf,
  type TestTarget,
  WELL,
} from "./support/targets.ts";

/** Asks one after the other. @returns the bodies. */
async function askTimes(gateway: RunningGateway, times: number, path = "/"): Promise<string[]> {
  const bodies: string[] = [];
  for (let i = 0; i < times; i++) bodies.push((await ask(gateway.url + path)).body);
  return bodies;
}

function countsOf(bodies: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const body of bodies) counts[body] = (counts[body] ?? 0) + 1;
  return counts;
}

const eventsOf = ({ logs }: RunningGateway) => logs.map(({ event }) => event as string);

t.test("in turns, by weight, and evenly", async (t) => {
  const [a, b, c] = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
  const targets = [{ url: a.url, weight: 5 }, b, c];
  const gateway = await startGateway(t, balanced(targets));
  const order = (await askTimes(gateway, 14)).map((port) => "abc"[[a, b, c].findIndex((x) => `${x.port}` === port)]);
  t.equal(order.join(""), "aabacaaaabacaa", "as nginx does it");
  const [record] = await gateway.exchanges();
  t.match(record?.upstream, { choice: "round-robin", retries: 0, waitedMs: 0, retryRefused: false });
});

t.test("the one with the least to do", async (t) => {
  const [slow, quick] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  const held: (() => void)[] = [];
  slow.behaviour = (req, res) => held.push(() => WELL(req, res));
  const gateway = await startGateway(t, balanced([slow, quick], { balance: "least-requests" }));
  const waiting = [ask(gateway.url), ask(gateway.url)];
  await until(() => held.length === 1);
  await Promise.race(waiting);
  const bodies = await askTimes(gateway, 10);
  t.same(countsOf(bodies), { [quick.port]: 10 });
  for (const release of held) release();
  await Promise.all(waiting);
});

t.test("a session stays with its target, at every gateway, and who has none is spread", async (t) => {
  const apps = await Promise.all(
    Array.from({ length: 4 }, () =>
      startUpstream(t, ({ url, body }, req, res) => {
        if (url === "/start") res.setHeader("X-Session-Start", body);
        res.end(`${req.socket.localPort}`);
      }),
    ),
  );
  const upstream = { targets: apps.map(({ url }) => url), balance: "session-hash" };
  const settings = { routes: [{ upstream, session: "optional", write: ["user"] }], store: "memory:" };
  const gateway = await startGateway(t, settings);
  const seen = new Set<string>();
  for (let visitor = 0; visitor < 12; visitor++) {
    const login = await ask(`${gateway.url}/start`, { method: "POST", body: `{"user":{"id":"${visitor}"}}` });
    const headers = { cookie: cookiePair(login.setCookie[0]) };
    const places = new Set<string>();
    for (let i = 0; i < 5; i++) places.add((await ask(gateway.url, { headers })).body);
    t.equal(places.size, 1, "one visitor, one target");
    for (const place of places) seen.add(place);
    if (visitor === 0) {
      const [record] = await gateway.exchanges();
      t.equal(record?.upstream?.choice, "session-hash");
      const explained = await fetch(`${gateway.adminUrl}/debug/explain`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ method: "GET", url: "/", headers: { ...headers, host: "a" } }),
      });
      const text = await explained.text();
      t.match(text, new RegExp(`127.0.0.1:${[...places][0]}: session-hash`), "explain knows the same target");
    }
  }
  t.ok(seen.size > 1, `${seen.size} targets have sessions`);
  t.ok(Object.keys(countsOf(await askTimes(gateway, 8))).length > 1, "who has no session goes anywhere");
  const [anonymous] = await gateway.exchanges();
  t.equal(anonymous?.upstream?.choice, "least-requests");
});

t.test("a target more or less moves its share of the sessions, and no other", async (t) => {
  const candidates = (count: number) =>
    Array.from({ length: count }, (_, i) => ({
      name: `10.0.0.${i}:3000`,
      seed: hash32(`10.0.0.${i}:3000`),
      weight: 1,
      fullWeight: 1,
      active: 0,
      credit: 0,
    }));
  const keys = Array.from({ length: 20_000 }, (_, i) => hash32(`session ${i}`));
  const place = (key: number, among: ReturnType<typeof candidates>) => byHash(among, key, () => true)?.name;
  for (const count of [2, 3, 5, 10, 20]) {
    const before = candidates(count);
    const after = candidates(count + 1);
    const spread = Object.values(countsOf(keys.map((key) => place(key, before) ?? "")));
    const expected = keys.length / count;
    // Five standard deviations of a fair spread.
    const tolerance = 5 * Math.sqrt(expected);
    t.ok(
      spread.every((n) => Math.abs(n - expected) < tolerance),
      `even over ${count}: ${spread}`,
    );
    const moved = keys.filter((key) => place(key, before) !== place(key, after));
    t.ok(
      moved.every((key) => place(key, after) === after.at(-1)?.name),
      "whoever moves goes to the new one",
    );
    const share = keys.length / (count + 1);
    t.ok(Math.abs(moved.length - share) < 5 * Math.sqrt(share), `${moved.length} of ${keys.length} moved`);
    if (process.env.COATCHECK_TEST_REPORT)
      console.error(
        `# ${count} → ${count + 1}: moved ${((100 * moved.length) / keys.length).toFixed(1)} %, spread ${spread}`,
      );
  }
  const weighted = candidates(3).map((candidate, i) => ({ ...candidate, fullWeight: i + 1 }));
  const byWeight = countsOf(keys.map((key) => place(key, weighted) ?? ""));
  t.ok(Math.abs((byWeight["10.0.0.2:3000"] ?? 0) - keys.length / 2) < 500, `by weight: ${JSON.stringify(byWeight)}`);
});

t.test("the order of turns is smooth when one may not be chosen", async (t) => {
  const [a, b] = [1, 1].map((weight) => ({ weight, fullWeight: weight, active: 0, seed: 0, credit: 0 }));
  if (a === undefined || b === undefined) return;
  for (let i = 0; i < 100; i++)
    t.equal(
      byTurns([a, b], (candidate) => candidate === b),
      b,
    );
  const next = Array.from({ length: 6 }, () => (byTurns([a, b], () => true) === a ? "a" : "b"));
  t.match(next.join(""), /^(ab|ba){3}$/, "nobody has saved up turns");
});

t.test("one that returns slowly gains weight while it is looked at, and is chosen all the same", async (t) => {
  let weight = 0.1;
  const returning = {
    get weight() {
      weight += 0.01;
      return weight;
    },
    fullWeight: 1,
    active: 0,
    seed: 0,
    credit: 0,
  };
  t.equal(
    byLoad([returning], () => true),
    returning,
  );
});

t.test("a target that is killed costs nobody an answer, is ejected, and comes back", async (t) => {
  const targets = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
  const [first, , third] = targets;
  const settings = { ejection: { failures: 3, duration: "300ms" }, slowStart: "1s" };
  const gateway = await startGateway(t, balanced(targets, settings));
  await askTimes(gateway, 6);
  await first.kill();
  const during = await Promise.all(
    Array.from({ length: 30 }, (_, i) =>
      ask(gateway.url, i % 2 === 0 ? {} : { method: "POST", body: "x".repeat(100_000) }),
    ),
  );
  t.ok(
    during.every(({ status }) => status === 200),
    "also those with content, of which nothing had been sent",
  );
  const ejected = await until(() => gateway.logs.find(({ event }) => event === "upstream.ejected"));
  t.match(ejected, { reason: "failures", in_service: 2, failure: "connection_refused", for_s: 0.3, level: "warn" });
  const failed = (await gateway.exchanges()).filter(({ upstream }) => (upstream?.retries ?? 0) > 0);
  t.ok(failed.length >= 3, `${failed.length} were sent again`);
  t.match(failed[0]?.upstream?.attempts?.[0], { address: `127.0.0.1:${first.port}`, retry: "connect" });
  t.not(failed[0]?.upstream?.address, `127.0.0.1:${first.port}`, "to another one");
  await first.start();
  await until(async () => {
    await ask(gateway.url);
    return (await statesOf(gateway))[0] === "slow-start" && first.requests.length > 2;
  });
  t.ok(eventsOf(gateway).includes("upstream.returned"));
  t.ok((await counted(gateway, "coatcheck_upstream_returns_total", { reason: "time" })) >= 1);
  await until(async () => (await ask(gateway.url)) && (await statesOf(gateway))[0] === "in-service");
  const bodies = await askTimes(gateway, 9);
  t.same(countsOf(bodies), Object.fromEntries(targets.map(({ port }) => [port, 3])), "its whole share again");
  t.equal(third.requests.length > 0, true);
});

t.test("each ejection takes twice as long as the one before, and one failure begins the next", async (t) => {
  const [bad, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  bad.behaviour = RESETTING;
  const ejection = { failures: 4, duration: "100ms", maxDuration: "250ms" };
  const gateway = await startGateway(t, balanced([bad, good], { ejection, slowStart: "0s" }));
  await until(async () => {
    await ask(gateway.url);
    return eventsOf(gateway).filter((event) => event === "upstream.ejected").length === 4;
  });
  const durations = gateway.logs.filter(({ event }) => event === "upstream.ejected").map(({ for_s }) => for_s);
  t.same(durations, [0.1, 0.2, 0.25, 0.25]);
  t.equal(bad.requests.length, 4 + 3, "four, and one after each return");
});

t.test("a request that may have been carried out is never sent twice", async (t) => {
  const targets = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
  for (const target of targets) target.behaviour = RESETTING;
  const retries = { attempts: 5, on: ["connect", "closed", "timeout", 502, 503, 504], minPerSecond: 1000 };
  const settings = { retries, ejection: false, timeouts: { firstByte: "300ms" } };
  const gateway = await startGateway(t, balanced(targets, settings));
  const sentTo = () => targets.flatMap(({ requests }) => requests);
  const once: [method: string, body: string | undefined][] = [
    ["POST", "x"],
    ["POST", "y".repeat(300_000)],
    ["POST", undefined],
    ["PUT", "x"],
    ["PATCH", "x"],
    ["DELETE", undefined],
    ["GET", "content"],
  ];
  for (const behaviour of [RESETTING, HANGING, FAILING]) {
    for (const target of targets) target.behaviour = behaviour;
    await Promise.all(
      once.map(async ([method, body], index) => {
        const path = `/${behaviour.name}/${index}`;
        const headers = { "content-length": body?.length ?? 0 };
        const reply = await ask(gateway.url + path, { method, headers, ...(body !== undefined && { body }) });
        t.ok([502, 503, 504].includes(reply.status), `${method} ${reply.status}`);
        t.equal(sentTo().filter((request) => request.endsWith(path)).length, 1, `${method} ${path} once`);
      }),
    );
    const path = `/${behaviour.name}/safe`;
    await ask(gateway.url + path);
    t.equal(sentTo().filter((request) => request.endsWith(path)).length, 3, `GET ${path} at each of them`);
  }
  const again = (await gateway.exchanges()).filter(({ upstream }) => upstream?.retries);
  t.same(
    again.map(({ request }) => `${request.method} ${request.path}`),
    ["GET /FAILING/safe", "GET /HANGING/safe", "GET /RESETTING/safe"],
  );
});

t.test(
  "what an application answers is sent again only if so configured, and then only what changes nothing",
  async (t) => {
    const [bad, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
    bad.behaviour = FAILING;
    const plain = await startGateway(t, balanced([bad, good], { ejection: false }));
    t.same((await Promise.all([ask(plain.url), ask(plain.url)])).map(({ status }) => status).sort(), [200, 503]);
    const gateway = await startGateway(t, balanced([bad, good], { ejection: false, retries: { on: [503] } }));
    for (let i = 0; i < 6; i++) t.equal((await ask(gateway.url)).status, 200);
    const again = (await gateway.exchanges()).find(({ upstream }) => upstream?.retries === 1);
    t.match(again?.upstream?.attempts, [{ status: 503, retry: "status", choice: "round-robin" }]);
    t.match(
      (again as unknown as { steps: { step: string }[] }).steps.find(({ step }) => step === "attempt"),
      { detail: new RegExp(`to 127.0.0.1:${bad.port}, chosen by round-robin: status 503; so it was sent again`) },
    );
    t.equal(
      await counted(gateway, "http_client_request_duration_seconds_count", { http_response_status_code: "503" }),
      3,
    );
  },
);

t.test("what is sent again differs in its traceparent alone, whatever the client's own headers say", async (t) => {
  const [one, two] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  const heads: (readonly string[])[] = [];
  one.behaviour = (req, res) => {
    heads.push(req.rawHeaders);
    RESETTING(req, res);
  };
  two.behaviour = (req, res) => {
    heads.push(req.rawHeaders);
    WELL(req, res);
  };
  const gateway = await startGateway(t, balanced([one, two]));
  const headers = { host: "app.example", "access-control-request-headers": "traceparent", connection: "close" };
  t.equal((await ask(gateway.url, { method: "OPTIONS", headers })).body, `${two.port}`);
  const [first = [], second = []] = heads;
  const differing = second
    .map((text, index) => (text === first[index] ? "" : (second[index - 1] ?? "")))
    .filter(Boolean);
  t.same(differing, ["traceparent"]);
});

t.test("answers from 500 on take a target out, if so configured", async (t) => {
  const [bad, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  bad.behaviour = FAILING;
  const patient = await startGateway(t, balanced([bad, good]));
  await askTimes(patient, 30);
  t.same(await statesOf(patient), ["in-service", "in-service"], "not by default");
  const gateway = await startGateway(t, balanced([bad, good], { ejection: { serverErrors: 3 } }));
  await askTimes(gateway, 6);
  t.same(await statesOf(gateway), ["ejected", "in-service"]);
  t.equal(await counted(gateway, "coatcheck_upstream_ejections_total", { reason: "server-errors" }), 1);
  t.same(countsOf(await askTimes(gateway, 10)), { [good.port]: 10 });
});

t.test("a target that hangs is ejected, and its request goes elsewhere if so configured", async (t) => {
  const [bad, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  bad.behaviour = HANGING;
  const settings = { timeouts: { firstByte: "150ms" }, ejection: { failures: 2 }, retries: { on: ["timeout"] } };
  const gateway = await startGateway(t, balanced([bad, good], settings));
  for (let i = 0; i < 8; i++) t.equal((await ask(gateway.url)).status, 200);
  t.equal(bad.requests.length, 2);
  t.same(await statesOf(gateway), ["ejected", "in-service"]);
});

t.test("the last target in service is not ejected, and somebody is told", async (t) => {
  const targets = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  for (const target of targets) target.behaviour = RESETTING;
  const settings = { ejection: { failures: 2, duration: "1h", maxDuration: "1h" }, retries: false };
  const gateway = await startGateway(t, balanced(targets, settings));
  for (let i = 0; i < 20; i++) t.equal((await ask(gateway.url)).status, 502);
  t.same((await statesOf(gateway)).sort(), ["ejected", "in-service"]);
  t.equal(await counted(gateway, "coatcheck_upstream_endpoints", { state: "out" }), 1);
  const [out] = gateway.logs.filter(({ event }) => event === "upstream.ejected");
  const [, server_port = ""] = String(out?.upstream).split(":");
  t.equal(await counted(gateway, "coatcheck_upstream_up", { server_port }), 0);
  const spared = gateway.logs.filter(({ event }) => event === "upstream.spared");
  t.equal(spared.length, 1, "once");
  t.match(spared[0], { level: "error", reason: "failures" });
  t.equal(await counted(gateway, "coatcheck_upstream_ejections_spared_total"), 1);
});

t.test("retries stay within their budget", async (t) => {
  const budget = new RetryBudget({ budget: 0.2, minPerSecond: 1 });
  let taken = 0;
  for (let i = 0; i < 1000; i++) {
    budget.request(i * 5);
    if (budget.take(i * 5)) taken++;
  }
  t.equal(taken, 200, "a fifth");
  let quiet = 0;
  for (let i = 0; i < 100; i++) if (budget.take(100_000 + i)) quiet++;
  t.equal(quiet, 10, "the least there is, when nothing else goes on");

  const targets = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
  for (const target of targets) target.behaviour = RESETTING;
  const retries = { attempts: 2, budget: 0.1, minPerSecond: 0 };
  const gateway = await startGateway(t, balanced(targets, { retries, ejection: false }));
  for (let i = 0; i < 20; i++)
    await Promise.all(Array.from({ length: 10 }, async () => t.equal((await ask(gateway.url)).status, 502)));
  const sent = targets.reduce((sum, { requests }) => sum + requests.length, 0);
  t.ok(sent <= 220 && sent > 200, `${sent} requests for 200`);
  t.equal(await counted(gateway, "coatcheck_upstream_retries_total"), sent - 200);
  t.equal(await counted(gateway, "coatcheck_upstream_retries_refused_total"), 200);
  t.equal((await gateway.exchanges()).filter(({ upstream }) => upstream?.retryRefused).length, 200);
});

t.test("a session whose target is out goes to one other, and back", async (t) => {
  const apps = (await startTargets(t, 3)) as [TestTarget, TestTarget, TestTarget];
  const login = await startUpstream(t, ({ body }, _req, res) => {
    res.setHeader("X-Session-Start", body);
    res.end();
  });
  const upstream = {
    targets: apps.map(({ url }) => url),
    balance: "session-hash",
    ejection: { failures: 1, duration: "500ms" },
  };
  const gateway = await startGateway(t, {
    routes: [
      { upstream, session: "optional" },
      { match: { path: "/start" }, upstream: login.url, session: "optional", write: ["user"] },
    ],
  });
  const { setCookie } = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const headers = { cookie: cookiePair(setCookie[0]) };
  const place = async () => (await ask(gateway.url, { headers })).body;
  const own = await place();
  const target = apps.find(({ port }) => `${port}` === own) as TestTarget;
  await target.kill();
  const others = new Set([await place(), await place(), await place()]);
  t.equal(others.size, 1);
  t.notOk(others.has(own));
  t.ok((await gateway.exchanges()).some(({ upstream }) => upstream?.choice === "session-fallback"));
  await target.start();
  await until(async () => (await place()) === own);
  t.equal((await shown(gateway)).balance, "session-hash");
});

t.test("one target has no choice, no ejection and no second try", async (t) => {
  const gateway = await startGateway(t, balanced([`http://127.0.0.1:${await freePort()}`]));
  for (let i = 0; i < 10; i++) t.equal((await ask(gateway.url)).status, 502);
  t.match(await shown(gateway), { balance: null, targets: [{ endpoints: [{ state: "in-service", failures: 0 }] }] });
  const [record] = await gateway.exchanges();
  t.equal(record?.upstream?.choice, undefined);
  t.equal(record?.upstream?.retries, 0);
});

t.test("routes that say the same of their upstream share it", async (t) => {
  const [a, b] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  const upstream = [a.url, b.url];
  const gateway = await startGateway(t, {
    routes: [
      { match: { path: "/one" }, upstream, session: "none" },
      { match: { path: "/two" }, upstream, session: "none" },
      { match: { path: "/three" }, upstream: a.url, session: "none" },
    ],
  });
  t.same(
    (await shownUpstreams(gateway)).map(({ routes }) => routes),
    [["*/one", "*/two"], ["*/three"]],
  );
});
