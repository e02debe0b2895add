import type { Readable } from "node:stream";
import { z } from "zod";
import { REFERENCE_PATTERN } from "../core/administration.ts";
import type { MaybePromise } from "../core/store.ts";
import { parseDuration } from "../core/units.ts";

/**
 * What every endpoint of the admin listener is made of. The schemas check what comes in, and are what `/openapi.json`
 * says: one description, so that they cannot differ.
 */

export interface Reply {
  readonly status: number;
  readonly type: string;
  /** A stream is sent as it comes, and destroyed when the client goes. */
  readonly body: string | Uint8Array | Readable;
  /** Further fields. */
  readonly fields?: Readonly<Record<string, string>>;
}

/** What the query may hold, each once. Values come as text. */
export type QuerySchema = z.ZodObject;

export interface Call<Query = Record<never, never>, Body = undefined> {
  readonly query: Query;
  readonly body: Body;
  /** What stands in place of the last segment of the path, where the endpoint has one; decoded. */
  readonly name: string;
  /** Address of whoever asks. */
  readonly client: string;
  /** A browser asks: it would rather have a page than JSON. */
  readonly wantsPage: boolean;
  /** See `AdminRequest`. */
  readonly id?: string | undefined;
  /** Aborted when the client has gone. */
  readonly signal: AbortSignal;
}

export interface Action {
  /** One line: what it does. */
  readonly about: string;
  /** Absent: the query may hold anything, and is ignored. */
  readonly query?: QuerySchema;
  /** Absent: no body is read. */
  readonly body?: z.ZodType;
  /** What it answers with 200: the schema of the JSON, or a media type. */
  readonly answer: z.ZodType | string;
  /** Browsers get a page instead. */
  readonly page?: true;
  /**
   * Other statuses that it may answer, and when; `answer`: the schema of the JSON, where that is not the one of errors.
   * Those that follow from the rest of the description are not repeated.
   */
  readonly statuses?: Readonly<Record<number, string | { readonly when: string; readonly answer: z.ZodType }>>;
  readonly reply: (call: Call<never, never>) => MaybePromise<Reply>;
}

interface ActionInit<Query extends QuerySchema, Body extends z.ZodType> extends Omit<Action, "reply"> {
  readonly query?: Query;
  readonly body?: Body;
  readonly reply: (call: Call<z.output<Query>, z.output<Body>>) => MaybePromise<Reply>;
}

/** An action whose `reply` gets what its schemas describe. */
export function action<
  Query extends QuerySchema = z.ZodObject<Record<never, never>>,
  Body extends z.ZodType = z.ZodUndefined,
>(init: ActionInit<Query, Body>): Action {
  return init as unknown as Action;
}

export const ACTION_METHODS = ["GET", "POST", "DELETE"] as const;
export type ActionMethod = (typeof ACTION_METHODS)[number];

export interface Endpoint {
  /** One line for the index. */
  readonly about: string;
  /** What stands in place of the last segment of the path. */
  readonly name?: z.ZodString;
  /** Probes have no token. */
  readonly open?: boolean;
  /** HEAD is answered as GET. */
  readonly actions: Readonly<Partial<Record<ActionMethod, Action>>>;
}

/** By path; one that ends with `/{name}` stands for any last segment. */
export type Endpoints = ReadonlyMap<string, Endpoint>;

export function json(status: number, value: unknown): Reply {
  return { status, type: "application/json", body: `${JSON.stringify(value, null, 2)}\n` };
}

/** A request that cannot be obeyed as it stands; the message says what to write instead. */
export class BadCall extends Error {
  readonly status: number;

  constructor(message: string, status = 400) {
    super(message);
    this.status = status;
  }
}

/**
 * Reads a query.
 * @throws BadCall for a parameter that is unknown or comes twice, and for octets that are no percent-encoded UTF-8, which
 *   `URLSearchParams` would replace: a wrong name must not be taken for another user's.
 */
export function readQuery<Query extends QuerySchema>(query: string, schema: Query): z.output<Query> {
  decode(query.replaceAll("+", " "));
  const parameters = new URLSearchParams(query);
  const names = [...parameters.keys()];
  const known = Object.keys(schema.shape);
  for (const name of names) {
    if (!known.includes(name)) {
      const hint = known.length === 0 ? "there is none here" : `known: ${known.join(", ")}`;
      throw new BadCall(`unknown parameter "${name.slice(0, 100)}"; ${hint}`);
    }
    if (names.indexOf(name) !== names.lastIndexOf(name))
      throw new BadCall(`the parameter ${name} comes more than once`);
  }
  return checked(schema, Object.fromEntries(parameters));
}

/** What stands in place of the last segment of the path. @throws BadCall when it is not what the schema describes. */
export function readName(segment: string, schema: z.ZodString): string {
  return checked(schema, decode(segment));
}

/** @throws BadCall when the text is no JSON, or not what the schema describes. */
export function readBody<Body extends z.ZodType>(text: string, schema: Body): z.output<Body> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new BadCall("the body is not JSON");
  }
  return checked(schema, value);
}

function checked<Schema extends z.ZodType>(schema: Schema, value: unknown): z.output<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(({ path, message }) => `${path.map(String).join(".")} ${message}`.trim());
  throw new BadCall(problems.slice(0, 10).join("; ").slice(0, 1000));
}

/** @throws BadCall when it is not percent-encoded UTF-8. */
export function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new BadCall("the address is not percent-encoded UTF-8");
  }
}

/** A whole number in a query. */
export function wholeText(min: number, max: number) {
  const error = `must be ${min} to ${max}`;
  return z
    .string()
    .regex(/^\d{1,9}$/, { error })
    .transform(Number)
    .pipe(z.int().min(min, { error }).max(max, { error }));
}

/** A duration as text, which becomes milliseconds. */
export function durationText({ min, max, example }: Readonly<Record<"min" | "max" | "example", string>>) {
  const isWithin = (text: string) => {
    const ms = parseDuration(text);
    return ms !== undefined && ms >= (parseDuration(min) ?? 0) && ms <= (parseDuration(max) ?? Infinity);
  };
  const error = `must be a duration from ${min} to ${max}, such as ${example}`;
  return z
    .string({ error })
    .refine(isWithin, { error })
    .transform((text) => parseDuration(text) ?? 0);
}

/** A session by its handle, or by more of its key. */
export const handleText = z
  .string()
  .regex(REFERENCE_PATTERN, { error: "must be a handle: 12 characters of A-Z a-z 0-9 - _, or more of the key" });
