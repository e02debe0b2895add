/** One record, four renderings: they agree, they name nothing that a client chose, and they show no secret. */

import { Redis } from "ioredis";
import t from "tap";
import { METRICS } from "../src/observe/names.ts";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import { startDns } from "./support/dns.ts";
import { exportTo, startReceiver } from "./support/otlp.ts";
import { freePort, SECRET, startApp, startGateway, startRedis, startUpstream } from "./support/servers.ts";

t.test("status and duration are equal in log, span, metric and recorder", async (t) => {
  const receiver = await startReceiver(t);
  exportTo(receiver.environment, t);
  const upstream = await startUpstream(t, (_received, _req, res) => res.writeHead(418).end("tea"));
  const gateway = await startGateway(
    t,
    { upstream: upstream.url, observe: { traces: { ratio: 1 } } },
    { environment: receiver.environment },
  );
  await ask(`${gateway.url}/pot?secret=query`);
  const [exchange] = await gateway.exchanges();
  const metrics = await gateway.metrics();
  await gateway.gateway.close();

  const line = gateway.logs.find((entry) => entry.event === "http.access");
  const server = receiver.spans.find((span) => span.kind === 2);
  const client = receiver.spans.find((span) => span.kind === 3);
  const resolve = receiver.spans.find((span) => span.kind === 1);
  const duration = Number(line?.duration_s);
  t.ok(duration > 0);
  t.ok(Math.abs(Number(exchange?.timings.ended) - duration * 1000) < 1e-6);
  t.ok(Math.abs(Number((server?.endNs ?? 0n) - (server?.startNs ?? 0n)) / 1e9 - duration) < 1e-6);
  const sum = /^http_server_request_duration_seconds_sum\{(.*)\} (\S+)$/m.exec(metrics);
  t.ok(Math.abs(Number(sum?.[2]) - duration) < 1e-9);
  t.match(sum?.[1], 'http_response_status_code="418"');
  for (const status of [
    line?.["http.response.status_code"],
    exchange?.response.status,
    server?.attributes["http.response.status_code"],
  ]) {
    t.equal(status, 418);
  }
  for (const traceId of [line?.trace_id, exchange?.traceId, server?.traceId, client?.traceId, resolve?.traceId]) {
    t.equal(traceId, exchange?.traceId);
  }
  t.match(metrics, `trace_id="${exchange?.traceId}"`, "the exemplar leads to the trace");
  t.equal(server?.name, "GET */");
  t.equal(server?.parentSpanId, undefined);
  t.equal(client?.parentSpanId, server?.spanId);
  t.equal(resolve?.parentSpanId, server?.spanId);
  t.match(
    upstream.received[0]?.headers.traceparent,
    `-${client?.traceId}-${client?.spanId}-01`.slice(1),
    "upstream's parent is the client span",
  );
  t.match(server?.resource, { "service.name": "coatcheck" });
  t.match(server?.attributes, { "http.route": "*/", "url.path": "/pot", "coatcheck.session.outcome": "absent" });
  t.equal(server?.status, 0, "4xx is no error of the server span");
  t.equal(client?.status, 2, "but one of the client span");
});

t.test("what is exported: by ratio, and always what failed or was slow", async (t) => {
  const receiver = await startReceiver(t);
  exportTo(receiver.environment, t);
  const upstream = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/slow") setTimeout(() => res.end(), 150);
    else res.writeHead(received.url === "/fails" ? 500 : 200).end();
  });
  const routes = [
    { match: { path: "/" }, upstream: upstream.url, session: "none" },
    { match: { path: "/refused" }, upstream: `http://127.0.0.1:${await freePort()}`, session: "none" },
  ];
  const gateway = await startGateway(
    t,
    { routes, observe: { traces: { ratio: 0, slowerThan: "100ms" } } },
    { environment: receiver.environment },
  );
  for (const path of ["/", "/fails", "/slow", "/refused", "/"]) await ask(gateway.url + path);
  await gateway.gateway.close();
  const exported = receiver.spans.filter((span) => span.kind === 2).map((span) => span.attributes["url.path"]);
  t.same(exported, ["/fails", "/slow", "/refused"]);
  const refused = receiver.spans.filter((span) => span.attributes["error.type"] === "connection_refused");
  t.same(
    refused.map(({ kind, status }) => [kind, status]),
    [
      [2, 2],
      [3, 2],
    ],
  );
});

t.test("a collector that is down costs nothing but dropped spans, counted", async (t) => {
  const environment = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
    OTEL_EXPORTER_OTLP_TIMEOUT: "200",
  };
  exportTo(environment, t);
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, observe: { traces: { ratio: 1 } } }, { environment });
  for (let i = 0; i < 200; i++) t.equal((await ask(gateway.url)).status, 200);
  await until(async () => /^coatcheck_spans_dropped_total [1-9]/m.test(await gateway.metrics()));
});

t.test("without OTEL variables nothing is exported", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, observe: { traces: { ratio: 1 } } });
  await ask(gateway.url);
  t.match(await gateway.metrics(), /^coatcheck_spans_dropped_total 0$/m);
});

/** Names of the metrics on a scrape, as `# TYPE` declares them, counters with their suffix. */
function scraped(metrics: string): string[] {
  return [...metrics.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, type]) =>
    type === "counter" ? `${name}_total` : (name ?? ""),
  );
}

/** A gateway to which everything has happened that a metric counts. */
async function eventful(t: Parameters<typeof startApp>[0]) {
  const app = await startApp(t);
  const redis = await startRedis(t);
  const dns = await startDns(t, ["127.0.0.1"]);
  const down = `http://127.0.0.1:${await freePort()}`;
  const named = app.url.replace("127.0.0.1", "app.test");
  const gateway = await startGateway(t, {
    listen: { port: 0, trustedProxies: ["192.0.2.1"] },
    forwardAuth: { path: "/verify" },
    store: redis.url,
    routes: [
      { upstream: app.url, session: "optional", write: ["user"] },
      { match: { path: "/checked" }, upstream: { targets: [app.url], health: { path: "/" } }, session: "none" },
      {
        match: { path: "/named" },
        upstream: { targets: [named], resolve: { servers: [dns.address] } },
        session: "none",
      },
      {
        match: { path: "/pool" },
        upstream: { targets: [app.url, down], ejection: { failures: 1, duration: "100ms" } },
        session: "none",
      },
    ],
  });
  await ask(`${gateway.url}/verify`);
  await until(async () => {
    await ask(`${gateway.url}/pool`);
    return /^coatcheck_upstream_returns_total\{.* [1-9]/m.test(await gateway.metrics());
  });
  await until(async () => /^coatcheck_upstream_health_checks_total\{.* [1-9]/m.test(await gateway.metrics()));
  await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  const reply = await ask(`${gateway.url}/start`, {
    method: "POST",
    body: '{"user":{"id":"1"},"data":{"forbidden":1}}',
    headers: { "x-user-id": "1" },
  });
  await ask(gateway.url, { headers: { cookie: cookiePair(reply.setCookie[0]) } });
  // The listeners of this gateway have no TLS; admin-tls.test.ts and tls.test.ts see real ones.
  gateway.gateway.observer.metrics.certificate("admin", Date.now());
  // It is one process; workers.test.ts sees several.
  gateway.gateway.observer.metrics.workerUse(1, 1, 1);
  gateway.gateway.observer.metrics.handshakeFailed("alert");
  await redis.kill();
  for (let i = 0; i < 5; i++) await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  return gateway;
}

t.test("every metric in names.ts has samples on a real scrape, and nothing else has our prefix", async (t) => {
  const gateway = await eventful(t);
  const metrics = await gateway.metrics();
  t.match(metrics, /# EOF\n$/, "OpenMetrics");
  const names = scraped(metrics);
  for (const name of Object.keys(METRICS)) {
    t.ok(names.includes(name), `${name} is declared`);
    t.match(metrics, new RegExp(`^${name}(_count)?(\\{|\\s)`, "m"), `${name} has a sample`);
  }
  for (const name of names) t.ok(name in METRICS || /^(process|nodejs)_/.test(name), `${name} is in names.ts`);
  for (const [name, { labels }] of Object.entries(METRICS)) {
    for (const [, list = ""] of metrics.matchAll(new RegExp(`^${name}(?:_count)?\\{(.*?)\\} `, "gm"))) {
      for (const [, label = ""] of list.matchAll(/([a-z_]+)="/g))
        t.ok((labels as readonly string[]).includes(label), `${name}{${label}}`);
    }
  }
});

t.test("1,000 random methods, hosts and paths add no series", async (t) => {
  const gateway = await eventful(t);
  const random = (length: number) =>
    Array.from({ length }, () => "abcdefghijklmnopqrstuvwxyz"[Math.floor(Math.random() * 26)]).join("");
  const methods = ["GET", "PROPFIND", "LOCK", "M-SEARCH", "PURGE", "SUBSCRIBE", "MKCOL", "DELETE"];
  const flood = async (count: number) => {
    for (let i = 0; i < count; i += 20) {
      await Promise.all(
        Array.from({ length: 20 }, (_, j) =>
          raw(
            gateway.port,
            `${methods[(i + j) % methods.length]} /${random(8)} HTTP/1.1\r\nHost: ${random(8)}.example\r\nUser-Agent: ${random(8)}\r\nX_${random(4)}: 1\r\nConnection: close\r\n\r\n`,
          ),
        ),
      );
    }
    await Promise.all(
      methods.map((_, i) =>
        raw(gateway.port, `${random(6).toUpperCase()}${i} / HTTP/1.1\r\nHost: ${random(8)}\r\n\r\n`),
      ),
    );
  };
  const series = (metrics: string) => metrics.split("\n").filter((line) => /^(coatcheck|http)_/.test(line)).length;
  await flood(40);
  const before = series(await gateway.metrics());
  await flood(1000);
  t.equal(series(await gateway.metrics()), before);
});

t.test("the token and the secrets appear nowhere: logs, spans, metrics, recorder, Redis", async (t) => {
  const receiver = await startReceiver(t);
  exportTo(receiver.environment, t);
  const redis = await startRedis(t);
  const app = await startApp(t);
  const adminToken = "an-admin-token-that-has-more-than-32-characters";
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user", "cart"] },
    { match: { path: "/required" }, upstream: app.url, session: "required" },
    { match: { path: "/refused" }, upstream: `http://127.0.0.1:${await freePort()}`, session: "optional" },
  ];
  const gateway = await startGateway(
    t,
    {
      routes,
      store: redis.url,
      admin: { port: 0, token: adminToken },
      observe: { log: { level: "trace" }, traces: { ratio: 1 } },
    },
    { environment: receiver.environment },
  );
  const planted = [
    "hunter2-query",
    "hunter2-cookie",
    "hunter2-authorization",
    "hunter2-body",
    "hunter2-header",
    "hunter2-data",
  ];
  const secrets = [SECRET, adminToken, ...planted];
  const remember = (setCookie: readonly string[]): string => {
    const pair = cookiePair(setCookie[0]);
    const [token = "", signature = ""] = pair.slice("session=".length).split(".");
    secrets.push(token, signature);
    return pair;
  };
  const start = (cookie = "") =>
    ask(`${gateway.url}/start`, {
      method: "POST",
      body: '{"user":{"id":"1","name":"Ada"},"data":{"cart":"hunter2-data"}}',
      headers: { cookie },
    });
  // What is under watch is recorded with its header sections.
  const watched = await fetch(`${gateway.adminUrl}/debug/watch`, {
    method: "POST",
    headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json" },
    body: '{"user":"1"}',
  });
  t.equal(watched.status, 200);
  const before = remember((await start()).setCookie);
  const cookie = remember((await start(before)).setCookie);
  const headers = {
    cookie: `${cookie}; other=hunter2-cookie`,
    authorization: "Bearer hunter2-authorization",
    "x-user-id": "hunter2-header",
    "x-csrf-token": "hunter2-header",
    "if-none-match": '"hunter2-header"',
    referer: "https://shop.example/?q=hunter2-query",
  };
  for (const path of ["/", "/required", "/refused", "/none?token=hunter2-query", "/%2e%2e/required"]) {
    await ask(gateway.url + path, { method: "POST", headers, body: "hunter2-body" });
  }
  await ask(`${gateway.url}/set`, { method: "POST", headers: { cookie }, body: '{"cart":"hunter2-data"}' });
  await ask(`${gateway.url}/set`, { method: "POST", headers: { cookie }, body: '{"cart":"hunter2-data"' });
  await ask(gateway.url, { headers: { cookie: `${cookie}x` } });
  await ask(gateway.url, { headers: { cookie: `${before}; ${cookie}` } });
  await raw(gateway.port, `GET / HTTP/1.1\r\nHost: a\r\nCookie: ${cookie}\r\nX : hunter2-header\r\n\r\n`);

  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  const dump: string[] = [];
  for (const key of await client.keys("*")) {
    const value = {
      hash: () => client.hgetall(key),
      zset: () => client.zrange(key, "0", "-1"),
      string: () => client.get(key),
    }[(await client.type(key)) as "hash" | "zset" | "string"];
    dump.push(key, JSON.stringify(await value()));
  }
  t.ok(dump.length >= 4);
  const operator = { headers: { authorization: `Bearer ${adminToken}` } };
  const fetched = await Promise.all(
    [
      "/metrics",
      "/debug/exchanges?limit=1000",
      "/debug/exchanges?ring=errors",
      "/debug/exchanges?ring=watch&limit=1000",
      "/debug/watch",
      "/",
      "/readyz",
    ].map(async (path) => (await fetch(gateway.adminUrl + path, operator)).text()),
  );
  t.ok(JSON.parse(fetched[3] ?? "").kept >= 8);
  await ask(`${gateway.url}/end`, { method: "POST", headers: { cookie }, body: "this" });
  await gateway.gateway.close();
  t.ok(receiver.bodies.length > 0 && gateway.logs.length > 10);
  const captured = {
    logs: gateway.logText(),
    spans: receiver.bodies.join("\n"),
    admin: fetched.join("\n"),
    redis: dump.join("\n"),
  };
  for (const [place, text] of Object.entries(captured)) {
    for (const secret of secrets) {
      if (place === "redis" && secret === "hunter2-data") continue; // session data is what Redis is for
      t.notOk(text.includes(secret), `${secret.slice(0, 12)}… is not in ${place}`);
    }
  }
});

t.test("access lines: all, errors only, none", async (t) => {
  const upstream = await startUpstream(t, (received, _req, res) =>
    res.writeHead(received.url === "/fails" ? 500 : 200).end(),
  );
  const expected = { all: ["/", "/fails"], errors: ["/fails"], none: [] };
  for (const [access, paths] of Object.entries(expected)) {
    const gateway = await startGateway(t, { upstream: upstream.url, observe: { log: { access } } });
    for (const path of ["/", "/fails"]) await ask(gateway.url + path);
    await until(async () => (await gateway.exchanges()).length === 2);
    const lines = gateway.logs.filter((line) => line.event === "http.access");
    t.same(
      lines.map((line) => line["url.path"]),
      paths,
      access,
    );
    for (const line of lines)
      t.match(line, {
        level: line["url.path"] === "/fails" ? "error" : "info",
        time: /^\d{4}-.*Z$/,
        trace_id: /^[0-9a-f]{32}$/,
      });
  }
});

t.test("the recorder keeps the last ones of each ring, newest first", async (t) => {
  const upstream = await startUpstream(t, (received, _req, res) =>
    res.writeHead(received.url.startsWith("/fails") ? 500 : 200).end(),
  );
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    observe: { recorder: { exchanges: 3, errors: 1, slow: 0 } },
  });
  for (const path of ["/fails1", "/fails2", "/1", "/2", "/3"]) await ask(gateway.url + path);
  await until(async () => (await gateway.exchanges())[0]?.request.path === "/3");
  t.same(
    (await gateway.exchanges()).map((exchange) => exchange.request.path),
    ["/3", "/2", "/1"],
  );
  t.same(
    (await gateway.exchanges("errors")).map((exchange) => exchange.request.path),
    ["/fails2"],
  );
  t.same(await gateway.exchanges("slow"), []);
});

t.test("events of sessions are lines with a stable name and the handle", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const first = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const second = await ask(`${gateway.url}/start`, {
    method: "POST",
    body: '{"user":{"id":"1"}}',
    headers: { cookie: cookiePair(first.setCookie[0]) },
  });
  await ask(`${gateway.url}/end`, {
    method: "POST",
    body: "this",
    headers: { cookie: cookiePair(second.setCookie[0]) },
  });
  const events = gateway.logs.filter((line) => String(line.event).startsWith("session."));
  t.same(
    events.map((line) => line.event),
    ["session.created", "session.rotated", "session.ended"],
  );
  t.not(events[0]?.handle, events[1]?.handle);
  t.equal(events[1]?.handle, events[2]?.handle);
});
