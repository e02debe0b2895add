/** Lines for a terminal: pieces of text with a tone each, cut to a width, and only then coloured. */
import { styleText } from "node:util";

export type Tone = "plain" | "bold" | "dim" | "good" | "warn" | "bad" | "chosen";
export type Span = readonly [text: string, tone?: Tone];
export type Line = readonly Span[];

/** What a terminal can show. */
export interface Ability {
  readonly colour: boolean;
  /** Characters beyond ASCII. */
  readonly unicode: boolean;
}

const STYLES = {
  bold: "bold",
  dim: "dim",
  good: "green",
  warn: "yellow",
  bad: "red",
  chosen: "inverse",
} as const satisfies Record<Exclude<Tone, "plain">, string>;

/** Of the characters that we use ourselves; whatever else comes is ASCII already. */
const IN_ASCII: Readonly<Record<string, string>> = { "·": "-", "…": "~", "─": "-", "│": "|", "▲": "!" };
const BARS = "▁▂▃▄▅▆▇█";
const ASCII_BARS = "_.-~=+*#";

/** What others chose, as ASCII without the characters that command a terminal: one place for each character. */
export function foreign(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "?");
}

/** The line as it goes out, never wider than `columns`. */
export function paint(line: Line, columns: number, { colour, unicode }: Ability): string {
  let left = columns;
  let painted = "";
  for (const [text, tone = "plain"] of line) {
    const cut = text.length > left ? `${text.slice(0, Math.max(left - 1, 0))}${left > 0 ? "…" : ""}` : text;
    left -= cut.length;
    const shown = unicode ? cut : toAscii(cut);
    painted +=
      colour && tone !== "plain" && shown !== "" ? styleText(STYLES[tone], shown, { validateStream: false }) : shown;
  }
  return painted;
}

function toAscii(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, (character) => {
    const bar = BARS.indexOf(character);
    return IN_ASCII[character] ?? ASCII_BARS[bar] ?? "?";
  });
}

export function widthOf(line: Line): number {
  return line.reduce((sum, [text]) => sum + text.length, 0);
}

/** Rows of cells in columns; the first row is the heading. @param right columns aligned at their right side. */
export function columnsOf(rows: readonly Line[], right: readonly number[]): Line[] {
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, [text]] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, text.length);
  return rows.map((row) =>
    row.map(([text, tone], column) => {
      const width = widths[column] ?? 0;
      const aligned = right.includes(column) ? text.padStart(width) : text.padEnd(width);
      return [column === 0 ? aligned : `  ${aligned}`, tone ?? "plain"];
    }),
  );
}

/** Blocks beside one another as far as they fit, the others below. */
export function beside(blocks: readonly (readonly Line[])[], columns: number): Line[] {
  const lines: Line[] = [];
  let waiting = blocks.filter((block) => block.length > 0);
  while (waiting.length > 0) {
    let used = 0;
    const row: (readonly Line[])[] = [];
    for (const block of waiting) {
      const width = widthOfBlock(block);
      if (row.length > 0 && used + width > columns) break;
      row.push(block);
      used += width + GAP.length;
    }
    waiting = waiting.slice(row.length);
    if (lines.length > 0) lines.push([]);
    lines.push(...merge(row));
  }
  return lines;
}

const GAP = "    ";

function merge(blocks: readonly (readonly Line[])[]): Line[] {
  const height = Math.max(...blocks.map((block) => block.length));
  return Array.from({ length: height }, (_, at) =>
    blocks.flatMap((block, n): Span[] => {
      const line = block[at] ?? [];
      if (n === blocks.length - 1) return [...line];
      return [...line, [" ".repeat(widthOfBlock(block) - widthOf(line)) + GAP]];
    }),
  );
}

function widthOfBlock(block: readonly Line[]): number {
  return Math.max(0, ...block.map(widthOf));
}

/** A bar for each number, the last ones of them. */
export function sparkline(numbers: readonly number[], places: number): string {
  const shown = numbers.slice(-places);
  const highest = Math.max(...shown, 0);
  return shown
    .map((number) => BARS[highest === 0 ? 0 : Math.min(Math.floor((number / highest) * BARS.length), 7)] ?? "")
    .join("");
}

/** `850 µs` would not be ASCII: microseconds are given as parts of a millisecond. */
export function duration(seconds: number | undefined): string {
  if (seconds === undefined) return "-";
  const ms = seconds * 1000;
  if (ms >= 10_000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** A rate: `0`, `0.03`, `4.2`, `1,234`. */
export function amount(number: number): string {
  if (number === 0) return "0";
  if (number < 0.01) return "<0.01";
  if (number < 1) return number.toFixed(2);
  return number < 100 ? number.toFixed(1) : count(number);
}

/** `1,234`. */
export function count(number: number): string {
  return Math.round(number).toLocaleString("en-US");
}

export function percent(ratio: number | undefined): string {
  if (ratio === undefined) return "-";
  const hundredths = ratio * 100;
  return `${hundredths === 0 || hundredths === 100 || hundredths >= 99.95 ? Math.floor(hundredths * 100) / 100 : hundredths.toFixed(1)} %`;
}

export function bytes(size: number): string {
  if (size < 1024) return `${size} B`;
  const [value, unit] = size < 1024 ** 2 ? [size / 1024, "KiB"] : [size / 1024 ** 2, "MiB"];
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
}

/** `3 h 12 min`. */
export function age(seconds: number | undefined): string {
  if (seconds === undefined) return "-";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
