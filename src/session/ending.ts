import { setImmediate } from "node:timers/promises";
import { forEachAtOnce } from "../core/concurrency.ts";
import type { SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";

const MAX_ENDED_TOGETHER = 64;
/** Sessions that are ended at once: a large account must not hold up the store for everybody else. */
const ENDED_AT_ONCE = 16;
/** Rounds of listing and ending: a hundred thousand sessions, or a user who signs in faster than we work. */
const MAX_ROUNDS = 100;

export interface DestroyOptions {
  /** This one stays. */
  readonly except?: SessionKey | undefined;
  /** Told of each session that was there, as soon as it is gone: what comes after may fail. */
  readonly onDestroyed?: (key: SessionKey) => void;
}

/** During the overlap of a rotation a visitor has several ids; a logout with any of them ends all. */
export async function destroyWithSiblings(
  store: SessionStore,
  key: SessionKey,
  { except, onDestroyed }: DestroyOptions = {},
): Promise<void> {
  const keys = new Set([key]);
  // The set grows while it is walked, to the siblings of siblings.
  for (const each of keys) {
    if (each === except) continue;
    const found = await store.find(each);
    if (found.outcome === "hit") for (const sibling of found.session.siblings ?? []) keys.add(sibling);
    if ((await store.destroy(each)) === "destroyed" && found.outcome !== "expired") onDestroyed?.(each);
    if (keys.size > MAX_ENDED_TOGETHER) return;
  }
}

/**
 * Ends the sessions of a user until none is left: a store lists so many at a time, and others may begin meanwhile.
 * @returns false when they began as fast as they were ended.
 */
export async function destroyAllOf(
  store: SessionStore,
  userId: string,
  options: DestroyOptions = {},
): Promise<boolean> {
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const keys = (await store.byUser(userId)).map(({ key }) => key).filter((key) => key !== options.except);
    if (keys.length === 0) return true;
    await forEachAtOnce(keys, ENDED_AT_ONCE, async (key) => {
      // A store in this process answers without letting go of it.
      await setImmediate();
      await destroyWithSiblings(store, key, options);
    });
  }
  return false;
}
