/**
 * `npm run test:differential`: sends every case to the three proxies and prints what each did.
 * `--only PATTERN` takes the cases whose id matches, and shows every octet; `--write` writes docs/http-comparison.md.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../support/project.ts";
import { CASES } from "./cases/index.ts";
import { compare } from "./compare.ts";
import { PROXIES } from "./proxies.ts";
import { COMPARISON, renderComparison, renderRows } from "./table.ts";

const { values } = parseArgs({ options: { only: { type: "string" }, write: { type: "boolean", default: false } } });
const only = values.only === undefined ? undefined : new RegExp(values.only);
const cases = CASES.filter(({ id }) => only === undefined || only.test(id));
const ends: (() => unknown)[] = [];
try {
  const outcomes = await compare({ teardown: (end) => ends.push(end) }, cases);
  if (only !== undefined) {
    for (const [id, row] of outcomes) {
      console.log(`\n${id}`);
      for (const proxy of PROXIES) {
        const { what, faults, upstream, client } = row[proxy];
        console.log(`  ${proxy}: ${[what, ...faults].join(", ")}`);
        for (const octets of upstream) console.log(`    upstream ${JSON.stringify(octets.slice(0, 600))}`);
        console.log(`    client   ${JSON.stringify(client.slice(0, 600))}`);
      }
    }
  } else {
    const text = renderComparison(outcomes);
    console.log(renderRows(outcomes));
    if (values.write) await writeFile(join(ROOT, COMPARISON), text);
  }
} finally {
  for (const end of ends.reverse()) await end();
}
