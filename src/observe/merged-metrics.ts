import { type Metric, Registry } from "prom-client";
import { type AcrossWorkers, METRICS, type MetricDefinition } from "./names.ts";

/**
 * Metrics of several processes as those of one. prom-client's `AggregatorRegistry` loses exemplars, forgets what a process
 * had counted when it ends, and sums gauges of which a sum says nothing.
 */

export interface Exemplar {
  readonly labelSet: Readonly<Record<string, string>>;
  readonly value: number;
  /** Seconds since the epoch. */
  readonly timestamp: number;
}

/** One line of a scrape. */
export interface Sample {
  /** Where it is not that of the metric: `…_bucket`, `…_sum`, `…_count`. */
  readonly metricName?: string | undefined;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
  readonly exemplar?: Exemplar | null | undefined;
}

/** A metric as it was at a moment; the name of a counter is without `_total`. */
export interface MetricSnapshot {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly values: readonly Sample[];
}

/** prom-client's own. What is not here is summed, as memory is. */
const DEFAULTS: Readonly<Record<string, AcrossWorkers>> = {
  process_start_time_seconds: "primary",
  // A limit holds for each of them: the one that comes nearest to it is what counts.
  process_open_fds: "max",
  process_max_fds: "min",
  nodejs_eventloop_lag_seconds: "max",
  nodejs_eventloop_lag_min_seconds: "max",
  nodejs_eventloop_lag_max_seconds: "max",
  nodejs_eventloop_lag_mean_seconds: "max",
  nodejs_eventloop_lag_stddev_seconds: "max",
  nodejs_eventloop_lag_p50_seconds: "max",
  nodejs_eventloop_lag_p90_seconds: "max",
  nodejs_eventloop_lag_p99_seconds: "max",
  nodejs_version_info: "max",
};

/** What a process only ever adds to. */
const CUMULATIVE: ReadonlySet<string> = new Set(["counter", "histogram", "summary"]);

/** @returns what `name` is across processes; `name` without `_total`. */
function acrossWorkers(name: string): AcrossWorkers {
  const definitions: Readonly<Record<string, MetricDefinition>> = METRICS;
  return (definitions[name] ?? definitions[`${name}_total`])?.acrossWorkers ?? DEFAULTS[name] ?? "sum";
}

/** What a registry holds now. */
export async function snapshotOf(registry: Registry): Promise<MetricSnapshot[]> {
  const metrics = (await registry.getMetricsAsJSON()) as unknown as MetricSnapshot[];
  return metrics.map(({ name, help, type, values }) => ({
    // A counter loses it when it is rendered for the first time.
    name: type === "counter" ? name.replace(/_total$/, "") : name,
    help,
    type,
    values: values.map(({ metricName, labels, value, exemplar }) => ({
      ...(metricName !== undefined && metricName !== name && { metricName }),
      labels,
      value,
      ...(exemplar && { exemplar }),
    })),
  }));
}

/**
 * Puts snapshots together, in the order of their metrics and label sets. Of two exemplars the later one is kept.
 * @param primary of the process that does the others' administration.
 */
export function mergeMetrics(
  primary: readonly MetricSnapshot[],
  workers: readonly (readonly MetricSnapshot[])[],
): MetricSnapshot[] {
  const merged = new Map<string, { metric: MetricSnapshot; samples: Map<string, Sample> }>();
  for (const snapshot of [primary, ...workers]) {
    for (const metric of snapshot) {
      const across = acrossWorkers(metric.name);
      if (across === "primary" && snapshot !== primary) continue;
      let into = merged.get(metric.name);
      if (into === undefined) {
        into = { metric, samples: new Map() };
        merged.set(metric.name, into);
      }
      for (const sample of metric.values) put(into.samples, sample, across);
    }
  }
  return [...merged.values()].map(({ metric, samples }) => ({ ...metric, values: [...samples.values()] }));
}

function put(samples: Map<string, Sample>, sample: Sample, across: AcrossWorkers): void {
  const key = keyOf(sample);
  const before = samples.get(key);
  samples.set(key, before === undefined ? sample : combine(before, sample, across));
}

function combine(a: Sample, b: Sample, across: AcrossWorkers): Sample {
  const value =
    across === "max" ? Math.max(a.value, b.value) : across === "min" ? Math.min(a.value, b.value) : a.value + b.value;
  const exemplar = (a.exemplar?.timestamp ?? 0) >= (b.exemplar?.timestamp ?? 0) ? a.exemplar : b.exemplar;
  return { ...a, value, exemplar };
}

function keyOf({ metricName = "", labels }: Sample): string {
  const names = Object.keys(labels);
  // With one label there is nothing to sort, and most have one or two.
  if (names.length > 1) names.sort();
  let key = metricName;
  for (const name of names) key += `\n${name}=${JSON.stringify(labels[name])}`;
  return key;
}

/**
 * What processes had counted that have ended. Without it the sums would fall, which Prometheus takes for a restart: it
 * would count everything that the others have counted so far as new.
 */
export class Departed {
  #counted: readonly MetricSnapshot[] = [];

  add(snapshot: readonly MetricSnapshot[]): void {
    const cumulative = snapshot.filter(({ type }) => CUMULATIVE.has(type));
    // As of workers: what only the primary may count is left out.
    this.#counted = mergeMetrics([], [this.#counted, cumulative]);
  }

  get counted(): readonly MetricSnapshot[] {
    return this.#counted;
  }
}

/** OpenMetrics text. */
export function renderMetrics(metrics: readonly MetricSnapshot[]): Promise<string> {
  const registry = openMetricsRegistry();
  for (const metric of metrics) {
    const asked = { ...metric, get: () => Promise.resolve(metric) };
    // The registry asks for a name, a type and `get`; its types ask for one of prom-client's own classes.
    registry.registerMetric(asked as unknown as Metric);
  }
  return registry.metrics();
}

export function openMetricsRegistry(): Registry {
  const registry = new Registry();
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE as never);
  return registry;
}
