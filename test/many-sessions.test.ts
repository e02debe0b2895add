/** Users with many sessions: what a list leaves out is not ended. */
import t from "tap";
import type { Session } from "../src/core/session.ts";
import type { SessionStore } from "../src/core/store.ts";
import { createSessionAdministration } from "../src/session/administration.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { RedisStore } from "../src/store/redis.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { startRedis } from "./support/servers.ts";

const redis = await startRedis(t);

const makers: Record<string, (now: () => number) => SessionStore | Promise<SessionStore>> = {
  memory: (now) => new MemoryStore(now),
  sqlite: (now) => new SqliteStore(":memory:", { now }),
  redis: async (now) => {
    const store = new RedisStore(redis.url, { now, absoluteTimeoutMs: 12 * 3_600_000 });
    await store.firstAnswer();
    return store;
  },
};

for (const [name, make] of Object.entries(makers)) {
  t.test(`${name}: a session is listed, and ended with the others, behind a thousand that have expired`, async (t) => {
    let now = Date.now();
    const store = await make(() => now);
    t.teardown(() => store.close());
    const session = (idleMs: number): Session => ({
      user: { id: "1" },
      data: {},
      createdAt: now,
      expiresAt: now + idleMs,
      usedAt: now,
      version: 1,
    });
    const key = (i: number) => String(i).padStart(43, "k");
    await store.create(key(0), session(600_000));
    await Promise.all(
      Array.from({ length: 1_000 }, (_, i) => {
        now++;
        return store.create(key(i + 1), session(2_000));
      }),
    );
    now += 3_000;
    t.same(
      (await store.byUser("1")).map((entry) => entry.key),
      [key(0)],
    );
    const administration = createSessionAdministration({ store, onRevoked() {} });
    t.match(await administration.endAll("1"), { count: 1, complete: true });
    t.equal((await store.find(key(0))).outcome, "unknown");
  });
}
