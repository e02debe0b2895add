import { RateLimiterRedis, RateLimiterRes } from "rate-limiter-flexible";
import type { BucketRule, SharedBuckets } from "../core/limits.ts";
import type { CommandKind, RedisLink } from "./redis-link.ts";
import { BUCKET_SCRIPTS } from "./redis-scripts.ts";

/** In front of the name of a bucket and of whose it is. */
export const BUCKET_PREFIX = "coatcheck:limit:";

/** Not sent again: whoever waits is in a hurry, and a token that was taken would be taken twice. */
const TAKE: CommandKind = { name: "EVALSHA", script: "takeToken" };

/** Token buckets in Redis, for all gateways that use it: one key each, which is gone when the bucket is full. */
export class RedisBuckets implements SharedBuckets {
  readonly #link: RedisLink;
  /** Rules go with their configuration. */
  readonly #limiters = new WeakMap<BucketRule, RateLimiterRedis>();

  constructor(link: RedisLink) {
    this.#link = link;
  }

  take(rule: BucketRule, subject: string): Promise<number> {
    const key = `${BUCKET_PREFIX}${rule.name}:${subject}`;
    const limiter = this.#limiterFor(rule);
    return this.#link.ask(key, () => limiter.consume(key).then(untilToken, untilTokenOr), TAKE);
  }

  #limiterFor(rule: BucketRule): RateLimiterRedis {
    let limiter = this.#limiters.get(rule);
    if (limiter === undefined) {
      limiter = new RateLimiterRedis({
        storeClient: this.#link.client,
        keyPrefix: "",
        points: rule.burst,
        // Handed to the script, which takes it for microseconds: the library's seconds would be too coarse.
        duration: Math.max(1, Math.round((rule.burst / rule.rate) * 1_000_000)),
        customIncrTtlLuaScript: BUCKET_SCRIPTS.rlflxIncr,
      });
      this.#limiters.set(rule, limiter);
    }
    return limiter;
  }
}

function untilToken(): number {
  return 0;
}

/** The library rejects with its result where there is no token, and with an error where there is no answer. */
function untilTokenOr(refusal: unknown): number {
  if (refusal instanceof RateLimiterRes) return Math.max(1, refusal.msBeforeNext);
  throw refusal;
}
