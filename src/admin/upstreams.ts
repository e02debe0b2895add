import { z } from "zod";
import { BALANCES, EJECTION_REASONS, type UpstreamSummary } from "../core/upstream.ts";
import { action, type Endpoint, json } from "./endpoint.ts";

const ENDPOINT = z.strictObject({
  peer: z.string().nullable().describe("`address:port`, where Coatcheck resolves the name (`resolve`)."),
  state: z.enum(["in-service", "slow-start", "ejected", "unhealthy", "draining"]),
  share: z.number().describe("Of its weight, while it returns slowly: 0.1 to 1."),
  active: z.int().describe("Requests under way, and WebSockets."),
  failures: z.int().describe("In a row."),
  serverErrors: z.int().describe("In a row."),
  reason: z.enum(EJECTION_REASONS).nullable().describe("Why it is out of service."),
  until: z.iso.datetime().nullable().describe("When an ejection ends."),
  lastCheck: z
    .strictObject({ at: z.iso.datetime(), ok: z.boolean(), detail: z.string().describe("A status, or what failed.") })
    .nullable(),
});
const TARGET = z.strictObject({
  address: z.string().describe("`host:port`."),
  scheme: z.enum(["http", "https"]),
  weight: z.int(),
  endpoints: z.array(ENDPOINT).describe("One, or one for each address of a name that Coatcheck resolves."),
});
const UPSTREAM = z.strictObject({
  worker: z.int().optional().describe("Whose view this is: each finds out for itself. Absent: there is one process."),
  routes: z.array(z.string()).describe("That send requests there."),
  balance: z.enum(BALANCES).nullable().describe("null: there is nothing to choose."),
  panic: z.boolean().describe("No target is in service, so that all of them get requests."),
  queued: z.int().describe("Requests that wait for a connection."),
  targets: z.array(TARGET),
});

/** The answer. */
export const UPSTREAMS = z.strictObject({ upstreams: z.array(UPSTREAM) });

/** Every target with its state. */
export function upstreamsEndpoint(list: () => readonly UpstreamSummary[]): [path: string, endpoint: Endpoint] {
  return [
    "/upstreams",
    {
      about: "GET: applications, their targets, and which of them are in service",
      actions: {
        GET: action({
          about: "the upstreams of this instance: targets, health, ejections, connections in use, requests that wait",
          answer: UPSTREAMS,
          reply: () => json(200, { upstreams: list() }),
        }),
      },
    },
  ];
}
