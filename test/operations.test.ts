/**
 * The way of docs/operations.md, with the files of examples/production and the real programs: three Redis with Sentinels,
 * two gateways, HAProxy, Prometheus. OPERATIONS_KILL=1 also kills the master, which takes the Sentinels some seconds to see.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import type { IncomingHttpHeaders } from "node:http";
import { Agent, request } from "node:https";
import { join } from "node:path";
import t, { type Test } from "tap";
import { cookiePair, until } from "./support/client.ts";
import { type Running, run } from "./support/command.ts";
import { HTTPS_PORT, layOut, PATIENCE_MS } from "./support/production.ts";
import { ROOT } from "./support/project.ts";
import { eventually } from "./support/resources.ts";

t.setTimeout(300_000);
const production = await layOut(t);
const { network, secrets, authority } = production;
const agent = new Agent({ ca: authority, keepAlive: true, maxSockets: 8 });
const gateways = new Map<string, Running>();
let cookie = "";

interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** A browser's request: over HTTPS, to the balancer. */
function browse(path: string, options: { method?: string; body?: string; headers?: Record<string, string> } = {}) {
  const { method = "GET", body, headers = {} } = options;
  return new Promise<Reply>((resolve, reject) => {
    const form = body === undefined ? {} : { "content-type": "application/x-www-form-urlencoded" };
    const url = `https://${network}.10:${HTTPS_PORT}${path}`;
    const req = request(url, { agent, method, headers: { cookie, ...form, ...headers } }, async (res) => {
      try {
        let text = "";
        for await (const piece of res.setEncoding("utf8")) text += piece;
        resolve({ status: res.statusCode ?? 0, headers: res.headers, body: text });
      } catch (error) {
        reject(error);
      }
    });
    req.on("error", reject);
    req.end(body);
  });
}

async function ready(host: string): Promise<void> {
  const url = `http://${network}.1${host.at(-1)}:9090/readyz`;
  const isReady = () =>
    fetch(url).then(
      ({ ok }) => ok,
      () => false,
    );
  await eventually(`${host} is ready`, isReady, PATIENCE_MS);
}

async function signIn(): Promise<string> {
  const { status, headers } = await browse("/login", { method: "POST", body: "user=ada&password=ada" });
  t.equal(status, 303, "signed in");
  return cookiePair(headers["set-cookie"]?.[0]);
}

t.test("Redis with its Sentinels, as their files say", async (t) => {
  for (const host of ["redis-1", "redis-2", "redis-3"]) production.startRedis(host);
  await eventually(
    "two replicas follow",
    () => {
      try {
        return /^connected_slaves:2\r?$/m.test(production.redis("redis-1", "INFO", "replication"));
      } catch {
        return false;
      }
    },
    PATIENCE_MS,
  );
  for (const host of ["redis-1", "redis-2", "redis-3"]) production.startSentinel(host);
  await eventually(
    "the Sentinels know one another",
    () => {
      try {
        return production.sentinel("redis-2", "SENTINEL", "CKQUORUM", "mymaster").startsWith("OK 3 usable");
      } catch {
        return false;
      }
    },
    PATIENCE_MS,
  );
  t.match(production.redis("redis-1", "--user", "default", "PING"), /^NOAUTH/, "nobody without a name");
  const follows = (host: string) => /^master_link_status:up\r?$/m.test(production.redis(host, "INFO", "replication"));
  await eventually("the replicas have it all", () => follows("redis-2") && follows("redis-3"), PATIENCE_MS);
});

t.test("the check of the configuration and of the store finds nothing", async (t) => {
  const args = ["check", "--config", production.configuration("gw-1")];
  const { status, stdout } = await run(t, args, production.environment("gw-1"));
  t.equal(status, 0, stdout);
  const store = await run(t, [...args, "--store"], production.environment("gw-1"));
  t.equal(store.status, 0, store.stdout + store.stderr);
  // A busy machine is slow, and is told so.
  t.notMatch(store.stdout, /^warning: (?!slow)/m, store.stdout);
  for (const secret of Object.values(secrets)) t.notOk((stdout + store.stdout).includes(secret), "no secret is shown");
});

t.test("two gateways behind HAProxy", async (t) => {
  production.startApplication();
  for (const host of ["gw-1", "gw-2"]) gateways.set(host, production.startGateway(host));
  await Promise.all(["gw-1", "gw-2"].map(ready));
  production.startBalancer();
  production.startPrometheus();
  for (const host of ["gw-1", "gw-2"]) await production.balanced(host, "UP");

  const signedOut = await browse("/account", { headers: { accept: "text/html", "sec-fetch-mode": "navigate" } });
  t.match(signedOut, { status: 302, headers: { location: "/login" } });
  cookie = await signIn();
  t.match(cookie, /^__Host-session=/, "the cookie that needs HTTPS");
  for (let n = 0; n < 8; n++) t.match(await browse("/"), { status: 200, body: /Ada/ });
  for (const host of ["gw-1", "gw-2"]) {
    const { status, stdout } = await run(
      t,
      ["exchanges", "--config", production.configuration(host), "--json"],
      production.environment(host),
    );
    t.equal(status, 0);
    t.match(stdout, /"status": ?200/, `${host} had requests`);
  }
});

t.test("a client does not say where it comes from, nor who it is", async (t) => {
  const forged = {
    "x-forwarded-for": "192.0.2.1",
    forwarded: "for=192.0.2.2",
    "x-user-id": "7",
    "x-forwarded-proto": "http",
  };
  const { body } = await browse("/headers", { headers: forged });
  t.notMatch(body, /192\.0\.2/);
  t.match(body, /x-forwarded-proto\W+https/i);
  t.match(body, /x-user-id\W+1\b/i);
});

/** Six people who ask for a page again and again while something happens, and what they got instead of it. */
async function whileAsked(happens: () => Promise<void>): Promise<{ requests: number; failures: string[] }> {
  let running = true;
  let requests = 0;
  const failures: string[] = [];
  const visitor = async () => {
    while (running) {
      requests++;
      try {
        const { status, body } = await browse("/account");
        if (status !== 200 || !body.includes("Ada")) failures.push(`${status} ${body.slice(0, 80)}`);
      } catch (error) {
        failures.push(String(error));
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  const visitors = Promise.all(Array.from({ length: 6 }, visitor));
  try {
    await happens();
  } finally {
    running = false;
    await visitors;
  }
  return { requests, failures };
}

t.test("a rolling restart under load loses no request and no session", async (t) => {
  const { requests, failures } = await whileAsked(async () => {
    for (const host of ["gw-1", "gw-2"]) {
      const before = gateways.get(host);
      before?.child.kill("SIGTERM");
      t.equal(await before?.ended, 0, `${host} ends in order`);
      gateways.set(host, production.startGateway(host));
      await ready(host);
      await production.balanced(host, "UP");
    }
  });
  t.ok(requests > 200, `${requests} requests`);
  t.same(failures, []);
});

t.test("a failover by command, for maintenance: people stay signed in, and others can sign in again", async (t) => {
  const [old] = production.sentinel("redis-3", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster").split("\n");
  production.sentinel("redis-3", "SENTINEL", "FAILOVER", "mymaster");
  await signedInAfter(t, old);
});

if (process.env.OPERATIONS_KILL === "1")
  t.test("a master that is killed", async (t) => {
    const [old = ""] = production.sentinel("redis-3", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster").split("\n");
    const pid = /^process_id:(\d+)/m.exec(production.redis(`redis-${old.at(-1)}`, "INFO", "server"))?.[1];
    const started = performance.now();
    const { requests, failures } = await whileAsked(async () => {
      process.kill(Number(pid), "SIGKILL");
      await signedInAfter(t, old);
    });
    t.comment(`sign-in again after ${Math.round(performance.now() - started)} ms, ${requests} requests`);
    t.same(failures, [], "and whoever was active did not notice");
  });

/** Waits until another server than `old` is the master, and somebody can sign in. */
async function signedInAfter(t: Test, old: string | undefined, timeoutMs = PATIENCE_MS): Promise<void> {
  const other = () => {
    const [now] = production.sentinel("redis-3", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster").split("\n");
    return now !== old;
  };
  await eventually("another master", other, timeoutMs);
  const retry = async () =>
    (await browse("/login", { method: "POST", body: "user=bob&password=bob", headers: { cookie: "" } })).status === 303;
  await eventually("somebody signs in", retry, timeoutMs);
  t.match(await browse("/"), { status: 200, body: /Ada/ }, "whoever was signed in still is");
}

t.test("Prometheus has both gateways and HAProxy, and takes the rules", async (t) => {
  const ask = async (path: string) => {
    const response = await fetch(`http://${network}.30:9090/api/v1/${path}`);
    return ((await response.json()) as { data: unknown }).data;
  };
  const up = () => ask(`query?query=${encodeURIComponent("sum by (job) (up)")}`);
  await until(async () => {
    const { result } = (await up()) as { result: { metric: { job: string }; value: [number, string] }[] };
    return (
      result.some(({ metric, value }) => metric.job === "coatcheck" && value[1] === "2") &&
      result.some(({ metric, value }) => metric.job === "haproxy" && value[1] === "1")
    );
  });
  const { groups } = (await ask("rules")) as { groups: { rules: { name: string; health: string }[] }[] };
  const rules = groups.flatMap((group) => group.rules);
  t.ok(rules.length > 20, `${rules.length} rules`);
  t.same(
    rules.filter(({ health }) => health === "err").map(({ name }) => name),
    [],
  );
  const file = join(production.folder, "monitor/etc/prometheus/prometheus.yml");
  const checked = spawnSync("promtool", ["check", "config", file], { encoding: "utf8" });
  t.equal(checked.status, 0, checked.stdout + checked.stderr);
});

t.test("the document quotes the files as they are", async (t) => {
  const text = readFileSync(join(ROOT, "docs/operations.md"), "utf8");
  for (const [, file = "", quoted] of text.matchAll(/<!-- (examples\/production\/\S+) -->\n```\w+\n([\s\S]*?)```/g))
    t.ok(readFileSync(join(ROOT, file), "utf8").includes(quoted ?? ""), file);
});
t.teardown(() => agent.destroy());
