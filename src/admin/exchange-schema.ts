import { z } from "zod";
import { ERROR_CODES } from "../core/errors.ts";
import {
  COOKIE_VERDICTS,
  LOGOUT_REASONS,
  POLICY_DECISIONS,
  SESSION_OUTCOMES,
  SESSION_SOURCES,
  STRIP_CLASSES,
  WRITE_BACK_COMMANDS,
  WRITE_BACK_RESULTS,
} from "../core/exchange.ts";
import { VERIFICATION_PROTOCOLS } from "../core/forward-auth.ts";
import { LIMIT_REASONS } from "../core/limits.ts";
import { STORE_FAILURES } from "../core/store.ts";
import { CHOICES, QUEUE_REFUSALS, RETRY_REASONS } from "../core/upstream.ts";
import { STEPS } from "../observe/steps.ts";

/** What `GET /debug/exchanges` says of a request. Headers have names and no values. */

const ms = z.number().describe("Milliseconds after `time`.");
const names = z.readonly(z.array(z.string()));

const STEP = z.strictObject({
  step: z.enum(STEPS),
  atMs: z.number().optional().describe("Milliseconds after `time`; absent: between the steps before and after it."),
  tookMs: z.number().optional().describe("Milliseconds."),
  detail: z.string(),
});

const FIELDS = z
  .readonly(z.array(z.strictObject({ name: z.string(), value: z.string() })))
  .describe("In order. Values that are not on the allow-list: `*** (N)`, N being the length.");

const WATCH = z.strictObject({
  ids: z.array(z.string()).describe("Of the watches that it was kept for."),
  query: z.string().optional().describe("Masked; absent when there was none."),
  request: FIELDS,
  forwarded: FIELDS.optional(),
  upstreamResponse: FIELDS.optional(),
  response: FIELDS.optional(),
});

const RECORD = z.strictObject({
  worker: z.int().optional().describe("Which one served it; absent: there is one process."),
  time: z.iso.datetime(),
  traceId: z.string(),
  spanId: z.string(),
  sampled: z.boolean(),
  watched: z.boolean(),
  request: z.strictObject({
    method: z.string().describe("Empty for a message that was no request."),
    host: z.string(),
    path: z.string().describe("Without the query."),
    httpVersion: z.string(),
    tls: z
      .strictObject({
        version: z.string().describe("Such as `1.3`."),
        cipher: z.string().describe("By its IANA name."),
      })
      .optional()
      .describe("Of the connection to the gateway; absent: it is not encrypted."),
    client: z.string(),
    bytes: z.int(),
  }),
  verification: z
    .strictObject({
      protocol: z.enum(VERIFICATION_PROTOCOLS).describe("How it asked; `unknown`: refused before that was known."),
      method: z.string().describe("Of the request that was asked about; empty: not known."),
    })
    .optional()
    .describe("Another proxy asked whether a request may go on: host, path and route are those of that request."),
  route: z.string().optional(),
  session: z.strictObject({
    cookie: z.enum(COOKIE_VERDICTS),
    cookieSecret: z.int().optional().describe("Which of `session.cookie.secrets` verified the cookie, from 0."),
    outcome: z.enum(SESSION_OUTCOMES),
    source: z.enum(SESSION_SOURCES).optional(),
    logout: z.enum(LOGOUT_REASONS).optional().describe("Why a visitor with a cookie of ours was not recognised."),
    staleMs: z.number().optional().describe("With the source `stale`: how old the session was."),
    handle: z.string().optional(),
    decision: z.enum(POLICY_DECISIONS),
  }),
  headers: z.strictObject({
    stripped: z.partialRecord(z.enum(STRIP_CLASSES), z.int()),
    strippedNames: names,
    identity: names.describe("Those that carried a value."),
  }),
  storeCommands: z
    .array(
      z.strictObject({
        name: z.string().describe("`HMGET`."),
        script: z.string().optional().describe("What an `EVALSHA` does."),
        server: z.string(),
        started: ms,
        ended: ms,
        failure: z.enum(STORE_FAILURES).optional(),
        code: z.string().optional().describe("The first word of what the server said in place of an answer."),
      }),
    )
    .optional()
    .describe("Commands that went to the server of the store, one for each attempt."),
  storeCommandsDropped: z.int().describe("How many more there were."),
  writeBack: z
    .array(z.strictObject({ command: z.enum(WRITE_BACK_COMMANDS), result: z.enum(WRITE_BACK_RESULTS) }))
    .optional(),
  writeBackKeysDropped: z.int(),
  upstream: z
    .strictObject({
      address: z.string(),
      status: z.int().optional(),
      peer: z.string().optional().describe("The address of it that was asked, where Coatcheck resolves the name."),
      choice: z.enum(CHOICES).optional().describe("Why it was this target; absent: there is no other."),
      waitedMs: z.number().describe("How long the request waited for a connection to become free, milliseconds."),
      retries: z.int().describe("How often the request was sent again."),
      retryRefused: z.boolean().describe("It could have been sent again, but for the budget of retries."),
      attempts: z
        .array(
          z.strictObject({
            address: z.string(),
            peer: z.string().optional(),
            choice: z.enum(CHOICES).optional(),
            started: ms,
            ended: ms,
            status: z.int().optional(),
            error: z.enum(ERROR_CODES).optional(),
            retry: z.enum(RETRY_REASONS).describe("Why another one followed."),
          }),
        )
        .optional()
        .describe("Those before the last."),
      interimHeads: z.int().describe("Interim responses (103 and its like) that were passed on."),
      error: z
        .enum(ERROR_CODES)
        .optional()
        .describe("How it failed; absent when the gateway could not use a good answer."),
    })
    .optional(),
  queueRefused: z
    .enum(QUEUE_REFUSALS)
    .optional()
    .describe("No connection became free: too many requests waited already, or it waited for too long."),
  response: z.strictObject({
    status: z.int(),
    source: z.enum(["upstream", "proxy"]),
    bytes: z.int(),
    clientGone: z.boolean(),
  }),
  limited: z.enum(LIMIT_REASONS).optional().describe("Which limit it passed, if it was refused for that."),
  error: z.strictObject({ type: z.enum(ERROR_CODES), message: z.string().optional() }).optional(),
  timings: z.strictObject({
    resolveStarted: ms.optional(),
    resolved: ms.optional(),
    forwarded: ms.optional(),
    attempt: ms.optional().describe("The last attempt upstream; `forwarded` is the first."),
    upstreamHead: ms.optional(),
    saved: ms.optional(),
    upstreamEnd: ms.optional(),
    ended: ms.optional(),
  }),
});

/** A request as it is shown: its record, what it means in words, and its steps. */
export const SHOWN_EXCHANGE = RECORD.extend({
  reason: z.string().describe("What became of it, and why, in one clause."),
  steps: z.array(STEP),
  watch: WATCH.optional().describe("With ring=watch."),
});
export type ShownExchange = z.output<typeof SHOWN_EXCHANGE>;
