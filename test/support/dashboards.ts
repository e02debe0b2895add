/** What is in grafana/, for the tests that hold it against the metrics that there are. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { METRICS, type MetricDefinition } from "../../src/observe/names.ts";
import { ROOT } from "./project.ts";

export const GRAFANA = join(ROOT, "grafana");

export interface Target {
  readonly refId: string;
  readonly expr: string;
  readonly legendFormat: string;
  readonly format: string;
  readonly exemplar?: boolean;
  readonly datasource: { readonly uid: string };
}

export interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly description?: string;
  readonly datasource?: { readonly uid: string };
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly Target[];
  readonly links?: readonly { readonly url: string }[];
  readonly fieldConfig?: {
    readonly defaults: {
      readonly unit?: string;
      readonly max?: number;
      readonly thresholds?: { readonly steps: readonly { readonly color: string; readonly value: number | null }[] };
      readonly mappings?: readonly unknown[];
    };
  };
}

export interface Dashboard {
  readonly uid: string;
  readonly title: string;
  readonly tags: readonly string[];
  readonly editable: boolean;
  readonly links: readonly { readonly type: string; readonly url?: string; readonly tags?: readonly string[] }[];
  readonly annotations: { readonly list: readonly { readonly name: string; readonly expr: string }[] };
  readonly templating: { readonly list: readonly Readonly<Record<string, unknown>>[] };
  readonly panels: readonly Panel[];
}

export interface Rule {
  readonly record?: string;
  readonly alert?: string;
  readonly expr: string;
  readonly for?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** By file name. */
export function dashboards(): Record<string, Dashboard> {
  const folder = join(GRAFANA, "dashboards");
  return Object.fromEntries(
    readdirSync(folder).map((file) => [file, JSON.parse(readFileSync(join(folder, file), "utf8"))]),
  );
}

export function rules(file: "rules.yaml" | "alerts.yaml"): Rule[] {
  const { groups } = parse(readFileSync(join(GRAFANA, "prometheus", file), "utf8"));
  return groups.flatMap((group: { rules: Rule[] }) => group.rules);
}

/** Each query of each panel. */
export function panelQueries(): { dashboard: string; panel: Panel; target: Target }[] {
  return Object.values(dashboards()).flatMap((dashboard) =>
    dashboard.panels.flatMap((panel) =>
      (panel.targets ?? []).map((target) => ({ dashboard: dashboard.title, panel, target })),
    ),
  );
}

/** What fills the choices above a dashboard: the label and the series that has it. */
export function variableQueries(): { file: string; label: string; query: string }[] {
  return Object.entries(dashboards()).flatMap(([file, { templating }]) =>
    templating.list.flatMap(({ definition }) => {
      const [, query, label] = /^label_values\((.*), (\w+)\)$/.exec(String(definition)) ?? [];
      return query === undefined || label === undefined ? [] : [{ file, label, query }];
    }),
  );
}

export const RUNBOOK = readFileSync(join(ROOT, "docs/runbook.md"), "utf8");

/** What the runbook tells people to type into Prometheus. */
export function runbookQueries(): string[] {
  return [...RUNBOOK.matchAll(/```promql\n([\s\S]*?)```/g)].map(([, query = ""]) => query.trim());
}

export const KNOWN: Readonly<Record<string, MetricDefinition>> = METRICS;

/** The name without what a histogram adds to it. */
export function metricOf(series: string): string {
  const base = series.replace(/_(bucket|count|sum)$/, "");
  return KNOWN[base]?.type === "histogram" ? base : series;
}
