/** All cases through all proxies. */
import type { Teardown } from "../support/resources.ts";
import type { Case } from "./case.ts";
import { type Lane, PROXIES, type ProxyName, startLanes } from "./proxies.ts";
import { type Outcome, runCase } from "./run-case.ts";

export type Outcomes = Readonly<Record<ProxyName, Outcome>>;

/** Cases that are under way at once, in each proxy. */
const LANES = 16;

export async function compare(
  t: Teardown,
  cases: readonly Case[],
  proxies: readonly ProxyName[] = PROXIES,
): Promise<Map<string, Outcomes>> {
  const columns = await Promise.all(
    proxies.map(async (proxy) => [proxy, await runAll(await startLanes(t, proxy, LANES), cases)] as const),
  );
  return new Map(
    cases.map(({ id }) => [
      id,
      Object.fromEntries(columns.map(([proxy, outcomes]) => [proxy, outcomes.get(id)])) as unknown as Outcomes,
    ]),
  );
}

async function runAll(lanes: readonly Lane[], cases: readonly Case[]): Promise<Map<string, Outcome>> {
  const outcomes = new Map<string, Outcome>();
  const waiting = cases.values();
  await Promise.all(
    lanes.map(async (lane) => {
      for (const item of waiting) outcomes.set(item.id, await runCase(lane, item));
    }),
  );
  return outcomes;
}
