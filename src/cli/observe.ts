import type { Environment } from "../config/load.ts";
import type { ObserveReport, ObserveWords } from "../core/observe-settings.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, callAdmin } from "./admin.ts";
import { parse, print, UsageError } from "./arguments.ts";
import { table } from "./text.ts";

const USAGE = `coatcheck observe: what is logged and traced, and changing it while it runs

Usage:
  coatcheck observe                                    what is observed at the moment
  coatcheck observe --ratio 1 --for 15m                changes it, here for a quarter of an hour

Options, each of which changes one thing and leaves the others:
      --ratio N         share of traces that are exported anyway, 0 to 1
      --slower-than TIME
                        requests slower than this are always exported, and kept as slow ones
      --errors true|false
                        whether failed requests are always exported
      --level LEVEL     lowest level of log lines: trace, debug, info, warn, error or fatal
      --access WHICH    which requests get an access line: all, errors or none
      --sample N        with --access all: share of ordinary requests that get one, 0 to 1
      --for TIME        the former values come back by themselves after this: 30s, 15m, 2h

Without --for a change stays until the configuration is read again (SIGHUP, restart).

Options:
      --json            what the admin listener answers, for machines
${ADMIN_HELP}

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  ratio: { type: "string" },
  "slower-than": { type: "string" },
  errors: { type: "string" },
  level: { type: "string" },
  access: { type: "string" },
  sample: { type: "string" },
  for: { type: "string" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

const PARAMETERS = {
  "traces.ratio": "--ratio",
  "traces.slowerThan": "--slower-than",
  "log.level": "--level",
  "log.access": "--access",
  "log.sample": "--sample",
  for: "--for",
};

/** `coatcheck observe …`. */
export async function runObserve(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS);
  if (values.help) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  const body = changesIn(values);
  const call = body === undefined ? { method: "GET" as const } : { method: "POST" as const, body };
  const report = await callAdmin<ObserveReport>(adminOf(values, environment), {
    ...call,
    path: "/observe",
    options: PARAMETERS,
  });
  return print(values.json ? `${JSON.stringify(report, null, 2)}\n` : renderReport(report));
}

type Values = ReturnType<typeof parse<typeof OPTIONS>>["values"];

/** What the admin listener is to change; it says itself which values make no sense. `undefined`: nothing. */
function changesIn({ ratio, "slower-than": slowerThan, errors, level, access, sample, for: duration }: Values) {
  const log = { level, access, sample: numberIn("--sample", sample) };
  const traces = { ratio: numberIn("--ratio", ratio), slowerThan, errors: booleanIn("--errors", errors) };
  if (Object.values({ ...log, ...traces }).some((value) => value !== undefined)) return { log, traces, for: duration };
  if (duration !== undefined) throw new UsageError("--for needs something to change, such as --ratio 1");
  return undefined;
}

function numberIn(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^\d*\.?\d+$/.test(text)) throw new UsageError(`${option} must be a number from 0 to 1`);
  return Number(text);
}

function booleanIn(option: string, text: string | undefined): boolean | undefined {
  if (text !== undefined && text !== "true" && text !== "false")
    throw new UsageError(`${option} must be true or false`);
  return text === undefined ? undefined : text === "true";
}

function renderReport({ temporary, ...now }: ObserveReport): string {
  if (temporary === undefined) return table(rows(now).map(([name, value]) => [name, value]));
  const later = new Map(rows(temporary.afterwards));
  const heading = ["", "NOW", `FROM ${temporary.until.slice(0, 19).replace("T", " ")} UTC`];
  return table([heading, ...rows(now).map(([name, value]) => [name, value, later.get(name) ?? ""])]);
}

function rows({ log, traces }: ObserveWords): [name: string, value: string][] {
  return [
    ["log level", log.level],
    ["access lines", log.access],
    ["access lines: share", String(log.sample)],
    ["traces: ratio", String(traces.ratio)],
    ["traces: slower than", traces.slowerThan],
    ["traces: errors", traces.errors ? "all" : "by ratio"],
  ];
}
