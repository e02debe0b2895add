/** `coatcheck top`: what it reads, what it makes of it, and how that looks on a terminal of any size. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { parseOpenMetrics } from "../src/cli/open-metrics.ts";
import { Change } from "../src/cli/top/change.ts";
import { type Failure, figuresOf, type Reading } from "../src/cli/top/figures.ts";
import { PANELS } from "../src/cli/top/panels.ts";
import { duration, foreign, percent, sparkline } from "../src/cli/top/text.ts";
import { pressed } from "../src/cli/top/top.ts";
import { firstView, overflowOf, render, renderAll, type View } from "../src/cli/top/view.ts";
import { METRICS } from "../src/observe/names.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { COMPILE_CACHE, run } from "./support/command.ts";
import { freePort, startApp, startGateway, startHttp, type Teardown } from "./support/servers.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const MAIN = join(ROOT, "src/main.ts");
const COLOURLESS = { colour: false, unicode: true };

t.test("a scrape is read: labels, exemplars, escapes; what makes no sense is passed over", async (t) => {
  const scrape = parseOpenMetrics(
    [
      "# TYPE a counter",
      'a_total{path="x\\"y\\\\z\\nw",empty=""} 3 1795657286.39',
      'a_total{path="}"} 4.5e-1',
      "a_total_more 7",
      'b_bucket{le="+Inf",x="1"} 7 # {trace_id="4ef5"} 0.2 1795657286.39',
      "c 1",
      "d NaN",
      "e +Inf",
      "nonsense",
      'open{x="1" 5',
      "open{x=1} 5",
      'twice{x="1"y="2"} 5',
      "{} 5",
      "f 12e",
      "# EOF",
    ].join("\n"),
  );
  t.same(Object.fromEntries(scrape), {
    a_total: [
      { labels: { path: 'x"y\\z\nw', empty: "" }, value: 3 },
      { labels: { path: "}" }, value: 0.45 },
    ],
    a_total_more: [{ labels: {}, value: 7 }],
    b_bucket: [{ labels: { le: "+Inf", x: "1" }, value: 7 }],
    c: [{ labels: {}, value: 1 }],
    e: [{ labels: {}, value: Number.POSITIVE_INFINITY }],
  });
  const endless = parseOpenMetrics("a 1\n".repeat(300_000));
  t.equal(endless.get("a")?.length, 200_000);
});

t.test("rates and quantiles are those of the time between; a restart gives no negative ones", async (t) => {
  const before = parseOpenMetrics('c_total{x="1"} 10\nc_total{x="2"} 100\n');
  const now = parseOpenMetrics('c_total{x="1"} 14\nc_total{x="2"} 6\nc_total{x="3"} 2\n');
  const change = new Change(before, now, 2);
  t.same(
    change.counters("c_total").map(({ labels, rate, total }) => [labels.x, rate, total]),
    [
      ["1", 2, 14],
      ["2", 3, 6],
      ["3", 1, 2],
    ],
  );
  t.same([...change.by("c_total", ({ x }) => (x === "1" ? undefined : "others"))], [["others", { rate: 4, total: 8 }]]);
  t.equal(change.gauge("none"), undefined);
  t.same(new Change(now, now, 0).counters("c_total")[0]?.rate, 0, "two looks at once divide by nothing");

  const histogram = (counts: readonly number[]) =>
    parseOpenMetrics(["0.1", "0.2", "0.4", "+Inf"].map((le, n) => `h_bucket{le="${le}"} ${counts[n]}\n`).join(""));
  const quantiles = new Change(histogram([5, 5, 5, 5]), histogram([5, 55, 105, 105]), 1).quantiles("h");
  t.match(quantiles, { count: 100, p50: 0.2 });
  t.ok(Math.abs((quantiles.p95 ?? 0) - 0.38) < 1e-9, String(quantiles.p95));
  t.match(new Change(undefined, histogram([0, 0, 0, 9]), 1).quantiles("h"), { p50: 0.4 }, "beyond the last bound");
  t.match(new Change(histogram([1, 1, 1, 1]), histogram([1, 1, 1, 1]), 1).quantiles("h"), { count: 0, p50: undefined });
});

const FAILURE: Failure = {
  time: "2026-11-26T03:00:00.000Z",
  method: "GET",
  path: "/reports/\u001b[2J\u0007\u{1f4a5}",
  route: "*/reports",
  status: 502,
  cause: "connection_refused",
  message: "connect ECONNREFUSED 10.0.0.5:3000",
  traceId: "4ef58201fa9f7879c8878344df376c45",
};

/** A gateway at 3 a.m.: two readings, ten seconds apart. */
function readings(): [before: Reading, now: Reading] {
  const text = (n: number) => `
coatcheck_build_info{version="0.9.0",node_version="26.1.0"} 1
process_start_time_seconds 1000
http_server_active_requests{http_request_method="GET",url_scheme="http"} 7
http_server_request_duration_seconds_count{http_route="*/",http_response_status_code="200"} ${900 * n}
http_server_request_duration_seconds_bucket{http_route="*/",le="0.1"} ${900 * n}
http_server_request_duration_seconds_bucket{http_route="*/",le="+Inf"} ${900 * n}
http_server_request_duration_seconds_count{http_route="*/reports",http_response_status_code="502",error_type="connection_refused"} ${100 * n}
http_server_request_duration_seconds_bucket{http_route="*/reports",le="0.1"} 0
http_server_request_duration_seconds_bucket{http_route="*/reports",le="5"} ${100 * n}
http_server_request_duration_seconds_bucket{http_route="*/reports",le="+Inf"} ${100 * n}
coatcheck_session_resolutions_total{outcome="hit",source="cache"} ${600 * n}
coatcheck_session_resolutions_total{outcome="hit",source="store"} ${200 * n}
coatcheck_session_resolutions_total{outcome="malformed",source="none"} ${200 * n}
coatcheck_session_resolutions_total{outcome="absent",source="none"} ${500 * n}
coatcheck_session_logouts_total{reason="expired"} ${3 * n}
coatcheck_session_logouts_total{reason="signature"} ${40 * n}
coatcheck_session_store_up{store="redis"} 0
coatcheck_session_feed{state="tracking"} 0
coatcheck_session_feed{state="lost"} 1
coatcheck_session_store_resting 1
coatcheck_session_store_failures_total{reason="timeout"} ${5 * n}
coatcheck_session_operations_total{operation="find",status="error",store="redis"} ${20 * n}
coatcheck_session_operation_duration_seconds_count{operation="find",store="redis"} ${200 * n}
coatcheck_session_operation_duration_seconds_bucket{operation="find",le="0.5"} ${200 * n}
coatcheck_session_operation_duration_seconds_bucket{operation="find",le="+Inf"} ${200 * n}
coatcheck_session_cache_entries 321
`;
  const reading = (n: number): Reading => ({
    scrape: parseOpenMetrics(text(n)),
    errors: Array.from({ length: 12 }, () => FAILURE),
    at: 5_000_000 + n * 10_000,
  });
  return [reading(1), reading(2)];
}

t.test("what an operator sees first is right", async (t) => {
  const [before, now] = readings();
  const figures = figuresOf(now, before);
  t.match(figures, {
    version: "0.9.0",
    seconds: 10,
    uptimeSeconds: 4020,
    restarted: false,
    requests: { rate: 100, inFlight: 7, errorRatio: 0.1 },
    recognisedRatio: 0.8,
    cache: { entries: 321, hitRatio: 0.75 },
    store: { kind: "redis", up: false, feed: "lost", resting: 1, rate: 20 },
  });
  t.match(figures.routes, [
    { name: "*/", rate: 90, errorRate: 0 },
    { name: "*/reports", rate: 10, errorRate: 10 },
  ]);
  t.match(figures.causes, [{ name: "connection_refused", rate: 10, total: 200 }]);
  t.match(figures.store.operations, [{ name: "find", rate: 20, errorRate: 2 }]);
  t.same(
    figures.surprises.map(({ name, total }) => [name, total]),
    [["signature", 80]],
  );
  const restarted = {
    ...now,
    scrape: new Map([...now.scrape, ["process_start_time_seconds", [{ labels: {}, value: 5_015 }]]]),
  };
  t.match(
    figuresOf(restarted, before),
    { restarted: true, seconds: 5, requests: { rate: 400 } },
    "all of the new process",
  );
  const reasons = METRICS.coatcheck_session_logouts_total.help + METRICS.coatcheck_session_logouts_total.advice;
  for (const reason of ["expired", "ended"]) t.match(reasons, new RegExp(`\\b${reason}\\b`), "no surprise");
  t.match(figuresOf(before, undefined), { sinceStart: true, seconds: 4010 });
});

const view = (changes: Partial<View> = {}): View => {
  const [before, now] = readings();
  const history = [1, 5, 100];
  return { ...firstView("http://10.0.0.7:9090", 2000, figuresOf(now, before)), history, ...changes };
};

t.test("the view fits whatever the terminal, and never commands it", async (t) => {
  for (const [columns, rows] of [
    [200, 70],
    [80, 23],
    [60, 19],
    [40, 12],
    [20, 4],
    [12, 2],
  ] as const) {
    for (const panel of PANELS) {
      for (const changes of [{}, { help: true }, { trouble: "asking again: nothing listens there" }, { offset: 7 }]) {
        const lines = render(view({ panel, ...changes }), { columns, rows }, COLOURLESS);
        t.ok(lines.length <= rows, `${lines.length} of ${rows} rows`);
        for (const line of lines) {
          if ([...line].length > columns) t.fail(`${columns}x${rows} ${panel}: ${line}`);
          if (/[\p{Cc}\p{Cf}]/u.test(line)) t.fail(`commands the terminal: ${JSON.stringify(line)}`);
        }
        const ascii = render(view({ panel, ...changes }), { columns, rows }, { colour: false, unicode: false });
        t.notMatch(ascii.join(""), /[^\x20-\x7e]/);
        t.equal(ascii.length, lines.length);
      }
    }
  }
});

t.test("80 columns and 24 rows show what is wrong", async (t) => {
  const size = { columns: 80, rows: 23 };
  const screen = (changes: Partial<View>) => render(view(changes), size, COLOURLESS).join("\n");
  const routes = screen({});
  t.match(routes, /^coatcheck 0\.9\.0 {2}http:\/\/10\.0\.0\.7:9090 {2}up 1 h 7 min .*every 2 s {2}\d\d:\d\d:\d\d$/m);
  t.match(routes, /^requests 100\/s · 7 in flight · failed 10\.0 % · ▁▁█$/m);
  t.match(routes, /^store {4}redis DOWN · .* · feed lost · 1 resting · failing$/m);
  t.match(routes, /^log-outs surprise 4\.0\/s, 80 in all · signature 80$/m);
  t.match(routes, /^\[1 routes\] 2 sessions {2}3 store {2}4 errors .*\? help {2}q quit$/m);
  t.match(routes, /^\*\/reports +10\.0 +100 % /m);
  t.match(screen({ order: "errors" }), /FAILED\*[^\n]*\n\*\/reports/, "sorted by failures");
  t.match(screen({ panel: "sessions" }), /^hit +80\.0 +1,600 /m);
  t.match(screen({ panel: "store" }), /^find +20\.0 +10\.0 % /m);
  const errors = screen({ panel: "errors" });
  t.match(errors, /^\d\d:\d\d:\d\d 502 connection_refused {2}GET \/reports\/\?\[2J\?\?\? {2}\(route \*\/reports\)$/m);
  t.match(errors, `  ${FAILURE.traceId}  ${FAILURE.message}`, "the trace id whole");
  t.match(errors, /^… \d+ more lines \(arrow down\)$/m);
  t.match(screen({ paused: true }), /paused/);
  t.match(screen({ trouble: "asking again: refused" }), /no answer[\s\S]*▲ asking again: refused/);
  t.match(screen({ restartedAt: 5_020_000 }), "▲ the gateway has been restarted");
  t.match(screen({ help: true }), /quit/);
  const coloured = render(view(), size, { colour: true, unicode: true }).join("\n");
  t.match(coloured, "\u001b[31mDOWN\u001b[39m");

  const high = render(view(), { columns: 80, rows: 70 }, COLOURLESS).join("\n");
  for (const heading of ["SESSIONS", "STORE", "ERRORS"]) t.match(high, new RegExp(`^${heading}$`, "m"));
  t.match(renderAll(view(), COLOURLESS), FAILURE.traceId);
});

t.test("keys", async (t) => {
  const at = view();
  t.match(pressed("3", at), { panel: "store", offset: 0 });
  t.match(pressed("tab", at), { panel: "sessions" });
  t.match(pressed("left", at), { panel: "errors" });
  t.match(pressed("s", at), { order: "errors" });
  t.match(pressed("space", at), { paused: true });
  t.match(pressed("?", at), { help: true });
  t.match(pressed("x", view({ help: true })), { help: false });
  t.match(pressed("down", at), { offset: 1 });
  t.match(pressed("up", at), { offset: 0 });
  const size = { columns: 80, rows: 23 };
  const long = view({ panel: "errors" });
  const overflow = overflowOf(long, size);
  const last = render({ ...long, offset: overflow }, size, COLOURLESS);
  t.ok(overflow > 0);
  t.notMatch(last.at(-1), "more lines");
  t.equal(overflowOf(view({ panel: "errors" }), { columns: 80, rows: 70 }), 0);
});

t.test("numbers as people read them", async (t) => {
  t.same(
    [undefined, 0.0000421, 0.0123, 0.25, 1.5, 61].map((seconds) => duration(seconds)),
    ["-", "0.04 ms", "12.3 ms", "250 ms", "1.5 s", "61 s"],
  );
  t.same(
    [undefined, 0, 0.004, 0.5, 0.9999, 1].map((ratio) => percent(ratio)),
    ["-", "0 %", "0.4 %", "50.0 %", "99.99 %", "100 %"],
  );
  t.equal(sparkline([0, 0], 5), "▁▁");
  t.equal(foreign("a\u001b]0;x\u0007é"), "a?]0;x??");
});

t.test("every metric that it reads exists", async (t) => {
  const source = readFileSync(join(ROOT, "src/cli/top/figures.ts"), "utf8");
  const names = [...source.matchAll(/"((?:http|coatcheck)_[a-z_]+)"/g)].map(([, name = ""]) => name);
  t.ok(names.length > 15);
  const labels = ["http_request_method", "http_response_status_code", "http_route"];
  for (const name of names) if (!labels.includes(name)) t.ok(name in METRICS, name);
});

async function busyGateway(t: Teardown, adminPort = 0, settings = {}) {
  const app = await startApp(t);
  const gateway = await startGateway(t, {
    admin: { port: adminPort, ...settings },
    routes: [
      { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
      { match: { path: "/broken" }, upstream: "http://127.0.0.1:9", session: "none" },
    ],
  });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const cookie = cookiePair(started.setCookie[0]);
  let busy = true;
  t.teardown(() => {
    busy = false;
  });
  const keepOn = async () => {
    while (busy) {
      await ask(`${gateway.url}/`, { headers: { cookie } }).catch(() => {});
      await ask(`${gateway.url}/broken`).catch(() => {});
    }
  };
  keepOn();
  return gateway;
}

t.test("--once, and a pipe: what happens within an interval, as text", async (t) => {
  const gateway = await busyGateway(t);
  for (const args of [["--once"], []]) {
    const asked = ["top", "--admin", gateway.adminUrl, "--interval", "500ms", ...args];
    const { status, stdout, stderr } = await run(t, asked, { LANG: "C.UTF-8" });
    t.equal(stderr, "");
    t.equal(status, 0);
    t.match(stdout, /^requests [1-9][\d.,]*\/s · /m);
    t.match(stdout, /^\*\/broken +[\d.,]+ +100 % /m);
    t.match(stdout, /^hit +[1-9]/m);
    t.match(stdout, /^memory|^store {4}memory up/m);
    t.match(stdout, /^connection_refused +[\d.,]+ +\d+/m);
    t.match(stdout, /502 connection_refused {2}GET \/broken {2}\(route \*\/broken\)\n {2}[0-9a-f]{32} /);
    t.notMatch(stdout, "\u001b");
  }
  const { stdout } = await run(t, ["top", "--once", "--admin", gateway.adminUrl, "--interval", "500ms"]);
  t.notMatch(stdout, /[^\n\x20-\x7e]/, "without a UTF-8 locale: ASCII");
});

t.test("wrong usage, nobody there, a token that is refused, and another server", async (t) => {
  t.match(await run(t, ["top", "--interval", "10ms"]), {
    status: 2,
    stderr: /--interval must be a time from 500ms to 1m/,
  });
  t.match(await run(t, ["top", "twice"]), { status: 2, stderr: /unexpected "twice"/ });
  t.match(await run(t, ["top", "--help"]), { status: 0, stdout: /--once/ });
  const nobody = `http://127.0.0.1:${await freePort()}`;
  t.match(await run(t, ["top", "--once", "--admin", nobody]), {
    status: 1,
    stdout: "",
    stderr: /nothing listens there, so no Coatcheck is running at http:/,
  });
  const gateway = await busyGateway(t, 0, { token: "0123456789abcdef0123456789abcdef" });
  t.match(await run(t, ["top", "--once", "--admin", gateway.adminUrl], { COATCHECK_ADMIN_TOKEN: "wrong" }), {
    status: 1,
    stderr: /refuses the token: COATCHECK_ADMIN_TOKEN is not the right one/,
  });
  const { port } = await startHttp(t, (_req, res) => res.end('{"exchanges":[]}'));
  t.match(await run(t, ["top", "--once", "--admin", `http://127.0.0.1:${port}`]), {
    status: 1,
    stderr: /is not the admin listener of Coatcheck/,
  });
});

/** A command on a terminal of its own, by `script` of util-linux. */
function terminal(t: Teardown, size: { columns: number; rows: number }, args: readonly string[]) {
  const line = `stty rows ${size.rows} cols ${size.columns}; exec "$NODE" "$MAIN" ${args.join(" ")}`;
  const child = spawn("script", ["--quiet", "--flush", "--return", "--command", line, "/dev/null"], {
    env: {
      PATH: process.env.PATH,
      ...COMPILE_CACHE,
      NODE: process.execPath,
      MAIN,
      TERM: "xterm-256color",
      LANG: "C.UTF-8",
    },
    stdio: ["pipe", "pipe", "inherit"],
  });
  t.teardown(() => child.kill("SIGKILL"));
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (piece) => {
    text += piece;
  });
  return {
    /** Everything that was written, with its escape sequences. */
    text: () => text,
    /** The same from now on. */
    forget: () => {
      text = "";
    },
    type: (keys: string) => child.stdin.write(keys),
    ended: once(child, "close").then(([status]) => status),
  };
}

t.test("on a terminal: it draws, obeys keys, survives the end of the gateway, and leaves no trace", async (t) => {
  const adminPort = await freePort();
  const gateway = await busyGateway(t, adminPort);
  const screen = terminal(t, { columns: 80, rows: 24 }, ["top", "--admin", gateway.adminUrl, "--interval", "500ms"]);
  await until(() => /requests [\s\S]*\/s[\s\S]*\*\/broken/.test(screen.text()));
  t.ok(screen.text().startsWith("\u001b[?1049h"), "on the other buffer");
  t.match(screen.text(), "\u001b[?25l", "without a cursor");
  screen.type("2");
  await until(() => screen.text().includes("OUTCOME"));
  screen.type("\t");
  await until(() => screen.text().includes("OPERATION"));
  screen.type("4");
  await until(() => /GET \/broken/.test(screen.text()));
  screen.type("p");
  await until(() => screen.text().includes("paused"));
  screen.forget();
  screen.type("p");
  await until(() => /every 0\.5 s/.test(screen.text()));

  await gateway.gateway.close();
  await until(() => /no answer[\s\S]*asking again: nothing listens there/.test(screen.text()));
  screen.forget();
  await busyGateway(t, adminPort);
  await until(() => /every 0\.5 s/.test(screen.text()));

  screen.type("q");
  t.equal(await screen.ended, 0);
  t.ok(screen.text().trimEnd().endsWith("\u001b[?25h\u001b[?1049l"), "the cursor and the old buffer are back");
});

t.test("what draws is loaded by top alone", async (t) => {
  const seen = new Set<string>();
  const packages = new Set<string>();
  const follow = (file: string): void => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const [, from = ""] of readFileSync(file, "utf8").matchAll(
      /^(?:import|export) (?!type )[^;]*?from "([^"]+)";$/gms,
    )) {
      if (!from.startsWith(".")) packages.add(from);
      else if (existsSync(join(dirname(file), from))) follow(join(dirname(file), from));
    }
  };
  follow(join(ROOT, "src/cli/run.ts"));
  t.ok(packages.has("undici") && seen.size > 60, "the walk sees what is loaded");
  t.notOk(packages.has("log-update") || packages.has("ansi-escapes"));
  t.same(
    [...seen].filter((file) => relative(ROOT, file).startsWith("src/cli/top/")),
    [],
  );
});
