import { ProxyError } from "../core/errors.ts";
import { isJsonObject, type Json } from "../core/json.ts";
import {
  type AttributeChanges,
  EXPIRED,
  type FindResult,
  MALFORMED,
  type Peek,
  type Session,
  type SessionData,
  type SessionKey,
  UNREADABLE,
} from "../core/session.ts";
import type {
  AttributeResult,
  ChangeListener,
  CommitOutcome,
  MaybePromise,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreInspection,
} from "../core/store.ts";

/** A custom store that has not answered by then is down, for this request. */
const ANSWER_TIMEOUT_MS = 3_000;
const MAX_REASON_LENGTH = 500;

/**
 * What stands between the gateway and a store that somebody else wrote. Whatever it throws is an outage, a promise that
 * never settles is one too, and an answer that makes no sense is `malformed` where it is a session and an outage where
 * it is not: nobody is taken for logged out, and no request hangs.
 */
export class GuardedStore implements SessionStore {
  readonly kind: string;
  readonly watch?: (listener: ChangeListener) => void;
  readonly peek?: (key: SessionKey) => MaybePromise<Peek>;
  readonly inspect?: () => MaybePromise<StoreInspection>;
  readonly count?: () => MaybePromise<number>;
  readonly #store: SessionStore;
  readonly #timeoutMs: number;

  constructor(store: SessionStore, timeoutMs = ANSWER_TIMEOUT_MS) {
    this.kind = store.kind;
    this.#store = store;
    this.#timeoutMs = timeoutMs;
    if (store.watch !== undefined) this.watch = (listener) => this.#watch(listener);
    if (store.peek !== undefined) this.peek = (key) => this.#ask("peek", readPeek, () => this.#store.peek?.(key));
    if (store.inspect !== undefined)
      this.inspect = () => this.#ask("inspect", readInspection, () => this.#store.inspect?.());
    if (store.count !== undefined) this.count = () => this.#ask("count", readCount, () => this.#store.count?.());
  }

  find(key: SessionKey): MaybePromise<FindResult> {
    return this.#ask("find", readFound, () => this.#store.find(key));
  }

  create(key: SessionKey, session: Session): MaybePromise<"created" | "conflict"> {
    return this.#ask("create", oneOf("created", "conflict"), () => this.#store.create(key, session));
  }

  commit(key: SessionKey, session: Session): MaybePromise<CommitOutcome> {
    return this.#ask("commit", oneOf("committed", "conflict", "unknown"), () => this.#store.commit(key, session));
  }

  touch(key: SessionKey, expiresAt: number): MaybePromise<"touched" | "unknown"> {
    return this.#ask("touch", oneOf("touched", "unknown"), () => this.#store.touch(key, expiresAt));
  }

  destroy(key: SessionKey): MaybePromise<"destroyed" | "unknown"> {
    return this.#ask("destroy", oneOf("destroyed", "unknown"), () => this.#store.destroy(key));
  }

  byUser(userId: string): MaybePromise<readonly SessionEntry[]> {
    return this.#ask("byUser", readEntries, () => this.#store.byUser(userId));
  }

  scan(options: ScanOptions): MaybePromise<ScanPage> {
    return this.#ask("scan", readPage, () => this.#store.scan(options));
  }

  async check(): Promise<StoreCheck> {
    try {
      const { ok, detail } = await this.#ask("check", readCheck, () => this.#store.check());
      return { ok, detail: withoutPasswords(detail) };
    } catch (error) {
      return { ok: false, detail: reasonOf(error) };
    }
  }

  /** Nothing depends on a store that is being closed, so its failures end here. */
  async close(): Promise<void> {
    try {
      await this.#ask("close", readNothing, () => this.#store.close());
    } catch {}
  }

  get(key: SessionKey, name: string): MaybePromise<Json | undefined> {
    return this.#ask("get", readAttribute, () => this.#store.get(key, name));
  }

  getAll(key: SessionKey): MaybePromise<SessionData | undefined> {
    return this.#ask("getAll", readData, () => this.#store.getAll(key));
  }

  size(key: SessionKey): MaybePromise<number | undefined> {
    return this.#ask("size", readSize, () => this.#store.size(key));
  }

  set(key: SessionKey, name: string, value: Json): MaybePromise<AttributeResult> {
    return this.#ask("set", readResult, () => this.#store.set(key, name, value));
  }

  setAll(key: SessionKey, changes: AttributeChanges, base?: Session): MaybePromise<AttributeResult> {
    return this.#ask("setAll", readResult, () => this.#store.setAll(key, changes, base));
  }

  remove(key: SessionKey, name: string): MaybePromise<AttributeResult> {
    return this.#ask("remove", readResult, () => this.#store.remove(key, name));
  }

  clear(key: SessionKey): MaybePromise<AttributeResult> {
    return this.#ask("clear", readResult, () => this.#store.clear(key));
  }

  /** A store that cannot even begin to watch never will: its sessions are not cached. */
  #watch(listener: ChangeListener): void {
    const refuse = () => listener.feed("refused");
    Promise.try(() => this.#store.watch?.(listener)).catch(refuse);
  }

  /** @param read gives the store's answer back if it is one, and throws if not. */
  #ask<T>(operation: string, read: Read<T>, ask: () => unknown): MaybePromise<T> {
    try {
      const answer = ask();
      return isThenable(answer) ? this.#askLater(operation, read, answer) : read(answer, operation);
    } catch (error) {
      throw outage(error);
    }
  }

  async #askLater<T>(operation: string, read: Read<T>, answer: PromiseLike<unknown>): Promise<T> {
    try {
      return read(await within(this.#timeoutMs, operation, answer), operation);
    } catch (error) {
      throw outage(error);
    }
  }
}

/**
 * Waits for a promise, but not for ever.
 * @throws Error that names `what` when it has not settled in time; whatever becomes of it later is ignored.
 */
export async function within<T>(timeoutMs: number, what: string, promise: PromiseLike<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took longer than ${timeoutMs / 1000} s`)), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** What went wrong in code of somebody else, as one text that can be logged. */
export function reasonOf(cause: unknown): string {
  if (cause instanceof AggregateError && cause.message === "") return cause.errors.map(reasonOf).join(", ");
  if (cause instanceof Error) return withoutPasswords(cause.message || cause.name).slice(0, MAX_REASON_LENGTH);
  return typeof cause === "string" ? withoutPasswords(cause).slice(0, MAX_REASON_LENGTH) : `it threw ${nameOf(cause)}`;
}

/** A kind of value, for a message: values themselves may be secret. */
export function nameOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  return Array.isArray(value) ? "an array" : `${typeof value === "object" ? "an" : "a"} ${typeof value}`;
}

/** Drivers and their callers like to quote the URL that they were given. */
function withoutPasswords(text: string): string {
  return text.replace(/:\/\/\S*@/g, "://***@");
}

function outage(cause: unknown): ProxyError {
  const told = cause instanceof ProxyError && cause.code === "session_store_unavailable";
  const message = told ? reasonOf(cause) : `the session store gave no answer: ${reasonOf(cause)}`;
  return new ProxyError("session_store_unavailable", message, { cause });
}

type Read<T> = (answer: unknown, operation: string) => T;

function expecting<T>(is: (answer: unknown) => boolean): Read<T> {
  return (answer, operation) => {
    if (is(answer)) return answer as T;
    throw new Error(`${operation} answered ${nameOf(answer)}, which is none of its answers`);
  };
}

function oneOf<T extends string>(...words: readonly T[]): Read<T> {
  return expecting((answer) => words.includes(answer as T));
}

const FOUND_NOTHING: ReadonlySet<unknown> = new Set(["unknown", "expired", "malformed", "newer"]);

/** The one answer that is never an outage: the store did answer, but what it keeps there is no session. */
function readFound(answer: unknown): FindResult {
  if (!isJsonObject(answer)) return MALFORMED;
  const understood = answer.outcome === "hit" ? isSession(answer.session) : FOUND_NOTHING.has(answer.outcome);
  if (!understood) return MALFORMED;
  if (answer.outcome === "expired" && !isJsonObject(answer.life)) return EXPIRED;
  return answer as unknown as FindResult;
}

/** As `readFound`; what else it tells is left out where it makes no sense. */
function readPeek(answer: unknown): Peek {
  const found = readFound(answer);
  if (found.outcome === "hit" || !isJsonObject(answer)) return found;
  const { session, unreadable } = answer as unknown as Peek;
  return {
    outcome: found.outcome,
    ...(session !== undefined && isSession(session) && { session }),
    ...(unreadable !== undefined && UNREADABLE.includes(unreadable) && { unreadable }),
  };
}

/** An entry that is no session is left out, as one that cannot be read is in the stores that come with Coatcheck. */
function readEntries(answer: unknown, operation: string): readonly SessionEntry[] {
  return expecting<readonly SessionEntry[]>(Array.isArray)(answer, operation).filter(
    (entry) => isJsonObject(entry) && typeof entry.key === "string" && isSession(entry.session),
  );
}

const readPage = expecting<ScanPage>(
  (answer) =>
    isJsonObject(answer) &&
    Array.isArray(answer.keys) &&
    answer.keys.every((key) => typeof key === "string") &&
    (answer.cursor === undefined || typeof answer.cursor === "string"),
);

const readCheck = expecting<StoreCheck>(
  (answer) => isJsonObject(answer) && typeof answer.ok === "boolean" && typeof answer.detail === "string",
);

const isText = (value: unknown) => typeof value === "string";
const readInspection: Read<StoreInspection> = (answer, operation) => {
  const { facts, warnings } = expecting<StoreInspection>(
    (answer) =>
      isJsonObject(answer) &&
      Array.isArray(answer.facts) &&
      answer.facts.every((fact) => isJsonObject(fact) && isText(fact.name) && isText(fact.value)) &&
      Array.isArray(answer.warnings) &&
      answer.warnings.every(isText),
  )(answer, operation);
  return {
    facts: facts.map(({ name, value }) => ({ name, value: withoutPasswords(value) })),
    warnings: warnings.map(withoutPasswords),
  };
};

const readResult = expecting<AttributeResult>(
  (answer) =>
    isJsonObject(answer) &&
    (answer.outcome === "committed"
      ? isSession(answer.session)
      : answer.outcome === "conflict" || answer.outcome === "unknown"),
);

const readData = expecting<SessionData | undefined>((answer) => answer === undefined || isJsonObject(answer));
const readSize = expecting<number | undefined>((answer) => answer === undefined || typeof answer === "number");
const readCount = expecting<number>((answer) => Number.isSafeInteger(answer) && (answer as number) >= 0);
const readAttribute = expecting<Json | undefined>((answer) => typeof answer !== "function");
const readNothing = expecting<void>(() => true);

function isThenable(answer: unknown): answer is PromiseLike<unknown> {
  return typeof (answer as PromiseLike<unknown> | null | undefined)?.then === "function";
}

function isSession(value: unknown): boolean {
  if (!isJsonObject(value)) return false;
  const { user, data, createdAt, expiresAt, usedAt, version, retiresAt, siblings, client } = value;
  return (
    (user === null || (isJsonObject(user) && typeof user.id === "string")) &&
    isJsonObject(data) &&
    [createdAt, expiresAt, usedAt].every(Number.isFinite) &&
    Number.isSafeInteger(version) &&
    (retiresAt === undefined || Number.isFinite(retiresAt)) &&
    (siblings === undefined || (Array.isArray(siblings) && siblings.every((key) => typeof key === "string"))) &&
    (client === undefined ||
      (isJsonObject(client) && typeof client.address === "string" && typeof client.userAgent === "string"))
  );
}
