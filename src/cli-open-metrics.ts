/** Reading of what `/metrics` says, as far as Coatcheck writes it. */

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** The samples of one name, such as `coatcheck_session_events_total`; none: it is not there. */
export function samplesOf(metrics: string, name: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of metrics.split("\n")) {
    if (!line.startsWith(name)) continue;
    const match = /^(?:\{(?<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (?<value>\S+)/.exec(line.slice(name.length));
    if (match === null) continue;
    const labels: Record<string, string> = {};
    for (const [, label = "", value = ""] of (match.groups?.labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[label] = value;
    samples.push({ labels, value: Number(match.groups?.value) });
  }
  return samples;
}
