import { RateLimiterRedis, RateLimiterRes } from "rate-limiter-flexible";
import type { BucketRule, SharedBuckets } from "../core/limits.ts";
import type { CommandKind, RedisLink } from "./redis-link.ts";

/** In front of the name of a bucket and of whose it is. */
export const BUCKET_PREFIX = "coatcheck:limit:";

/** Not sent again: whoever waits is in a hurry, and a token that was taken would be taken twice. */
const TAKE: CommandKind = { name: "EVALSHA", script: "takeToken" };

/**
 * A token bucket in one number: the moment at which it will be full again, by the clock of Redis, in microseconds (the
 * generic cell rate algorithm). In place of the library's own script, which counts in fixed windows and lets twice the
 * quota pass around their edge.
 *
 * ARGV: tokens to take, nothing that is used, tokens in a full bucket, microseconds in which an empty one is full again.
 * @returns tokens taken, or one more than there are; and milliseconds until there is one again.
 */
const TAKE_TOKEN = `
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local burst, window = tonumber(ARGV[3]), tonumber(ARGV[4])
  local interval = window / burst
  local full = tonumber(redis.call('GET', KEYS[1]) or '') or now
  if full < now then full = now end
  if full > now + window then full = now + window end
  local after = full + interval * tonumber(ARGV[1])
  if after > now + window then return { burst + 1, math.ceil((after - now - window) / 1000) } end
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
  return { math.ceil((after - now) / interval), 0 }`;

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
        customIncrTtlLuaScript: TAKE_TOKEN,
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
