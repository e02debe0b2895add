/**
 * One record, four renderings: for thousands of random requests, with an application, a store and clients that
 * misbehave, the recorder, the log, the traces and the metrics say the same.
 */
import { Agent, request } from "node:http";
import type { Socket } from "node:net";
import t from "tap";
import type { ExchangeRecord } from "../src/observe/record.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { cookiePair, until } from "./support/client.ts";
import { type Span, startReceiver } from "./support/otlp.ts";
import { freePort, type RunningGateway, startApp, startGateway, startHttp, startRedis } from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const REQUESTS = Number(process.env.AGREEMENT_REQUESTS ?? 4_000);
const AT_ONCE = 25;
/** Requests between two changes of what is broken. */
const ROUND = 500;

/** A small generator with a seed, so that a failure can be repeated (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** An application whose answers are commanded by the path. */
const application = (t: Parameters<typeof startHttp>[0]) =>
  startHttp(t, (req, res) => {
    const [, , what = ""] = (req.url ?? "").split(/[/?]/);
    req.resume();
    if (what === "login") res.setHeader("x-session-start", '{"user":{"id":"7"},"data":{"cart":[1]}}');
    if (what === "set") res.setHeader("x-session-set", `{"cart":[${Math.random()}],"other":1}`);
    if (what === "nonsense") res.setHeader("x-session-set", "{");
    if (what === "end") res.setHeader("x-session-end", "this");
    if (what === "reset") req.socket.destroy();
    else if (what === "cut") res.writeHead(200, { "content-length": "1000" }).write("x", () => req.socket.destroy());
    else if (what === "500" || what === "404") res.writeHead(Number(what)).end("no");
    else if (what === "slow") setTimeout(() => res.end("late"), 30);
    else res.end("x".repeat(1000));
  });

const PATHS = ["", "", "", "login", "set", "nonsense", "end", "reset", "cut", "500", "404", "slow", "%2e%2e/up"];
const METHODS = ["GET", "GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PROPFIND", "TRACE"];

t.test(`${REQUESTS} random requests with faults`, { timeout: 110_000 }, async (t) => {
  const seed = Number(process.env.AGREEMENT_SEED ?? Date.now() % 1_000_000);
  t.comment(`AGREEMENT_SEED=${seed}`);
  const random = randomFrom(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;

  const receiver = await startReceiver(t);
  const environment = { ...receiver.environment, OTEL_BSP_SCHEDULE_DELAY: "20" };
  Object.assign(process.env, environment);
  t.teardown(() => {
    for (const name of Object.keys(environment)) delete process.env[name];
  });
  const [app, redis] = await Promise.all([application(t), startRedis(t, { save: true })]);
  const upstream = `http://127.0.0.1:${app.port}`;
  const routes = [
    { match: { path: "/optional" }, upstream, session: "optional", write: ["user", "cart"] },
    { match: { path: "/required" }, upstream, session: "required", write: ["user", "cart"] },
    { match: { path: "/login" }, upstream, session: "required", onMissing: { redirect: "/optional/login" } },
    { match: { path: "/none" }, upstream, session: "none" },
    { match: { path: "/readonly" }, upstream, session: "optional" },
    { match: { path: "/refused" }, upstream: `http://127.0.0.1:${await freePort()}`, session: "optional" },
  ];
  const gateway = await startGateway(
    t,
    { routes, store: redis.url, observe: { traces: { ratio: 1 }, recorder: { exchanges: REQUESTS + 1000 } } },
    { environment },
  );

  const agent = new Agent({ keepAlive: true, maxSockets: AT_ONCE });
  t.teardown(() => agent.destroy());
  const cookies = [`session=${"a".repeat(43)}.${"b".repeat(43)}`, "session=x", "other=1"];
  const one = () =>
    new Promise<void>((resolve) => {
      const path = `/${pick(["optional", "optional", "required", "login", "none", "readonly", "refused", "nowhere"])}/${pick(PATHS)}?q=${random()}`;
      const headers: Record<string, string> = {};
      if (random() < 0.6) headers.cookie = pick(cookies);
      if (random() < 0.1) headers[pick(["X-User-Id", "X_User_Id", "X-Session-Start", "X-Forwarded-For"])] = "1";
      if (random() < 0.1) headers.accept = "text/html";
      const method = pick(METHODS);
      const req = request(gateway.url + path, { method, headers, agent }, (res) => {
        for (const line of res.headers["set-cookie"] ?? []) {
          const pair = cookiePair(line);
          if (pair.length > 20) cookies[3 + Math.floor(random() * 30)] = pair;
        }
        res.on("error", () => {}).on("close", resolve);
        if (random() < 0.02) res.destroy();
        else res.resume();
      });
      req.on("error", () => resolve()).on("close", resolve);
      if (random() < 0.02) setTimeout(() => req.destroy(), random() * 10);
      req.end(method === "POST" || method === "PUT" ? "x".repeat(Math.floor(random() * 5000)) : undefined);
    });
  // Holes are left while it fills.
  cookies.push(...Array.from({ length: 30 }, () => "other=2"));

  for (let sent = 0; sent < REQUESTS; ) {
    const round = Math.min(ROUND, REQUESTS - sent);
    let left = round;
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        while (left-- > 0) await one();
      }),
    );
    sent += round;
    // Every third round is without a store. The exporter is given time: a dropped span would be nobody's disagreement.
    if ((sent / ROUND) % 3 === 2) await redis.kill();
    else if ((sent / ROUND) % 3 === 0) await redis.start();
    await caughtUp(gateway, receiver.spans);
  }
  await redis.start();
  const records = gateway.gateway.observer.recorder.list("recent", REQUESTS + 1000);
  const metrics = await gateway.metrics();
  await gateway.gateway.close();
  const lines = gateway.logs.filter(({ event }) => event === "http.access");

  t.ok(records.length > REQUESTS * 0.97, `${records.length} records`);
  t.match(metrics, /^coatcheck_spans_dropped_total 0$/m);
  const outcomes = new Set(records.map(({ session }) => session.outcome));
  for (const outcome of ["hit", "absent", "malformed", "unknown", "unavailable", "not-asked"])
    t.ok(outcomes.has(outcome as ExchangeRecord["session"]["outcome"]), `${outcome} came up`);
  const errors = new Set(records.map(({ error }) => error?.type));
  for (const error of ["connection_refused", "connection_terminated", "http_response_incomplete", "http_request_error"])
    t.ok(errors.has(error as never), `${error} came up`);
  t.ok(records.some(({ response }) => response.clientGone));

  const differences = [
    ...compareLines(records, lines),
    ...compareSpans(records, receiver.spans),
    ...compareMetrics(records, metrics),
  ];
  t.same(differences.slice(0, 10), [], `${differences.length} differences`);
});

async function caughtUp(gateway: RunningGateway, spans: readonly Span[]): Promise<void> {
  await until(async () => {
    const records = await gateway.metrics();
    const ended = total(records, "http_server_request_duration_seconds_count");
    return spans.filter(({ kind }) => kind === 2).length >= ended;
  });
}

/** The sum over all label sets. */
function total(metrics: string, name: string): number {
  return [...metrics.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+-]+)`, "gm"))].reduce(
    (sum, [, value]) => sum + Number(value),
    0,
  );
}

type Difference = readonly [where: string, traceId: string, what: string, expected: unknown, found: unknown];

function differ(where: string, traceId: string, pairs: Record<string, readonly [unknown, unknown]>): Difference[] {
  return Object.entries(pairs)
    .filter(([, [expected, found]]) => expected !== found)
    .map(([what, [expected, found]]) => [where, traceId, what, expected, found] as const);
}

function compareLines(records: readonly ExchangeRecord[], lines: readonly Record<string, unknown>[]): Difference[] {
  const byTrace = new Map(lines.map((line) => [line.trace_id, line]));
  const count = lines.length === records.length ? [] : [["log", "", "lines", records.length, lines.length] as const];
  return [
    ...count,
    ...records.flatMap((record) => {
      const line = byTrace.get(record.traceId) ?? {};
      return differ("log", record.traceId, {
        status: [record.response.status, line["http.response.status_code"]],
        duration: [(record.timings.ended ?? 0) / 1000, line.duration_s],
        route: [record.route, line["http.route"]],
        outcome: [record.session.outcome, line["coatcheck.session.outcome"]],
        source: [record.session.source, line["coatcheck.session.source"]],
        decision: [record.session.decision, line["coatcheck.policy.decision"]],
        handle: [record.session.handle, line.handle],
        error: [record.error?.type, line["error.type"]],
        bytes: [record.response.bytes, line.bytes_out],
        path: [record.request.path, line["url.path"]],
        span: [record.spanId, line.span_id],
      });
    }),
  ];
}

function compareSpans(records: readonly ExchangeRecord[], spans: readonly Span[]): Difference[] {
  const byTrace = new Map<string, Span[]>();
  for (const span of spans) byTrace.set(span.traceId, [...(byTrace.get(span.traceId) ?? []), span]);
  return records.flatMap((record) => {
    const all = byTrace.get(record.traceId) ?? [];
    const server = all.filter(({ kind }) => kind === 2);
    const upstream = all
      .filter(({ kind, attributes }) => kind === 3 && "http.request.method" in attributes)
      .sort((a, b) => Number(a.startNs - b.startNs));
    const attributes = server[0]?.attributes ?? {};
    const tookMs = Number((server[0]?.endNs ?? 0n) - (server[0]?.startNs ?? 0n)) / 1e6;
    return differ("span", record.traceId, {
      servers: [1, server.length],
      upstreams: [record.upstream === undefined ? 0 : 1 + record.upstream.retries, upstream.length],
      span: [record.spanId, server[0]?.spanId],
      status: [record.response.status, attributes["http.response.status_code"]],
      route: [record.route, attributes["http.route"]],
      outcome: [record.session.outcome, attributes["coatcheck.session.outcome"]],
      decision: [record.session.decision, attributes["coatcheck.policy.decision"]],
      // OpenTelemetry wants the status where there is nothing better: the application's own failure.
      error: [record.error?.type ?? serverError(record.response.status), attributes["error.type"]],
      upstreamStatus: [record.upstream?.status, upstream.at(-1)?.attributes["http.response.status_code"]],
      // Nanoseconds in a double since 1970 are a thousandth of a millisecond apart.
      duration: [true, Math.abs(tookMs - (record.timings.ended ?? 0)) < 0.002],
    });
  });
}

function serverError(status: number): string | undefined {
  return status >= 500 ? String(status) : undefined;
}

function compareMetrics(records: readonly ExchangeRecord[], metrics: string): Difference[] {
  const found = new Map<string, number>();
  for (const [, name = "", labels = "", value] of metrics.matchAll(/^(\w+)\{([^}]*)\} (\S+)/gm)) {
    const sorted = labels.split(",").sort().join(",");
    found.set(`${name}{${sorted}}`, Number(value));
  }
  const expected = new Map<string, number>();
  const add = (name: string, labels: Record<string, string | number | undefined>, value = 1) => {
    const list = Object.entries(labels).filter(([, text]) => text !== undefined);
    const key = `${name}{${list
      .map(([label, text]) => `${label}="${text}"`)
      .sort()
      .join(",")}}`;
    expected.set(key, (expected.get(key) ?? 0) + value);
  };
  let seconds = 0;
  for (const {
    request: { method },
    route,
    response,
    error,
    session,
    headers,
    upstream,
    writeBack,
    timings,
  } of records) {
    const http_request_method = KNOWN_METHODS.has(method) ? method : "_OTHER";
    const error_type = error?.type;
    seconds += (timings.ended ?? 0) / 1000;
    add("http_server_request_duration_seconds_count", {
      http_request_method,
      http_response_status_code: response.status,
      http_route: route ?? "none",
      url_scheme: "http",
      error_type,
    });
    if (upstream !== undefined) {
      const [server_address, server_port] = upstream.address.split(":");
      const labels = { http_request_method, server_address, server_port, error_type: upstream.error };
      add("http_client_request_duration_seconds_count", { ...labels, http_response_status_code: upstream.status });
      for (const { address, error, status, retry } of upstream.attempts ?? []) {
        const [server_address, server_port] = address.split(":");
        const attempted = { http_request_method, server_address, server_port, error_type: error };
        add("http_client_request_duration_seconds_count", { ...attempted, http_response_status_code: status });
        add("coatcheck_upstream_retries_total", { server_address, server_port, reason: retry });
      }
    }
    if (session.outcome !== "not-asked")
      add("coatcheck_session_resolutions_total", { outcome: session.outcome, source: session.source ?? "none" });
    for (const [stripClass, count] of Object.entries(headers.stripped))
      add("coatcheck_headers_stripped_total", { class: stripClass }, count);
    for (const { command, result } of writeBack ?? []) add("coatcheck_write_back_total", { command, result });
    if (session.cookie === "valid")
      add("coatcheck_cookie_verifications_total", { secret: session.cookieSecret === 0 ? "first" : "older" });
    if (session.cookie === "bad-signature") add("coatcheck_cookie_verifications_total", { secret: "none" });
  }
  const counted =
    /^(http_(server|client)_request_duration_seconds_count|coatcheck_(session_resolutions|headers_stripped|write_back|cookie_verifications|upstream_retries)_total)\{/;
  const names = new Set([...expected.keys(), ...[...found.keys()].filter((key) => counted.test(key))]);
  const sum = total(metrics, "http_server_request_duration_seconds_sum");
  return [
    ...[...names]
      .filter((name) => (expected.get(name) ?? 0) !== (found.get(name) ?? 0)) // a counter may begin at 0
      .map((name) => ["metric", "", name, expected.get(name), found.get(name)] as const),
    ...differ("metric", "", { seconds: [true, Math.abs(sum - seconds) < 1e-6 * records.length] }),
  ];
}

const KNOWN_METHODS = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"]);

t.test("what is saved after the client has gone is in the record, and in all of its renderings", async (t) => {
  const saved = Promise.withResolvers<void>();
  let creating = false;
  const store = new SteppedStore(new MemoryStore(), async (name) => {
    if (name !== "create") return;
    creating = true;
    await saved.promise;
  });
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url }, { store });
  const closed = new Promise((resolve) =>
    app.server.on("connection", (socket: Socket) => socket.once("close", resolve)),
  );
  const req = request(`${gateway.url}/start`, { method: "POST", agent: false });
  req.on("error", () => {}).end('{"user":{"id":"1"}}');
  await until(() => creating);
  req.destroy();
  // The gateway has noticed when it lets go of the response that it held.
  await closed;
  saved.resolve();
  const [record] = await until(async () => {
    const records = await gateway.exchanges();
    return records.length > 0 ? records : undefined;
  });
  t.match(record, {
    response: { status: 499, clientGone: true },
    writeBack: [{ command: "start", result: "saved" }],
    session: { handle: /^.{12}$/ },
  });
  const metrics = await gateway.metrics();
  t.match(metrics, /^coatcheck_write_back_total\{command="start",result="saved"\} 1$/m);
  t.match(metrics, /^http_server_request_duration_seconds_count\{.*"499".*\} 1$/m);
  const line = gateway.logs.find(({ event }) => event === "http.access");
  t.match(line, { handle: record?.session.handle, "http.response.status_code": 499 });
  t.ok(Number(record?.timings.saved) > Number(record?.timings.ended), "it was late");
});
