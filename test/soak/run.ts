/** `npm run soak`: see soak.ts. `--seconds N` (default 150), `--connections N` (default 1000), `--no-results`. */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { problemsOf, report } from "./report.ts";
import { soak } from "./soak.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "150" },
    connections: { type: "string", default: "1000" },
    "no-results": { type: "boolean", default: false },
  },
});

const ends: (() => unknown)[] = [];
try {
  const connections = Number(values.connections);
  const result = await soak({ teardown: (end) => ends.unshift(end) }, { seconds: Number(values.seconds), connections });
  const text = report(result, connections);
  process.stdout.write(text);
  const problems = problemsOf(result);
  for (const problem of problems) process.stderr.write(`soak: ${problem}\n`);
  process.exitCode = problems.length > 0 ? 1 : 0;
  if (!values["no-results"] && problems.length === 0) {
    const where = `- date: ${new Date().toISOString()}\n- machine: ${cpus().length} × ${cpus()[0]?.model}, node ${process.version}\n`;
    writeFileSync(new URL("../../bench/results/soak.md", import.meta.url), `${text}\n${where}`);
  }
} finally {
  for (const end of ends) await end();
}
process.exit();
