/** What the differential test sends, and how a case of it is written. */

/** The least that the RFC says of a message; `may` leaves it to the recipient. */
export type Rule = "must-refuse" | "must-forward" | "may";

export interface Case {
  /** `group/what`, unique. */
  readonly id: string;
  /** What the client sends, as Latin-1 text; several pieces are sent one after another. */
  readonly octets: string | readonly string[];
  readonly note: string;
  readonly rule: Rule;
  /** The section that says so; empty where only custom does. */
  readonly by: string;
  /** Requests that may reach the upstream, at most; of a message to be refused those before it. Default 1, or 0. */
  readonly requests?: number;
  /** What the upstream sends instead of its usual 200, as Latin-1 text. The rule then speaks of this answer. */
  readonly answer?: string;
  /** The upstream closes after `answer`. */
  readonly closes?: boolean;
  /** The request is not whole, so that silence is no fault. */
  readonly waits?: boolean;
}

/** A head: its lines, each ended by CRLF, and the empty line. */
export function head(...lines: readonly string[]): string {
  return `${lines.join("\r\n")}\r\n\r\n`;
}

/** A GET with these fields beside Host. */
export function get(target: string, ...fields: readonly string[]): string {
  return head(`GET ${target} HTTP/1.1`, "Host: a.example", ...fields);
}

/** A POST with these fields beside Host, and what follows its head. */
export function post(fields: readonly string[], content: string): string {
  return head("POST /post HTTP/1.1", "Host: a.example", ...fields) + content;
}

/** A chunked POST: what follows its head. */
export function chunked(content: string, ...fields: readonly string[]): string {
  return post(["Transfer-Encoding: chunked", ...fields], content);
}

/** The request that an attacker hides in another. */
export const SMUGGLED = get("/smuggled");

type Part = Partial<Omit<Case, "id" | "octets">>;
type Row = readonly [what: string, octets: string | readonly string[], note: string, part?: Part];

/** Cases of one group, with what they have in common. */
export function group(name: string, common: Pick<Case, "rule" | "by"> & Part, rows: readonly Row[]): Case[] {
  return rows.map(([what, octets, note, part]) => ({ note, octets, ...common, ...part, id: `${name}/${what}` }));
}
