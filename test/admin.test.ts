/** The listener for operators. */
import t from "tap";
import { ask, raw } from "./support/client.ts";
import { startGateway, startUpstream } from "./support/servers.ts";

const TOKEN = "t".repeat(40);

t.test("an index, JSON errors, and nothing but GET", async (t) => {
  const gateway = await startGateway(t, {});
  const index = await ask(gateway.adminUrl);
  t.match(JSON.parse(index.body), {
    coatcheck: /^\d+\.\d+\.\d+/,
    endpoints: { "/metrics": /./, "/livez": /./, "/readyz": /./, "/debug/exchanges": /./ },
  });
  const cases: [path: string, method: string, status: number][] = [
    ["/nothing", "GET", 404],
    ["/metrics", "POST", 405],
    ["/livez", "HEAD", 200],
    ["/debug/exchanges?limit=0", "GET", 400],
    ["/debug/exchanges?limit=x", "GET", 400],
    ["/debug/exchanges?ring=other", "GET", 400],
    ["/debug/exchanges?colour=red", "GET", 400],
    ["//metrics", "GET", 404],
  ];
  for (const [path, method, status] of cases) {
    const reply = await ask(gateway.adminUrl + path, { method });
    t.equal(reply.status, status, `${method} ${path}`);
    if (status >= 400) t.match(JSON.parse(reply.body), { error: /./ });
  }
  t.match((await ask(`${gateway.adminUrl}/metrics`)).headers["content-type"], /openmetrics-text/);
});

t.test("a token is asked for everywhere but at the probes", async (t) => {
  const gateway = await startGateway(t, { admin: { port: 0, token: TOKEN } });
  const status = async (path: string, authorization?: string) =>
    (await ask(gateway.adminUrl + path, authorization ? { headers: { authorization } } : {})).status;
  for (const path of ["/", "/metrics", "/debug/exchanges", "/nothing"]) {
    t.equal(await status(path), 401, path);
    t.equal(await status(path, `Bearer ${TOKEN}x`), 401);
    t.equal(await status(path, `Bearer ${TOKEN.slice(1)}`), 401);
    t.equal(await status(path, `Basic ${TOKEN}`), 401);
    t.equal(await status(path, "Bearer"), 401);
    t.equal(await status(path, `Bearer ${TOKEN}`), path === "/nothing" ? 404 : 200);
  }
  t.equal(await status("/livez"), 200);
  t.equal(await status("/readyz"), 200);
});

t.test("without a token, a foreign name for this address is refused (DNS rebinding)", async (t) => {
  const gateway = await startGateway(t, {});
  const port = Number(new URL(gateway.adminUrl).port);
  const status = async (host: string) => (await ask(`${gateway.adminUrl}/metrics`, { headers: { host } })).status;
  t.equal(await status(`localhost:${port}`), 200);
  t.equal(await status("[::1]:9090"), 200);
  t.equal(await status("evil.example"), 403);
  t.equal(await status("127.0.0.1.evil.example"), 403);
  t.match(await raw(port, "GET /metrics HTTP/1.0\r\n\r\n"), /^HTTP\/1.1 403 /);
  t.match(await raw(port, "GET /readyz HTTP/1.0\r\n\r\n"), /^HTTP\/1.1 200 /, "as load balancers ask");
  t.match(await raw(port, "GET /readyz HTTP/1.0\r\nHost: evil.example\r\n\r\n"), /^HTTP\/1.1 403 /);
});

t.test("an exchange shows every decision and its timings in order", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  await ask(`${gateway.url}/x?y=1`, { method: "POST", body: "hello" });
  const [exchange] = await gateway.exchanges();
  t.match(exchange, {
    request: { method: "POST", host: "127.0.0.1", path: "/x", client: "127.0.0.1", bytes: 5 },
    route: "*/",
    session: { cookie: "absent", outcome: "absent", decision: "anonymous" },
    upstream: { address: new URL(upstream.url).host, status: 200 },
    response: { status: 200, source: "upstream", clientGone: false },
  });
  const { resolveStarted, resolved, forwarded, upstreamHead, upstreamEnd, ended } = exchange?.timings ?? {};
  const steps = [0, resolveStarted, resolved, forwarded, upstreamHead, upstreamEnd, ended];
  t.same(
    [...steps].sort((a, b) => Number(a) - Number(b)),
    steps,
  );
});
