/**
 * "The store is down" is never "you are logged out" (oauth2-proxy #2503, #1784; connect-redis #373): 503 with
 * Retry-After, the cookie untouched, and everything goes on when the store is back.
 */
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import { type RunningGateway, startApp, startGateway, startRedis, type Teardown } from "./support/servers.ts";

const LOGIN = { method: "POST", body: '{"user":{"id":"1"}}' };

async function setUp(t: Teardown) {
  const redis = await startRedis(t);
  const app = await startApp(t);
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user", "cart"] },
    { match: { path: "/required" }, upstream: app.url, session: "required", onMissing: { redirect: "/login" } },
    { match: { path: "/none" }, upstream: app.url, session: "none" },
  ];
  const gateway = await startGateway(t, { routes, store: redis.url });
  return { redis, app, gateway };
}

async function login(gateway: RunningGateway): Promise<string> {
  const reply = await ask(`${gateway.url}/start`, LOGIN);
  return cookiePair(reply.setCookie[0]);
}

const ready = async (gateway: RunningGateway) => (await fetch(`${gateway.adminUrl}/readyz`)).status;

async function expectOutage(t: Tap, gateway: RunningGateway, cookie: string) {
  for (const path of ["/required", "/"]) {
    const reply = await ask(gateway.url + path, { headers: { cookie, accept: "text/html" } });
    t.equal(reply.status, 503, path);
    t.match(reply.headers["retry-after"], /^\d+$/);
    t.equal(reply.headers["proxy-status"], "coatcheck; error=session_store_unavailable");
    t.same(reply.setCookie, [], "the cookie is left alone");
  }
}

type Tap = Pick<typeof t, "equal" | "match" | "same">;

t.test("going down and coming back, without a restart", async (t) => {
  const { redis, gateway } = await setUp(t);
  const cookie = await login(gateway);
  await redis.kill();
  await until(async () => (await ready(gateway)) === 503);
  await expectOutage(t, gateway, cookie);

  t.equal((await ask(`${gateway.url}/none`, { headers: { cookie } })).status, 200, "routes without sessions go on");
  t.equal((await ask(`${gateway.url}/`)).status, 200, "visitors without a cookie go on");
  t.equal((await ask(`${gateway.url}/required`, { headers: { accept: "text/html" } })).status, 302);
  const forged = `session=${"A".repeat(43)}.${"B".repeat(43)}`;
  t.equal(
    (await ask(`${gateway.url}/`, { headers: { cookie: forged } })).status,
    200,
    "a bad signature needs no store",
  );

  t.match(await gateway.metrics(), /^coatcheck_session_store_up\{store="redis"\} 0$/m);
  t.match(await gateway.metrics(), /^coatcheck_session_resolutions_total\{outcome="unavailable",source="none"\} 2$/m);
  t.ok(gateway.logs.some((line) => line.event === "store.down"));

  await redis.start();
  await until(async () => (await ready(gateway)) === 200);
  const again = await login(gateway);
  t.equal((await ask(`${gateway.url}/required`, { headers: { cookie: again } })).status, 200);
  t.match(await gateway.metrics(), /^coatcheck_session_store_up\{store="redis"\} 1$/m);
  t.ok(gateway.logs.some((line) => line.event === "store.up"));
});

t.test("down at the start: the gateway starts, says so, and finds the store when it comes", async (t) => {
  const redis = await startRedis(t);
  await redis.kill();
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  t.equal(await ready(gateway), 503);
  t.equal((await fetch(`${gateway.adminUrl}/livez`)).status, 200);
  const reply = await ask(`${gateway.url}/start`, LOGIN);
  t.equal(reply.status, 503);
  await redis.start();
  await until(async () => (await ready(gateway)) === 200);
  t.match(await login(gateway), /^session=/);
});

t.test(
  "a login, a write and a logout fail loudly while the store is down: no cookie for what was not saved",
  async (t) => {
    const { redis, app, gateway } = await setUp(t);
    const cookie = await login(gateway);
    await redis.kill();
    const reply = await ask(`${gateway.url}/start`, LOGIN);
    t.equal(reply.status, 503);
    t.same(reply.setCookie, []);
    t.notMatch(reply.body, app.url, "nothing of the application's answer gets out");
    t.same((await gateway.exchanges())[0]?.writeBack, [{ command: "start", result: "failed" }]);
    t.match(await gateway.metrics(), /^coatcheck_write_back_total\{command="start",result="failed"\} 1$/m);
    const logout = await ask(`${gateway.url}/end`, { method: "POST", body: "this", headers: { cookie } });
    t.equal(logout.status, 503);
    t.same(logout.setCookie, [], "a logout that did not happen does not look like one");
  },
);

t.test("the store dies between the look-up and the save: the response becomes 503", async (t) => {
  const redis = await startRedis(t);
  const app = await startApp(t);
  const slow = await startGateway(t, { upstream: app.url, store: redis.url });
  const cookie = await login(slow);
  app.server.prependListener("request", () => redis.freeze());
  t.teardown(() => redis.thaw());
  const reply = await ask(`${slow.url}/set`, { method: "POST", body: '{"cart":[1]}', headers: { cookie } });
  t.equal(reply.status, 503);
  const line = slow.logs.findLast(({ event }) => event === "http.access");
  t.equal(line?.["coatcheck.session.outcome"], "hit");
});

t.test("a Redis that accepts and does not answer costs a bounded time, and then works again", async (t) => {
  const { redis, gateway } = await setUp(t);
  const cookie = await login(gateway);
  redis.freeze();
  const startedMs = performance.now();
  await expectOutage(t, gateway, cookie);
  t.ok(performance.now() - startedMs < 5_000);
  redis.thaw();
  await until(async () => (await ready(gateway)) === 200);
  const reply = await ask(`${gateway.url}/required`, { headers: { cookie } });
  t.equal(reply.status, 200, "the session was there all the time");
});
