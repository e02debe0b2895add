import type { z } from "zod";
import type { EXCHANGES } from "../admin/exchanges.ts";
import type { WEBSOCKETS } from "../admin/websockets.ts";
import type { WatchList, WatchSummary } from "../core/watching.ts";

/** What workers list, as one list. */

/** What a worker said. */
export interface Said<T> {
  readonly worker: number;
  readonly value: T;
}

type ExchangeList = z.output<typeof EXCHANGES>;
type WebSocketList = z.output<typeof WEBSOCKETS>;

const MAX_WEBSOCKETS = 1000;
/** Places in lists that somebody may go on from: `after`. */
const MAX_POSITIONS = 200;

/** By the number of a worker, the span id of its newest record that was shown. */
type Position = ReadonlyMap<number, string>;

/**
 * Lists of exchanges as one. Who asks for what came `after` a record names one, of one worker; what came after it at the
 * others is known from when that list was put together.
 */
export class Positions {
  readonly #bySpan = new Map<string, Position>();

  of(spanId: string): Position | undefined {
    return this.#bySpan.get(spanId);
  }

  merge(
    lists: readonly Said<ExchangeList>[],
    { limit, after, positions }: { limit: number; after: string | null; positions: Position | undefined },
  ): ExchangeList {
    const all = lists.map(({ worker, value }) => value.exchanges.map((it) => ({ ...it, worker })));
    const exchanges = newestFirst(all, limit);
    const position = new Map(positions);
    for (const { worker, value } of lists) {
      const newest = value.exchanges[0]?.spanId;
      if (newest !== undefined) position.set(worker, newest);
    }
    const newest = exchanges[0]?.spanId ?? after;
    if (newest !== null) this.#remember(newest, position);
    return {
      ring: lists[0]?.value.ring ?? "recent",
      kept: sum(lists, ({ kept }) => kept),
      matched: sum(lists, ({ matched }) => matched),
      exchanges,
    };
  }

  #remember(spanId: string, position: Position): void {
    this.#bySpan.delete(spanId);
    this.#bySpan.set(spanId, position);
    const [oldest] = this.#bySpan.keys();
    if (this.#bySpan.size > MAX_POSITIONS && oldest !== undefined) this.#bySpan.delete(oldest);
  }
}

/** Lists as one, each in the order in which it is: times tell what was first at different workers only. */
export function newestFirst<T extends Timed>(lists: readonly (readonly T[])[], limit: number): T[] {
  const merged: T[] = [];
  const next = lists.map(() => 0);
  while (merged.length < limit) {
    let newest: number | undefined;
    for (const [index, list] of lists.entries()) {
      const candidate = list[next[index] as number];
      if (candidate === undefined) continue;
      const before = newest === undefined ? undefined : lists[newest]?.[next[newest] as number];
      if (before === undefined || endOf(candidate) > endOf(before)) newest = index;
    }
    if (newest === undefined) break;
    merged.push(lists[newest]?.[next[newest] as number] as T);
    next[newest] = (next[newest] as number) + 1;
  }
  return merged;
}

interface Timed {
  readonly time: string;
  readonly timings: { readonly ended?: number | undefined };
}

/** Milliseconds since the epoch: rings are in the order in which requests ended. */
function endOf({ time, timings }: Timed): number {
  return Date.parse(time) + (timings.ended ?? 0);
}

export function mergeWebSockets(lists: readonly Said<WebSocketList>[]): WebSocketList {
  const all = lists
    .flatMap(({ worker, value }) => value.websockets.map((it) => ({ ...it, worker })))
    .sort((a, b) => b.since.localeCompare(a.since));
  const count = sum(lists, (list) => list.count);
  return {
    count,
    truncated: count > MAX_WEBSOCKETS,
    websockets: all.slice(0, MAX_WEBSOCKETS),
  };
}

export function mergeWatches(lists: readonly Said<WatchList>[]): WatchList {
  const byId = new Map<string, WatchSummary[]>();
  for (const { value } of lists)
    for (const watch of value.watches) byId.set(watch.id, [...(byId.get(watch.id) ?? []), watch]);
  const ends = lists.flatMap(({ value }) => value.keptUntil ?? []).sort();
  return {
    watches: [...byId.values()].map(mergeWatch),
    kept: sum(lists, ({ kept }) => kept),
    keptUntil: byId.size > 0 ? null : (ends.at(-1) ?? null),
  };
}

/** @param parts of one watch, by worker; at least one. */
export function mergeWatch(parts: readonly WatchSummary[]): WatchSummary {
  const [first] = parts;
  if (first === undefined) throw new TypeError("a watch that nobody has");
  const outcomes: Partial<Record<keyof WatchSummary["outcomes"], number>> = {};
  for (const part of parts)
    for (const [outcome, count] of Object.entries(part.outcomes) as [keyof WatchSummary["outcomes"], number][])
      outcomes[outcome] = (outcomes[outcome] ?? 0) + count;
  const last = parts.flatMap(({ lastRequestAt }) => lastRequestAt ?? []).sort();
  return {
    ...first,
    // A worker that came later has it from then on.
    beganAt: parts.map(({ beganAt }) => beganAt).sort()[0] ?? first.beganAt,
    requests: parts.reduce((total, { requests }) => total + requests, 0),
    failed: parts.reduce((total, { failed }) => total + failed, 0),
    outcomes,
    lastRequestAt: last.at(-1) ?? null,
    handles: [...new Set(parts.flatMap(({ handles }) => handles))],
  };
}

function sum<T>(lists: readonly Said<T>[], count: (value: T) => number): number {
  return lists.reduce((total, { value }) => total + count(value), 0);
}
