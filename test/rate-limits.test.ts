/** Requests per address and per session: token buckets, shared over Redis, and by oneself while Redis is away. */
import t, { type Test } from "tap";
import { loadConfig } from "../src/config/load.ts";
import type { GatewayOptions } from "../src/gateway.ts";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import { type RunningGateway, startApp, startGateway, startRedis, startUpstream } from "./support/servers.ts";

/** So slow that no token comes back during a test. */
const SLOW = "1/h";

const limited = (gateway: RunningGateway, reason: string) =>
  gateway
    .metrics()
    .then((text) => Number(new RegExp(`requests_limited_total\\{reason="${reason}"\\} (\\d+)`).exec(text)?.[1]));
const answered = (gateway: RunningGateway, by: string) =>
  gateway.metrics().then((text) => Number(new RegExp(`limiter_answers_total\\{by="${by}"\\} (\\d+)`).exec(text)?.[1]));

async function statuses(url: string, count: number, headers: Record<string, string> = {}): Promise<number[]> {
  const all: number[] = [];
  for (let i = 0; i < count; i++) all.push((await ask(url, { headers })).status);
  return all;
}

const perAddress = (rate: string, burst: number) => ({ requests: { perAddress: { rate, burst } } });

t.test("beyond the burst: 429, with the fields that tell when to come again", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, limits: perAddress("3/m", 2) });
  t.same(await statuses(gateway.url, 2), [200, 200]);
  const refused = await ask(gateway.url);
  t.equal(refused.status, 429);
  t.match(refused.headers, {
    "content-type": "application/problem+json",
    "retry-after": /^(20|19)$/,
    "ratelimit-policy": '"address";q=2;w=40',
    ratelimit: /^"address";r=0;t=(20|19)$/,
    "proxy-status": "coatcheck; error=http_request_denied",
    "cache-control": "no-store",
  });
  t.match(JSON.parse(refused.body), { status: 429, title: "Too Many Requests", error: "http_request_denied" });
  const page = await ask(gateway.url, { headers: { accept: "text/html", "sec-fetch-mode": "navigate" } });
  t.match(page.headers, { "content-type": /^text\/html/, "retry-after": /^\d+$/ });
  t.equal(upstream.received.length, 2);
  const [record] = await gateway.exchanges();
  t.match(record, {
    limited: "address-rate",
    error: { type: "http_request_denied" },
    session: { outcome: "not-asked" },
    reason: /too many requests of one address/,
  });
  t.match(gateway.logs.at(-1), { event: "http.access", limited: "address-rate", "http.response.status_code": 429 });
  t.equal(await limited(gateway, "address-rate"), 2);
  t.equal(await answered(gateway, "local"), 4);
});

t.test("the connection goes on after a 429, for those that are pipelined too; content is read first", async (t) => {
  const upstream = await startUpstream(t);
  const route = { upstream: upstream.url, session: "none" };
  const gateway = await startGateway(t, {
    routes: [
      { ...route, limits: perAddress(SLOW, 1) },
      { ...route, match: { path: "/free" } },
    ],
  });
  const get = (path: string) => `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`;
  const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
  const seen = (text: string) => [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => status);
  const text = await raw(gateway.port, get("/") + get("/") + post + get("/free"), (all) => seen(all).length === 4);
  t.same(seen(text), ["200", "429", "429", "200"]);
});

t.test("tokens come back, at the rate that is told", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, limits: perAddress("20/s", 1) });
  t.equal((await ask(gateway.url)).status, 200);
  const startedMs = performance.now();
  let passed = 0;
  while (passed < 10) if ((await ask(gateway.url)).status === 200) passed++;
  t.ok(performance.now() - startedMs >= 490, "ten tokens are half a second");
});

t.test("the address is the client's, as trusted proxies tell it; IPv6 counts by /64", async (t) => {
  const upstream = await startUpstream(t);
  const limits = perAddress(SLOW, 1);
  const behind = await startGateway(t, {
    upstream: upstream.url,
    listen: { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] },
    limits,
  });
  const from = async (gateway: RunningGateway, address: string) =>
    (await ask(gateway.url, { headers: { "x-forwarded-for": address } })).status;
  t.equal(await from(behind, "192.0.2.1"), 200);
  t.equal(await from(behind, "192.0.2.2"), 200, "another client of the same proxy");
  t.equal(await from(behind, "192.0.2.1"), 429);
  t.equal(await from(behind, "198.51.100.7, 192.0.2.2"), 429, "what the client itself has written is not believed");
  t.equal(await from(behind, "2001:db8:0:1::1"), 200);
  t.equal(await from(behind, "2001:db8:0:1:ffff::2"), 429, "the same /64");
  t.equal(await from(behind, "2001:db8:0:2::1"), 200);
  t.equal(await from(behind, "::ffff:192.0.2.1"), 429, "IPv4 in IPv6 is IPv4");
  const direct = await startGateway(t, { upstream: upstream.url, limits });
  t.equal(await from(direct, "192.0.2.1"), 200);
  t.equal(await from(direct, "192.0.2.2"), 429, "nobody is trusted: it is one client");
});

t.test("per session, whatever address it comes from; others and anonymous visitors are not held to it", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, {
    upstream: app.url,
    limits: { requests: { perSession: { rate: SLOW, burst: 3 } } },
  });
  const login = async (id: string) => {
    const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id } }) });
    return { cookie: cookiePair(reply.setCookie[0]) };
  };
  const [ada, bob] = [await login("ada"), await login("bob")];
  t.same(await statuses(gateway.url, 4, ada), [200, 200, 200, 429]);
  t.same(await statuses(gateway.url, 1, bob), [200]);
  t.same(await statuses(gateway.url, 6), [200, 200, 200, 200, 200, 200]);
  t.same(
    await statuses(gateway.url, 4, { cookie: "session=forged.forged" }),
    [200, 200, 200, 200],
    "no session, no bucket",
  );
  const refused = await ask(gateway.url, { headers: ada });
  t.match(refused.headers, { "ratelimit-policy": '"session";q=3;w=10800', ratelimit: /^"session";r=0;t=\d+$/ });
  const [record] = await gateway.exchanges();
  t.match(record, { limited: "session-rate", session: { outcome: "hit" } });
  t.notMatch(gateway.logText(), cookiePair(ada.cookie).split("=")[1] ?? "", "no token in the log");
});

t.test("a flood never gets as far as the session store", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, limits: perAddress(SLOW, 2) });
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id: "1" } }) });
  await statuses(gateway.url, 20, { cookie: cookiePair(login.setCookie[0]) });
  t.match(await gateway.metrics(), /operations_total\{operation="find",status="hit",store="memory"\} 1$/m);
});

t.test("a route has buckets of its own, and may have none; what no route matches counts too", async (t) => {
  const upstream = await startUpstream(t);
  const at = (path: string, limits?: object) => ({ match: { path }, upstream: upstream.url, session: "none", limits });
  const gateway = await startGateway(t, {
    routes: [at("/a"), at("/login", perAddress(SLOW, 1)), at("/free", { requests: { perAddress: "none" } })],
    limits: perAddress(SLOW, 2),
  });
  t.same(await statuses(`${gateway.url}/login`, 2), [200, 429]);
  t.same(await statuses(`${gateway.url}/a`, 1), [200]);
  t.same(await statuses(`${gateway.url}/nowhere`, 2), [404, 429]);
  t.same(await statuses(`${gateway.url}/a`, 1), [429]);
  t.same(await statuses(`${gateway.url}/free`, 4), [200, 200, 200, 200]);
});

/** On a busy machine Redis may well take longer than 50 ms. */
const PATIENT = { limiterPatienceMs: 10_000 };

async function twoGateways(t: Test, burst: number, options: GatewayOptions = PATIENT) {
  const redis = await startRedis(t);
  const upstream = await startUpstream(t);
  const settings = { upstream: upstream.url, store: redis.url, limits: perAddress(SLOW, burst) };
  return { redis, one: await startGateway(t, settings, options), two: await startGateway(t, settings, options) };
}

t.test("two gateways on one Redis share a bucket, and it is gone when it is full again", async (t) => {
  const { redis, one, two } = await twoGateways(t, 4);
  t.same(await statuses(one.url, 2), [200, 200]);
  t.same(await statuses(two.url, 4), [200, 200, 429, 429]);
  t.same(await statuses(one.url, 2), [429, 429]);
  t.equal(await answered(one, "shared"), 3);
  t.equal(await answered(one, "memory"), 1, "an empty bucket is not asked for again");
  const keys = (await redis.call("KEYS", "coatcheck:limit:*")) as string[];
  t.same(keys, ["coatcheck:limit:address:127.0.0.1"]);
  const ttl = Number(await redis.call("PTTL", keys[0] as string));
  t.ok(ttl > 3 * 3_600_000 && ttl <= 4 * 3_600_000, "no longer than it takes to be full");
  const [record] = await one.exchanges();
  t.match(record, { limited: "address-rate" });
  const asked = (await one.exchanges()).find(({ storeCommands }) => storeCommands !== undefined);
  t.match(asked?.storeCommands?.[0], { name: "EVALSHA", script: "takeToken" });
});

t.test("many at once take each token once", async (t) => {
  const { one, two } = await twoGateways(t, 20);
  const all = await Promise.all(Array.from({ length: 60 }, (_, i) => ask(i % 2 === 0 ? one.url : two.url)));
  t.equal(all.filter(({ status }) => status === 200).length, 20);
  t.equal(all.filter(({ status }) => status === 429).length, 40);
});

t.test("Redis is killed: requests are neither held up nor let through without end; it comes back", async (t) => {
  const { redis, one } = await twoGateways(t, 5);
  t.same(await statuses(one.url, 1), [200]);
  await redis.kill();
  const startedMs = performance.now();
  t.same(await statuses(one.url, 7), [200, 200, 200, 200, 200, 429, 429], "a bucket of its own");
  t.ok(performance.now() - startedMs < 3_000);
  const fallback = one.logs.find(({ event }) => event === "limits.fallback");
  t.match(fallback, { level: "warn", failure: String });
  t.match(await one.metrics(), /^coatcheck_request_limiter_fallback 1$/m);
  t.ok((await answered(one, "fallback")) >= 7);
  await redis.start();
  await until(async () => {
    await ask(one.url);
    return /^coatcheck_request_limiter_fallback 0$/m.test(await one.metrics());
  });
  t.ok(one.logs.some(({ event }) => event === "limits.shared"));
});

t.test("a Redis that hangs costs 50 ms at most, and once", async (t) => {
  const { redis, one } = await twoGateways(t, 50, {});
  t.same(await statuses(one.url, 1), [200]);
  redis.freeze();
  t.teardown(() => redis.thaw());
  const startedMs = performance.now();
  const together = await Promise.all(Array.from({ length: 10 }, () => ask(one.url)));
  t.ok(together.every(({ status }) => status === 200));
  t.same(await statuses(one.url, 10), Array(10).fill(200));
  t.ok(performance.now() - startedMs < 2_000);
  redis.thaw();
});

t.test("explain tells the limits and takes no token", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    limits: { ...perAddress(SLOW, 1), body: { maxBytes: "1KiB" } },
  });
  const explain = async (headers: Record<string, string>) => {
    const body = JSON.stringify({ method: "POST", url: `${gateway.url}/`, headers });
    const init = { method: "POST", body, headers: { "content-type": "application/json" } };
    return (await fetch(`${gateway.adminUrl}/debug/explain`, init)).json() as Promise<{ steps: unknown[] }>;
  };
  const { steps } = await explain({});
  t.match(
    steps.find((step) => (step as { step: string }).step === "limits"),
    { finding: /each address may send 1\/h, 1 at once/ },
  );
  t.match(JSON.stringify(await explain({ "content-length": "5000" })), /413.*beyond 1024/);
  t.equal((await ask(gateway.url)).status, 200);
});

t.test("off, nothing is asked", async (t) => {
  const redis = await startRedis(t);
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, store: redis.url });
  await statuses(gateway.url, 5);
  t.same(await redis.call("KEYS", "coatcheck:limit:*"), []);
  for (const by of ["shared", "memory", "fallback", "local"]) t.equal(await answered(gateway, by), 0);
});

t.test("limits come and go with a reload", async (t) => {
  const redis = await startRedis(t);
  const upstream = await startUpstream(t);
  const routes = [{ upstream: upstream.url, session: "none" }];
  const gateway = await startGateway(t, { store: redis.url, routes }, PATIENT);
  t.same(await statuses(gateway.url, 3), [200, 200, 200]);
  const configOf = (limits: object) => loadConfig({ store: redis.url, routes, limits }, {}).config;
  const { applied } = await gateway.gateway.reload(configOf(perAddress(SLOW, 1)));
  t.ok(
    applied.some((key) => key.startsWith("limits.requests")),
    applied.join(" "),
  );
  t.same(await statuses(gateway.url, 2), [200, 429]);
  t.equal(await answered(gateway, "shared"), 2);
  await gateway.gateway.reload(configOf({}));
  t.same(await statuses(gateway.url, 3), [200, 200, 200]);
});

t.test("a limit that was too low locks nobody out once it is raised", async (t) => {
  const redis = await startRedis(t);
  const upstream = await startUpstream(t);
  const routes = [{ upstream: upstream.url, session: "none" }];
  for (const store of ["memory:", redis.url]) {
    const limits = perAddress(SLOW, 1);
    const gateway = await startGateway(t, { store, routes, limits }, PATIENT);
    t.same(await statuses(gateway.url, 3), [200, 429, 429]);
    await gateway.gateway.reload(loadConfig({ store, routes, limits: perAddress("1000/s", 100) }, {}).config);
    // The bucket is empty still, and fills at the new rate.
    await until(async () => (await ask(gateway.url)).status === 200);
    await until(async () => (await statuses(gateway.url, 3)).every((status) => status === 200));
  }
});
