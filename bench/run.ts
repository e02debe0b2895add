import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { endAll, findPins } from "./children.ts";
import { type Bench, measure, type Sample } from "./measure.ts";
import { type Options, readOptions, USAGE, UsageError } from "./options.ts";
import { failures, type Measured, makeReport, markdown, table } from "./report.ts";
import { startSupport } from "./surroundings.ts";
import { switched } from "./switched.ts";

/** CPU per request of Coatcheck and of its peers; see README.md. */

const RESULTS = new URL("results/", import.meta.url);

/** Start, log-in, checks and end of one peer take a second or two; this many, and something hangs. */
const OVERHEAD_SECONDS = 30;

process.exitCode = await run();

async function run(): Promise<number> {
  let folder: string | undefined;
  try {
    const options = readOptions(process.argv.slice(2));
    if (options === undefined) {
      process.stdout.write(USAGE);
      return 0;
    }
    requireTools(options);
    folder = await mkdtemp(join(tmpdir(), "coatcheck-bench-"));
    return await Promise.race([bench(options, folder), interrupted(), overdue(options)]);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    process.stderr.write(`bench: ${message}${error instanceof UsageError ? "; see --help" : ""}\n`);
    return error instanceof UsageError ? 2 : 1;
  } finally {
    await endAll();
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
}

function requireTools({ peers }: Options): void {
  if (!existsSync("/proc/self/stat"))
    throw new Error("CPU time is read from /proc, which is not here: run it on Linux");
  if (peers.some((peer) => peer.needsRedis) && spawnSync("redis-server", ["--version"]).status !== 0)
    throw new Error("redis-server is not installed; install it, or leave coatcheck-redis out with --only");
}

async function bench(options: Options, folder: string): Promise<number> {
  const { peers, rounds } = options;
  const pins = findPins(availableParallelism());
  const profile = options.profile === undefined ? undefined : resolve(options.profile);
  const needsRedis = peers.some((peer) => peer.needsRedis);
  const support = await startSupport(pins, folder, needsRedis);
  const context: Bench = { options: { ...options, profile }, pins, support, folder };
  const measured = peers.map((peer) => ({ peer, samples: [] as Sample[] }));
  for (let round = 0; round < rounds; round++) {
    // Another peer begins each round, so that none always has the place after the same neighbour.
    const first = round % peers.length;
    for (const { peer, samples } of [...measured.slice(first), ...measured.slice(0, first)]) {
      const sample = await measure(context, peer).catch((error: Error) => {
        throw new Error(`${peer.name}: ${error.message}`, { cause: error });
      });
      samples.push(sample);
      process.stdout.write(`round ${round + 1}/${rounds}  ${peer.name.padEnd(24)} ${progress(sample)}\n`);
    }
  }
  const pairs = new Map<string, readonly number[]>();
  for (const { peer } of measured) {
    if (!peer.switched || options.switches === 0) continue;
    process.stdout.write(`switched   ${peer.name.padEnd(24)} on and off, ${options.switches} times\n`);
    pairs.set(peer.name, await switched(context, peer));
  }
  await report(measured, pairs, context);
  const failed = measured.filter(({ samples }) => failures(samples) > 0);
  if (failed.length === 0) return 0;
  process.stderr.write(`bench: requests failed: ${failed.map(({ peer }) => peer.name).join(", ")}\n`);
  return 1;
}

function progress({ cpuMicros, rps, p99Ms, busy }: Sample): string {
  return `${cpuMicros.toFixed(1)} µs/request, ${rps.toFixed(0)} rps, p99 ${p99Ms.toFixed(2)} ms, ${(busy * 100).toFixed(0)} % busy`;
}

async function report(
  measured: readonly Measured[],
  pairs: ReadonlyMap<string, readonly number[]>,
  { options, pins }: Bench,
): Promise<void> {
  const results = makeReport(measured, pairs, options, pins);
  process.stdout.write(`\n${table(results)}\n`);
  if (!options.keepsResults) return;
  await mkdir(RESULTS, { recursive: true });
  await writeFile(new URL("latest.json", RESULTS), `${JSON.stringify(results, null, 2)}\n`);
  await writeFile(new URL("latest.md", RESULTS), markdown(results));
}

function interrupted(): Promise<never> {
  return new Promise((_resolve, reject) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
      process.once(signal, () => reject(new Error(`ended by ${signal}`)));
    // Whoever read the progress has gone: node run.ts | head
    process.stdout.once("error", reject);
  });
}

/** Whatever hangs, the bench ends. */
function overdue({ peers, rounds, seconds, warmUpSeconds, sessions, switches }: Options): Promise<never> {
  const each = seconds + warmUpSeconds + OVERHEAD_SECONDS + sessions / 100;
  const limitMs = peers.length * (rounds * each + switches * 2 + OVERHEAD_SECONDS) * 1000;
  return new Promise((_resolve, reject) => {
    setTimeout(() => reject(new Error("it takes far too long; given up")), limitMs).unref();
  });
}
