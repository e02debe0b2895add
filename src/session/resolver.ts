import { type ProxyError, storeUnavailable } from "../core/errors.ts";
import type { Exchange, SessionOutcome, SessionSource } from "../core/exchange.ts";
import type { IdentityValues } from "../core/identity.ts";
import { onBehalfOf } from "../core/on-behalf.ts";
import type { FindResult, Handle, Session, SessionKey, SessionLife } from "../core/session.ts";
import type { MaybePromise, SessionStore } from "../core/store.ts";
import type { PresentedCookie } from "./cookie.ts";

/** The session of a request, or why there is none. An outage is an answer too: the policy decides what it means. */
export interface Resolution {
  readonly outcome: SessionOutcome;
  readonly key?: SessionKey;
  /** With the outcome `ambiguous`: the keys of the live ones. */
  readonly keys?: readonly SessionKey[];
  readonly session?: Session;
  /** With the outcome `expired`, where the store tells. */
  readonly life?: SessionLife;
  /** Of the session; of a cached one it is cut out of the key only once. */
  handle?: Handle;
  /** What upstream is told of the session; of a cached one only once. */
  identity?: IdentityValues;
  /** Absent when nobody had to be asked. */
  readonly source?: SessionSource;
  /** With the source `stale`: how long ago the session was read, milliseconds. */
  readonly staleMs?: number;
  /** With the outcome `unavailable`, and the source `stale`. */
  readonly error?: ProxyError;
}

/** Where sessions are looked up: a store, or a cache before it. It answers an outage and does not throw it. */
export interface SessionLookup {
  /** @param exchange whose spans and record tell of the commands that this takes. */
  find(key: SessionKey, exchange?: Exchange): MaybePromise<Resolution>;
}

/** Asks the store each time: for stores in this process, and those that do not tell of changes. */
export class StoreLookup implements SessionLookup {
  readonly #store: Pick<SessionStore, "find">;
  readonly #find: (key: SessionKey) => MaybePromise<FindResult>;
  /** Such a store sends commands to a server; one in this process should not pay for being able to tell whose they are. */
  readonly #isRemote: boolean;

  constructor(store: Pick<SessionStore, "find" | "watch">) {
    this.#store = store;
    this.#find = (key) => store.find(key);
    this.#isRemote = store.watch !== undefined;
  }

  find(key: SessionKey, exchange?: Exchange): MaybePromise<Resolution> {
    try {
      const found = this.#isRemote ? onBehalfOf(exchange, this.#find, key) : this.#store.find(key);
      return found instanceof Promise
        ? found.then((result) => resolution(key, result, "store"), outage)
        : resolution(key, found, "store");
    } catch (error) {
      return outage(error);
    }
  }
}

export const NOT_ASKED: Resolution = { outcome: "not-asked" };
const ABSENT: Resolution = { outcome: "absent" };
const MALFORMED: Resolution = { outcome: "malformed" };

/**
 * The session of a verified cookie. A cookie that did not verify never gets this far. An answer that is there at once
 * costs no promise.
 */
export function resolveSession(
  lookup: SessionLookup,
  cookie: PresentedCookie,
  exchange?: Exchange,
): MaybePromise<Resolution> {
  if (cookie.verdict === "absent") return ABSENT;
  if (cookie.keys.length === 0) return MALFORMED;
  if (cookie.keys.length > 1) return resolveAmong(lookup, cookie.keys, exchange);
  return lookup.find(cookie.keys[0] as SessionKey, exchange);
}

/**
 * Several verified cookies of one name: one is left over from another path or domain, or was planted by a neighbouring
 * host ("cookie tossing"). The one whose session lives is meant; if more than one does, none is believed.
 */
async function resolveAmong(
  lookup: SessionLookup,
  keys: readonly SessionKey[],
  exchange?: Exchange,
): Promise<Resolution> {
  const resolutions = await Promise.all(keys.map((key) => lookup.find(key, exchange)));
  const down = resolutions.find((candidate) => candidate.outcome === "unavailable");
  if (down !== undefined) return down;
  const live = resolutions.filter((candidate) => candidate.outcome === "hit");
  const [first] = live;
  if (live.length > 1)
    return {
      outcome: "ambiguous",
      keys: live.flatMap(({ key }) => key ?? []),
      ...(first?.source && { source: first.source }),
    };
  return first ?? (resolutions[0] as Resolution);
}

export function resolution(key: SessionKey, found: FindResult, source: SessionSource): Resolution {
  if (found.outcome === "hit") return { outcome: "hit", key, session: found.session, source };
  if (found.outcome === "expired" && found.life) return { outcome: "expired", key, source, life: found.life };
  return { outcome: found.outcome, key, source };
}

export function outage(error: unknown): Resolution {
  return { outcome: "unavailable", error: storeUnavailable(error) };
}
