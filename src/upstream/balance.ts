/** Ways of choosing among targets. Each looks at all of them: there are few. */

export interface Candidate {
  /** As configured; less while it returns slowly. */
  readonly weight: number;
  readonly fullWeight: number;
  /** Requests under way, and WebSockets. */
  readonly active: number;
  /** For `byHash`: from its name, so that every gateway gives a session the same target. */
  readonly seed: number;
  /** For `byTurns`: what it is ahead of the others. */
  credit: number;
}

/**
 * In turns, by weight, and evenly: with weights 5, 1, 1 the order is a a b a c a a, as in nginx. Those that may not be
 * chosen at the moment gather no credit.
 */
export function byTurns<C extends Candidate>(candidates: readonly C[], may: (candidate: C) => boolean): C | undefined {
  let best: C | undefined;
  let total = 0;
  for (const candidate of candidates) {
    if (!may(candidate)) continue;
    const { weight } = candidate;
    candidate.credit += weight;
    total += weight;
    if (best === undefined || candidate.credit > best.credit) best = candidate;
  }
  if (best !== undefined) best.credit -= total;
  return best;
}

/** Whichever has the least to do for its weight; of several, in turns. */
export function byLoad<C extends Candidate>(candidates: readonly C[], may: (candidate: C) => boolean): C | undefined {
  let least = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    if (may(candidate)) least = Math.min(least, loadOf(candidate));
  }
  // Less by now, where one that returns slowly has got more weight since.
  return byTurns(candidates, (candidate) => loadOf(candidate) <= least && may(candidate));
}

function loadOf({ active, weight }: Candidate): number {
  return (active + 1) / weight;
}

/**
 * Rendezvous hashing, weighted: each candidate has a score for the key, and the highest one is it. A candidate more takes
 * its share from all the others, and one less gives its share to all of them; no other key moves.
 * @see https://www.snia.org/sites/default/files/SDC15_presentations/dist_sys/Jason_Resch_New_Consistent_Hashings_Rev.pdf
 */
export function byHash<C extends Candidate>(
  candidates: readonly C[],
  key: number,
  may: (candidate: C) => boolean,
): C | undefined {
  let best: C | undefined;
  let highest = Number.NEGATIVE_INFINITY;
  for (const candidate of candidates) {
    if (!may(candidate)) continue;
    // Not the weight of the moment: a slow return would move sessions several times.
    const score = -candidate.fullWeight / Math.log((mix(key ^ candidate.seed) + 0.5) / 2 ** 32);
    if (score > highest) {
      best = candidate;
      highest = score;
    }
  }
  return best;
}

/** 32 bits of a text: FNV-1a, mixed. */
export function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return mix(hash);
}

/** The finaliser of MurmurHash3: every bit of the one depends on every bit of the other. */
function mix(bits: number): number {
  let hash = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
