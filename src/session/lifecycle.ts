import { ProxyError, storeUnavailable } from "../core/errors.ts";
import type { Exchange, WriteBackCommand } from "../core/exchange.ts";
import { type Json, sameJson } from "../core/json.ts";
import {
  type AttributeChanges,
  type Handle,
  handleOf,
  type Session,
  type SessionClient,
  type SessionEvent,
  type SessionKey,
  type SessionUser,
  withChanges,
} from "../core/session.ts";
import type { AttributeResult, SessionEntry, SessionStore } from "../core/store.ts";
import type { SessionCookie } from "./cookie.ts";
import { destroyAllOf, destroyWithSiblings } from "./ending.ts";
import { type ExpiryPolicy, expiryAfterUse, ROTATION_OVERLAP_MS } from "./expiry.ts";
import type { Resolution } from "./resolver.ts";
import type { SessionCommands } from "./write-back.ts";

/** Lost races against other writers before the old session is simply ended. */
const RETIRE_ATTEMPTS = 8;
/** Ids that replaced one id within its overlap: logins at the same time. */
const MAX_SIBLINGS = 8;
/** Of the sessions that one logout ended. */
const MAX_HANDLES_TOLD = 100;

export interface Lifecycle {
  readonly store: SessionStore;
  readonly cookie: SessionCookie;
  readonly expiry: ExpiryPolicy;
  /** Sessions of one user; the oldest end when there are more. 0: no limit. */
  readonly maxPerUser: number;
  readonly now: () => number;
  /** @param fields what the log says beside the handle of the exchange, or in its place. */
  readonly onEvent: (event: SessionEvent, exchange: Exchange, fields?: Readonly<Record<string, unknown>>) => void;
}

/**
 * Does what the application's response asks for, and saves it, before the response head is released.
 * @returns the `Set-Cookie` value for the browser, if any.
 * @throws ProxyError `session_store_unavailable` when the store does not answer, `session_write_conflict` when another
 *   response has changed the same attribute: then the response must not be released.
 */
export async function obey(
  lifecycle: Lifecycle,
  commands: SessionCommands,
  resolution: Resolution,
  client: SessionClient,
  exchange: Exchange,
): Promise<string | undefined> {
  // Nobody knows which session this would replace, write to or end. It fails as a whole, not half-way.
  if (resolution.outcome === "unavailable") {
    for (const command of ["start", "set", "end"] as const) {
      if (commands[command] !== undefined) exchange.countWriteBack(command, "failed");
    }
    throw storeUnavailable(resolution.error);
  }
  if (commands.end !== undefined) return endSession(lifecycle, commands.end, resolution, exchange);
  if (commands.start !== undefined) {
    const { user, data } = commands.start;
    const changes = { ...data, ...commands.set };
    const cookie = await startSession(lifecycle, user, changes, resolution, client, exchange);
    if (commands.set !== undefined) exchange.countWriteBack("set", "saved");
    return cookie;
  }
  if (commands.set !== undefined) await setAttributes(lifecycle, commands.set, resolution, exchange);
  return undefined;
}

/**
 * Begins a session, always under a new id: one that the browser brought along, known or not, is never adopted
 * (session fixation). What a visitor collected before the login, or the same user before a new one, stays; another
 * user's never does.
 */
async function startSession(
  lifecycle: Lifecycle,
  user: SessionUser | null,
  changes: AttributeChanges,
  resolution: Resolution,
  client: SessionClient,
  exchange: Exchange,
): Promise<string> {
  const { store, cookie, expiry } = lifecycle;
  const now = lifecycle.now();
  const before = resolution.outcome === "hit" ? resolution.session : undefined;
  const carries = before !== undefined && (before.user === null || before.user.id === user?.id);
  const expiresAt = expiryAfterUse(now, now, expiry);
  const { key, setCookie } = cookie.issue(expiresAt - now);
  const session: Session = {
    user,
    data: withChanges(carries ? before.data : {}, changes),
    createdAt: now,
    expiresAt,
    usedAt: now,
    version: 1,
    client,
    ...(resolution.key !== undefined && before !== undefined && { siblings: [resolution.key] }),
  };
  await counted(exchange, "start", async () => {
    if ((await store.create(key, session)) !== "created") {
      throw new ProxyError("proxy_internal_error", "a new session key was taken already");
    }
    if (before === undefined || resolution.key === undefined) return;
    const retired = await retire(store, resolution.key, key, before, now);
    // Another response wrote to the old session in the meantime, or ended it: the new one follows.
    if (carries && retired !== before) await follow(store, key, session, withChanges(retired?.data ?? {}, changes));
  });
  exchange.handle = handleOf(key);
  if (before === undefined || resolution.key === undefined) lifecycle.onEvent("created", exchange);
  else lifecycle.onEvent("rotated", exchange, { previous_handle: handleOf(resolution.key) });
  if (user !== null && lifecycle.maxPerUser > 0) await endOldest(lifecycle, user.id, exchange);
  return setCookie;
}

/**
 * Ends what is beyond `maxPerUser`, the oldest first, also when that is this very login because others have overtaken it:
 * so logins at once agree on which ones stay. The login itself has succeeded: a store that fails now is counted, and the
 * next login tries again.
 */
async function endOldest(lifecycle: Lifecycle, userId: string, exchange: Exchange): Promise<void> {
  const { store, maxPerUser, now, onEvent } = lifecycle;
  try {
    const current = (await store.byUser(userId)).filter(({ session }) => session.retiresAt === undefined);
    const at = now();
    // What began in the future began before this, by a clock that is ahead.
    const beganAt = ({ session: { createdAt } }: SessionEntry) => (createdAt > at ? 0 : createdAt);
    const oldestFirst = current.toSorted((a, b) => beganAt(a) - beganAt(b) || (a.key < b.key ? -1 : 1));
    const onDestroyed = (key: SessionKey) =>
      onEvent("evicted", exchange, { handle: handleOf(key), by_handle: exchange.handle });
    for (const { key } of oldestFirst.slice(0, Math.max(0, current.length - maxPerUser)))
      await destroyWithSiblings(store, key, { onDestroyed });
  } catch {
    // The login stands.
  }
}

/**
 * Lets the id before the login answer for a short overlap and no longer, however often it is touched. The new session
 * is there already, so whatever breaks here leaves one that works.
 * @returns the session as it was retired: `session` itself if nobody changed it; `undefined` if it had been ended.
 */
async function retire(
  store: SessionStore,
  key: SessionKey,
  successor: SessionKey,
  session: Session,
  now: number,
): Promise<Session | undefined> {
  let current = session;
  for (let attempt = 0; attempt < RETIRE_ATTEMPTS; attempt++) {
    const retiresAt = Math.min(current.retiresAt ?? Infinity, now + ROTATION_OVERLAP_MS);
    const siblings = [...(current.siblings ?? []), successor].slice(-MAX_SIBLINGS);
    const outcome = await store.commit(key, { ...current, version: current.version + 1, retiresAt, siblings });
    if (outcome === "committed") return current;
    if (outcome === "unknown") return undefined;
    const found = await store.find(key);
    if (found.outcome !== "hit") return undefined;
    current = found.session;
  }
  await store.destroy(key);
  return current;
}

async function follow(store: SessionStore, key: SessionKey, session: Session, data: Session["data"]): Promise<void> {
  const changes: Record<string, Json | undefined> = { ...data };
  for (const name of Object.keys(session.data)) if (!Object.hasOwn(data, name)) changes[name] = undefined;
  await store.setAll(key, changes);
}

async function setAttributes(
  lifecycle: Lifecycle,
  changes: NonNullable<SessionCommands["set"]>,
  resolution: Resolution,
  exchange: Exchange,
): Promise<void> {
  const { key, session } = resolution;
  if (key === undefined || session === undefined) {
    exchange.countWriteBack("set", "no-session");
    return;
  }
  const result = await failuresCounted(exchange, "set", () => setEverywhere(lifecycle.store, key, changes, session));
  if (result.outcome === "committed") exchange.countWriteBack("set", "saved");
  // Ended by another request while this one was under way: there is nothing to write to, and nothing comes back.
  else if (result.outcome === "unknown") exchange.countWriteBack("set", "no-session");
  else {
    exchange.countWriteBack("set", "conflict");
    throw new ProxyError("session_write_conflict", "another response changed the same session attribute");
  }
}

/**
 * A write to a session that has been replaced since it was read goes to those that replaced it too, or it would be lost:
 * to those of the same user, and to the one that a visitor signed in to.
 */
async function setEverywhere(
  store: SessionStore,
  key: SessionKey,
  changes: AttributeChanges,
  base: Session,
): Promise<AttributeResult> {
  const result = await store.setAll(key, changes, base);
  if (result.outcome !== "committed" || result.session.retiresAt === undefined) return result;
  for (const successor of result.session.siblings ?? []) {
    const found = await store.find(successor);
    if (found.outcome !== "hit" || found.session.retiresAt !== undefined) continue;
    const { user, data } = found.session;
    if (base.user !== null && base.user.id !== user?.id) continue;
    if (Object.keys(changes).some((name) => !sameJson(base.data[name], data[name]))) return { outcome: "conflict" };
    const followed = await store.setAll(successor, changes, found.session);
    if (followed.outcome === "conflict") return followed;
  }
  return result;
}

async function endSession(
  lifecycle: Lifecycle,
  scope: "this" | "all",
  { outcome, keys, key, session }: Resolution,
  exchange: Exchange,
): Promise<string | undefined> {
  const { store, cookie } = lifecycle;
  const presented = outcome === "ambiguous" && keys !== undefined ? keys : session !== undefined && key ? [key] : [];
  if (presented.length === 0) {
    exchange.countWriteBack("end", "no-session");
    return cookie.clear();
  }
  let count = 0;
  const handles: Handle[] = [];
  const onDestroyed = (destroyed: SessionKey): void => {
    if (++count <= MAX_HANDLES_TOLD) handles.push(handleOf(destroyed));
  };
  await counted(exchange, "end", async () => {
    const user = session?.user;
    await Promise.all(presented.map((each) => destroyWithSiblings(store, each, { onDestroyed })));
    if (scope === "all" && user) await destroyAllOf(store, user.id, { onDestroyed });
  });
  lifecycle.onEvent("ended", exchange, { scope, count, handles });
  return cookie.clear();
}

async function counted(exchange: Exchange, command: WriteBackCommand, save: () => Promise<void>): Promise<void> {
  await failuresCounted(exchange, command, save);
  exchange.countWriteBack(command, "saved");
}

async function failuresCounted<T>(exchange: Exchange, command: WriteBackCommand, save: () => Promise<T>): Promise<T> {
  try {
    return await save();
  } catch (error) {
    exchange.countWriteBack(command, "failed");
    throw error;
  }
}
