import { z } from "zod";
import type { BucketRule, RouteLimits } from "../core/limits.ts";
import { parseDuration, parseSize } from "../core/units.ts";
import { duration, quoted, size, whole } from "./fields.ts";

/** The section `limits`, and what of it a route can have otherwise. */

const NONE = "none";
const AUTO = "auto";

const RATE_SECONDS = { s: 1, m: 60, h: 3600 } as const;
const RATE = /^(\d{1,9}(?:\.\d{1,6})?)\/(s|m|h)$/;
/** Slower than this, a bucket would have to be kept for days. */
const MIN_RATE_PER_SECOND = 1 / 3600;

/** @returns requests a second, and the number as it is written; `undefined` when the text is no rate. */
function parseRate(text: string): { perSecond: number; number: number } | undefined {
  const match = RATE.exec(text);
  if (match === null) return undefined;
  const number = Number(match[1]);
  return { perSecond: number / RATE_SECONDS[match[2] as keyof typeof RATE_SECONDS], number };
}

const rate = z
  .string({ error: 'a rate such as "10/s", "100/m" or "1000/h" is expected' })
  .superRefine((text, context) => {
    const { perSecond } = parseRate(text) ?? {};
    if (perSecond === undefined)
      context.addIssue({
        code: "custom",
        message: `${quoted(text)} is not a rate; write for example "10/s", "100/m" or "1000/h"`,
      });
    else if (perSecond < MIN_RATE_PER_SECOND || perSecond > 1_000_000)
      context.addIssue({ code: "custom", message: "must be between 1/h and 1000000/s" });
  });

const requestLimit = z.union(
  [
    z.literal(NONE),
    z.strictObject({
      rate: rate.describe("How many requests on average: `10/s`, `100/m` or `1000/h`."),
      burst: whole(1, 1_000_000)
        .optional()
        .describe("How many at once, after a pause; absent: as many as the rate has in its unit."),
    }),
  ],
  { error: "must be { rate: 10/s, burst: 20 }, or none" },
);

const maxBodyBytes = z.union([z.literal(NONE), size({ min: "0B", max: "1048576GiB" })], {
  error: 'must be a size such as "10MiB", or none',
});
const minBodyRate = size({ min: "0B", max: "1GiB" });

const PER_ADDRESS =
  "Of one client address (IPv6: one /64), as trusted proxies tell it. Beyond it: 429. `{ rate: 50/s, burst: 200 }`";
const PER_SESSION = "Of one session, whatever address it comes from. Beyond it: 429.";

export const limits = z
  .strictObject({
    head: z
      .strictObject({
        maxBytes: size({ min: "1KiB", max: "128KiB" })
          .default("32KiB")
          .describe("Size of a request head. Beyond it: 431, or 414 when the target alone is larger."),
        maxFields: whole(10, 1000).default(200).describe("Header fields of a request. Beyond it: 431."),
        timeout: duration({ min: "100ms", max: "10m" })
          .default("15s")
          .describe("How long a request head may take to arrive, and so may a TLS handshake. Beyond it: 408."),
      })
      .prefault({}),
    body: z
      .strictObject({
        maxBytes: maxBodyBytes.default(NONE).describe("Size of a request's content. Beyond it: 413. `none`: no limit."),
        minRate: minBodyRate
          .default("100B")
          .describe(
            "Octets a second that a request's content has to arrive with while the application reads it. Below it: 408. `0B`: no limit.",
          ),
        window: duration({ min: "100ms", max: "10m" })
          .default("30s")
          .describe("What `minRate` is an average over: how long a client may send nothing at all."),
      })
      .prefault({}),
    idleTimeout: duration({ min: "1s", max: "1h" })
      .default("75s")
      .describe(
        "How long a connection may wait for its next request. Longer than the load balancer in front keeps its side.",
      ),
    sendTimeout: duration({ min: "100ms", max: "1h" })
      .default("60s")
      .describe("How long a client may read nothing of a response that waits for it."),
    maxPipelined: whole(1, 1000)
      .default(100)
      .describe("Requests that may wait on one connection of HTTP/1.1 for the answers before theirs."),
    connections: z
      .strictObject({
        total: z
          .union([z.literal(AUTO), whole(1, 1_000_000)], { error: "must be a whole number from 1 to 1000000, or auto" })
          .default(AUTO)
          .describe(
            "Connections of clients at one time; more are closed at once. `auto`: as many as there are file descriptors for, beside those for the applications.",
          ),
        perAddress: whole(0, 1_000_000)
          .default(0)
          .describe(
            "Of one address (IPv6: one /64), but for `listen.trustedProxies`, who connect for many. `0`: no limit.",
          ),
      })
      .prefault({}),
    requests: z
      .strictObject({
        perAddress: requestLimit.default(NONE).describe(PER_ADDRESS),
        perSession: requestLimit.default(NONE).describe(PER_SESSION),
      })
      .prefault({})
      .describe("Off unless set. Gateways on one Redis count together."),
  })
  .prefault({})
  .describe("Slow and greedy clients; [docs/limits.md](limits.md).");

export const routeLimits = z
  .strictObject({
    body: z
      .strictObject({
        maxBytes: maxBodyBytes.optional().describe("Here, in place of `limits.body.maxBytes`."),
        minRate: minBodyRate.optional().describe("Here, in place of `limits.body.minRate`."),
      })
      .optional(),
    requests: z
      .strictObject({
        perAddress: requestLimit
          .optional()
          .describe("Here, in place of `limits.requests.perAddress`, and counted by itself."),
        perSession: requestLimit
          .optional()
          .describe("Here, in place of `limits.requests.perSession`, and counted by itself."),
      })
      .optional(),
  })
  .optional()
  .describe("What this route allows, where it differs from `limits`.");

type LimitsSettings = z.output<typeof limits>;
type RouteLimitsSettings = z.output<typeof routeLimits>;
type RequestLimit = z.output<typeof requestLimit>;

/** What the listeners work with; what routes may have otherwise is in theirs. */
export interface LimitsConfig {
  readonly head: { readonly maxBytes: number; readonly maxFields: number; readonly timeoutMs: number };
  readonly idleTimeoutMs: number;
  readonly sendTimeoutMs: number;
  readonly maxPipelined: number;
  /** `total`: absent: by the file descriptors that there are. `perAddress`: 0: no limit. */
  readonly connections: { readonly total: number | undefined; readonly perAddress: number };
  /** Of a request that no route matches. */
  readonly routeless: RouteLimits;
}

export function compileLimits(settings: LimitsSettings): LimitsConfig {
  const { head, connections } = settings;
  return {
    head: { maxBytes: bytes(head.maxBytes), maxFields: head.maxFields, timeoutMs: ms(head.timeout) },
    idleTimeoutMs: ms(settings.idleTimeout),
    sendTimeoutMs: ms(settings.sendTimeout),
    maxPipelined: settings.maxPipelined,
    connections: {
      total: connections.total === AUTO ? undefined : connections.total,
      perAddress: connections.perAddress,
    },
    routeless: compileRouteLimits(settings, undefined, ""),
  };
}

/** @param id of the route. */
export function compileRouteLimits(
  { body, requests }: LimitsSettings,
  own: RouteLimitsSettings,
  id: string,
): RouteLimits {
  const maxBytes = own?.body?.maxBytes ?? body.maxBytes;
  const bucket = (kind: "address" | "session", limit: RequestLimit, ownLimit: RequestLimit | undefined) =>
    compileBucket(ownLimit === undefined ? kind : `${kind} ${id}`, kind, ownLimit ?? limit);
  return {
    maxBodyBytes: maxBytes === NONE ? Number.POSITIVE_INFINITY : bytes(maxBytes),
    minBodyRate: bytes(own?.body?.minRate ?? body.minRate),
    bodyWindowMs: ms(body.window),
    perAddress: bucket("address", requests.perAddress, own?.requests?.perAddress),
    perSession: bucket("session", requests.perSession, own?.requests?.perSession),
  };
}

function compileBucket(name: string, kind: "address" | "session", limit: RequestLimit): BucketRule | undefined {
  if (limit === NONE) return undefined;
  const { perSecond, number } = parseRate(limit.rate) as NonNullable<ReturnType<typeof parseRate>>;
  return { reason: `${kind}-rate`, name, rate: perSecond, burst: limit.burst ?? Math.max(1, Math.ceil(number)) };
}

function bytes(text: string): number {
  return parseSize(text) as number;
}

function ms(text: string): number {
  return parseDuration(text) as number;
}
