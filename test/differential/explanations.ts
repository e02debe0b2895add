/**
 * Why Coatcheck does something else than nginx: classes of cases, each a heading of docs/http.md, "Compared with nginx and
 * HAProxy". The test demands that every case in which they differ belongs to one.
 */
export interface Explanation {
  /** The heading. */
  readonly title: string;
  /** Ids of cases; a `*` stands for anything. */
  readonly explains: readonly string[];
}

export const EXPLANATIONS: readonly Explanation[] = [
  {
    title: "Content that a server may ignore",
    explains: [
      "length/get-*",
      "length/head-smuggle",
      "length/delete-smuggle",
      "length/options-smuggle",
      "coding/get",
      "coding/delete-smuggle",
      "coding/options-smuggle",
      "coding/head-smuggle",
      "pipeline/get-body-get",
      "pipeline/delete-body-get",
    ],
  },
  {
    title: "Content goes on as it comes",
    explains: [
      "length/short",
      "length/overflow-32",
      "chunk-size/overflow-32",
      "chunk-size/max-63",
      "chunk-size/max-64",
      "chunk-end/no-last",
      "chunk-end/no-end",
    ],
  },
  {
    title: "How large a head may be",
    explains: ["large/*", "answer/head-20k", "chunk-extension/large", "trailer/large"],
  },
  {
    title: "The status of a refusal",
    explains: [
      "coding/chunked-*",
      "coding/two-fields-x",
      "coding/empty",
      "coding/vertical-tab",
      "both/cl-te-*",
      "chunk-end/then-junk",
      "request-line/leading-space",
      "request-line/tab",
      "request-line/form-feed",
      "request-line/http-3",
      "request-line/lower-method",
      "request-line/method-*",
      "request-line/no-method",
      "request-line/only-method",
      "request-line/tls",
      "request-line/binary",
      "request-line/smtp",
      "request-line/connect*",
      "request-line/post-connect",
      "expect/twice",
    ],
  },
  { title: "A tab before a coding", explains: ["coding/tab"] },
  { title: "Chunks by the letter", explains: ["chunk-size/*", "chunk-end/*", "chunk-extension/*"] },
  { title: "Trailers by the letter", explains: ["trailer/*"] },
  { title: "Bare line feeds", explains: ["field/lf-*", "field/cr-cr-lf"] },
  { title: "Field names and values by the letter", explains: ["field/*"] },
  { title: "Host is a host", explains: ["host/*"] },
  {
    title: "Methods and versions",
    explains: [
      "request-line/trailing-space",
      "request-line/http-*",
      "request-line/unknown-method",
      "request-line/long-method",
    ],
  },
  {
    title: "Targets by the letter",
    explains: ["target/absolute-*", "target/*fragment", "target/*backslash", "target/obs", "target/utf8"],
  },
  {
    title: "Paths with another reading",
    explains: ["closed-path/*", "target/double-slash", "target/crlf-escaped", "target/*escape", "target/percent"],
  },
  { title: "OPTIONS for the gateway itself", explains: ["target/star-options", "hop-by-hop/max-forwards-*"] },
  { title: "Expectations", explains: ["expect/*"] },
  { title: "A request behind an upgrade", explains: ["upgrade/pipelined"] },
  { title: "WebSocket handshakes by the letter", explains: ["upgrade/bad-version"] },
  { title: "Interim answers", explains: ["answer/1*"] },
  { title: "Answers whose length is uncertain", explains: ["bad-framing/*"] },
  { title: "Answers that are not HTTP", explains: ["bad-head/*"] },
];

/** What Coatcheck does wrong for a reason out of its reach: cases, and the heading that says so. */
export const LIMITS: Readonly<Record<string, string>> = {
  "answer/100": "Interim answers",
};

/** The first class that the case belongs to. */
export function explanationOf(id: string): Explanation | undefined {
  return EXPLANATIONS.find(({ explains }) => explains.some((pattern) => matches(pattern, id)));
}

export function matches(pattern: string, id: string): boolean {
  const [before = "", after] = pattern.split("*");
  return after === undefined ? pattern === id : id.startsWith(before) && id.endsWith(after);
}
