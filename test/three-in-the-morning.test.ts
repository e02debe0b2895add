/**
 * People are being logged out, or wait, and nobody knows why. Three times something is broken on purpose; each time its
 * cause is found with what docs/runbook.md says, through the admin listener alone.
 */
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import {
  type GatewaySettings,
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  type Teardown,
} from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";

const TOKEN = "t".repeat(40);
const NEW_SECRET = "a new secret that has 32 characters";
const cookieWith = (secrets: readonly string[]) => ({ cookie: { name: "session", secure: false, secrets } });

/** What the operator has: the address of the admin listener, and its token. */
function operator({ adminUrl }: RunningGateway) {
  const call = async (path: string, body?: unknown) => {
    const reply = await fetch(adminUrl + path, {
      method: body === undefined ? "GET" : "POST",
      headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    return reply.text();
  };
  const json = async (path: string, body?: unknown) => JSON.parse(await call(path, body));
  /** The value of a metric, 0 if there is none. */
  const metric = async (name: string) => {
    const line = (await call("/metrics")).split("\n").find((each) => each.startsWith(`${name} `));
    return Number(line?.slice(name.length).split(" ")[1] ?? 0);
  };
  return { json, metric };
}

async function setUp(t: Teardown, settings: GatewaySettings) {
  const app = await startApp(t);
  const gateway = await startGateway(t, {
    upstream: app.url,
    session: cookieWith([SECRET]),
    admin: { port: 0, token: TOKEN },
    ...settings,
  });
  const login = async (user: string) => {
    const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id: user } }) });
    return cookiePair(reply.setCookie[0]);
  };
  const visit = (pair: string) => ask(`${gateway.url}/account`, { headers: { cookie: pair } });
  return { gateway, login, visit, ...operator(gateway) };
}

const logouts = (reason: string) => `coatcheck_session_logouts_total{reason="${reason}"}`;

t.test("everything is slow: it is the way to Redis, and neither the application nor the gateway", async (t) => {
  const redis = await startRedis(t, { save: true });
  const proxy = await startProxy(t, redis.port);
  const store = redis.url.replace(String(redis.port), String(proxy.port));
  const { login, visit, json, metric } = await setUp(t, { store, cache: { maxBytes: "0B" } });
  const pair = await login("ada");
  proxy.delay(60);
  for (let i = 0; i < 5; i++) t.equal((await visit(pair)).status, 200, "it works, slowly");

  t.ok((await metric("coatcheck_proxy_overhead_seconds_sum")) > 0.5, "the time is not spent upstream");
  const seconds = await metric('coatcheck_session_operation_duration_seconds_sum{operation="find",store="redis"}');
  t.ok(seconds > 0.5, "but in looking sessions up");
  const { exchanges } = await json("/debug/exchanges?slowerThan=100ms&limit=1");
  const [slow] = exchanges;
  t.ok(slow.timings.resolved - slow.timings.resolveStarted > 100, "a slow request says which step took so long");
  t.equal(slow.session.source, "store");
  t.match(JSON.stringify(await json("/store/check", {})), /PING takes [1-9]\d\d ms, and so does every request/);
  const explained = await json("/debug/explain", { url: "http://127.0.0.1/account", headers: { cookie: pair } });
  t.match(JSON.stringify(explained.steps), /[1-9]\d\d(\.\d+)? ms/, "and so does the replay");
});

t.test("people are logged out: Redis throws sessions away", async (t) => {
  const redis = await startRedis(t, { save: true });
  const { login, visit, json, metric } = await setUp(t, { store: redis.url });
  await until(async () => (await metric('coatcheck_session_feed{state="tracking"}')) === 1);
  const pairs = await Promise.all(Array.from({ length: 20 }, (_, i) => login(`user-${i}`)));
  const used = /used_memory:(\d+)/.exec(String(await redis.call("INFO", "memory")))?.[1];
  // Somebody has told Redis to evict, and another application fills it.
  await redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", Number(used) + 100_000);
  for (let i = 0; i < 40; i++) await redis.call("SET", `another:${i}`, "x".repeat(100_000), "EX", 1000).catch(() => {});
  await until(async () => {
    for (const pair of pairs) await visit(pair);
    return (await metric(logouts("lost"))) > 0;
  });

  t.equal(await metric(logouts("ended")), 0, "nobody ended them");
  t.equal(await metric(logouts("signature")), 0, "and the secrets are right");
  const { exchanges } = await json("/debug/exchanges?logout=lost&limit=1");
  t.match(exchanges[0], { session: { cookie: "valid", outcome: "unknown", logout: "lost" }, reason: /./ });
  const explained = await json("/debug/explain", { url: "http://127.0.0.1/account", headers: { cookie: pairs[0] } });
  t.match(JSON.stringify(explained), /does not know|evict/i, "the replay says that the store does not know it");
  const { ok, warnings } = await json("/store/check", {});
  t.equal(typeof ok, "boolean");
  t.match(warnings.join("\n"), /maxmemory-policy is allkeys-lru: .* Redis throws sessions away/);
  t.match(warnings.join("\n"), /\d+ keys were evicted since this server started/);
});

t.test("people are logged out: a secret was rotated, and the old one not kept", async (t) => {
  const redis = await startRedis(t, { save: true });
  const before = await setUp(t, { store: redis.url });
  const pairs = await Promise.all(Array.from({ length: 5 }, (_, i) => before.login(`user-${i}`)));
  await before.gateway.gateway.close();
  const { gateway, visit, json, metric } = await setUp(t, { store: redis.url, session: cookieWith([NEW_SECRET]) });
  await until(async () => (await metric('coatcheck_session_feed{state="tracking"}')) === 1);
  for (const pair of pairs) await visit(pair);

  t.equal(await metric(logouts("signature")), 5);
  t.equal(await metric(logouts("lost")), 0, "the store has lost nothing");
  t.equal(await metric('coatcheck_cookie_verifications_total{secret="none"}'), 5);
  const { exchanges } = await json("/debug/exchanges?logout=signature&limit=1");
  t.match(exchanges[0], { session: { cookie: "bad-signature", logout: "signature" } });
  const trace = await json("/debug/explain", { trace: exchanges[0].traceId });
  t.match(JSON.stringify(trace), /secret/i);
  const explained = await json("/debug/explain", { url: "http://127.0.0.1/account", headers: { cookie: pairs[0] } });
  t.match(JSON.stringify(explained.steps), /no configured secret verifies/i);
  t.match(explained.advice, /secret/i, "and what to do about it");

  // The runbook: put the old secret back, behind the new one.
  await gateway.gateway.close();
  const mended = await setUp(t, { store: redis.url, session: cookieWith([NEW_SECRET, SECRET]) });
  for (const pair of pairs) t.match(JSON.parse((await mended.visit(pair)).body).headers, { "x-user-id": /^user-/ });
  t.equal(await mended.metric('coatcheck_cookie_verifications_total{secret="older"}'), 5);
  t.equal(await mended.metric(logouts("signature")), 0);
});
