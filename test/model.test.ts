/**
 * Random clients against a plain model (support/session-model.ts): after every turn each store has to be in a state that
 * some order of the operations explains. No session comes back, no update is lost, expiry holds at read, the index of a
 * user agrees, and every Redis key has a TTL. `MODEL_RUNS` is the number of runs over memory (default 800); SQLite and
 * Redis do a share of them.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { Redis } from "ioredis";
import t from "tap";
import {
  type AttributeChanges,
  EXPIRED_GRACE_MS,
  type FindResult,
  type Session,
  type SessionKey,
  withChanges,
} from "../src/core/session.ts";
import type { CommitOutcome, SessionStore } from "../src/core/store.ts";
import { expiryAfterUse, ROTATION_OVERLAP_MS } from "../src/session/expiry.ts";
import { FallbackStore } from "../src/store/fallback.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { startRedis, temporaryFolder } from "./support/servers.ts";
import {
  type Answer,
  agrees,
  apply,
  comparable,
  explain,
  type Operation,
  perform,
  type Sessions,
  type Tolerance,
} from "./support/session-model.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const MEMORY_RUNS = Number(process.env.MODEL_RUNS ?? 800);
/** Until a store is found out that breaks a promise: far fewer are needed. */
const ENOUGH_RUNS = 5_000;
if (process.env.MODEL_RUNS !== undefined) t.setTimeout(0);
const [SQLITE_SHARE, REDIS_SHARE] = [1, 4];

const POLICY = { idleTimeoutMs: 60_000, absoluteTimeoutMs: 240_000 };
const CLIENTS = 2;
const SLOTS = 2;
const USERS = ["ada", "bob"];

/** Steps of a store take place when this says so; see `SteppedStore`. */
type Step = () => Promise<unknown>;

interface Target {
  /** A client's own way to the sessions that all share. */
  client(index: number, step: Step): SessionStore;
  /** What a client would find, without the traces that its look-up leaves. */
  look?(key: SessionKey): FindResult;
  /** Asked after each turn. */
  check?(): Promise<void>;
  close?(): void;
  readonly tolerance?: Tolerance;
}

interface Clock {
  now: number;
}

// What the clients do. A slot is a browser: it has one session after the other.
const slot = fc.nat(SLOTS - 1);
const value = fc.option(fc.nat(2), { nil: undefined });
const changes = fc.dictionary(fc.constantFrom("a", "b", "c"), value, { minKeys: 1, maxKeys: 2, noNullPrototype: true });
const user = fc.option(fc.constantFrom(...USERS), { nil: null });

const deed = fc.oneof(
  { weight: 3, arbitrary: fc.record({ does: fc.constant("begin" as const), slot, user, data: changes }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant("begin again" as const), slot }) },
  { weight: 4, arbitrary: fc.record({ does: fc.constant("find" as const), slot }) },
  { weight: 5, arbitrary: fc.record({ does: fc.constant("set" as const), slot, changes, based: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant("clear" as const), slot }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant("commit" as const), slot, changes }) },
  { weight: 3, arbitrary: fc.record({ does: fc.constant("touch" as const), slot }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant("rotate" as const), slot, user }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant("end" as const), slot }) },
);

/** A deed of a client, and after how many of its steps the client dies in the middle of it. */
const task = fc.record({
  deed,
  client: fc.nat(CLIENTS - 1),
  /** Which of a slot's sessions: the last one, or one that it has replaced. */
  age: fc.constantFrom(0, 0, 0, 1, 2),
  diesAfter: fc.option(fc.nat(5), { freq: 6, nil: Infinity }),
});
const turn = fc.oneof(
  { weight: 3, arbitrary: fc.record({ tasks: fc.array(task, { minLength: 1, maxLength: 1 }) }) },
  { weight: 3, arbitrary: fc.record({ tasks: fc.array(task, { minLength: 2, maxLength: 4 }) }) },
  { weight: 1, arbitrary: fc.record({ passMs: fc.constantFrom(1_000, ROTATION_OVERLAP_MS, POLICY.idleTimeoutMs) }) },
);
const scenario = fc.array(turn, { minLength: 1, maxLength: 14 });
type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;
type Task = typeof task extends fc.Arbitrary<infer T> ? T : never;

let runs = 0;

/** One run: what the clients know, and what the model knows. */
class Run {
  readonly #target: Target;
  readonly #clock: Clock;
  readonly #scheduler: fc.Scheduler;
  readonly #run = ++runs;
  #made = 0;
  #sessions: Sessions = new Map();
  readonly #keys = new Set<SessionKey>();
  /** The keys of each slot, the last one first. */
  readonly #slots: SessionKey[][];
  /** What each client has read or written last. */
  readonly #read = Array.from({ length: CLIENTS }, () => new Map<SessionKey, Session>());

  constructor(target: Target, clock: Clock, scheduler: fc.Scheduler) {
    this.#target = target;
    this.#clock = clock;
    this.#scheduler = scheduler;
    this.#slots = Array.from({ length: SLOTS }, () => [this.#newKey("new")]);
  }

  async play(scenario: Scenario): Promise<void> {
    const end = this.#clock.now + EXPIRED_GRACE_MS;
    for (const turn of scenario) {
      // No longer than expired sessions are kept: then they may be unknown as well.
      if ("passMs" in turn) this.#clock.now = Math.min(this.#clock.now + turn.passMs, end);
      await this.#together("tasks" in turn ? turn.tasks : []);
    }
  }

  /** The tasks of a turn are under way at once; then everything is looked at, and has to be explained. */
  async #together(tasks: readonly Task[]): Promise<void> {
    const histories = tasks.map((): { operation: Operation; answer?: Answer }[] => []);
    const settled = tasks.map((task, i) => {
      const { client, deed, diesAfter } = task;
      const dead = Promise.withResolvers<void>();
      // An end that nobody was told of may be undone by a slow mover: test/fallback-store.test.ts has it repeated.
      let left = this.#target.tolerance?.tombstones && deed.does === "end" ? Infinity : diesAfter;
      const step = () => {
        if (left-- > 0) return this.#scheduler.schedule(Promise.resolve(), deed.does);
        dead.resolve();
        return new Promise(() => {});
      };
      const work = this.#work(task, tasks.length === 1);
      return Promise.race([dead.promise, this.#do(work, client, step, histories[i] ?? [])]);
    });
    await this.#scheduler.waitFor(Promise.all(settled));
    await this.#look(histories);
  }

  async #do(
    work: Generator<Operation, void, Answer>,
    client: number,
    step: Step,
    history: { operation: Operation; answer?: Answer }[],
  ): Promise<void> {
    const store = this.#target.client(client, step);
    let next = work.next();
    while (!next.done) {
      const operation = next.value;
      const entry: { operation: Operation; answer?: Answer } = { operation };
      history.push(entry);
      entry.answer = await perform(store, operation);
      const known = entry.answer.outcome === "created" && "session" in operation ? operation : entry.answer;
      if (known.session) this.#read[client]?.set(operation.key, known.session);
      next = work.next(entry.answer);
    }
  }

  async #look(histories: readonly { operation: Operation; answer?: Answer }[][]): Promise<void> {
    const { tolerance = {} } = this.#target;
    const [store, other] = [this.#target.client(0, idle), this.#target.client(1, idle)];
    const listed = await Promise.all(USERS.map((user) => store.byUser(this.#userId(user))));
    const seen: [Operation, Answer][] = [];
    for (const key of this.#keys)
      seen.push([{ name: "find", key }, (await this.#target.look?.(key)) ?? (await other.find(key))]);
    const { now } = this.#clock;
    const isObserved = (sessions: Sessions) =>
      seen.every(([operation, answer]) => agrees(operation, answer, apply(sessions, operation, now).answer, tolerance));
    const explained = explain(this.#sessions, histories, now, tolerance, isObserved);
    if (explained === undefined) assert.fail(`nothing explains ${describe(this.#sessions, histories, seen)}`);
    this.#sessions = explained;
    for (const [i, user] of USERS.entries()) this.#compareList(this.#userId(user), listed[i] ?? []);
    await this.#target.check?.();
  }

  #compareList(userId: string, listed: Awaited<ReturnType<SessionStore["byUser"]>>): void {
    const expected = [...this.#keys].flatMap((key) => {
      const { outcome, session } = apply(this.#sessions, { name: "find", key }, this.#clock.now).answer;
      return outcome === "hit" && session?.user?.id === userId ? [[key, comparable(session)] as const] : [];
    });
    assert.deepEqual(new Map(listed.map(({ key, session }) => [key, comparable(session)])), new Map(expected));
    const times = listed.map(({ session }) => session.createdAt);
    assert.deepEqual(
      times,
      times.toSorted((a, b) => b - a),
    );
  }

  /** What a gateway does for a deed, one operation after the other (see session/lifecycle.ts). */
  *#work({ deed, age, client }: Task, alone: boolean): Generator<Operation, void, Answer> {
    const keys = this.#slots[deed.slot] as SessionKey[];
    const key = keys[Math.min(age, keys.length - 1)] as SessionKey;
    const base = this.#read[client]?.get(key);
    const { now } = this.#clock;
    switch (deed.does) {
      case "begin": {
        // Nobody else knew the store that sessions were once begun in.
        const successor = this.#newKey(alone && this.#made % 2 === 0 ? "old" : "new");
        const session = this.#newSession(deed.user, withChanges({}, deed.data));
        yield { name: "create", key: successor, session };
        keys.unshift(successor);
        return;
      }
      case "begin again":
        // Of a session that was ended the key is free, but 256 random bits do not come twice.
        if (alone && !this.#target.tolerance?.tombstones && this.#sessions.has(key))
          yield { name: "create", key, session: this.#newSession(null, { taken: 1 }) };
        return;
      case "find":
        yield { name: "find", key };
        return;
      case "set":
        yield { name: "setAll", key, changes: deed.changes, ...(deed.based && base && { base }) };
        return;
      case "clear":
        yield { name: "clear", key };
        return;
      case "commit":
        if (base) yield { name: "commit", key, session: nextOf(base, { data: withChanges(base.data, deed.changes) }) };
        return;
      case "touch":
        if (base) yield { name: "touch", key, expiresAt: expiryAfterUse(base.createdAt, now, POLICY) };
        return;
      case "rotate": {
        const successor = this.#newKey("new");
        const session = this.#newSession(deed.user, base?.data ?? {});
        yield { name: "create", key: successor, session: { ...session, siblings: [key] } };
        keys.unshift(successor);
        let current = base;
        while (current !== undefined) {
          const retiresAt = Math.min(current.retiresAt ?? Infinity, now + ROTATION_OVERLAP_MS);
          const retired = nextOf(current, { retiresAt, siblings: [...(current.siblings ?? []), successor] });
          if ((yield { name: "commit", key, session: retired }).outcome !== "conflict") return;
          current = (yield { name: "find", key }).session;
        }
        return;
      }
      case "end": {
        const ended = new Set([key]);
        for (const each of ended) {
          for (const sibling of (yield { name: "find", key: each }).session?.siblings ?? []) ended.add(sibling);
          yield { name: "destroy", key: each };
        }
      }
    }
  }

  #newKey(prefix: "old" | "new"): SessionKey {
    const key = `${prefix}-${this.#run}-${this.#made++}-`.padEnd(43, "x");
    this.#keys.add(key);
    return key;
  }

  #newSession(user: string | null, data: Session["data"]): Session {
    const { now } = this.#clock;
    return {
      user: user === null ? null : { id: this.#userId(user) },
      data,
      createdAt: now,
      expiresAt: expiryAfterUse(now, now, POLICY),
      usedAt: now,
      version: 1,
    };
  }

  #userId(user: string): string {
    return `${user}-${this.#run}`;
  }
}

const idle: Step = async () => {};

function nextOf(base: Session, changes: Partial<Session>): Session {
  return { ...base, ...changes, version: base.version + 1 };
}

function describe(before: Sessions, histories: unknown, seen: unknown): string {
  return JSON.stringify({ before: [...before], histories, seen }, undefined, 1);
}

const clock: Clock = { now: Date.now() };
const now = () => clock.now;

function property(makeTarget: () => Target | Promise<Target>) {
  return fc.asyncProperty(fc.scheduler(), scenario, async (scheduler, scenario) => {
    clock.now = Date.now();
    const target = await makeTarget();
    await new Run(target, clock, scheduler).play(scenario).finally(() => target.close?.());
  });
}

/** A new store for each run, in this process, its steps in an order that fast-check chooses. */
function inMemory(make: (now: () => number) => MemoryStore = (now) => new MemoryStore(now), Client = SteppedStore) {
  return property(() => {
    const store = make(now);
    return { client: (_, step) => new Client(store, step), close: () => store.close() };
  });
}

t.test("memory: any interleaving of the clients' steps", async () => {
  await fc.assert(inMemory(), { numRuns: MEMORY_RUNS });
});

/** Sessions of which some begin in the fallback. */
class HalfMoved extends FallbackStore {
  readonly #fallback: SessionStore;

  constructor(primary: SessionStore, fallback: SessionStore) {
    super(primary, fallback, now);
    this.#fallback = fallback;
  }

  override create(key: SessionKey, session: Session) {
    return key.startsWith("old") ? this.#fallback.create(key, session) : super.create(key, session);
  }
}

t.test(
  "a store with one to fall back to: any interleaving of its steps, and clients that die between two",
  async () => {
    const target = () => {
      const [primary, fallback] = [new MemoryStore(now), new MemoryStore(now)];
      const client = (_: number, step: Step) =>
        new HalfMoved(new SteppedStore(primary, step), new SteppedStore(fallback, step));
      const close = () => {
        primary.close();
        fallback.close();
      };
      // A client's own look-up would move everything after the first turn.
      const look = (key: SessionKey) => {
        const found = primary.find(key);
        return found.outcome === "unknown" ? fallback.find(key) : found;
      };
      return { client, look, close, tolerance: { tombstones: true } };
    };
    await fc.assert(property(target), { numRuns: MEMORY_RUNS });
  },
);

t.test("SQLite: several connections to one file", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const clients = Array.from({ length: CLIENTS }, () => new SqliteStore(file, { now }));
  t.teardown(() => {
    for (const client of clients) client.close();
  });
  const client = (index: number) => clients[index] as SessionStore;
  await fc.assert(
    property(() => ({ client, tolerance: { writesToRetired: true } })),
    { numRuns: Math.ceil(MEMORY_RUNS / SQLITE_SHARE) },
  );
});

t.test("Redis: several connections to one server, and each key has a TTL", async (t) => {
  const server = await startRedis(t);
  const options = { now, absoluteTimeoutMs: POLICY.absoluteTimeoutMs };
  const clients = Array.from({ length: CLIENTS }, () => new RedisStore(server.url, options));
  await Promise.all(clients.map((client) => client.firstAnswer()));
  const redis = new Redis(server.url);
  t.teardown(() => {
    redis.disconnect();
    for (const client of clients) client.close();
  });
  const client = (index: number) => clients[index] as SessionStore;
  const check = async () => {
    const keys = await redis.keys("*");
    const ttls = await Promise.all(keys.map((key) => redis.pttl(key)));
    assert.deepEqual(
      keys.filter((_, i) => (ttls[i] ?? 0) < 0),
      [],
      "keys without a TTL",
    );
  };
  await fc.assert(
    property(async () => {
      await redis.flushdb();
      return { client, check, tolerance: { writesToRetired: true } };
    }),
    { numRuns: Math.ceil(MEMORY_RUNS / REDIS_SHARE) },
  );
});

class TouchResurrects extends MemoryStore {
  #last = new Map<SessionKey, Session>();

  override create(key: SessionKey, session: Session) {
    this.#last.set(key, session);
    return super.create(key, session);
  }

  override touch(key: SessionKey, expiresAt: number) {
    const last = this.#last.get(key);
    if (last !== undefined) this.create(key, { ...last, expiresAt });
    return super.touch(key, expiresAt);
  }
}

class CommitIgnoresVersion extends MemoryStore {
  override commit(key: SessionKey, session: Session): CommitOutcome {
    const found = this.find(key);
    return found.outcome === "hit" ? super.commit(key, { ...session, version: found.session.version + 1 }) : "unknown";
  }
}

class TouchUndoesWrites extends MemoryStore {
  override touch(key: SessionKey, expiresAt: number) {
    const found = this.find(key);
    if (found.outcome === "hit") super.commit(key, { ...found.session, version: found.session.version + 1, data: {} });
    return super.touch(key, expiresAt);
  }
}

class ExpiryIsForgotten extends MemoryStore {
  override find(key: SessionKey): FindResult {
    const found = super.find(key);
    if (found.outcome === "expired") super.destroy(key);
    return found;
  }
}

class ListsTheEnded extends MemoryStore {
  #entries = new Map<SessionKey, Session>();

  override create(key: SessionKey, session: Session) {
    this.#entries.set(key, session);
    return super.create(key, session);
  }

  override byUser(userId: string) {
    return [...this.#entries].filter(([, { user }]) => user?.id === userId).map(([key, session]) => ({ key, session }));
  }
}

/** Wrong only when two write at once. */
class LastWriterWins extends SteppedStore {
  override async setAll(key: SessionKey, changes: AttributeChanges) {
    for (;;) {
      const found = await this.find(key);
      if (found.outcome !== "hit") return { outcome: "unknown" as const };
      const session = nextOf(found.session, { data: withChanges(found.session.data, changes) });
      if ((await this.commit(key, session)) === "committed") return { outcome: "committed" as const, session };
    }
  }
}

t.test("stores that break a promise are found out", async (t) => {
  for (const Broken of [
    TouchResurrects,
    CommitIgnoresVersion,
    TouchUndoesWrites,
    ExpiryIsForgotten,
    ListsTheEnded,
  ] as const) {
    const { failed } = await fc.check(
      inMemory((now) => new Broken(now)),
      { numRuns: ENOUGH_RUNS, endOnFailure: true },
    );
    t.ok(failed, Broken.name);
  }
  const { failed } = await fc.check(inMemory(undefined, LastWriterWins), { numRuns: ENOUGH_RUNS, endOnFailure: true });
  t.ok(failed, LastWriterWins.name);
});
