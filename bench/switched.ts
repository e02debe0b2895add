import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { COUNT_PATH } from "./answers.ts";
import { ask } from "./ask.ts";
import { endChild } from "./children.ts";
import { type Bench, start } from "./measure.ts";
import { CONFIG_FILE, OBSERVED, type Peer, QUIET } from "./peers.ts";
import { threadSeconds } from "./process-stats.ts";

/** From the signal until the configuration is in effect and the work of reading it is over, with much to spare. */
const RELOAD_MS = 100;
const SLICE_MS = 250;
/** What a slice takes at the most, its reload included, on a machine that is busy otherwise. */
const LONGEST_SLICE_MS = 600;

/**
 * What observability costs, in one process under steady load: it is switched on and off by turns with a reload, a quarter
 * of a second each. Two processes one after the other differ by more than that when the machine is shared, and so do two
 * minutes of one process; neighbouring moments of one do not.
 * @returns CPU per request on, to that off, for each pair of neighbours.
 */
export async function switched(bench: Bench, peer: Peer): Promise<number[]> {
  const { options, support } = bench;
  const { child, folder, fire } = await start(bench, peer);
  const file = join(folder, CONFIG_FILE);
  const config = JSON.parse(await readFile(file, "utf8"));
  const answered = async () => Number((await ask(support.upstream + COUNT_PATH)).body);

  const cpuMicros = async (observe: unknown): Promise<number> => {
    await writeFile(file, JSON.stringify({ ...config, observe }));
    child.process.kill("SIGHUP");
    await sleep(RELOAD_MS);
    const before = { cpu: threadSeconds(child.pid), answered: await answered() };
    await sleep(SLICE_MS);
    return ((threadSeconds(child.pid) - before.cpu) / ((await answered()) - before.answered)) * 1e6;
  };

  await fire(options.warmUpSeconds);
  const load = fire(Math.ceil((options.switches * 2 * LONGEST_SLICE_MS) / 1000));
  const ratios: number[] = [];
  for (let pair = 0; pair < options.switches; pair++) {
    // Each is the first of its pair as often as the other.
    const onFirst = pair % 2 === 0;
    const first = await cpuMicros(onFirst ? OBSERVED : QUIET);
    const second = await cpuMicros(onFirst ? QUIET : OBSERVED);
    ratios.push(onFirst ? first / second : second / first);
  }
  await load;
  await endChild(child);
  return ratios;
}
