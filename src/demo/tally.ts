import { table } from "../cli/text.ts";
import type { Answer } from "./browser.ts";
import type { Act } from "./visitor.ts";

/** So many durations are kept for the percentiles of one line. */
const MAX_DURATIONS = 10_000;

/** What came back, in the words of the lines. */
const KINDS = {
  ok: "2xx",
  redirects: "3xx",
  refused: "401 or 403",
  rejected: "other 4xx",
  failed: "5xx",
  unanswered: "no answer, or one that broke off",
} as const;
type Kind = keyof typeof KINDS;

interface Counts {
  requests: number;
  readonly kinds: Record<Kind, number>;
  readonly acts: Map<Act, number>;
  readonly durationsMs: number[];
}

function kindOf(status: number): Kind {
  if (status === 0) return "unanswered";
  if (status >= 500) return "failed";
  if (status === 401 || status === 403) return "refused";
  if (status >= 400) return "rejected";
  return status >= 300 ? "redirects" : "ok";
}

/** Counts what the traffic did and what it got, for a line every few seconds and for the end. */
export class Tally {
  readonly #total = noCounts();
  readonly #statuses = new Map<number, number>();
  #sinceLine = noCounts();

  answer({ status, tookMs }: Answer): void {
    this.#statuses.set(status, (this.#statuses.get(status) ?? 0) + 1);
    for (const counts of [this.#total, this.#sinceLine]) {
      counts.requests++;
      counts.kinds[kindOf(status)]++;
    }
    if (this.#sinceLine.durationsMs.length < MAX_DURATIONS) this.#sinceLine.durationsMs.push(tookMs);
  }

  act(act: Act): void {
    for (const { acts } of [this.#total, this.#sinceLine]) acts.set(act, (acts.get(act) ?? 0) + 1);
  }

  /** What happened since the last line; `now` is milliseconds since the epoch. */
  line(now: number, { signedIn, users }: { signedIn: number; users: number }): string {
    const { requests, kinds, acts, durationsMs } = this.#sinceLine;
    this.#sinceLine = noCounts();
    durationsMs.sort((a, b) => a - b);
    const p99 = durationsMs[Math.floor(durationsMs.length * 0.99)];
    const answers = (Object.keys(KINDS) as Kind[]).flatMap((kind) => (kinds[kind] > 0 ? `${kinds[kind]} ${kind}` : []));
    const tricks = ["forge an identity", "forge a cookie", "steal a cookie", "bring two cookies"] as const;
    const did = [
      [sumOf(acts, "sign in", "sign in again"), "logins"],
      [sumOf(acts, "sign out", "sign out everywhere"), "logouts"],
      [sumOf(acts, "come back too late"), "late"],
      [sumOf(acts, ...tricks), "tricks"],
    ].flatMap(([count, what]) => (count === 0 ? [] : `${count} ${what}`));
    return [
      `${new Date(now).toTimeString().slice(0, 8)}  ${requests} requests: ${answers.join(", ") || "none"}`,
      p99 === undefined ? "" : `; p99 ${p99.toFixed(0)} ms`,
      did.length === 0 ? "" : `; ${did.join(", ")}`,
      `; ${signedIn} of ${users} signed in`,
    ].join("");
  }

  /** Everything, for the end. */
  summary(seconds: number): string {
    const { requests, acts } = this.#total;
    const statuses = [...this.#statuses].sort(([a], [b]) => a - b);
    const rate = (requests / Math.max(seconds, 0.001)).toFixed(1);
    return [
      `\n${requests} requests in ${seconds.toFixed(0)} s (${rate} a second)\n\n`,
      table(
        [["ANSWER", "TIMES"], ...statuses.map(([status, n]) => [status === 0 ? "none" : String(status), String(n)])],
        [1],
      ),
      "\n",
      table(
        [["WHAT PEOPLE DID", "TIMES"], ...[...acts].sort(([, a], [, b]) => b - a).map(([act, n]) => [act, String(n)])],
        [1],
      ),
    ].join("");
  }
}

function noCounts(): Counts {
  const kinds = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0])) as Record<Kind, number>;
  return { requests: 0, kinds, acts: new Map(), durationsMs: [] };
}

function sumOf(acts: ReadonlyMap<Act, number>, ...names: readonly Act[]): number {
  return names.reduce((sum, name) => sum + (acts.get(name) ?? 0), 0);
}
