import { readFileSync, statSync } from "node:fs";
import type { Environment } from "../config/load.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, downloadAdmin } from "./admin.ts";
import { CommandError, parse, print, UsageError } from "./arguments.ts";
import { refuseToOverwrite, saveFile } from "./file.ts";
import { renderCpuProfile, renderHeapProfile } from "./profile-summary.ts";
import { grouped, plain } from "./text.ts";

const MAX_SECONDS = 60;
/** A large heap takes its time. */
const SNAPSHOT_TIMEOUT_MS = 600_000;
/** What a profile takes beyond the seconds that it was asked for. */
const EXTRA_TIME_MS = 60_000;

const USAGE = `coatcheck profile: where the processor time or the memory of a running gateway goes

Usage:
  coatcheck profile [--seconds N]           processor time: a .cpuprofile
  coatcheck profile --heap [--seconds N]    memory, by the functions that took it: a .heapprofile
  coatcheck profile --heap-snapshot         the whole memory: a .heapsnapshot

Options:
${ADMIN_HELP}
      --seconds N       how long to watch, 1 to ${MAX_SECONDS} (default: 10)
      --out FILE        where to (default: a name with the time, in this folder)
      --force           write over a file that is there

The heaviest functions are printed. The gateway has to have an admin token. Open the file in the
developer tools of Chrome or Edge (Performance, Memory), or in VS Code. The first two hold names of
functions only and cost little. A snapshot holds everything that is in the memory, secrets and
tokens included, and the gateway stands still while it is made: seconds for each 100 MiB of heap,
and up to ten times as much memory.

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  seconds: { type: "string" },
  heap: { type: "boolean" },
  "heap-snapshot": { type: "boolean" },
  out: { type: "string" },
  force: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

interface Kind {
  readonly path: string;
  readonly body: unknown;
  readonly extension: "cpuprofile" | "heapprofile" | "heapsnapshot";
  readonly timeoutMs: number;
}

/** `coatcheck profile …`. */
export async function runProfile(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS);
  if (values.help) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${plain(positionals.join(" "))}"`);
  const { path, body, extension, timeoutMs } = kindOf(values);
  const admin = adminOf(values, environment);
  const { force = false } = values;
  const file = values.out ?? `coatcheck-${new Date().toISOString().replaceAll(":", "-")}.${extension}`;
  await refuseToOverwrite(file, { force });
  await downloadAdmin(admin, { method: "POST", path, body, timeoutMs }, async (response) => {
    if (response.body === null) throw new CommandError(`${admin.url} sent nothing`);
    await saveFile(file, response.body, { force });
  });
  return print(`${plain(file, 4096)}: ${grouped(statSync(file).size)} bytes\n${summary(file, extension)}`);
}

function summary(file: string, extension: Kind["extension"]): string {
  if (extension === "heapsnapshot") return "It holds secrets and tokens: keep it as you keep those.\n";
  try {
    const profile = JSON.parse(readFileSync(file, "utf8"));
    return `\n${extension === "cpuprofile" ? renderCpuProfile(profile) : renderHeapProfile(profile)}`;
  } catch {
    throw new CommandError(`what is in ${plain(file, 4096)} is no profile: was it the admin listener of Coatcheck?`);
  }
}

function kindOf(values: { seconds?: string; heap?: boolean; "heap-snapshot"?: boolean }): Kind {
  const { seconds: text = "10", heap = false, "heap-snapshot": snapshot = false } = values;
  if (snapshot && (heap || values.seconds !== undefined))
    throw new UsageError("--heap-snapshot is taken at once: --seconds and --heap do not go with it");
  if (snapshot)
    return {
      path: "/debug/heap",
      body: { snapshot: true },
      extension: "heapsnapshot",
      timeoutMs: SNAPSHOT_TIMEOUT_MS,
    };
  const seconds = /^\d{1,2}$/.test(text) ? Number(text) : 0;
  if (seconds < 1 || seconds > MAX_SECONDS) throw new UsageError(`--seconds must be 1 to ${MAX_SECONDS}`);
  return {
    path: heap ? "/debug/heap" : "/debug/profile",
    body: { seconds },
    extension: heap ? "heapprofile" : "cpuprofile",
    timeoutMs: seconds * 1000 + EXTRA_TIME_MS,
  };
}
