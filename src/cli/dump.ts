import { readFileSync, statSync } from "node:fs";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { DUMP, DUMP_FORMAT_VERSION, DUMP_HEAD, type Dump, dumpFileName } from "../admin/dump.ts";
import type { Environment } from "../config/load.ts";
import { readProblem } from "../core/file-problems.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, downloadAdmin } from "./admin.ts";
import { CommandError, parse, print, UsageError } from "./arguments.ts";
import { renderSummary } from "./dump-summary.ts";
import { saveFile } from "./file.ts";
import { grouped, plain } from "./text.ts";

/** What a file may grow to when it is unpacked; a dump with full rings has some ten. */
const MAX_BYTES = 256 * 1024 * 1024;

const SECTIONS = [
  "build",
  "settings",
  "observe",
  "runtime",
  "store",
  "cache",
  "events",
  "exchanges",
  "metrics",
] as const satisfies readonly (keyof Dump)[];
type Section = (typeof SECTIONS)[number];

const USAGE = `coatcheck dump: take along everything that a running gateway knows, and read it

Usage:
  coatcheck dump [--out FILE]               fetch one through the admin listener
  coatcheck dump --open FILE                what is in it, for people
  coatcheck dump --open FILE --section NAME one part as JSON:
                                            ${SECTIONS.slice(0, 5).join(", ")},
                                            ${SECTIONS.slice(5).join(", ")}

Options:
${ADMIN_HELP}
      --out FILE        where to (default: ./coatcheck-dump-TIME-PID.json.gz)
      --force           write over a file that is there

A dump holds no secret, cookie, token, header value, query or body, and nothing of the users'
sessions. It does hold addresses of clients, hosts and paths of requests. "kill -USR2 PID" writes
one too; its log line says where to.

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  out: { type: "string" },
  force: { type: "boolean" },
  open: { type: "string" },
  section: { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

/** `coatcheck dump …`. */
export async function runDump(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS);
  const { out, force = false, open, section, help } = values;
  if (help) return print(USAGE);
  if (positionals.length > 0)
    throw new UsageError(`unexpected "${plain(positionals.join(" "))}"; to read a dump: --open FILE`);
  if (open === undefined) {
    if (section !== undefined) throw new UsageError("--section goes with --open FILE");
    return fetchDump({ out, force }, values, environment);
  }
  for (const name of ["out", "force", "config", "admin"] as const)
    if (values[name] !== undefined) throw new UsageError(`--${name} does not go with --open`);
  if (section !== undefined && !isSection(section))
    throw new UsageError(`there is no section "${plain(section)}"; known: ${SECTIONS.join(", ")}`);
  const dump = await openDump(readDumpFile(open), open);
  return print(section === undefined ? renderSummary(dump) : renderSection(dump, section));
}

async function fetchDump(
  { out, force }: { readonly out: string | undefined; readonly force: boolean },
  values: Parameters<typeof adminOf>[0],
  environment: Environment,
): Promise<number> {
  const admin = adminOf(values, environment);
  const content = await downloadAdmin(admin, { method: "GET", path: "/debug/dump" }, async (response) =>
    Buffer.from(await response.arrayBuffer()),
  );
  const dump = await openDump(content, `what ${admin.url} sent`);
  const file = out ?? plain(dumpFileName(dump)).replace(/[^\w.-]/g, "_");
  await saveFile(file, content, { force });
  const { version, pid } = dump.build;
  return print(
    `${plain(file, 4096)}: ${grouped(content.length)} bytes, of Coatcheck ${plain(version)}, pid ${pid}\n` +
      `To read it: coatcheck dump --open ${plain(file, 4096)}\n`,
  );
}

function isSection(name: string): name is Section {
  return (SECTIONS as readonly string[]).includes(name);
}

/** One part: JSON, but for the metrics, which have a format of their own. Nothing in it commands the terminal. */
export function renderSection(dump: Dump, section: Section): string {
  const part = dump[section];
  if (typeof part === "string")
    return part
      .split("\n")
      .map((line) => plain(line, line.length))
      .join("\n");
  return `${JSON.stringify(part, null, 2).replace(UNPRINTABLE, escaped)}\n`;
}

/** What JSON leaves as it is, and a terminal might obey. */
const UNPRINTABLE = /[\x7f-\x9f\p{Cf}\p{Zl}\p{Zp}]/gu;

function escaped(character: string): string {
  return character
    .split("")
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .join("");
}

function readDumpFile(file: string): Buffer {
  const of = plain(file, 4096);
  try {
    const { size } = statSync(file);
    if (size > MAX_BYTES) throw new CommandError(`${of} is no dump: it is larger than 256 MiB`);
    return readFileSync(file);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError(`${of} ${readProblem(error)}`);
  }
}

/** @throws CommandError for what is damaged, foreign, of a later version, or larger than anything of ours. */
export async function openDump(content: Uint8Array, name: string): Promise<Dump> {
  const of = plain(name, 4096);
  const value = parseJson(await unpack(content, of));
  const head = DUMP_HEAD.safeParse(value);
  if (!head.success) throw new CommandError(`${of} is no dump of Coatcheck, or is damaged`);
  if (head.data.formatVersion > DUMP_FORMAT_VERSION)
    throw new CommandError(
      `${of} was written by a later Coatcheck: its format is ${head.data.formatVersion}, and this one reads up to ${DUMP_FORMAT_VERSION}`,
    );
  const dump = DUMP.safeParse(value);
  if (dump.success) return dump.data;
  const where = dump.error.issues[0]?.path.map(String).join(".") ?? "";
  throw new CommandError(`${of} is damaged: ${plain(where)} is not what it should be`);
}

async function unpack(content: Uint8Array, of: string): Promise<string> {
  // Somebody may have unpacked it already.
  if (content[0] === "{".charCodeAt(0)) return Buffer.from(content).toString();
  try {
    return (await promisify(gunzip)(content, { maxOutputLength: MAX_BYTES })).toString();
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ERR_BUFFER_TOO_LARGE") throw new CommandError(`${of} is no dump: it unpacks to more than 256 MiB`);
    throw new CommandError(`${of} is no dump of Coatcheck, or is damaged: it is not compressed with gzip to its end`);
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
