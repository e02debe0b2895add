import { type Json, sameJson } from "../core/json.ts";
import {
  type AttributeChanges,
  type FindResult,
  type Session,
  type SessionData,
  type SessionKey,
  withChanges,
} from "../core/session.ts";
import type { AttributeResult, CommitOutcome, MaybePromise } from "../core/store.ts";

/** Re-reads after a lost race before a write of attributes gives up. Each one means that somebody else succeeded. */
const MAX_ATTEMPTS = 16;

/** The attribute operations of a store, in terms of `find` and `commit`. A store that can do better overrides them. */
export abstract class AttributesByCommit {
  abstract find(key: SessionKey): MaybePromise<FindResult>;
  abstract commit(key: SessionKey, session: Session): MaybePromise<CommitOutcome>;

  /** `commit`, knowing which attributes are new; a store that keeps each by itself writes only those. */
  protected commitChanges(key: SessionKey, session: Session, _changes: AttributeChanges): MaybePromise<CommitOutcome> {
    return this.commit(key, session);
  }

  async get(key: SessionKey, name: string): Promise<Json | undefined> {
    const data = await this.getAll(key);
    return data !== undefined && Object.hasOwn(data, name) ? data[name] : undefined;
  }

  async getAll(key: SessionKey): Promise<SessionData | undefined> {
    const found = await this.find(key);
    return found.outcome === "hit" ? found.session.data : undefined;
  }

  async size(key: SessionKey): Promise<number | undefined> {
    const data = await this.getAll(key);
    return data === undefined ? undefined : Object.keys(data).length;
  }

  set(key: SessionKey, name: string, value: Json): Promise<AttributeResult> {
    return this.setAll(key, { [name]: value });
  }

  remove(key: SessionKey, name: string): Promise<AttributeResult> {
    return this.setAll(key, { [name]: undefined });
  }

  /**
   * The first attempt commits on top of `base` without reading, one round trip. When that loses a race, the attributes
   * are compared: if the other writer changed different ones, both changes survive.
   */
  setAll(key: SessionKey, changes: AttributeChanges, base?: Session): Promise<AttributeResult> {
    const untouched = (current: Session) =>
      base === undefined || Object.keys(changes).every((name) => sameJson(base.data[name], current.data[name]));
    return this.#change(key, base, untouched, (session) => {
      const changed = { ...session, data: withChanges(session.data, changes) };
      return [changed, () => this.commitChanges(key, changed, changes)];
    });
  }

  clear(key: SessionKey): Promise<AttributeResult> {
    return this.#change(
      key,
      undefined,
      () => true,
      (session) => {
        const cleared = { ...session, data: {} };
        return [cleared, () => this.commit(key, cleared)];
      },
    );
  }

  async #change(
    key: SessionKey,
    base: Session | undefined,
    compatible: (current: Session) => boolean,
    change: (next: Session) => [Session, commit: () => MaybePromise<CommitOutcome>],
  ): Promise<AttributeResult> {
    let current = base;
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      if (current === undefined) {
        const found = await this.find(key);
        if (found.outcome !== "hit") return { outcome: "unknown" };
        current = found.session;
        if (!compatible(current)) return { outcome: "conflict" };
      }
      const [session, commit] = change({ ...current, version: current.version + 1 });
      const outcome = await commit();
      if (outcome === "committed") return { outcome, session };
      if (outcome === "unknown") return { outcome };
      current = undefined;
    }
    return { outcome: "conflict" };
  }
}
