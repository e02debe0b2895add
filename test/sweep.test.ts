/** What should not be in a store: found, told by handle, repaired on demand, and no live session the worse for it. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "ioredis";
import t from "tap";
import { handleOf, type Session, type SessionKey } from "../src/core/session.ts";
import type { SweepReport } from "../src/core/store.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { RedisStore, type RedisStoreOptions } from "../src/store/redis.ts";
import { SESSION_PREFIX, USER_PREFIX } from "../src/store/redis-scripts.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { startCluster } from "./support/redis-cluster.ts";
import { startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";

const HOUR_MS = 3_600_000;
const ABSOLUTE_TIMEOUT_MS = 12 * HOUR_MS;
const AT_ONCE = { settleMs: 0 };

async function connect(t: Teardown, url: string, options: Partial<RedisStoreOptions> = {}): Promise<RedisStore> {
  const store = new RedisStore(url, { absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS, ...options });
  await store.firstAnswer();
  t.teardown(() => store.close());
  return store;
}

let made = 0;
const newKey = (): SessionKey => `${(++made).toString(36).padStart(8, "0")}-`.padEnd(43, "k");

function newSession(userId: string | null, changes: Partial<Session> = {}): Session {
  const now = Date.now();
  const user = userId === null ? null : { id: userId };
  return { user, data: { cart: [1] }, createdAt: now, expiresAt: now + HOUR_MS, usedAt: now, version: 1, ...changes };
}

const counts = ({ findings }: SweepReport) =>
  Object.fromEntries(findings.map(({ what, count, fixed }) => [what, [count, fixed]]));

const examples = ({ findings }: SweepReport, what: string) =>
  findings.find((finding) => finding.what === what)?.examples;

const encrypted = new SessionCodec({ codec: "msgpack", encryptionKeys: ["a key that has 32 characters at least"] });
const settings: Record<string, Partial<RedisStoreOptions>> = {
  plain: {},
  "encrypted, a field for each attribute": { codec: encrypted, layout: "fields" },
};

for (const [name, options] of Object.entries(settings)) {
  t.test(`Redis, ${name}: each kind is found, then repaired, then gone`, async (t) => {
    const redis = await startRedis(t);
    const client = redis.client();
    const store = await connect(t, redis.url, options);
    const sessions = Array.from({ length: 30 }, () => newKey());
    for (const key of sessions) await store.create(key, newSession("ada"));
    t.same(counts(await store.sweep({ fix: false, ...AT_ONCE })), {}, "a sound store is clean");

    const [immortal = "", unlisted = "", forgotten = "", malformed = "", newer = ""] = sessions;
    await client.persist(SESSION_PREFIX + immortal);
    await client.zrem(`${USER_PREFIX}ada`, unlisted);
    await client.zadd(`${USER_PREFIX}ada`, Date.now() + 1_000, forgotten);
    await client.hset(SESSION_PREFIX + malformed, "d", "{");
    await client.hset(SESSION_PREFIX + newer, "d", Buffer.from([9, 1, 2]));
    await client.persist(SESSION_PREFIX + newer);
    const wrong = newKey();
    await client.set(SESSION_PREFIX + wrong, "text", "PX", HOUR_MS);
    const dead = [newKey(), newKey()];
    for (const key of dead) await client.zadd(`${USER_PREFIX}bob`, Date.now() + HOUR_MS, key);
    await client.set(`${USER_PREFIX}eve`, "text", "PX", HOUR_MS);
    await client.set("coatcheck:unknown-thing-of-somebody", "1");
    await client.set("somebody-else", "1");

    const dry = await store.sweep({ fix: false, ...AT_ONCE });
    const expected = {
      "sessions without a TTL": 1,
      "lists of a user's sessions without a TTL": 1,
      "other keys without a TTL": 1,
      "malformed sessions": 2,
      "sessions of a newer format": 1,
      "lists of a user's sessions that are none": 1,
      "entries of ended sessions in lists of a user's sessions": 2,
      "sessions that the list of their user lacks": 2,
    };
    t.same(counts(dry), Object.fromEntries(Object.entries(expected).map(([what, count]) => [what, [count, 0]])));
    t.equal(dry.looked, 30 + 1 + 1 + 1 + 1 + 1, "sessions, lists, and what is not ours to know; nobody else's");
    t.same(examples(dry, "sessions without a TTL"), [handleOf(immortal)]);
    t.same(examples(dry, "lists of a user's sessions without a TTL"), ["user bob"]);
    t.same(examples(dry, "other keys without a TTL"), ["coatcheck:unknown-thin…"]);
    const listed = examples(dry, "entries of ended sessions in lists of a user's sessions") ?? [];
    t.same(new Set(listed), new Set(dead.map(handleOf)));
    for (const key of [...sessions, ...dead, wrong]) t.notMatch(JSON.stringify(dry), key);
    t.equal(await client.pttl(SESSION_PREFIX + immortal), -1, "looking changes nothing");
    t.equal(await client.zcard(`${USER_PREFIX}bob`), 2);

    const fixed = await store.sweep({ fix: true, ...AT_ONCE });
    const leftAlone = {
      "malformed sessions": [2, 0],
      "sessions of a newer format": [1, 0],
      "lists of a user's sessions that are none": [1, 0],
    };
    const repaired = Object.fromEntries(Object.entries(expected).map(([what, count]) => [what, [count, count]]));
    t.same(counts(fixed), { ...repaired, ...leftAlone });
    for (const name of [SESSION_PREFIX + immortal, "coatcheck:unknown-thing-of-somebody"]) {
      const ttlMs = await client.pttl(name);
      t.ok(ttlMs > ABSOLUTE_TIMEOUT_MS - 60_000 && ttlMs <= ABSOLUTE_TIMEOUT_MS, `${ttlMs} ms`);
    }
    t.equal((await client.hgetBuffer(SESSION_PREFIX + malformed, "d"))?.toString(), "{");
    t.equal((await client.hgetBuffer(SESSION_PREFIX + newer, "d"))?.toString("hex"), "090102");
    t.equal(await client.pttl(SESSION_PREFIX + newer), -1, "a later version has rules of its own");
    t.equal(await client.pttl("somebody-else"), -1);
    t.equal(await client.zcard(`${USER_PREFIX}bob`), 0);
    t.equal((await store.byUser("ada")).length, 28, "all that can be read are listed again");
    t.same(counts(await store.sweep({ fix: false, ...AT_ONCE })), leftAlone);
  });
}

t.test("a TTL that is given lasts as long as the longest life in sight", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client();
  const [patient, hasty] = [
    await connect(t, redis.url),
    await connect(t, redis.url, { absoluteTimeoutMs: HOUR_MS / 2, codec: encrypted }),
  ];
  const key = newKey();
  await patient.create(key, newSession("ada", { expiresAt: Date.now() + 6 * HOUR_MS }));
  await client.persist(SESSION_PREFIX + key);
  await client.persist(`${USER_PREFIX}ada`);
  const report = await hasty.sweep({ fix: true, ...AT_ONCE });
  t.match(
    counts(report),
    { "malformed sessions": [1, 0], "sessions without a TTL": [1, 1] },
    "with the wrong keys even",
  );
  t.ok((await client.pttl(SESSION_PREFIX + key)) > 6 * HOUR_MS);
  t.ok((await client.pttl(`${USER_PREFIX}ada`)) > 11 * HOUR_MS);
  t.match(await patient.find(key), { outcome: "hit" });
});

t.test("a touch at the moment when a TTL is given counts, whichever comes first", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client();
  const store = await connect(t, redis.url);
  // So far away that there is time between its look and its change.
  const proxy = await startProxy(t, redis.port);
  proxy.delay(5);
  const far = redis.url.replace(String(redis.port), String(proxy.port));
  const sweeper = await connect(t, far, { absoluteTimeoutMs: HOUR_MS / 2 });
  const key = newKey();
  const session = newSession(null);
  await store.create(key, session);
  let end = session.expiresAt;
  let shortened = 0;
  for (let round = 0; round < 40; round++) {
    await client.persist(SESSION_PREFIX + key);
    end += HOUR_MS;
    await Promise.all([sweeper.sweep({ fix: true, ...AT_ONCE }), delay(2 * round).then(() => store.touch(key, end))]);
    if ((await client.pexpiretime(SESSION_PREFIX + key)) < end) shortened++;
  }
  t.equal(shortened, 0);
});

t.test("a login under way is no leftover", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client();
  const store = await connect(t, redis.url);
  const key = newKey();
  // What `create` does first.
  await client.zadd(`${USER_PREFIX}ada`, Date.now() + ABSOLUTE_TIMEOUT_MS, key);
  await client.pexpire(`${USER_PREFIX}ada`, ABSOLUTE_TIMEOUT_MS);
  const sweeping = store.sweep({ fix: true, settleMs: 1_000 });
  await delay(300);
  await store.create(key, newSession("ada"));
  t.same(counts(await sweeping), {});
  t.equal((await store.byUser("ada")).length, 1);
});

t.test("a cluster is swept on every node", async (t) => {
  const cluster = await startCluster(t);
  const store = await connect(t, cluster.url);
  const keys = Array.from({ length: 60 }, () => newKey());
  for (const key of keys) await store.create(key, newSession(`user-${key.slice(0, 8)}`));
  const client = cluster.masters.map((node) => node.client());
  const persisted = await Promise.all(client.map(persistAll));
  for (const each of persisted) t.ok(each > 0, "there are some on each node");
  const total = persisted.reduce((sum, each) => sum + each, 0);
  t.equal(total, 120);
  const report = await store.sweep({ fix: true, ...AT_ONCE });
  t.match(report, { looked: 120, complete: true });
  t.same(counts(report), {
    "sessions without a TTL": [60, 60],
    "lists of a user's sessions without a TTL": [60, 60],
  });
  t.equal(examples(report, "sessions without a TTL")?.length, 20, "some, not all");
  t.same((await store.sweep({ fix: true, ...AT_ONCE })).findings, []);
});

async function persistAll(client: Redis): Promise<number> {
  const names = await client.keys("coatcheck:*");
  for (const name of names) await client.persist(name);
  return names.length;
}

t.test(
  "logins, changes, touches and logouts while it sweeps: no live session is ended, shortened or unlisted",
  async (t) => {
    const redis = await startRedis(t);
    const store = await connect(t, redis.url);
    const sweeper = await connect(t, redis.url);
    const live = new Map<SessionKey, { userId: string; end: number }>();
    let over = false;
    const visitor = async (userId: string) => {
      const mine: SessionKey[] = [];
      while (!over) {
        const key = newKey();
        const session = newSession(userId);
        await store.create(key, session);
        mine.push(key);
        live.set(key, { userId, end: session.expiresAt });
        const end = session.expiresAt + HOUR_MS;
        await store.touch(key, end);
        live.set(key, { userId, end });
        await store.set(key, "cart", [2]);
        if (mine.length < 5) continue;
        const oldest = mine.shift() as SessionKey;
        live.delete(oldest);
        await store.destroy(oldest);
      }
    };
    const visitors = Array.from({ length: 8 }, (_, n) => visitor(`user-${n}`));
    const saboteur = redis.client();
    for (let round = 0; round < 15; round++) {
      // The fixes have something to fix, and meet traffic on the same keys.
      await persistAll(saboteur);
      const report = await sweeper.sweep({ fix: true, settleMs: 200 });
      t.equal(report.failure, undefined);
      t.ok(report.complete);
    }
    over = true;
    await Promise.all(visitors);
    t.ok(live.size >= 32, `${live.size} live, ${made} made`);
    for (const [key, { userId, end }] of live) {
      const found = await store.find(key);
      if (found.outcome !== "hit" || found.session.expiresAt !== end) t.fail(`${key}: ${JSON.stringify(found)}`);
      if ((await saboteur.pexpiretime(SESSION_PREFIX + key)) < end) t.fail(`${key} goes before its end`);
      const listed = (await store.byUser(userId)).some((entry) => entry.key === key);
      if (!listed) t.fail(`${key} is not listed`);
    }
    await sweeper.sweep({ fix: true, ...AT_ONCE });
    t.same((await sweeper.sweep({ fix: false, ...AT_ONCE })).findings, [], "and when all is quiet all is clean");
  },
);

t.test("many sessions: others are served in between, a signal stops it, an outage is told", async (t) => {
  const redis = await startRedis(t);
  const store = await connect(t, redis.url);
  const client = redis.client();
  const payload = new SessionCodec({ codec: "json", encryptionKeys: [] }).encode("", newSession(null));
  const now = Date.now();
  for (let i = 0; i < 8; i++) {
    const pipeline = client.pipeline();
    for (let j = 0; j < 1000; j++) {
      const name = SESSION_PREFIX + newKey();
      pipeline.hset(name, { v: 1, e: now + HOUR_MS, t: now, u: "", d: payload }).pexpire(name, HOUR_MS);
    }
    await pipeline.exec();
  }
  const steps: number[] = [];
  let over = false;
  const waits: number[] = [];
  const other = redis.client();
  const lag = monitorEventLoopDelay();
  lag.enable();
  const visiting = (async () => {
    while (!over) {
      const startedMs = performance.now();
      await other.ping();
      waits.push(performance.now() - startedMs);
      await delay(1);
    }
  })();
  const report = await store.sweep({ fix: true, onStep: (looked) => steps.push(looked) });
  over = true;
  await visiting;
  lag.disable();
  t.match(report, { looked: 8_000, findings: [], complete: true });
  t.ok(steps.length > 10, `${steps.length} steps`);
  const p99 = waits.sort((a, b) => a - b)[Math.floor(waits.length * 0.99)] ?? Infinity;
  // A busy machine keeps this process waiting too.
  const busyMs = lag.percentile(99) / 1e6;
  t.ok(p99 < 100 + busyMs, `others wait ${p99.toFixed(1)} ms at most, but for one in a hundred (${busyMs} for a turn)`);

  const stop = new AbortController();
  const stopped = await store.sweep({ fix: false, signal: stop.signal, onStep: () => stop.abort() });
  t.match(stopped, { complete: false });
  t.ok(stopped.looked > 0 && stopped.looked < 5000, "at the end of the step");

  const broken = store.sweep({ fix: false, onStep: () => void redis.kill() });
  t.match(await broken, { complete: false, failure: { code: "session_store_unavailable" } });
});

t.test("SQLite: what expired long ago, what cannot be read, and damage", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const store = new SqliteStore(file);
  t.teardown(() => store.close());
  const keys = Array.from({ length: 300 }, () => newKey());
  for (const key of keys) store.create(key, newSession("ada"));
  t.same((await store.sweep({ fix: false })).findings, []);

  const database = new DatabaseSync(file);
  const expired = database.prepare("UPDATE sessions SET expires_at = ? WHERE key < ?");
  expired.run(Date.now() - HOUR_MS, keys[100] ?? "");
  const [, , , malformed = "", newer = ""] = keys.slice(100);
  const broken = database.prepare("UPDATE sessions SET payload = ? WHERE key = ?");
  broken.run(Buffer.from("{"), malformed);
  broken.run(Buffer.from([9, 1]), newer);
  const leftAlone = { "malformed sessions": [1, 0], "sessions of a newer format": [1, 0] };
  const dry = await store.sweep({ fix: false });
  t.same(counts(dry), { "expired rows": [100, 0], ...leftAlone });
  t.match(store.check(), { detail: /^300 / }, "looking changes nothing");
  const steps: number[] = [];
  const fixed = await store.sweep({ fix: true, onStep: (looked) => steps.push(looked) });
  t.same(counts(fixed), { "expired rows": [100, 100], ...leftAlone });
  t.same(steps.slice(0, 5), [20, 40, 60, 80, 100], "in small steps");
  t.match(store.check(), { detail: /^200 / });
  t.same(examples(fixed, "malformed sessions"), [handleOf(malformed)]);

  database.close();
  store.close();
  const bytes = await readFile(file);
  const page = bytes.readUInt16BE(16);
  await writeFile(file, bytes.fill(0xff, 8 * page, 9 * page));
  const damaged = new SqliteStore(file);
  t.teardown(() => damaged.close());
  const report = await damaged.sweep({ fix: false });
  t.match(report.findings[0], { what: /^signs of damage/, count: Number, fixed: 0 });
  t.match(report.findings[0]?.examples[0], /page/i);
});

t.test("SQLite sweeps by itself, in small steps, what piled up while it was away", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  new SqliteStore(file).close();
  const database = new DatabaseSync(file);
  database.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    INSERT INTO sessions SELECT hex(randomblob(20)) || i, 1, 1000, 1, 'user' || (i % 7), 1, randomblob(300) FROM n`);
  const kept = newKey();
  const store = new SqliteStore(file);
  t.teardown(() => store.close());
  store.create(kept, newSession(null));
  const seen = new Set<number>();
  const rows = () => Number(database.prepare("SELECT count(*) AS n FROM sessions").get()?.n);
  await until(() => {
    seen.add(rows());
    return rows() === 1;
  });
  t.ok(seen.size > 10, `${seen.size} different counts on the way`);
  t.equal(store.find(kept).outcome, "hit");
  database.close();
});

t.test("the command: tells, repairs, and says so by its exit status", async (t) => {
  const redis = await startRedis(t, { password: "hunter2hunter2" });
  const client = redis.client();
  const folder = await temporaryFolder(t);
  const store = await connect(t, redis.url);
  const key = newKey();
  await store.create(key, newSession("ada\u001b[31m"));
  const file = join(folder, "coatcheck.yaml");
  await writeFile(file, `store: "${redis.url}"\nroutes: [{ upstream: "http://localhost:3000" }]\n`);
  const sweep = (...args: string[]) => run(t, ["sessions", "sweep", ...args]);
  t.match(await sweep("--config", file), {
    status: 0,
    stdout: "2 keys looked at.\nNothing was found.\n",
    stderr: /^looking through redis:\/\/:\*\*\*@127\.0\.0\.1:\d+\/0\n$/,
  });
  await client.persist(SESSION_PREFIX + key);
  await client.persist(`${USER_PREFIX}ada\u001b[31m`);
  const found = await sweep("--store", redis.url);
  t.match(found, { status: 1, stderr: /Nothing was changed; --fix repairs/ });
  t.equal(
    found.stdout,
    [
      "2 keys looked at.\n",
      "FOUND  FIXED  WHAT",
      ...(found.stdout.indexOf("lists") < found.stdout.indexOf("sessions without a TTL\n")
        ? ["    1      0  lists of a user's sessions without a TTL", "    1      0  sessions without a TTL\n"]
        : ["    1      0  sessions without a TTL", "    1      0  lists of a user's sessions without a TTL\n"]),
      ...(found.stdout.indexOf("lists") < found.stdout.indexOf("sessions without a TTL\n")
        ? [
            "lists of a user's sessions without a TTL:",
            "  user ada\u{fffd}[31m\n",
            "sessions without a TTL:",
            `  ${handleOf(key)}\n`,
          ]
        : [
            "sessions without a TTL:",
            `  ${handleOf(key)}\n`,
            "lists of a user's sessions without a TTL:",
            "  user ada\u{fffd}[31m\n",
          ]),
    ].join("\n"),
  );
  const fixed = await sweep("--config", file, "--fix");
  t.match(fixed, { status: 0, stdout: /^ {4}1 {6}1 {2}sessions without a TTL$/m, stderr: /^sweeping redis/ });
  t.match(await sweep("--config", file), { status: 0, stdout: /Nothing was found/ });
  for (const { stdout, stderr } of [found, fixed]) t.notMatch(stdout + stderr, /hunter2|kkkkkkkkkk/);

  const sqlite = `sqlite:${folder}/sessions.db`;
  new SqliteStore(`${folder}/sessions.db`).close();
  await writeFile(
    file,
    `store: { primary: "${redis.url}", fallback: "${sqlite}" }\nroutes: [{ upstream: "http://localhost:3000" }]\n`,
  );
  const both = await sweep("--config", file);
  t.match(both, { status: 0, stderr: /redis:.*\n.*sqlite:/ });
  t.equal(both.stdout, "2 keys looked at.\nNothing was found.\n0 keys looked at.\nNothing was found.\n");

  const cases: [args: string[], status: number, message: RegExp][] = [
    [[], 2, /say what to sweep: --config FILE or --store URL/],
    [["--config", file, "--store", sqlite], 2, /say what to sweep/],
    [["--store", sqlite, "x"], 2, /unexpected "x"/],
    [["--store", "memory:"], 1, /nothing to sweep/],
    [["--store", `sqlite:${folder}/none.db`], 1, /there is no file .*none\.db to sweep/],
  ];
  for (const [args, status, message] of cases)
    t.match(await sweep(...args), { status, stdout: "", stderr: message }, args.join(" "));
  await redis.kill();
  t.match(await sweep("--store", redis.url), {
    status: 1,
    stdout: "",
    stderr: /\*\*\*@127\.0\.0\.1:\d+\/0 does not answer/,
  });
});

t.test("the command, interrupted: what it found so far, and exit status 1", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client();
  const pipeline = client.pipeline();
  for (let i = 0; i < 5000; i++) pipeline.zadd(`${USER_PREFIX}${i}`, Date.now() + HOUR_MS, newKey());
  for (let i = 0; i < 5000; i++) pipeline.pexpire(`${USER_PREFIX}${i}`, HOUR_MS);
  await pipeline.exec();
  const running = command(t, ["sessions", "sweep", "--store", redis.url]);
  await until(async () => /cmdstat_scan/.test(await client.info("commandstats")));
  running.child.kill("SIGINT");
  t.equal(await running.ended, 1);
  t.match(running.stdout(), /^[\d,]+ keys looked at\./);
  t.match(running.stderr(), /Not all was looked at/);
});
