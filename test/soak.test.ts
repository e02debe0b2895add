/** A short soak; `npm run soak` is the long form. */
import t from "tap";
import { problemsOf, report } from "./soak/report.ts";
import { soak } from "./soak/soak.ts";

t.test("hundreds of clients, and an application that dies and comes back", async (t) => {
  const result = await soak(t, { seconds: 20, connections: 200 });
  t.comment(report(result, 200));
  t.same(problemsOf(result), []);
  t.ok(result.outages > 0 && result.duringOutages > 0, "an outage is noticed by somebody");
  t.ok(result.mostConnections > 100, `${result.mostConnections} connections at once`);
  t.ok(result.sent > 500, `${result.sent} requests`);
});
