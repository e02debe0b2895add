import type { MaybePromise } from "../core/store.ts";

/** What every endpoint of the admin listener is made of. */

export interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: string;
  /** With 405: the methods that would do. */
  readonly allow?: string;
}

export interface Call {
  readonly parameters: URLSearchParams;
  /** What stands in place of the last segment of the path, where the endpoint has one; decoded. */
  readonly name: string;
  /** Aborted when the client has gone. */
  readonly signal: AbortSignal;
}

export interface Action {
  /** What the query may hold, each once; absent: it may hold anything, and is ignored. */
  readonly parameters?: readonly string[];
  readonly reply: (call: Call) => MaybePromise<Reply>;
}

export interface Endpoint {
  readonly about: string;
  /** Probes have no token. */
  readonly open?: boolean;
  /** By method; HEAD is answered as GET. */
  readonly actions: Readonly<Partial<Record<"GET" | "POST" | "DELETE", Action>>>;
}

/** By path; one that ends with `/{…}` stands for any last segment. */
export type Endpoints = ReadonlyMap<string, Endpoint>;

export function json(status: number, value: unknown): Reply {
  return { status, type: "application/json", body: `${JSON.stringify(value, null, 2)}\n` };
}

/** A request that cannot be obeyed as it stands; the message says what to write instead. */
export class BadCall extends Error {}

/**
 * Reads a query.
 * @throws BadCall for a parameter that is unknown or comes twice, and for octets that are no percent-encoded UTF-8, which
 *   `URLSearchParams` would replace: a wrong name must not be taken for another user's.
 */
export function readQuery(query: string, known: readonly string[]): URLSearchParams {
  decode(query.replaceAll("+", " "));
  const parameters = new URLSearchParams(query);
  const names = [...parameters.keys()];
  for (const name of names) {
    if (!known.includes(name)) {
      const hint = known.length === 0 ? "there is none here" : `known: ${known.join(", ")}`;
      throw new BadCall(`unknown parameter "${name.slice(0, 100)}"; ${hint}`);
    }
    if (names.indexOf(name) !== names.lastIndexOf(name))
      throw new BadCall(`the parameter ${name} comes more than once`);
  }
  return parameters;
}

/** @throws BadCall when it is not percent-encoded UTF-8. */
export function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new BadCall("the address is not percent-encoded UTF-8");
  }
}
