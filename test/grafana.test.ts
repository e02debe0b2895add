/** Dashboards, rules, alerts and runbook: they name only what there is, all of it, and say what an operator needs. */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { parse } from "yaml";
import { until } from "./support/client.ts";
import {
  type Dashboard,
  dashboards,
  GRAFANA,
  KNOWN,
  metricOf,
  type Panel,
  panelQueries,
  RUNBOOK,
  rules,
  runbookQueries,
  variableQueries,
} from "./support/dashboards.ts";
import { valuesOf } from "./support/label-values.ts";
import { ROOT } from "./support/project.ts";
import { type Matcher, type ParsedQuery, parseQuery, type Selector } from "./support/promql.ts";
import { startGateway } from "./support/servers.ts";

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");

const ALL = Object.entries(dashboards());
const RECORDED = rules("rules.yaml");
const ALERTS = rules("alerts.yaml");
const ALERT_NAMES = [...new Set(ALERTS.flatMap(({ alert }) => alert ?? []))];
const RECORDED_NAMES = RECORDED.flatMap(({ record }) => record ?? []);
const RUNBOOK_HEADINGS = [...RUNBOOK.matchAll(/^## (.+)$/gm)].map(([, heading = ""]) => heading);
const RUNBOOK_URL = "https://coatcheck.example/docs/runbook.md";

/** From Grafana's list; the ones that we use. */
const UNITS = ["none", "short", "percentunit", "s", "bytes", "Bps", "reqps", "ops", "cps", "cpm", "bool_yes_no"];
/** Of Prometheus: what every target has. */
const TARGET_LABELS = ["job", "instance"];

interface Named {
  /** Where it stands, for a person. */
  readonly where: string;
  readonly query: string;
}

function annotationQueries(): Named[] {
  return ALL.flatMap(([file, { annotations }]) =>
    annotations.list.map(({ name, expr }) => ({ where: `${file}: annotation ${name}`, query: expr })),
  );
}

const PANEL_QUERIES: readonly Named[] = panelQueries().map(({ dashboard, panel, target }) => ({
  where: `${dashboard}: ${panel.title} ${target.refId}`,
  query: target.expr,
}));
const RULE_QUERIES: readonly Named[] = [...RECORDED, ...ALERTS].map(({ record, alert, expr }) => ({
  where: `${record ?? alert}`,
  query: expr,
}));
const EVERY_QUERY = [
  ...PANEL_QUERIES,
  ...annotationQueries(),
  ...variableQueries().map(({ file, label, query }) => ({ where: `${file}: variable ${label}`, query })),
  ...RULE_QUERIES,
  ...runbookQueries().map((query) => ({ where: "runbook", query })),
];

/** Labels that a series can have; `undefined`: there is no such series. */
function labelsOf(series: string, scraped: ReadonlyMap<string, readonly string[]>): readonly string[] | undefined {
  if (series === "up") return TARGET_LABELS;
  if (series === "ALERTS") return ["alertname", "alertstate", "severity", "window", ...TARGET_LABELS];
  const rule = RECORDED.find(({ record }) => record === series);
  if (rule !== undefined) return [...TARGET_LABELS, ...labelsIn(parseQuery(rule.expr), scraped)];
  const metric = KNOWN[metricOf(series)];
  if (metric === undefined) return scraped.get(series) && [...(scraped.get(series) ?? []), ...TARGET_LABELS];
  // A histogram has no series of its bare name.
  if (metric.type === "histogram" && metricOf(series) === series) return undefined;
  return [...metric.labels, ...TARGET_LABELS, ...(series.endsWith("_bucket") ? ["le"] : [])];
}

function labelsIn({ selectors }: ParsedQuery, scraped: ReadonlyMap<string, readonly string[]>): string[] {
  return selectors.flatMap(({ metric }) => labelsOf(metric, scraped) ?? []);
}

/** Series and their labels of a gateway that has answered a request, and has had to collect garbage. */
async function scrape(t: Test): Promise<Map<string, string[]>> {
  const gateway = await startGateway(t, {});
  await fetch(gateway.url);
  const metrics = await until(async () => {
    const text = await gateway.metrics();
    return text.includes("nodejs_gc_duration_seconds_count{") ? text : undefined;
  });
  const series = new Map<string, string[]>();
  for (const [, name = "", labels = ""] of metrics.matchAll(/^(\w+)(?:\{(.*?)\})? /gm)) {
    series.set(name, [...(series.get(name) ?? []), ...[...labels.matchAll(/(\w+)="/g)].map(([, label = ""]) => label)]);
  }
  return series;
}

t.test("every metric and label in a query, a rule or a document is there", async (t) => {
  const scraped = await scrape(t);
  t.ok(EVERY_QUERY.length > 150, `${EVERY_QUERY.length} queries`);
  for (const { where, query } of EVERY_QUERY) {
    const parsed = parseQuery(query);
    for (const { metric, matchers } of parsed.selectors) {
      const labels = labelsOf(metric, scraped);
      t.ok(labels, `${where}: there is a series ${metric}`);
      for (const { label } of matchers) t.ok(labels?.includes(label), `${where}: ${metric} has the label ${label}`);
    }
    const labels = labelsIn(parsed, scraped);
    for (const label of parsed.labels) t.ok(labels.includes(label), `${where}: some series has the label ${label}`);
  }
});

t.test("every name in a document is that of a metric", async (t) => {
  const names = /\b(?:coatcheck|http_server|http_client|db_client|process|nodejs)_[a-z0-9_]*[a-z0-9]\b/g;
  const scraped = await scrape(t);
  for (const file of ["README.md", ...readdirSync(join(ROOT, "docs")).map((name) => `docs/${name}`)]) {
    for (const [name] of read(file).matchAll(names)) {
      t.ok(KNOWN[metricOf(name)] ?? scraped.has(name), `${file}: ${name}`);
    }
  }
});

t.test("every metric is in a panel or an alert", async (t) => {
  const used = new Set(
    [...PANEL_QUERIES, ...RULE_QUERIES].flatMap(({ query }) =>
      parseQuery(query).selectors.map(({ metric }) => metricOf(metric)),
    ),
  );
  for (const metric of Object.keys(KNOWN)) t.ok(used.has(metric), metric);
});

/** The words that a matcher can mean, of those that there are. */
function matched({ operator, value }: Matcher, values: readonly string[]): readonly (readonly [string, boolean])[] {
  const alternatives = operator.endsWith("~") ? value.split("|") : [value];
  return alternatives.map((alternative) => {
    const pattern = operator.endsWith("~") ? new RegExp(`^(?:${alternative})$`) : undefined;
    return [alternative, values.some((word) => pattern?.test(word) ?? word === alternative)] as const;
  });
}

t.test("every value that a query asks for is one that the code can give", async (t) => {
  let checked = 0;
  for (const { where, query } of EVERY_QUERY) {
    for (const { metric, matchers } of parseQuery(query).selectors) {
      for (const matcher of matchers) {
        if (TARGET_LABELS.includes(matcher.label) || metric === "ALERTS") continue;
        const values = valuesOf(metric, matcher.label);
        t.ok(values, `${where}: ${matcher.label} is from a closed set`);
        for (const [word, there] of matched(matcher, values ?? [])) {
          t.ok(there, `${where}: ${metric}{${matcher.label}="${word}"}`);
          checked++;
        }
      }
    }
  }
  t.ok(checked > 50, `${checked} values`);
});

t.test("a surprise is every reason but two, everywhere", async (t) => {
  for (const { where, query } of EVERY_QUERY) {
    for (const { metric, matchers } of parseQuery(query).selectors) {
      const reason = matchers.find(({ label }) => label === "reason");
      if (metric !== "coatcheck_session_logouts_total" || reason === undefined) continue;
      const surprises = (valuesOf(metric, "reason") ?? []).filter((word) => !["", "expired", "ended"].includes(word));
      if (reason.value.includes("lost")) t.same(reason.value.split("|").sort(), [...surprises].sort(), where);
    }
  }
});

// The rules of Grafana's dashboard-linter, and some of our own.

for (const [file, dashboard] of ALL) {
  t.test(`${file}: the dashboard itself`, async (t) => {
    t.equal(`${dashboard.uid}.json`, file, "a fixed uid");
    t.notOk("id" in dashboard, "no id: it is of one Grafana only");
    t.match(dashboard.title, /^Coatcheck \/ \w+$/);
    t.same(dashboard.tags, ["coatcheck"]);
    t.equal(dashboard.editable, false);
    t.ok(
      dashboard.links.some(({ type, tags }) => type === "dashboards" && tags?.includes("coatcheck")),
      "leads to the others",
    );
    t.ok(
      dashboard.links.some(({ url }) => url === RUNBOOK_URL),
      "leads to the runbook",
    );
    const annotations = dashboard.annotations.list.map(({ expr }) => parseQuery(expr).selectors[0]);
    t.match(annotations, [
      { metric: "process_start_time_seconds" },
      { metric: "coatcheck_config_reloads_total", call: "increase" },
    ]);
    for (const selector of annotations) if (selector !== undefined) checkSelector(t, "annotation", selector);
    const [first, second] = dashboard.panels;
    t.match(first, { type: "row", title: "Is it all right?" });
    t.equal(second?.type, "stat");
  });

  t.test(`${file}: variables`, async (t) => {
    const [datasource, ...chosen] = dashboard.templating.list;
    t.match(datasource, { name: "datasource", label: "Data Source", type: "datasource", query: "prometheus" });
    t.same(
      chosen.map(({ name }) => name),
      ["job", "instance"],
    );
    for (const variable of chosen) {
      t.match(variable, { type: "query", multi: true, includeAll: true, allValue: ".+", refresh: 2 });
      t.match(variable.datasource, { uid: "${datasource}" });
      t.equal(String(variable.label).toLowerCase(), variable.name);
    }
  });

  t.test(`${file}: panels`, async (t) => {
    const ids = dashboard.panels.map(({ id }) => id);
    t.equal(new Set(ids).size, ids.length, "ids differ");
    const titles = dashboard.panels.map(({ title }) => title);
    t.same(titles, [...new Set(titles)], "so do titles");
    for (const panel of dashboard.panels) {
      if (panel.type !== "row") checkPanel(t, panel);
    }
    t.same(overlaps(dashboard), [], "none covers another");
  });

  t.test(`${file}: targets`, async (t) => {
    for (const panel of dashboard.panels) checkTargets(t, panel);
  });
}

function checkPanel(t: Test, panel: Panel): void {
  const { title, type, description = "", datasource, fieldConfig, links = [], gridPos } = panel;
  const { unit, thresholds, mappings = [] } = fieldConfig?.defaults ?? {};
  t.ok(title, "has a title");
  t.ok(description.length > 30 && description.endsWith("."), `${title}: a description in sentences`);
  t.equal(datasource?.uid, "${datasource}", `${title}: the chosen data source`);
  t.ok(unit !== undefined && UNITS.includes(unit), `${title}: a unit: ${unit}`);
  t.ok(gridPos.x + gridPos.w <= 24, `${title}: within the page`);
  if (type === "stat") t.ok((thresholds?.steps.length ?? 0) + mappings.length > 0, `${title}: thresholds`);
  if (unit === "percentunit" && type === "timeseries" && !/CPU|Garbage/.test(title)) {
    t.equal(fieldConfig?.defaults.max, 1, `${title}: a share is at most 1`);
  }
  for (const { url } of links) {
    const [page, anchor] = url.split("#");
    t.equal(page, RUNBOOK_URL);
    t.ok(anchors().includes(anchor ?? ""), `${title}: the runbook has ${anchor}`);
  }
}

function checkTargets(t: Test, { title, type, targets = [] }: Panel): void {
  if (type !== "row") t.ok(targets.length > 0, `${title}: has targets`);
  t.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length);
  for (const { expr, refId, datasource, legendFormat, exemplar } of targets) {
    const where = `${title} ${refId}`;
    t.equal(datasource.uid, "${datasource}", where);
    const { selectors, labels, functions } = parseQuery(expr);
    for (const selector of selectors) checkSelector(t, where, selector);
    for (const [, range] of expr.matchAll(/\[(.*?)\]/g)) t.equal(range, "$__rate_interval", where);
    for (const [, label = ""] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
      t.ok(labels.includes(label), `${where}: the legend's ${label} is left by the query`);
    }
    if (functions.includes("histogram_quantile")) {
      t.ok(labels.includes("le"), `${where}: a quantile needs le`);
      t.ok(selectors[0]?.metric.endsWith("_bucket"), `${where}: and buckets`);
    }
    if (type === "heatmap") t.equal(exemplar, true, `${where}: exemplars`);
  }
  if (type === "timeseries" && targets.some(({ expr }) => expr.includes("_bucket"))) {
    t.ok(targets.some(({ exemplar }) => exemplar) || title.endsWith("latency"), `${title}: exemplars`);
  }
}

function checkSelector(t: Test, where: string, { metric, matchers, range, call = "" }: Selector): void {
  const expected = [
    { label: "job", operator: "=~", value: "$job" },
    // What burns a budget, or is absent, has no instance.
    ...(metric === "ALERTS" ? [] : [{ label: "instance", operator: "=~", value: "$instance" }]),
  ];
  t.same(
    matchers.filter(({ label }) => TARGET_LABELS.includes(label)),
    expected,
    `${where}: ${metric} can be narrowed down`,
  );
  const counter = KNOWN[metricOf(metric)]?.type !== "gauge" && /_(total|bucket|count|sum)$/.test(metric);
  if (!counter) return;
  t.ok(["rate", "increase"].includes(call) && range === "5m", `${where}: the counter ${metric} in a rate`);
}

function overlaps({ panels }: Dashboard): string[] {
  const taken = new Map<string, string>();
  return panels.flatMap(({ title, gridPos: { x, y, w, h } }) => {
    const met = new Set<string>();
    for (let column = x; column < x + w; column++) {
      for (let line = y; line < y + h; line++) {
        const other = taken.get(`${column} ${line}`);
        if (other !== undefined) met.add(`${title} covers ${other}`);
        taken.set(`${column} ${line}`, title);
      }
    }
    return [...met];
  });
}

const anchors = () => RUNBOOK_HEADINGS.map((heading) => heading.toLowerCase());

// Rules and alerts.

t.test("recording rules have names of three parts and are needed", async (t) => {
  const read = new Set(
    [...RECORDED, ...ALERTS].flatMap(({ expr }) => parseQuery(expr).selectors.map(({ metric }) => metric)),
  );
  for (const { record = "", expr } of RECORDED) {
    t.match(record, /^(coatcheck|job|job_instance):[a-z0-9_]+:[a-z0-9_]+$/);
    t.ok(read.has(record), `${record} is used`);
    const { selectors } = parseQuery(expr);
    for (const { metric, matchers } of selectors)
      t.match(matchers, [{ label: "job", operator: "=", value: "coatcheck" }], metric);
    t.notMatch(expr, /\bby \(/, `${record}: labels of other people are kept`);
  }
});

t.test("alerts say what an operator needs", async (t) => {
  for (const { alert = "", expr, for: duration, labels, annotations = {} } of ALERTS) {
    t.match(alert, /^Coatcheck([A-Z][a-z]+)+$/);
    t.match(duration, /^\d+[mh]$/, `${alert}: for`);
    t.ok(["critical", "warning"].includes(labels?.severity ?? ""), `${alert}: severity`);
    const { summary = "", description = "", runbook_url } = annotations;
    t.match(summary, /^[A-Z].*\.$/, `${alert}: a sentence`);
    t.notMatch(summary, /\{\{/, `${alert}: constant, so that alerts can be grouped`);
    t.match(description, /\{\{ \$(value|labels\.)/, `${alert}: with values`);
    t.equal(runbook_url, `${RUNBOOK_URL}#${alert.toLowerCase()}`);
    for (const { metric, matchers } of parseQuery(expr).selectors) {
      if (RECORDED_NAMES.includes(metric)) continue;
      t.match(matchers, [{ label: "job", operator: "=", value: "coatcheck" }], `${alert}: ${metric}`);
    }
  }
});

t.test("each alert has its runbook entry, and each entry its alert", async (t) => {
  t.same([...RUNBOOK_HEADINGS].sort(), [...ALERT_NAMES].sort());
  for (const entry of RUNBOOK.split(/^## /m).slice(1)) {
    const name = entry.slice(0, entry.indexOf("\n"));
    for (const part of ["What it means.", "How to confirm.", "What to do."])
      t.ok(entry.includes(`**${part}**`), `${name}: ${part}`);
  }
  for (const [, anchor = ""] of RUNBOOK.matchAll(/\]\(#(.*?)\)/g)) t.ok(anchors().includes(anchor), `#${anchor}`);
  const panels = new Set(ALL.flatMap(([, { panels }]) => panels.map(({ title }) => title)));
  for (const [, title = ""] of RUNBOOK.matchAll(/"([A-Z][^":]+)"/g))
    t.ok(panels.has(title), `there is a panel ${title}`);
});

t.test("the objectives stand in one place", async (t) => {
  const objective = (name: string) =>
    /^vector\((.*)\)$/.exec(RECORDED.find(({ record }) => record === name)?.expr ?? "")?.[1];
  const availability = Number(objective("coatcheck:availability:objective"));
  t.equal(availability, 0.999);
  t.equal(Number(objective("coatcheck:lookups_in_time:objective")), 0.99);
  for (const { alert, expr } of ALERTS) {
    if (alert?.endsWith("BudgetBurn")) t.notMatch(expr, /0\.\d/, "computed from the objective");
  }
  const panel = dashboards()["coatcheck-overview.json"]?.panels.find(({ title }) => title === "Availability");
  const orange = panel?.fieldConfig?.defaults.thresholds?.steps.find(({ color }) => color === "orange");
  t.equal(orange?.value, availability, "the stat is red where the alerts begin");
});

interface RuleTest {
  readonly alert_rule_test: readonly { readonly alertname: string; readonly exp_alerts: readonly unknown[] }[];
}

const RULE_TESTS = readdirSync(join(GRAFANA, "prometheus")).filter((name) => name.startsWith("tests"));

t.test("each alert has a case in which it fires, and one in which it must not", async (t) => {
  const cases = RULE_TESTS.flatMap((file): RuleTest[] => parse(read(`grafana/prometheus/${file}`)).tests).flatMap(
    (test) => test.alert_rule_test,
  );
  for (const name of ALERT_NAMES) {
    const own = cases.filter(({ alertname }) => alertname === name);
    t.ok(
      own.some(({ exp_alerts }) => exp_alerts.length > 0),
      `${name} fires`,
    );
    t.ok(
      own.some(({ exp_alerts }) => exp_alerts.length === 0),
      `${name} does not`,
    );
  }
});

t.test("promtool agrees", async (t) => {
  const promtool = (...args: string[]) => {
    const { status, stdout, stderr, error } = spawnSync("promtool", args, {
      cwd: join(GRAFANA, "prometheus"),
      encoding: "utf8",
    });
    t.equal(status, 0, `promtool ${args.join(" ")}\n${stdout}${stderr}${error ?? ""}`);
  };
  promtool("check", "rules", "rules.yaml", "alerts.yaml");
  promtool("test", "rules", ...RULE_TESTS);
});

// Provisioning.

t.test("provisioning has fixed uids, and leads from a point to its trace and its log lines", async (t) => {
  const { apiVersion, datasources } = parse(read("grafana/provisioning/datasources/coatcheck.yaml"));
  t.equal(apiVersion, 1);
  const byUid = Object.fromEntries(datasources.map((source: { uid: string }) => [source.uid, source]));
  t.same(Object.keys(byUid), ["prometheus", "tempo", "loki"]);
  for (const [uid, { name, type, access, url }] of Object.entries<Record<string, string>>(byUid)) {
    t.equal(type, uid);
    t.equal(access, "proxy");
    t.ok(URL.canParse(url ?? ""), `${name}: an address`);
  }
  t.match(byUid.prometheus, {
    isDefault: true,
    jsonData: { exemplarTraceIdDestinations: [{ name: "trace_id", datasourceUid: "tempo" }] },
  });
  t.match(byUid.tempo, { jsonData: { tracesToLogsV2: { datasourceUid: "loki" } } });
  const [field] = byUid.loki.jsonData.derivedFields;
  t.equal(field.datasourceUid, "tempo");
  const gateway = await startGateway(t, {});
  await fetch(gateway.url);
  const [line = ""] = gateway
    .logText()
    .split("\n")
    .filter((text) => text.includes("http.access"));
  t.equal(new RegExp(field.matcherRegex).exec(line)?.[1], JSON.parse(line).trace_id, "as it stands in a real line");
});

t.test("provisioning takes the dashboards as they are", async (t) => {
  const { apiVersion, providers } = parse(read("grafana/provisioning/dashboards/coatcheck.yaml"));
  t.equal(apiVersion, 1);
  t.match(providers, [{ name: "coatcheck", type: "file", allowUiUpdates: false, options: { path: /^\// } }]);
  t.ok(read("docs/dashboards.md").includes(providers[0].options.path), "where the document says that they belong");
});
