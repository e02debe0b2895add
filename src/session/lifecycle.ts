import { ProxyError } from "../core/errors.ts";
import type { Exchange, WriteBackCommand } from "../core/exchange.ts";
import { handleOf, type Session, type SessionKey, type SessionUser } from "../core/session.ts";
import type { SessionStore } from "../core/store.ts";
import type { SessionCookie } from "./cookie.ts";
import { type ExpiryPolicy, expiryAfterUse, ROTATION_OVERLAP_MS } from "./expiry.ts";
import type { Resolution } from "./resolver.ts";
import type { SessionCommands } from "./write-back.ts";

export const SESSION_EVENTS = ["created", "rotated", "ended", "expired"] as const;
export type SessionEvent = (typeof SESSION_EVENTS)[number];

export interface Lifecycle {
  readonly store: SessionStore;
  readonly cookie: SessionCookie;
  readonly expiry: ExpiryPolicy;
  readonly now: () => number;
  readonly onEvent: (event: SessionEvent, exchange: Exchange) => void;
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
  exchange: Exchange,
): Promise<string | undefined> {
  if (commands.end !== undefined) return endSession(lifecycle, commands.end, resolution, exchange);
  if (commands.start !== undefined) {
    const data = definedOnly({ ...commands.start.data, ...commands.set });
    const cookie = await startSession(lifecycle, commands.start.user, data, resolution, exchange);
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
  data: Session["data"],
  resolution: Resolution,
  exchange: Exchange,
): Promise<string> {
  const { store, cookie, expiry } = lifecycle;
  const now = lifecycle.now();
  const before = resolution.outcome === "hit" ? resolution.session : undefined;
  const carried = before !== undefined && (before.user === null || before.user.id === user?.id) ? before.data : {};
  const { key, setCookie } = cookie.issue();
  const session: Session = {
    user,
    data: { ...carried, ...data },
    createdAt: now,
    expiresAt: expiryAfterUse(now, now, expiry),
    version: 1,
  };
  await counted(exchange, "start", async () => {
    if ((await store.create(key, session)) !== "created") {
      throw new ProxyError("proxy_internal_error", "a new session key was taken already");
    }
    if (before !== undefined) await retire(store, resolution.key as SessionKey, before, now);
  });
  exchange.handle = handleOf(key);
  lifecycle.onEvent(before === undefined ? "created" : "rotated", exchange);
  return setCookie;
}

/** Lets the id before the login answer for a short overlap and no longer, however often it is touched. */
async function retire(store: SessionStore, key: SessionKey, session: Session, now: number): Promise<void> {
  if (session.retiresAt !== undefined) return;
  let current = session;
  for (let attempt = 0; attempt < 4; attempt++) {
    const outcome = await store.commit(key, {
      ...current,
      version: current.version + 1,
      retiresAt: now + ROTATION_OVERLAP_MS,
    });
    if (outcome !== "conflict") return;
    const found = await store.find(key);
    if (found.outcome !== "hit") return;
    current = found.session;
  }
  await store.destroy(key);
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
  const result = await failuresCounted(exchange, "set", async () => lifecycle.store.setAll(key, changes, session));
  if (result.outcome === "committed") exchange.countWriteBack("set", "saved");
  // Ended by another request while this one was under way: there is nothing to write to, and nothing comes back.
  else if (result.outcome === "unknown") exchange.countWriteBack("set", "no-session");
  else {
    exchange.countWriteBack("set", "conflict");
    throw new ProxyError("session_write_conflict", "another response changed the same session attribute");
  }
}

async function endSession(
  lifecycle: Lifecycle,
  scope: "this" | "all",
  resolution: Resolution,
  exchange: Exchange,
): Promise<string | undefined> {
  const { key, session } = resolution;
  if (key === undefined || session === undefined) {
    exchange.countWriteBack("end", "no-session");
    return lifecycle.cookie.clear();
  }
  await counted(exchange, "end", async () => {
    const user = session.user;
    const others = scope === "all" && user !== null ? await lifecycle.store.byUser(user.id) : [];
    await Promise.all(others.map(async (entry) => lifecycle.store.destroy(entry.key)));
    await lifecycle.store.destroy(key);
  });
  lifecycle.onEvent("ended", exchange);
  return lifecycle.cookie.clear();
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

function definedOnly(attributes: Record<string, Session["data"][string] | undefined>): Session["data"] {
  const defined: Record<string, Session["data"][string]> = {};
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) defined[name] = value;
  return defined;
}
