import { setTimeout } from "node:timers/promises";
import type { Redis } from "ioredis";
import { forEachAtOnce } from "../core/concurrency.ts";
import { storeUnavailable } from "../core/errors.ts";
import { EXPIRED_GRACE_MS, endOf, type FindResult, handleOf, type Session, type SessionKey } from "../core/session.ts";
import type { SweepOptions, SweepReport } from "../core/store.ts";
import { patiently } from "./migrate.ts";
import { isWrongType, type RedisLink } from "./redis-link.ts";
import { SESSION_PREFIX, USER_PREFIX } from "./redis-scripts.ts";
import { SweepFindings } from "./sweep.ts";

const PREFIX = "coatcheck:";
/** Keys that Redis is asked for in one step, and how many of them are looked at at the same time. */
const STEP_KEYS = 500;
const AT_ONCE = 50;
/** After each step the server is left alone for as long as the step took, and so many milliseconds at least. */
const MIN_REST_MS = 5;
/** A login writes the index first and the session then, in less time than this. */
const MIN_SETTLE_MS = 5_000;
/** Index entries that wait for their second look. */
const MAX_DOUBTFUL = 10_000;
/** Of a key that this version does not know, so much is shown. */
const MAX_SHOWN_NAME = 12;

const WHAT = {
  immortalSession: "sessions without a TTL",
  immortalIndex: "lists of a user's sessions without a TTL",
  immortalOther: "other keys without a TTL",
  malformedIndex: "lists of a user's sessions that are none",
  deadEntry: "entries of ended sessions in lists of a user's sessions",
  unlisted: "sessions that the list of their user lacks",
} as const;

/** What the sweep needs of the store. */
export interface SweptStore {
  readonly link: RedisLink;
  readonly absoluteTimeoutMs: number;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  find(key: SessionKey): Promise<FindResult>;
  /** Enters a session into the list of its user, until `end` at least. */
  enter(userId: string, key: SessionKey, end: number): Promise<void>;
}

interface Entry {
  readonly index: string;
  readonly key: SessionKey;
}

/** Goes through all masters; see `SessionStore.sweep`. */
export async function sweepRedis(store: SweptStore, options: SweepOptions): Promise<SweepReport> {
  const sweep = new Sweep(store, options);
  const report = () => ({ looked: sweep.looked, findings: sweep.findings.list() });
  try {
    for (const node of store.link.connections()) {
      if (node === undefined) throw storeUnavailable(new Error("there is no connection to one of the nodes"));
      if (!(await sweep.goThrough(node))) return { ...report(), complete: false };
    }
    await sweep.settleDoubts();
    return { ...report(), complete: true };
  } catch (failure) {
    return { ...report(), complete: false, failure };
  }
}

class Sweep {
  readonly findings = new SweepFindings();
  readonly #store: SweptStore;
  readonly #options: SweepOptions;
  readonly #settleMs: number;
  #looked = 0;
  /** Entries whose session is not there, or not there yet. */
  #doubtful: Entry[] = [];

  constructor(store: SweptStore, options: SweepOptions) {
    this.#store = store;
    this.#options = options;
    this.#settleMs = options.settleMs ?? Math.max(MIN_SETTLE_MS, 2 * store.link.address.totalTimeoutMs);
  }

  get looked(): number {
    return this.#looked;
  }

  /** @returns false when it was stopped. */
  async goThrough(node: Redis): Promise<boolean> {
    for (let place: string | undefined = "0"; place !== undefined; ) {
      if (this.#options.signal?.aborted) return false;
      const startedMs = performance.now();
      const at: string = place;
      const [next, names] = await this.#ask(PREFIX, () => node.scan(at, "MATCH", `${PREFIX}*`, "COUNT", STEP_KEYS));
      await forEachAtOnce(names, AT_ONCE, (name) => this.#look(name));
      this.#looked += names.length;
      this.#options.onStep?.(this.#looked);
      if (this.#doubtful.length >= MAX_DOUBTFUL) await this.settleDoubts();
      await setTimeout(Math.max(MIN_REST_MS, performance.now() - startedMs));
      place = next === "0" ? undefined : next;
    }
    return true;
  }

  /** Looks again at what may have been a login under way. */
  async settleDoubts(): Promise<void> {
    const doubtful = this.#doubtful;
    this.#doubtful = [];
    if (doubtful.length === 0) return;
    await setTimeout(this.#settleMs);
    await forEachAtOnce(doubtful, AT_ONCE, (entry) => this.#settle(entry));
  }

  async #look(name: string): Promise<void> {
    const ttlMs = await this.#ask(name, () => this.#client.pttl(name));
    if (ttlMs === -2) return;
    if (name.startsWith(SESSION_PREFIX)) return this.#lookAtSession(name, ttlMs);
    if (name.startsWith(USER_PREFIX)) return this.#lookAtIndex(name, ttlMs);
    const example = `${PREFIX}${name.slice(PREFIX.length, PREFIX.length + MAX_SHOWN_NAME)}…`;
    if (ttlMs === -1) await this.#limit(name, { what: WHAT.immortalOther, example, end: 0 });
  }

  async #lookAtSession(name: string, ttlMs: number): Promise<void> {
    const key = name.slice(SESSION_PREFIX.length);
    const found = await patiently(() => this.#store.find(key));
    this.findings.addUnreadable(key, found);
    // A later version has rules of its own.
    if (found.outcome === "newer") return;
    if (ttlMs === -1) {
      const expiry = await this.#ask(name, () => this.#client.hget(name, "e"), null);
      const end = (Number(expiry) || 0) + EXPIRED_GRACE_MS;
      await this.#limit(name, { what: WHAT.immortalSession, example: handleOf(key), end });
    }
    if (found.outcome === "hit") await this.#lookForEntry(key, found.session);
  }

  /** Without an entry that lasts as long as the session, "end all of this user" does not find it. */
  async #lookForEntry(key: SessionKey, session: Session): Promise<void> {
    const userId = session.user?.id ?? "";
    const index = USER_PREFIX + userId;
    const end = endOf(session);
    if (userId === "" || (await this.#scoreOf(index, key)) >= end) return;
    // Ended in the meantime, it has no entry either.
    if ((await patiently(() => this.#store.find(key))).outcome !== "hit") return;
    this.findings.add(WHAT.unlisted, { count: 1, example: handleOf(key) });
    if (!this.#options.fix) return;
    const latest = Math.max(end, session.createdAt + this.#store.absoluteTimeoutMs);
    await patiently(() => this.#store.enter(userId, key, latest));
    this.findings.add(WHAT.unlisted, { fixed: 1 });
  }

  async #lookAtIndex(index: string, ttlMs: number): Promise<void> {
    const example = `user ${index.slice(USER_PREFIX.length)}`;
    for (let place: string | undefined = "0"; place !== undefined; ) {
      const at: string = place;
      const step = () => this.#client.zscan(index, at, "COUNT", STEP_KEYS);
      const page = await this.#ask(index, step, undefined);
      if (page === undefined) {
        this.findings.add(WHAT.malformedIndex, { count: 1, example });
        break;
      }
      const [next, members] = page;
      const keys = members.filter((_, i) => i % 2 === 0);
      await forEachAtOnce(keys, AT_ONCE, async (key) => {
        if (!(await this.#exists(key))) this.#doubtful.push({ index, key });
      });
      place = next === "0" ? undefined : next;
    }
    if (ttlMs !== -1) return;
    const last = await this.#ask(index, () => this.#client.zrange(index, "0", "0", "REV", "WITHSCORES"), []);
    await this.#limit(index, { what: WHAT.immortalIndex, example, end: Number(last[1]) || 0 });
  }

  /** What was an entry without a session, a while ago. */
  async #settle({ index, key }: Entry): Promise<void> {
    if ((await this.#exists(key)) || (await this.#scoreOf(index, key)) === -1) return;
    this.findings.add(WHAT.deadEntry, { count: 1, example: handleOf(key) });
    if (!this.#options.fix) return;
    await this.#ask(index, () => this.#client.zrem(index, key));
    this.findings.add(WHAT.deadEntry, { fixed: 1 });
    // A login that took longer than all its timeouts.
    const found = await patiently(() => this.#store.find(key));
    if (found.outcome === "hit") await this.#lookForEntry(key, found.session);
  }

  /** Gives a key without a TTL one, unless somebody has in the meantime. @param end it has to last until then, at least. */
  async #limit(name: string, { what, example, end }: { what: string; example: string; end: number }): Promise<void> {
    this.findings.add(what, { count: 1, example });
    if (!this.#options.fix) return;
    const at = Math.max(end, this.#store.now() + this.#store.absoluteTimeoutMs);
    await this.#ask(name, () => this.#client.call("PEXPIREAT", name, String(at), "NX"));
    this.findings.add(what, { fixed: 1 });
  }

  async #exists(key: SessionKey): Promise<boolean> {
    const name = SESSION_PREFIX + key;
    return (await this.#ask(name, () => this.#client.exists(name))) === 1;
  }

  /** -1: it has no entry. */
  async #scoreOf(index: string, key: SessionKey): Promise<number> {
    return Number((await this.#ask(index, () => this.#client.zscore(index, key), null)) ?? -1);
  }

  get #client(): RedisLink["client"] {
    return this.#store.link.client;
  }

  /** @param otherwise the answer for a key of another type. */
  #ask<T>(name: string, command: () => Promise<T>): Promise<T>;
  #ask<T, U>(name: string, command: () => Promise<T>, otherwise: U): Promise<T | U>;
  #ask<T, U>(name: string, command: () => Promise<T>, otherwise?: U): Promise<T | U | undefined> {
    return patiently(() =>
      this.#store.link.ask<T | U | undefined>(name, command).catch((error: unknown) => {
        if (isWrongType(error)) return otherwise;
        throw error;
      }),
    );
  }
}
