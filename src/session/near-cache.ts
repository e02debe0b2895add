import { LRUCache } from "lru-cache";
import { storeUnavailable } from "../core/errors.ts";
import type { Exchange } from "../core/exchange.ts";
import { type Json, roughSize } from "../core/json.ts";
import { onBehalfOf } from "../core/on-behalf.ts";
import { endOf, type FindResult, type Session, type SessionKey } from "../core/session.ts";
import type { ChangeListener, FeedState, MaybePromise, SessionStore } from "../core/store.ts";
import { outage, type Resolution, resolution, type SessionLookup } from "./resolver.ts";

/** A request joins another one's look-up only if that has just begun: what it reads must not be older than this. */
const JOIN_WITHIN_MS = 25;
/** Look-ups of one request when the session changes under each of them. */
const MAX_LOOKUPS = 3;
/** What an entry costs beside its session: map, list, key, and the objects around it (`npm run bench:lookups`). */
const ENTRY_BYTES = 300;

export interface NearCacheObserver {
  /** Somebody changed the session, or perhaps ended it. */
  changed(key: SessionKey): void;
  /** Somebody ended the session on purpose. */
  ended(key: SessionKey): void;
  evicted(): void;
  invalidated(): void;
  feed(state: FeedState): void;
  changeDelay(by: "tracking" | "messages", ms: number): void;
  revocationDelay(ms: number): void;
}

export interface NearCacheOptions {
  readonly store: Pick<SessionStore, "find">;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  /** At least 1: without a cache there is `StoreLookup`. */
  readonly maxBytes: number;
  /** No entry is used for longer after it was read, whatever is or is not heard. */
  readonly maxAgeMs: number;
  /** Beyond that, for as long as the store does not answer; 0: not at all. */
  readonly staleOnOutageMs: number;
  readonly observer: NearCacheObserver;
}

interface Entry {
  readonly hit: Resolution;
  readonly readAt: number;
  readonly endsAt: number;
  /** Entries of an earlier one may have missed a change. */
  readonly epoch: number;
}

/** What became of a key's entry, or would. */
export interface CachePeek {
  /**
   * `used`: it answers. `absent`: there is none. `ended`, `old`: it ended by its own clock, or is older than `maxAge`, so
   * the store is asked. `unheard`: the store cannot be heard, or could not since it was read, so nothing is believed.
   */
  readonly state: "used" | "absent" | "ended" | "old" | "unheard";
  /** What is kept, and how long ago it was read, milliseconds; absent where nothing is. */
  readonly hit?: Resolution;
  readonly ageMs?: number;
}

interface Flight {
  readonly key: SessionKey;
  readonly answer: Promise<Resolution>;
  readonly startedMs: number;
  /** The session changed since the store was asked: the answer may be from before. */
  overtaken: boolean;
}

/**
 * The sessions that were read lately, in this process. It is true as long as the store tells of every change: when it
 * cannot be heard the cache is bypassed, and what was in it is never used again, but for an outage that the
 * configuration allows to bridge (`staleOnOutage`).
 *
 * Only hits are kept: an id that is unknown now may be known in a moment, and a key holds all that the answer depends on.
 * A change that is told while the store is being asked wins over the answer (the race of Redis's page on client-side
 * caching): the store is asked again.
 */
export class NearCache implements SessionLookup, ChangeListener {
  readonly #options: NearCacheOptions;
  readonly #entries: LRUCache<SessionKey, Entry>;
  /** The latest of each key. */
  readonly #flights = new Map<SessionKey, Flight>();
  /** Those that a later one of the same key did not wait for. */
  readonly #overdue = new Set<Flight>();
  #feed: FeedState = "lost";
  #isTold = false;
  #epoch = 0;

  constructor(options: NearCacheOptions) {
    this.#options = options;
    this.#entries = new LRUCache({
      maxSize: options.maxBytes,
      maxEntrySize: Math.max(1, Math.floor(options.maxBytes / 8)),
      dispose: (_entry, _key, reason) => {
        if (reason === "evict") options.observer.evicted();
      },
    });
  }

  /** Sessions in the cache, and about how many bytes they take. */
  get entries(): number {
    return this.#entries.size;
  }

  get bytes(): number {
    return this.#entries.calculatedSize;
  }

  /** How the store tells of changes at the moment. */
  get feedState(): FeedState {
    return this.#feed;
  }

  find(key: SessionKey, exchange?: Exchange): MaybePromise<Resolution> {
    if (this.#isTold) {
      const entry = this.#entries.get(key);
      if (entry !== undefined && this.#stateOf(entry) === "used") return entry.hit;
    }
    return this.#lookUp(key, exchange);
  }

  /** What `find` would make of the entry of a key, for an operator: changes nothing, not even whose turn it is to go. */
  peek(key: SessionKey): CachePeek {
    const entry = this.#entries.peek(key);
    const kept = entry && { hit: entry.hit, ageMs: this.#options.now() - entry.readAt };
    if (!this.#isTold) return { state: "unheard", ...kept };
    return entry === undefined ? { state: "absent" } : { state: this.#stateOf(entry), ...kept };
  }

  /** What `find` would answer if the store failed like that; changes nothing. */
  peekWithoutStore(key: SessionKey, error: unknown): Resolution {
    return this.#staleOr(error, this.#entries.peek(key));
  }

  #stateOf(entry: Entry): "used" | "unheard" | "ended" | "old" {
    if (entry.epoch !== this.#epoch) return "unheard";
    const now = this.#options.now();
    // An entry that has ended may have been touched by another instance: the store knows.
    if (now >= entry.endsAt) return "ended";
    return now - entry.readAt < this.#options.maxAgeMs ? "used" : "old";
  }

  changed(key: SessionKey): void {
    const flight = this.#flights.get(key);
    if (flight !== undefined) flight.overtaken = true;
    for (const overdue of this.#overdue) if (overdue.key === key) overdue.overtaken = true;
    if (this.#entries.delete(key)) this.#options.observer.invalidated();
    this.#options.observer.changed(key);
  }

  ended(key: SessionKey, endedAt: number): void {
    this.changed(key);
    this.#options.observer.ended(key);
    if (Number.isFinite(endedAt)) this.#options.observer.revocationDelay(Math.max(0, this.#options.now() - endedAt));
  }

  changedAll(): void {
    this.#epoch++;
    for (const flights of [this.#flights.values(), this.#overdue]) {
      for (const flight of flights) flight.overtaken = true;
    }
    this.#entries.clear();
  }

  feed(state: FeedState): void {
    this.#feed = state;
    this.#isTold = state === "tracking" || state === "messages";
    this.#epoch++;
    if (this.#options.staleOnOutageMs === 0) this.#entries.clear();
    this.#options.observer.feed(state);
  }

  delayed(by: "tracking" | "messages", ms: number): void {
    this.#options.observer.changeDelay(by, ms);
  }

  #lookUp(key: SessionKey, exchange: Exchange | undefined): MaybePromise<Resolution> {
    const flight = this.#flights.get(key);
    if (flight !== undefined && !flight.overtaken && performance.now() - flight.startedMs < JOIN_WITHIN_MS) {
      return flight.answer.then(coalesced);
    }
    return onBehalfOf(exchange, this.#askStore, key);
  }

  readonly #askStore = (key: SessionKey): MaybePromise<Resolution> => {
    let found: MaybePromise<FindResult>;
    try {
      found = this.#options.store.find(key);
    } catch (error) {
      return this.#withoutStore(key, error);
    }
    if (!(found instanceof Promise)) return resolution(key, found, "store");
    return this.#await(key, found);
  };

  #await(key: SessionKey, first: Promise<FindResult>): Promise<Resolution> {
    const { promise: answer, resolve } = Promise.withResolvers<Resolution>();
    const flight: Flight = { key, answer, startedMs: performance.now(), overtaken: false };
    const before = this.#flights.get(key);
    if (before !== undefined) this.#overdue.add(before);
    this.#flights.set(key, flight);
    resolve(this.#land(first, flight));
    return answer;
  }

  async #land(first: Promise<FindResult>, flight: Flight): Promise<Resolution> {
    const { key } = flight;
    let asked = first;
    try {
      for (let lookup = 1; ; lookup++) {
        const epoch = this.#epoch;
        const found = await asked;
        if (flight.overtaken && lookup < MAX_LOOKUPS) {
          flight.overtaken = false;
          asked = Promise.resolve(this.#options.store.find(key));
          continue;
        }
        if (found.outcome === "hit" && this.#isTold && !flight.overtaken && epoch === this.#epoch)
          this.#keep(key, found.session);
        // What was kept for an outage is older than this answer, and perhaps of a session that has ended.
        else if (this.#flights.get(key) === flight) this.#entries.delete(key);
        return resolution(key, found, "store");
      }
    } catch (error) {
      return this.#withoutStore(key, error);
    } finally {
      if (this.#flights.get(key) === flight) this.#flights.delete(key);
      else this.#overdue.delete(flight);
    }
  }

  #keep(key: SessionKey, session: Session): void {
    const hit: Resolution = { outcome: "hit", key, session, source: "cache" };
    const entry: Entry = { hit, readAt: this.#options.now(), endsAt: endOf(session), epoch: this.#epoch };
    this.#entries.set(key, entry, { size: ENTRY_BYTES + roughSize(session as unknown as Json) });
  }

  /** The store does not answer: what was read before may do, for a while, and says so. */
  #withoutStore(key: SessionKey, error: unknown): Resolution {
    return this.#staleOr(error, this.#entries.get(key));
  }

  #staleOr(error: unknown, entry: Entry | undefined): Resolution {
    const { staleOnOutageMs, maxAgeMs, now } = this.#options;
    if (staleOnOutageMs === 0) return outage(error);
    const at = now();
    if (entry === undefined || at >= entry.endsAt || at - entry.readAt > maxAgeMs + staleOnOutageMs)
      return outage(error);
    return { ...entry.hit, source: "stale", staleMs: at - entry.readAt, error: storeUnavailable(error) };
  }
}

function coalesced(answer: Resolution): Resolution {
  return answer.source === "store" ? { ...answer, source: "coalesced" } : answer;
}
