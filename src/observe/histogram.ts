import type { MetricDefinition } from "./names.ts";

/**
 * A histogram for the request path. prom-client's checks and hashes the labels of every observation, which came to a
 * tenth of the CPU of a request; this one looks a label set up once, and an observation is two additions. It registers
 * with prom-client's registry, which renders it.
 */

/**
 * Label sets of one histogram. What an application answers is not ours to bound: with a status of its own for everything,
 * a route has thousands. What is beyond goes into one set, as OpenTelemetry does it (metrics SDK, "Cardinality limits").
 */
export const MAX_SERIES = 2000;
const OVERFLOW = { otel_metric_overflow: "true" };

interface Exemplar {
  readonly labelSet: { readonly trace_id: string };
  readonly value: number;
  /** Seconds since the epoch. */
  readonly timestamp: number;
}

/** One label set of a histogram. */
export class Series {
  readonly labels: Readonly<Record<string, string | number>>;
  readonly #bounds: readonly number[];
  /** One per bound and one for what is beyond them; not cumulative. */
  readonly counts: Float64Array;
  readonly exemplars: (Exemplar | undefined)[] = [];
  sum = 0;

  constructor(labels: Readonly<Record<string, string | number>>, bounds: readonly number[]) {
    this.labels = labels;
    this.#bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
  }

  /** @param traceId of a sampled request: people find it beside the bucket. */
  observe(value: number, traceId?: string): void {
    let bucket = 0;
    while (bucket < this.#bounds.length && value > (this.#bounds[bucket] as number)) bucket++;
    this.counts[bucket] = (this.counts[bucket] as number) + 1;
    this.sum += value;
    if (traceId !== undefined) {
      this.exemplars[bucket] = { labelSet: { trace_id: traceId }, value, timestamp: Date.now() / 1000 };
    }
  }
}

interface Sample {
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
  readonly exemplar?: Exemplar | null;
}

/** What prom-client's registry asks of a metric. */
export class PathHistogram {
  readonly name: string;
  readonly help: string;
  readonly type = "histogram";
  readonly aggregator = "sum";
  readonly #bounds: readonly number[];
  readonly #series = new Map<string, Series>();
  #overflow: Series | undefined;

  constructor(name: string, { help, buckets = [] }: MetricDefinition) {
    this.name = name;
    this.help = help;
    this.#bounds = buckets;
  }

  /** @param key made of the values of the labels; it must tell the sets apart. */
  find(key: string): Series | undefined {
    return this.#series.get(key);
  }

  /** @returns the one for all others when there are too many already. */
  add(key: string, labels: Readonly<Record<string, string | number>>): Series {
    if (this.#series.size >= MAX_SERIES) {
      this.#overflow ??= new Series(OVERFLOW, this.#bounds);
      return this.#overflow;
    }
    const series = new Series(labels, this.#bounds);
    this.#series.set(key, series);
    return series;
  }

  get(): Promise<{ name: string; help: string; type: string; aggregator: string; values: Sample[] }> {
    const { name, help, type, aggregator } = this;
    const all = this.#overflow === undefined ? this.#series.values() : [...this.#series.values(), this.#overflow];
    const values = [...all].flatMap((series) => this.#samples(series));
    return Promise.resolve({ name, help, type, aggregator, values });
  }

  /** Every series that has these labels, whatever others it has. */
  remove(labels: Readonly<Record<string, string | number>>): void {
    const wanted = Object.entries(labels);
    for (const [key, series] of this.#series)
      if (wanted.every(([name, value]) => series.labels[name] === value)) this.#series.delete(key);
  }

  reset(): void {
    this.#series.clear();
    this.#overflow = undefined;
  }

  #samples({ labels, counts, exemplars, sum }: Series): Sample[] {
    let count = 0;
    const samples: Sample[] = [...counts].map((inBucket, i) => {
      count += inBucket;
      const le = this.#bounds[i] ?? "+Inf";
      return {
        metricName: `${this.name}_bucket`,
        labels: { le, ...labels },
        value: count,
        exemplar: exemplars[i] ?? null,
      };
    });
    samples.push({ metricName: `${this.name}_sum`, labels, value: sum });
    samples.push({ metricName: `${this.name}_count`, labels, value: count });
    return samples;
  }
}
