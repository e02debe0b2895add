/** The store check: what it says of sound stores, and of stores that misbehave. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import t from "tap";
import { renderReport } from "../src/cli/check.ts";
import type { StoreReport } from "../src/core/administration.ts";
import type { Session, SessionKey } from "../src/core/session.ts";
import type { ChangeListener, SessionStore } from "../src/core/store.ts";
import { InstrumentedStore } from "../src/observe/instrumented-store.ts";
import { Metrics } from "../src/observe/metrics.ts";
import { FallbackStore } from "../src/store/fallback.ts";
import { GuardedStore } from "../src/store/guarded.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { probeStore } from "../src/store/probe.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask } from "./support/client.ts";
import { run } from "./support/command.ts";
import { freePort, startGateway, startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";

const ABSOLUTE_TIMEOUT_MS = 12 * 3_600_000;
const STEPS = ["create", "find", "commit", "commit, too late", "touch", "find again", "destroy", "find after the end"];

const results = (report: StoreReport) => report.steps.map(({ result }) => result);
const failed = (report: StoreReport) => report.steps.find(({ result }) => result === "failed");

async function connect(t: Teardown, url: string): Promise<RedisStore> {
  const store = new RedisStore(url, { absoluteTimeoutMs: ABSOLUTE_TIMEOUT_MS });
  await store.firstAnswer();
  t.teardown(() => store.close());
  return store;
}

async function keysOf(store: SessionStore): Promise<readonly SessionKey[]> {
  return (await store.scan({ limit: 1000 })).keys;
}

const makers: Record<string, (t: Teardown) => Promise<SessionStore>> = {
  memory: async () => new MemoryStore(),
  sqlite: async (t) => new SqliteStore(join(await temporaryFolder(t), "sessions.db")),
  redis: async (t) => connect(t, (await startRedis(t)).url),
};

for (const [name, make] of Object.entries(makers)) {
  t.test(`a sound ${name}: every step ok and timed, nothing left behind`, async (t) => {
    const store = await make(t);
    t.teardown(() => store.close());
    const report = await probeStore(store, Date.now);
    t.match(report, { ok: true, store: name });
    t.same(
      report.steps.map(({ step }) => step),
      STEPS,
    );
    for (const { step, result, ms } of report.steps) {
      t.equal(result, "ok", step);
      t.ok(ms > 0 && ms < 5000, `${step}: ${ms} ms`);
    }
    t.same(await keysOf(store), []);
  });
}

t.test("SQLite tells its facts, and warns of what costs sessions or space", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const store = new SqliteStore(file);
  t.teardown(() => store.close());
  const facts = () => Object.fromEntries(store.inspect().facts.map(({ name, value }) => [name, value]));
  t.match(facts(), { "journal mode": "wal", sessions: /^0,/, "file size": /^\d+ KiB$/, "free pages": /^0 of \d+$/ });
  t.same(store.inspect().warnings, []);

  const now = Date.now();
  const session = { user: null, createdAt: now, expiresAt: now + 60_000, usedAt: now, version: 1 };
  for (let i = 0; i < 700; i++)
    store.create(`k${i}`.padEnd(43, "k"), { ...session, data: { much: "x".repeat(40_000) } });
  t.match(facts(), { sessions: /^700,/ });
  for (let i = 0; i < 600; i++) store.destroy(`k${i}`.padEnd(43, "k"));
  t.match(store.inspect().warnings, [/more than half of the file is free space/]);

  // A file system without shared memory, as some network ones: WAL is asked for, and not to be had.
  const remote = new SqliteStore(`file:${join(await temporaryFolder(t), "remote.db")}?vfs=unix-none`);
  t.teardown(() => remote.close());
  t.match(remote.inspect().warnings, [/the journal mode is delete.* move the file to a local disk/]);
});

t.test("a SQLite file that is read-only", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  new SqliteStore(file).close();
  const store = new SqliteStore(`file:${file}?mode=ro`);
  t.teardown(() => store.close());
  const report = await probeStore(store, Date.now);
  t.equal(report.ok, false);
  t.same(results(report), ["failed", ...Array(7).fill("skipped")]);
  t.match(failed(report), { step: "create", problem: /readonly database/, advice: /read-only for this user/ });
  t.ok(report.facts.length > 0, "what can be read is told all the same");
});

t.test("a Redis user without the rights, in several degrees", async (t) => {
  const redis = await startRedis(t);
  const admin = new Redis(redis.url);
  t.teardown(() => admin.disconnect());
  const rights: Record<string, { allowed: string[]; step: string }> = {
    "no scripts": { allowed: ["~*", "+@all", "-@scripting"], step: "create" },
    "no such keys": { allowed: ["~other:*", "+@all"], step: "create" },
    "no writes": { allowed: ["~*", "+@all", "-@write"], step: "create" },
    "no deletes": { allowed: ["~*", "+@all", "-unlink"], step: "destroy" },
  };
  for (const [name, { allowed, step }] of Object.entries(rights)) {
    await admin.acl("DELUSER", "limited");
    await admin.acl("SETUSER", "limited", "on", ">hunter2hunter2", "resetkeys", "resetchannels", "-@all", ...allowed);
    const store = await connect(t, redis.url.replace("redis://", "redis://limited:hunter2hunter2@"));
    const report = await probeStore(store, Date.now);
    t.equal(report.ok, false, name);
    t.match(failed(report), { step, problem: /./, advice: /the Redis user may not do this/ }, name);
    t.notMatch(JSON.stringify(report), "hunter2");
  }
  const [left, ...more] = await admin.keys("*");
  t.same(more, [], "the one that may not delete leaves the probe");
  t.ok((await admin.pttl(left as string)) > 0, "which ends by itself");
});

t.test("a Redis with a wrong password, one that is full, and one that is not there", async (t) => {
  const redis = await startRedis(t);
  const admin = new Redis(redis.url);
  t.teardown(() => admin.disconnect());
  await admin.acl("SETUSER", "known", "on", ">hunter2hunter2", "~*", "+@all");
  const stranger = await connect(t, redis.url.replace("redis://", "redis://known:hunter3hunter3@"));
  const refused = await probeStore(stranger, Date.now);
  t.match(failed(refused), { step: "create", advice: /./ });
  t.notMatch(JSON.stringify(refused), /hunter/);

  const store = await connect(t, redis.url);
  await admin.config("SET", "maxmemory-policy", "noeviction");
  await admin.config("SET", "maxmemory", "1");
  const full = await probeStore(store, Date.now);
  t.match(failed(full), { step: "create", problem: /OOM/, advice: /Redis is full and may not evict/ });
  await admin.config("SET", "maxmemory", "0");
  t.match(await probeStore(store, Date.now), { ok: true });

  await admin.replicaof("127.0.0.1", String(await freePort()));
  const replica = await probeStore(store, Date.now);
  t.match(failed(replica), { step: "create", problem: /READONLY/, advice: /a replica.* the master/ });
  await admin.replicaof("NO", "ONE");

  const nowhere = await connect(t, `redis://127.0.0.1:${await freePort()}`);
  t.match(failed(await probeStore(nowhere, Date.now)), { step: "create", advice: /^nothing listens there/ });
});

t.test("a Redis that hangs takes a bounded time", async (t) => {
  const redis = await startRedis(t);
  const store = await connect(t, redis.url);
  redis.freeze();
  const startedMs = performance.now();
  t.match(failed(await probeStore(store, Date.now)), { step: "create", advice: /^the server does not answer/ });
  t.ok(performance.now() - startedMs < 5000);
  redis.thaw();
});

t.test("a store that does not keep its promises: what it answered and what was due", async (t) => {
  const broken: Record<string, [step: string, problem: RegExp, store: MemoryStore]> = {
    "loses what it is given": [
      "find",
      /answered "unknown" where "as created" was due/,
      new (class extends MemoryStore {
        override create() {
          return "created" as const;
        }
      })(),
    ],
    "lets the last writer win": [
      "commit, too late",
      /answered "committed" where "conflict" was due/,
      new (class extends MemoryStore {
        override commit(key: SessionKey, session: Session) {
          super.destroy(key);
          super.create(key, session);
          return "committed" as const;
        }
      })(),
    ],
    "does not extend": [
      "find again",
      /answered "something else" where "as changed" was due/,
      new (class extends MemoryStore {
        override touch() {
          return "touched" as const;
        }
      })(),
    ],
    "does not forget": [
      "find after the end",
      /answered "hit" where "unknown" was due/,
      new (class extends MemoryStore {
        override destroy() {
          return "destroyed" as const;
        }
      })(),
    ],
  };
  for (const [name, [step, problem, store]] of Object.entries(broken)) {
    t.teardown(() => store.close());
    t.match(failed(await probeStore(store, Date.now)), { step, problem, advice: /contract/ }, name);
  }
});

t.test("a slow store is a warning; facts that cannot be had are one too", async (t) => {
  class Slow extends MemoryStore {
    override touch(key: SessionKey, expiresAt: number) {
      const until = performance.now() + 60;
      while (performance.now() < until);
      return super.touch(key, expiresAt);
    }
    inspect(): never {
      throw new Error("INFO is forbidden");
    }
  }
  const store = new Slow();
  t.teardown(() => store.close());
  const report = await probeStore(store, Date.now);
  t.match(report, {
    ok: true,
    facts: [],
    warnings: [/^slow: touch \(\d+ ms\)/, /not be inspected: INFO is forbidden/],
  });
});

t.test("of two stores, each tells of itself; a custom store may too", async (t) => {
  const store = (name: string, answer: unknown) =>
    Object.assign(new MemoryStore(), { kind: name, inspect: () => answer }) as unknown as SessionStore;
  const told = { facts: [{ name: "size", value: "1 at x://u:p@h" }], warnings: ["it is small"] };
  const both = await probeStore(new FallbackStore(store("a", told), new MemoryStore()), Date.now);
  t.match(both, { ok: true, facts: [{ name: "primary: size" }], warnings: ["primary: it is small"] });
  const custom = await probeStore(new GuardedStore(store("b", told)), Date.now);
  t.match(custom, { ok: true, facts: [{ name: "size", value: "1 at x://***@h" }], warnings: ["it is small"] });
  const nonsense = await probeStore(new GuardedStore(store("c", { facts: [1] })), Date.now);
  t.match(nonsense, { ok: true, facts: [], warnings: [/could not be inspected: .*which is none of its answers/] });
  t.equal(new GuardedStore(new MemoryStore()).inspect, undefined);
});

t.test("the instrumented store passes on what its store has, and has nothing of its own", (t) => {
  const metrics = new Metrics({ version: "0", nodeVersion: "0" });
  const plain = new InstrumentedStore(
    new MemoryStore(),
    metrics,
    () => {},
    () => {},
  );
  t.equal(plain.watch, undefined);
  t.equal(plain.inspect, undefined);
  const heard: ChangeListener[] = [];
  class Telling extends MemoryStore {
    readonly listeners = heard;
    watch(listener: ChangeListener) {
      this.listeners.push(listener);
    }
    inspect() {
      return { facts: [{ name: "listeners", value: String(this.listeners.length) }], warnings: [] };
    }
  }
  const telling = new InstrumentedStore(
    new Telling(),
    metrics,
    () => {},
    () => {},
  );
  const listener = {} as ChangeListener;
  telling.watch?.(listener);
  t.same(heard, [listener]);
  t.match(telling.inspect?.(), { facts: [{ value: "1" }] });
  t.end();
});

t.test("POST /store/check: the report, 503 when something failed", async (t) => {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { store: redis.url });
  const check = async () => {
    const { status, body } = await ask(`${gateway.adminUrl}/store/check`, { method: "POST" });
    return { status, report: JSON.parse(body) as StoreReport };
  };
  t.match(await check(), { status: 200, report: { ok: true, store: "redis", steps: { length: STEPS.length } } });
  await redis.kill();
  const { status, report } = await check();
  t.equal(status, 503);
  t.match(report, { ok: false, warnings: Array });
  t.match(failed(report), { step: "create", advice: /./ });
});

t.test("check --store on the command line: a table, and the exit status", async (t) => {
  const folder = await temporaryFolder(t);
  const redis = await startRedis(t);
  const admin = new Redis(redis.url);
  t.teardown(() => admin.disconnect());
  await admin.acl("SETUSER", "limited", "on", ">hunter2hunter2", "~*", "+@all", "-@scripting");
  const check = async (store: string) => {
    const file = join(folder, "coatcheck.yaml");
    await writeFile(file, `store: "${store}"\nroutes: [{ upstream: "http://localhost:3000" }]\n`);
    return run(t, ["check", "--config", file, "--store"]);
  };
  const sound = await check(`sqlite:${folder}/sessions.db`);
  t.match(sound, { status: 0, stderr: "" });
  t.match(sound.stdout, /^sqlite at sqlite:.*sessions\.db\n\nSTEP {16}RESULT {4}MS\ncreate {14}ok {5} +\d+\.\d\d\n/);
  t.match(sound.stdout, /^journal mode +wal$/m);
  t.match(sound.stdout, /^The store serves\.$/m);
  const column = sound.stdout
    .split("\n")
    .slice(2, 11)
    .map((line) => line.length);
  t.equal(new Set(column).size, 1, "aligned");

  const limited = await check(redis.url.replace("redis://", "redis://limited:hunter2hunter2@"));
  t.match(limited, { status: 1, stderr: "" });
  t.match(limited.stdout, /^redis at redis:\/\/limited:\*\*\*@/);
  t.match(limited.stdout, /^create +failed +\d+\.\d\d\nfind +skipped\n/m);
  t.match(limited.stdout, /^failed: create: .*\n {2}the Redis user may not do this/m);
  t.notMatch(limited.stdout + limited.stderr, "hunter2");

  const missing = await check("sqlite:/does/not/exist/sessions.db");
  t.match(missing, { status: 1, stdout: "", stderr: /cannot be opened: .*\n {2}the file or its folder is not there/ });
  await writeFile(join(folder, "text.db"), "this is no database".repeat(100));
  t.match(await check(`sqlite:${folder}/text.db`), { status: 1, stderr: /no SQLite database: correct the store URL/ });
});

t.test("what a store says of itself does not command the terminal", (t) => {
  const command = "\u001b]0;owned\u0007";
  const steps = [{ step: "find", result: "failed" as const, ms: 1, problem: `no ${command}`, advice: "look" }];
  const facts = [{ name: `server${command}`, value: `7${command}` }];
  const text = renderReport({ ok: false, store: "theirs", steps, facts, warnings: [`full${command}`] }, "module:x");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there
  t.notMatch(text, /[\u001b\u0007]/);
  t.match(text, /failed: find: no \ufffd/);
  t.end();
});
