import { explain } from "../store/failures.ts";
import { FAILED } from "./arguments.ts";

/** What commands share that go through a whole store. */

/** Between two lines of progress, milliseconds: rewritten in place on a terminal, one after the other elsewhere. */
const TERMINAL_PROGRESS_MS = 100;
const LINE_PROGRESS_MS = 5_000;

export interface ProgressOptions {
  readonly isTerminal: boolean;
  readonly write: (text: string) => void;
}

export const STDERR: ProgressOptions = {
  isTerminal: process.stderr.isTTY === true,
  write: (text) => process.stderr.write(text),
};

/** How far it has come: one line that changes on a terminal, a line every few seconds in a log. */
export class Progress {
  readonly #options: ProgressOptions;
  #shownMs = -Infinity;
  #startedMs: number | undefined;
  #pending = false;

  constructor(options: ProgressOptions) {
    this.#options = options;
  }

  /** @param nowMs of a clock that only goes forward. */
  show(text: string, nowMs: number): void {
    const { isTerminal, write } = this.#options;
    // The first page is over at once; in a log, its line would say nothing.
    if (this.#startedMs === undefined) {
      this.#startedMs = nowMs;
      if (!isTerminal) this.#shownMs = nowMs;
    }
    if (nowMs - this.#shownMs < (isTerminal ? TERMINAL_PROGRESS_MS : LINE_PROGRESS_MS)) return;
    this.#shownMs = nowMs;
    const line = `${text} · ${((nowMs - this.#startedMs) / 1000).toFixed(0)} s`;
    write(isTerminal ? `\r\u{1b}[K${line}` : `${line}\n`);
    this.#pending = isTerminal;
  }

  end(): void {
    if (this.#pending) this.#options.write("\n");
  }
}

/** Work that ends in order at the first SIGINT or SIGTERM; the second one ends the process. */
export async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T> | T): Promise<T> {
  const stop = new AbortController();
  const interrupted = (): void => {
    if (stop.signal.aborted) process.exit(FAILED);
    stop.abort();
  };
  process.on("SIGINT", interrupted);
  process.on("SIGTERM", interrupted);
  try {
    return await work(stop.signal);
  } finally {
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
  }
}

/** Tells what went wrong, and what to do about it. */
export function report(what: string, error: unknown): void {
  const { problem, advice } = explain(error);
  process.stderr.write(`${what}: ${problem}\n  ${advice}\n`);
}
