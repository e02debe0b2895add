import { z } from "zod";
import { SESSION_OUTCOMES } from "../core/exchange.ts";
import { handleOf, MAX_USER_ID_LENGTH } from "../core/session.ts";
import { DEFAULT_WATCH, type WatchList, type WatchSummary, type WatchTarget } from "../core/watching.ts";
import { MAX_WATCHES, type Watches } from "../observe/watches.ts";
import { action, BadCall, durationText, type Endpoint, handleText, json } from "./endpoint.ts";

const time = z.iso.datetime();

/** One watch. */
export const WATCH: z.ZodType<WatchSummary> = z.strictObject({
  id: z.string(),
  user: z.string().nullable(),
  handle: z.string().nullable(),
  beganAt: time,
  endsAt: time.describe("When it ends by itself."),
  requests: z.int(),
  failed: z.int().describe("How many ended with an error, or with a status of 500 and above."),
  outcomes: z.partialRecord(z.enum(SESSION_OUTCOMES), z.int()).describe("How many had which session."),
  lastRequestAt: time.nullable(),
  handles: z.array(z.string()).describe("Of the sessions that were met."),
});
/** All of them. */
export const WATCHES: z.ZodType<WatchList> = z.strictObject({
  watches: z.array(WATCH),
  kept: z.int().describe("How many requests GET /debug/exchanges?ring=watch has."),
  keptUntil: time.nullable().describe("When these are forgotten; null while there is a watch."),
});

const LENGTH = { error: `must have 1 to ${MAX_USER_ID_LENGTH} characters` };
const user = z.string({ error: "must be text" }).min(1, LENGTH).max(MAX_USER_ID_LENGTH, LENGTH).optional();
const handle = handleText.optional();

const TARGET = z.strictObject({
  user: user.describe("Id of the user."),
  handle: handle.describe("Handle of the session, or more of its key."),
});
const BEGIN = TARGET.extend({
  for: durationText({ min: "1s", max: "24h", example: "15m" })
    .prefault(DEFAULT_WATCH)
    .describe("When it ends by itself."),
});

/** Puts users and sessions under watch. */
export function watchEndpoint(watches: Watches): [path: string, endpoint: Endpoint] {
  return [
    "/debug/watch",
    {
      about:
        'POST {"user": ID} or {"handle": HANDLE}, "for": "15m": traces and records each of their requests (?ring=watch of /debug/exchanges); GET: the watches; DELETE ?user= or ?handle=: ends one',
      actions: {
        GET: action({
          about: "the watches and what they have gathered",
          query: z.strictObject({}),
          answer: WATCHES,
          reply: () => json(200, watches.list()),
        }),
        POST: action({
          about: "puts a user or a session under watch, or lets a watch go on",
          query: z.strictObject({}),
          body: BEGIN,
          answer: WATCH,
          statuses: { 409: "there are too many watches" },
          reply: ({ body, id }) => {
            const begun = watches.begin(
              target(body, 'say whom: {"user": ID} or {"handle": HANDLE}, one of them'),
              body.for,
              id,
            );
            return begun === undefined
              ? json(409, {
                  error: `there are ${MAX_WATCHES} watches already; end one: DELETE ?user=ID or ?handle=HANDLE`,
                })
              : json(200, begun);
          },
        }),
        DELETE: action({
          about: "ends a watch; what it has gathered stays for ten minutes",
          query: TARGET,
          answer: WATCH,
          statuses: { 404: "nobody watches them" },
          reply: ({ query }) => {
            const ended = watches.end(target(query, "say which: ?user=ID or ?handle=HANDLE, one of them"));
            return ended === undefined
              ? json(404, { error: "there is no such watch; GET /debug/watch lists those there are" })
              : json(200, ended);
          },
        }),
      },
    },
  ];
}

/** @throws BadCall unless there is exactly one. */
function target({ user, handle }: z.output<typeof TARGET>, hint: string): WatchTarget {
  if (user !== undefined && handle === undefined) return { user };
  if (handle !== undefined && user === undefined) return { handle: handleOf(handle) };
  throw new BadCall(hint);
}
