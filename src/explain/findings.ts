import type { StripClass } from "../core/exchange.ts";
import type { RemovedHeader } from "../core/explanation.ts";
import { HOP_BY_HOP, isForwardedFamily } from "../core/header-names.ts";
import type { ConsideredRoute } from "../core/routes.ts";
import { handleOf } from "../core/session.ts";
import { type CookieNote, type PresentedCookie, TOKEN_LENGTH, VALUE_LENGTH } from "../session/cookie.ts";
import type { Resolution } from "../session/resolver.ts";
import { counted, REMOVAL_REASONS, SESSION_FINDINGS } from "./words.ts";

/** What explanations say of routes, cookies and headers. */

/** Routes that were not chosen and are named all the same. */
const MAX_OTHER_ROUTES = 20;

const WHY_NOT: Readonly<Record<Exclude<ConsideredRoute["verdict"], "chosen">, string>> = {
  "less-specific": "matches too, and another is more specific",
  "part-of-segment": "not this one: the path goes on within a segment, and prefixes match whole segments",
  "other-path": "another path",
  "other-host": "another host",
};

/** The routes that were not chosen, the closest first. */
export function othersConsidered(considered: readonly ConsideredRoute[]): readonly string[] {
  const order = Object.keys(WHY_NOT);
  const others = considered
    .flatMap(({ route, verdict }) => (verdict === "chosen" ? [] : [{ id: route.id, verdict }]))
    .sort((a, b) => order.indexOf(a.verdict) - order.indexOf(b.verdict));
  const lines = others.slice(0, MAX_OTHER_ROUTES).map(({ id, verdict }) => `${id}: ${WHY_NOT[verdict]}`);
  return others.length > lines.length ? [...lines, `and ${others.length - lines.length} more`] : lines;
}

/** What each cookie of the name looks like. */
export function shapesOf(notes: readonly CookieNote[]): readonly string[] {
  return notes.map((note, index) => shapeOf(note, notes.length > 1 ? `the ${ordinal(index + 1)} ` : ""));
}

function shapeOf({ verdict, length, plausible }: CookieNote, which: string): string {
  if (verdict === "ignored") return `${which}is not looked at: so many come before it`;
  const odd = plausible
    ? ""
    : "; it holds characters that none of ours has: quotes, or what is left of another encoding";
  if (verdict !== "bad-shape")
    return `${which}has the shape of ours: an id of ${TOKEN_LENGTH} characters, a dot, a signature${odd}`;
  if (length === 0) return `${which}is empty`;
  if (length !== VALUE_LENGTH)
    return `${which}has ${counted(length, "character")}, one of ours ${VALUE_LENGTH}: an id of ${TOKEN_LENGTH}, a dot, a signature${odd}`;
  return `${which}has no dot behind an id of ${TOKEN_LENGTH} characters${odd}`;
}

/** A cookie that is nearly named like ours: after a change of the name, or without its prefix over plain HTTP. */
export function similarCookies(name: string, header = ""): readonly string[] {
  const bare = (text: string) => text.toLowerCase().replace(/^__(host|secure)-/, "");
  const names = header.split(";").map((pair) => pair.split("=", 1)[0]?.trim() ?? "");
  const similar = names.filter((other) => other !== name && bare(other) === bare(name));
  return [...new Set(similar)].map((other) => `there is one named ${other}, which is another cookie`);
}

/** What became of several sessions. */
export function chosenAmong({ outcome, key, keys = [] }: Resolution): string {
  if (outcome === "hit" && key !== undefined) return `${handleOf(key)} is the one that lives, and is meant`;
  if (outcome !== "ambiguous") return `none of them lives: ${SESSION_FINDINGS[outcome]}`;
  return `${keys.map(handleOf).join(" and ")} live, and none is believed: one may have been planted`;
}

function ordinal(place: number): string {
  return ["first", "second", "third", "fourth"][place - 1] ?? `${place}th`;
}

/** A path, cut where it is endless. */
export function shown(path: string): string {
  return path.length > 200 ? `${path.slice(0, 199)}…` : path;
}

/** @param fields names and values in turn; of several of the name the last counts. */
export function valueIn(fields: readonly string[], name: string): string {
  for (let i = fields.length - 2; i >= 0; i -= 2) if (fields[i] === name) return fields[i + 1] ?? "";
  return "";
}

/** Names in lower case, each once. */
export function namesIn(fields: readonly string[]): readonly string[] {
  return [...new Set(fields.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase()))];
}

const OTHER_REASONS: Readonly<Record<string, string>> = {
  expect: "Coatcheck answers it itself",
  cookie: "nothing but the session cookie was in it",
  "max-forwards": "it is for OPTIONS and TRACE",
  tracestate: "only a proxy in listen.trustedProxies may say it, beside a sound traceparent",
  baggage: "only a proxy in listen.trustedProxies may say it",
};

/** A header that the pipeline took out. */
export interface NotedHeader {
  readonly name: string;
  readonly stripClass: StripClass;
}

/** What of the client's head does not go on: what was noted, and what is meant for this connection alone. */
export function removedHeaders(
  raw: readonly string[],
  fields: readonly string[],
  noted: readonly NotedHeader[],
  cookie: PresentedCookie,
): readonly RemovedHeader[] {
  const removed = new Map<string, RemovedHeader>();
  for (const { name, stripClass } of noted) removed.set(name.toLowerCase(), { name, why: REMOVAL_REASONS[stripClass] });
  const sent = new Set(namesIn(fields));
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i] ?? "";
    const lower = name.toLowerCase();
    if (removed.has(lower) || sent.has(lower)) continue;
    const other =
      OTHER_REASONS[lower] ?? (isForwardedFamily(lower) ? REMOVAL_REASONS.forwarded : "Connection lists it");
    const why = HOP_BY_HOP.has(lower) ? "it is for this connection" : other;
    removed.set(lower, { name, why });
  }
  const cut = [...removed.values()].map(({ name, why }) => ({ name: name.slice(0, 64), why }));
  const hasOthers = cookie.verdict !== "absent" && cookie.others !== undefined;
  return hasOthers ? [...cut, { name: "Cookie", why: "of it only the session cookie; the others go on" }] : cut;
}
