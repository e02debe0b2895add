/** Log level, access lines and the rules of traces can be changed while a gateway runs, for a while or for good. */
import t from "tap";
import { formatDuration, parseDuration } from "../src/core/units.ts";
import { ask, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { exportTo, startReceiver } from "./support/otlp.ts";
import { type RunningGateway, startGateway, startUpstream } from "./support/servers.ts";

const CONFIGURED = {
  log: { level: "info", access: "all", sample: 1 },
  traces: { ratio: 0.01, slowerThan: "1s", errors: true },
};

const shown = async (gateway: RunningGateway) => JSON.parse((await ask(`${gateway.adminUrl}/observe`)).body);

async function change(gateway: RunningGateway, body: unknown) {
  const headers = { "content-type": "application/json" };
  const reply = await ask(`${gateway.adminUrl}/observe`, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: reply.status, body: JSON.parse(reply.body) };
}

const changes = (gateway: RunningGateway) => gateway.logs.filter(({ event }) => event === "observe.changed");

t.test("GET shows what is in effect, POST changes what is named and nothing else", async (t) => {
  const gateway = await startGateway(t, {});
  t.same(await shown(gateway), CONFIGURED);
  const changed = await change(gateway, { traces: { ratio: 1, slowerThan: "250ms" } });
  t.equal(changed.status, 200);
  t.same(changed.body, { ...CONFIGURED, traces: { ratio: 1, slowerThan: "250ms", errors: true } });
  t.same(await shown(gateway), changed.body);
  await change(gateway, { log: { access: "errors" }, traces: { errors: false } });
  t.same(await shown(gateway), {
    log: { level: "info", access: "errors", sample: 1 },
    traces: { ratio: 1, slowerThan: "250ms", errors: false },
  });
  t.match(changes(gateway), [
    {
      level: "info",
      by: "operator",
      changed: { "traces.ratio": { from: 0.01, to: 1 }, "traces.slowerThan": { from: "1s", to: "250ms" } },
    },
    { changed: { "log.access": { from: "all", to: "errors" }, "traces.errors": { from: true, to: false } } },
  ]);
});

t.test("what changes nothing leaves no line", async (t) => {
  const gateway = await startGateway(t, {});
  t.equal((await change(gateway, { traces: { ratio: 0.01 }, log: { level: "info" } })).status, 200);
  t.same(changes(gateway), []);
});

t.test("what makes no sense is refused with a sentence, and changes nothing", async (t) => {
  const gateway = await startGateway(t, {});
  const cases: [body: unknown, error: RegExp][] = [
    [{}, /says nothing to change/],
    [{ for: "15m" }, /says nothing to change/],
    [{ log: {} }, /says nothing to change/],
    [{ traces: { ratio: 2 } }, /traces\.ratio/],
    [{ traces: { ratio: "1" } }, /traces\.ratio must be a number from 0 to 1/],
    [{ traces: { slowerThan: "soon" } }, /traces\.slowerThan must be a duration from 1ms to 1h/],
    [{ traces: { slowerThan: "0ms" } }, /traces\.slowerThan must be a duration/],
    [{ log: { level: "loud" } }, /log\.level must be one of trace, debug/],
    [{ log: { access: "some" } }, /log\.access must be one of all, errors, none/],
    [{ log: { level: "debug" }, for: "8d" }, /for must be a duration from 1s to 7d/],
    [{ recorder: { exchanges: 1 } }, /recorder/],
    [[], /./],
  ];
  for (const [body, error] of cases) {
    const reply = await change(gateway, body);
    t.equal(reply.status, 400, JSON.stringify(body));
    t.match(reply.body.error, error);
  }
  t.same(await shown(gateway), CONFIGURED);
});

t.test("a change for a while in the wrong place does not become one for good", async (t) => {
  const gateway = await startGateway(t, {});
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ traces: { ratio: 1 } });
  const reply = await ask(`${gateway.adminUrl}/observe?for=15m`, { method: "POST", headers, body });
  t.equal(reply.status, 400);
  t.match(reply.body, /unknown parameter/);
  t.same(await shown(gateway), CONFIGURED);
});

t.test("with `for` the former values come back by themselves, and the answer says when", async (t) => {
  const gateway = await startGateway(t, {});
  await change(gateway, { traces: { slowerThan: "2s" } });
  const before = await shown(gateway);
  const askedAt = Date.now();
  const { body } = await change(gateway, { traces: { ratio: 1 }, log: { level: "debug" }, for: "1s" });
  t.match(body, { log: { level: "debug" }, traces: { ratio: 1, slowerThan: "2s" } });
  t.same(body.temporary.afterwards, before);
  const until1 = Date.parse(body.temporary.until);
  t.ok(until1 >= askedAt + 1000 && until1 <= Date.now() + 1000);
  await until(async () => (await shown(gateway)).temporary === undefined);
  t.ok(Date.now() >= until1);
  t.same(await shown(gateway), before);
  t.match(changes(gateway).slice(1), [
    { by: "operator", until: body.temporary.until, changed: { "log.level": { from: "info", to: "debug" } } },
    { by: "time", changed: { "log.level": { from: "debug", to: "info" }, "traces.ratio": { from: 1, to: 0.01 } } },
  ]);
});

t.test("two changes for a while end together; one for good takes its setting out of them", async (t) => {
  const gateway = await startGateway(t, {});
  await change(gateway, { traces: { ratio: 1 }, for: "1h" });
  const { body } = await change(gateway, { log: { level: "debug" }, for: "2h" });
  t.match(body, { log: { level: "debug" }, traces: { ratio: 1 } });
  t.ok(Date.parse(body.temporary.until) > Date.now() + 3_600_000);
  t.same(body.temporary.afterwards, CONFIGURED);
  const one = await change(gateway, { traces: { ratio: 0.5 } });
  t.match(one.body, { log: { level: "debug" }, traces: { ratio: 0.5 } });
  t.match(one.body.temporary.afterwards, { log: { level: "info" }, traces: { ratio: 0.5 } });
  t.equal(changes(gateway).at(-1)?.until, undefined, "what stays has no end, though something else has");
  const both = await change(gateway, { log: { level: "warn" } });
  t.match(both.body, { log: { level: "warn" }, traces: { ratio: 0.5 } });
  t.notOk("temporary" in both.body, "nothing is left to end");
});

t.test("levels and access lines change with the next line; the step towards silence is still told", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  const visited = async (path: string) => {
    await ask(gateway.url + path);
    await until(async () => (await gateway.exchanges())[0]?.request.path === path);
  };
  await visited("/logged");
  await change(gateway, { log: { access: "none" } });
  await visited("/silent");
  await change(gateway, { log: { access: "all", level: "error" } });
  await visited("/too-low");
  await change(gateway, { log: { level: "info" } });
  await visited("/again");
  const lines = gateway.logs.filter(({ event }) => event === "http.access");
  t.same(
    lines.map((line) => line["url.path"]),
    ["/logged", "/again"],
  );
  t.equal(changes(gateway).length, 3);
});

t.test("10 % on a normal day, 100 % while investigating, without a restart", async (t) => {
  const receiver = await startReceiver(t);
  const environment = { ...receiver.environment, OTEL_BSP_SCHEDULE_DELAY: "10" };
  exportTo(environment, t);
  const upstream = await startUpstream(t, ({ url }, _req, res) => {
    if (url.startsWith("/slow")) setTimeout(() => res.end(), 60);
    else res.end();
  });
  const settings = { upstream: upstream.url, observe: { traces: { ratio: 0 } } };
  const gateway = await startGateway(t, settings, { environment });
  const paths = () => receiver.spans.filter(({ kind }) => kind === 2).map(({ attributes }) => attributes["url.path"]);
  for (const path of ["/a", "/slow-a"]) await ask(gateway.url + path);
  await change(gateway, { traces: { ratio: 1 } });
  await ask(`${gateway.url}/b`);
  await until(() => paths().length === 1);
  t.match(upstream.received.at(-1)?.headers.traceparent, /-01$/, "the next service is told as well");
  await change(gateway, { traces: { ratio: 0, slowerThan: "50ms" } });
  for (const path of ["/c", "/slow-c"]) await ask(gateway.url + path);
  await until(() => paths().length === 2);
  t.same(paths(), ["/b", "/slow-c"]);
  await until(async () => (await gateway.exchanges("slow")).length === 1);
});

t.test("coatcheck observe shows and changes the same", async (t) => {
  const gateway = await startGateway(t, {});
  const observe = (...args: string[]) => run(t, ["observe", "--admin", gateway.adminUrl, ...args]);
  t.match(await observe(), { status: 0, stdout: /^log level +info\n[\s\S]*traces: ratio +0\.01\n/, stderr: "" });
  const changed = await observe(
    ...["--ratio", "1", "--slower-than", "100ms", "--level", "debug", "--access", "errors", "--errors", "false"],
    ...["--for", "15m"],
  );
  t.equal(changed.status, 0);
  t.match(changed.stdout, /^ +NOW +FROM \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\nlog level +debug +info\n/);
  t.match(changed.stdout, /traces: slower than +100ms +1s\ntraces: errors +by ratio +all\n$/);
  t.match(await shown(gateway), {
    log: { level: "debug", access: "errors" },
    traces: { ratio: 1, slowerThan: "100ms", errors: false },
  });
  t.match(JSON.parse((await observe("--json")).stdout), { temporary: { afterwards: CONFIGURED } });
  const wrong: [args: string[], status: number, message: RegExp][] = [
    [["--for", "15m"], 2, /--for needs something to change, such as --ratio 1/],
    [["--ratio", "much"], 2, /--ratio must be a number from 0 to 1/],
    [["--errors", "maybe"], 2, /--errors must be true or false/],
    [["now"], 2, /unexpected "now"/],
    [["--ratio", "7"], 2, /--ratio must be a number/],
    [["--level", "loud"], 2, /--level must be one of/],
  ];
  for (const [args, status, stderr] of wrong)
    t.match(await observe(...args), { status, stdout: "", stderr }, args.join(" "));
  t.match(await run(t, ["observe", "--help"]), { status: 0, stdout: /--ratio N/ });
});

t.test("a duration is written as it can be read", async (t) => {
  for (const ms of [0, 1, 250, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000, 90_061_001])
    t.equal(parseDuration(formatDuration(ms)), ms, formatDuration(ms));
});
