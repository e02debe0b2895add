/** However inventive an application is with its statuses, the number of series has a ceiling. */
import t from "tap";
import { MAX_SERIES } from "../src/observe/histogram.ts";
import { ask } from "./support/client.ts";
import { startGateway, startUpstream } from "./support/servers.ts";

t.test("beyond the limit, requests are counted in one series for all others, and none is lost", async (t) => {
  const upstream = await startUpstream(t, ({ url }, _req, res) => res.writeHead(Number(url.slice(3))).end());
  const routes = Array.from({ length: 6 }, (_, i) => ({
    match: { path: `/${i}` },
    upstream: upstream.url,
    session: "none",
  }));
  const gateway = await startGateway(t, { routes, observe: { log: { access: "none" } } });
  let sent = 0;
  for (let route = 0; route < 6; route++) {
    for (let status = 200; status < 600; status += 20) {
      const statuses = Array.from({ length: 20 }, (_, i) => status + i);
      await Promise.all(statuses.map((each) => ask(`${gateway.url}/${route}/${each}`)));
      sent += statuses.length;
    }
  }
  t.ok(sent > MAX_SERIES);
  const counts = [
    ...(await gateway.metrics()).matchAll(/^http_server_request_duration_seconds_count\{(.*)\} (\d+)$/gm),
  ].map(([, labels, count]) => ({ labels, count: Number(count) }));
  t.equal(counts.length, MAX_SERIES + 1);
  t.equal(
    counts.reduce((sum, { count }) => sum + count, 0),
    sent,
  );
  t.same(
    counts.filter(({ count }) => count > 1),
    [{ labels: 'otel_metric_overflow="true"', count: sent - MAX_SERIES }],
  );
});
