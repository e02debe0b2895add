import type { Quantiles } from "./change.ts";
import type { Figures, Row } from "./figures.ts";
import { type Order, PANELS, type Panel, panelLines, toneOf } from "./panels.ts";
import {
  type Ability,
  age,
  amount,
  bytes,
  count,
  duration,
  foreign,
  type Line,
  paint,
  percent,
  type Span,
  sparkline,
  type Tone,
  widthOf,
} from "./text.ts";

/** From what is known to lines: pure, so that a terminal is needed for nothing but to show them. */

export interface View {
  /** Where the figures come from. */
  readonly url: string;
  readonly intervalMs: number;
  readonly panel: Panel;
  readonly order: Order;
  readonly paused: boolean;
  readonly help: boolean;
  /** Lines of the panel that are above the window. */
  readonly offset: number;
  /** Why there are no newer figures. */
  readonly trouble: string | undefined;
  /** Requests a second, the newest last. */
  readonly history: readonly number[];
  readonly figures: Figures;
  /** When another process was found at that address, milliseconds since the epoch. */
  readonly restartedAt: number | undefined;
  /** Milliseconds since the epoch. */
  readonly now: number;
}

export interface Size {
  readonly columns: number;
  readonly rows: number;
}

/** Below this there is nothing sensible to show. */
const SMALLEST: Size = { columns: 20, rows: 4 };
const SPARKLINE_PLACES = 20;
const RESTART_SHOWN_MS = 30_000;
/** Before any key. */
export function firstView(url: string, intervalMs: number, figures: Figures): View {
  return {
    url,
    intervalMs,
    panel: "routes",
    order: "rate",
    paused: false,
    help: false,
    offset: 0,
    trouble: undefined,
    history: [],
    figures,
    restartedAt: undefined,
    now: figures.at,
  };
}

/** Everything, for a pipe: each panel in full, one below the other. */
export function renderAll(view: View, ability: Ability): string {
  const { figures } = view;
  const columns = 100;
  const panels = PANELS.flatMap((panel): Line[] => [
    [],
    [[panel.toUpperCase(), "bold"]],
    ...panelLines(figures, { ...view, panel }, columns),
  ]);
  const lines = [...headerLines(view, figures, columns), ...panels];
  return lines.map((line) => `${paint(line, 1_000, ability).trimEnd()}\n`).join("");
}

/** At most `rows` lines, none wider than `columns`. */
export function render(view: View, size: Size, ability: Ability): string[] {
  const { columns, rows } = size;
  if (columns < SMALLEST.columns || rows < SMALLEST.rows)
    return ["coatcheck: the terminal is too small"].map((text) => paint([[text]], columns, ability)).slice(0, rows);
  return layOut(view, size)
    .slice(0, rows)
    .map((line) => paint(line, columns, ability));
}

function layOut(view: View, { columns, rows }: Size): Line[] {
  const { figures, help, trouble, panel } = view;
  const notice: Line[] = trouble === undefined ? [] : [[[`▲ ${foreign(trouble)}`, "bad"]]];
  const header = [...headerLines(view, figures, columns), ...notice];
  // A low window: the numbers at the top matter less than the panel that was asked for.
  const room = rows - 1;
  const kept = header.slice(0, Math.max(1, Math.min(header.length, room - 4)));
  const left = room - kept.length;
  const body = help ? helpLines() : panelLines(figures, view, columns);
  const lines = [...kept, tabLine(panel, columns), ...windowOf(body, left, view.offset)];
  // On a high one the next panels have room as well.
  for (const next of help ? [] : PANELS.slice(PANELS.indexOf(panel) + 1)) {
    const more = panelLines(figures, { ...view, panel: next }, columns);
    if (lines.length + more.length + 2 > rows) break;
    lines.push([], [[next.toUpperCase(), "bold"]], ...more);
  }
  return lines;
}

/** @returns how many lines the panel has beyond what fits: how far it can be scrolled. */
export function overflowOf(view: View, size: Size): number {
  const { figures } = view;
  if (view.help) return 0;
  const header = headerLines(view, figures, size.columns).length + (view.trouble === undefined ? 0 : 1);
  const left = size.rows - 1 - Math.max(1, Math.min(header, size.rows - 5));
  return Math.max(0, panelLines(figures, view, size.columns).length - left);
}

function windowOf(lines: readonly Line[], rows: number, offset: number): readonly Line[] {
  const first = Math.max(0, Math.min(offset, lines.length - rows));
  const shown = lines.slice(first, first + rows);
  const hidden = lines.length - first - rows;
  return hidden > 0 ? [...shown.slice(0, -1), [[`… ${hidden + 1} more lines (arrow down)`, "dim"]]] : shown;
}

/** The state and the time stay whatever the width; the address goes before they do. */
function titleLine({ url, intervalMs, paused, now, figures, trouble }: View, columns: number): Line {
  const name: Span = [`coatcheck ${foreign(figures.version)}`.trim(), "bold"];
  const where: Span = [`  ${foreign(url)}`, "dim"];
  const since: Span = [`  up ${age(figures.uptimeSeconds)}`, "dim"];
  const clock = new Date(now).toTimeString().slice(0, 8);
  const state: Span =
    trouble !== undefined
      ? ["no answer", "bad"]
      : paused
        ? ["paused", "warn"]
        : figures.sinceStart
          ? ["since the start", "dim"]
          : [`every ${intervalMs / 1000} s`, "dim"];
  const end: Line = [state, [`  ${clock}`, "dim"]];
  const starts: readonly Line[] = [[name, where, since], [name, where], [name, since], [name]];
  for (const start of starts) {
    const gap = columns - widthOf(start) - widthOf(end);
    if (gap >= 2) return [...start, [" ".repeat(gap)], ...end];
  }
  return end;
}

function headerLines(view: View, figures: Figures, columns: number): Line[] {
  const { requests, latency, overhead, process } = figures;
  const restarted = view.restartedAt !== undefined && view.now - view.restartedAt < RESTART_SHOWN_MS;
  const failing = (requests.errorRatio ?? 0) > 0;
  const bars = sparkline(view.history, SPARKLINE_PLACES);
  return [
    titleLine(view, columns),
    wrapped("requests", columns, [
      [[`${amount(requests.rate)}/s`, "bold"]],
      [[`${count(requests.inFlight)} in flight`]],
      [[`failed ${percent(requests.errorRatio)}`, failing ? "bad" : "good"]],
      ...(bars === "" ? [] : [[[bars, "dim"]] satisfies Line]),
    ]),
    wrapped("latency", columns, [
      [[quantiles(latency, columns), toneOf(latency.p99)]],
      [[`gateway p99 ${duration(overhead.p99)}`]],
      [[`p50 ${duration(overhead.p50)}`]],
    ]),
    wrapped("sessions", columns, sessionParts(figures)),
    wrapped("store", columns, storeParts(figures)),
    surpriseLine(figures, columns),
    ...(restarted ? [[["▲ the gateway has been restarted", "warn"]] satisfies Line] : []),
    ...(columns >= 70 && view.panel === "store"
      ? [
          wrapped("process", columns, [
            [[`CPU ${percent(process.cpuRatio)} of a core`]],
            [[`heap ${process.heapBytes === undefined ? "-" : bytes(process.heapBytes)}`]],
            [[`event loop p99 ${duration(process.loopLagSeconds)}`]],
          ]),
        ]
      : []),
  ];
}

/** A name and parts with a separator between, as many as fit: the first ones matter most. */
function wrapped(name: string, columns: number, parts: readonly Line[]): Line {
  const line: Span[] = [[name.padEnd(9), "dim"]];
  for (const [index, part] of parts.entries()) {
    const separator: Span = [index === 0 ? "" : " · ", "dim"];
    if (index > 0 && widthOf(line) + separator[0].length + widthOf(part) > columns) break;
    line.push(separator, ...part);
  }
  return line;
}

function sessionParts({ recognisedRatio, cache, store }: Figures): Line[] {
  const all = recognisedRatio === undefined || recognisedRatio > 0.5;
  return [
    [[`cookies recognised ${percent(recognisedRatio)}`, all ? "plain" : "warn"]],
    ...(store.sessions === undefined ? [] : [[[`about ${count(store.sessions)} live`]] satisfies Line]),
    [[store.feed === undefined ? "no near cache" : `cache hits ${percent(cache.hitRatio)}`]],
    ...(store.feed === undefined ? [] : [[[`${count(cache.entries)} cached`]] satisfies Line]),
  ];
}

function storeParts({ store }: Figures): Line[] {
  const { kind, up, feed, resting, rate, latency, failures } = store;
  const failing = failures.some((row) => row.rate > 0);
  return [
    [[`${foreign(kind)} `], up === false ? ["DOWN", "bad"] : [up ? "up" : "?", up ? "good" : "warn"]],
    [[`${amount(rate)} op/s p99 ${duration(latency.p99)}`, toneOf(latency.p99)]],
    ...(feed === undefined ? [] : [[[`feed ${foreign(feed)}`, FEED_TONES[feed] ?? "bad"]] satisfies Line]),
    ...(resting > 0 ? [[[`${resting} resting`, "bad"]] satisfies Line] : []),
    ...(failing ? [[["failing", "bad"]] satisfies Line] : []),
  ];
}

const FEED_TONES: Readonly<Record<string, Tone>> = { tracking: "good", messages: "warn" };

function surpriseLine({ surprises, logouts }: Figures, columns: number): Line {
  const now = surprises.reduce((sum, { rate }) => sum + rate, 0);
  const ever = surprises.reduce((sum, { total }) => sum + total, 0);
  const reasons = surprises
    .filter(({ total }) => total > 0)
    .map(({ name, total }) => `${foreign(name)} ${count(total)}`);
  if (ever === 0)
    return wrapped("log-outs", columns, [
      [["no surprise", "good"]],
      ...(logouts.length === 0 ? [] : [[[`expired or ended ${count(sumOfTotals(logouts))}`]] satisfies Line]),
    ]);
  return wrapped("log-outs", columns, [
    [[`surprise ${amount(now)}/s, ${count(ever)} in all`, now > 0 ? "bad" : "warn"]],
    [[reasons.join(", ")]],
  ]);
}

function sumOfTotals(rows: readonly Row[]): number {
  return rows.reduce((sum, { total }) => sum + total, 0);
}

function tabLine(panel: Panel, columns: number): Line {
  const tabs = PANELS.flatMap((name, index): Span[] => [
    // Brackets tell it where there are no colours.
    name === panel ? [`[${index + 1} ${name}]`, "chosen"] : [` ${index + 1} ${name} `],
  ]);
  const hint: Span = ["? help  q quit", "dim"];
  const gap = columns - widthOf(tabs) - hint[0].length;
  return gap > 0 ? [...tabs, [" ".repeat(gap)], hint] : tabs;
}

function helpLines(): Line[] {
  return [
    ["1 2 3 4", "a panel: routes, sessions, store, errors"],
    ["tab, left, right", "the next or the last panel"],
    ["up, down", "scroll"],
    ["s", "sort by rate, failures or p99 (*)"],
    ["p, space", "pause, go on"],
    ["? h", "this"],
    ["q, Ctrl-C", "quit"],
  ].map(([keys = "", what = ""]): Line => [[keys.padEnd(18), "bold"], [what]]);
}

function quantiles({ p50, p95, p99 }: Quantiles, columns: number): string {
  const middle = columns < 70 ? "" : `, p95 ${duration(p95)}`;
  return `p50 ${duration(p50)}${middle}, p99 ${duration(p99)}`;
}
