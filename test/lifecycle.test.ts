/** Reloads, and restarts behind a load balancer, under load: no request is lost. `npm run test:lifecycle` takes longer over it. */
import t, { type Test } from "tap";
import { type Outcome, reloads, rollingRestarts } from "./lifecycle/scenarios.ts";
import { trafficTable } from "./support/traffic.ts";

function nothingWasLost(t: Test, { quick, slow }: Outcome): void {
  t.comment(trafficTable({ quick, slow }));
  for (const report of [quick, slow]) {
    t.ok(report.requests > 0);
    t.equal(report.served, report.requests);
  }
}

t.test("another configuration every second", async (t) => {
  const outcome = await reloads(t, { seconds: 5 });
  nothingWasLost(t, outcome);
  t.equal(outcome.times, 5);
  t.equal(outcome.status, 0);
});

t.test("a broken file every second: refused, and nobody notices", async (t) => {
  const outcome = await reloads(t, { seconds: 2, broken: true });
  nothingWasLost(t, outcome);
  t.equal(outcome.status, 0);
});

t.test("two instances behind HAProxy are restarted one after the other", async (t) => {
  const outcome = await rollingRestarts(t, { rounds: 1 });
  nothingWasLost(t, outcome);
  t.same(outcome.statuses, [0, 0]);
  t.same(outcome.cut, [0, 0]);
});
