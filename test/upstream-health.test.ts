/** Active health checks, and names whose addresses change. */
import t from "tap";
import { loadConfig } from "../src/config/load.ts";
import { ask, until } from "./support/client.ts";
import { startDns } from "./support/dns.ts";
import { freePort, type RunningGateway, startGateway } from "./support/servers.ts";
import {
  balanced,
  counted,
  FAILING,
  HANGING,
  shown,
  startTargets,
  statesOf,
  TestTarget,
  WELL,
} from "./support/targets.ts";

const health = { path: "/healthz", interval: "100ms", timeout: "1s", healthyAfter: 2, unhealthyAfter: 2 };

const untilStates = async (gateway: RunningGateway, states: readonly string[]) =>
  until(async () => JSON.stringify(await statesOf(gateway)) === JSON.stringify(states));
const named = (gateway: RunningGateway, event: string) => gateway.logs.filter((line) => line.event === event);

t.test("a target whose checks fail gets no requests until they succeed again", async (t) => {
  const [bad, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  const gateway = await startGateway(t, balanced([bad, good], { health, slowStart: "1s" }));
  await until(() => bad.checks > 1 && good.checks > 1);
  for (const [behaviour, detail] of [
    [FAILING, "status 503"],
    [HANGING, "http_response_timeout"],
  ] as const) {
    bad.behaviour = behaviour;
    await untilStates(gateway, ["unhealthy", "in-service"]);
    const before = bad.requests.length;
    for (let i = 0; i < 6; i++) t.equal((await ask(gateway.url)).body, `${good.port}`);
    t.equal(bad.requests.length, before);
    const { targets } = await shown(gateway);
    t.match(targets[0]?.endpoints[0], { reason: "health-check", lastCheck: { ok: false, detail } });
    t.match(named(gateway, "upstream.ejected").at(-1), { reason: "health-check", failure: detail, in_service: 1 });
    bad.behaviour = WELL;
    await until(async () => (await statesOf(gateway))[0] !== "unhealthy");
    t.match(named(gateway, "upstream.returned").at(-1), { reason: "health-check" });
  }
  await bad.kill();
  await untilStates(gateway, ["unhealthy", "in-service"]);
  t.ok((await counted(gateway, "coatcheck_upstream_health_checks_total", { result: "failed" })) >= 6);
  t.ok((await counted(gateway, "coatcheck_upstream_health_checks_total", { result: "ok" })) >= 4);
  t.equal((await ask(`${gateway.adminUrl}/readyz`)).status, 200, "readiness is not affected");
});

t.test("one failed check is not enough, and the first check of all is", async (t) => {
  const [flapping, good] = (await startTargets(t, 2)) as [TestTarget, TestTarget];
  let checks = 0;
  flapping.behaviour = (req, res) => (req.url === "/healthz" && checks++ % 2 === 1 ? FAILING : WELL)(req, res);
  const gateway = await startGateway(t, balanced([flapping, good], { health }));
  await until(() => checks >= 8);
  t.same(named(gateway, "upstream.ejected"), []);

  const down = await startGateway(
    t,
    balanced([`http://127.0.0.1:${await freePort()}`, good], { health: { ...health, unhealthyAfter: 50 } }),
  );
  await untilStates(down, ["unhealthy", "in-service"]);
});

t.test(
  "when no target is in service all get requests, somebody is told, and readiness follows if so configured",
  async (t) => {
    const targets = (await startTargets(t, 2)) as [TestTarget, TestTarget];
    let isWell = false;
    for (const target of targets)
      target.behaviour = (req, res) => (req.url === "/healthz" && !isWell ? FAILING : WELL)(req, res);
    const gateway = await startGateway(t, balanced(targets, { health: { ...health, readiness: true } }));
    await untilStates(gateway, ["unhealthy", "unhealthy"]);
    const bodies = new Set([(await ask(gateway.url)).body, (await ask(gateway.url)).body]);
    t.equal(bodies.size, 2, "both are asked");
    const [record] = await gateway.exchanges();
    t.equal(record?.upstream?.choice, "panic");
    t.equal((await shown(gateway)).panic, true);
    t.equal(await counted(gateway, "coatcheck_upstream_panic", { http_route: "*/" }), 1);
    t.match(named(gateway, "upstream.panic"), [{ level: "error", "http.route": "*/" }]);
    t.equal((await ask(`${gateway.adminUrl}/readyz`)).status, 503);
    isWell = true;
    await until(async () => !(await shown(gateway)).panic);
    t.equal((await ask(`${gateway.adminUrl}/readyz`)).status, 200);
    t.equal(named(gateway, "upstream.panic-over").length, 1);
    t.equal(await counted(gateway, "coatcheck_upstream_panic"), 0);
  },
);

t.test("a single target can have checks, and is asked whatever they say", async (t) => {
  const [target] = (await startTargets(t, 1)) as [TestTarget];
  target.behaviour = (req, res) => (req.url === "/healthz" ? FAILING : WELL)(req, res);
  const gateway = await startGateway(t, balanced([target], { health }));
  await untilStates(gateway, ["unhealthy"]);
  t.equal((await ask(gateway.url)).status, 200);
});

t.test("a check is an ordinary request with a Host, and closes its connection", async (t) => {
  const [target] = (await startTargets(t, 1)) as [TestTarget];
  const heads: unknown[] = [];
  target.behaviour = (req, res) => {
    heads.push([req.method, req.url, req.headers]);
    WELL(req, res);
  };
  const settings = { health: { ...health, path: "/healthz", host: "app.example.com" } };
  await startGateway(t, balanced([target], settings));
  await until(() => heads.length > 0);
  t.match(heads[0], ["GET", "/healthz", { host: "app.example.com", "user-agent": "coatcheck-health-check" }]);
});

t.test("a name with several addresses is resolved again, and old connections drain", async (t) => {
  const port = await freePort();
  const at = (address: string) => TestTarget.start(t, { port, address });
  const [one, two, three] = await Promise.all([at("127.0.0.1"), at("127.0.0.2"), at("127.0.0.3")]);
  const says = (name: string, target: TestTarget) => {
    target.behaviour = (_req, res) => res.end(name);
  };
  says("one", one);
  says("two", two);
  says("three", three);
  const dns = await startDns(t, ["127.0.0.1", "127.0.0.2"]);
  const resolve = { interval: "5m", servers: [dns.address] };
  const gateway = await startGateway(t, balanced([`http://app.example:${port}`], { resolve }));
  const bodies = async (times: number) => {
    const all = new Set<string>();
    for (let i = 0; i < times; i++) all.add((await ask(gateway.url)).body);
    return [...all].sort();
  };
  t.same(await bodies(6), ["one", "two"]);
  const [record] = await gateway.exchanges();
  t.match(record?.upstream, { address: `app.example:${port}`, peer: /^127\.0\.0\.[12]:/, choice: "round-robin" });
  const metrics = await gateway.metrics();
  t.notMatch(metrics, "127.0.0.2", "labels are of the name: addresses come and go");

  let release = () => {};
  one.behaviour = (_req, res) => {
    res.write("still ");
    release = () => res.end("one");
  };
  const both = [ask(gateway.url), ask(gateway.url)];
  await until(() => one.requests.length > 3);
  // The answer was valid for a second, whatever the interval says.
  dns.addresses = ["127.0.0.2", "127.0.0.3"];
  await until(() => named(gateway, "upstream.resolved").length === 2);
  t.same(await bodies(4), ["three", "two"]);
  const resolved = named(gateway, "upstream.resolved");
  t.match(resolved.at(-1), { added: [`127.0.0.3:${port}`], removed: [`127.0.0.1:${port}`] });
  t.match(
    (await shown(gateway)).targets[0]?.endpoints.find(({ peer }) => peer === `127.0.0.1:${port}`),
    { state: "draining", active: 1 },
    "what it has begun goes on",
  );
  release();
  t.same((await Promise.all(both)).map(({ body }) => body).sort(), ["still one", "two"]);
  await until(async () => (await shown(gateway)).targets[0]?.endpoints.length === 2);
  t.equal(await counted(gateway, "coatcheck_upstream_resolutions_total", { result: "changed" }), 2);

  // No answer is no reason to forget.
  for (const trouble of [undefined, [], "silent"] as const) {
    dns.addresses = trouble;
    const before = await counted(gateway, "coatcheck_upstream_resolutions_total", { result: "failed" });
    if (trouble !== "silent")
      await until(
        async () => (await counted(gateway, "coatcheck_upstream_resolutions_total", { result: "failed" })) > before,
      );
    t.same(await bodies(4), ["three", "two"]);
  }
  t.equal(named(gateway, "upstream.resolve-failed").length, 1, "told once");
});

t.test("a name without an address is an answer at once, and the next one is found", async (t) => {
  const target = await TestTarget.start(t);
  const dns = await startDns(t, []);
  const resolve = { servers: [dns.address] };
  const gateway = await startGateway(t, balanced([`http://app.example:${target.port}`], { resolve }));
  const reply = await ask(gateway.url);
  t.equal(reply.status, 502);
  t.equal(reply.headers["proxy-status"], "coatcheck; error=dns_error");
  dns.addresses = ["127.0.0.1"];
  await until(async () => (await ask(gateway.url)).status === 200);
});

t.test("the operating system is asked where there is no DNS server", async (t) => {
  const target = await TestTarget.start(t);
  const gateway = await startGateway(t, balanced([`http://localhost:${target.port}`], { resolve: {} }));
  const { targets } = await shown(gateway);
  t.match(targets, [{ address: `localhost:${target.port}`, endpoints: [{ peer: new RegExp(`:${target.port}$`) }] }]);
});

t.test("settings that make no sense are refused", async (t) => {
  const problemOf = (upstream: object) => {
    try {
      loadConfig({ routes: [{ upstream }] }, {});
      return "none";
    } catch (error) {
      return String(error);
    }
  };
  const targets = ["http://a", "http://b"];
  t.match(problemOf({ targets: ["http://a"], balance: "session-hash" }), "balance: has a meaning only with several");
  t.match(problemOf({ targets, health: { path: "healthz" } }), "health.path: must begin with");
  t.match(problemOf({ targets, health: { path: "/", status: "2xx" } }), "must be a status or a range");
  t.match(problemOf({ targets, retries: { on: ["everything"] } }), "retries");
  t.match(problemOf({ targets, resolve: { servers: ["dns.example"] } }), "must be an address");
  t.match(problemOf({ targets: [] }), "at least one target");
  t.equal(problemOf({ targets, health: { path: "/" }, ejection: false, retries: false, resolve: {} }), "none");
});
