import { existsSync } from "node:fs";
import type { Config } from "../config/compile.ts";
import { maskUrl } from "../config/fields.ts";
import { type Environment, loadConfig, loadConfigFile } from "../config/load.ts";
import type { SessionStore } from "../core/store.ts";
import { type MigrationCounts, type MigrationResult, migrate } from "../store/migrate.ts";
import { CommandError, FAILED, print, UsageError } from "./arguments.ts";
import { openConfigured } from "./check.ts";
import { Progress, report, STDERR, untilInterrupted } from "./progress.ts";
import { grouped, plain, table } from "./text.ts";

export const MIGRATION_OPTIONS = {
  from: { type: "string" },
  to: { type: "string" },
  config: { type: "string", short: "c" },
  cursor: { type: "string" },
} as const;

interface Arguments {
  readonly values: { readonly [name in keyof typeof MIGRATION_OPTIONS]?: string | undefined };
  readonly positionals: readonly string[];
}

/** `coatcheck sessions migrate`. @returns the exit status. */
export async function runMigration({ values, positionals }: Arguments, environment: Environment): Promise<number> {
  const { cursor } = values;
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  if (values.from === undefined || values.to === undefined)
    throw new UsageError("migrate needs --from URL and --to URL");
  const from = storeNamed("--from", values.from, environment);
  const to = storeNamed("--to", values.to, environment);
  if (from === to) throw new UsageError("--from and --to are the same store");
  if ([from, to].includes("memory:")) throw new UsageError("memory: ends with its process; there is nothing to copy");
  if (cursor === "") throw new UsageError("--cursor is empty");
  if (from.startsWith("sqlite:") && !existsSync(from.slice("sqlite:".length)))
    throw new CommandError(`there is no file ${from.slice("sqlite:".length)} to copy from`);
  const config =
    values.config === undefined ? defaults(environment) : loadConfigFile(values.config, environment).config;
  const source = await openAnswering(from, config);
  try {
    const target = await openAnswering(to, config);
    try {
      process.stderr.write(`from ${maskUrl(from)}\nto   ${maskUrl(to)}\n`);
      return await copyAll(source, target, cursor);
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

/**
 * A store that an option names. `${NAME}` is taken from the environment, so that nobody has to write a password where the
 * list of processes shows it.
 * @throws ConfigError when it is no store.
 */
export function storeNamed(option: string, url: string, environment: Environment): string {
  return String(loadConfig({ store: url, routes: ANY_ROUTES }, environment, option).config.store);
}

const ANY_ROUTES = [{ upstream: "http://127.0.0.1" }];

/** Longest life that the schema allows: without the configuration, the index of a user must not forget a session. */
export function defaults(environment: Environment): Config {
  const settings = { session: { absoluteTimeout: "400d" }, routes: ANY_ROUTES };
  return loadConfig(settings, environment).config;
}

/** @throws CommandError when it does not answer. */
export async function openAnswering(url: string, config: Config): Promise<SessionStore> {
  const store = await openConfigured(url, config);
  const { ok, detail } = await store.check();
  if (ok) return store;
  await store.close();
  throw new CommandError(`${maskUrl(url)} does not answer: ${detail}`);
}

async function copyAll(from: SessionStore, to: SessionStore, cursor: string | undefined): Promise<number> {
  const progress = new Progress(STDERR);
  const result = await untilInterrupted((signal) => {
    const onPage = (counts: MigrationCounts) => progress.show(renderProgress(counts), performance.now());
    return migrate({ from, to, cursor, signal, onPage });
  });
  progress.end();
  print(renderCounts(result));
  if (result.refusal !== undefined) report("refused", result.refusal);
  if (!result.complete) reportStop(result);
  return result.complete && failures(result) === 0 ? 0 : FAILED;
}

function reportStop({ failure, cursor }: MigrationResult): void {
  if (failure !== undefined) report("stopped", failure);
  const how = cursor === undefined ? "run the same command again" : `add --cursor=${quoted(cursor)}`;
  process.stderr.write(`Not all was looked at. To go on, ${how}\n`);
}

/** For a shell. */
function quoted(text: string): string {
  return /^[\w.:-]+$/.test(text) ? text : `'${plain(text).replaceAll("'", "'\\''")}'`;
}

export function renderProgress(counts: MigrationCounts): string {
  return `copied ${grouped(counts.copied)} · skipped ${grouped(skipped(counts))} · failed ${grouped(failures(counts))}`;
}

function skipped({ present, ended }: MigrationCounts): number {
  return present + ended;
}

function failures({ malformed, newer, refused }: MigrationCounts): number {
  return malformed + newer + refused;
}

export function renderCounts(counts: MigrationCounts): string {
  const parts = (named: Readonly<Record<string, number>>): string => {
    const shown = Object.entries(named).filter(([, count]) => count > 0);
    return shown.map(([name, count]) => `${grouped(count)} ${name}`).join(", ");
  };
  const { copied, present, ended, malformed, newer, refused } = counts;
  return table(
    [
      ["copied", grouped(copied), ""],
      ["skipped", grouped(skipped(counts)), parts({ "already there": present, "ended or expired": ended })],
      ["failed", grouped(failures(counts)), parts({ malformed, "of a newer format": newer, refused })],
    ],
    [1],
  );
}
