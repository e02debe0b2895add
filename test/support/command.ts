/** The command line, as a process of its own. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { Teardown } from "./servers.ts";

const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));

/** The runner's, as an absolute path: a command may have another working directory. */
const { NODE_COMPILE_CACHE } = process.env;
export const COMPILE_CACHE = NODE_COMPILE_CACHE ? { NODE_COMPILE_CACHE: resolve(NODE_COMPILE_CACHE) } : {};

export interface Running {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
  /** Exit status, or the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>;
}

/** Starts `coatcheck …`; environment and standard input are what is given, the compile cache, and nothing else. */
export function command(
  t: Teardown,
  args: readonly string[],
  environment: Record<string, string> = {},
  options: { main?: string; cwd?: string; input?: string } = {},
): Running {
  const { main = MAIN, cwd, input } = options;
  const child = spawn(process.execPath, [main, ...args], {
    env: { PATH: process.env.PATH, ...COMPILE_CACHE, ...environment },
    stdio: ["pipe", "pipe", "pipe"],
    ...(cwd && { cwd }),
  });
  // A command that does not read what it is given ends all the same.
  child.stdin.on("error", () => {});
  child.stdin.end(input ?? "");
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (piece) => {
    stdout += piece;
  });
  child.stderr.setEncoding("utf8").on("data", (piece) => {
    stderr += piece;
  });
  const ended = once(child, "close").then(([code, signal]) => code ?? signal);
  t.teardown(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  return { child, stdout: () => stdout, stderr: () => stderr, ended };
}

/** Runs a command to its end. */
export async function run(
  t: Teardown,
  args: readonly string[],
  environment: Record<string, string> = {},
  options: { main?: string; cwd?: string; input?: string } = {},
) {
  const running = command(t, args, environment, options);
  const status = await running.ended;
  return { status, stdout: running.stdout(), stderr: running.stderr() };
}
