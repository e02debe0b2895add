/** A line and no more within so long, for each key. */
const WINDOW_MS = 60_000;
const SWEEP_INTERVAL_MS = 5_000;
/** Keys that are told apart; those beyond share one. */
const MAX_KEYS = 256;
const OTHERS = "";

interface Entry<Subject> {
  writtenMs: number;
  /** The last one that got no line. */
  waiting: Subject | undefined;
  suppressed: number;
}

/**
 * Lets one line a key and minute through, so that nobody who decides how often a thing happens can fill the disk. What
 * was held back is counted in the next line, which comes a minute later by itself: no burst ends unsaid.
 */
export class Throttle<Subject> {
  readonly #write: (subject: Subject, suppressed: number) => void;
  readonly #entries = new Map<string, Entry<Subject>>();
  #timer: NodeJS.Timeout | undefined;

  /** @param write told of how many others its line stands for. */
  constructor(write: (subject: Subject, suppressed: number) => void) {
    this.#write = write;
  }

  /** @param now monotonic, milliseconds. */
  note(key: string, subject: Subject, now = performance.now()): void {
    const known = this.#entries.get(key) ?? (this.#entries.size < MAX_KEYS ? undefined : this.#entries.get(OTHERS));
    if (known !== undefined) {
      known.waiting = subject;
      known.suppressed++;
      return;
    }
    const entry = { writtenMs: now, waiting: undefined, suppressed: 0 };
    this.#entries.set(this.#entries.size < MAX_KEYS ? key : OTHERS, entry);
    this.#write(subject, 0);
    this.#timer ??= setInterval(() => this.sweep(), SWEEP_INTERVAL_MS).unref();
  }

  /** Writes what has waited for long enough, and forgets who has been quiet. */
  sweep(now = performance.now(), windowMs = WINDOW_MS): void {
    for (const [key, entry] of this.#entries) {
      if (now - entry.writtenMs < windowMs) continue;
      const { waiting, suppressed } = entry;
      if (waiting === undefined) {
        this.#entries.delete(key);
        continue;
      }
      Object.assign(entry, { writtenMs: now, waiting: undefined, suppressed: 0 });
      this.#write(waiting, suppressed - 1);
    }
    if (this.#entries.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Writes all that waits. */
  close(): void {
    clearInterval(this.#timer);
    for (const { waiting, suppressed } of this.#entries.values())
      if (waiting !== undefined) this.#write(waiting, suppressed - 1);
    this.#entries.clear();
  }
}
