import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { endChild } from "./children.ts";
import { type Bench, start } from "./measure.ts";
import { CONFIG_FILE, OBSERVED, type Peer, QUIET } from "./peers.ts";
import { threadSeconds } from "./process-stats.ts";

/** From the signal until the configuration is in effect, with much to spare. */
const RELOAD_MS = 200;
const SLICE_SECONDS = 1;

/**
 * What observability costs, in one process: it is switched on and off by turns with a reload, a second each. Two processes
 * one after the other differ by more than that when the machine is shared; two neighbouring seconds of one do not.
 * @returns CPU per request on, to that off, for each pair of neighbours.
 */
export async function switched(bench: Bench, peer: Peer): Promise<number[]> {
  const { child, folder, fire } = await start(bench, peer);
  const file = join(folder, CONFIG_FILE);
  const config = JSON.parse(await readFile(file, "utf8"));

  const cpuMicros = async (observe: unknown): Promise<number> => {
    await writeFile(file, JSON.stringify({ ...config, observe }));
    child.process.kill("SIGHUP");
    await sleep(RELOAD_MS);
    const before = threadSeconds(child.pid);
    const { completed } = await fire(SLICE_SECONDS);
    return ((threadSeconds(child.pid) - before) / completed) * 1e6;
  };

  await fire(bench.options.warmUpSeconds);
  const ratios: number[] = [];
  for (let pair = 0; pair < bench.options.switches; pair++) {
    // Each is the first of its pair as often as the other.
    const onFirst = pair % 2 === 0;
    const first = await cpuMicros(onFirst ? OBSERVED : QUIET);
    const second = await cpuMicros(onFirst ? QUIET : OBSERVED);
    ratios.push(onFirst ? first / second : second / first);
  }
  await endChild(child);
  return ratios;
}
