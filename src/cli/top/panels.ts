import type { Failure, Figures, Row, TimedRow } from "./figures.ts";
import {
  amount,
  beside,
  bytes,
  columnsOf,
  count,
  duration,
  foreign,
  type Line,
  percent,
  type Span,
  type Tone,
} from "./text.ts";

export const PANELS = ["routes", "sessions", "store", "errors"] as const;
export type Panel = (typeof PANELS)[number];

/** By what the rows of a panel are sorted. */
export const ORDERS = ["rate", "errors", "p99"] as const;
export type Order = (typeof ORDERS)[number];

/** What is slower than that gets a warning colour. */
const SLOW_SECONDS = 1;

/** @returns the panel in full; the caller shows as much as there is room for. */
export function panelLines(
  figures: Figures,
  { panel, order }: { panel: Panel; order: Order },
  columns: number,
): Line[] {
  switch (panel) {
    case "routes":
      return routesPanel(figures, order, columns);
    case "sessions":
      return sessionsPanel(figures, columns);
    case "store":
      return storePanel(figures, order, columns);
    case "errors":
      return errorsPanel(figures, columns);
  }
}

function routesPanel({ routes, upstreams, causes, statuses }: Figures, order: Order, columns: number): Line[] {
  return [
    ...timedTable("ROUTE", routes, order, columns),
    [],
    ...timedTable("APPLICATION", upstreams, order, columns),
    [],
    ...beside([counted("CAUSE OF FAILURE", causes), counted("STATUS", statuses)], columns),
  ];
}

function sessionsPanel({ outcomes, sources, logouts, events, stripped }: Figures, columns: number): Line[] {
  return beside(
    [
      counted("OUTCOME", outcomes),
      counted("ANSWERED BY", sources),
      counted("LOGGED OUT", logouts),
      counted("SESSIONS", events),
      counted("HEADERS STRIPPED", stripped),
    ],
    columns,
  );
}

function storePanel({ store, cache }: Figures, order: Order, columns: number): Line[] {
  return [
    ...timedTable("OPERATION", store.operations, order, columns),
    [],
    ...beside(
      [
        counted("FAILURE", store.failures),
        columnsOf(
          [
            [["NEAR CACHE", "dim"], [""]],
            [["sessions"], [count(cache.entries)]],
            [["memory"], [bytes(cache.bytes)]],
            [["hits"], [percent(cache.hitRatio)]],
          ],
          [1],
        ),
      ],
      columns,
    ),
  ];
}

function errorsPanel({ errors }: Figures, columns: number): Line[] {
  if (errors.length === 0) return [[["No request has failed.", "good"]]];
  return errors.flatMap((failure) => errorLines(failure, columns));
}

/** Two lines: what happened, and the trace id whole, to be copied. */
function errorLines(failure: Failure, columns: number): Line[] {
  const { time, method, path, route, status, cause, message, traceId } = failure;
  const clock = new Date(time).toTimeString().slice(0, 8);
  const wide = columns >= 70;
  return [
    [
      [`${clock} `, "dim"],
      [`${status} `, status >= 500 ? "bad" : "warn"],
      [`${cause ?? "by the application"}  `, "bold"],
      [foreign(`${method} ${path}`)],
      [wide ? foreign(`  (route ${route})`) : "", "dim"],
    ],
    [["  "], [foreign(traceId)], [message === undefined ? "" : `  ${foreign(message)}`, "dim"]],
  ];
}

function timedTable(heading: string, rows: readonly TimedRow[], order: Order, columns: number): Line[] {
  const wide = columns >= 66;
  const mark = (name: string, by: Order): Span => [by === order ? `${name}*` : name, "dim"];
  const heads: Span[] = [
    [heading, "dim"],
    mark("/S", "rate"),
    mark("FAILED", "errors"),
    ["P50", "dim"],
    ...(wide ? [["P95", "dim"] satisfies Span] : []),
    mark("P99", "p99"),
    ...(wide ? [["TOTAL", "dim"] satisfies Span] : []),
  ];
  const sorted = [...rows].sort((a, b) => orderOf(b, order) - orderOf(a, order) || b.total - a.total);
  const cells = sorted.map(({ name, rate, errorRate, latency, total }): Line => {
    const failed = rate > 0 ? errorRate / rate : undefined;
    return [
      [foreign(name)],
      [amount(rate)],
      [percent(failed), errorRate > 0 ? "bad" : "plain"],
      [duration(latency.p50)],
      ...(wide ? [[duration(latency.p95)] satisfies Span] : []),
      [duration(latency.p99), toneOf(latency.p99)],
      ...(wide ? [[count(total)] satisfies Span] : []),
    ];
  });
  return columnsOf([heads, ...cells], [1, 2, 3, 4, 5, 6]);
}

function orderOf({ rate, errorRate, latency }: TimedRow, order: Order): number {
  if (order === "rate") return rate;
  return order === "errors" ? errorRate : (latency.p99 ?? -1);
}

function counted(heading: string, rows: readonly Row[]): Line[] {
  const cells = rows.map(({ name, rate, total }): Line => [[foreign(name)], [amount(rate)], [count(total)]]);
  const none: Line[] = rows.length === 0 ? [[["none"], [""], [""]]] : [];
  return columnsOf(
    [
      [
        [heading, "dim"],
        ["/S", "dim"],
        ["TOTAL", "dim"],
      ],
      ...cells,
      ...none,
    ],
    [1, 2],
  );
}

export function toneOf(seconds: number | undefined): Tone {
  return seconds !== undefined && seconds >= SLOW_SECONDS ? "warn" : "plain";
}
