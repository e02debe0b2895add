import { existsSync } from "node:fs";
import type { Config } from "../config/compile.ts";
import { maskUrl } from "../config/fields.ts";
import { type Environment, loadConfigFile } from "../config/load.ts";
import type { SessionStore, SweepFinding, SweepReport } from "../core/store.ts";
import { CommandError, FAILED, print, UsageError } from "./arguments.ts";
import { defaults, openAnswering, storeNamed } from "./migrate.ts";
import { Progress, report, STDERR, untilInterrupted } from "./progress.ts";
import { grouped, plain, table } from "./text.ts";

export const SWEEP_OPTIONS = {
  config: { type: "string", short: "c" },
  store: { type: "string" },
  fix: { type: "boolean" },
} as const;

interface Arguments {
  readonly values: { readonly config?: string; readonly store?: string; readonly fix?: boolean };
  readonly positionals: readonly string[];
}

/** Of an example: an example may be a user id, which a client has chosen. */
const MAX_EXAMPLE_LENGTH = 60;

/** `coatcheck sessions sweep`. @returns the exit status. */
export async function runSweep({ values, positionals }: Arguments, environment: Environment): Promise<number> {
  const { config: file, store: url, fix = false } = values;
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  if ((file === undefined) === (url === undefined))
    throw new UsageError("say what to sweep: --config FILE or --store URL");
  const config = file === undefined ? defaults(environment) : loadConfigFile(file, environment).config;
  const { store } = config;
  const urls =
    url !== undefined
      ? [storeNamed("--store", url, environment)]
      : typeof store === "string"
        ? [store]
        : [store.primary, store.fallback];
  let status = 0;
  for (const each of urls) status = Math.max(status, await sweepOne(each, config, fix));
  return status;
}

async function sweepOne(url: string, config: Config, fix: boolean): Promise<number> {
  if (url === "memory:") throw new CommandError("memory: ends with its process; there is nothing to sweep");
  const file = url.startsWith("sqlite:") ? url.slice("sqlite:".length) : undefined;
  if (file !== undefined && !existsSync(file)) throw new CommandError(`there is no file ${file} to sweep`);
  const store = await openAnswering(url, config);
  try {
    process.stderr.write(`${fix ? "sweeping" : "looking through"} ${maskUrl(url)}\n`);
    return await sweepAll(store, fix);
  } finally {
    await store.close();
  }
}

async function sweepAll(store: SessionStore, fix: boolean): Promise<number> {
  if (store.sweep === undefined)
    throw new CommandError(`a ${store.kind} store cannot be swept: it cleans up by itself`);
  const sweep = store.sweep.bind(store);
  const progress = new Progress(STDERR);
  const result = await untilInterrupted((signal) =>
    sweep({ fix, signal, onStep: (looked) => progress.show(`looked at ${grouped(looked)}`, performance.now()) }),
  );
  progress.end();
  print(renderSweep(result));
  if (result.failure !== undefined) report("stopped", result.failure);
  if (!result.complete) process.stderr.write("Not all was looked at. Run the same command again.\n");
  const left = result.findings.some(({ count, fixed }) => count > fixed);
  if (left && !fix) process.stderr.write("Nothing was changed; --fix repairs what can be repaired.\n");
  return left || !result.complete ? FAILED : 0;
}

export function renderSweep({ looked, findings }: SweepReport): string {
  const head = `${grouped(looked)} keys looked at.\n`;
  if (findings.length === 0) return `${head}Nothing was found.\n`;
  const rows = findings.map(({ count, fixed, what }) => [grouped(count), grouped(fixed), what]);
  const examples = findings.filter((finding) => finding.examples.length > 0).map(renderExamples);
  return [head, table([["FOUND", "FIXED", "WHAT"], ...rows], [0, 1]), ...examples].join("\n");
}

function renderExamples({ what, examples, count }: SweepFinding): string {
  const lines = examples.map((example) => `  ${plain(example, MAX_EXAMPLE_LENGTH)}\n`).join("");
  return `${what}${count > examples.length ? ", for example" : ""}:\n${lines}`;
}
