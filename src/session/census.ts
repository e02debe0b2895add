import type { SessionStore } from "../core/store.ts";

const INTERVAL_MS = 60_000;

/** Asks the store once a minute how many sessions it holds. One that cannot say, or gives no answer, is left in peace. */
export class Census {
  readonly #store: SessionStore;
  readonly #onCount: (sessions: number) => void;
  #timer: NodeJS.Timeout | undefined;
  #asking: Promise<void> | undefined;

  constructor(store: SessionStore, onCount: (sessions: number) => void) {
    this.#store = store;
    this.#onCount = onCount;
  }

  begin(): void {
    if (this.#store.count === undefined) return;
    this.#timer = setInterval(() => this.#ask(), INTERVAL_MS).unref();
    this.#ask();
  }

  /** @returns done when nothing is asked any more. */
  async end(): Promise<void> {
    clearInterval(this.#timer);
    await this.#asking;
  }

  #ask(): void {
    this.#asking ??= this.#count().finally(() => {
      this.#asking = undefined;
    });
  }

  async #count(): Promise<void> {
    try {
      const sessions = await this.#store.count?.();
      if (sessions !== undefined) this.#onCount(sessions);
    } catch {
      // Counted with the store's other operations; in a minute it is asked again.
    }
  }
}
