import { z } from "zod";
import type { Config } from "../config/compile.ts";

/**
 * What the primary and its workers say to each other, over the channel that node gives them. Each side checks what it is
 * told: a message that is not one of these is a mistake, and ends the worker.
 */

/** Of an answer, octets. A heap snapshot is larger, and comes in pieces. */
export const MAX_REPLY_BYTES = 64 * 1024 * 1024;
export const MAX_CHUNK_BYTES = 256 * 1024;
/** Session keys in a message. */
export const MAX_KEYS = 1000;

const id = z.int().min(0);
function octets(max: number) {
  return z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length <= max);
}
const reply = octets(MAX_REPLY_BYTES);
/** A watch has met a session. */
const met = z.strictObject({ type: z.literal("met"), watch: z.string().max(64), handle: z.string().max(64) });
const keys = z.array(z.string().max(64)).max(MAX_KEYS);
/** Made, checked and frozen by the primary. */
const config = z.custom<Config>((value) => typeof value === "object" && value !== null && "settings" in value);

/** What a worker is asked. */
const TASK = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("admin"),
    method: z.string(),
    path: z.string(),
    query: z.string(),
    body: z.string(),
    client: z.string(),
    wantsPage: z.boolean(),
    id: z.string(),
  }),
  z.strictObject({ kind: z.literal("metrics") }),
  z.strictObject({ kind: z.literal("reload"), config, by: z.enum(["signal", "file", "operator", "program"]) }),
]);
export type Task = z.output<typeof TASK>;

export const TO_WORKER = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("configure"),
    number: z.int().min(1),
    config,
    prettyLog: z.strictObject({ colours: z.boolean() }).optional(),
    command: z.array(z.string()),
  }),
  /** Everything is as it should be: open the listeners. */
  z.strictObject({ type: z.literal("listen") }),
  z.strictObject({ type: z.literal("ask"), id, task: TASK }),
  /** Nobody waits for the answer any more. */
  z.strictObject({ type: z.literal("cancel"), id }),
  /** The piece before has been taken. */
  z.strictObject({ type: z.literal("more"), id }),
  z.strictObject({ type: z.literal("ended"), keys }),
  met,
  z.strictObject({ type: z.literal("drain") }),
]);
export type ToWorker = z.output<typeof TO_WORKER>;

export const TO_PRIMARY = z.discriminatedUnion("type", [
  /** It hears. */
  z.strictObject({ type: z.literal("hello") }),
  /** It can be asked, and does not listen yet. */
  z.strictObject({ type: z.literal("made"), store: z.string() }),
  z.strictObject({ type: z.literal("ready"), url: z.string(), redirectUrl: z.string().optional() }),
  /** It could not start; the message is for people. */
  z.strictObject({ type: z.literal("failed"), message: z.string().max(10_000) }),
  z.strictObject({
    type: z.literal("reply"),
    id,
    status: z.int().min(100).max(599),
    contentType: z.string(),
    fields: z.record(z.string(), z.string()),
    /** Absent: it comes in pieces. */
    body: reply.optional(),
  }),
  /** A piece; absent: that was the last one. */
  z.strictObject({
    type: z.literal("piece"),
    id,
    piece: octets(MAX_CHUNK_BYTES).optional(),
  }),
  /** The rest does not come. */
  z.strictObject({ type: z.literal("broken"), id }),
  z.strictObject({ type: z.literal("ended"), keys }),
  met,
  z.strictObject({ type: z.literal("draining") }),
  /** What it has counted, before it ends. */
  z.strictObject({ type: z.literal("last"), metrics: reply }),
]);
export type ToPrimary = z.output<typeof TO_PRIMARY>;

/** What a worker counted, as JSON. */
export const METRICS = z.array(
  z.looseObject({
    name: z.string(),
    help: z.string(),
    type: z.enum(["counter", "gauge", "histogram", "summary"]),
    values: z.array(
      z.looseObject({
        metricName: z.string().optional(),
        labels: z.record(z.string(), z.union([z.string(), z.number()])),
        value: z.number().nullable(),
        exemplar: z
          .looseObject({ labelSet: z.record(z.string(), z.string()), value: z.number(), timestamp: z.number() })
          .optional(),
      }),
    ),
  }),
);
