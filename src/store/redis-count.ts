import type { Redis } from "ioredis";
import type { RedisLink } from "./redis-link.ts";
import { SESSION_PREFIX } from "./redis-scripts.ts";
import { infoFrom } from "./redis-warnings.ts";

/** Keys that are looked at on each server: a sample, because Redis counts keys and not those of a kind. */
const SAMPLE = 1000;

/**
 * About how many sessions there are: the number of keys, times the share of sessions among the first thousand, whose
 * order is that of their hashes. Exact as long as there are fewer. Those that have expired within the last minutes count.
 */
export async function countSessions(link: RedisLink): Promise<number> {
  const counts = await Promise.all(
    link.connections().map((redis) =>
      link.askAnyNode(() => {
        if (redis === undefined) throw new Error("the node is closed");
        return countOn(redis, link.address.database);
      }),
    ),
  );
  return counts.reduce((sum, count) => sum + count, 0);
}

async function countOn(redis: Redis, database: number): Promise<number> {
  const [text, [next, keys]] = await Promise.all([redis.info("keyspace"), redis.scan(0, "COUNT", SAMPLE)]);
  const sessions = keys.filter((key) => key.startsWith(SESSION_PREFIX)).length;
  if (next === "0" || keys.length === 0) return sessions;
  const all = Number(/^keys=(\d+)/.exec(infoFrom(text)[`db${database}`] ?? "")?.[1] ?? 0);
  return Math.round((all * sessions) / keys.length);
}
