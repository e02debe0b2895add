import { type ProxyError, storeUnavailable } from "../core/errors.ts";
import type { SessionOutcome } from "../core/exchange.ts";
import type { FindResult, Session, SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import type { PresentedCookie } from "./cookie.ts";

/** The session of a request, or why there is none. An outage is an answer too: the policy decides what it means. */
export interface Resolution {
  readonly outcome: SessionOutcome;
  readonly key?: SessionKey;
  /** With the outcome `ambiguous`: the keys of the live ones. */
  readonly keys?: readonly SessionKey[];
  readonly session?: Session;
  /** With the outcome `unavailable`. */
  readonly error?: ProxyError;
}

export const NOT_ASKED: Resolution = { outcome: "not-asked" };
const ABSENT: Resolution = { outcome: "absent" };
const MALFORMED: Resolution = { outcome: "malformed" };

/**
 * Asks the store for the session of a verified cookie. A cookie that did not verify never gets this far.
 * An in-process store answers at once and costs no promise.
 */
export function resolveSession(store: SessionStore, cookie: PresentedCookie): Resolution | Promise<Resolution> {
  if (cookie.verdict === "absent") return ABSENT;
  if (cookie.keys.length === 0) return MALFORMED;
  if (cookie.keys.length > 1) return resolveAmong(store, cookie.keys);
  const key = cookie.keys[0] as SessionKey;
  try {
    const found = store.find(key);
    return found instanceof Promise ? found.then((result) => resolution(key, result), outage) : resolution(key, found);
  } catch (error) {
    return outage(error);
  }
}

/**
 * Several verified cookies of one name: one is left over from another path or domain, or was planted by a neighbouring
 * host ("cookie tossing"). The one whose session lives is meant; if more than one does, none is believed.
 */
async function resolveAmong(store: SessionStore, keys: readonly SessionKey[]): Promise<Resolution> {
  try {
    const resolutions = await Promise.all(keys.map(async (key) => resolution(key, await store.find(key))));
    const live = resolutions.filter((candidate) => candidate.outcome === "hit");
    if (live.length > 1) return { outcome: "ambiguous", keys: live.flatMap(({ key }) => key ?? []) };
    return live[0] ?? (resolutions[0] as Resolution);
  } catch (error) {
    return outage(error);
  }
}

function resolution(key: SessionKey, found: FindResult): Resolution {
  return found.outcome === "hit" ? { outcome: "hit", key, session: found.session } : { outcome: found.outcome, key };
}

function outage(error: unknown): Resolution {
  return { outcome: "unavailable", error: storeUnavailable(error) };
}
