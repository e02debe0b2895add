/**
 * What the dashboards are made of. Every panel has a description, a unit and a place; every query can be narrowed to a
 * job and an instance. `npm run docs` writes grafana/dashboards from these files.
 */

/** Where people read docs/runbook.md; replace it with the address at which you keep it. The alerts name it too. */
export const RUNBOOK = "https://coatcheck.example/docs/runbook.md";

const DATASOURCE = { type: "prometheus", uid: "${datasource}" };
const COLUMNS = 24;
/** Everything that Grafana's schema asks of a link. */
const LINK = {
  type: "link",
  icon: "external link",
  tooltip: "",
  tags: [],
  asDropdown: false,
  includeVars: false,
  keepTime: false,
  targetBlank: true,
};

export type Unit =
  | "none"
  | "short"
  | "percentunit"
  | "s"
  | "bytes"
  | "Bps"
  | "reqps"
  | "ops"
  | "cps"
  | "cpm"
  | "bool_yes_no"
  | "dateTimeFromNow";

export interface Query {
  readonly expr: string;
  /** Of Grafana: `{{label}}` is replaced. Not needed where one number is shown. */
  readonly legend?: string;
  /** Points that lead to the trace of a request; for histograms of requests. */
  readonly exemplar?: boolean;
}

export interface PanelOptions {
  readonly title: string;
  /** What is shown, what is normal, and where to look when it is not. */
  readonly about: string;
  readonly unit: Unit;
  readonly queries: readonly Query[];
  /** Columns of 24. */
  readonly width?: number;
  readonly height?: number;
  /** The alert whose runbook entry belongs to this panel. */
  readonly alert?: string;
  readonly min?: number;
  readonly max?: number;
}

/** From that value on, the colour: `[["green", null], ["red", 1]]`. */
export type Thresholds = readonly (readonly [color: string, from: number | null])[];

export interface StatOptions extends PanelOptions {
  readonly thresholds: Thresholds;
  /** Words in place of numbers. */
  readonly words?: Readonly<Record<number, readonly [text: string, color: string]>>;
  /** What an empty answer means. */
  readonly noValue?: string;
  readonly decimals?: number;
}

export interface SeriesOptions extends PanelOptions {
  readonly stacked?: boolean;
  readonly logarithmic?: boolean;
  readonly colors?: Readonly<Record<string, string>>;
  /** A dashed line at what should not be passed. */
  readonly limit?: number;
}

type Json = Readonly<Record<string, unknown>>;
export type Panel = Json & { readonly gridPos: { readonly w: number; readonly h: number } };

export interface Row {
  readonly title: string;
  readonly panels: readonly Panel[];
}

/** One number, green or not: the first row of each dashboard. */
export function stat(options: StatOptions): Panel {
  const { thresholds, words = {}, noValue, decimals } = options;
  const mappings = Object.entries(words).map(([value, [text, color]], index) => [value, { text, color, index }]);
  return panel("stat", { width: 3, height: 4, ...options }, options.queries, {
    fieldConfig: {
      defaults: {
        ...scale(options),
        ...(noValue !== undefined && { noValue }),
        ...(decimals !== undefined && { decimals }),
        color: { mode: "thresholds" },
        thresholds: { mode: "absolute", steps: thresholds.map(([color, value]) => ({ color, value })) },
        mappings: mappings.length === 0 ? [] : [{ type: "value", options: Object.fromEntries(mappings) }],
      },
      overrides: [],
    },
    options: {
      colorMode: "background",
      graphMode: "area",
      justifyMode: "auto",
      orientation: "auto",
      textMode: "auto",
      wideLayout: true,
      percentChangeColorMode: "standard",
      showPercentChange: false,
      reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false },
    },
  });
}

/** Lines over time. */
export function series(options: SeriesOptions): Panel {
  const { stacked = false, logarithmic = false, colors = {}, limit } = options;
  const steps = [{ color: "green", value: null }, ...(limit === undefined ? [] : [{ color: "red", value: limit }])];
  return panel("timeseries", { width: 12, height: 8, ...options }, options.queries, {
    fieldConfig: {
      defaults: {
        ...scale({ min: 0, ...options }, logarithmic),
        color: { mode: "palette-classic" },
        custom: {
          drawStyle: "line",
          lineInterpolation: "linear",
          lineWidth: 1,
          fillOpacity: stacked ? 40 : 8,
          gradientMode: "none",
          showPoints: "never",
          spanNulls: false,
          stacking: { group: "A", mode: stacked ? "normal" : "none" },
          scaleDistribution: logarithmic ? { type: "log", log: 10 } : { type: "linear" },
          thresholdsStyle: { mode: limit === undefined ? "off" : "dashed" },
        },
        thresholds: { mode: "absolute", steps },
      },
      overrides: Object.entries(colors).map(([name, fixedColor]) => ({
        matcher: { id: "byName", options: name },
        properties: [{ id: "color", value: { mode: "fixed", fixedColor } }],
      })),
    },
    options: {
      legend: { displayMode: "table", placement: "bottom", showLegend: true, calcs: ["lastNotNull", "max"] },
      tooltip: { mode: "multi", sort: "desc" },
    },
  });
}

/** How a histogram spreads over time; the query is a rate by `le`. */
export function heatmap(options: PanelOptions): Panel {
  return panel("heatmap", { width: 12, height: 8, ...options }, options.queries, {
    fieldConfig: { defaults: { unit: options.unit, custom: { scaleDistribution: { type: "linear" } } }, overrides: [] },
    options: {
      calculate: false,
      cellGap: 1,
      cellValues: { unit: "reqps" },
      color: { mode: "scheme", scheme: "Oranges", exponent: 0.5, steps: 64, reverse: false, fill: "dark-orange" },
      exemplars: { color: "rgba(31, 120, 193, 0.9)" },
      filterValues: { le: 1e-9 },
      legend: { show: true },
      rowsFrame: { layout: "auto" },
      showValue: "never",
      tooltip: { mode: "single", yHistogram: true, showColorScale: false },
      yAxis: { axisPlacement: "left", reverse: false, unit: options.unit },
    },
    targetFormat: "heatmap",
  });
}

/** Which of several states held when. Each query gives 0 or 1. */
export function states(options: StatOptions): Panel {
  const drawn = stat({ width: 12, height: 8, ...options });
  return {
    ...drawn,
    type: "state-timeline",
    options: {
      alignValue: "left",
      legend: { displayMode: "list", placement: "bottom", showLegend: false, calcs: [] },
      mergeValues: true,
      rowHeight: 0.8,
      showValue: "auto",
      tooltip: { mode: "single", sort: "none" },
    },
  };
}

export interface Column {
  readonly title: string;
  readonly query: string;
  readonly unit: Unit;
  /** Colours the cell. */
  readonly thresholds?: Thresholds;
}

export interface TableOptions extends Omit<PanelOptions, "queries"> {
  /** Labels by which the queries are grouped, and what they are called: the first columns. */
  readonly labels: Readonly<Record<string, string>>;
  readonly columns: readonly Column[];
  readonly noValue?: string;
}

/** The state of now, a line for each group. */
export function table(options: TableOptions): Panel {
  const { labels, columns, noValue = "nothing" } = options;
  const columnOf = (index: number) => (columns.length === 1 ? "Value" : `Value #${refId(index)}`);
  return panel(
    "table",
    { width: 24, height: 8, ...options },
    columns.map(({ query }) => ({ expr: query })),
    {
      fieldConfig: {
        defaults: {
          unit: options.unit,
          noValue,
          custom: { align: "auto", filterable: false, inspect: false },
          color: { mode: "thresholds" },
          thresholds: { mode: "absolute", steps: [{ color: "text", value: null }] },
        },
        overrides: columns.map(({ title, unit, thresholds }) => ({
          matcher: { id: "byName", options: title },
          properties: [
            { id: "unit", value: unit },
            ...(thresholds === undefined
              ? []
              : [
                  {
                    id: "thresholds",
                    value: { mode: "absolute", steps: thresholds.map(([color, value]) => ({ color, value })) },
                  },
                  { id: "custom.cellOptions", value: { type: "color-background", mode: "basic" } },
                ]),
          ],
        })),
      },
      options: {
        cellHeight: "sm",
        frameIndex: 0,
        showHeader: true,
        sortBy: [{ displayName: columns[0]?.title, desc: true }],
      },
      targetFormat: "table",
      transformations: [
        { id: "merge", options: {} },
        {
          id: "organize",
          options: {
            excludeByName: { Time: true },
            indexByName: Object.fromEntries(
              [...Object.keys(labels), ...columns.map((_, i) => columnOf(i))].map((name, i) => [name, i]),
            ),
            renameByName: { ...labels, ...Object.fromEntries(columns.map(({ title }, i) => [columnOf(i), title])) },
          },
        },
      ],
    },
  );
}

function scale({ unit, min, max }: PanelOptions, logarithmic = false): Json {
  return { unit, ...(min !== undefined && !logarithmic && { min }), ...(max !== undefined && { max }) };
}

function refId(index: number): string {
  return String.fromCharCode("A".charCodeAt(0) + index);
}

function panel(
  type: string,
  { title, about, width, height, alert }: Omit<PanelOptions, "queries"> & { width: number; height: number },
  queries: readonly Query[],
  { targetFormat = "time_series", ...rest }: Json & { readonly targetFormat?: string },
): Panel {
  const instant = targetFormat === "table";
  return {
    type,
    title,
    description: about,
    datasource: DATASOURCE,
    gridPos: { w: width, h: height },
    ...(alert !== undefined && { links: [{ ...LINK, title: `Runbook: ${alert}`, url: runbookOf(alert) }] }),
    targets: queries.map(({ expr, legend = "__auto", exemplar = false }, index) => ({
      refId: refId(index),
      datasource: DATASOURCE,
      editorMode: "code",
      expr,
      format: targetFormat,
      instant,
      range: !instant,
      legendFormat: targetFormat === "heatmap" ? "{{le}}" : legend,
      ...(exemplar && { exemplar }),
    })),
    ...rest,
  };
}

/** The anchor that Markdown renderers make of an alert's heading. */
export function runbookOf(alert: string): string {
  return `${RUNBOOK}#${alert.toLowerCase()}`;
}

// Queries.

/** A metric, narrowed to what is chosen above the dashboard. */
export function of(name: string, matchers = ""): string {
  return `${name}{job=~"$job", instance=~"$instance"${matchers === "" ? "" : `, ${matchers}`}}`;
}

export function rate(name: string, matchers = ""): string {
  return `rate(${of(name, matchers)}[$__rate_interval])`;
}

/** A sum of rates; nothing counts as 0 where `orZero` says so. */
export function sumRate(name: string, matchers = "", by: readonly string[] = []): string {
  return `sum${grouping(by)} (${rate(name, matchers)})`;
}

export function orZero(query: string): string {
  return `(${query} or vector(0))`;
}

/** @param name of the histogram, without suffix. */
export function quantile(q: number, name: string, matchers = "", by: readonly string[] = []): string {
  return `histogram_quantile(${q}, sum by (${["le", ...by].join(", ")}) (${rate(`${name}_bucket`, matchers)}))`;
}

function grouping(by: readonly string[]): string {
  return by.length === 0 ? "" : ` by (${by.join(", ")})`;
}

// Dashboards.

export interface DashboardOptions {
  readonly uid: string;
  readonly title: string;
  readonly about: string;
  readonly rows: readonly Row[];
}

export function renderDashboard({ uid, title, about, rows }: DashboardOptions): string {
  const dashboard = {
    uid,
    title,
    description: about,
    tags: ["coatcheck"],
    editable: false,
    graphTooltip: 1,
    schemaVersion: 39,
    version: 1,
    timezone: "browser",
    refresh: "30s",
    time: { from: "now-1h", to: "now" },
    timepicker: {},
    fiscalYearStartMonth: 0,
    links: [
      { ...LINK, type: "dashboards", title: "Coatcheck", tags: ["coatcheck"], includeVars: true, keepTime: true },
      { ...LINK, title: "Runbook", icon: "doc", url: RUNBOOK, tooltip: "What each alert means and what to do" },
    ],
    annotations: { list: [restarts(), reloads()] },
    templating: { list: variables() },
    panels: place(rows),
  };
  return `${JSON.stringify(dashboard, null, 2)}\n`;
}

/** At the moment that the series itself names: a restart shows however long the instance was away. */
function restarts(): Json {
  const expr = `${of("process_start_time_seconds")} * 1000`;
  return { ...annotation("Restarts", "red", expr, "started"), useValueForTime: true };
}

function reloads(): Json {
  const expr = `increase(${of("coatcheck_config_reloads_total")}[$__rate_interval]) > 0`;
  return annotation("Configuration reloads", "blue", expr, "configuration {{result}}");
}

function annotation(name: string, iconColor: string, expr: string, titleFormat: string): Json {
  return {
    name,
    enable: true,
    hide: false,
    datasource: DATASOURCE,
    iconColor,
    expr,
    step: "30s",
    titleFormat,
    textFormat: "{{instance}}",
    tagKeys: "instance",
  };
}

function variables(): readonly Json[] {
  const chosen = (name: string, label: string, definition: string) => ({
    name,
    label,
    type: "query",
    datasource: DATASOURCE,
    definition,
    query: { query: definition, refId: `Prometheus-${name}` },
    current: { selected: true, text: ["All"], value: ["$__all"] },
    includeAll: true,
    allValue: ".+",
    multi: true,
    // With each change of the time range: instances come and go.
    refresh: 2,
    sort: 1,
    hide: 0,
    options: [],
    regex: "",
    skipUrlSync: false,
  });
  return [
    {
      name: "datasource",
      label: "Data Source",
      type: "datasource",
      query: "prometheus",
      current: { selected: false, text: "Prometheus", value: "prometheus" },
      hide: 0,
      includeAll: false,
      multi: false,
      options: [],
      refresh: 1,
      regex: "",
      skipUrlSync: false,
    },
    chosen("job", "Job", "label_values(coatcheck_build_info, job)"),
    chosen("instance", "Instance", 'label_values(coatcheck_build_info{job=~"$job"}, instance)'),
  ];
}

/** Panels from left to right, each row below the one before. */
function place(rows: readonly Row[]): readonly Json[] {
  const placed: Json[] = [];
  let [y, id] = [0, 0];
  for (const { title, panels } of rows) {
    placed.push({
      id: ++id,
      type: "row",
      title,
      collapsed: false,
      gridPos: { x: 0, y: y++, w: COLUMNS, h: 1 },
      panels: [],
    });
    let [x, lineHeight] = [0, 0];
    for (const { gridPos, ...rest } of panels) {
      if (x + gridPos.w > COLUMNS) {
        y += lineHeight;
        x = lineHeight = 0;
      }
      placed.push({ id: ++id, ...rest, gridPos: { x, y, ...gridPos } });
      x += gridPos.w;
      lineHeight = Math.max(lineHeight, gridPos.h);
    }
    y += lineHeight;
  }
  return placed;
}
