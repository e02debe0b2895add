/** The traffic of the demo: what it does, where it may go, and that it ends. */
import { once } from "node:events";
import { existsSync } from "node:fs";
import { Agent } from "node:http";
import { Redis } from "ioredis";
import t from "tap";
import { runDemo } from "../src/cli/demo.ts";
import { startOwnRedis } from "../src/demo/own-redis.ts";
import { Random } from "../src/demo/random.ts";
import { isUnrouted, parseTarget } from "../src/demo/target.ts";
import { Visitor } from "../src/demo/visitor.ts";
import { ask, until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { freePort, startUpstream, temporaryFolder } from "./support/servers.ts";

/** For what is refused before anything runs. */
const NO_PROCESS = { attend: () => {}, untilSignal: () => Promise.reject(new Error("nothing should run")) };

t.test("with traffic: people, failures and every outcome, until it ends by itself", async (t) => {
  const adminPort = await freePort();
  const size = ["--users", "40", "--rate", "60", "--seconds", "60", "--seed", "5"];
  const ports = ["--port", String(await freePort()), "--admin-port", String(adminPort)];
  const demo = command(t, ["demo", "--traffic", ...size, ...ports]);
  await until(() => demo.stdout().includes("Ctrl-C"));
  t.match(demo.stdout(), "40 people, about 60 requests a second for 60 s, seed 5");

  const metrics = async () => (await ask(`http://127.0.0.1:${adminPort}/metrics`)).body;
  const wanted = [
    ...["absent", "hit", "unknown", "expired", "malformed", "mismatch", "ambiguous"].map(
      (outcome) => `coatcheck_session_resolutions_total{outcome="${outcome}"`,
    ),
    ...["created", "rotated", "ended", "expired", "mismatch"].map(
      (event) => `coatcheck_session_events_total{event="${event}"}`,
    ),
    ...["managed", "alias", "connection"].map((name) => `coatcheck_headers_stripped_total{class="${name}"}`),
    'command="set",result="conflict"',
    'command="set",result="malformed"',
    "coatcheck_write_back_keys_dropped_total",
    ...[200, 302, 303, 403, 404, 409, 499, 500, 502].map((status) => `http_response_status_code="${status}"`),
    ...["http_response_incomplete", "session_write_conflict"].map((type) => `error_type="${type}"`),
  ];
  await until(async () => {
    const text = await metrics();
    return wanted.every((part) => text.includes(part));
  });
  await until(() => /^\d\d:\d\d:\d\d {2}trouble: /m.test(demo.stdout()));
  await until(() => /^\d\d:\d\d:\d\d {2}\d+ requests: \d+ ok.* of 40 signed in$/m.test(demo.stdout()));

  demo.child.kill("SIGINT");
  t.equal(await demo.ended, 0);
  t.equal(demo.stderr(), "");
  t.match(demo.stdout(), /^\d+ requests in \d+ s/m);
  t.match(demo.stdout(), /^look around +\d+$/m);
});

t.test(
  "with traffic and a Redis of its own, which it may trouble; it ends after its time and leaves nothing",
  async (t) => {
    const [port, adminPort] = [await freePort(), await freePort()];
    const args = ["demo", "--traffic", "--redis", "--users", "5", "--rate", "10", "--seconds", "3"];
    const demo = command(t, [...args, "--port", String(port), "--admin-port", String(adminPort)]);
    await until(() => demo.stdout().includes("Ctrl-C"));
    t.match(demo.stdout(), "Sessions are kept in Redis (one of its own)");
    await until(async () => {
      const { body } = await ask(`http://127.0.0.1:${adminPort}/metrics`);
      return body.includes('coatcheck_session_resolutions_total{outcome="hit"') && body.includes('store="redis"');
    });
    t.equal(await demo.ended, 0);
    t.equal(demo.stderr(), "");
    t.match(demo.stdout(), /^\d+ requests in 3 s/m);
    const log = /tail -f (\S+)/.exec(demo.stdout())?.[1] ?? "";
    t.notOk(existsSync(log));
  },
);

t.test("the traffic alone, for a gateway that runs already", async (t) => {
  const paths = new Set<string>();
  const upstream = await startUpstream(t, ({ url }, _req, res) => {
    paths.add(url.replace(/\?.*/, ""));
    res.end("hello");
  });
  const args = ["demo", "--traffic-only", "--target", `http://127.0.0.1:${upstream.port}`];
  const { status, stdout, stderr } = await run(t, [...args, "--users", "9", "--rate", "200", "--seconds", "2"]);
  t.equal(status, 0);
  t.equal(stderr, "");
  t.match(stdout, /^200 +\d+$/m);
  t.ok(paths.has("/") && paths.has("/login"));
});

t.test("traffic goes to gateways of the demo and nowhere else", async (t) => {
  const refused = [
    "http://example.com",
    "http://10.0.0.7:8080",
    "http://gateway.example.com",
    "http://127.0.0.1.nip.io",
  ];
  for (const target of refused) {
    const asked = runDemo(["--traffic-only", "--target", target], {}, NO_PROCESS);
    await t.rejects(asked, { message: /no load generator for other servers/ }, target);
  }
  for (const target of ["https://gateway:8080", "http://me:secret@gateway", "gateway:8080", "http://gateway/path"])
    t.throws(() => parseTarget(target), { message: /must be a URL/ }, target);
  for (const target of ["http://gateway:8080", "http://localhost:1", "http://127.9.9.9", "http://[::1]:8080"])
    t.equal(parseTarget(target), target);
  for (const [address, family] of [
    ["127.0.0.1", 4],
    ["172.18.0.3", 4],
    ["192.168.7.7", 4],
    ["10.1.2.3", 4],
    ["::1", 6],
    ["fd00::3", 6],
  ] as const)
    t.ok(isUnrouted({ address, family }), address);
  for (const [address, family] of [
    ["93.184.215.14", 4],
    ["172.32.0.1", 4],
    ["0.0.0.0", 4],
    ["2606:2800:21f::1", 6],
    ["::ffff:93.184.215.14", 6],
  ] as const)
    t.notOk(isUnrouted({ address, family }), address);
});

t.test("the same seed, the same people with the same ideas", async (t) => {
  const ideas = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 200 }, () => [
      random.weighted({ rare: 0.1, often: 5, sometimes: 1 }),
      random.below(7),
      random.exponential(10),
    ]);
  };
  t.same(ideas(4), ideas(4));
  t.notSame(ideas(4), ideas(5));
  for (const [name, whole, wait] of ideas(6)) {
    t.ok(["rare", "often", "sometimes"].includes(String(name)));
    t.ok(Number(whole) >= 0 && Number(whole) < 7 && Number(wait) >= 0 && Number(wait) <= 50);
  }
  t.equal(new Set(Array.from({ length: 500 }, (_, n) => new Random(n).next())).size, 500, "seeds differ");
});

t.test("somebody does the same again, as far as the gateway answers the same", async (t) => {
  const app = await startUpstream(t, ({ method, url }, _req, res) => {
    if (method === "POST" && url === "/login") res.setHeader("Set-Cookie", "session=abc; Max-Age=600");
    if (method === "POST" && url.startsWith("/logout")) res.setHeader("Set-Cookie", "session=; Max-Age=0");
    res.end();
  });
  const actsOf = async (seed: number) => {
    const acts: string[] = [];
    const end = new AbortController();
    const agent = new Agent({ keepAlive: true });
    const visitor = new Visitor({
      url: app.url,
      agent,
      number: 1,
      random: new Random(seed),
      thinkMs: 1,
      spell: () => undefined,
      onAnswer: () => {},
      onAct: (act) => {
        acts.push(act);
        if (acts.length === 60) end.abort();
      },
    });
    await visitor.run(end.signal);
    agent.destroy();
    return acts;
  };
  const first = await actsOf(7);
  t.same(await actsOf(7), first);
  t.notSame(await actsOf(8), first);
  t.ok(first.includes("sign in") && first.includes("put into the cart"));
});

t.test("a Redis of the demo's own: nobody else gets in, it falls silent, forgets, and goes", async (t) => {
  const own = await startOwnRedis(await temporaryFolder(t));
  t.teardown(() => own.close());
  const { port, password } = new URL(own.url);
  const open = (options = {}) => {
    const client = new Redis({ port: Number(port), host: "127.0.0.1", retryStrategy: () => null, ...options });
    client.on("error", () => {});
    t.teardown(() => client.disconnect());
    return client;
  };
  await t.rejects(open().get("a"), /NOAUTH/);
  const client = open({ password, commandTimeout: 200 });
  await client.set("a", "1");
  own.freeze();
  await t.rejects(client.get("a"), /timed out/);
  own.thaw();
  await until(() => client.get("a").catch(() => undefined));
  await own.flush();
  t.equal(await client.get("a"), null);
  const ended = once(client, "end");
  await own.close();
  await ended;

  const nowhere = await run(t, ["demo", "--redis", "--port", "0", "--admin-port", "0"], { PATH: "/nowhere" });
  t.match(nowhere, { status: 1, stdout: "", stderr: /redis-server does not start; is it installed\?/ });
});

t.test("options of the demo that make no sense", async (t) => {
  const cases: [args: string[], message: RegExp][] = [
    [["--users", "0", "--traffic"], /--users must be a whole number from 1 to 1000/],
    [["--rate", "1e9", "--traffic"], /--rate must be a whole number from 1 to 500/],
    [["--rate", "10"], /--rate goes with --traffic/],
    [["--target", "http://localhost"], /--target goes with --traffic-only/],
    [["--traffic-only"], /--traffic-only needs --target URL/],
    [["--traffic-only", "--target", "http://localhost", "--redis"], /--redis does not go with --traffic-only/],
    [["tour"], /unexpected "tour"/],
  ];
  for (const [args, message] of cases) await t.rejects(runDemo(args, {}, NO_PROCESS), { message }, args.join(" "));
  t.match(await run(t, ["demo", "--rate", "10"]), { status: 2, stdout: "" });
  t.match(await run(t, ["demo", "--help"]), { status: 0, stdout: /--traffic-only --target URL/ });
});
