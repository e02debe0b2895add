import { LRUCache } from "lru-cache";
import { ProxyError } from "./core/errors.ts";
import type { Exchange } from "./core/exchange.ts";
import type { BucketRule, LimiterAnswer, SharedBuckets } from "./core/limits.ts";
import { onBehalfOf } from "./core/on-behalf.ts";

/** How many requests each address and each session may send: a token bucket for each. */

/** How long a request waits for the shared buckets, by default. */
const PATIENCE_MS = 50;
/** How long they are not asked after they gave no answer in time. */
const REST_MS = 1_000;
/** Buckets that this process remembers: attackers choose addresses. The longest unused go first. */
const MAX_BUCKETS = 50_000;

export interface RequestLimiterOptions {
  /** Absent: each process counts for itself. */
  readonly openShared: (() => Promise<SharedBuckets>) | undefined;
  /** How long a request waits for the shared buckets, milliseconds. */
  readonly patienceMs: number | undefined;
  /** The shared buckets give no answer in time (true), so each process counts for itself; or they do again (false). */
  readonly onFallback: (active: boolean, failure: unknown) => void;
  /** Told who was asked, of each request. */
  readonly onChecked: (by: LimiterAnswer) => void;
}

/**
 * Takes tokens from the buckets that all gateways share, and where there are none, or they give no answer in time, from
 * buckets of this process: an outage neither stops requests nor lets all of them through.
 */
export class RequestLimiter {
  readonly #options: RequestLimiterOptions;
  /** When a bucket will be full again, by `performance.now()`. */
  readonly #own = new LRUCache<string, number>({ max: MAX_BUCKETS });
  /** Until when a shared bucket is known to be empty: who is refused all the time costs the store nothing. */
  readonly #empty = new LRUCache<string, number>({ max: MAX_BUCKETS });
  #shared: SharedBuckets | undefined;
  #fallenBack = false;
  #askAgainAt = 0;

  constructor(options: RequestLimiterOptions) {
    this.#options = options;
  }

  /** Done when shared buckets can be asked; to be called before there is a rule. */
  async open(): Promise<void> {
    this.#shared ??= await this.#options.openShared?.();
  }

  /**
   * Takes a token for a request.
   * @param subject whose bucket: an address or a session key.
   * @returns a promise where somebody else has to be asked, which takes no longer than `patienceMs`.
   * @throws ProxyError (429) when there is none; the promise rejects with the same.
   */
  check(rule: BucketRule, subject: string, exchange: Exchange): Promise<void> | undefined {
    const shared = this.#shared;
    const key = `${rule.name}:${subject}`;
    if (shared === undefined) return this.#checkOwn(rule, key, "local");
    const now = performance.now();
    const emptyFor = (this.#empty.get(key) ?? 0) - now;
    // A token is never further away than the time between two: what is was said by a rule before a reload.
    if (emptyFor > 0 && emptyFor <= intervalOf(rule) + 1) {
      this.#options.onChecked("memory");
      throw refusal(rule, emptyFor);
    }
    if (this.#fallenBack) {
      if (now < this.#askAgainAt) return this.#checkOwn(rule, key, "fallback");
      // One request finds out for the others.
      this.#askAgainAt = now + REST_MS;
    }
    return this.#checkShared(
      rule,
      key,
      onBehalfOf(exchange, () => shared.take(rule, subject)),
    );
  }

  async #checkShared(rule: BucketRule, key: string, answer: number | Promise<number>): Promise<void> {
    let waitMs: number;
    try {
      waitMs = answer instanceof Promise ? await inTime(answer, this.#options.patienceMs ?? PATIENCE_MS) : answer;
    } catch (error) {
      this.#fallBack(true, error);
      this.#askAgainAt = performance.now() + REST_MS;
      this.#checkOwn(rule, key, "fallback");
      return;
    }
    this.#options.onChecked("shared");
    if (this.#fallenBack) this.#fallBack(false, undefined);
    if (waitMs === 0) return;
    this.#empty.set(key, performance.now() + waitMs);
    throw refusal(rule, waitMs);
  }

  #fallBack(active: boolean, failure: unknown): void {
    if (this.#fallenBack === active) return;
    this.#fallenBack = active;
    this.#options.onFallback(active, failure);
  }

  #checkOwn(rule: BucketRule, key: string, by: LimiterAnswer): undefined {
    this.#options.onChecked(by);
    const now = performance.now();
    const intervalMs = intervalOf(rule);
    const emptyAt = now + rule.burst * intervalMs;
    const before = Math.max(this.#own.get(key) ?? 0, now);
    // Emptier than empty: left by a slower rule, before a reload. It fills at the new rate.
    if (before > emptyAt + 0.001) this.#own.set(key, emptyAt);
    const fullAt = Math.min(before, emptyAt) + intervalMs;
    const waitMs = fullAt - emptyAt;
    // What was put together from fractions is a little off.
    if (waitMs > 0.001) throw refusal(rule, waitMs);
    this.#own.set(key, fullAt);
  }
}

/** Milliseconds from one token to the next. */
function intervalOf({ rate }: BucketRule): number {
  return 1000 / rate;
}

/** @throws Error when it takes too long. */
function inTime(answer: Promise<number>, patienceMs: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no answer within ${patienceMs} ms`)), patienceMs);
    answer.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/**
 * @param waitMs until there is a token.
 * @see draft-ietf-httpapi-ratelimit-headers-10: `q` tokens in a window of `w` seconds, `r` of them left, and more of them
 *   after `t` seconds.
 */
function refusal({ reason, rate, burst }: BucketRule, waitMs: number): ProxyError {
  const seconds = String(Math.max(1, Math.ceil(waitMs / 1000)));
  const kind = reason === "address-rate" ? "address" : "session";
  const windowSeconds = Math.max(1, Math.ceil(burst / rate));
  return new ProxyError("http_request_denied", `too many requests of one ${kind}`, {
    status: 429,
    limit: reason,
    fields: [
      "retry-after",
      seconds,
      "ratelimit-policy",
      `"${kind}";q=${burst};w=${windowSeconds}`,
      "ratelimit",
      `"${kind}";r=0;t=${seconds}`,
    ],
  });
}
