import type { RetrySettings } from "../core/upstream.ts";

const SECONDS = 10;

/**
 * How many requests may be sent again: a share of all requests of the last ten seconds. When an application is in trouble,
 * requests that are sent again and again are what keeps it there.
 */
export class RetryBudget {
  readonly #share: number;
  readonly #least: number;
  /** By second, in turn. */
  readonly #requests = new Array<number>(SECONDS).fill(0);
  readonly #retries = new Array<number>(SECONDS).fill(0);
  #second = 0;

  constructor({ budget, minPerSecond }: Pick<RetrySettings, "budget" | "minPerSecond">) {
    this.#share = budget;
    this.#least = minPerSecond * SECONDS;
  }

  /** @param now monotonic, milliseconds. */
  request(now: number): void {
    this.#goOnTo(now);
    (this.#requests[this.#second % SECONDS] as number)++;
  }

  /** Takes one, if there is one. */
  take(now: number): boolean {
    this.#goOnTo(now);
    if (sum(this.#retries) >= Math.max(this.#least, this.#share * sum(this.#requests))) return false;
    (this.#retries[this.#second % SECONDS] as number)++;
    return true;
  }

  #goOnTo(now: number): void {
    const second = Math.floor(now / 1000);
    if (second <= this.#second) return;
    for (let passed = Math.max(this.#second + 1, second - SECONDS + 1); passed <= second; passed++) {
      this.#requests[passed % SECONDS] = 0;
      this.#retries[passed % SECONDS] = 0;
    }
    this.#second = second;
  }
}

function sum(counts: readonly number[]): number {
  let all = 0;
  for (const count of counts) all += count;
  return all;
}
