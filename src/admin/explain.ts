import { z } from "zod";
import { ANSWER_FORMS, EXPLAINED_STEPS, type Explainer } from "../core/explanation.ts";
import { action, BadCall, type Endpoint, json } from "./endpoint.ts";

const QUESTION = z
  .strictObject(
    {
      url: z
        .string()
        .describe("As the client sends it, `http://` or `https://`; or a path, with a `Host` header.")
        .optional(),
      method: z.string().optional(),
      headers: z
        .union([z.array(z.string()), z.record(z.string(), z.string())], {
          error: 'must be a list of "Name: value", or an object of names and values',
        })
        .default([])
        .describe("As a list they keep their order, and may come twice."),
      client: z.string().describe("IP address that the connection comes from.").optional(),
      trace: z.string().describe("In place of all others: the trace id of a recorded exchange.").optional(),
    },
    // The names of what is not known are not repeated: one of them may be a cookie in the wrong place.
    {
      error: ({ code }) =>
        code === "unrecognized_keys" ? "only url, method, headers, client and trace are known" : undefined,
    },
  )
  .refine(({ url, trace }) => (url === undefined) !== (trace === undefined), {
    error: "say which request: url with headers, or the trace of a recorded one",
  });

const ANSWER = z.strictObject({
  steps: z.array(
    z.strictObject({
      step: z.enum(EXPLAINED_STEPS),
      finding: z.string(),
      detail: z.array(z.string()).optional(),
      ok: z.boolean().describe("False where this stands between the request and an application that knows its user."),
    }),
  ),
  conclusion: z.string(),
  advice: z.string().optional().describe("What to change if that is not what was wanted."),
  wouldAnswer: z
    .strictObject({
      status: z.int(),
      error: z.string().optional(),
      location: z.string().optional(),
      form: z.enum(ANSWER_FORMS).optional().describe("Of an answer from 400 on: what a person gets, or a program."),
    })
    .optional(),
  wouldForward: z
    .strictObject({
      upstream: z.string(),
      user: z.string().nullable(),
      handle: z.string().nullable(),
      injected: z.array(z.string()),
      removed: z.array(z.strictObject({ name: z.string(), why: z.string() })),
      headers: z.array(z.string()),
    })
    .optional(),
});

/** Why a request is treated as it is. */
export function explainEndpoint(explainer: Explainer): [path: string, endpoint: Endpoint] {
  return [
    "/debug/explain",
    {
      about:
        "POST {url, method, headers, client}: what would become of this request, and why; {trace}: of a recorded one",
      actions: {
        POST: action({
          about: "what would become of a request, and why; nothing is forwarded, and nothing changes",
          query: z.strictObject({}),
          body: QUESTION,
          answer: ANSWER,
          statuses: { 404: "no exchange with this trace id is recorded" },
          reply: async ({ body: { url, trace, ...request } }) => {
            if (url === undefined) {
              const recorded = explainer.trace(trace ?? "");
              return "problem" in recorded ? json(404, { error: recorded.problem }) : json(200, recorded);
            }
            const explanation = await explainer.request({ ...request, url });
            if ("problem" in explanation) throw new BadCall(explanation.problem);
            return json(200, explanation);
          },
        }),
      },
    },
  ];
}
