import { stringify } from "yaml";
import { readTls } from "../certificate.ts";
import type { Config } from "../config/compile.ts";
import { maskUrl } from "../config/fields.ts";
import { type Environment, loadConfigFile } from "../config/load.ts";
import { maskSettings } from "../config/mask.ts";
import type { StoreReport } from "../core/administration.ts";
import type { SessionStore } from "../core/store.ts";
import { readErrorPages, storeOptions } from "../gateway.ts";
import { explain } from "../store/failures.ts";
import { openStore } from "../store/open.ts";
import { probeStore } from "../store/probe.ts";
import { CommandError, FAILED, parse, print, UsageError } from "./arguments.ts";
import { plain, table } from "./text.ts";

/** `coatcheck check`: the configuration, and on demand the store. */
export async function check(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args, {
    config: { type: "string", short: "c" },
    store: { type: "boolean" },
  });
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  if (values.config === undefined) throw new UsageError("check needs --config FILE");
  const { settings, config } = loadConfigFile(values.config, environment);
  await readTls(config);
  await readErrorPages(config);
  if (!values.store) return print(stringify(maskSettings(settings)));
  const store = await openConfigured(config.store, config);
  try {
    const report = await probeStore(store, Date.now);
    print(renderReport(report, shownStore(config.store)));
    return report.ok ? 0 : FAILED;
  } finally {
    await store.close();
  }
}

/**
 * Opens a store as a gateway would.
 * @throws CommandError when it cannot be opened, with what to do about it.
 */
export async function openConfigured(store: Config["store"], config: Config): Promise<SessionStore> {
  try {
    return await openStore(store, storeOptions(config, Date.now));
  } catch (error) {
    const { problem, advice } = explain(error);
    throw new CommandError(`${plain(problem, MAX_LENGTH)}\n  ${advice}`);
  }
}

function shownStore(store: Config["store"]): string {
  if (typeof store === "string") return maskUrl(store);
  return `${maskUrl(store.primary)}, falling back to ${maskUrl(store.fallback)}`;
}

/** Of what is told of a store. */
const MAX_LENGTH = 1000;

export function renderReport({ ok, store, steps, facts, warnings }: StoreReport, url: string): string {
  const parts = [
    `${store} at ${url}\n`,
    table([["STEP", "RESULT", "MS"], ...steps.map(({ step, result, ms }) => [step, result, shownMs(result, ms)])], [2]),
  ];
  // What servers, and stores of somebody else's, say of themselves.
  if (facts.length > 0) parts.push(table(facts.map(({ name, value }) => [plain(name), plain(value, MAX_LENGTH)])));
  for (const { step, problem, advice } of steps)
    if (problem !== undefined) parts.push(`failed: ${step}: ${plain(problem, MAX_LENGTH)}\n  ${advice}\n`);
  for (const warning of warnings) parts.push(`warning: ${plain(warning, MAX_LENGTH)}\n`);
  const count = warnings.length;
  if (!ok) parts.push("The store would not serve as it is.\n");
  else parts.push(`The store serves${count === 0 ? "" : `, with ${count} warning${count === 1 ? "" : "s"}`}.\n`);
  return parts.join("\n");
}

function shownMs(result: string, ms: number): string {
  return result === "skipped" ? "" : ms.toFixed(2);
}
