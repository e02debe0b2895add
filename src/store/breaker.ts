/** Attempts in a row without an answer before a server is given a rest. */
const THRESHOLD = 3;
const PROBE_INTERVAL_MS = 100;

/**
 * A circuit breaker for one server: after a few attempts without an answer, the following ones fail at once instead of
 * waiting for a timeout each. While it is open it asks the server itself, off the way of any request, and closes with the
 * first answer: recovery costs nobody a failed request.
 */
export class Breaker {
  readonly #onChange: (open: boolean) => void;
  #question: () => Promise<unknown> = async () => {};
  #failures = 0;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(onChange: (open: boolean) => void) {
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

  /**
   * @param question what is asked while the breaker is open: rejected, in bounded time, while there is no answer. It
   *   should need what the attempt needed; another one would close the breaker too early.
   */
  failed(question: () => Promise<unknown>): void {
    this.#failures++;
    this.#question = question;
    if (this.#failures < THRESHOLD || this.#timer !== undefined || this.#stopped) return;
    this.#schedule();
    this.#onChange(true);
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #schedule(): void {
    this.#timer = setTimeout(async () => {
      try {
        await this.#question();
        this.answered();
      } catch {
        if (this.#timer !== undefined && !this.#stopped) this.#schedule();
      }
    }, PROBE_INTERVAL_MS).unref();
  }
}
