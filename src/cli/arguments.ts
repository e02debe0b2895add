import { type ParseArgsConfig, parseArgs } from "node:util";
import { REFERENCE_PATTERN } from "../core/administration.ts";

/** What the commands of the command line share. */

/** Exit statuses of a command that did not succeed. */
export const FAILED = 1;
export const WRONG_USAGE = 2;

/** The command line makes no sense; the message says what would. */
export class UsageError extends Error {}

/** A command could not do its work; the message is for the person at the terminal. */
export class CommandError extends Error {}

type Options = NonNullable<ParseArgsConfig["options"]>;

/** @throws UsageError for what is not an option. */
export function parse<const T extends Options>(args: readonly string[], options: T) {
  try {
    return parseArgs({ args: [...args], allowPositionals: true, options });
  } catch (error) {
    const message = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    // What follows the name of an unknown option tells of positional arguments, which hardly anybody meant.
    throw new UsageError(message.replace(/^(Unknown option '[^']*')\. .*/, "$1"));
  }
}

/** A handle may begin with a dash, which would make it an option of its own. @param options those that take one. */
export function shieldValues(args: readonly string[], options: readonly string[]): string[] {
  const shielded: string[] = [];
  for (const arg of args) {
    const before = shielded.at(-1) ?? "";
    if (options.includes(before) && arg.startsWith("-") && REFERENCE_PATTERN.test(arg))
      shielded.splice(-1, 1, `${before}=${arg}`);
    else shielded.push(arg);
  }
  return shielded;
}

/** Names the options in place of the settings in what a gateway says that was set up by options. */
export function tellOptions(error: unknown): void {
  if (error instanceof Error)
    error.message = error.message.replace("listen.port", "--port").replace("admin.port", "--admin-port");
}

/** Whoever reads the output has read enough, as `head` does: that ends a command, and is no failure of it. */
export function endWhenUnread(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(0);
  });
}

export function print(text: string): number {
  process.stdout.write(text);
  return 0;
}
