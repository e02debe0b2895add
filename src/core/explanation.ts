import type { Handle } from "./session.ts";

/**
 * Why a request is treated as it is, in plain words: what the admin API answers and the command line prints. No token, no
 * signature, no whole key, and no value of a header, a claim or an attribute is in any of it; handles and user ids are.
 */

/** A request that somebody asks about. */
export interface AskedRequest {
  /** Default: GET. */
  readonly method?: string | undefined;
  /** With `http://` or `https://`, spelled as the client sends it; or a path, where `headers` has a `Host`. */
  readonly url: string;
  /** As `Name: value` each, in their order; or by name. */
  readonly headers: readonly string[] | Readonly<Record<string, string>>;
  /** The address that the connection comes from; absent: not known, and taken to be the right one. */
  readonly client?: string | undefined;
}

/** In the order of the request's way. Those that the request never reaches are left out; some may come several times. */
export const EXPLAINED_STEPS = [
  "record",
  "request",
  "client",
  "route",
  "limits",
  "cookie",
  "signature",
  "cache",
  "store",
  "session",
  "expiry",
  "binding",
  "policy",
  "removed",
  "identity",
  "write-back",
  "upstream",
] as const;
export type ExplainedStep = (typeof EXPLAINED_STEPS)[number];

export interface ExplanationStep {
  readonly step: ExplainedStep;
  readonly finding: string;
  readonly detail?: readonly string[];
  /** False where this stands between the request and an application that knows its user. */
  readonly ok: boolean;
}

/** How Coatcheck says what it answers itself: to a person, or to a program (RFC 9457). */
export const ANSWER_FORMS = ["page", "problem-details"] as const;
export type AnswerForm = (typeof ANSWER_FORMS)[number];

export interface RemovedHeader {
  readonly name: string;
  readonly why: string;
}

export interface Explanation {
  readonly steps: readonly ExplanationStep[];
  /** One sentence: what would be sent, or was. */
  readonly conclusion: string;
  /** What to change if that is not what was wanted. */
  readonly advice?: string;
  /** Coatcheck answers itself. */
  readonly wouldAnswer?: {
    readonly status: number;
    readonly error?: string;
    readonly location?: string;
    /** Of an answer from 400 on, where the head of the request could be read. */
    readonly form?: AnswerForm;
  };
  /** The application answers. */
  readonly wouldForward?: {
    /** `host:port` */
    readonly upstream: string;
    /** Id of the user; `null`: nobody is signed in. */
    readonly user: string | null;
    readonly handle: Handle | null;
    /** Names of the identity headers that carry a value. */
    readonly injected: readonly string[];
    /** Headers of the client that do not go on. */
    readonly removed: readonly RemovedHeader[];
    /** Names of all headers that go upstream, in lower case. */
    readonly headers: readonly string[];
  };
}

/** A request that nobody can send, or nobody can know of; the sentence says what to write instead. */
export interface Unexplained {
  readonly problem: string;
}

export interface Explainer {
  /** What would become of a request now. Nothing is forwarded, and nothing changes. */
  request(asked: AskedRequest): Promise<Explanation | Unexplained>;
  /** What became of one that is recorded. */
  trace(traceId: string): Explanation | Unexplained;
}
