import { z } from "zod";
import type { ReloadOutcome } from "../core/reload.ts";
import { action, type Endpoint, json } from "./endpoint.ts";

const keys = z.array(z.string());

const APPLIED = z.strictObject({
  applied: keys.describe("Keys that changed and are in effect, as the file has them."),
  needsRestart: keys.describe("Keys that differ from what is in effect, and are not applied before the next start."),
});

const REFUSED = z.strictObject({
  error: z.string(),
  problems: keys.describe("What is wrong, a line each."),
});

/** Reads the configuration again, as SIGHUP does, and tells what became of it. */
export function reloadEndpoint(reload: () => Promise<ReloadOutcome>): [path: string, endpoint: Endpoint] {
  return [
    "/reload",
    {
      about: "POST reads the configuration file again and applies it, without a request being lost",
      actions: {
        POST: action({
          about: "reads the configuration file again and applies it",
          query: z.strictObject({}),
          answer: APPLIED,
          statuses: {
            409: "the configuration came from the command line: there is nothing to read again",
            422: { when: "it has problems, and the one before goes on", answer: REFUSED },
          },
          reply: async () => {
            const outcome = await reload();
            if (outcome.result === "nothing-to-read")
              return json(409, {
                error: "the configuration came from the command line: there is nothing to read again",
              });
            if (outcome.result === "refused")
              return json(422, {
                error: "the configuration has problems; what was in effect goes on",
                problems: outcome.problems,
              });
            const { applied, needsRestart } = outcome;
            return json(200, { applied, needsRestart });
          },
        }),
      },
    },
  ];
}
