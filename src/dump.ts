import { readdirSync, readFileSync } from "node:fs";
import { findPackageJSON } from "node:module";
import { availableParallelism, freemem, loadavg, totalmem } from "node:os";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { getHeapSpaceStatistics, getHeapStatistics } from "node:v8";
import { gunzip, gzip } from "node:zlib";
import { DUMP, DUMP_FORMAT, DUMP_FORMAT_VERSION, type Dump, dumpFileName, type TakenDump } from "./admin/dump.ts";
import type { Config } from "./config/compile.ts";
import { withoutContents } from "./core/errors.ts";
import type { SessionStore } from "./core/store.ts";
import type { LogEvent } from "./observe/logging.ts";
import type { Observer } from "./observe/observer.ts";
import type { ExchangeRecord } from "./observe/record.ts";
import { RING_NAMES } from "./observe/recorder.ts";
import type { NearCache } from "./session/near-cache.ts";
import { explain } from "./store/failures.ts";
import { within } from "./store/guarded.ts";
import { DEPENDENCIES, VERSION } from "./version.ts";

/** How long event loop and processor are watched. */
const MEASURE_MS = 250;
/** How long the store may take, so that a dead one does not hold the dump. */
const STORE_TIMEOUT_MS = 5_000;
/** Of each ring. */
const MAX_EXCHANGES = 1_000;
/** Of the timer that measures the delay of the event loop; it is in every sample. */
const DELAY_RESOLUTION_MS = 5;

export interface DumpSource {
  /** What is in effect now. */
  readonly config: () => Config;
  /** The command and the names of its options, without values. */
  readonly command: readonly string[];
  readonly observer: Observer;
  readonly store: SessionStore;
  /** Whether the store is somebody else's code, whose messages may hold anything. */
  readonly isCustomStore: boolean;
  readonly cache: NearCache | undefined;
  readonly isDraining: () => boolean;
}

const compress = promisify(gzip);
const decompress = promisify(gunzip);
/** Of one that a worker gave, and that is put together with others. */
const MAX_DUMP_BYTES = 256 * 1024 * 1024;

/** Everything that is known, as a file to be handed on. */
export async function takeDump(source: DumpSource): Promise<TakenDump> {
  const dump = await gather(source);
  return { fileName: dumpFileName(dump), content: await packDump(dump) };
}

/** As it lies in a file. */
export function packDump(dump: Dump): Promise<Uint8Array> {
  return compress(JSON.stringify(dump));
}

/** @throws Error for what is no dump of this version. */
export async function unpackDump(content: Uint8Array): Promise<Dump> {
  const text = await decompress(content, { maxOutputLength: MAX_DUMP_BYTES });
  return DUMP.parse(JSON.parse(text.toString()));
}

async function gather(source: DumpSource): Promise<Dump> {
  const { config, observer, cache } = source;
  const takenAt = new Date().toISOString();
  const [runtime, store] = await Promise.all([lookAtRuntime(), askStore(source)]);
  const { shown, observe, cache: cacheConfig } = config();
  return {
    format: DUMP_FORMAT,
    formatVersion: DUMP_FORMAT_VERSION,
    takenAt,
    build: build(source),
    settings: { ...shown },
    observe: { ...observe, ...observer.settings.current },
    runtime,
    store,
    cache:
      cache === undefined
        ? null
        : { entries: cache.entries, bytes: cache.bytes, maxBytes: cacheConfig.maxBytes, feed: cache.feedState },
    events: observer.log.events().map((it) => shownEvent(it, source)),
    exchanges: Object.fromEntries(
      RING_NAMES.map((ring) => [
        ring,
        observer.recorder.list(ring, MAX_EXCHANGES).map((it) => shownRecord(it, source)),
      ]),
    ),
    metrics: await observer.metrics.render(),
  };
}

function build({ command, isDraining }: DumpSource): Dump["build"] {
  return {
    version: VERSION,
    node: process.versions.node,
    v8: process.versions.v8,
    platform: process.platform,
    arch: process.arch,
    pid: process.pid,
    startedAt: new Date(performance.timeOrigin).toISOString(),
    uptimeSeconds: Math.round(process.uptime()),
    draining: isDraining(),
    command: [...command],
    nodeOptions: process.execArgv.flatMap(shownOption),
    dependencies: Object.fromEntries(DEPENDENCIES.map((name) => [name, installedVersion(name)])),
  };
}

/** The name of an option of node; its value only if it is a number. */
function shownOption(option: string): string[] {
  const [, name, number = ""] = /^(--?[a-z][a-z-]*)(=\d{1,12}$)?/i.exec(option) ?? [];
  return name === undefined ? [] : [name + number];
}

function installedVersion(name: string): string {
  try {
    return JSON.parse(readFileSync(findPackageJSON(name, import.meta.url) ?? "", "utf8")).version;
  } catch {
    return "not known";
  }
}

async function lookAtRuntime(): Promise<Dump["runtime"]> {
  const delay = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS });
  const utilizationBefore = performance.eventLoopUtilization();
  const cpuBefore = process.cpuUsage();
  const startedMs = performance.now();
  delay.enable();
  await sleep(MEASURE_MS);
  delay.disable();
  const tookMs = performance.now() - startedMs;
  const recent = process.cpuUsage(cpuBefore);
  const cpu = process.cpuUsage();
  const delayMs = (ns: number) => rounded(Math.max(0, (ns || 0) / 1e6 - DELAY_RESOLUTION_MS));
  const { rss, heapUsed, heapTotal, external, arrayBuffers } = process.memoryUsage();
  return {
    memory: {
      rssBytes: rss,
      heapUsedBytes: heapUsed,
      heapTotalBytes: heapTotal,
      heapLimitBytes: getHeapStatistics().heap_size_limit,
      externalBytes: external,
      arrayBuffersBytes: arrayBuffers,
    },
    heapSpaces: getHeapSpaceStatistics()
      .map((space) => ({ name: space.space_name, usedBytes: space.space_used_size, sizeBytes: space.space_size }))
      .filter(({ sizeBytes }) => sizeBytes > 0),
    machine: {
      cpus: availableParallelism(),
      loadAverage: loadavg().map(rounded),
      memoryBytes: Math.min(process.constrainedMemory() || Number.POSITIVE_INFINITY, totalmem()),
      freeMemoryBytes: Math.min(process.availableMemory(), freemem()),
    },
    cpu: {
      userSeconds: rounded(cpu.user / 1e6),
      systemSeconds: rounded(cpu.system / 1e6),
      share: rounded((recent.user + recent.system) / 1e3 / tookMs),
    },
    eventLoop: {
      utilization: rounded(performance.eventLoopUtilization(utilizationBefore).utilization),
      utilizationSinceStart: rounded(performance.eventLoopUtilization().utilization),
      delayP50Ms: delayMs(delay.percentile(50)),
      delayP99Ms: delayMs(delay.percentile(99)),
      delayMaxMs: delayMs(delay.max),
    },
    handles: countOf(process.getActiveResourcesInfo()),
    ...openFiles(),
  };
}

/** How many file descriptors this process may have; `undefined` where `/proc` does not tell. */
export function maxOpenFiles(): number | undefined {
  try {
    const [, limit] = /^Max open files +(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8")) ?? [];
    return limit === undefined ? undefined : Number(limit);
  } catch {
    return undefined;
  }
}

/** Where `/proc` tells: how many file descriptors are open, and how many may be. */
function openFiles(): Pick<Dump["runtime"], "openFiles" | "maxOpenFiles"> {
  try {
    // The list is read through one more.
    const open = readdirSync("/proc/self/fd").length - 1;
    return { openFiles: open, maxOpenFiles: maxOpenFiles() ?? null };
  } catch {
    return { openFiles: null, maxOpenFiles: null };
  }
}

async function askStore({ store, isCustomStore }: DumpSource): Promise<Dump["store"]> {
  const startedMs = performance.now();
  const inTime = <T>(what: string, ask: () => Promise<T>, otherwise: (problem: string) => T): Promise<T> =>
    within(STORE_TIMEOUT_MS, what, ask()).catch((error: unknown) => otherwise(explain(error).problem));
  const [check, inspection] = await Promise.all([
    inTime(
      "the check",
      async () => store.check(),
      (detail) => ({ ok: false, detail }),
    ),
    inTime(
      "the inspection",
      async () => (await store.inspect?.()) ?? { facts: [], warnings: [] },
      (problem) => ({ facts: [], warnings: [`the store could not be inspected: ${problem}`] }),
    ),
  ]);
  const hidden = isCustomStore && !check.ok;
  return {
    kind: store.kind,
    ok: check.ok,
    detail: hidden ? "gave no answer; the log says why" : withoutContents(check.detail),
    tookMs: rounded(performance.now() - startedMs),
    facts: inspection.facts.map(({ name, value }) => ({ name, value: withoutContents(value) })),
    warnings: hidden ? [] : inspection.warnings.map(withoutContents),
  };
}

/** In the place of what somebody else's store says: databases like to quote what they refuse. */
const STORE_FAILED = "the session store gave no answer; the log says why";

/** As `/debug/exchanges` shows it, but for what somebody else's store says. */
function shownRecord(record: ExchangeRecord, { isCustomStore }: DumpSource): ExchangeRecord {
  if (!isCustomStore || record.error?.type !== "session_store_unavailable") return record;
  return { ...record, error: { ...record.error, message: STORE_FAILED } };
}

/** As in the log, but for what somebody else's store says. */
function shownEvent(event: LogEvent, { isCustomStore }: DumpSource): LogEvent {
  const isOfStore = event.event === "write-back.refused" && event.reason === "failed";
  return isCustomStore && isOfStore ? { ...event, error_message: STORE_FAILED } : event;
}

function countOf(kinds: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const kind of kinds) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}
