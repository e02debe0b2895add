import { type SessionStore, STORE_SCHEMES } from "../core/store.ts";
import { MemoryStore } from "./memory.ts";

export interface OpenStoreOptions {
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  readonly absoluteTimeoutMs: number;
}

/**
 * Opens the store that a `store:` URL names. Only the driver that is asked for is loaded.
 * @throws Error when a SQLite file or a module cannot be opened. A Redis that is down is not an error here: it may come later.
 */
export async function openStore(url: string, options: OpenStoreOptions): Promise<SessionStore> {
  if (url.startsWith("sqlite:")) {
    const { SqliteStore } = await import("./sqlite.ts");
    return new SqliteStore(url.slice("sqlite:".length), options.now);
  }
  if (url.startsWith("redis:") || url.startsWith("rediss:")) {
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
