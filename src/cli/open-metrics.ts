/**
 * Reads what a scrape answers (OpenMetrics and the older Prometheus text), as far as it is needed here: names, labels
 * and values. Exemplars, help and types are passed over, and so is a line that makes no sense.
 * @see https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
 */

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** Samples by the name of the metric, `_total`, `_bucket`, `_sum` and `_count` included. */
export type Scrape = ReadonlyMap<string, readonly Sample[]>;

/** What a gateway with thousands of series has is less than this; the rest of a larger answer is not looked at. */
const MAX_SAMPLES = 200_000;
const MAX_LABELS = 64;

const NAME = /[A-Za-z_:][A-Za-z0-9_:]*/y;
const LABEL = /\s*([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\\n]|\\.)*)"\s*(,?)/y;
const VALUE = /\s+(\S+)/y;

export function parseOpenMetrics(text: string): Scrape {
  const scrape = new Map<string, Sample[]>();
  let samples = 0;
  for (let from = 0; from < text.length && samples < MAX_SAMPLES; ) {
    const newline = text.indexOf("\n", from);
    const to = newline === -1 ? text.length : newline;
    const found = text[from] === "#" ? undefined : sample(text.slice(from, to));
    from = to + 1;
    if (found === undefined) continue;
    samples++;
    const [name, read] = found;
    const known = scrape.get(name);
    if (known === undefined) scrape.set(name, [read]);
    else known.push(read);
  }
  return scrape;
}

function sample(line: string): [name: string, sample: Sample] | undefined {
  NAME.lastIndex = 0;
  const name = NAME.exec(line)?.[0];
  if (name === undefined) return undefined;
  let at = name.length;
  const labels: Record<string, string> = {};
  if (line[at] === "{") {
    const end = readLabels(line, at + 1, labels);
    if (end === undefined) return undefined;
    at = end;
  }
  VALUE.lastIndex = at;
  const value = VALUE.exec(line)?.[1];
  const number = value === undefined ? Number.NaN : numberOf(value);
  return Number.isNaN(number) ? undefined : [name, { labels, value: number }];
}

/** @returns the place behind `}`; `undefined` when this is no list of labels. */
function readLabels(line: string, from: number, labels: Record<string, string>): number | undefined {
  let at = from;
  for (let count = 0; count <= MAX_LABELS; count++) {
    if (line[at] === "}") return at + 1;
    LABEL.lastIndex = at;
    const match = LABEL.exec(line);
    if (match === null) return undefined;
    const [whole, name = "", value = "", comma] = match;
    labels[name] = value.includes("\\") ? unescaped(value) : value;
    at += whole.length;
    if (comma === "" && line[at] !== "}") return undefined;
  }
  return undefined;
}

function unescaped(value: string): string {
  return value.replace(/\\(.)/g, (_, character: string) => (character === "n" ? "\n" : character));
}

/** `NaN` for what is no number, and for NaN: a quantile of nothing. */
function numberOf(text: string): number {
  if (text === "+Inf") return Number.POSITIVE_INFINITY;
  if (text === "-Inf") return Number.NEGATIVE_INFINITY;
  return Number(text);
}
