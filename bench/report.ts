import { cpus, platform, release } from "node:os";
import type { Pins } from "./children.ts";
import type { Sample } from "./measure.ts";
import type { Options } from "./options.ts";
import { BASELINE, type Peer } from "./peers.ts";

export interface Measured {
  readonly peer: Peer;
  /** One a round. */
  readonly samples: readonly Sample[];
}

const COLUMNS = ["cpuMicros", "rps", "busy", "p50Ms", "p99Ms", "rssMiB"] as const;
const REDIS_COLUMN = "redisCommands";
type Medians = Record<(typeof COLUMNS)[number] | "errors", number> & { readonly [REDIS_COLUMN]?: number };

/** CPU per request of one peer to that of another in the same round, over all rounds. */
interface Ratio {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

interface Row {
  readonly name: string;
  readonly about: string;
  readonly median: Medians;
  /** `undefined` when the baseline was not measured. */
  readonly ratio: Ratio | undefined;
  readonly samples: readonly Sample[];
}

/** What observability costs, switched on and off within one process. */
interface Observability {
  readonly peer: string;
  readonly median: number;
  /** Half of the pairs lie between these. */
  readonly quartiles: readonly [number, number];
  readonly pairs: readonly number[];
}

export type Report = ReturnType<typeof makeReport>;

/**
 * What was measured, where and how.
 * @param pairs of `switched`, by the name of the peer.
 */
export function makeReport(
  measured: readonly Measured[],
  pairs: ReadonlyMap<string, readonly number[]>,
  options: Options,
  pins: Pins | undefined,
) {
  const { rounds, seconds, warmUpSeconds, connections, sessions } = options;
  const samplesOf = (name: string | undefined) => measured.find(({ peer }) => peer.name === name)?.samples;
  return {
    date: new Date().toISOString(),
    machine: {
      cpu: cpus()[0]?.model ?? "unknown",
      cpus: cpus().length,
      system: `${platform()} ${release()}`,
      node: process.version,
      pinned: pins !== undefined,
    },
    parameters: { rounds, seconds, warmUpSeconds, connections, sessions },
    peers: measured.map((one) => row(one, samplesOf(BASELINE))),
    observability: [...pairs].map(([peer, ratios]): Observability => {
      const quartiles = [quantile(ratios, 0.25), quantile(ratios, 0.75)] as const;
      return { peer, median: median(ratios), quartiles, pairs: ratios };
    }),
  };
}

function row({ peer, samples }: Measured, baseline: readonly Sample[] | undefined): Row {
  const commands = samples.flatMap((sample) => sample[REDIS_COLUMN] ?? []);
  const middle = {
    errors: failures(samples),
    ...(commands.length > 0 && { [REDIS_COLUMN]: median(commands) }),
  } as { -readonly [Column in keyof Medians]: Medians[Column] };
  for (const column of COLUMNS) middle[column] = median(samples.map((sample) => sample[column]));
  const ratio = baseline && ratioOf(samples, baseline);
  return { name: peer.name, about: peer.about, median: middle, ratio, samples };
}

function ratioOf(samples: readonly Sample[], others: readonly Sample[]): Ratio {
  const ratios = samples.map((sample, round) => sample.cpuMicros / (others[round]?.cpuMicros ?? Number.NaN));
  return { median: median(ratios), min: Math.min(...ratios), max: Math.max(...ratios) };
}

function ratioText({ median, min, max }: Ratio): string {
  return `**${median.toFixed(2)}** (${min.toFixed(2)}–${max.toFixed(2)})`;
}

/** Requests that did not end with the expected answer. */
export function failures(samples: readonly Sample[]): number {
  return samples.reduce((sum, { errors, non2xx, mismatches }) => sum + errors + non2xx + mismatches, 0);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function table({ peers, observability }: Report): string {
  const lines = [
    `| peer | CPU µs/request | ratio to ${BASELINE} | rps | busy | p50 ms | p99 ms | RSS MiB | Redis commands/request | errors |`,
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
  ];
  for (const { name, median: m, ratio } of peers) {
    const cells = [
      name,
      m.cpuMicros.toFixed(1),
      ratio === undefined ? "–" : ratioText(ratio),
      m.rps.toFixed(0),
      `${(m.busy * 100).toFixed(0)} %`,
      m.p50Ms.toFixed(2),
      m.p99Ms.toFixed(2),
      m.rssMiB.toFixed(0),
      m[REDIS_COLUMN]?.toFixed(4) ?? "–",
      m.errors,
    ];
    lines.push(`| ${cells.join(" | ")} |`);
  }
  if (observability.length > 0) lines.push("");
  for (const { peer, median, quartiles, pairs } of observability)
    lines.push(
      `- observability on to off, within one process of \`${peer}\`: **${median.toFixed(2)}** (half of ${pairs.length} pairs: ${quartiles.map((it) => it.toFixed(2)).join("–")})`,
    );
  return `${lines.join("\n")}\n`;
}

export function markdown(report: Report): string {
  const { date, machine, parameters: p, peers } = report;
  return `# Bench results

Only the ratios mean anything: the absolute numbers belong to one machine at one moment.

${table(report)}
${peers.map(({ name, about }) => `- \`${name}\`: ${about}`).join("\n")}

CPU is user and system time of the proxy process with all its threads, divided by completed requests. The ratio is that
to \`${BASELINE}\` of the same round: the median over the rounds, with the lowest and the highest. The other columns are
medians. \`busy\` is the share of one core that the proxy used; where it is well below 100 %, the load generator was the
limit, and rps and latencies say little about the proxy.

- date: ${date}
- machine: ${machine.cpus} × ${machine.cpu}, ${machine.system}, node ${machine.node}
- pinned: ${machine.pinned ? "the proxy to one core, everything else to the others" : "no (taskset or a second core is missing)"}
- parameters: ${p.rounds} rounds × ${p.seconds} s after ${p.warmUpSeconds} s of warm-up, ${p.connections} connections, ${p.sessions} sessions
- every sample: [latest.json](latest.json)
`;
}
