/** Attempts in a row without an answer before a server is given a rest. */
const THRESHOLD = 3;
const PROBE_INTERVAL_MS = 100;

/**
 * A circuit breaker for one server: after a few attempts without an answer, the following ones fail at once instead of
 * waiting for a timeout each. While it is open it asks the server itself, off the way of any request, and closes with the
 * first answer: recovery costs nobody a failed request.
 */
export class Breaker {
  readonly #probe: () => Promise<unknown>;
  readonly #onChange: (open: boolean) => void;
  #failures = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @param probe a question to the server that is rejected, in bounded time, while the server does not answer. */
  constructor(probe: () => Promise<unknown>, onChange: (open: boolean) => void) {
    this.#probe = probe;
    this.#onChange = onChange;
  }

  get isOpen(): boolean {
    return this.#timer !== undefined;
  }

  answered(): void {
    this.#failures = 0;
    if (this.#timer === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#onChange(false);
  }

  failed(): void {
    this.#failures++;
    if (this.#failures < THRESHOLD || this.#timer !== undefined) return;
    this.#schedule();
    this.#onChange(true);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #schedule(): void {
    this.#timer = setTimeout(() => {
      this.#probe().then(
        () => this.answered(),
        () => {
          if (this.#timer !== undefined) this.#schedule();
        },
      );
    }, PROBE_INTERVAL_MS).unref();
  }
}
