/** Runs a target for a while, and keeps what broke it. */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { codec, configuration, cookie, paths, trace, writeBack } from "./pure.ts";
import { Random } from "./random.ts";
import { requests } from "./requests.ts";
import { responses } from "./responses.ts";
import type { Fuzzed, Target } from "./target.ts";

export const TARGETS: readonly Target[] = [requests, responses, cookie, writeBack, configuration, codec, trace, paths];

export interface Failure {
  readonly target: string;
  readonly seed: number;
  readonly problem: string;
  readonly input: unknown;
  /** Where the input was written. */
  readonly file: string;
}

export interface Run {
  readonly inputs: number;
  readonly failures: readonly Failure[];
}

/** After so many there is enough to look at. */
const MAX_FAILURES = 5;

export async function fuzz(
  target: Target,
  { seed, seconds }: { readonly seed: number; readonly seconds: number },
): Promise<Run> {
  const failures: Failure[] = [];
  let inputs = 0;
  const note = (problem: string, input: unknown): void => {
    failures.push({
      target: target.name,
      seed,
      problem,
      input,
      file: written({ target: target.name, seed, problem, input }),
    });
  };
  const ends: (() => unknown)[] = [];
  // Whatever nobody has caught would have ended the process.
  const uncaught = (error: unknown): void => note(`uncaught: ${textOf(error)}`, undefined);
  process.on("uncaughtException", uncaught);
  process.on("unhandledRejection", uncaught);
  try {
    const fuzzed = await target.start({ teardown: (end) => ends.push(end) });
    const until = performance.now() + seconds * 1000;
    await Promise.all(
      Array.from({ length: fuzzed.lanes }, async (_, lane) => {
        const random = new Random(seed + lane * 7919);
        for (let turn = 0; performance.now() < until && failures.length < MAX_FAILURES; turn++) {
          const input = fuzzed.generate(random);
          inputs++;
          const problem = await problemWith(fuzzed, input, lane);
          if (problem !== undefined) note(problem, input);
          // A pure target would let nobody else run.
          if (fuzzed.lanes === 1 && turn % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
        }
      }),
    );
    await fuzzed.finish?.().catch((error: unknown) => note(textOf(error), undefined));
  } finally {
    for (const end of ends.reverse()) await end();
    process.off("uncaughtException", uncaught);
    process.off("unhandledRejection", uncaught);
  }
  return { inputs, failures };
}

/** @returns what is wrong with the outcome; `undefined` if nothing is. */
export async function replay({ target: name, input }: Pick<Failure, "target" | "input">): Promise<string | undefined> {
  const target = TARGETS.find((candidate) => candidate.name === name);
  if (target === undefined) throw new TypeError(`no target ${name}`);
  const ends: (() => unknown)[] = [];
  try {
    return await problemWith(await target.start({ teardown: (end) => ends.push(end) }), input, 0);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

async function problemWith(fuzzed: Fuzzed, input: unknown, lane: number): Promise<string | undefined> {
  try {
    await fuzzed.check(input, lane);
    return undefined;
  } catch (error) {
    return textOf(error);
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

let folder: string | undefined;
let files = 0;

function written(failure: Omit<Failure, "file">): string {
  folder ??= mkdtempSync(join(tmpdir(), "coatcheck-fuzz-"));
  const file = join(folder, `${failure.target}-${++files}.json`);
  writeFileSync(file, JSON.stringify(failure, undefined, 2));
  return file;
}
