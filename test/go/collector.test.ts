/**
 * A real OpenTelemetry Collector understands what a gateway exports. It takes a minute to build, so this is not part of
 * `npm test`: `npm run test:go`.
 */
import t from "tap";
import { ask, cookiePair, until } from "../support/client.ts";
import { startCollector } from "../support/collector.ts";
import { exportTo, startReceiver } from "../support/otlp.ts";
import { startApp, startGateway, startRedis } from "../support/servers.ts";

t.setTimeout(600_000);

for (const protocol of ["http/protobuf", "http/json", "grpc"] as const) {
  t.test(`by ${protocol} it gets the spans of a request, each below the right one`, async (t) => {
    const behind = await startReceiver(t, "http/json");
    const collector = await startCollector(t, behind.environment.OTEL_EXPORTER_OTLP_ENDPOINT ?? "");
    const port = protocol === "grpc" ? collector.grpcPort : collector.httpPort;
    const environment = {
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: protocol,
      OTEL_EXPORTER_OTLP_COMPRESSION: "gzip",
      OTEL_SERVICE_NAME: "front-door",
      OTEL_BSP_SCHEDULE_DELAY: "10",
    };
    exportTo(environment, t);
    const [app, redis] = [await startApp(t), await startRedis(t)];
    const settings = { upstream: app.url, store: redis.url, observe: { traces: { ratio: 1 } } };
    const gateway = await startGateway(t, settings, { environment });
    const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
    await ask(`${gateway.url}/cart`, { headers: { cookie: cookiePair(login.setCookie[0]) } });

    const server = await until(() =>
      behind.spans.find(({ kind, attributes }) => kind === 2 && attributes["url.path"] === "/cart"),
    );
    const trace = await until(() => {
      const spans = behind.spans.filter(({ traceId }) => traceId === server.traceId);
      return spans.length === 4 ? spans : undefined;
    });
    const named = (name: string) => trace.find((span) => span.name === name);
    const [resolve, command, upstream] = [named("session resolve"), named("HMGET"), named("GET")];
    t.equal(server.name, "GET */");
    t.equal(server.parentSpanId, undefined);
    t.equal(server.resource["service.name"], "front-door");
    t.equal(resolve?.parentSpanId, server.spanId);
    t.equal(resolve?.attributes["coatcheck.session.source"], "store");
    t.equal(command?.parentSpanId, resolve?.spanId);
    t.equal(command?.attributes["db.system.name"], "redis");
    t.equal(command?.attributes["server.port"], redis.port);
    t.equal(upstream?.parentSpanId, server.spanId);
    t.match(app.received.at(-1)?.headers.traceparent, new RegExp(`^00-${server.traceId}-${upstream?.spanId}-01$`));
    t.match(await gateway.metrics(), /^coatcheck_spans_dropped_total 0$/m);
  });
}
