/**
 * What a session look-up costs: hits and misses of the near cache, and a mixture as users make it (Zipf), against a real
 * Redis in a process of its own. `npm run bench:lookups`.
 */
import { writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Session, SessionKey } from "../src/core/session.ts";
import { NearCache } from "../src/session/near-cache.ts";
import { type SessionLookup, StoreLookup } from "../src/session/resolver.ts";
import { RedisStore } from "../src/store/redis.ts";
import { endAll } from "./children.ts";
import { startRedis } from "./surroundings.ts";

const HOUR_MS = 3_600_000;
const CONNECTIONS = 50;

const { values } = parseArgs({
  options: {
    sessions: { type: "string", default: "100000" },
    seconds: { type: "string", default: "5" },
    "max-bytes": { type: "string", default: String(64 * 1024 * 1024) },
    "no-results": { type: "boolean", default: false },
  },
});
const sessionCount = Number(values.sessions);
const seconds = Number(values.seconds);

/** As an ordinary login makes it, with a small cart. */
function sessionOf(index: number, now: number): Session {
  const user = {
    id: `user-${index}`,
    name: `Visitor ${index}`,
    email: `user-${index}@example.com`,
    roles: ["customer", "beta"],
  };
  const data = { cart: [index, index + 1], theme: "dark", locale: "en-GB" };
  const client = {
    address: "192.0.2.7",
    userAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
  };
  return { user, data, createdAt: now, expiresAt: now + HOUR_MS, usedAt: now, version: 1, client };
}

const keyOf = (index: number): SessionKey => `k${index}`.padEnd(43, "x");

/** Ranks 0 … count-1; rank r is asked for in proportion to 1 / (r + 1): a few users make most requests. */
function zipf(count: number): () => number {
  const sums = new Float64Array(count);
  let sum = 0;
  for (let rank = 0; rank < count; rank++) {
    sum += 1 / (rank + 1);
    sums[rank] = sum;
  }
  return () => {
    const point = Math.random() * sum;
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((sums[middle] as number) < point) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}

interface Row {
  readonly name: string;
  readonly perSecond: number;
  /** Microseconds of this process's CPU. */
  readonly cpuMicroseconds: number;
  readonly p50Microseconds: number;
  readonly p99Microseconds: number;
  readonly hitRatio: number;
}

/** `CONNECTIONS` askers, each with one question at a time, for `seconds`. */
async function measure(name: string, cache: SessionLookup, next: () => number): Promise<Row> {
  const times: number[] = [];
  let [asked, hits] = [0, 0];
  const asker = async (endMs: number): Promise<void> => {
    for (let i = 0; ; i++) {
      const startedMs = performance.now();
      if (startedMs >= endMs) return;
      const answer = cache.find(keyOf(next()));
      const found = answer instanceof Promise ? await answer : answer;
      if (found.outcome !== "hit") throw new Error(`${name}: ${found.outcome}`);
      asked++;
      if (found.source === "cache") hits++;
      // Every look-up would fill the memory with numbers.
      if (asked % 16 === 0) times.push(performance.now() - startedMs);
      // The other askers, and what Redis tells, get their turn as they would between requests.
      if (i % 64 === 63) await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const before = process.cpuUsage();
  const startedMs = performance.now();
  await Promise.all(Array.from({ length: CONNECTIONS }, () => asker(startedMs + seconds * 1000)));
  const elapsedSeconds = (performance.now() - startedMs) / 1000;
  const { user, system } = process.cpuUsage(before);
  times.sort((a, b) => a - b);
  const percentile = (share: number) => (times[Math.floor(times.length * share)] ?? 0) * 1000;
  return {
    name,
    perSecond: asked / elapsedSeconds,
    cpuMicroseconds: (user + system) / asked,
    p50Microseconds: percentile(0.5),
    p99Microseconds: percentile(0.99),
    hitRatio: hits / asked,
  };
}

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "coatcheck-bench-"));
  const url = await startRedis(undefined, folder);
  const store = new RedisStore(url, { absoluteTimeoutMs: 12 * HOUR_MS });
  await store.firstAnswer();
  const now = Date.now();
  process.stderr.write(`storing ${sessionCount} sessions…\n`);
  for (let first = 0; first < sessionCount; first += 500) {
    const indices = Array.from({ length: Math.min(500, sessionCount - first) }, (_, i) => first + i);
    await Promise.all(indices.map((index) => store.create(keyOf(index), sessionOf(index, now))));
  }

  const told = Promise.withResolvers<void>();
  const cacheOf = (maxBytes: number) =>
    new NearCache({
      store,
      now: Date.now,
      maxBytes,
      maxAgeMs: HOUR_MS,
      staleOnOutageMs: 0,
      observer: {
        ended() {},
        changed() {},
        evicted() {},
        invalidated() {},
        feed: (state) => state === "tracking" && told.resolve(),
        changeDelay() {},
        revocationDelay() {},
      },
    });
  const cache = cacheOf(Number(values["max-bytes"]));
  store.watch(cache);
  await told.promise;

  const rows: Row[] = [];
  const report = (row: Row): void => {
    rows.push(row);
    process.stderr.write(`${row.name}: ${Math.round(row.perSecond)} a second\n`);
  };
  let turn = 0;
  report(await measure("hit (1,000 sessions)", cache, () => turn++ % Math.min(1000, sessionCount)));
  report(await measure("miss (cache off)", new StoreLookup(store), () => turn++ % sessionCount));
  report(await measure(`mixed (Zipf over ${sessionCount})`, cache, zipf(sessionCount)));

  const heap = await bytesOfEntries(cacheOf);
  await store.close();
  await endAll();
  await rm(folder, { recursive: true, force: true });
  const text = render(rows, heap);
  process.stdout.write(text);
  if (!values["no-results"]) writeFileSync(fileURLToPath(new URL("results/lookups.md", import.meta.url)), text);
}

/** The heap with and without 20,000 cached sessions, and what the cache thinks that they take. */
async function bytesOfEntries(
  cacheOf: (maxBytes: number) => NearCache,
): Promise<{ measured: number; counted: number }> {
  const collect = globalThis.gc;
  if (collect === undefined) throw new Error("run it with --expose-gc");
  const count = Math.min(20_000, sessionCount);
  const cache = cacheOf(1024 ** 3);
  cache.feed("tracking");
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let index = 0; index < count; index++) await cache.find(keyOf(index));
  collect();
  const measured = (process.memoryUsage().heapUsed - before) / count;
  return { measured, counted: cache.bytes / cache.entries };
}

function render(rows: readonly Row[], heap: { measured: number; counted: number }): string {
  const lines = rows.map(
    (row) =>
      `| ${row.name} | ${Math.round(row.perSecond).toLocaleString("en")} | ${row.cpuMicroseconds.toFixed(2)} | ${row.p50Microseconds.toFixed(1)} | ${row.p99Microseconds.toFixed(1)} | ${(row.hitRatio * 100).toFixed(1)} % |`,
  );
  return `# Session look-ups

${CONNECTIONS} askers in one process, a Redis beside it, ${sessionCount.toLocaleString("en")} sessions, ${seconds} s each; made by \`npm run bench:lookups\`.

| look-up | a second | CPU µs | p50 µs | p99 µs | from the cache |
|---|---:|---:|---:|---:|---:|
${lines.join("\n")}

A cached session takes ${Math.round(heap.measured)} bytes of heap; the cache counts ${Math.round(heap.counted)}.
`;
}

await main();
