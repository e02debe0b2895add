/** Moving house: from any store to any other, while things happen. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { Redis } from "ioredis";
import t from "tap";
import { CommandError, UsageError } from "../src/cli/arguments.ts";
import { renderCounts, renderProgress } from "../src/cli/migrate.ts";
import { Progress } from "../src/cli/progress.ts";
import { runSessions } from "../src/cli/sessions.ts";
import { ConfigError } from "../src/config/problems.ts";
import { forEachAtOnce } from "../src/core/concurrency.ts";
import { storeUnavailable } from "../src/core/errors.ts";
import { handleOf, NEWER, type Session, type SessionKey } from "../src/core/session.ts";
import type { ScanOptions, SessionStore } from "../src/core/store.ts";
import { FallbackStore } from "../src/store/fallback.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { type MigrationResult, migrate } from "../src/store/migrate.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { freePort, startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";

const SESSIONS = Number(process.env.MIGRATE_SESSIONS ?? 2_000);
const AS_SHOWN = SESSIONS.toLocaleString("en-US");
const HOUR_MS = 3_600_000;
const ABSOLUTE_TIMEOUT_MS = 12 * HOUR_MS;

/** More than a request has: what is measured here is not the speed of the machine. */
const PATIENT = "commandTimeout=5s&totalTimeout=10s";

const makers: Record<string, (t: Teardown) => Promise<SessionStore>> = {
  memory: async () => new MemoryStore(),
  sqlite: async (t) => new SqliteStore(join(await temporaryFolder(t), "sessions.db")),
  redis: async (t) => connect(t, `${(await startRedis(t)).url}?${PATIENT}`),
};

async function connect(t: Teardown, url: string): Promise<RedisStore> {
  const store = new RedisStore(url, { absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS });
  await store.firstAnswer();
  t.teardown(() => store.close());
  return store;
}

let made = 0;
const newKey = (): SessionKey => `${(++made).toString(36).padStart(8, "0")}-`.padEnd(43, "k");

/** One of each kind: with a user or without, fresh or long in use, large or small, alone or with siblings. */
function newSession(now: number, changes: Partial<Session> = {}): Session {
  made++;
  return {
    user: made % 3 === 0 ? null : { id: `user-${made % 700}`, name: "Zoë", roles: ["a", "b"], level: { deep: [null] } },
    data: { cart: [made], note: "Grüße".repeat(made % 40) },
    createdAt: now - (made % 1000) * 1000,
    expiresAt: now + HOUR_MS + made,
    usedAt: now - (made % 100),
    version: 1 + (made % 5),
    ...(made % 7 === 0 && { siblings: [newKey(), newKey()] }),
    ...(made % 11 === 0 && { client: { address: "192.0.2.1", userAgent: "Browser/1" } }),
    ...(made % 13 === 0 && { retiresAt: now + HOUR_MS }),
    ...changes,
  };
}

/** @returns what was put, by key. */
async function fill(store: SessionStore, count: number): Promise<Map<SessionKey, Session>> {
  const sessions = new Map<SessionKey, Session>();
  const now = Date.now();
  for (let i = 0; i < count; i++) sessions.set(newKey(), newSession(now));
  await forEachAtOnce([...sessions], 200, async ([key, session]) => {
    assert.equal(await store.create(key, session), "created");
  });
  return sessions;
}

async function expectSame(store: SessionStore, sessions: ReadonlyMap<SessionKey, Session>): Promise<void> {
  await forEachAtOnce([...sessions], 200, async ([key, session]) => {
    const found = await store.find(key);
    assert.deepEqual(found, { outcome: "hit", session }, handleOf(key));
  });
}

async function allKeys(store: SessionStore): Promise<Set<SessionKey>> {
  const keys = new Set<SessionKey>();
  let cursor: string | undefined;
  do {
    const page = await store.scan({ limit: 1000, ...(cursor !== undefined && { cursor }) });
    for (const key of page.keys) keys.add(key);
    cursor = page.cursor;
  } while (cursor !== undefined);
  return keys;
}

const NOTHING = { copied: 0, present: 0, ended: 0, malformed: 0, newer: 0, refused: 0 };

for (const [source, makeSource] of Object.entries(makers)) {
  for (const [target, makeTarget] of Object.entries(makers)) {
    t.test(`${source} to ${target}: ${SESSIONS} sessions, stopped again and again, and gone on with`, async (t) => {
      const [from, to] = [await makeSource(t), await makeTarget(t)];
      t.teardown(() => Promise.all([from.close(), to.close()]));
      const sessions = await fill(from, SESSIONS);
      for (let i = 0; i < 20; i++) await from.create(newKey(), newSession(Date.now(), { expiresAt: Date.now() - 1 }));

      let runs = 0;
      let copied = 0;
      let result: MigrationResult | undefined;
      do {
        const stop = new AbortController();
        let pages = 0;
        const onPage = () => {
          if (++pages === 2) stop.abort();
        };
        result = await migrate({
          from,
          to,
          cursor: result?.cursor,
          signal: stop.signal,
          onPage,
          pageSize: SESSIONS / 10,
        });
        assert.equal(result.failure, undefined);
        copied += result.copied;
        runs++;
      } while (!result.complete);
      t.ok(runs >= 4, `${runs} runs`);
      t.equal(copied, SESSIONS);
      await expectSame(to, sessions);
      t.equal((await allKeys(to)).size, SESSIONS, "the expired ones stayed behind");

      const again = await migrate({ from, to });
      t.match(again, { ...NOTHING, present: Number, ended: Number, complete: true });
      t.ok(again.present >= SESSIONS);
      t.equal(again.copied, 0);
    });
  }
}

t.test("what is in the target stays as it is, and users find their sessions there", async (t) => {
  const [from, to] = [new MemoryStore(), await (makers.redis as NonNullable<typeof makers.redis>)(t)];
  t.teardown(() => from.close());
  const now = Date.now();
  const [both, one] = [newKey(), newKey()];
  await from.create(both, newSession(now, { user: { id: "ada" }, data: { at: "source" } }));
  await from.create(one, newSession(now, { user: { id: "ada" }, data: {} }));
  await to.create(both, newSession(now, { user: { id: "ada" }, data: { at: "target" } }));
  t.match(await migrate({ from, to }), { ...NOTHING, copied: 1, present: 1, complete: true });
  t.same(await to.getAll(both), { at: "target" });
  t.same(new Set((await to.byUser("ada")).map(({ key }) => key)), new Set([both, one]));
});

for (const [source, makeSource] of Object.entries(makers)) {
  t.test(`from ${source} with writes going on in both: nothing lost, nothing that was ended comes back`, async (t) => {
    const [from, to] = [await makeSource(t), await (makers.redis as NonNullable<typeof makers.redis>)(t)];
    t.teardown(() => from.close());
    const sessions = await fill(from, SESSIONS);
    const keys = [...sessions.keys()];
    const [ended, changed, begun] = [new Set<SessionKey>(), new Set<SessionKey>(), new Set<SessionKey>()];
    let migrating = true;
    // What gateways do that use the target and fall back on the source: end in the source first, then in the target.
    const writer = (async () => {
      for (let i = 0; migrating && i < keys.length; i++) {
        const key = keys[(i * 977) % keys.length] as SessionKey;
        if (i % 3 === 0) {
          ended.add(key);
          await from.destroy(key);
          await to.destroy(key);
        } else if (i % 3 === 1 && (await to.set(key, "changed", i)).outcome === "committed") {
          changed.add(key);
        } else {
          const fresh = newKey();
          begun.add(fresh);
          await to.create(fresh, newSession(Date.now()));
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    const result = await migrate({ from, to, pageSize: SESSIONS / 25 });
    migrating = false;
    await writer;
    t.match(result, { complete: true, malformed: 0, newer: 0, refused: 0 });
    t.ok(ended.size > 20 && begun.size > 20, `${ended.size} ended, ${changed.size} changed, ${begun.size} begun`);
    const there = await allKeys(to);
    for (const key of ended) assert.ok(!there.has(key), "an ended session came back");
    for (const key of begun) assert.ok(there.has(key), "a new session was lost");
    for (const key of keys) assert.ok(ended.has(key) || there.has(key), "a session was not copied");
    t.match(await migrate({ from, to }), { copied: 0, complete: true });
    for (const key of changed) if (!ended.has(key)) assert.notEqual(await to.get(key, "changed"), undefined);
    t.pass("every session is where it should be");
  });
}

t.test(
  "while gateways use the new store and fall back on the old one: nobody is logged out, nobody comes back",
  async (t) => {
    const [from, to] = [
      await (makers.redis as NonNullable<typeof makers.redis>)(t),
      await (makers.redis as NonNullable<typeof makers.redis>)(t),
    ];
    const gateway = new FallbackStore(to, from);
    const sessions = await fill(from, SESSIONS);
    const keys = [...sessions.keys()];
    const ended = new Set<SessionKey>();
    let migrating = true;
    // They read what is being copied at this moment, from the end and from the beginning of the copy.
    const visitor = async (every: number): Promise<void> => {
      for (let i = 0; migrating; i++) {
        const key = keys[(i * every) % keys.length] as SessionKey;
        if (i % 5 === 0) {
          ended.add(key);
          await gateway.destroy(key);
        } else if (!ended.has(key)) {
          const { outcome } = await gateway.find(key);
          assert.ok(outcome === "hit" || ended.has(key), "somebody was logged out");
        }
      }
    };
    const visitors = Promise.all([visitor(1), visitor(977), visitor(4999)]);
    const result = await migrate({ from, to, pageSize: SESSIONS / 50 });
    migrating = false;
    await visitors;
    t.match(result, { complete: true, refused: 0, malformed: 0 });
    t.ok(ended.size > 20 && result.copied > 100, `${ended.size} ended, ${result.copied} copied`);
    for (const key of keys) assert.equal((await to.find(key)).outcome === "hit", !ended.has(key), handleOf(key));
  },
);

t.test("a session that is ended between its reading and its copy does not stay in the target", async (t) => {
  class EndsWhileRead extends MemoryStore {
    override find(key: SessionKey) {
      const found = super.find(key);
      this.destroy(key);
      return found;
    }
  }
  const [from, to] = [new EndsWhileRead(), new MemoryStore()];
  t.teardown(() => [from.close(), to.close()]);
  await fill(from, 10);
  t.match(await migrate({ from, to }), { ...NOTHING, ended: 10, complete: true });
  t.equal((await allKeys(to)).size, 0);
});

t.test("what cannot be read is counted and left alone", async (t) => {
  const redis = await startRedis(t);
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  const from = await connect(t, redis.url);
  const sessions = await fill(from, 30);
  const [broken, ...others] = [...sessions.keys()];
  await client.hset(`coatcheck:session:${broken}`, "d", "{");
  class Old extends MemoryStore {
    override find(key: SessionKey) {
      return key === others[0] ? NEWER : super.find(key);
    }
  }
  const [old, to] = [new Old(), new MemoryStore()];
  t.teardown(() => [old.close(), to.close()]);
  t.match(await migrate({ from, to: old }), { ...NOTHING, copied: 29, malformed: 1, complete: true });
  t.match(await migrate({ from: old, to }), { ...NOTHING, copied: 28, newer: 1, complete: true });
});

t.test("a target that is full refuses, and the migration stops with the reason and goes on later", async (t) => {
  const redis = await startRedis(t);
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  const [from, to] = [new MemoryStore(), await connect(t, `${redis.url}?${PATIENT}`)];
  t.teardown(() => from.close());
  const sessions = await fill(from, 2000);
  await client.config("SET", "maxmemory", "1");
  const full = await migrate({ from, to });
  t.match(full, { complete: false, copied: 0, refusal: /OOM/, failure: /OOM/ });
  t.ok(full.refused < 500, `${full.refused} were tried`);
  await client.config("SET", "maxmemory", "0");
  t.match(await migrate({ from, to, cursor: full.cursor }), { complete: true, copied: 2000 });
  await expectSame(to, sessions);
});

t.test("a target that refuses one session takes the others", async (t) => {
  class Picky extends MemoryStore {
    override create(key: SessionKey, session: Session) {
      if (Object.hasOwn(session.data, "bad")) throw storeUnavailable(new Error("too strange for me"));
      return super.create(key, session);
    }
  }
  const [from, to] = [new MemoryStore(), new Picky()];
  t.teardown(() => [from.close(), to.close()]);
  const sessions = await fill(from, 20);
  await from.create(newKey(), newSession(Date.now(), { data: { bad: true } }));
  t.match(await migrate({ from, to }), { ...NOTHING, copied: 20, refused: 1, complete: true, refusal: /too strange/ });
  await expectSame(to, sessions);
});

for (const which of ["source", "target"] as const) {
  t.test(`the ${which} dies in the middle: it stops, and goes on where it was when that is back`, async (t) => {
    const redis = await startRedis(t);
    const store = await connect(t, redis.url);
    const other = new MemoryStore();
    t.teardown(() => other.close());
    const [from, to] = which === "source" ? [store, other] : [other, store];
    const sessions = await fill(from, 2000);
    let frozen = false;
    const result = await migrate({
      from,
      to,
      onPage: ({ copied }) => {
        if (frozen || copied < 500) return;
        frozen = true;
        redis.freeze();
      },
    });
    t.match(result, { complete: false, failure: { code: "session_store_unavailable" } });
    t.type(result.cursor, "string");
    t.ok(result.copied >= 500 && result.copied < 2000, `${result.copied} were copied`);
    redis.thaw();
    await until(async () => (await store.check()).ok);
    t.match(await migrate({ from, to, cursor: result.cursor }), { complete: true, malformed: 0, refused: 0 });
    await expectSame(to, sessions);
  });
}

t.test("a hiccup is not the end", async (t) => {
  class Hiccup extends MemoryStore {
    failures = 2;
    override scan(options: ScanOptions) {
      if (this.failures-- > 0) throw storeUnavailable(new Error("a moment please"));
      return super.scan(options);
    }
  }
  const [from, to] = [new Hiccup(), new MemoryStore()];
  t.teardown(() => [from.close(), to.close()]);
  await fill(from, 3);
  t.match(await migrate({ from, to }), { ...NOTHING, copied: 3, complete: true });
});

t.test("on the command line: SQLite to Redis, with a password that nobody gets to see", async (t) => {
  const redis = await startRedis(t);
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  await client.acl("SETUSER", "mover", "on", ">hunter2hunter2", "~*", "&*", "+@all");
  const file = join(await temporaryFolder(t), "sessions.db");
  const source = new SqliteStore(file);
  await fill(source, SESSIONS);
  source.close();
  const url = redis.url.replace("redis://", "redis://mover:hunter2hunter2@");
  const secret = { PASSWORD: "hunter2hunter2" };
  const to = redis.url.replace("redis://", "redis://mover:${PASSWORD}@");
  const first = await run(t, ["sessions", "migrate", "--from", `sqlite:${file}`, "--to", to], secret);
  const { status, stdout, stderr } = first;
  t.equal(stdout, `copied   ${AS_SHOWN}\nskipped      0\nfailed       0\n`);
  t.equal(stderr, `from sqlite:${file}\nto   ${redis.url.replace("redis://", "redis://mover:***@")}\n`);
  t.equal(status, 0);
  const again = await run(t, ["sessions", "migrate", "--from", `sqlite:${file}`, "--to", url]);
  t.match(again, { status: 0, stdout: new RegExp(`^skipped\\s+${AS_SHOWN} {2}${AS_SHOWN} already there$`, "m") });
  const back = await run(t, ["sessions", "migrate", "--from", url, "--to", `sqlite:${file}2`]);
  t.match(back, { status: 0, stdout: new RegExp(`^copied\\s+${AS_SHOWN}$`, "m") });
  const copy = new SqliteStore(`${file}2`);
  t.teardown(() => copy.close());
  t.equal((await allKeys(copy)).size, SESSIONS);

  const wrong = await run(t, ["sessions", "migrate", "--from", `sqlite:${file}`, "--to", url.replace("hunter2", "x")]);
  t.match(wrong, { status: 1, stdout: "", stderr: /redis:\/\/mover:\*\*\*@.* does not answer/ });
  for (const output of [stdout, stderr, again.stderr, back.stderr, wrong.stderr]) t.notMatch(output, "hunter2");
});

t.test("SIGINT stops after the page, and what it prints goes on from there", async (t) => {
  const folder = await temporaryFolder(t);
  const [from, to] = [`sqlite:${join(folder, "from.db")}`, `sqlite:${join(folder, "to.db")}`];
  const source = new SqliteStore(join(folder, "from.db"));
  const sessions = await fill(source, 20_000);
  source.close();
  const args = ["sessions", "migrate", "--from", from, "--to", to];
  const running = command(t, args);
  const target = new SqliteStore(join(folder, "to.db"));
  t.teardown(() => target.close());
  await until(() => target.scan({ limit: 600 }).keys.length === 600);
  running.child.kill("SIGINT");
  t.equal(await running.ended, 1);
  const [, cursor] = /To go on, add (--cursor=\S+)/.exec(running.stderr()) ?? [];
  t.type(cursor, "string");
  const [, copied = ""] = /^copied +([\d,]+)$/m.exec(running.stdout()) ?? [];
  const first = Number(copied.replaceAll(",", ""));
  t.ok(first >= 500 && first < 20_000, `${first} copied before`);
  // As typed by somebody who writes the option and its value apart, although the cursor may begin with a dash.
  const rest = await run(t, [...args, ...(cursor as string).split("=")]);
  t.match(rest, { status: 0, stdout: `copied   ${(20_000 - first).toLocaleString("en-US")}\n` });
  await expectSame(target, sessions);
});

t.test("usage and errors of the command", async (t) => {
  const folder = await temporaryFolder(t);
  const redis = `redis://:hunter2hunter2@127.0.0.1:${await freePort()}/0`;
  const sqlite = `sqlite:${join(folder, "to.db")}`;
  const cases: [args: string[], kind: new (...values: never[]) => Error, message: RegExp][] = [
    [["--from", "memory:"], UsageError, /needs --from URL and --to URL/],
    [["--from", "memory:", "--to", sqlite], UsageError, /memory: ends with its process/],
    [["--from", redis, "--to", redis], UsageError, /the same store/],
    [["--from", redis, "--to", sqlite, "x"], UsageError, /unexpected "x"/],
    [["--from", redis, "--to", sqlite, "--cursor", ""], UsageError, /--cursor is empty/],
    [["--from", `sqlite:${folder}/none.db`, "--to", sqlite], CommandError, /there is no file .*none\.db to copy from/],
    [["--from", redis, "--to", sqlite], CommandError, /redis:\/\/:\*\*\*@127\.0\.0\.1:\d+\/0 does not answer/],
    [["--from", "mysql://u:hunter2@x/", "--to", sqlite], ConfigError, /^--from: .*\*\*\*@x\/" is not a URL/s],
    [["--from", redis, "--to", "sqlite:"], ConfigError, /^--to: .*sqlite: and a file name/s],
    [["--from", redis, "--to", "${NONE}"], ConfigError, /^--to: .*the environment variable NONE is not set/s],
    [
      ["--from", redis, "--to", sqlite, "--config", `${folder}/none.yaml`],
      ConfigError,
      /none\.yaml: .*the file is not there/s,
    ],
  ];
  for (const [args, kind, message] of cases) {
    const error = await runSessions(["migrate", ...args], {}).catch((reason: unknown) => reason);
    t.type(error, kind, args.join(" "));
    t.match(error, { message });
    t.notMatch(error, { message: "hunter2" });
  }
});

t.test("progress: one line that changes on a terminal, one line every few seconds elsewhere", (t) => {
  const counts = { ...NOTHING, copied: 1234, present: 5, newer: 1 };
  const written: Record<string, string[]> = { terminal: [], log: [] };
  for (const [name, lines] of Object.entries(written)) {
    const progress = new Progress({ isTerminal: name === "terminal", write: (text) => lines.push(text) });
    for (let ms = 0; ms <= 12_000; ms += 50) progress.show(renderProgress(counts), ms);
    progress.end();
  }
  t.same(written.log, ["copied 1,234 · skipped 5 · failed 1 · 5 s\n", "copied 1,234 · skipped 5 · failed 1 · 10 s\n"]);
  t.equal(written.terminal?.length, 122);
  t.equal(written.terminal?.[0], "\r\u{1b}[Kcopied 1,234 · skipped 5 · failed 1 · 0 s");
  t.equal(written.terminal?.at(-1), "\n");
  t.equal(
    renderCounts({ ...counts, ended: 2000, refused: 2 }),
    "copied   1,234\nskipped  2,005  5 already there, 2,000 ended or expired\nfailed       3  1 of a newer format, 2 refused\n",
  );
  t.end();
});
