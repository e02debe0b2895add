/** `npm run test:lifecycle`: the long form. `--write` puts the table into docs/lifecycle.md. */
import { readFile, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../support/project.ts";
import type { Counts } from "../support/traffic.ts";
import { dnsChanges, flappingTarget, slowTarget, workersKilled } from "./faults.ts";
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
/** What went wrong, other than what was made to. */
const problems: string[] = [];
const expect = (what: string, holds: boolean): void => {
  if (!holds) problems.push(what);
};
function row(name: string, counts: Counts, injected = 0): void {
  const cells = [name, ...COLUMNS.map((column) => counts[column]), injected, `${counts.longestMs.toFixed(0)} ms`];
  rows.push(`| ${cells.join(" | ")} |`);
  expect(`${name}: more was lost than was injected`, counts.requests - counts.served === injected);
}
const add = (name: string, { quick, slow }: Outcome): void => {
  row(`${name}: quick`, quick);
  row(`${name}: slow`, slow);
};

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const began = performance.now();
try {
  add(`${seconds} reloads in ${seconds} s`, await reloads(t, { seconds }));
  add(`${seconds} broken files in ${seconds} s`, await reloads(t, { seconds, broken: true }));
  const restarts = await rollingRestarts(t, { rounds: 3 });
  add(`${restarts.times} restarts behind HAProxy`, restarts);
  const kills = await workersKilled(t, { kills: 6, everyMs: 2_000 });
  row(`${kills.times} workers of two killed with SIGKILL: quick`, kills.quick, kills.injected.quick);
  row(`${kills.times} workers of two killed with SIGKILL: slow`, kills.slow, kills.injected.slow);
  const flaps = await flappingTarget(t, { seconds, everyMs: 700 });
  row(`a target of two cut off ${flaps.times} times: GET`, flaps.quick);
  row(`a target of two cut off ${flaps.times} times: POST`, flaps.slow, flaps.injected.slow);
  expect("a POST arrived twice", flaps.posts.arrived === flaps.posts.different);
  const slow = await slowTarget(t, { seconds });
  row(`a target of three slow, its share from ${percent(slow.shareBefore)} to ${percent(slow.shareAfter)}`, slow.slow);
  row("the other two", slow.others);
  const dns = await dnsChanges(t, { changes: 4, everyMs: 5_000 });
  row(`${dns.times} changes of the address in DNS: GET`, dns.quick);
  row(`${dns.times} changes of the address in DNS: POST`, dns.slow);
  expect("there were requests at an old address", dns.tooLate === 0 && dns.atNew > 0);
} finally {
  for (const end of ends.reverse()) await end();
}
const head = [
  "| | requests | served | 503 | another's | logged out | hung | failed | of these injected | longest answer |",
  "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
];
const table = [...head, ...rows].join("\n");
const made =
  `Made on ${new Date().toISOString().slice(0, 10)} by \`npm run test:lifecycle -- --write\`, in ` +
  `${((performance.now() - began) / 60_000).toFixed(1)} minutes: Node ${process.version}, ${availableParallelism()} cores ` +
  "for the gateways, the applications and the load together.";
console.log([table, made, ...problems].join("\n"));
if (values.write) {
  const page = await readFile(PAGE, "utf8");
  const at = page.indexOf(HEADING) + HEADING.length;
  const [text = ""] = page.slice(at).split("\n|", 1);
  await writeFile(PAGE, `${page.slice(0, at)}${text.trimEnd()}\n\n${table}\n\n${made}\n`);
}
if (problems.length > 0) process.exitCode = 1;
