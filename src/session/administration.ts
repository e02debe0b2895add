import { setImmediate } from "node:timers/promises";
import type {
  Refusal,
  Revocation,
  RevocationScope,
  SessionAdministration,
  SessionDetails,
  SessionReference,
  SessionSummary,
} from "../core/administration.ts";
import { ProxyError } from "../core/errors.ts";
import { type FindResult, type Handle, handleOf, type Session, type SessionKey } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import { destroyAllOf, destroyWithSiblings } from "./ending.ts";

const KEY_LENGTH = 43;
/** What `byUser` lists at most. */
const MAX_LISTED = 1000;
const SCAN_STEP = 1000;
const MAX_DATE_MS = 8.64e15;

export interface AdministrationOptions {
  readonly store: SessionStore;
  /** Told of each session that was ended, for the audit trail. @param by address of the operator, where it is known. */
  readonly onRevoked: (handle: Handle, scope: RevocationScope, by: string | undefined) => void;
}

interface Located {
  readonly key: SessionKey;
  readonly found: FindResult;
}

/** What operators do with sessions. It asks the store itself, never a cache. */
export function createSessionAdministration(options: AdministrationOptions): SessionAdministration {
  const { store } = options;
  return {
    list: async (userId) => {
      const entries = await store.byUser(userId);
      const sessions = entries.map(({ key, session }) => summarize(key, session));
      return { count: sessions.length, truncated: sessions.length >= MAX_LISTED, sessions };
    },
    show: async (reference) => {
      const located = await locate(store, reference);
      if ("refused" in located) return located;
      const { key, found } = located;
      if (found.outcome === "hit") return describe(key, found.session);
      return notFound(`the session ${handleOf(key)} cannot be read (${found.outcome}); it can be ended`);
    },
    end: async (reference) => {
      const located = await locate(store, reference);
      if ("refused" in located) return located;
      const revoked = revocation(options, "one", reference.by);
      await revoked.attempt(() => destroyWithSiblings(store, located.key, revoked));
      return revoked.ended.length > 0 ? revoked.result(true) : notFound("the session has ended in the meantime");
    },
    endAll: (userId, except, by) => endAll(options, userId, except, by),
  };
}

async function endAll(
  options: AdministrationOptions,
  userId: string,
  exceptPrefix: string | undefined,
  by: string | undefined,
): Promise<Revocation | Refusal> {
  const { store } = options;
  let except: SessionKey | undefined;
  if (exceptPrefix !== undefined) {
    const located = await locate(store, { prefix: exceptPrefix, userId });
    if ("refused" in located) return located;
    // Keeping this one would sign the user out all the same, a few seconds later.
    if (located.found.outcome === "hit" && located.found.session.retiresAt !== undefined)
      return conflict("the session to keep has been replaced by a login and ends soon: keep the one that replaced it");
    except = located.key;
  }
  const revoked = revocation(options, except === undefined ? "all" : "others", by);
  const { onDestroyed } = revoked;
  return revoked.result(await revoked.attempt(() => destroyAllOf(store, userId, { except, onDestroyed })));
}

/** Gathers what was ended, and tells of each at once: a failure in the middle leaves nothing unsaid. */
function revocation({ onRevoked }: AdministrationOptions, scope: RevocationScope, by: string | undefined) {
  const ended: Handle[] = [];
  return {
    ended,
    onDestroyed: (key: SessionKey): void => {
      const handle = handleOf(key);
      ended.push(handle);
      onRevoked(handle, scope, by);
    },
    result: (complete: boolean): Revocation => ({ count: ended.length, ended, complete }),
    attempt: async <T>(work: () => Promise<T>): Promise<T> => {
      try {
        return await work();
      } catch (error) {
        if (ended.length === 0 || !(error instanceof ProxyError)) throw error;
        const message = `${error.message}; ended before that: ${ended.length}; ask again to end the others`;
        throw new ProxyError(error.code, message, { cause: error });
      }
    },
  };
}

/** Finds the one session that is meant. One that cannot be read counts: it can still be ended. */
async function locate(store: SessionStore, reference: SessionReference): Promise<Located | Refusal> {
  const { prefix, userId } = reference;
  const located: Located[] = [];
  for await (const candidate of candidates(store, reference)) {
    located.push(candidate);
    if (located.length > 1)
      return conflict(`several sessions begin with ${prefix}: give more characters of the key, or the user`);
  }
  const ofWhom = userId === undefined ? "" : " of this user";
  return located[0] ?? notFound(`there is no live session${ofWhom} that begins with ${handleOf(prefix)}`);
}

async function* candidates(store: SessionStore, { prefix, userId, signal }: SessionReference): AsyncGenerator<Located> {
  if (userId !== undefined) {
    for (const { key, session } of await store.byUser(userId))
      if (key.startsWith(prefix)) yield { key, found: { outcome: "hit", session } };
    return;
  }
  // A scan may show a key more than once.
  const seen = new Set<SessionKey>();
  for await (const keys of prefix.length === KEY_LENGTH ? [[prefix]] : scanned(store, prefix, signal)) {
    for (const key of keys) {
      if (seen.has(key)) continue;
      seen.add(key);
      const found = await store.find(key);
      if (found.outcome !== "unknown" && found.outcome !== "expired") yield { key, found };
    }
  }
}

/** The keys with a prefix, in steps between which other requests get through. */
async function* scanned(
  store: SessionStore,
  prefix: string,
  signal?: AbortSignal,
): AsyncGenerator<readonly SessionKey[]> {
  let cursor: string | undefined;
  do {
    signal?.throwIfAborted();
    const page = await store.scan({ prefix, limit: SCAN_STEP, ...(cursor !== undefined && { cursor }) });
    yield page.keys;
    cursor = page.cursor;
    await setImmediate();
  } while (cursor !== undefined);
}

function summarize(key: SessionKey, session: Session): SessionSummary {
  const { createdAt, usedAt, expiresAt, retiresAt, client } = session;
  return {
    handle: handleOf(key),
    createdAt: isoTime(createdAt),
    usedAt: isoTime(usedAt),
    expiresAt: isoTime(expiresAt),
    retiresAt: retiresAt === undefined ? null : isoTime(retiresAt),
    client: client ?? null,
  };
}

function describe(key: SessionKey, session: Session): SessionDetails {
  const { user, data, siblings = [], version } = session;
  return {
    ...summarize(key, session),
    user: user && { id: user.id, claims: Object.keys(user).filter((claim) => claim !== "id") },
    attributes: Object.entries(data).map(([name, value]) => ({
      name,
      bytes: Buffer.byteLength(JSON.stringify(value)),
    })),
    siblings: siblings.map(handleOf),
    version,
  };
}

/** A time beyond what a date can hold comes from a damaged value; it must not stop an operator. */
function isoTime(ms: number): string {
  return new Date(Math.max(-MAX_DATE_MS, Math.min(ms, MAX_DATE_MS))).toISOString();
}

function notFound(reason: string): Refusal {
  return { refused: "not-found", reason };
}

function conflict(reason: string): Refusal {
  return { refused: "conflict", reason };
}
