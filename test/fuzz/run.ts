/**
 * `npm run fuzz`: random and mutated input for as long as `--seconds` says, shared by the targets (or `--target NAME`, which
 * may come several times). `--seed N` repeats a run. An input that breaks an invariant is written to a file, which
 * `--replay FILE` runs once more.
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { fuzz, replay, TARGETS } from "./fuzz.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "60" },
    target: { type: "string", multiple: true },
    seed: { type: "string" },
    replay: { type: "string" },
  },
});

if (values.replay !== undefined) {
  const problem = await replay(JSON.parse(readFileSync(values.replay, "utf8")));
  console.log(problem === undefined ? "nothing is wrong with it" : problem);
  process.exitCode = problem === undefined ? 0 : 1;
} else {
  const names = values.target ?? TARGETS.map(({ name }) => name);
  const unknown = names.filter((name) => TARGETS.every((target) => target.name !== name));
  if (unknown.length > 0)
    throw new TypeError(`no target ${unknown.join(", ")}: ${TARGETS.map(({ name }) => name).join(", ")}`);
  const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.seed);
  const secondsEach = Number(values.seconds) / names.length;
  for (const target of TARGETS.filter(({ name }) => names.includes(name))) {
    const { inputs, failures } = await fuzz(target, { seed, seconds: secondsEach });
    console.log(`${target.name}: ${inputs} inputs, seed ${seed}, ${failures.length} broken`);
    for (const { problem, file } of failures) {
      console.log(`  ${problem.split("\n", 1)[0]}\n    ${file}`);
      process.exitCode = 1;
    }
  }
}
process.exit();
