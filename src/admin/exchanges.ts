import { z } from "zod";
import { ERROR_CODES } from "../core/errors.ts";
import { LOGOUT_REASONS, POLICY_DECISIONS, SESSION_OUTCOMES } from "../core/exchange.ts";
import { handleOf } from "../core/session.ts";
import { select } from "../observe/exchange-filter.ts";
import type { Observer } from "../observe/observer.ts";
import type { ExchangeRecord, WatchedRecord } from "../observe/record.ts";
import { RING_NAMES } from "../observe/recorder.ts";
import { reasonOf, stepsOf } from "../observe/steps.ts";
import { action, durationText, type Endpoint, handleText, json, wholeText } from "./endpoint.ts";
import { SHOWN_EXCHANGE, type ShownExchange } from "./exchange-schema.ts";

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1000;
const RINGS = [...RING_NAMES, "watch"] as const;

function oneOf<const T extends readonly string[]>(values: T) {
  return z.enum(values, { error: `must be one of ${values.join(", ")}` });
}

const id = z.string().regex(/^[0-9a-f]{16}$/, { error: "must be 16 hex digits" });

const QUERY = z.strictObject({
  ring: oneOf(RINGS)
    .default("recent")
    .describe("Which ones: the last, the last slow ones, the last failed ones, or those under watch."),
  limit: wholeText(1, MAX_LIMIT).default(DEFAULT_LIMIT).describe("How many at the most."),
  route: z.string().optional().describe("Id of the route, as records and metrics have it."),
  outcome: oneOf(SESSION_OUTCOMES).optional().describe("What became of the session."),
  logout: oneOf([...LOGOUT_REASONS, "surprise"])
    .optional()
    .describe(
      "Why a visitor with a cookie of ours was not recognised; surprise: any reason but `expired` and `ended`.",
    ),
  decision: oneOf(POLICY_DECISIONS).optional().describe("What the policy of the route made of that."),
  status: z
    .string()
    .regex(/^([1-5]\d\d|[1-5]xx)$/, { error: "must be a status such as 503, or a class such as 5xx" })
    .optional()
    .describe("A status, or a class of them: 5xx."),
  error: oneOf(ERROR_CODES).optional().describe("The type of the error."),
  handle: handleText.transform(handleOf).optional().describe("Handle of the session, or more of its key."),
  slowerThan: durationText({ min: "0ms", max: "1d", example: "250ms" })
    .optional()
    .describe("Only what took longer: 250ms, 2s."),
  traceId: z
    .string()
    .regex(/^[0-9a-f]{32}$/, { error: "must be 32 hex digits, as the error page, the log and the trace have it" })
    .optional(),
  path: z.string().startsWith("/", { error: "must begin with a slash" }).optional().describe("How the path begins."),
  watch: id.optional().describe("Id of a watch, with ring=watch."),
  after: id.optional().describe("Span id of a record: only newer ones."),
});

/** The answer. */
export const EXCHANGES = z.strictObject({
  ring: z.enum(RINGS),
  kept: z.int().describe("How many the ring holds, with after=: how many newer ones."),
  matched: z.int().describe("How many of these are what was asked for."),
  exchanges: z.array(SHOWN_EXCHANGE),
});

/** The last requests, each with its decisions. */
export function exchangesEndpoint(observer: Observer): [path: string, endpoint: Endpoint] {
  const filters = Object.keys(QUERY.shape).filter((name) => name !== "ring" && name !== "limit");
  const about = `the last exchanges, newest first: ?ring=${RINGS.join("|")} (default recent) &limit=1…${MAX_LIMIT} (default ${DEFAULT_LIMIT}), and only those with: ${filters.join(", ")}`;
  return [
    "/debug/exchanges",
    {
      about,
      actions: {
        GET: action({
          about,
          query: QUERY,
          answer: EXCHANGES,
          reply: async ({ query: { ring, limit, after, ...filter } }) => {
            const records = ring === "watch" ? observer.watches.records() : observer.recorder.records(ring);
            const { kept, matched, found } = await select(records, { filter, limit, after });
            return json(200, { ring, kept, matched, exchanges: found.map(shown) });
          },
        }),
      },
    },
  ];
}

function shown(record: ExchangeRecord | WatchedRecord): ShownExchange {
  const { time, traceId, spanId, ...rest } = record;
  return { time, traceId, spanId, reason: reasonOf(record), ...rest, steps: stepsOf(record) };
}
