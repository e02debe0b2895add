import type { Sample, Scrape } from "../open-metrics.ts";

/** What one scrape counted since another, of the same process or of the one after a restart. */

export type Labels = Sample["labels"];

export interface Counted {
  readonly labels: Labels;
  /** A second. */
  readonly rate: number;
  /** Since the process began. */
  readonly total: number;
}

/** Quantiles in seconds; `undefined` when nothing was observed. */
export interface Quantiles {
  /** Observations. */
  readonly count: number;
  readonly p50: number | undefined;
  readonly p95: number | undefined;
  readonly p99: number | undefined;
}

export type Choice = (labels: Labels) => boolean;

const ALL: Choice = () => true;

/** Two scrapes and the time between them. The first may be missing: then everything counts since the start. */
export class Change {
  readonly #before: Scrape | undefined;
  readonly #now: Scrape;
  readonly seconds: number;

  constructor(before: Scrape | undefined, now: Scrape, seconds: number) {
    this.#before = before;
    this.#now = now;
    // Two answers at once would divide by nothing.
    this.seconds = Math.max(seconds, 0.001);
  }

  /** The value of a gauge, all its series together; `undefined` when there is none. */
  gauge(name: string): number | undefined {
    const samples = this.#now.get(name);
    return samples?.reduce((sum, { value }) => sum + value, 0);
  }

  labels(name: string): readonly Labels[] {
    return this.#now.get(name)?.map(({ labels }) => labels) ?? [];
  }

  /** Each series of a counter, or those that are chosen. */
  counters(name: string, choice = ALL): Counted[] {
    const before = new Map(this.#before?.get(name)?.map((sample) => [keyOf(sample.labels), sample.value]));
    return (this.#now.get(name) ?? [])
      .filter(({ labels }) => choice(labels))
      .map(({ labels, value }) => ({
        labels,
        total: value,
        rate: increase(before.get(keyOf(labels)) ?? 0, value) / this.seconds,
      }));
  }

  /** The series of a counter added up by what their labels make, the busiest first; without those that make nothing. */
  by(name: string, group: (labels: Labels) => string | undefined): ReadonlyMap<string, Omit<Counted, "labels">> {
    const groups = new Map<string, { rate: number; total: number }>();
    for (const { labels, rate, total } of this.counters(name)) {
      const value = group(labels);
      if (value === undefined) continue;
      const sum = groups.get(value) ?? { rate: 0, total: 0 };
      groups.set(value, { rate: sum.rate + rate, total: sum.total + total });
    }
    return new Map([...groups].sort(([, a], [, b]) => b.rate - a.rate || b.total - a.total));
  }

  /** Of the observations since the scrape before, all matching series together, as `histogram_quantile` reads them. */
  quantiles(name: string, choice = ALL): Quantiles {
    const perBound = new Map<number, number>();
    for (const { labels, rate } of this.counters(`${name}_bucket`, choice)) {
      const bound = labels.le === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels.le);
      perBound.set(bound, (perBound.get(bound) ?? 0) + rate * this.seconds);
    }
    const buckets = [...perBound].sort(([a], [b]) => a - b);
    const count = buckets.at(-1)?.[1] ?? 0;
    return {
      count,
      p50: quantile(0.5, buckets),
      p95: quantile(0.95, buckets),
      p99: quantile(0.99, buckets),
    };
  }
}

/** Linear within a bucket; the highest bound for what is beyond it. */
function quantile(q: number, buckets: readonly (readonly [bound: number, cumulative: number])[]): number | undefined {
  const count = buckets.at(-1)?.[1] ?? 0;
  // Less than one observation is what is left of a subtraction.
  if (count < 0.5) return undefined;
  const rank = q * count;
  let [lowerBound, below] = [0, 0];
  for (const [bound, cumulative] of buckets) {
    if (cumulative >= rank) {
      if (bound === Number.POSITIVE_INFINITY) return lowerBound;
      return cumulative === below ? bound : lowerBound + ((bound - lowerBound) * (rank - below)) / (cumulative - below);
    }
    [lowerBound, below] = [bound, cumulative];
  }
  return lowerBound;
}

/** A counter that became smaller began anew with the process: what it has is the increase. */
function increase(before: number, now: number): number {
  return now < before ? now : now - before;
}

function keyOf(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort());
}
