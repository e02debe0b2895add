/**
 * A real Prometheus reads two real gateways while people log in and out, attackers try their luck, Redis crashes, an
 * instance is restarted and an application is down. Every query of every panel and every rule has to give something
 * that makes sense; what they give is printed.
 */
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import t, { type Test } from "tap";
import { WebSocket } from "ws";
import { stringify } from "yaml";
import { ask, cookiePair, type Reply } from "./support/client.ts";
import { command, type Running } from "./support/command.ts";
import { dashboards, GRAFANA, panelQueries, rules, runbookQueries, variableQueries } from "./support/dashboards.ts";
import { startReceiver } from "./support/otlp.ts";
import { type Answer, type Prometheus, startPrometheus } from "./support/prometheus.ts";
import { comparedIn } from "./support/promql.ts";
import { makeCertificate } from "./support/redis.ts";
import { eventually } from "./support/resources.ts";
import {
  freePort,
  type RedisServer,
  SECRET,
  startApp,
  startRedis,
  startUpstream,
  temporaryFolder,
  type Upstream,
} from "./support/servers.ts";
import { RESETTING, TestTarget, WELL } from "./support/targets.ts";
import { startWebSocketApp } from "./support/websockets.ts";

const OLD_SECRET = "the secret before, that has 32 letters";
const USERS = 12;

interface Site {
  readonly gateways: readonly Instance[];
  readonly redis: RedisServer;
  readonly prometheus: Prometheus;
  /** An application that never answers. */
  readonly silent: Upstream;
}

interface Instance {
  readonly url: string;
  readonly adminUrl: string;
  readonly port: number;
  start(): Promise<void>;
  stop(): Promise<void>;
  /** @param extra settings to be taken over while it runs. */
  reload(extra: Readonly<Record<string, unknown>>): void;
}

/** The process of a gateway, with addresses that it keeps. */
async function instance(t: Test, settings: Readonly<Record<string, unknown>>, environment: Record<string, string>) {
  const [port, adminPort] = [await freePort(), await freePort()];
  const admin = { port: adminPort, ...(settings.admin as object | undefined) };
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  const write = (extra: Readonly<Record<string, unknown>>) =>
    writeFileSync(
      file,
      stringify({ ...settings, listen: { host: "127.0.0.1", port, trustedProxies: ["192.0.2.1"] }, admin, ...extra }),
    );
  write({});
  let running: Running | undefined;
  const url = `http://127.0.0.1:${port}`;
  const self: Instance = {
    url,
    adminUrl: `http://127.0.0.1:${adminPort}`,
    port: adminPort,
    start: async () => {
      const started = command(t, ["--config", file], environment);
      running = started;
      await eventually(`the gateway serves\n${started.stderr()}`, () =>
        ask(`${url}/livez`).then(
          () => true,
          () => false,
        ),
      );
    },
    stop: async () => {
      running?.child.kill("SIGTERM");
      await running?.ended;
    },
    reload: (extra) => {
      write(extra);
      running?.child.kill("SIGHUP");
    },
  };
  await self.start();
  return self;
}

async function startSite(t: Test): Promise<Site> {
  const redis = await startRedis(t);
  const receiver = await startReceiver(t);
  const app = await startApp(t);
  const broken = await startUpstream(t, (_received, _req, res) => res.writeHead(500).end());
  const silent = await startUpstream(t, () => {});
  const chat = await startWebSocketApp(t);
  const [steady, flapping] = await startPool(t);
  const down = `http://127.0.0.1:${await freePort()}`;
  const write = ["user", "cart"];
  const settings = {
    store: redis.url,
    session: {
      cookie: { name: "session", secure: false, secrets: [SECRET, OLD_SECRET] },
      // Short, so that somebody comes back too late.
      idleTimeout: "4s",
      bind: "user-agent",
      onMismatch: "deny",
      maxPerUser: 3,
    },
    routes: [
      { match: { path: "/" }, upstream: app.url, session: "optional", write },
      { match: { path: "/account" }, upstream: app.url, session: "required" },
      // These may not write, and the application tries to.
      { match: { path: "/set" }, upstream: app.url, session: "optional" },
      { match: { path: "/broken" }, upstream: broken.url, session: "none" },
      { match: { path: "/down" }, upstream: down, session: "none" },
      { match: { path: "/silent" }, upstream: silent.url, session: "none" },
      {
        match: { path: "/pool" },
        upstream: {
          targets: [steady.url, flapping.url.replace("127.0.0.1", "localhost")],
          health: { path: "/healthz", interval: "500ms", unhealthyAfter: 2 },
          ejection: { failures: 1, duration: "500ms", maxDuration: "1s" },
          retries: { budget: 0, minPerSecond: 1 },
          maxConnections: 1,
          queue: { size: 4, timeout: "5s" },
          resolve: { interval: "1s" },
        },
        session: "none",
      },
      { match: { path: "/chat" }, upstream: chat.url, session: "optional" },
      {
        match: { path: "/limited" },
        upstream: app.url,
        session: "optional",
        limits: { requests: { perAddress: { rate: "10/m", burst: 1 } } },
      },
    ],
    forwardAuth: { path: "/verify" },
    observe: { traces: { ratio: 0.2 }, log: { access: "errors" } },
  };
  const environment = {
    ...receiver.environment,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_BSP_SCHEDULE_DELAY: "500",
  };
  const first = await instance(t, settings, environment);
  const second = await instance(t, { ...settings, admin: { tls: await certificate(t) } }, environment);
  const prometheus = await startPrometheus(t, {
    targets: [
      { port: first.port, scheme: "http" },
      { port: second.port, scheme: "https" },
    ],
    ruleFiles: [await eagerRules(t), join(GRAFANA, "prometheus/alerts.yaml")],
  });
  return { gateways: [first, second], redis, prometheus, silent };
}

/** One target that is slow, and one that fails for half of the time. */
async function startPool(t: Test): Promise<[TestTarget, TestTarget]> {
  const [steady, flapping] = [await TestTarget.start(t), await TestTarget.start(t)];
  steady.behaviour = (req, res) => setTimeout(() => WELL(req, res), 20);
  const flap = setInterval(() => {
    flapping.behaviour = flapping.behaviour === WELL ? RESETTING : WELL;
  }, 2_500);
  t.teardown(() => clearInterval(flap));
  return [steady, flapping];
}

/** Groups with an interval of their own begin at some time within it; here all of them begin at once. */
async function eagerRules(t: Test): Promise<string> {
  const file = join(await temporaryFolder(t), "rules.yaml");
  writeFileSync(
    file,
    readFileSync(join(GRAFANA, "prometheus/rules.yaml"), "utf8").replace("interval: 3m", "interval: 1s"),
  );
  return file;
}

async function certificate(t: Test): Promise<{ cert: string; key: string }> {
  const folder = await temporaryFolder(t);
  makeCertificate(folder);
  return { cert: join(folder, "server.crt"), key: join(folder, "server.key") };
}

/** A cookie that nobody gave out, signed with a secret that may be ours. */
function invented(secret: string): string {
  const token = randomBytes(32).toString("base64url");
  return `session=${token}.${createHmac("sha256", secret).update(`session=${token}`).digest("base64url")}`;
}

interface Visitor {
  readonly user: string;
  readonly cookie: string;
  visits: number;
}

/** Much of what can happen to a gateway, again and again until the signal. */
class Traffic {
  readonly #site: Site;
  readonly #visitors: Visitor[] = [];
  readonly #left: Visitor[] = [];
  readonly #chats = new Set<Promise<unknown>>();
  #turn = 0;

  constructor(site: Site) {
    this.#site = site;
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#turn++;
      // An instance that is being restarted refuses connections.
      await Promise.allSettled([this.#normal(), this.#strange(), this.#operator()]);
      if (this.#chats.size < 2) this.#chat();
      if (this.#turn % 4 === 0)
        await Promise.allSettled(Array.from({ length: 8 }, () => this.#visit(undefined, "/pool")));
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    await Promise.all(this.#chats);
  }

  /** A WebSocket that is open for longer than Prometheus waits between two scrapes. */
  #chat(): void {
    const socket = new WebSocket(this.#url("/chat").replace("http:", "ws:"));
    const over = new Promise<void>((resolve) => {
      socket.on("close", () => resolve());
      socket.on("error", () => resolve());
      socket.on("open", () => socket.send("hello"));
    });
    const leave = setTimeout(() => socket.close(), 1_500);
    const chat = over.finally(() => {
      clearTimeout(leave);
      this.#chats.delete(chat);
    });
    this.#chats.add(chat);
  }

  #url(path = "/"): string {
    const { gateways } = this.#site;
    return `${gateways[this.#turn % gateways.length]?.url}${path}`;
  }

  async #logIn(user: string): Promise<void> {
    const body = JSON.stringify({ user: { id: user }, data: { cart: [this.#turn], forbidden: 1 } });
    const { setCookie } = await ask(this.#url("/start"), {
      method: "POST",
      body,
      headers: { "user-agent": "browser" },
    });
    const cookie = cookiePair(setCookie[0]);
    if (cookie !== "") this.#visitors.push({ user, cookie, visits: 0 });
  }

  #visit(cookie: string | undefined, path = "/", more: Readonly<Record<string, string>> = {}): Promise<Reply> {
    return ask(this.#url(path), {
      headers: { "user-agent": "browser", ...(cookie !== undefined && { cookie }), ...more },
    });
  }

  /** People: they come, look around, and leave; some log out, some come back too late. */
  async #normal(): Promise<void> {
    if (this.#visitors.length < USERS) await this.#logIn(`user-${this.#turn % USERS}`);
    for (const visitor of this.#visitors) visitor.visits++;
    await Promise.all(this.#visitors.slice(-6).map(({ cookie }) => this.#visit(cookie, "/account")));
    await this.#visit(undefined);
    const tired = this.#visitors[0];
    if (tired === undefined || tired.visits < 40) return;
    this.#visitors.shift();
    if (this.#turn % 2 === 0)
      await ask(this.#url("/end"), {
        method: "POST",
        body: "this",
        headers: { cookie: tired.cookie, "user-agent": "browser" },
      });
    this.#left.push(tired);
  }

  /** What should not happen, one of it at a time. */
  async #strange(): Promise<void> {
    const [one, two] = this.#visitors;
    const strange: (() => Promise<unknown>)[] = [
      () => this.#visit(invented(SECRET)),
      () => this.#visit(invented(OLD_SECRET)),
      () => this.#visit(invented("a secret that nobody has ever had")),
      () => this.#visit("session=nonsense"),
      () => this.#visit(`${one?.cookie}; ${two?.cookie}`),
      () => this.#visit(one?.cookie, "/", { "user-agent": "another" }),
      () =>
        this.#visit(one?.cookie, "/", {
          "x-user-id": "1",
          "x-user-name": "Ada",
          "x-user-email": "ada@example.com",
          "x_user-id": "1",
          connection: "x-user-id",
          "x-forwarded-for": "192.0.2.1",
          x_odd: "1",
        }),
      () => this.#visit(undefined, "/limited"),
      // By nobody who is trusted.
      () => this.#visit(undefined, "/verify"),
      () => this.#visit(undefined, "/broken"),
      () => this.#visit(undefined, "/down"),
      () => this.#visit(undefined, "/account"),
      () => this.#giveUp(),
      () =>
        ask(this.#url("/set"), {
          method: "POST",
          body: '{"cart":[1]}',
          headers: { cookie: one?.cookie, "user-agent": "browser" },
        }),
      () => this.#logIn("user-with-many-sessions"),
      () => this.#visit(this.#left.shift()?.cookie),
    ];
    await strange[this.#turn % strange.length]?.();
  }

  /** A client that goes away while the application is silent. */
  async #giveUp(): Promise<void> {
    const { silent } = this.#site;
    const socket = connect(Number(new URL(this.#url()).port), "127.0.0.1");
    await once(socket, "connect");
    socket.write("GET /silent HTTP/1.1\r\nHost: shop\r\n\r\n");
    await once(silent.server, "request");
    socket.destroy();
  }

  /** Ends the sessions of somebody now and then. */
  async #operator(): Promise<void> {
    if (this.#turn % 10 !== 0) return;
    const user = this.#visitors.at(-1)?.user;
    await ask(`${this.#site.gateways[0]?.adminUrl}/sessions?user=${user}`, { method: "DELETE" });
  }
}

/** Waits until Prometheus says so. */
function seen({ prometheus }: Site, query: string): Promise<unknown> {
  return eventually(query, async () => (await prometheus.query(query)).length > 0, 30_000, 200);
}

/** Everything that goes wrong, one after the other; Prometheus says when it has seen enough of each. */
async function trouble(site: Site): Promise<void> {
  const { gateways, redis } = site;
  const [first, second] = gateways;
  await seen(site, "min(count_over_time(up[1m])) >= 9");
  await redis.kill();
  await seen(site, "min(count_over_time((coatcheck_session_store_up == 0)[1m:500ms])) >= 4");
  await redis.start();
  await seen(site, 'sum(coatcheck_session_feed{state="tracking"}) == 2 and min(coatcheck_session_store_up) == 1');
  await redis.call("CONFIG", "SET", "maxmemory", 1);
  await seen(site, 'count_over_time(coatcheck_session_store_failures_total{reason="out-of-memory"}[1m]) >= 2');
  await redis.call("CONFIG", "SET", "maxmemory", 0);
  await second?.stop();
  await seen(site, "up == 0");
  await second?.start();
  await seen(site, "sum(up) == 2");
  first?.reload({ observe: { log: { level: "no such level" } } });
  await seen(site, 'coatcheck_config_reloads_total{result="refused"} > 0');
  await seen(site, 'count_over_time(ALERTS{alertname="CoatcheckConfigReloadFailed"}[1m]) >= 3');
  first?.reload({ cache: { maxAge: "20s" } });
  await seen(site, "max(count_over_time((coatcheck_config_restart_needed > 0)[30s:500ms])) >= 4");
  first?.reload({});
  await seen(site, 'coatcheck_config_reloads_total{result="applied"} > 1');
  await ask(`${first?.adminUrl}/debug/watch`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user: "user-1", for: "1m" }),
  });
  await seen(site, "sum(coatcheck_watches_active) > 0");
  await seen(site, "min(count_over_time(up[1m])) >= 22");
  // On a busy machine people and attackers are slower.
  for (const alert of RAISED) await seen(site, `count_over_time(ALERTS{alertname="${alert}"}[5m])`);
}

/** As Grafana would for a scrape interval of one second. */
function asGrafana(query: string): string {
  return query.replaceAll("$__rate_interval", "5s").replaceAll("$job", "coatcheck").replaceAll("$instance", ".+");
}

/** What a number of that unit can be in a test of a minute. */
const PLAUSIBLE: Readonly<Record<string, readonly [low: number, high: number]>> = {
  percentunit: [0, 4],
  s: [0, 90 * 86_400],
  bytes: [0, 4e9],
  bool_yes_no: [0, 1],
  none: [0, 1],
  short: [0, 10_000],
};
const RATE: readonly [number, number] = [0, 60 * 2000];

/** Panels that are right to show nothing but zeros here. */
const MAY_BE_ZERO = new Set([
  "Touches dropped",
  "Log lines dropped",
  // test/tls.test.ts has failed handshakes; the gateways here speak HTTP.
  "Failed TLS handshakes",
  // test/workers.test.ts kills some; the gateways here are single processes.
  "Workers that ended unasked",
  // test/streaming.test.ts and its like have applications that close under a request.
  "Requests sent again",
  // test/upstream-health.test.ts takes all targets away at once, test/upstreams.test.ts changes names.
  "Targets out of service B",
  "Ejections and returns C",
  "Health checks and names B",
  // Nothing is asked of the limits while Redis is away, or hardly.
  "Rate limits by oneself",
  // test/limits.test.ts has connections that are too many; these here are few.
  "Refused connections",
  // Between the signal and the last scrape there is hardly a moment.
  "Configurations in use, and draining B",
  "Spans B",
  "Evictions and invalidations A",
  "Resting servers and dropped touches B",
]);

interface Finding {
  readonly name: string;
  readonly series: number;
  /** The last of the first series, and the greatest of all. */
  readonly sample: number;
  readonly highest: number;
}

function findingOf(name: string, answers: readonly Answer[]): Finding {
  const all = answers.flatMap(({ values }) => values);
  return { name, series: answers.length, sample: answers[0]?.values.at(-1) ?? Number.NaN, highest: Math.max(...all) };
}

function tableOf(findings: readonly Finding[]): string {
  const number = (value: number) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "-");
  const rows = [
    ["query", "series", "sample", "highest"],
    ...findings.map(({ name, series, sample, highest }) => [name, String(series), number(sample), number(highest)]),
  ];
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) =>
      row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  "),
    )
    .join("\n");
}

async function checkPanels(t: Test, { prometheus }: Site): Promise<void> {
  const findings: Finding[] = [];
  for (const { dashboard, panel, target } of panelQueries()) {
    const answers = await prometheus.queryAll(asGrafana(target.expr));
    const short = `${panel.title} ${target.refId}`;
    const finding = findingOf(`${dashboard}: ${short}`, answers);
    findings.push(finding);
    t.ok(answers.length > 0, `${finding.name} shows something`);
    t.ok(answers.length <= 60, `${finding.name}: ${answers.length} series, and no more`);
    const unit = panel.type === "table" ? "short" : (panel.fieldConfig?.defaults.unit ?? "");
    const [low, high] = PLAUSIBLE[panel.type === "heatmap" ? "reqps" : unit] ?? RATE;
    const all = answers.flatMap(({ values }) => values);
    t.ok(
      all.every((value) => value >= low && value <= high),
      `${finding.name}: within ${low} and ${high}`,
    );
    if (!MAY_BE_ZERO.has(short) && !MAY_BE_ZERO.has(panel.title)) t.ok(finding.highest > 0, `${finding.name}: above 0`);
  }
  t.comment(tableOf(findings));
}

async function checkAnnotations(t: Test, { prometheus }: Site): Promise<void> {
  const { annotations } = Object.values(dashboards())[0] ?? {};
  for (const { name, expr } of annotations?.list ?? []) {
    const answers = await prometheus.queryAll(asGrafana(expr));
    t.ok(answers.length > 0, `${name} are marked`);
    if (name === "Restarts")
      t.ok(
        answers.some(({ values }) => new Set(values).size === 2),
        "one instance started twice",
      );
  }
}

/** The choices above the dashboards, and what the runbook tells people to type. */
async function checkOthers(t: Test, { prometheus, gateways }: Site): Promise<void> {
  for (const { file, label, query } of variableQueries()) {
    const answers = await prometheus.queryAll(asGrafana(query));
    const choices = new Set(answers.map(({ labels }) => labels[label]));
    t.equal(choices.size, label === "job" ? 1 : gateways.length, `${file}: choices of ${label}`);
  }
  for (const query of runbookQueries()) {
    t.ok((await prometheus.queryAll(query)).length > 0, query);
  }
}

interface RuleState {
  readonly name: string;
  readonly health: string;
  readonly lastError?: string;
}

/** The one alert for which nothing has to be found: its targets are there. */
const NOTHING_IS_ABSENT = "CoatcheckAbsent";

async function checkRules(t: Test, { prometheus }: Site): Promise<void> {
  const { groups } = await prometheus.ask<{ groups: { rules: RuleState[] }[] }>("rules");
  const states = groups.flatMap((group) => group.rules);
  t.equal(states.length, rules("rules.yaml").length + rules("alerts.yaml").length);
  for (const { name, health, lastError } of states) t.equal(health, "ok", `${name} ${lastError ?? ""}`);

  const findings: Finding[] = [];
  for (const { record = "" } of rules("rules.yaml")) {
    const finding = findingOf(record, await prometheus.queryAll(record));
    findings.push(finding);
    t.ok(finding.series > 0, `${record} is recorded`);
    const high = /_per_|objective/.test(record) ? 1 : 100_000;
    t.ok(finding.highest >= 0 && finding.highest <= high, `${record}: ${finding.highest}`);
  }
  for (const { alert = "", expr } of rules("alerts.yaml")) {
    for (const compared of comparedIn(expr)) {
      const finding = findingOf(
        `${alert}: ${compared.replaceAll(/\s+/g, " ").slice(0, 90)}`,
        await prometheus.queryAll(compared),
      );
      findings.push(finding);
      t.ok(finding.series > 0 || alert === NOTHING_IS_ABSENT, finding.name);
    }
  }
  t.comment(tableOf(findings));
}

/** Alerts that what happened here raises; they would fire if it went on. */
const RAISED = [
  "CoatcheckAvailabilityBudgetBurn",
  "CoatcheckCacheBypassed",
  "CoatcheckDown",
  "CoatcheckSpoofAttempts",
  "CoatcheckStoreDown",
  "CoatcheckSurpriseLogouts",
  "CoatcheckUpstreamDown",
  "CoatcheckConfigReloadFailed",
];

t.test("every panel, annotation, rule and alert gives what makes sense", { timeout: 110_000 }, async (t) => {
  const site = await startSite(t);
  const done = new AbortController();
  const traffic = new Traffic(site).run(done.signal);
  try {
    await trouble(site);
  } finally {
    done.abort();
    await traffic;
  }
  await t.test("panels", (t) => checkPanels(t, site));
  await t.test("annotations", (t) => checkAnnotations(t, site));
  await t.test("choices and runbook", (t) => checkOthers(t, site));
  await t.test("rules and alerts", (t) => checkRules(t, site));
  await t.test("what happened would raise alerts", async (t) => {
    const raised = (await site.prometheus.queryAll("count by (alertname) (ALERTS)")).map(
      ({ labels }) => labels.alertname,
    );
    for (const alert of RAISED) t.ok(raised.includes(alert), `${alert} is pending`);
    t.comment(`raised: ${raised.join(", ")}`);
  });
  await t.test("points on the lines lead to traces", async (t) => {
    const now = Date.now() / 1000;
    for (const metric of ["http_server_request_duration_seconds", "coatcheck_proxy_overhead_seconds"]) {
      const found = await site.prometheus.ask<{ exemplars: { labels: Record<string, string> }[] }[]>(
        "query_exemplars",
        {
          query: `${metric}_bucket`,
          start: String(now - 120),
          end: String(now),
        },
      );
      const ids = found.flatMap(({ exemplars }) => exemplars.map(({ labels }) => labels.trace_id));
      t.match(ids[0], /^[0-9a-f]{32}$/, metric);
    }
  });
});
