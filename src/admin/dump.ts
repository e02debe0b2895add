import { z } from "zod";
import { action, type Endpoint, type Reply } from "./endpoint.ts";

/**
 * What a dump holds: the type of what is gathered, and what `coatcheck dump --open` asks of a file. A new part appears
 * here or nowhere. Sizes are bytes, times ISO 8601 in UTC.
 */

export const DUMP_FORMAT = "coatcheck-dump";
/** Raised when a reader of the version before would misunderstand a dump. */
export const DUMP_FORMAT_VERSION = 1;

/** What every file of ours begins with, whatever its version. */
export const DUMP_HEAD = z.looseObject({ format: z.literal(DUMP_FORMAT), formatVersion: z.int().min(1) });

const optionalText = z.string().optional();
const optionalNumber = z.number().optional();

const BUILD = z.looseObject({
  version: z.string(),
  node: z.string(),
  v8: z.string(),
  platform: z.string(),
  arch: z.string(),
  pid: z.int(),
  startedAt: z.string(),
  uptimeSeconds: z.number(),
  draining: z.boolean(),
  command: z.array(z.string()).describe("The command and the names of its options; empty inside another program."),
  nodeOptions: z.array(z.string()).describe("Names, and values that are numbers."),
  dependencies: z.record(z.string(), z.string()).describe("Installed versions by name."),
});

const RUNTIME = z.looseObject({
  memory: z.looseObject({
    rssBytes: z.number(),
    heapUsedBytes: z.number(),
    heapTotalBytes: z.number(),
    heapLimitBytes: z.number(),
    externalBytes: z.number(),
    arrayBuffersBytes: z.number(),
  }),
  heapSpaces: z.array(z.looseObject({ name: z.string(), usedBytes: z.number(), sizeBytes: z.number() })),
  machine: z.looseObject({
    cpus: z.int(),
    loadAverage: z.array(z.number()),
    memoryBytes: z.number().describe("Of the machine, or of the control group where that is less."),
    freeMemoryBytes: z.number(),
  }),
  cpu: z.looseObject({
    userSeconds: z.number(),
    systemSeconds: z.number(),
    share: z.number().describe("Of one processor, while the dump was taken; 1 is all of it."),
  }),
  eventLoop: z.looseObject({
    utilization: z.number().describe("While the dump was taken; 1: it was never idle."),
    utilizationSinceStart: z.number(),
    delayP50Ms: z.number(),
    delayP99Ms: z.number(),
    delayMaxMs: z.number(),
  }),
  handles: z.record(z.string(), z.int()).describe("What keeps the event loop alive, by kind."),
  openFiles: z.int().nullable().describe("Null where the system does not tell."),
  maxOpenFiles: z.int().nullable(),
});

const STORE = z.looseObject({
  kind: z.string(),
  ok: z.boolean(),
  detail: z.string(),
  tookMs: z.number(),
  facts: z.array(z.looseObject({ name: z.string(), value: z.string() })),
  warnings: z.array(z.string()),
});

const CACHE = z.looseObject({
  entries: z.int(),
  bytes: z.number(),
  maxBytes: z.number(),
  feed: z.string(),
});

const EXCHANGE = z.looseObject({
  time: z.string(),
  traceId: z.string(),
  request: z.looseObject({ method: z.string(), host: z.string(), path: z.string() }),
  route: optionalText,
  session: z.looseObject({
    cookie: z.string(),
    outcome: z.string(),
    source: optionalText,
    logout: optionalText,
    decision: z.string(),
  }),
  upstream: z.looseObject({ address: z.string(), status: optionalNumber }).optional(),
  response: z.looseObject({ status: z.number(), source: z.string() }),
  error: z.looseObject({ type: z.string(), message: optionalText }).optional(),
  timings: z.looseObject({
    resolveStarted: optionalNumber,
    resolved: optionalNumber,
    forwarded: optionalNumber,
    upstreamEnd: optionalNumber,
    ended: optionalNumber,
  }),
});

const EVENT = z.looseObject({ time: z.string(), level: z.string(), event: z.string(), msg: optionalText });

const WORKER = z.looseObject({
  worker: z.int(),
  state: z.string(),
  restarts: z.int(),
  pid: optionalNumber,
  startedAt: optionalText,
  runtime: RUNTIME.optional(),
  cache: CACHE.nullable().optional(),
});

export const DUMP = z.looseObject({
  format: z.literal(DUMP_FORMAT),
  formatVersion: z.literal(DUMP_FORMAT_VERSION),
  takenAt: z.string(),
  build: BUILD,
  settings: z.looseObject({}).describe("The effective configuration, secrets masked."),
  observe: z.looseObject({}).describe("How logs, traces and the recorder are set at the moment."),
  runtime: RUNTIME,
  store: STORE,
  cache: CACHE.nullable().describe("Null where there is no near cache."),
  events: z.array(EVENT).describe("Newest first."),
  exchanges: z.record(z.string(), z.array(EXCHANGE)).describe("By ring, newest first."),
  metrics: z.string().describe("OpenMetrics."),
  workers: z
    .array(WORKER)
    .optional()
    .describe("Absent: there is one process. Otherwise `runtime` is of the busiest, and the rest of all together."),
});

export type Dump = z.output<typeof DUMP>;

/** `coatcheck-dump-2026-05-01T12-00-00.000Z-4242.json.gz`. */
export function dumpFileName({ takenAt, build }: Pick<Dump, "takenAt" | "build">): string {
  return `${DUMP_FORMAT}-${takenAt.replaceAll(":", "-")}-${build.pid}.json.gz`;
}

export interface TakenDump {
  readonly fileName: string;
  /** JSON, compressed with gzip. */
  readonly content: Uint8Array;
}

export function dumpEndpoint(takeDump: () => Promise<TakenDump>): [path: string, endpoint: Endpoint] {
  const about =
    "everything that is known, redacted, in one file: build, configuration, runtime, store, cache, exchanges, events, metrics; gzip-compressed JSON, for `coatcheck dump --open FILE`";
  return [
    "/debug/dump",
    {
      about,
      actions: {
        GET: action({
          about,
          query: z.strictObject({}),
          answer: "application/gzip",
          reply: async (): Promise<Reply> => {
            const { fileName, content } = await takeDump();
            const fields = { "content-disposition": `attachment; filename="${fileName}"` };
            return { status: 200, type: "application/gzip", body: content, fields };
          },
        }),
      },
    },
  ];
}
