/** What a session store does, as plain as possible: one map, one operation at a time. Stores are compared with it. */
import { isDeepStrictEqual } from "node:util";
import { sameJson } from "../../src/core/json.ts";
import {
  type AttributeChanges,
  EXPIRED,
  endOf,
  judge,
  type Session,
  type SessionKey,
  UNKNOWN,
  withChanges,
} from "../../src/core/session.ts";
import type { SessionStore } from "../../src/core/store.ts";

/** One call of a store, every argument known. */
export type Operation =
  | { readonly name: "find" | "destroy" | "clear"; readonly key: SessionKey }
  | { readonly name: "create" | "commit"; readonly key: SessionKey; readonly session: Session }
  | { readonly name: "touch"; readonly key: SessionKey; readonly expiresAt: number }
  | { readonly name: "setAll"; readonly key: SessionKey; readonly changes: AttributeChanges; readonly base?: Session };

export interface Answer {
  readonly outcome: string;
  readonly session?: Session;
}

/** Every session that was not destroyed, expired ones too. */
export type Sessions = ReadonlyMap<SessionKey, Session>;

/** Asks a real store. */
export async function perform(store: SessionStore, operation: Operation): Promise<Answer> {
  const { name, key } = operation;
  switch (name) {
    case "find":
      return store.find(key);
    case "create":
      return { outcome: await store.create(key, operation.session) };
    case "commit":
      return { outcome: await store.commit(key, operation.session) };
    case "touch":
      return { outcome: await store.touch(key, operation.expiresAt) };
    case "destroy":
      return { outcome: await store.destroy(key) };
    case "setAll":
      return store.setAll(key, operation.changes, operation.base);
    case "clear":
      return store.clear(key);
  }
}

/** What the model answers, and what it knows afterwards. */
export function apply(sessions: Sessions, operation: Operation, now: number): { answer: Answer; after: Sessions } {
  const { name, key } = operation;
  const kept = sessions.get(key);
  const found = kept === undefined ? UNKNOWN : judge(kept, now);
  const unchanged = (outcome: string) => ({ answer: { outcome }, after: sessions });
  const changed = (outcome: string, session: Session) => ({
    answer: { outcome, session },
    after: new Map(sessions).set(key, session),
  });
  if (name === "find") return { answer: found, after: sessions };
  if (name === "create") return kept === undefined ? changed("created", operation.session) : unchanged("conflict");
  if (name === "destroy") {
    const after = new Map(sessions);
    return { answer: { outcome: after.delete(key) ? "destroyed" : "unknown" }, after };
  }
  if (found.outcome !== "hit") return unchanged("unknown");
  const { session } = found;
  switch (name) {
    case "touch":
      return changed("touched", { ...session, expiresAt: operation.expiresAt, usedAt: now });
    case "commit": {
      const { version, user } = operation.session;
      if (version !== session.version + 1 || user?.id !== session.user?.id) return unchanged("conflict");
      return changed("committed", { ...operation.session, expiresAt: session.expiresAt, usedAt: session.usedAt });
    }
    case "clear":
      return changed("committed", { ...session, data: {}, version: session.version + 1 });
    case "setAll": {
      const { changes, base } = operation;
      const lost = Object.keys(changes).some((name) => base && !sameJson(base.data[name], session.data[name]));
      if (lost) return unchanged("conflict");
      const data = withChanges(session.data, changes);
      return changed("committed", { ...session, data, version: session.version + 1 });
    }
  }
}

/** Where a store may answer otherwise than the model. */
export interface Tolerance {
  /** It keeps the place of what was ended: `expired` for `unknown`, and who of several ended it is not known. */
  readonly tombstones?: boolean;
  /** It looks at the expiry when it writes, not at the retirement: a retired session takes a write, and stays retired. */
  readonly writesToRetired?: boolean;
}

/** Whether a store answered as the model does. */
export function agrees(
  operation: Operation,
  answer: Answer,
  expected: Answer,
  { tombstones = false }: Tolerance = {},
): boolean {
  if (tombstones && operation.name === "destroy") return true;
  const outcome = (given: string) => (tombstones && given === EXPIRED.outcome ? UNKNOWN.outcome : given);
  if (outcome(answer.outcome) !== outcome(expected.outcome)) return false;
  const [given, wanted] = [answer.session, expected.session];
  if (given === undefined || wanted === undefined) return operation.name !== "find" || given === wanted;
  if (operation.name === "find") return isDeepStrictEqual(comparable(given), comparable(wanted));
  // What a write answers may have an older expiry and last use than the store.
  return given.version === wanted.version && sameJson(given.data, wanted.data);
}

/** A store may write the end of a retired session into its expiry. */
export function comparable(session: Session) {
  return structuredClone({ ...session, expiresAt: endOf(session) });
}

/** What one client did, in its order; an operation without an answer may have happened or not. */
export type History = readonly { readonly operation: Operation; readonly answer?: Answer }[];

/**
 * Looks for an order of all operations, each client's own order kept, that answers as they were answered and ends in a
 * state that `isObserved` accepts (linearizability: Herlihy and Wing, 1990).
 * @returns that state, or `undefined` when no order explains what was seen.
 */
export function explain(
  sessions: Sessions,
  histories: readonly History[],
  now: number,
  tolerance: Tolerance,
  isObserved: (sessions: Sessions) => boolean,
): Sessions | undefined {
  const open = histories.filter((history) => history.length > 0);
  if (open.length === 0) return isObserved(sessions) ? sessions : undefined;
  for (const history of open) {
    const [{ operation, answer } = history[0] as History[number], ...rest] = history;
    const others = open.map((each) => (each === history ? rest : each));
    const { answer: expected, after } = apply(sessions, operation, now);
    const mayBeAnything = answer === undefined || (tolerance.writesToRetired && isLateWrite(operation, sessions, now));
    if (mayBeAnything || agrees(operation, answer, expected, tolerance)) {
      const explained = explain(after, others, now, tolerance, isObserved);
      if (explained !== undefined) return explained;
    }
    if (answer === undefined) {
      const explained = explain(sessions, others, now, tolerance, isObserved);
      if (explained !== undefined) return explained;
    }
  }
  return undefined;
}

function isLateWrite({ name, key }: Operation, sessions: Sessions, now: number): boolean {
  const { retiresAt = Infinity } = sessions.get(key) ?? {};
  return name !== "find" && name !== "create" && name !== "destroy" && retiresAt <= now;
}
