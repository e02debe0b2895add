import { existsSync } from "node:fs";
import { CommandError, FAILED, print, UsageError } from "./cli-arguments.ts";
import { openConfigured } from "./cli-check.ts";
import { grouped, plain, table } from "./cli-text.ts";
import type { Config } from "./config/compile.ts";
import { maskUrl } from "./config/fields.ts";
import { type Environment, loadConfig, loadConfigFile } from "./config/load.ts";
import type { SessionStore } from "./core/store.ts";
import { explain } from "./store/failures.ts";
import { type MigrationCounts, type MigrationResult, migrate } from "./store/migrate.ts";

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

/** Between two lines of progress, milliseconds: rewritten in place on a terminal, one after the other elsewhere. */
const TERMINAL_PROGRESS_MS = 100;
const LINE_PROGRESS_MS = 5_000;

/** `coatcheck sessions migrate`. @returns the exit status. */
export async function runMigration({ values, positionals }: Arguments, environment: Environment): Promise<number> {
  const { from, to, cursor } = values;
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  if (from === undefined || to === undefined) throw new UsageError("migrate needs --from URL and --to URL");
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

/** Longest life that the schema allows: without the configuration, the index of a user must not forget a session. */
function defaults(environment: Environment): Config {
  const settings = { session: { absoluteTimeout: "400d" }, routes: [{ upstream: "http://127.0.0.1" }] };
  return loadConfig(settings, environment).config;
}

async function openAnswering(url: string, config: Config): Promise<SessionStore> {
  const store = await openConfigured(url, config);
  const { ok, detail } = await store.check();
  if (ok) return store;
  await store.close();
  throw new CommandError(`${maskUrl(url)} does not answer: ${detail}`);
}

async function copyAll(from: SessionStore, to: SessionStore, cursor: string | undefined): Promise<number> {
  const stop = new AbortController();
  const interrupted = (): void => {
    if (stop.signal.aborted) process.exit(FAILED);
    stop.abort();
  };
  process.on("SIGINT", interrupted);
  process.on("SIGTERM", interrupted);
  const progress = new Progress({
    isTerminal: process.stderr.isTTY === true,
    write: (text) => process.stderr.write(text),
  });
  try {
    const result = await migrate({
      from,
      to,
      cursor,
      signal: stop.signal,
      onPage: (counts) => progress.show(counts, performance.now()),
    });
    progress.end();
    print(renderCounts(result));
    if (result.refusal !== undefined) report("refused", result.refusal);
    if (!result.complete) reportStop(result);
    return result.complete && failures(result) === 0 ? 0 : FAILED;
  } finally {
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
  }
}

function reportStop({ failure, cursor }: MigrationResult): void {
  if (failure !== undefined) report("stopped", failure);
  const how = cursor === undefined ? "run the same command again" : `add --cursor=${quoted(cursor)}`;
  process.stderr.write(`Not all was looked at. To go on, ${how}\n`);
}

function report(what: string, error: unknown): void {
  const { problem, advice } = explain(error);
  process.stderr.write(`${what}: ${problem}\n  ${advice}\n`);
}

/** For a shell. */
function quoted(text: string): string {
  return /^[\w.:-]+$/.test(text) ? text : `'${plain(text).replaceAll("'", "'\\''")}'`;
}

export interface ProgressOptions {
  readonly isTerminal: boolean;
  readonly write: (text: string) => void;
}

/** How far it has come: one line that changes on a terminal, a line every few seconds in a log. */
export class Progress {
  readonly #options: ProgressOptions;
  #shownMs = -Infinity;
  #startedMs: number | undefined;
  #pending = false;

  constructor(options: ProgressOptions) {
    this.#options = options;
  }

  /** @param nowMs of a clock that only goes forward. */
  show(counts: MigrationCounts, nowMs: number): void {
    const { isTerminal, write } = this.#options;
    // The first page is over at once; in a log, its line would say nothing.
    if (this.#startedMs === undefined) {
      this.#startedMs = nowMs;
      if (!isTerminal) this.#shownMs = nowMs;
    }
    if (nowMs - this.#shownMs < (isTerminal ? TERMINAL_PROGRESS_MS : LINE_PROGRESS_MS)) return;
    this.#shownMs = nowMs;
    const seconds = (nowMs - this.#startedMs) / 1000;
    const line = `copied ${grouped(counts.copied)} · skipped ${grouped(skipped(counts))} · failed ${grouped(failures(counts))} · ${seconds.toFixed(0)} s`;
    write(isTerminal ? `\r\u{1b}[K${line}` : `${line}\n`);
    this.#pending = isTerminal;
  }

  end(): void {
    if (this.#pending) this.#options.write("\n");
  }
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
