/** Why people are being logged out: each way to lose a session has a reason of its own, counted once a visitor. */
import { createHash } from "node:crypto";
import t from "tap";
import { LOGOUT_REASONS } from "../src/core/exchange.ts";
import type { SessionKey } from "../src/core/session.ts";
import { Logouts } from "../src/session/logouts.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import {
  feedState,
  type GatewaySettings,
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  type Teardown,
  temporaryFolder,
} from "./support/servers.ts";

const cookie = { name: "session", secure: false, secrets: [SECRET] };

async function setUp(t: Teardown, settings: GatewaySettings, now?: () => number) {
  const app = await startApp(t);
  const gateway = await startGateway(
    t,
    { upstream: app.url, session: { cookie }, ...settings },
    { ...(now && { now }) },
  );
  const login = async (user: string) => {
    const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id: user } }) });
    return cookiePair(reply.setCookie[0]);
  };
  const visit = (pair: string, path = "/") => ask(gateway.url + path, { method: "GET", headers: { cookie: pair } });
  return { app, gateway, login, visit };
}

async function counted(gateway: RunningGateway): Promise<Record<string, number>> {
  const metrics = await gateway.metrics();
  const counts = [...metrics.matchAll(/^coatcheck_session_logouts_total\{reason="(\w+)"\} (\d+)$/gm)];
  return Object.fromEntries(
    counts.filter(([, , count]) => count !== "0").map(([, reason, count]) => [reason, Number(count)]),
  );
}

const keyOf = (pair: string): SessionKey =>
  createHash("sha256")
    .update(pair.slice("session=".length).split(".")[0] ?? "")
    .digest("base64url");

t.test(
  "Redis: ended here or by another instance, evicted, damaged, of a later version, or with a lost secret",
  async (t) => {
    const redis = await startRedis(t);
    const { gateway, login, visit } = await setUp(t, { store: redis.url });
    const { gateway: other } = await setUp(t, { store: redis.url });
    await until(async () => (await feedState(gateway)) === "tracking");
    const metrics = await gateway.metrics();
    for (const reason of LOGOUT_REASONS)
      t.match(
        metrics,
        `coatcheck_session_logouts_total{reason="${reason}"} 0`,
        "from the beginning, so that it can rise",
      );

    const key = (pair: string) => `coatcheck:session:${keyOf(pair)}`;
    const [left, revoked, evicted, damaged, newer] = await Promise.all(["1", "2", "3", "4", "5"].map(login));
    await ask(`${gateway.url}/end`, { method: "POST", body: "this", headers: { cookie: left ?? "" } });
    await fetch(`${other.adminUrl}/sessions?user=2`, { method: "DELETE" });
    await redis.call("UNLINK", key(evicted ?? ""));
    await redis.call("HSET", key(damaged ?? ""), "d", "\x01{");
    await redis.call("HSET", key(newer ?? ""), "d", "\x08{}");
    await until(async () => (await visit(revoked ?? "")).status === 200 && (await counted(gateway)).ended === 1);
    for (const pair of [left, evicted, damaged, newer, `${await login("6")}x`, await login("7")]) {
      for (let i = 0; i < 3; i++) await visit(pair ?? "");
    }
    const forged = `session=${"a".repeat(43)}.${"b".repeat(43)}`;
    for (let i = 0; i < 3; i++) await visit(forged);
    t.same(await counted(gateway), { ended: 2, lost: 1, malformed: 1, newer: 1, signature: 1 });
    const [exchange] = await gateway.exchanges();
    t.equal(exchange?.session.logout, "signature", "the record tells as well");
    t.match(await gateway.metrics(), /^coatcheck_cookie_verifications_total\{secret="none"\} 3$/m);
  },
);

t.test(
  "SQLite: expired, bound to another client, two cookies that live; a visitor without a cookie is none of it",
  async (t) => {
    let ahead = 0;
    const store = `sqlite:${await temporaryFolder(t)}/sessions.db`;
    const session = { cookie, bind: "user-agent", onMismatch: "deny", idleTimeout: "10m" };
    const { gateway, login, visit } = await setUp(t, { store, session }, () => Date.now() + ahead);
    await visit("other=1");
    await visit("session=short");
    t.same(await counted(gateway), {});
    const pair = await login("1");
    await ask(gateway.url, { headers: { cookie: pair, "user-agent": "another" } });
    await visit(`${await login("2")}; ${await login("3")}`);
    t.same(await counted(gateway), { mismatch: 1, ambiguous: 1 });
    const late = await login("4");
    ahead = 11 * 60_000;
    await visit(late);
    t.same(await counted(gateway), { mismatch: 1, ambiguous: 1, expired: 1 });
  },
);

t.test("an outage logs nobody out", async (t) => {
  const redis = await startRedis(t);
  const { gateway, login, visit } = await setUp(t, { store: redis.url });
  const pair = await login("1");
  await redis.kill();
  t.equal((await visit(pair)).status, 503);
  t.same(await counted(gateway), {});
});

t.test("cookies by the secret that verified them", async (t) => {
  const NEW_SECRET = "a new secret that has 32 characters";
  const store = `sqlite:${await temporaryFolder(t)}/sessions.db`;
  const before = await setUp(t, { store });
  const pair = await before.login("1");
  await before.gateway.gateway.close();
  const session = { cookie: { ...cookie, secrets: [NEW_SECRET, SECRET] } };
  const { gateway, login, visit } = await setUp(t, { store, session });
  await visit(pair);
  await visit(await login("2"));
  const metrics = await gateway.metrics();
  t.match(metrics, /^coatcheck_cookie_verifications_total\{secret="older"\} 1$/m);
  t.match(metrics, /^coatcheck_cookie_verifications_total\{secret="first"\} 1$/m);
});

t.test("what is remembered is bounded, and a visitor counts again after ten minutes", (t) => {
  let now = 0;
  const reasons: string[] = [];
  const logouts = new Logouts({ now: () => now, onLoggedOut: (reason) => reasons.push(reason) });
  const cookieOf = { verdict: "valid", keys: [], secret: 0, others: undefined } as const;
  const notice = (key: string) => logouts.notice(cookieOf, { outcome: "unknown", key });
  logouts.ended("first");
  for (let i = 0; i < 49_999; i++) logouts.ended(String(i));
  t.equal(notice("first"), "ended");
  logouts.ended("one more");
  t.equal(notice("first"), "lost", "the oldest is forgotten");
  t.same(reasons, ["ended"], "counted once");
  now = 600_000;
  notice("first");
  t.same(reasons, ["ended", "lost"]);
  for (let i = 0; i < 10_000; i++) notice(`k${i}`);
  notice("first");
  t.equal(reasons.length, 10_003);
  t.end();
});

t.test("how many sessions there are: exact in SQLite, an estimate beyond a thousand keys in Redis", async (t) => {
  const redis = await startRedis(t);
  const { gateway, login } = await setUp(t, { store: redis.url });
  await login("1");
  const client = redis.client();
  const many = client.pipeline();
  for (let i = 0; i < 4000; i++) many.hset(`coatcheck:session:${i}`, "v", "1");
  for (let i = 0; i < 2000; i++) many.set(`else:${i}`, "1");
  await many.exec();
  const again = await setUp(t, { store: redis.url });
  const sessionsOf = async (gateway: RunningGateway) =>
    Number(/^coatcheck_session_store_sessions\{store="\w+"\} (\d+)$/m.exec(await gateway.metrics())?.[1]);
  t.equal(await sessionsOf(gateway), 0);
  const estimate = await until(() => sessionsOf(again.gateway));
  t.ok(Math.abs(estimate - 4001) < 500, `${estimate} of 4001`);

  const file = `${await temporaryFolder(t)}/sessions.db`;
  const sqlite = new SqliteStore(file);
  const now = Date.now();
  const session = { user: null, data: {}, createdAt: now, usedAt: now, version: 1 };
  sqlite.create("a".repeat(43), { ...session, expiresAt: now + 60_000 });
  sqlite.create("b".repeat(43), { ...session, expiresAt: now - 1 });
  t.equal(sqlite.count(), 1);
  sqlite.close();
});
