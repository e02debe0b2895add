import { z } from "zod";
import { ACCESS_LINES, LOG_LEVELS } from "../core/observe-settings.ts";
import type { RuntimeSettings } from "../observe/settings.ts";
import { action, durationText, type Endpoint, json } from "./endpoint.ts";

const level = z.enum(LOG_LEVELS, { error: `must be one of ${LOG_LEVELS.join(", ")}` });
const access = z.enum(ACCESS_LINES, { error: `must be one of ${ACCESS_LINES.join(", ")}` });
const share = z.number({ error: "must be a number from 0 to 1" }).min(0).max(1);
const errors = z.boolean({ error: "must be true or false" });

const CHANGES = z
  .strictObject({
    log: z
      .strictObject({
        level: level.optional(),
        access: access.optional(),
        sample: share.optional().describe("Share of ordinary requests that get an access line, 0 to 1."),
      })
      .optional(),
    traces: z
      .strictObject({
        ratio: share.optional().describe("Share of traces that are exported anyway, 0 to 1."),
        slowerThan: durationText({ min: "1ms", max: "1h", example: "250ms" })
          .optional()
          .describe("Requests slower than this are always exported."),
        errors: errors.optional().describe("Whether failed requests are always exported."),
      })
      .optional(),
    for: durationText({ min: "1s", max: "7d", example: "15m" })
      .optional()
      .describe("The former values come back by themselves after this; absent: the new ones stay."),
  })
  .refine(({ log, traces }) => Object.keys({ ...log, ...traces }).length > 0, {
    error: "says nothing to change: name something of log or traces",
  });

const WORDS = {
  log: z.strictObject({ level, access, sample: share }),
  traces: z.strictObject({ ratio: share, slowerThan: z.string(), errors }),
};

const REPORT = z.strictObject({
  ...WORDS,
  temporary: z.strictObject({ until: z.iso.datetime(), afterwards: z.strictObject(WORDS) }).optional(),
});

/** What is observed, to see and to change while it runs. */
export function observeEndpoint(settings: RuntimeSettings): [path: string, endpoint: Endpoint] {
  const about = "log level, access lines and which traces are exported; POST changes any part, for a while or for good";
  return [
    "/observe",
    {
      about,
      actions: {
        GET: action({
          about: "what is in effect, and until when",
          query: z.strictObject({}),
          answer: REPORT,
          reply: () => json(200, settings.report()),
        }),
        POST: action({
          about: "changes what is named; `for` brings the former values back by itself",
          query: z.strictObject({}),
          body: CHANGES,
          answer: REPORT,
          reply: ({ body: { log, traces: { slowerThan, ...traces } = {}, for: forMs } }) => {
            settings.adjust({ log, traces: { ...traces, slowerThanMs: slowerThan } }, forMs);
            return json(200, settings.report());
          },
        }),
      },
    },
  ];
}
