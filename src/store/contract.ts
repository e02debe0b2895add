import assert from "node:assert/strict";
import { judge, type Session, type SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";

/** What a case of the contract gets: a fresh store, and the clock that the store was made with. */
export interface ContractContext {
  readonly store: SessionStore;
  /** Milliseconds since the epoch, as the store sees it. */
  readonly now: () => number;
  /** Moves the clock that the store sees. */
  readonly advance: (ms: number) => void;
}

/** One promise of `SessionStore`; `run` throws an `AssertionError` where a store does not keep it. */
export interface ContractCase {
  readonly name: string;
  readonly run: (context: ContractContext) => Promise<void>;
}

const HOUR_MS = 3_600_000;

let made = 0;

/** A key of its own for every case: cases may share one server. */
function newKey(): SessionKey {
  made++;
  return `contract-${Math.random().toString(36).slice(2)}-${Date.now().toString(36)}-${made}`
    .padEnd(43, "x")
    .slice(0, 43);
}

function newSession(now: number, changes: Partial<Session> = {}): Session {
  return {
    user: { id: `user-${made}`, name: "Zoë", roles: ["admin", "ops"], claims: { level: 3, tags: [true, null, "x"] } },
    data: { cart: [1, 2], note: "Grüße, 世界" },
    createdAt: now,
    expiresAt: now + HOUR_MS,
    usedAt: now,
    version: 1,
    ...changes,
  };
}

async function live(store: SessionStore, key: SessionKey): Promise<Session> {
  const found = await store.find(key);
  assert.equal(found.outcome, "hit");
  return found.outcome === "hit" ? found.session : assert.fail();
}

/** A stored session and its key. */
async function stored({ store, now }: ContractContext, changes: Partial<Session> = {}): Promise<[SessionKey, Session]> {
  const key = newKey();
  const session = newSession(now(), changes);
  assert.equal(await store.create(key, session), "created");
  return [key, session];
}

const cases: Record<string, ContractCase["run"]> = {
  "find answers unknown for a key that was never there": async ({ store }) => {
    assert.deepEqual(await store.find(newKey()), { outcome: "unknown" });
  },

  "find gives back what create stored, every value as it was": async (context) => {
    const [key, session] = await stored(context);
    assert.deepEqual({ ...(await live(context.store, key)) }, session);
  },

  "a session without a user is kept too": async (context) => {
    const [key, session] = await stored(context, { user: null });
    assert.deepEqual({ ...(await live(context.store, key)) }, session);
  },

  "create refuses a key that is taken": async (context) => {
    const [key, session] = await stored(context);
    assert.equal(await context.store.create(key, { ...session, data: { other: true } }), "conflict");
    assert.deepEqual((await live(context.store, key)).data, session.data);
  },

  "a session expires at read, even if its row or key is still there": async (context) => {
    const [key] = await stored(context, { expiresAt: context.now() + 60_000 });
    context.advance(59_000);
    assert.equal((await context.store.find(key)).outcome, "hit");
    context.advance(1_000);
    assert.equal((await context.store.find(key)).outcome, "expired");
  },

  "a retired session answers until it retires, whatever touches it": async (context) => {
    const [key, session] = await stored(context);
    const retiresAt = context.now() + 10_000;
    assert.equal(await context.store.commit(key, { ...session, version: 2, retiresAt }), "committed");
    await context.store.touch(key, context.now() + 2 * HOUR_MS);
    assert.equal((await context.store.find(key)).outcome, "hit");
    context.advance(10_000);
    assert.notEqual((await context.store.find(key)).outcome, "hit");
  },

  "commit replaces the session of the version that was read": async (context) => {
    const [key, session] = await stored(context);
    assert.equal(await context.store.commit(key, { ...session, version: 2, data: { cart: [3] } }), "committed");
    const found = await live(context.store, key);
    assert.equal(found.version, 2);
    assert.deepEqual(found.data, { cart: [3] });
  },

  "commit of an old version is a conflict and changes nothing": async (context) => {
    const [key, session] = await stored(context);
    await context.store.commit(key, { ...session, version: 2, data: { winner: true } });
    assert.equal(await context.store.commit(key, { ...session, version: 2, data: { loser: true } }), "conflict");
    assert.deepEqual((await live(context.store, key)).data, { winner: true });
  },

  "commit never gives a session to another user": async (context) => {
    const [key, session] = await stored(context);
    for (const user of [null, { id: "somebody else" }]) {
      assert.equal(await context.store.commit(key, { ...session, version: 2, user }), "conflict");
    }
    assert.deepEqual((await live(context.store, key)).user, session.user);
    const [anonymous, visitor] = await stored(context, { user: null });
    assert.equal(await context.store.commit(anonymous, { ...visitor, version: 2, user: { id: "1" } }), "conflict");
  },

  "commit does not move the expiry: only a touch does": async (context) => {
    const [key, session] = await stored(context);
    await context.store.touch(key, session.expiresAt + 60_000);
    await context.store.commit(key, { ...session, version: 2 });
    assert.equal((await live(context.store, key)).expiresAt, session.expiresAt + 60_000);
  },

  "no resurrection: commit, touch and writes of attributes leave a destroyed session destroyed": async (context) => {
    const { store } = context;
    const [key, session] = await stored(context);
    assert.equal(await store.destroy(key), "destroyed");
    assert.equal(await store.commit(key, { ...session, version: 2 }), "unknown");
    assert.equal(await store.touch(key, session.expiresAt + HOUR_MS), "unknown");
    assert.deepEqual(await store.set(key, "cart", [9]), { outcome: "unknown" });
    assert.deepEqual(await store.setAll(key, { cart: [9] }, session), { outcome: "unknown" });
    assert.match((await store.find(key)).outcome, /^(unknown|expired)$/);
  },

  "no resurrection: an expired session stays expired": async (context) => {
    const { store, now, advance } = context;
    const [key, session] = await stored(context, { expiresAt: now() + 60_000 });
    advance(60_000);
    assert.equal(await store.commit(key, { ...session, version: 2 }), "unknown");
    assert.equal(await store.touch(key, now() + HOUR_MS), "unknown");
    assert.equal((await store.find(key)).outcome, "expired");
  },

  "touch moves the expiry and the last use, and nothing else": async (context) => {
    const [key, session] = await stored(context);
    context.advance(1_000);
    const [expiresAt, usedAt] = [session.expiresAt + 5_000, context.now()];
    assert.equal(await context.store.touch(key, expiresAt), "touched");
    assert.deepEqual({ ...(await live(context.store, key)) }, { ...session, expiresAt, usedAt });
    await context.store.commit(key, { ...session, version: 2, data: { after: true } });
    assert.equal((await live(context.store, key)).usedAt, usedAt);
  },

  "count, if there is one, counts what lives": async (context) => {
    if (context.store.count === undefined) return;
    const before = await context.store.count();
    const [key] = await stored(context);
    await stored(context);
    assert.equal(await context.store.count(), before + 2);
    await context.store.destroy(key);
    // About: a store may have to keep the place of what was ended.
    assert.ok((await context.store.count()) <= before + 2);
  },

  "scan meets every session, in steps, and only those with the prefix": async (context) => {
    const { store } = context;
    const keys = new Set<SessionKey>();
    while (keys.size < 12) keys.add((await stored(context))[0]);
    const wanted = [...keys][5] as SessionKey;
    const [ended] = await stored(context);
    await store.destroy(ended);
    const walk = async (prefix: string, limit: number) => {
      const met = new Set<SessionKey>();
      let cursor: string | undefined;
      do {
        const page = await store.scan({ prefix, limit, ...(cursor !== undefined && { cursor }) });
        for (const key of page.keys) met.add(key);
        cursor = page.cursor;
      } while (cursor !== undefined);
      return met;
    };
    for (const limit of [1, 5, 1000]) {
      const met = await walk("", limit);
      assert.ok([...keys].every((key) => met.has(key)));
      assert.ok(!met.has(ended) || (await store.find(ended)).outcome === "expired");
    }
    assert.deepEqual(await walk(wanted, 3), new Set([wanted]));
    assert.deepEqual(await walk("no such prefix", 3), new Set());
  },

  "what the session knows of its client is kept": async (context) => {
    const client = { address: "2001:db8::1", userAgent: "Mozilla/5.0 (Grüße)" };
    const [key] = await stored(context, { client });
    assert.deepEqual((await live(context.store, key)).client, client);
  },

  "touch never creates a session": async ({ store, now }) => {
    const key = newKey();
    assert.equal(await store.touch(key, now() + HOUR_MS), "unknown");
    assert.equal((await store.find(key)).outcome, "unknown");
  },

  "destroy tells whether there was anything": async (context) => {
    const [key] = await stored(context);
    assert.equal(await context.store.destroy(key), "destroyed");
    assert.equal(await context.store.destroy(key), "unknown");
  },

  "byUser lists the live sessions of that user, newest first, and nobody else's": async (context) => {
    const { store, now } = context;
    const id = `listed-${newKey()}`;
    const [older] = await stored(context, { user: { id }, createdAt: now() - 2_000 });
    const [newer] = await stored(context, { user: { id }, createdAt: now() - 1_000 });
    const [ended] = await stored(context, { user: { id } });
    const [soonExpired] = await stored(context, { user: { id }, expiresAt: now() + 1_000 });
    await stored(context, { user: { id: `${id}-other` } });
    await store.destroy(ended);
    context.advance(1_000);
    const entries = await store.byUser(id);
    assert.deepEqual(
      entries.map((entry) => entry.key),
      [newer, older],
    );
    assert.ok(!entries.some((entry) => entry.key === soonExpired));
    assert.equal(entries[0]?.session.user?.id, id);
    assert.deepEqual(await store.byUser("nobody"), []);
  },

  "attributes: get, getAll, size, set, setAll, remove and clear": async (context) => {
    const { store } = context;
    const [key, session] = await stored(context);
    assert.deepEqual(await store.get(key, "cart"), [1, 2]);
    assert.equal(await store.get(key, "missing"), undefined);
    assert.equal(await store.get(key, "toString"), undefined);
    assert.deepEqual({ ...(await store.getAll(key)) }, session.data);
    assert.equal(await store.size(key), 2);
    assert.equal((await store.set(key, "theme", "dark")).outcome, "committed");
    assert.equal((await store.setAll(key, { a: 1, b: { c: [] }, note: undefined })).outcome, "committed");
    assert.deepEqual({ ...(await store.getAll(key)) }, { cart: [1, 2], theme: "dark", a: 1, b: { c: [] } });
    assert.equal((await store.remove(key, "a")).outcome, "committed");
    assert.equal(await store.size(key), 3);
    assert.equal((await store.clear(key)).outcome, "committed");
    assert.deepEqual({ ...(await store.getAll(key)) }, {});
    assert.deepEqual((await live(store, key)).user, session.user);
  },

  "attributes of a session that is not there": async ({ store }) => {
    const key = newKey();
    assert.equal(await store.get(key, "a"), undefined);
    assert.equal(await store.getAll(key), undefined);
    assert.equal(await store.size(key), undefined);
    for (const result of [
      store.set(key, "a", 1),
      store.setAll(key, { a: 1 }),
      store.remove(key, "a"),
      store.clear(key),
    ]) {
      assert.deepEqual(await result, { outcome: "unknown" });
    }
    assert.equal((await store.find(key)).outcome, "unknown");
  },

  "no lost update: of writes to different attributes at once all survive": async (context) => {
    const { store } = context;
    const [key, session] = await stored(context, { data: {} });
    const names = Array.from({ length: 8 }, (_, i) => `attribute${i}`);
    const results = await Promise.all(names.map(async (name) => store.setAll(key, { [name]: name }, session)));
    assert.deepEqual(
      results.map(({ outcome }) => outcome),
      names.map(() => "committed"),
    );
    assert.deepEqual({ ...(await store.getAll(key)) }, Object.fromEntries(names.map((name) => [name, name])));
  },

  "of writes to the same attribute from the same base one wins, and the others are told": async (context) => {
    const { store } = context;
    const [key, session] = await stored(context);
    const carts = [[1], [2], [3], [4]];
    const results = await Promise.all(carts.map(async (cart) => store.setAll(key, { cart }, session)));
    const winners = carts.filter((_, i) => results[i]?.outcome === "committed");
    assert.equal(winners.length, 1);
    assert.equal(results.filter(({ outcome }) => outcome === "conflict").length, carts.length - 1);
    assert.deepEqual(await store.get(key, "cart"), winners[0]);
  },

  "check answers": async ({ store }) => {
    const check = await store.check();
    assert.equal(check.ok, true);
    assert.notEqual(check.detail, "");
  },

  "the expiry rule is that of core/session.ts": async (context) => {
    const [key, session] = await stored(context, { expiresAt: context.now() + 7_000 });
    for (const step of [0, 6_999, 1, 60_000]) {
      context.advance(step);
      assert.equal((await context.store.find(key)).outcome, judge(session, context.now()).outcome);
    }
  },
};

/**
 * `SessionStore` as a test suite, for any runner: make a fresh store for each case, or share one, and run them all.
 * @example
 * for (const { name, run } of storeContract) {
 *   test(name, async () => {
 *     let now = Date.now();
 *     await run({ store: new MyStore(() => now), now: () => now, advance: (ms) => { now += ms; } });
 *   });
 * }
 */
export const storeContract: readonly ContractCase[] = Object.entries(cases).map(([name, run]) => ({ name, run }));
