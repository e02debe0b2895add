import { z } from "zod";
import { ACCESS_LINES, LOG_LEVELS } from "../core/observe-settings.ts";
import { parseDuration } from "../core/units.ts";
import type { RuntimeSettings } from "../observe/settings.ts";
import { action, type Endpoint, json } from "./endpoint.ts";

const MAX_TEMPORARY = "7d";

/** A duration as the configuration file has it, as milliseconds. */
function duration(min: string, max: string) {
  const [minMs = 0, maxMs = 0] = [parseDuration(min), parseDuration(max)];
  const error = `must be a duration from ${min} to ${max}, such as "30s" or "15m"`;
  return z
    .string({ error })
    .transform((text) => parseDuration(text) ?? -1)
    .refine((ms) => ms >= minMs && ms <= maxMs, { error });
}

const level = z.enum(LOG_LEVELS, { error: `must be one of ${LOG_LEVELS.join(", ")}` });
const access = z.enum(ACCESS_LINES, { error: `must be one of ${ACCESS_LINES.join(", ")}` });
const ratio = z.number({ error: "must be a number from 0 to 1" }).min(0).max(1);
const errors = z.boolean({ error: "must be true or false" });

const CHANGES = z
  .strictObject({
    log: z.strictObject({ level: level.optional(), access: access.optional() }).optional(),
    traces: z
      .strictObject({
        ratio: ratio.optional().describe("Share of traces that are exported anyway, 0 to 1."),
        slowerThan: duration("1ms", "1h").optional().describe("Requests slower than this are always exported."),
        errors: errors.optional().describe("Whether failed requests are always exported."),
      })
      .optional(),
    for: duration("1s", MAX_TEMPORARY)
      .optional()
      .describe("The former values come back by themselves after this; absent: the new ones stay."),
  })
  .refine(({ log, traces }) => Object.keys({ ...log, ...traces }).length > 0, {
    error: "says nothing to change: name something of log or traces",
  });

const WORDS = {
  log: z.strictObject({ level, access }),
  traces: z.strictObject({ ratio, slowerThan: z.string(), errors }),
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
          answer: REPORT,
          reply: () => json(200, settings.report()),
        }),
        POST: action({
          about: "changes what is named; `for` brings the former values back by itself",
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
