/** Workers that are killed, and targets that fail, under load. `npm run test:lifecycle` takes longer over it. */
import t from "tap";
import { dnsChanges, flappingTarget, slowTarget, workersKilled } from "./lifecycle/faults.ts";
import { SLOW } from "./lifecycle/scenarios.ts";
import { trafficTable } from "./support/traffic.ts";

t.test("a worker is killed under load: only what it was doing is lost", async (t) => {
  const { quick, slow, injected, connections, status } = await workersKilled(t, { kills: 1, everyMs: 700 });
  t.comment(trafficTable({ quick, slow }), { injected, connections });
  t.equal(quick.requests - quick.served, injected.quick);
  t.equal(slow.requests - slow.served, injected.slow);
  t.equal(quick.failed + slow.failed, injected.quick + injected.slow, "cut, and nothing else");
  t.ok(injected.slow > 0, "it had something to do");
  t.ok(quick.served > 0);
  t.equal(status, 0);
});

t.test("a target that comes and goes: no GET is lost, and no POST is sent twice", async (t) => {
  const { quick, slow, injected, posts, times, status } = await flappingTarget(t, { seconds: 2, everyMs: 300 });
  t.comment(trafficTable({ quick, slow }), { injected, posts, times });
  t.ok(times > 1);
  t.equal(quick.served, quick.requests);
  t.equal(slow.requests - slow.served, injected.slow);
  t.ok(slow.served > 0);
  t.equal(posts.arrived, posts.different);
  t.ok(injected.slow <= times * SLOW, "one on each connection, each time");
  t.equal(status, 0);
});

t.test("a target that becomes slow holds up only what it has, and gets less", async (t) => {
  const { slow, others, shareBefore, shareAfter, status } = await slowTarget(t, { seconds: 2 });
  t.comment({ slow, others, shareBefore, shareAfter });
  t.equal(slow.served, slow.requests);
  t.equal(others.served, others.requests);
  t.ok(slow.longestMs >= 1_950);
  t.ok(others.longestMs < 1_950);
  t.ok(shareBefore > 0.2, `${shareBefore}`);
  t.ok(shareAfter < shareBefore / 2, `${shareAfter}`);
  t.equal(status, 0);
});

t.test("a name gets another address: nothing is lost, and nobody asks at the old one", async (t) => {
  const { quick, slow, tooLate, atNew, status } = await dnsChanges(t, { changes: 1, everyMs: 1_000 });
  t.comment(trafficTable({ quick, slow }), { tooLate, atNew });
  t.equal(quick.served, quick.requests);
  t.equal(slow.served, slow.requests);
  t.equal(tooLate, 0);
  t.ok(atNew > 0);
  t.equal(status, 0);
});
