import type { Teardown } from "../support/resources.ts";
import type { Random } from "./random.ts";

/** Something that takes input from outside, and what must be true whatever it is. */
export interface Target {
  readonly name: string;
  start(t: Teardown): Promise<Fuzzed> | Fuzzed;
}

/** A target that is ready. `I` can be written as JSON. */
export interface Fuzzed {
  /** Inputs that may be under way at once. */
  readonly lanes: number;
  generate(random: Random): unknown;
  /** @throws Error when an invariant does not hold. */
  check(input: unknown, lane: number): void | Promise<void>;
  /** What must be true when everything is over. */
  finish?(): Promise<void>;
}

/** A broken invariant. */
export class Broken extends Error {}

export function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Broken(what);
}

/** Runs what is pure and must be done at once: milliseconds of CPU, which a busy machine does not stretch. */
export function withinMs<T>(limit: number, what: string, work: () => T): T {
  const started = process.cpuUsage();
  const result = work();
  const took = process.cpuUsage(started).user / 1000;
  must(took < limit, `${what} took ${Math.round(took)} ms`);
  return result;
}
