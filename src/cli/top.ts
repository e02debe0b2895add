import { setTimeout as pause } from "node:timers/promises";
import type { Environment } from "../config/load.ts";
import { parseDuration } from "../core/units.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, type Admin, adminOf } from "./admin.ts";
import { parse, print, UsageError } from "./arguments.ts";

const USAGE = `coatcheck top: what a running Coatcheck does now

Usage:
  coatcheck top           a view that is renewed, for a terminal of any size
  coatcheck top --once    what happens within one interval, as text; also what a pipe gets

Options:
${ADMIN_HELP}
      --interval TIME   between two looks, 500ms to 1m (default: 2s)
      --once            look twice, print what happened between, and end

Keys: 1 to 4 panels, tab the next, s sort, p pause, ? help, q quit. NO_COLOR turns colours off;
without a UTF-8 locale everything is ASCII.

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  interval: { type: "string" },
  once: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

const MIN_INTERVAL_MS = 500;
const MAX_INTERVAL_MS = 60_000;

/** The command `top`. What draws is loaded here and only here. @returns the exit status. */
export async function runTop(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS);
  if (values.help) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  const intervalMs = parseDuration(values.interval ?? "2s") ?? 0;
  if (intervalMs < MIN_INTERVAL_MS || intervalMs > MAX_INTERVAL_MS)
    throw new UsageError("--interval must be a time from 500ms to 1m, such as 2s");
  const admin = adminOf(values, environment);
  const unicode = isUtf8(environment);
  const { stdin, stdout } = process;
  if (values.once || !stdout.isTTY || environment.TERM === "dumb") return once(admin, intervalMs, unicode);
  const { top } = await import("./top/top.ts");
  const ability = { colour: stdout.hasColors(), unicode };
  await top({ admin, intervalMs, ability, output: stdout, input: stdin });
  return 0;
}

async function once(admin: Admin, intervalMs: number, unicode: boolean): Promise<number> {
  const [{ read }, { figuresOf }, { firstView, renderAll }] = await Promise.all([
    import("./top/read.ts"),
    import("./top/figures.ts"),
    import("./top/view.ts"),
  ]);
  const before = await read(admin);
  await pause(intervalMs);
  const figures = figuresOf(await read(admin), before);
  const view = firstView(admin.url, intervalMs, figures);
  return print(renderAll(view, { colour: false, unicode }));
}

/** As the C library reads it: the first of these that is set says which characters there are. */
function isUtf8({ LC_ALL, LC_CTYPE, LANG }: Environment): boolean {
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || "");
}
