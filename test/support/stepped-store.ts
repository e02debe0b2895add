import type { FindResult, Session, SessionKey } from "../../src/core/session.ts";
import type {
  CommitOutcome,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
} from "../../src/core/store.ts";
import { AttributesByCommit } from "../../src/store/attributes.ts";

export type StepName = "find" | "create" | "commit" | "touch" | "destroy" | "byUser" | "scan";

/**
 * One gateway's way to a store: each operation waits for `step` before it happens, so that a test decides what happens
 * in between. A step that never resolves is a gateway that died there; one that rejects is an outage.
 */
export class SteppedStore extends AttributesByCommit implements SessionStore {
  readonly kind: string;
  readonly #store: SessionStore;
  readonly #step: (name: StepName, key: SessionKey) => Promise<unknown>;

  constructor(store: SessionStore, step: (name: StepName, key: SessionKey) => Promise<unknown>) {
    super();
    this.kind = store.kind;
    this.#store = store;
    this.#step = step;
  }

  async find(key: SessionKey): Promise<FindResult> {
    await this.#step("find", key);
    return this.#store.find(key);
  }

  async create(key: SessionKey, session: Session): Promise<"created" | "conflict"> {
    await this.#step("create", key);
    return this.#store.create(key, session);
  }

  async commit(key: SessionKey, session: Session): Promise<CommitOutcome> {
    await this.#step("commit", key);
    return this.#store.commit(key, session);
  }

  async touch(key: SessionKey, expiresAt: number): Promise<"touched" | "unknown"> {
    await this.#step("touch", key);
    return this.#store.touch(key, expiresAt);
  }

  async destroy(key: SessionKey): Promise<"destroyed" | "unknown"> {
    await this.#step("destroy", key);
    return this.#store.destroy(key);
  }

  async byUser(userId: string): Promise<readonly SessionEntry[]> {
    await this.#step("byUser", "");
    return this.#store.byUser(userId);
  }

  async scan(options: ScanOptions): Promise<ScanPage> {
    await this.#step("scan", "");
    return this.#store.scan(options);
  }

  async check(): Promise<StoreCheck> {
    return this.#store.check();
  }

  close(): void {}
}
