import { setImmediate, setTimeout } from "node:timers/promises";
import { forEachAtOnce } from "../core/concurrency.ts";
import type { SessionKey } from "../core/session.ts";
import type { MaybePromise, SessionStore } from "../core/store.ts";

const DEFAULT_PAGE_SIZE = 500;
const DEFAULT_AT_ONCE = 32;
/** A store that does not answer is asked again after these, milliseconds: a hiccup is not the end of hours of copying. */
const RETRY_DELAYS_MS = [200, 800];
/** Sessions refused one after the other, until it is clear that the target refuses all of them. */
const MAX_REFUSED_IN_A_ROW = 100;

export interface MigrationOptions {
  readonly from: SessionStore;
  readonly to: SessionStore;
  /** From the result of an earlier run; absent: from the beginning. */
  readonly cursor?: string | undefined;
  /** Keys that are looked at in one step, 1 to 10,000. */
  readonly pageSize?: number;
  /** Sessions that are copied at the same time. */
  readonly atOnce?: number;
  /** Stops after the current page. */
  readonly signal?: AbortSignal;
  readonly onPage?: (counts: MigrationCounts) => void;
}

export interface MigrationCounts {
  readonly copied: number;
  /** Skipped, because the target had a session of that key: copied by an earlier run, or in use there by now. */
  readonly present: number;
  /** Skipped, because it had expired or was ended before its copy was done. */
  readonly ended: number;
  /** Failed: it cannot be read. */
  readonly malformed: number;
  /** Failed: written by a later version. */
  readonly newer: number;
  /** Failed: the target works, and did not take this one. */
  readonly refused: number;
}

export interface MigrationResult extends MigrationCounts {
  readonly complete: boolean;
  /** Where to go on when it is not complete; absent: at the beginning. */
  readonly cursor?: string;
  /** Why it stopped; absent when the signal did it. */
  readonly failure?: unknown;
  /** What the target said to the first session that it refused. */
  readonly refusal?: unknown;
}

/**
 * Copies every live session with its key, version, times and siblings. What is in the target is never overwritten, so
 * that it can be repeated, resumed, and run while gateways use the target already. A session that is ended in the source
 * while it is copied does not stay in the target; whoever ends sessions in both has to begin with the source.
 *
 * It does not throw: a store that stops answering is the `failure` of the result.
 */
export async function migrate(options: MigrationOptions): Promise<MigrationResult> {
  const { from, pageSize = DEFAULT_PAGE_SIZE, atOnce = DEFAULT_AT_ONCE, signal, onPage } = options;
  const copying = new Copying(options);
  let cursor = options.cursor;
  const stopped = () => ({ ...copying.result(), complete: false, ...(cursor !== undefined && { cursor }) });
  try {
    do {
      if (signal?.aborted) return stopped();
      const page = await patiently(() => from.scan({ limit: pageSize, ...(cursor !== undefined && { cursor }) }));
      await forEachAtOnce(page.keys, atOnce, (key) => copying.copy(key));
      cursor = page.cursor;
      onPage?.(copying.counts);
      // Stores in this process answer without letting go of it, and a signal has to get through.
      await setImmediate();
    } while (cursor !== undefined);
    return { ...copying.result(), complete: true };
  } catch (failure) {
    return { ...stopped(), failure };
  }
}

class Copying {
  readonly counts = { copied: 0, present: 0, ended: 0, malformed: 0, newer: 0, refused: 0 };
  readonly #from: SessionStore;
  readonly #to: SessionStore;
  #refusal: unknown;
  #refusedInARow = 0;

  constructor({ from, to }: MigrationOptions) {
    this.#from = from;
    this.#to = to;
  }

  result(): MigrationCounts & { refusal?: unknown } {
    return { ...this.counts, ...(this.#refusal !== undefined && { refusal: this.#refusal }) };
  }

  async copy(key: SessionKey): Promise<void> {
    this.counts[await this.#outcomeOf(key)]++;
  }

  async #outcomeOf(key: SessionKey): Promise<keyof MigrationCounts> {
    const found = await patiently(() => this.#from.find(key));
    if (found.outcome === "malformed" || found.outcome === "newer") return found.outcome;
    if (found.outcome !== "hit") return "ended";
    let created: "created" | "conflict";
    try {
      created = await patiently(() => this.#to.create(key, found.session));
    } catch (error) {
      await this.#refused(error);
      return "refused";
    }
    this.#refusedInARow = 0;
    if (created === "conflict") return "present";
    // Ended since it was read: it must not come back to life in the other store.
    if ((await patiently(() => this.#from.find(key))).outcome !== "unknown") return "copied";
    await patiently(() => this.#to.destroy(key));
    return "ended";
  }

  /** @throws the error itself when it is not about this one session. */
  async #refused(error: unknown): Promise<void> {
    this.#refusal ??= error;
    this.#refusedInARow++;
    if (this.#refusedInARow >= MAX_REFUSED_IN_A_ROW || !(await this.#to.check()).ok) throw error;
  }
}

/** Asks again, a little later, a store that gives no answer. */
export async function patiently<T>(ask: () => MaybePromise<T>): Promise<T> {
  for (const delayMs of RETRY_DELAYS_MS) {
    try {
      return await ask();
    } catch {
      await setTimeout(delayMs);
    }
  }
  return ask();
}
