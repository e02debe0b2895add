import type { Dump } from "../admin/dump.ts";
import { isSurprise } from "../core/exchange.ts";
import { parseOpenMetrics } from "./open-metrics.ts";
import { grouped, plain, table } from "./text.ts";

/** A dump for a person who has two minutes. Everything in it may come from somewhere else, so nothing is printed as it is. */

type Recorded = Dump["exchanges"][string][number];

const ROWS = 8;
/** How many of the last requests are held against one another. */
const LAST = 50;
/** From here on it is worth a line: of the heap's limit, of the descriptors; of a turn of the event loop. */
const NEARLY_FULL = 0.85;
const SLOW_TURN_MS = 50;
const BUSY_LOOP = 0.9;

export function renderSummary(dump: Dump): string {
  const parts: [title: string, text: string][] = [
    ["What stands out", standsOut(dump)],
    ["Session store", renderStore(dump)],
    ["Sessions", renderOutcomes(recent(dump))],
    ["Failures", renderFailures(dump)],
    ["Log-outs", renderLogouts(dump)],
    ["Slowest requests", renderSlowest(dump)],
    ["Routes", renderRoutes(recent(dump))],
    [dump.workers === undefined ? "Process" : "The busiest worker", renderRuntime(dump)],
    ["Workers", renderWorkers(dump)],
    ["Last warnings and errors", renderEvents(dump)],
  ];
  const shown = parts.filter(([, text]) => text !== "");
  return [renderBuild(dump), ...shown.map(([title, text]) => `${title}\n${indented(text)}`)].join("\n");
}

function renderBuild({ build, takenAt }: Dump): string {
  const { version, node, platform, arch, pid, startedAt, uptimeSeconds, draining, command } = build;
  const started = command.length === 0 ? "inside another program" : `as: coatcheck ${command.join(" ")}`;
  return [
    `Coatcheck ${version}, node ${node}, ${platform} ${arch}, pid ${pid}${draining ? ", being shut down" : ""}`,
    `taken ${shownTime(takenAt)} UTC, running since ${shownTime(startedAt)} UTC (${shownSpan(uptimeSeconds)}), ${started}`,
  ]
    .map((line) => `${plain(line, 500)}\n`)
    .join("");
}

function standsOut(dump: Dump): string {
  const { store, cache, runtime, events } = dump;
  const { memory, eventLoop, openFiles, maxOpenFiles } = runtime;
  const lines: string[] = [];
  if (!store.ok) lines.push(`the session store does not serve: ${store.detail}`);
  const last = recent(dump).slice(0, LAST);
  for (const { cause, records } of failuresIn(last).slice(0, 3))
    lines.push(`${records.length} of the last ${last.length} requests failed with ${cause}`);
  const surprises = logouts(dump).filter(({ reason }) => isSurprise(reason));
  if (surprises.length > 0)
    lines.push(
      `visitors were logged out by surprise: ${surprises.map(({ reason, count }) => `${grouped(count)} ${reason}`).join(", ")}`,
    );
  if (store.warnings.length > 0) lines.push(`warnings about the session store: ${store.warnings.length}`);
  if (cache !== null && (cache.feed === "lost" || cache.feed === "refused"))
    lines.push(`the near cache is bypassed: the store cannot be heard telling of changes (${cache.feed})`);
  if (memory.heapUsedBytes > memory.heapLimitBytes * NEARLY_FULL)
    lines.push(`the heap is nearly full: ${percent(memory.heapUsedBytes / memory.heapLimitBytes)} of its limit`);
  if (openFiles !== null && maxOpenFiles !== null && openFiles > maxOpenFiles * NEARLY_FULL)
    lines.push(`file descriptors are nearly used up: ${openFiles} of ${maxOpenFiles}`);
  if (eventLoop.delayP99Ms > SLOW_TURN_MS)
    lines.push(`the event loop was blocked: one turn in a hundred took ${eventLoop.delayP99Ms.toFixed(0)} ms`);
  if (eventLoop.utilization > BUSY_LOOP)
    lines.push(
      `the event loop is busy ${percent(eventLoop.utilization)} of the time: more instances, or coatcheck profile`,
    );
  const unexpected = events.filter(({ event }) => event === "error.unexpected").length;
  if (unexpected > 0) lines.push(`errors that nobody expected: ${unexpected}; see the log, or --section events`);
  return lines.length === 0 ? "nothing\n" : lines.map((line) => `- ${plain(line, 300)}\n`).join("");
}

function renderStore({ store, cache }: Dump): string {
  const facts = store.facts.map(({ name, value }) => [plain(name), plain(value, 300)]);
  const near =
    cache === null
      ? "none"
      : `${grouped(cache.entries)} sessions, ${shownBytes(cache.bytes)} of ${shownBytes(cache.maxBytes)}, feed: ${cache.feed}`;
  return [
    `${plain(store.kind)}: ${store.ok ? "serves" : "does NOT serve"}, ${plain(store.detail, 300)}\n`,
    table([...facts, ["near cache", plain(near)]]),
    ...store.warnings.map((warning) => `warning: ${plain(warning, 500)}\n`),
  ].join("");
}

function renderOutcomes(records: readonly Recorded[]): string {
  const rows = ranked(records, ({ session }) => `${session.outcome} ${session.source ?? "-"} ${session.decision}`);
  if (rows.length === 0) return "no request has been recorded\n";
  const cells = rows.map(({ cause, records }) => [...plain(cause).split(" "), grouped(records.length)]);
  return `of the last ${grouped(records.length)} requests:\n${table([["OUTCOME", "SOURCE", "DECISION", "REQUESTS"], ...cells], [3])}`;
}

function renderFailures(dump: Dump): string {
  const rows = failuresIn(unique([...recent(dump), ...ring(dump, "errors")])).slice(0, ROWS);
  if (rows.length === 0) return "none recorded\n";
  const cells = rows.map(({ cause, records }) => [
    grouped(records.length),
    plain(cause, 100),
    shownTime(records[0]?.time ?? ""),
    plain(records[0]?.traceId ?? ""),
  ]);
  return table([["TIMES", "CAUSE", "LAST (UTC)", "TRACE OF IT"], ...cells], [0]);
}

function renderLogouts(dump: Dump): string {
  const counted = logouts(dump).map(({ reason, count }) => [
    plain(reason),
    grouped(count),
    isSurprise(reason) ? "surprise" : "",
  ]);
  const surprised = recent(dump).filter(({ session }) => session.logout !== undefined && isSurprise(session.logout));
  const examples = ranked(surprised, ({ session }) => session.logout ?? "").slice(0, ROWS);
  const cells = examples.map(({ cause, records }) => [
    plain(cause),
    grouped(records.length),
    plain(records[0]?.traceId ?? ""),
  ]);
  return [
    counted.length === 0 ? "" : table([["REASON, SINCE THE START", "VISITORS", ""], ...counted], [1]),
    cells.length === 0 ? "" : table([["SURPRISE, OF THE RECORDED", "REQUESTS", "TRACE OF THE LAST"], ...cells], [1]),
  ].join("");
}

function renderSlowest(dump: Dump): string {
  const slowest = unique([...recent(dump), ...ring(dump, "slow")])
    .sort((a, b) => tookMs(b) - tookMs(a))
    .slice(0, ROWS);
  if (slowest.length === 0) return "";
  const span = (from: number | undefined, to: number | undefined) =>
    from === undefined || to === undefined ? "-" : (to - from).toFixed(1);
  const cells = slowest.map((record) => [
    tookMs(record).toFixed(1),
    span(record.timings.resolveStarted, record.timings.resolved),
    span(record.timings.forwarded, record.timings.upstreamEnd ?? record.timings.ended),
    String(record.response.status),
    plain(`${record.request.method} ${record.request.path}`, 50),
    plain(record.traceId),
  ]);
  return table([["MS", "SESSION", "UPSTREAM", "STATUS", "REQUEST", "TRACE"], ...cells], [0, 1, 2]);
}

function renderRoutes(records: readonly Recorded[]): string {
  const rows = ranked(records, ({ route }) => route ?? "none").slice(0, ROWS);
  if (rows.length === 0) return "";
  const cells = rows.map(({ cause, records }) => {
    const times = records.map(tookMs).sort((a, b) => a - b);
    const at = (share: number) => (times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? 0).toFixed(1);
    const failed = records.filter((record) => causeOf(record) !== undefined).length;
    return [plain(cause, 60), grouped(records.length), grouped(failed), at(0.5), at(0.95)];
  });
  return table([["ROUTE", "REQUESTS", "FAILED", "MEDIAN MS", "P95 MS"], ...cells], [1, 2, 3, 4]);
}

function renderRuntime({ runtime }: Dump): string {
  const { memory, machine, cpu, eventLoop, handles, openFiles, maxOpenFiles } = runtime;
  const kinds = Object.entries(handles).map(([kind, count]) => `${kind} ${count}`);
  const rows = [
    [
      "heap",
      `${shownBytes(memory.heapUsedBytes)} used, ${shownBytes(memory.heapTotalBytes)} taken, limit ${shownBytes(memory.heapLimitBytes)}`,
    ],
    ["resident", `${shownBytes(memory.rssBytes)}, ${shownBytes(memory.arrayBuffersBytes)} of it buffers`],
    [
      "event loop",
      `busy ${percent(eventLoop.utilization)}; delay ${eventLoop.delayP50Ms.toFixed(1)} ms at the median, ${eventLoop.delayMaxMs.toFixed(1)} ms at the most`,
    ],
    [
      "processor",
      `${percent(cpu.share)} of one; since the start ${(cpu.userSeconds + cpu.systemSeconds).toFixed(1)} s`,
    ],
    ["descriptors", openFiles === null ? "not known" : `${openFiles} of ${maxOpenFiles ?? "?"}`],
    ["handles", kinds.join(", ")],
    [
      "machine",
      `${machine.cpus} processors, load ${machine.loadAverage.join(" ")}, ${shownBytes(machine.memoryBytes)} memory, ${shownBytes(machine.freeMemoryBytes)} free`,
    ],
  ];
  return table(rows.map((row) => row.map((cell) => plain(cell))));
}

function renderWorkers({ workers = [] }: Dump): string {
  const rows = workers.map(({ worker, state, restarts, pid, runtime }) => [
    String(worker),
    state,
    pid === undefined ? "" : `pid ${pid}`,
    restarts === 0 ? "never restarted" : `restarted ${grouped(restarts)} times`,
    runtime === undefined
      ? ""
      : `${shownBytes(runtime.memory.rssBytes)}, event loop busy ${percent(runtime.eventLoop.utilization)}`,
  ]);
  return table(rows.map((row) => row.map((cell) => plain(cell))));
}

function renderEvents({ events }: Dump): string {
  const told = events.filter(({ level }) => level === "warn" || level === "error").slice(0, ROWS);
  return table(told.map(({ time, event, msg }) => [shownTime(time), plain(event, 40), plain(msg ?? "", 120)]));
}

interface Group {
  readonly cause: string;
  /** Newest first, at least one. */
  readonly records: readonly Recorded[];
}

/** Groups by a word, the largest first; what has no word is left out. */
function ranked(records: readonly Recorded[], wordOf: (record: Recorded) => string | undefined): Group[] {
  const groups = new Map<string, Recorded[]>();
  for (const record of records) {
    const cause = wordOf(record);
    if (cause === undefined) continue;
    const group = groups.get(cause);
    if (group === undefined) groups.set(cause, [record]);
    else group.push(record);
  }
  return [...groups]
    .map(([cause, records]) => ({ cause, records }))
    .sort((a, b) => b.records.length - a.records.length);
}

function failuresIn(records: readonly Recorded[]): Group[] {
  return ranked(records, causeOf);
}

/** `connection_refused to 10.0.0.5:3000`; absent for what did not fail. */
function causeOf({ error, response, upstream }: Recorded): string | undefined {
  if (error === undefined && response.status < 500) return undefined;
  const what = error?.type ?? `status ${response.status}`;
  const isStore = what.startsWith("session_");
  if (upstream === undefined || isStore) return what;
  return `${what} ${error === undefined ? "from" : "to"} ${upstream.address}`;
}

function logouts({ metrics }: Dump): { readonly reason: string; readonly count: number }[] {
  return (parseOpenMetrics(metrics).get("coatcheck_session_logouts_total") ?? [])
    .map(({ labels, value }) => ({ reason: labels.reason ?? "", count: value }))
    .filter(({ count }) => count > 0)
    .sort((a, b) => b.count - a.count);
}

function recent(dump: Dump): readonly Recorded[] {
  return ring(dump, "recent");
}

function ring({ exchanges }: Dump, name: string): readonly Recorded[] {
  return exchanges[name] ?? [];
}

/** An exchange may be in more than one ring. Newest first. */
function unique(records: readonly Recorded[]): Recorded[] {
  const seen = new Map(records.map((record) => [`${record.traceId} ${record.time} ${record.request.path}`, record]));
  return [...seen.values()].sort((a, b) => b.time.localeCompare(a.time));
}

function tookMs({ timings }: Recorded): number {
  return timings.ended ?? 0;
}

function indented(text: string): string {
  return text.replace(/^(?=.)/gm, "  ");
}

/** `2026-05-01 12:00:00`. */
function shownTime(iso: string): string {
  return plain(iso.slice(0, 19).replace("T", " "));
}

function shownSpan(seconds: number): string {
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  if (seconds < 7_200) return `${(seconds / 60).toFixed(0)} min`;
  return seconds < 172_800 ? `${(seconds / 3_600).toFixed(0)} h` : `${(seconds / 86_400).toFixed(0)} d`;
}

function shownBytes(bytes: number): string {
  if (bytes < 1024 * 1024) return `${(bytes / 1024).toFixed(0)} KiB`;
  return `${grouped(Math.round(bytes / 1024 / 1024))} MiB`;
}

function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`;
}
