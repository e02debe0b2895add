/** The lines of docs/redis.md that make a Redis user: a gateway can do everything with it, and no word is too much. */
import { execFileSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { StoreReport } from "../src/core/administration.ts";
import { storeContract } from "../src/store/contract.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SESSION_PREFIX } from "../src/store/redis-scripts.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { ROOT } from "./support/project.ts";
import { type RedisCluster, slotOf, startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import {
  type RedisServer,
  startApp,
  startGateway,
  startRedis,
  type Teardown,
  temporaryFolder,
} from "./support/servers.ts";

const HOUR_MS = 3_600_000;
const PASSWORD = "a-long-password";

const text = await readFile(join(ROOT, "docs/redis.md"), "utf8");
const blocks = [...text.matchAll(/^```sh\n(.*?)^```/gms)].map(([, code]) => code ?? "");
const lines = blocks.join("").replaceAll("\\\n", "").split("\n");
const line = (what: string | RegExp) => lines.find((each) => each.match(what)) ?? "";
const gatewayLine = line("SETUSER coatcheck reset");
const clusterLine = line("# in a cluster");
const sweepLine = line("# for coatcheck sessions sweep");
const sentinelLine = line("-p 26379 ACL SETUSER").replace(" -p 26379", "");
const rightsIn = (command: string) =>
  [...command.replaceAll("'", "").matchAll(/ (\+\S+)/g)].map(([, right]) => right ?? "");

/** Runs lines as they stand there. */
function shell(server: RedisServer, ...commands: readonly string[]): void {
  for (const command of commands) {
    const onServer = command.replace("redis-cli", `redis-cli -e -p ${server.port}`);
    execFileSync("sh", ["-c", onServer], { stdio: ["ignore", "pipe", "pipe"] });
  }
}

/** What the user was refused, command by command; looking for snapshots may be refused. */
async function refusals(server: RedisServer): Promise<string[]> {
  const log = (await server.call("ACL", "LOG")) as unknown[][];
  const entries = log.map((entry) => `${entry[3]} ${entry[7]} of ${entry[9]}`);
  return entries.filter((entry) => entry !== "command config|get of coatcheck");
}

const as = (url: string) => url.replace("://", `://coatcheck:${PASSWORD}@`);

async function contract(t: Teardown, url: string): Promise<void> {
  for (const layout of ["blob", "fields"] as const) {
    let now = Date.now();
    const store = new RedisStore(url, { absoluteTimeoutMs: 12 * HOUR_MS, layout, now: () => now });
    t.teardown(() => store.close());
    await store.firstAnswer();
    const advance = (ms: number) => {
      now += ms;
    };
    for (const { run } of storeContract) await run({ store, now: () => now, advance });
  }
}

/** A day in the life of two gateways and of those who run them. */
async function everything(t: Test, url: string): Promise<void> {
  const app = await startApp(t);
  const folder = await temporaryFolder(t);
  const session = { cookie: { name: "session", secure: false }, layout: "fields", maxPerUser: 3 };
  const settings = {
    upstream: app.url,
    store: url,
    session: { ...session, cookie: { ...session.cookie, secrets: ["s".repeat(32)] } },
  };
  const [one, two] = [await startGateway(t, settings), await startGateway(t, settings)];
  for (const gateway of [one, two])
    await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  const login = async (id: string, cookie?: string) => {
    const body = JSON.stringify({ user: { id }, data: { cart: [] } });
    const headers = cookie === undefined ? {} : { cookie };
    return cookiePair((await ask(`${one.url}/start`, { method: "POST", body, headers })).setCookie[0]);
  };
  const userSeen = async (cookie: string) =>
    JSON.parse((await ask(two.url, { headers: { cookie } })).body).headers["x-user-id"];

  const first = await login("ada");
  t.equal(await userSeen(first), "ada");
  const set = await ask(`${two.url}/set`, {
    method: "POST",
    body: '{"cart":[1],"theme":null}',
    headers: { cookie: first },
  });
  t.equal(set.status, 200);
  const rotated = await login("ada", first);
  t.equal(await userSeen(rotated), "ada");
  for (let i = 0; i < 4; i++) await login("ada");
  const { sessions } = JSON.parse((await ask(`${one.adminUrl}/sessions?user=ada`)).body);
  const [newest] = sessions;
  t.ok(sessions.length >= 3);
  t.equal((await ask(`${one.adminUrl}/sessions/${newest.handle}`)).status, 200);
  t.equal((await ask(`${one.adminUrl}/sessions/${newest.handle}`, { method: "DELETE" })).status, 200);
  const bob = await login("bob");
  await ask(`${one.url}/end`, { method: "POST", body: "this", headers: { cookie: bob } });
  t.equal(await userSeen(bob), "");
  const eve = await login("eve");
  await ask(`${one.url}/end`, { method: "POST", body: "all", headers: { cookie: eve } });
  t.equal(await userSeen(eve), "");
  t.equal((await ask(`${one.adminUrl}/sessions?user=ada`, { method: "DELETE" })).status, 200);
  const report = JSON.parse((await ask(`${one.adminUrl}/store/check`, { method: "POST" })).body) as StoreReport;
  t.ok(report.ok);
  t.notMatch(report.warnings.join("\n"), /lacks|not known without \+info|let us in/);

  const sqlite = new SqliteStore(join(folder, "old.db"));
  const now = Date.now();
  const old = { user: { id: "old" }, data: {}, createdAt: now, expiresAt: now + HOUR_MS, usedAt: now, version: 1 };
  sqlite.create("o".repeat(43), old);
  sqlite.close();
  const file = join(folder, "coatcheck.yaml");
  await writeFile(file, `store: "${url}"\nroutes: [{ upstream: "http://localhost:3000" }]\n`);
  const moved = await run(t, [
    "sessions",
    "migrate",
    "--from",
    `sqlite:${folder}/old.db`,
    "--to",
    url,
    "--config",
    file,
  ]);
  t.match(moved, { status: 0, stdout: /^copied +1$/m });
  t.match(await run(t, ["sessions", "sweep", "--config", file, "--fix"]), { status: 0 });
}

t.test("one server: nothing is refused that a gateway, its commands or the contract ask for", async (t) => {
  const redis = await startRedis(t);
  shell(redis, gatewayLine, sweepLine);
  const url = `${as(redis.url).slice(0, -1)}3`;
  await everything(t, url);
  await contract(t, url);
  t.same(await refusals(redis), []);
});

t.test("behind Sentinels", async (t) => {
  const group = await startSentinel(t);
  for (const server of group.servers) shell(server, gatewayLine, sweepLine);
  await everything(t, as(group.url));
  await contract(t, as(group.url));
  for (const server of group.servers) t.same(await refusals(server), []);
});

t.test("Sentinels with users of their own, before and after a failover", async (t) => {
  const group = await startSentinel(t);
  for (const server of group.servers) shell(server, gatewayLine);
  for (const sentinel of group.sentinels) shell(sentinel, sentinelLine);
  const url = `${as(group.url)}?sentinelUsername=coatcheck&sentinelPassword=${PASSWORD}`;
  const store = new RedisStore(url, { absoluteTimeoutMs: 12 * HOUR_MS });
  t.teardown(() => store.close());
  await store.firstAnswer();
  t.notMatch((await store.inspect()).warnings.join("\n"), /of no use|quorum|lacks/);
  await group.failover();
  await until(async () => (await store.check()).ok);
  t.notMatch((await store.inspect()).warnings.join("\n"), /of no use|quorum|lacks/);
  for (const server of [...group.servers, ...group.sentinels]) t.same(await refusals(server), []);
});

t.test("a cluster, with slots that move", async (t) => {
  const cluster = await startCluster(t, { replicas: 1 });
  for (const node of cluster.nodes) shell(node, gatewayLine, clusterLine, sweepLine);
  await everything(t, as(cluster.url));
  await contract(t, as(cluster.url));
  await useMovingSlot(t, cluster);
  for (const node of cluster.nodes) t.same(await refusals(node), []);
});

async function useMovingSlot(t: Test, cluster: RedisCluster): Promise<void> {
  const store = new RedisStore(as(cluster.url), { absoluteTimeoutMs: 12 * HOUR_MS });
  t.teardown(() => store.close());
  await store.firstAnswer();
  const key = "moving".padEnd(43, "x");
  const now = Date.now();
  await store.create(key, { user: null, data: {}, createdAt: now, expiresAt: now + HOUR_MS, usedAt: now, version: 1 });
  const from = await cluster.ownerOf(SESSION_PREFIX + key);
  const to = cluster.masters.find((node) => node !== from) ?? from;
  const migration = await cluster.beginMigration(slotOf(SESSION_PREFIX + key), from, to);
  await migration.move(10);
  t.equal((await store.find(key)).outcome, "hit", "by ASK");
  await migration.finish();
}

t.test("each right is needed: without it the check names it, or what relies on it is told", async (t) => {
  const redis = await startRedis(t);
  const inspect = async () => {
    const store = new RedisStore(as(redis.url), { absoluteTimeoutMs: 12 * HOUR_MS });
    await store.firstAnswer();
    try {
      return (await store.inspect()).warnings.join("\n");
    } finally {
      store.close();
    }
  };
  // For looks alone, and for databases other than 0.
  const unseen = ["+client|setname", "+select"];
  const rights = rightsIn(gatewayLine);
  t.ok(rights.length > 25, rights.join(" "));
  for (const right of rights.filter((each) => !unseen.includes(each))) {
    shell(redis, gatewayLine);
    await redis.call("ACL", "SETUSER", "coatcheck", right.replace("+", "-"));
    const warnings = await inspect();
    t.match(warnings, `the Redis user coatcheck lacks ${right}: `, right);
    t.equal(await redis.call("DBSIZE"), 0, "and nothing is left behind");
  }
  for (const [rest, missing] of [
    [["~other:*", "&coatcheck:*", "&__redis__:invalidate"], "~coatcheck:*"],
    [["~coatcheck:*", "&__redis__:invalidate"], "&coatcheck:*"],
    [["~coatcheck:*", "&coatcheck:*"], "&__redis__:invalidate"],
  ] as const) {
    shell(redis, gatewayLine);
    await redis.call("ACL", "SETUSER", "coatcheck", "resetkeys", "resetchannels", ...rest);
    t.match(await inspect(), `lacks ${missing}`, missing);
  }
  shell(redis, gatewayLine);
  t.notMatch(await inspect(), "lacks");

  await redis.call("ACL", "SETUSER", "coatcheck", "-select");
  const store = new RedisStore(`${as(redis.url).slice(0, -1)}3`, { absoluteTimeoutMs: 12 * HOUR_MS });
  t.teardown(() => store.close());
  await store.firstAnswer();
  t.ok((await refusals(redis)).includes("command select of coatcheck"));
});

t.test("what the page advises ends the warnings that it speaks of", async (t) => {
  const redis = await startRedis(t, { args: ["--maxmemory", "2mb", "--maxmemory-policy", "volatile-lru"] });
  const store = new RedisStore(redis.url, { absoluteTimeoutMs: 12 * HOUR_MS });
  t.teardown(() => store.close());
  await store.firstAnswer();
  t.match((await store.inspect()).warnings, [/volatile-lru/, /nothing is written to disk/]);
  const advice = lines.filter((each) => each.startsWith("redis-cli CONFIG"));
  t.equal(advice.length, 3);
  shell(redis, ...advice);
  t.same((await store.inspect()).warnings, []);
});

t.test("each right of a cluster is needed", async (t) => {
  const cluster = await startCluster(t);
  const rights = rightsIn(clusterLine);
  t.equal(rights.length, 3);
  for (const right of rights) {
    for (const node of cluster.nodes) {
      shell(node, gatewayLine, clusterLine);
      await node.call("ACL", "SETUSER", "coatcheck", right.replace("+", "-"));
    }
    const store = new RedisStore(as(cluster.url), { absoluteTimeoutMs: 12 * HOUR_MS });
    await store.firstAnswer();
    const { warnings } = await store.inspect();
    store.close();
    t.match(warnings.join("\n"), right.replace("+", ""), right);
  }
});
