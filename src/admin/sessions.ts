import { z } from "zod";
import {
  REFERENCE_PATTERN,
  type Refusal,
  type SessionAdministration,
  type SessionReference,
  type StoreReport,
} from "../core/administration.ts";
import { MAX_USER_ID_LENGTH } from "../core/session.ts";
import { action, type Call, type Endpoint, json, type Reply } from "./endpoint.ts";

const time = z.iso.datetime();
const handle = z.string().describe("The first 12 characters of the session's key; it opens nothing.");

const SUMMARY = z.strictObject({
  handle,
  createdAt: time,
  usedAt: time,
  expiresAt: time,
  retiresAt: time.nullable().describe("Set while the session has been replaced by a login and ends soon."),
  client: z.strictObject({ address: z.string(), userAgent: z.string() }).nullable(),
});
const LIST = z.strictObject({ count: z.int(), truncated: z.boolean(), sessions: z.array(SUMMARY) });
const DETAILS = SUMMARY.extend({
  user: z.strictObject({ id: z.string(), claims: z.array(z.string()) }).nullable(),
  attributes: z.array(z.strictObject({ name: z.string(), bytes: z.int() })),
  siblings: z.array(handle),
  version: z.int(),
});
const REVOCATION = z.strictObject({ count: z.int(), ended: z.array(handle), complete: z.boolean() });

const USER_LENGTH = { error: `must have 1 to ${MAX_USER_ID_LENGTH} characters` };
const user = z
  .string({ error: "say whose sessions: ?user=ID" })
  .min(1, USER_LENGTH)
  .max(MAX_USER_ID_LENGTH, USER_LENGTH);
const HANDLE_WANTED = "is named by its handle, 12 characters of A-Z a-z 0-9 - _, or by more of its key";
const reference = z
  .string()
  .regex(REFERENCE_PATTERN, { error: `a session ${HANDLE_WANTED}` })
  .describe("Handle of the session, or more of its key: 12 to 43 characters.");
const except = z.string().regex(REFERENCE_PATTERN, { error: HANDLE_WANTED }).describe("Handle of one that stays.");

const OF_USER = z.strictObject({ user: user.describe("Id of the user.") });
const ALL_BUT_ONE = OF_USER.extend({ except: except.optional() });
const PERHAPS_OF_USER = z.strictObject({
  user: user.optional().describe("Id of the user: finds the session at once."),
});

const OUTAGE = "the session store does not answer";

/** The sessions of a user: listed, looked at and ended. */
export function sessionEndpoints(sessions: SessionAdministration): [path: string, endpoint: Endpoint][] {
  const statuses = {
    404: "no such live session",
    409: "several are meant, or the one to keep is about to end",
    503: OUTAGE,
  };
  return [
    [
      "/sessions",
      {
        about:
          "GET ?user=ID: the live sessions of a user; DELETE ?user=ID: ends them all, with &except=HANDLE all but one",
        actions: {
          GET: action({
            about: "the live sessions of a user, newest first",
            query: OF_USER,
            answer: LIST,
            statuses: { 503: OUTAGE },
            reply: async ({ query }) => json(200, await sessions.list(query.user)),
          }),
          DELETE: action({
            about: "ends all sessions of a user, or all but one",
            query: ALL_BUT_ONE,
            answer: REVOCATION,
            statuses,
            reply: async ({ query, client }) => answer(await sessions.endAll(query.user, query.except, client)),
          }),
        },
      },
    ],
    [
      "/sessions/{handle}",
      {
        about: "GET: one session, redacted; DELETE: ends it; ?user=ID finds it at once",
        name: reference,
        actions: {
          GET: action({
            about: "one session: names and sizes, no values",
            query: PERHAPS_OF_USER,
            answer: DETAILS,
            statuses,
            reply: async (call) => answer(await sessions.show(referenceOf(call))),
          }),
          DELETE: action({
            about: "ends one session",
            query: PERHAPS_OF_USER,
            answer: REVOCATION,
            statuses,
            reply: async (call) => answer(await sessions.end(referenceOf(call))),
          }),
        },
      },
    ],
  ];
}

const STEP = z.strictObject({
  step: z.string(),
  result: z.enum(["ok", "failed", "skipped"]),
  ms: z.number(),
  problem: z.string().optional(),
  advice: z.string().optional(),
});
const REPORT = z.strictObject({
  ok: z.boolean(),
  store: z.string(),
  steps: z.array(STEP),
  facts: z.array(z.strictObject({ name: z.string(), value: z.string() })),
  warnings: z.array(z.string()),
});

export function storeCheckEndpoint(probeStore: () => Promise<StoreReport>): [path: string, endpoint: Endpoint] {
  return [
    "/store/check",
    {
      about: "POST: tries the store with a session of its own and tells what is wrong; 503 when something is",
      actions: {
        POST: action({
          about: "tries the store with a session of its own and tells what is wrong",
          query: z.strictObject({}),
          answer: REPORT,
          statuses: { 503: { when: "a step failed; the report says which", answer: REPORT } },
          reply: async () => {
            const report = await probeStore();
            return json(report.ok ? 200 : 503, report);
          },
        }),
      },
    },
  ];
}

function answer(result: object | Refusal): Reply {
  if (!("refused" in result)) return json(200, result);
  return json(result.refused === "not-found" ? 404 : 409, { error: result.reason });
}

function referenceOf({ name, query, client, signal }: Call<z.output<typeof PERHAPS_OF_USER>>): SessionReference {
  return { prefix: name, userId: query.user, by: client, signal };
}
