import { performance } from "node:perf_hooks";
import type { Dump } from "../admin/dump.ts";
import type { LogEvent } from "../observe/logging.ts";
import type { PlaceReport } from "./fan-out.ts";
import { newestFirst } from "./merged-lists.ts";
import { NoAnswer } from "./worker-process.ts";

const MAX_EXCHANGES = 1_000;
const MAX_EVENTS = 500;
/** From the best to the worst. */
const FEEDS = ["tracking", "messages", "lost", "refused"];

/**
 * What workers dumped, as one dump: lists are put together, the process is the primary, the state of the runtime is that
 * of the busiest worker, and `workers` has each of them.
 * @throws NoAnswer when there is none.
 */
export function mergeDumps(
  dumps: ReadonlyMap<number, Dump>,
  primary: {
    readonly places: readonly PlaceReport[];
    readonly events: readonly LogEvent[];
    readonly metrics: string;
    readonly isDraining: boolean;
  },
): Dump {
  const all = [...dumps].map(([worker, dump]) => ({ worker, dump }));
  const [first] = all;
  if (first === undefined) throw new NoAnswer("no worker gave a dump");
  const busiest = all.reduce((a, b) =>
    b.dump.runtime.eventLoop.utilization > a.dump.runtime.eventLoop.utilization ? b : a,
  );
  const events = [
    ...primary.events.map((event) => ({ ...event, msg: event.msg === undefined ? undefined : String(event.msg) })),
    ...all.flatMap(({ worker, dump }) => dump.events.map((event) => ({ ...event, worker }))),
  ];
  const exchanges = Object.keys(first.dump.exchanges).map((ring) => {
    const lists = all.map(({ worker, dump }) => (dump.exchanges[ring] ?? []).map((it) => ({ ...it, worker })));
    return [ring, newestFirst(lists, MAX_EXCHANGES)];
  });
  return {
    ...first.dump,
    build: {
      ...first.dump.build,
      pid: process.pid,
      startedAt: new Date(performance.timeOrigin).toISOString(),
      uptimeSeconds: Math.round(process.uptime()),
      draining: primary.isDraining,
    },
    runtime: busiest.dump.runtime,
    // One that cannot reach the store is what somebody wants to know.
    store: all.find(({ dump }) => !dump.store.ok)?.dump.store ?? first.dump.store,
    cache: mergeCaches(all.flatMap(({ dump }) => dump.cache ?? [])),
    events: events.sort((a, b) => b.time.localeCompare(a.time)).slice(0, MAX_EVENTS),
    exchanges: Object.fromEntries(exchanges),
    metrics: primary.metrics,
    workers: primary.places.map(({ number, state, restarts }) => {
      const dump = dumps.get(number);
      return {
        worker: number,
        state,
        restarts,
        ...(dump && {
          pid: dump.build.pid,
          startedAt: dump.build.startedAt,
          runtime: dump.runtime,
          cache: dump.cache,
        }),
      };
    }),
  };
}

type Cache = NonNullable<Dump["cache"]>;

function mergeCaches(caches: readonly Cache[]): Cache | null {
  if (caches.length === 0) return null;
  return caches.reduce((a, b) => ({
    entries: a.entries + b.entries,
    bytes: a.bytes + b.bytes,
    maxBytes: a.maxBytes + b.maxBytes,
    feed: FEEDS.indexOf(b.feed) > FEEDS.indexOf(a.feed) ? b.feed : a.feed,
  }));
}
