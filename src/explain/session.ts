import type { ExplanationStep } from "../core/explanation.ts";
import { type Binding, endOf, type Session, type SessionClient } from "../core/session.ts";
import { networkOf } from "../session/binding.ts";
import type { Sighting } from "../session/dry-lookup.ts";
import { dueTouch, type ExpiryPolicy, expiryAfterUse } from "../session/expiry.ts";
import type { CachePeek } from "../session/near-cache.ts";
import { explain as adviceOnFailure } from "../store/failures.ts";
import { inWords, relative, SESSION_FINDINGS, timeInWords, UNREADABLE_FINDINGS } from "./words.ts";

/** What explanations say of one session: where it was found, how long it lives, and for whom. */

/** From here on a look-up is worth a word: every request that the cache does not answer waits for one. */
const SLOW_MS = 50;
/** Clocks and rounding; a difference beyond this comes from other timeouts. */
const SAME_MS = 1_000;

/** @param tells whether the store tells of changes. */
export function cacheStep(sighting: Sighting, hasCache: boolean, tells: boolean): ExplanationStep {
  const { cache } = sighting;
  if (!hasCache || cache === undefined) {
    const why = tells ? "cache.maxBytes turns it off" : "this store does not tell of changes";
    return { step: "cache", finding: `none: ${why}, and each request asks the store`, ok: true };
  }
  const { state } = cache;
  const age = cache.ageMs === undefined ? "" : inWords(cache.ageMs);
  if (state !== "used") return { step: "cache", finding: bypassed(state, age), ok: state !== "unheard" };
  const finding = `in the near cache since ${age}, and used`;
  const difference = sighting.stillCached ? differenceOf(sighting) : undefined;
  if (difference === undefined) return { step: "cache", finding, ok: true };
  const detail = [`the store says otherwise: ${difference}; it has not told yet, and cache.maxAge bounds that`];
  return { step: "cache", finding, detail, ok: false };
}

function bypassed(state: Exclude<CachePeek["state"], "used">, age: string): string {
  switch (state) {
    case "absent":
      return "not in the near cache, so the store is asked";
    case "ended":
      return `in the near cache since ${age}, and ended by what is known there, so the store is asked`;
    case "old":
      return `in the near cache since ${age}, longer than cache.maxAge, so the store is asked`;
    case "unheard":
      return `bypassed: the store cannot be heard telling of changes${age === "" ? "" : ` since it was read ${age} ago`}`;
  }
}

/** What the store knows better than the cache. */
function differenceOf({ cache, store }: Sighting): string | undefined {
  const cached = cache?.hit?.session;
  if (store === undefined || cached === undefined) return undefined;
  if (store.outcome !== "hit" || store.session === undefined) return SESSION_FINDINGS[store.outcome];
  if (store.session.version !== cached.version)
    return `it has version ${store.session.version}, the cache ${cached.version}`;
  const difference = endOf(store.session) - endOf(cached);
  return Math.abs(difference) > SAME_MS ? `there it ends ${timeInWords(endOf(store.session))}` : undefined;
}

/** @param kind of the store. */
export function storeStep(sighting: Sighting, kind: string): ExplanationStep {
  const { store, error, storeMs, resolution } = sighting;
  const time = `${storeMs.toFixed(2)} ms`;
  const slow = storeMs >= SLOW_MS ? ["slow: each request that the cache does not answer waits as long"] : [];
  if (store === undefined) {
    const { problem, advice } = adviceOnFailure(error);
    const instead = withoutStore(sighting);
    return {
      step: "store",
      finding: `${kind} gave no answer in ${time}`,
      detail: [problem, advice, ...instead],
      ok: false,
    };
  }
  const detail = [...slow];
  if (store.unreadable !== undefined) detail.push(UNREADABLE_FINDINGS[store.unreadable]);
  if (store.place === "fallback") detail.push("it lies in the fallback: a request would move it to the primary");
  if (store.outcome === "hit" && resolution.source === "cache") detail.push("asked for comparison: a request is not");
  const finding = `${kind}, in ${time}: ${SESSION_FINDINGS[store.outcome]}`;
  return {
    step: "store",
    finding,
    ...(detail.length > 0 && { detail }),
    ok: store.outcome === "hit",
  };
}

function withoutStore({ resolution: { source, staleMs = 0 } }: Sighting): readonly string[] {
  if (source === "cache") return ["the near cache answers all the same"];
  return source === "stale" ? [`cache.staleOnOutage lets what was read ${inWords(staleMs)} ago answer`] : [];
}

/** The arithmetic of a session's end; nothing for a session that nobody knows. */
export function expiryStep(sighting: Sighting, policy: ExpiryPolicy, now: number): ExplanationStep | undefined {
  const session = sighting.resolution.session ?? sighting.store?.session;
  if (session === undefined) return undefined;
  const end = endOf(session);
  const finding = `${end <= now ? "ended" : "ends"} ${relative(end, now)}: ${boundOf(session, policy)}`;
  return { step: "expiry", finding, detail: arithmetic(session, policy, now), ok: now < end };
}

function boundOf({ createdAt, expiresAt, retiresAt }: Session, { absoluteTimeoutMs }: ExpiryPolicy): string {
  if (retiresAt !== undefined && retiresAt <= expiresAt) return "a login has replaced it";
  // What a store that is being replaced keeps in the place of a session that was ended.
  if (createdAt === expiresAt) return "somebody ended it";
  return expiresAt >= createdAt + absoluteTimeoutMs ? "session.absoluteTimeout" : "session.idleTimeout";
}

function arithmetic(session: Session, policy: ExpiryPolicy, now: number): readonly string[] {
  const { createdAt, usedAt, expiresAt, retiresAt } = session;
  const { absoluteTimeoutMs, idleTimeoutMs } = policy;
  const computed = expiryAfterUse(createdAt, usedAt, policy);
  const lines = [
    `created ${timeInWords(createdAt)}, ${relative(createdAt, now)}; plus session.absoluteTimeout ${inWords(absoluteTimeoutMs)}: ${timeInWords(createdAt + absoluteTimeoutMs)}`,
    `last use written down ${timeInWords(usedAt)}, ${relative(usedAt, now)}; plus session.idleTimeout ${inWords(idleTimeoutMs)}: ${timeInWords(usedAt + idleTimeoutMs)}`,
    `the earlier of the two: ${timeInWords(computed)}`,
  ];
  if (Math.abs(computed - expiresAt) > SAME_MS)
    lines.push(`stored, and what counts: ${timeInWords(expiresAt)}, by other timeouts than those of now`);
  if (retiresAt !== undefined) lines.push(`replaced by a login, and answers until ${timeInWords(retiresAt)}`);
  else if (now < endOf(session)) lines.push(touchLine(dueTouch(session, now, policy)));
  return lines;
}

function touchLine(expiresAt: number | undefined): string {
  return expiresAt === undefined
    ? "this use would not be written down: it moves the end by too little"
    : `this use would be written down, and move the end to ${timeInWords(expiresAt)}`;
}

export function bindingStep(
  { to, onMismatch }: { readonly to: Binding; readonly onMismatch: "log" | "deny" },
  { client: bound }: Session,
  client: SessionClient,
  { mismatch, addressKnown }: { readonly mismatch: boolean; readonly addressKnown: boolean },
): ExplanationStep {
  const step = "binding";
  if (to === "none") return { step, finding: "to nothing: session.bind is none", ok: true };
  if (bound === undefined) return { step, finding: `session.bind: ${to}, but the session knows no client`, ok: true };
  const detail: string[] = [];
  if (to !== "ip-prefix") {
    const kind = bound.userAgent === client.userAgent ? "the same" : client.userAgent === "" ? "none" : "another";
    detail.push(`User-Agent: ${kind}${kind === "the same" ? " as" : ", not that"} of the login`);
  }
  if (to !== "user-agent") {
    const here = addressKnown ? networkOf(client.address) : "an address that is not given, and taken to be right";
    detail.push(`address: the login came from ${networkOf(bound.address)}, this request from ${here}`);
  }
  if (!mismatch) return { step, finding: `session.bind: ${to}: the same client`, detail, ok: true };
  const consequence = onMismatch === "deny" ? "the session is not believed" : "it is logged, and believed";
  return {
    step,
    finding: `session.bind: ${to}: another client; onMismatch: ${onMismatch}, so ${consequence}`,
    detail,
    ok: false,
  };
}
