/** `npm run test:lifecycle`: the long form. `--write` puts the table into docs/lifecycle.md. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../support/project.ts";
import type { TrafficReport } from "../support/traffic.ts";
import { type Outcome, reloads, rollingRestarts } from "./scenarios.ts";

const PAGE = join(ROOT, "docs/lifecycle.md");
const HEADING = "## Measured\n";
const COLUMNS = ["requests", "served", "outages", "wrong", "loggedOut", "hung", "failed"] as const;

const { values } = parseArgs({
  options: { seconds: { type: "string", default: "30" }, write: { type: "boolean", default: false } },
});
const seconds = Number(values.seconds);
const ends: (() => unknown)[] = [];
const t = { teardown: (end: () => unknown) => void ends.push(end) };

const rows: string[] = [];
let lost = 0;
const add = (name: string, { quick, slow }: Outcome): void => {
  rows.push(row(`${name}: quick`, quick), row(`${name}: slow`, slow));
  lost += quick.requests - quick.served + slow.requests - slow.served;
};

function row(name: string, report: TrafficReport): string {
  return `| ${[name, ...COLUMNS.map((column) => report[column]), `${report.longestMs.toFixed(0)} ms`].join(" | ")} |`;
}

try {
  add(`${seconds} reloads in ${seconds} s`, await reloads(t, { seconds }));
  add(`${seconds} broken files in ${seconds} s`, await reloads(t, { seconds, broken: true }));
  const restarts = await rollingRestarts(t, { rounds: 3 });
  add(`${restarts.times} restarts behind HAProxy`, restarts);
} finally {
  for (const end of ends.reverse()) await end();
}
const head = [
  "| | requests | served | 503 | another's | logged out | hung | failed | longest answer |",
  "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
];
const table = [...head, ...rows].join("\n");
console.log(table);
if (values.write) {
  const page = await readFile(PAGE, "utf8");
  const at = page.indexOf(HEADING) + HEADING.length;
  const [text = ""] = page.slice(at).split("\n|", 1);
  await writeFile(PAGE, `${page.slice(0, at)}${text.trimEnd()}\n\n${table}\n`);
}
if (lost > 0) process.exitCode = 1;
