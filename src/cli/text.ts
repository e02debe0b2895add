/** Text for people at a terminal. */

export { plain } from "../core/plain.ts";

/**
 * Aligns rows of cells; the first row is the heading.
 * @param right columns that are aligned at their right side.
 */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, cell.length);
  const aligned = (cell: string, column: number): string => {
    const width = widths[column] ?? 0;
    return right.includes(column) ? cell.padStart(width) : cell.padEnd(width);
  };
  return rows.map((row) => `${row.map(aligned).join("  ").trimEnd()}\n`).join("");
}

const UNITS: readonly (readonly [ms: number, name: string])[] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1_000, "s"],
];

/** `in 27 min`, `3 h ago`. @param iso a time as ISO 8601. */
export function fromNow(iso: string, now: number): string {
  const ms = Date.parse(iso) - now;
  const [unit, name] = UNITS.find(([unit]) => Math.abs(ms) >= unit) ?? [1_000, "s"];
  const amount = `${Math.round(Math.abs(ms) / unit)} ${name}`;
  return ms < 0 ? `${amount} ago` : `in ${amount}`;
}

/** `12,345`. */
export function grouped(count: number): string {
  return count.toLocaleString("en-US");
}

/** `0.4 ms`, `12 ms`, `3.2 s`; `-` when it is not known. */
export function shownMs(ms: number | undefined): string {
  if (ms === undefined) return "-";
  if (ms >= 9_999.5) return `${Math.round(ms / 1000)} s`;
  if (ms >= 999.5) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 9.95 ? Math.round(ms) : ms.toFixed(1)} ms`;
}
