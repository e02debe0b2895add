import { existsSync } from "node:fs";
import { isRedisUrl } from "../core/redis-url.ts";
import { type SessionStore, STORE_SCHEMES, type StoreObserver } from "../core/store.ts";
import type { SessionCodec } from "./codec.ts";
import { MemoryStore } from "./memory.ts";

export interface OpenStoreOptions {
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  readonly absoluteTimeoutMs: number;
  /** How sessions are written, for the stores that are not in memory. */
  readonly codec: SessionCodec;
  /** How they lie in Redis. */
  readonly layout?: "blob" | "fields";
  readonly observer?: StoreObserver;
}

/**
 * Opens the store that the configuration names, or the two of them. Only the drivers that are asked for are loaded.
 * @throws Error when a SQLite file or a module cannot be opened, or a file does not exist where there should be sessions
 *   to fall back to. A Redis that is down is not an error here: it may come later.
 */
export async function openStore(
  store: string | { readonly primary: string; readonly fallback: string },
  options: OpenStoreOptions,
): Promise<SessionStore> {
  if (typeof store === "string") return openOne(store, options);
  const file = store.fallback.startsWith("sqlite:") ? store.fallback.slice("sqlite:".length) : undefined;
  // It would be made, empty: a mistyped name would log everybody out.
  if (file !== undefined && !existsSync(file)) throw new Error(`store.fallback: there is no file ${file}`);
  const { FallbackStore } = await import("./fallback.ts");
  const primary = await openOne(store.primary, options);
  try {
    return new FallbackStore(primary, await openOne(store.fallback, options), options.now);
  } catch (error) {
    await primary.close();
    throw error;
  }
}

async function openOne(url: string, options: OpenStoreOptions): Promise<SessionStore> {
  if (url.startsWith("sqlite:")) {
    const { SqliteStore } = await import("./sqlite.ts");
    return new SqliteStore(url.slice("sqlite:".length), options);
  }
  if (isRedisUrl(url)) {
    const { RedisStore } = await import("./redis.ts");
    const store = new RedisStore(url, options);
    await store.firstAnswer();
    return store;
  }
  if (url.startsWith("module:")) {
    const { openCustomStore } = await import("./custom.ts");
    return openCustomStore(url, options);
  }
  if (url === "memory:") return new MemoryStore(options.now);
  throw new TypeError(`a store URL begins with one of ${STORE_SCHEMES.join(" ")}`);
}
