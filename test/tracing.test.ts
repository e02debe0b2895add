/** Traces: which spans there are, what they hold and what they do not, which are exported, and how they leave. */
import { readFileSync } from "node:fs";
import t from "tap";
import { loadConfig } from "../src/config/load.ts";
import { ConfigError } from "../src/config/problems.ts";
import { Exchange } from "../src/core/exchange.ts";
import { newSpanId, newTraceId } from "../src/core/trace-context.ts";
import { OTLP_PROTOCOLS, type OtlpProtocol } from "../src/core/trace-export.ts";
import { ATTRIBUTES } from "../src/observe/names.ts";
import { Tracing } from "../src/observe/tracing.ts";
import { SCRIPTS } from "../src/store/redis-scripts.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { command } from "./support/command.ts";
import { exportTo, type Receiver, type Span, startReceiver } from "./support/otlp.ts";
import {
  feedState,
  freePort,
  type GatewaySettings,
  type RedisServer,
  type RunningGateway,
  startApp,
  startGateway,
  startHttp,
  startRedis,
  startUpstream,
  type Teardown,
} from "./support/servers.ts";

const [INTERNAL, SERVER, CLIENT] = [1, 2, 3];
const UNSET = 0;
const ERROR = 2;
const EVERYTHING = { traces: { ratio: 1 } };

interface Traced {
  readonly gateway: RunningGateway;
  readonly receiver: Receiver;
  /** The spans of one request, once they have arrived. */
  traceOf(path: string): Promise<Trace>;
}

interface Trace {
  readonly server: Span;
  readonly resolve: Span | undefined;
  readonly commands: readonly Span[];
  readonly upstream: Span | undefined;
}

/** A gateway that exports everything, soon. */
async function startTraced(t: Teardown, settings: GatewaySettings, protocol?: OtlpProtocol): Promise<Traced> {
  const receiver = await startReceiver(t, protocol);
  const environment = { ...receiver.environment, OTEL_BSP_SCHEDULE_DELAY: "10" };
  exportTo(environment, t);
  const gateway = await startGateway(t, { observe: EVERYTHING, ...settings }, { environment });
  const traceOf = async (path: string): Promise<Trace> => {
    const server = await until(() =>
      receiver.spans.find(({ kind, attributes }) => kind === SERVER && attributes["url.path"] === path),
    );
    const below = receiver.spans.filter(({ traceId, kind }) => traceId === server.traceId && kind !== SERVER);
    return {
      server,
      resolve: below.find(({ kind }) => kind === INTERNAL),
      commands: below.filter(({ attributes }) => "db.system.name" in attributes),
      upstream: below.find(({ attributes }) => "http.request.method" in attributes),
    };
  };
  return { gateway, receiver, traceOf };
}

async function login(gateway: RunningGateway, id = "1"): Promise<string> {
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id } }) });
  return cookiePair(reply.setCookie[0]);
}

const tracked = (gateway: RunningGateway) => until(async () => (await feedState(gateway)) === "tracking");

for (const protocol of OTLP_PROTOCOLS) {
  t.test(`${protocol}: server, look-up, Redis and upstream spans with their parents`, async (t) => {
    exportTo(
      {
        OTEL_EXPORTER_OTLP_HEADERS: "x-tenant=shop",
        OTEL_SERVICE_NAME: "front-door",
        OTEL_RESOURCE_ATTRIBUTES: "deployment.environment.name=test,service.name=overruled",
      },
      t,
    );
    const [app, redis] = [await startApp(t), await startRedis(t)];
    const { gateway, receiver, traceOf } = await startTraced(t, { upstream: app.url, store: redis.url }, protocol);
    const cookie = await login(gateway);
    await ask(`${gateway.url}/cart?token=secret-query`, { headers: { cookie } });
    const { server, resolve, commands, upstream } = await traceOf("/cart");
    t.match(server, { name: "GET */", kind: SERVER, parentSpanId: undefined, status: UNSET });
    t.match(server.resource, {
      "service.name": "front-door",
      "service.version": /^\d/,
      "deployment.environment.name": "test",
      "telemetry.sdk.name": "opentelemetry",
    });
    t.match(resolve, { name: "session resolve", parentSpanId: server.spanId, status: UNSET });
    t.match(resolve?.attributes, { "coatcheck.session.outcome": "hit", "coatcheck.session.source": "store" });
    t.equal(commands.length, 1);
    t.match(commands[0], { name: "HMGET", kind: CLIENT, parentSpanId: resolve?.spanId, status: UNSET });
    t.same(commands[0]?.attributes, {
      "db.system.name": "redis",
      "db.operation.name": "HMGET",
      "db.namespace": "0",
      "server.address": "127.0.0.1",
      "server.port": redis.port,
    });
    t.match(upstream, { name: "GET", kind: CLIENT, parentSpanId: server.spanId, status: UNSET });
    t.equal(upstream?.attributes["url.full"], `${app.url}/cart`);
    for (const [inner, outer] of [
      [commands[0], resolve],
      [resolve, server],
      [upstream, server],
    ]) {
      t.ok(
        inner && outer && inner.startNs >= outer.startNs && inner.endNs <= outer.endNs && inner.endNs > inner.startNs,
      );
    }
    t.equal(receiver.requests[0]?.["x-tenant"], "shop");
    t.notMatch(receiver.bodies.join(""), "secret-query");
    t.match(await gateway.metrics(), /^coatcheck_spans_exported_total [1-9]/m);
  });
}

t.test("an answer from the near cache has no Redis span, and its look-up says so", async (t) => {
  const [app, redis] = [await startApp(t), await startRedis(t)];
  const { gateway, traceOf } = await startTraced(t, { upstream: app.url, store: redis.url });
  await tracked(gateway);
  const cookie = await login(gateway);
  for (const path of ["/first", "/second"]) await ask(gateway.url + path, { headers: { cookie } });
  const [first, second] = [await traceOf("/first"), await traceOf("/second")];
  t.equal(first.resolve?.attributes["coatcheck.session.source"], "store");
  t.equal(first.commands.length, 1);
  t.equal(second.resolve?.attributes["coatcheck.session.source"], "cache");
  t.same(second.commands, []);
});

t.test("look-ups that travel together are told apart; one that joins another's has no Redis span", async (t) => {
  const [app, redis] = [await startApp(t), await startRedis(t)];
  const { gateway, traceOf } = await startTraced(t, { upstream: app.url, store: redis.url });
  await tracked(gateway);
  const cookies = await Promise.all(Array.from({ length: 20 }, (_, i) => login(gateway, String(i))));
  // Redis holds its answers back, so that all of them wait at once.
  await redis.call("CLIENT", "PAUSE", 200, "ALL");
  await Promise.all(
    cookies.flatMap((cookie, i) =>
      ["a", "b"].map((name) => ask(`${gateway.url}/${name}${i}`, { headers: { cookie } })),
    ),
  );
  let joined = 0;
  for (const i of cookies.keys()) {
    const both = [await traceOf(`/a${i}`), await traceOf(`/b${i}`)];
    for (const { resolve, commands } of both) {
      const source = resolve?.attributes["coatcheck.session.source"];
      if (source === "coalesced") joined++;
      t.equal(commands.length, source === "store" ? 1 : 0, `${source}: ${commands.length} commands`);
      for (const command of commands) t.equal(command.parentSpanId, resolve?.spanId);
    }
    t.notOk(both.every(({ resolve }) => resolve?.attributes["coatcheck.session.source"] === "cache"));
  }
  t.ok(joined > 0, `${joined} look-ups joined another one`);
});

t.test("a login shows the scripts that it took, by name, below the server span; so does the recorder", async (t) => {
  const [app, redis] = [await startApp(t), await startRedis(t)];
  const { gateway, traceOf } = await startTraced(t, { upstream: app.url, store: redis.url });
  await login(gateway);
  const { server, commands } = await traceOf("/start");
  t.same(
    commands.map(({ name, parentSpanId, attributes }) => [name, parentSpanId, attributes["db.stored_procedure.name"]]),
    [
      ["EVALSHA", server.spanId, "indexSession"],
      ["EVALSHA", server.spanId, "createSession"],
    ],
  );
  const [record] = await gateway.exchanges();
  t.match(record?.storeCommands, [
    { name: "EVALSHA", script: "indexSession", server: `127.0.0.1:${redis.port}` },
    { name: "EVALSHA", script: "createSession" },
  ]);
  const [{ started = -1, ended = -1 } = {}] = record?.storeCommands ?? [];
  t.ok(started > 0 && ended > started && ended < (record?.timings.ended ?? 0));
  const told = JSON.parse((await ask(`${gateway.adminUrl}/debug/exchanges`)).body).exchanges[0].steps;
  t.match(
    told.filter(({ step }: { step: string }) => step === "store-command"),
    [{ detail: `EVALSHA indexSession to 127.0.0.1:${redis.port}`, tookMs: Number }, { atMs: Number }],
  );
  t.match(
    await gateway.metrics(),
    /^db_client_operation_duration_seconds_count\{db_system_name="redis",db_operation_name="EVALSHA"\} [2-9]/m,
  );
});

t.test("an exchange keeps so many commands, and counts the others", async (t) => {
  const [app, redis] = [await startApp(t), await startRedis(t)];
  const { gateway, traceOf } = await startTraced(t, { upstream: app.url, store: redis.url });
  let cookie = "";
  for (let i = 0; i < 12; i++) cookie = await login(gateway);
  await ask(`${gateway.url}/end`, { method: "POST", body: "all", headers: { cookie } });
  t.equal((await traceOf("/end")).commands.length, 32);
  const [record] = await gateway.exchanges();
  t.equal(record?.storeCommands?.length, 32);
  t.ok((record?.storeCommandsDropped ?? 0) > 0);
});

t.test("a store in this process, and a route without sessions, have no such spans", async (t) => {
  const app = await startApp(t);
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/none" }, upstream: app.url, session: "none" },
  ];
  const { gateway, traceOf } = await startTraced(t, { routes });
  const cookie = await login(gateway);
  for (const path of ["/some", "/none"]) await ask(gateway.url + path, { headers: { cookie } });
  const [some, none] = [await traceOf("/some"), await traceOf("/none")];
  t.same([some.commands, none.commands], [[], []]);
  t.equal(some.resolve?.attributes["coatcheck.session.source"], "store");
  t.equal(none.resolve, undefined);
});

/** Key and server of a gateway with one session in it. */
async function oneSession(
  t: Teardown,
  observe: object = EVERYTHING,
): Promise<Traced & { redis: RedisServer; cookie: string }> {
  const [app, redis] = [await startApp(t), await startRedis(t)];
  const store = `${redis.url}?commandTimeout=100ms&totalTimeout=150ms`;
  const traced = await startTraced(t, { upstream: app.url, store, cache: { maxBytes: "0B" }, observe });
  return { ...traced, redis, cookie: await login(traced.gateway) };
}

t.test("what the server says in place of an answer is in the span; the key is not", async (t) => {
  const { gateway, receiver, traceOf, redis, cookie } = await oneSession(t);
  const keys = (await redis.call("KEYS", "coatcheck:session:*")) as string[];
  const [key = ""] = keys;
  await redis.call("DEL", key);
  await redis.call("SET", key, "no hash");
  await ask(`${gateway.url}/wrong`, { headers: { cookie } });
  const { resolve, commands } = await traceOf("/wrong");
  t.match(resolve, { status: UNSET, attributes: { "coatcheck.session.outcome": "malformed" } });
  t.match(commands, [{ status: ERROR, attributes: { "db.response.status_code": "WRONGTYPE", "error.type": "other" } }]);
  const token = cookie.slice("session=".length).split(".")[0] ?? "";
  for (const secret of [key.slice("coatcheck:session:".length), token])
    t.ok(secret.length > 40 && !receiver.bodies.join("").includes(secret));
});

t.test("a Redis that hangs: each attempt is a span, and the look-up failed", async (t) => {
  const { gateway, traceOf, redis, cookie } = await oneSession(t);
  await redis.call("CLIENT", "PAUSE", 400, "ALL");
  t.equal((await ask(`${gateway.url}/hangs`, { headers: { cookie } })).status, 503);
  const { server, resolve, commands, upstream } = await traceOf("/hangs");
  t.match(server, { status: ERROR, attributes: { "error.type": "session_store_unavailable" } });
  t.match(resolve, { status: ERROR, attributes: { "error.type": "session_store_unavailable" } });
  t.ok(commands.length > 0);
  for (const { status, attributes, parentSpanId } of commands) {
    t.equal(status, ERROR);
    t.equal(attributes["error.type"], "timeout");
    t.equal(attributes["db.response.status_code"], undefined);
    t.equal(parentSpanId, resolve?.spanId);
  }
  t.equal(upstream, undefined);
  t.match(
    await gateway.metrics(),
    /^db_client_operation_duration_seconds_count\{db_system_name="redis",db_operation_name="HMGET",error_type="timeout"\} [1-9]/m,
  );
});

t.test("a good answer of the application is no failure of its span, though it could not be saved", async (t) => {
  const { gateway, traceOf, redis, cookie } = await oneSession(t);
  // Reading goes on, writing does not.
  await redis.call("CONFIG", "SET", "min-replicas-to-write", "3");
  const reply = await ask(`${gateway.url}/set`, { method: "POST", body: '{"cart":[1]}', headers: { cookie } });
  t.equal(reply.status, 503);
  const { server, commands, upstream } = await traceOf("/set");
  t.match(server, { status: ERROR, attributes: { "error.type": "session_store_unavailable" } });
  t.match(upstream, { status: UNSET, attributes: { "http.response.status_code": 200 } });
  t.equal(upstream?.attributes["error.type"], undefined);
  const refused = commands.find(({ status }) => status === ERROR);
  t.match(refused, { name: "EVALSHA", attributes: { "db.response.status_code": "NOREPLICAS", "error.type": "other" } });
  t.match(
    await gateway.metrics(),
    /^http_client_request_duration_seconds_count\{http_request_method="POST",server_address="127\.0\.0\.1",server_port="\d+",http_response_status_code="200"\} 2$/m,
  );
});

t.test(
  "statuses of the application: 4xx fails the client span, 5xx both, each with the status for a reason",
  async (t) => {
    const upstream = await startUpstream(t, ({ url }, _req, res) => res.writeHead(Number(url.slice(1))).end());
    const { gateway, traceOf } = await startTraced(t, { upstream: upstream.url });
    const expected: [path: string, server: number, client: number][] = [
      ["/204", UNSET, UNSET],
      ["/404", UNSET, ERROR],
      ["/503", ERROR, ERROR],
    ];
    for (const [path, server, client] of expected) {
      await ask(gateway.url + path);
      const trace = await traceOf(path);
      t.equal(trace.server.status, server, path);
      t.equal(trace.upstream?.status, client, path);
      t.equal(trace.server.attributes["error.type"], server === ERROR ? path.slice(1) : undefined);
      t.equal(trace.upstream?.attributes["error.type"], client === ERROR ? path.slice(1) : undefined);
    }
  },
);

t.test("a trace of a trusted peer is continued, nobody else's", async (t) => {
  const upstream = await startUpstream(t);
  const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
  for (const trustedProxies of [["127.0.0.1"], []]) {
    const listen = { host: "127.0.0.1", port: 0, trustedProxies };
    const { gateway, traceOf } = await startTraced(t, { upstream: upstream.url, listen });
    await ask(gateway.url, { headers: { traceparent } });
    const { server } = await traceOf("/");
    t.equal(server.traceId === "a".repeat(32), trustedProxies.length > 0);
    t.equal(server.parentSpanId, trustedProxies.length > 0 ? "b".repeat(16) : undefined);
  }
});

t.test("every attribute of a span is in the list of names", async (t) => {
  const { gateway, receiver, traceOf, redis, cookie } = await oneSession(t);
  await ask(`${gateway.url}/set`, { method: "POST", body: '{"cart":[1]}', headers: { cookie } });
  await redis.kill();
  await ask(`${gateway.url}/down`, { headers: { cookie } });
  await traceOf("/down");
  const known = new Set<string>(Object.values(ATTRIBUTES));
  for (const { attributes } of receiver.spans)
    t.same(
      Object.keys(attributes).filter((name) => !known.has(name)),
      [],
    );
});

t.test("docs/tracing.md has every attribute and every script", async (t) => {
  const text = readFileSync(new URL("../docs/tracing.md", import.meta.url), "utf8");
  for (const name of [...Object.values(ATTRIBUTES), ...Object.keys(SCRIPTS)]) t.ok(text.includes(`\`${name}\``), name);
});

t.test("the decision: under watch, failed, slow, by ratio", async (t) => {
  const receiver = await startReceiver(t);
  exportTo(receiver.environment, t);
  const tracing = await Tracing.open({
    rules: { ratio: 0, slowerThanMs: 100, errors: true },
    traceExport: {
      protocol: "http/json",
      scheduleDelayMs: 1000,
      exportTimeoutMs: 1000,
      maxQueuedSpans: 100,
      maxBatchSpans: 100,
    },
    version: "0",
    onExported: () => {},
    onDropped: () => {},
    onCollector: () => {},
  });
  const closed = (path: string, change: Partial<Exchange>) => {
    const init = { method: "GET", methodLabel: "GET" as const, httpVersion: "1.1" };
    const exchange = new Exchange({ ...init, traceId: newTraceId(), spanId: newSpanId() });
    Object.assign(exchange, { path, status: 200, endedMs: 1, ...change });
    tracing.exchange(exchange);
  };
  const all = () => {
    closed("/ordinary", {});
    closed("/watched", { watched: true });
    closed("/failed", { status: 502 });
    closed("/refused", { status: 409, error: "session_write_conflict" });
    closed("/slow", { endedMs: 101 });
    closed("/sampled", { sampled: true });
  };
  all();
  tracing.rules = { ratio: 0, slowerThanMs: 1000, errors: false };
  all();
  await tracing.close();
  t.same(
    receiver.spans.map(({ attributes }) => attributes["url.path"]),
    ["/watched", "/failed", "/refused", "/slow", "/sampled", "/watched", "/sampled"],
  );
});

t.test(
  "a collector that refuses, or is away, is told of once; spans are counted, requests are not affected",
  async (t) => {
    const upstream = await startUpstream(t);
    let status = 401;
    const { port } = await startHttp(t, (req, res) => {
      req.resume();
      res.writeHead(status, { "content-type": "application/json" }).end("{}");
    });
    const environment = {
      OTEL_TRACES_EXPORTER: "otlp",
      OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `http://127.0.0.1:${port}/v1/traces`,
      OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http/protobuf",
      OTEL_BSP_SCHEDULE_DELAY: "10",
    };
    exportTo(environment, t);
    const gateway = await startGateway(t, { upstream: upstream.url, observe: EVERYTHING }, { environment });
    const counted = async (name: string) =>
      Number(new RegExp(`^coatcheck_spans_${name}_total (\\d+)$`, "m").exec(await gateway.metrics())?.[1]);
    for (const expected of [3, 6]) {
      t.equal((await ask(gateway.url)).status, 200);
      await until(async () => (await counted("dropped")) === expected);
    }
    t.equal(await counted("exported"), 0);
    status = 200;
    await ask(gateway.url);
    await until(async () => (await counted("exported")) === 3);
    const events = gateway.logs.filter(({ event }) => String(event).startsWith("traces."));
    t.match(events, [
      { event: "traces.down", level: "warn", failure: "401" },
      { event: "traces.up", level: "info" },
    ]);
    t.equal(events.length, 2);
  },
);

t.test("a gRPC collector that is not there costs dropped spans", async (t) => {
  const upstream = await startUpstream(t);
  const environment = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: "grpc",
    OTEL_EXPORTER_OTLP_TIMEOUT: "200",
    OTEL_BSP_SCHEDULE_DELAY: "10",
  };
  exportTo(environment, t);
  const gateway = await startGateway(t, { upstream: upstream.url, observe: EVERYTHING }, { environment });
  for (let i = 0; i < 20; i++) t.equal((await ask(gateway.url)).status, 200);
  await until(async () => /^coatcheck_spans_dropped_total [1-9]/m.test(await gateway.metrics()));
});

t.test("the OTEL_* variables decide whether and how; what cannot be obeyed is a problem at the start", async (t) => {
  const raw = { routes: [{ upstream: "http://127.0.0.1:1" }] };
  const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318" };
  const exported = (environment: Record<string, string>) => loadConfig(raw, environment).config.observe.traceExport;
  t.equal(exported({}), undefined);
  t.equal(exported({ OTEL_EXPORTER_OTLP_ENDPOINT: "" }), undefined);
  t.equal(exported({ ...endpoint, OTEL_SDK_DISABLED: "TRUE" }), undefined);
  t.equal(exported({ ...endpoint, OTEL_TRACES_EXPORTER: "none" }), undefined);
  t.match(exported({ OTEL_TRACES_EXPORTER: "otlp" }), { protocol: "http/protobuf" });
  t.match(exported(endpoint), { protocol: "http/protobuf", scheduleDelayMs: 5000, maxQueuedSpans: 4096 });
  t.match(exported({ ...endpoint, OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" }), { protocol: "grpc" });
  t.match(
    exported({ ...endpoint, OTEL_EXPORTER_OTLP_PROTOCOL: "grpc", OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http/json" }),
    { protocol: "http/json" },
  );
  t.match(exported({ OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4317", OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" }), {
    protocol: "grpc",
  });
  t.match(exported({ ...endpoint, OTEL_BSP_MAX_QUEUE_SIZE: "100", OTEL_BSP_SCHEDULE_DELAY: "20" }), {
    scheduleDelayMs: 20,
    maxQueuedSpans: 100,
    maxBatchSpans: 100,
  });
  const problems: [environment: Record<string, string>, problem: RegExp][] = [
    [{ ...endpoint, OTEL_EXPORTER_OTLP_TIMEOUT: "soon" }, /^OTEL_EXPORTER_OTLP_TIMEOUT: must be a number of milli/],
    [{ ...endpoint, OTEL_EXPORTER_OTLP_COMPRESSION: "zip" }, /^OTEL_EXPORTER_OTLP_COMPRESSION: must be gzip or none$/],
    [{ ...endpoint, OTEL_EXPORTER_OTLP_HEADERS: "hunter2" }, /^OTEL_EXPORTER_OTLP_HEADERS: must be name=value, /],
    [
      { ...endpoint, OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: "/none.pem" },
      /^OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: the file is not there$/,
    ],
    [{ OTEL_TRACES_EXPORTER: "zipkin" }, /^OTEL_TRACES_EXPORTER: "zipkin" is not supported; write otlp or none$/],
    [{ OTEL_TRACES_EXPORTER: "otlp,console" }, /^OTEL_TRACES_EXPORTER: "otlp,console" is not supported/],
    [
      { ...endpoint, OTEL_EXPORTER_OTLP_PROTOCOL: "thrift" },
      /^OTEL_EXPORTER_OTLP_PROTOCOL: "thrift" is not supported; write http\/protobuf, /,
    ],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4318" }, /^OTEL_EXPORTER_OTLP_ENDPOINT: .* is not a URL such as http/],
    [
      { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "ftp://u:hunter2@c" },
      /^OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "ftp:\/\/u:\*\*\*@c\/"/,
    ],
    [{ ...endpoint, OTEL_BSP_SCHEDULE_DELAY: "soon" }, /^OTEL_BSP_SCHEDULE_DELAY: must be a whole number/],
  ];
  for (const [environment, problem] of problems) {
    try {
      exported(environment);
      t.fail(JSON.stringify(environment));
    } catch (error) {
      t.ok(error instanceof ConfigError);
      t.match((error as ConfigError).problems, [problem]);
    }
  }
});

t.test("a collector that is silent does not hold the process when it ends", async (t) => {
  const asked = Promise.withResolvers<void>();
  const collector = await startHttp(t, () => asked.resolve());
  const upstream = await startUpstream(t);
  const [port, adminPort] = [await freePort(), await freePort()];
  const options = [
    "--upstream",
    upstream.url,
    "--store",
    "memory:",
    "--port",
    `${port}`,
    "--admin-port",
    `${adminPort}`,
  ];
  const running = command(t, options, {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.port}`,
    OTEL_EXPORTER_OTLP_TIMEOUT: "60000",
    OTEL_BSP_SCHEDULE_DELAY: "50",
  });
  await until(() => running.stdout().includes("gateway.started"));
  // What fails is exported whatever the ratio.
  await ask(`http://127.0.0.1:${port}/`, { method: "TRACE" });
  await asked.promise;
  const endedAt = performance.now();
  running.child.kill("SIGTERM");
  t.equal(await running.ended, 0);
  t.ok(performance.now() - endedAt < 8_000, "its spans got two seconds");
});
