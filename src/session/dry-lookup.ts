import type { FindResult, Peek, SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import type { CachePeek, NearCache } from "./near-cache.ts";
import { outage, type Resolution, resolution, type SessionLookup } from "./resolver.ts";

/** What was seen of one key. */
export interface Sighting {
  readonly key: SessionKey;
  /** `undefined`: there is no cache. */
  readonly cache: CachePeek | undefined;
  /** What the store answered; `undefined`: nothing. */
  readonly store: Peek | undefined;
  /** Why not. */
  readonly error: unknown;
  /** How long the store took, milliseconds. */
  readonly storeMs: number;
  /** The cache goes on saying what it said before the store was asked. */
  readonly stillCached: boolean;
  /** What a request gets. */
  readonly resolution: Resolution;
}

/**
 * Looks sessions up as a request would, for somebody who wants to know what that gives: nothing is kept, moved or counted.
 * The store is asked also where the cache answers, so that the two can be compared.
 */
export class DryLookup implements SessionLookup {
  readonly seen: Sighting[] = [];
  readonly #cache: NearCache | undefined;
  readonly #store: Pick<SessionStore, "find" | "peek">;

  constructor(cache: NearCache | undefined, store: Pick<SessionStore, "find" | "peek">) {
    this.#cache = cache;
    this.#store = store;
  }

  async find(key: SessionKey): Promise<Resolution> {
    const cache = this.#cache?.peek(key);
    const startedMs = performance.now();
    let store: Peek | undefined;
    let error: unknown;
    try {
      store = await (this.#store.peek === undefined ? this.#store.find(key) : this.#store.peek(key));
    } catch (failure) {
      error = failure;
    }
    const storeMs = performance.now() - startedMs;
    const stillCached = cache?.state === "used" && this.#cache?.peek(key).hit === cache.hit;
    const answer = this.#answer(key, cache, store, error);
    this.seen.push({ key, cache, store, error, storeMs, stillCached, resolution: answer });
    // A copy: what upstream is told is filled in, and the cache's own is not for that.
    return { ...answer };
  }

  #answer(key: SessionKey, cache: CachePeek | undefined, store: Peek | undefined, error: unknown): Resolution {
    if (cache?.state === "used" && cache.hit !== undefined) return cache.hit;
    if (store === undefined) return this.#cache?.peekWithoutStore(key, error) ?? outage(error);
    return resolution(key, foundOf(store), "store");
  }
}

function foundOf({ outcome, session }: Peek): FindResult {
  if (outcome !== "hit") return { outcome };
  return session === undefined ? { outcome: "malformed" } : { outcome, session };
}
