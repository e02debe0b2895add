import type { Json } from "../core/json.ts";
import type { AttributeChanges, FindResult, Session, SessionData, SessionKey } from "../core/session.ts";
import type {
  AttributeResult,
  CommitOutcome,
  MaybePromise,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreInspection,
} from "../core/store.ts";
import type { Metrics } from "./metrics.ts";

/** Counts and times every operation of a store, in one place for all of them. */
export class InstrumentedStore implements SessionStore {
  readonly kind: string;
  /** Absent where the store has none: that is how it says so. */
  readonly watch?: NonNullable<SessionStore["watch"]>;
  readonly inspect?: () => MaybePromise<StoreInspection>;
  readonly count?: () => MaybePromise<number>;
  readonly #store: SessionStore;
  readonly #metrics: Metrics;
  readonly #onAnswer: (up: boolean) => void;
  readonly #onWritten: (key: SessionKey, operation: string) => void;

  /**
   * @param onAnswer told after each operation whether the store answered.
   * @param onWritten told after each operation that may have changed a session, also if it failed.
   */
  constructor(
    store: SessionStore,
    metrics: Metrics,
    onAnswer: (up: boolean) => void,
    onWritten: (key: SessionKey, operation: string) => void,
  ) {
    this.kind = store.kind;
    this.#onWritten = onWritten;
    this.#store = store;
    this.#metrics = metrics;
    this.#onAnswer = onAnswer;
    const { watch, inspect, count } = store;
    if (watch !== undefined) this.watch = watch.bind(store);
    if (inspect !== undefined) this.inspect = () => this.#measure("inspect", ok, inspect.bind(store));
    if (count !== undefined) this.count = () => this.#measure("count", ok, count.bind(store));
  }

  /** Every request comes through here, so it is written out, without the closures of `#measure`. */
  find(key: SessionKey): MaybePromise<FindResult> {
    const startedMs = performance.now();
    try {
      const found = this.#store.find(key);
      if (found instanceof Promise) return this.#findLater(found, startedMs);
      this.#count("find", found.outcome, startedMs, true);
      return found;
    } catch (error) {
      this.#count("find", "error", startedMs, false);
      throw error;
    }
  }

  async #findLater(finding: Promise<FindResult>, startedMs: number): Promise<FindResult> {
    try {
      const found = await finding;
      this.#count("find", found.outcome, startedMs, true);
      return found;
    } catch (error) {
      this.#count("find", "error", startedMs, false);
      throw error;
    }
  }

  create(key: SessionKey, session: Session): MaybePromise<"created" | "conflict"> {
    return this.#measure("create", itself, () => this.#store.create(key, session), key);
  }

  commit(key: SessionKey, session: Session): MaybePromise<CommitOutcome> {
    return this.#measure("commit", itself, () => this.#store.commit(key, session), key);
  }

  touch(key: SessionKey, expiresAt: number): MaybePromise<"touched" | "unknown"> {
    return this.#measure("touch", itself, () => this.#store.touch(key, expiresAt), key);
  }

  destroy(key: SessionKey): MaybePromise<"destroyed" | "unknown"> {
    return this.#measure("destroy", itself, () => this.#store.destroy(key), key);
  }

  byUser(userId: string): MaybePromise<readonly SessionEntry[]> {
    return this.#measure("byUser", ok, () => this.#store.byUser(userId));
  }

  scan(options: ScanOptions): MaybePromise<ScanPage> {
    return this.#measure("scan", ok, () => this.#store.scan(options));
  }

  check(): MaybePromise<StoreCheck> {
    return this.#measure("check", ok, () => this.#store.check());
  }

  close(): MaybePromise<void> {
    return this.#store.close();
  }

  get(key: SessionKey, name: string): MaybePromise<Json | undefined> {
    return this.#measure("get", ok, () => this.#store.get(key, name));
  }

  getAll(key: SessionKey): MaybePromise<SessionData | undefined> {
    return this.#measure("getAll", ok, () => this.#store.getAll(key));
  }

  size(key: SessionKey): MaybePromise<number | undefined> {
    return this.#measure("size", ok, () => this.#store.size(key));
  }

  set(key: SessionKey, name: string, value: Json): MaybePromise<AttributeResult> {
    return this.#measure("set", outcomeOf, () => this.#store.set(key, name, value), key);
  }

  setAll(key: SessionKey, changes: AttributeChanges, base?: Session): MaybePromise<AttributeResult> {
    return this.#measure("setAll", outcomeOf, () => this.#store.setAll(key, changes, base), key);
  }

  remove(key: SessionKey, name: string): MaybePromise<AttributeResult> {
    return this.#measure("remove", outcomeOf, () => this.#store.remove(key, name), key);
  }

  clear(key: SessionKey): MaybePromise<AttributeResult> {
    return this.#measure("clear", outcomeOf, () => this.#store.clear(key), key);
  }

  /** @param written the session that the operation may change. */
  #measure<T>(
    operation: string,
    status: (answer: T) => string,
    ask: () => MaybePromise<T>,
    written?: SessionKey,
  ): MaybePromise<T> {
    const startedMs = performance.now();
    const answered = (answer: T): T => {
      if (written !== undefined) this.#onWritten(written, operation);
      this.#count(operation, status(answer), startedMs, isUp(answer));
      return answer;
    };
    const failed = (error: unknown): never => {
      if (written !== undefined) this.#onWritten(written, operation);
      this.#count(operation, "error", startedMs, false);
      throw error;
    };
    try {
      const answer = ask();
      return answer instanceof Promise ? answer.then(answered, failed) : answered(answer);
    } catch (error) {
      return failed(error);
    }
  }

  #count(operation: string, status: string, startedMs: number, up: boolean): void {
    this.#metrics.storeOperation(operation, status, this.kind, (performance.now() - startedMs) / 1000);
    this.#onAnswer(up);
  }
}

const itself = (answer: string): string => answer;
const ok = (): string => "ok";
const outcomeOf = (answer: { readonly outcome: string }): string => answer.outcome;

/** `check` answers `ok: false` where the others throw. */
function isUp(answer: unknown): boolean {
  return !(typeof answer === "object" && answer !== null && "ok" in answer && answer.ok === false);
}
