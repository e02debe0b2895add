import { z } from "zod";
import type { Observer } from "../observe/observer.ts";
import { RING_NAMES } from "../observe/recorder.ts";
import { action, type Endpoint, json, wholeText } from "./endpoint.ts";

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1000;

const QUERY = z.strictObject({
  ring: z
    .enum(RING_NAMES, { error: `must be one of ${RING_NAMES.join(", ")}` })
    .default("recent")
    .describe("Which ones: the last, the last slow ones, or the last failed ones."),
  limit: wholeText(1, MAX_LIMIT).default(DEFAULT_LIMIT).describe("How many at the most."),
});

/** The last requests, each with its decisions. */
export function exchangesEndpoint(observer: Observer): [path: string, endpoint: Endpoint] {
  const about = `the last exchanges, newest first: ?ring=${RING_NAMES.join("|")} (default recent) &limit=1…${MAX_LIMIT} (default ${DEFAULT_LIMIT})`;
  return [
    "/debug/exchanges",
    {
      about,
      actions: {
        GET: action({
          about,
          query: QUERY,
          answer: z.strictObject({ exchanges: z.array(z.looseObject({})) }),
          reply: ({ query: { ring, limit } }) => json(200, { exchanges: observer.recorder.list(ring, limit) }),
        }),
      },
    },
  ];
}
