import { type FindResult, handleOf, type SessionKey } from "../core/session.ts";
import type { SweepFinding } from "../core/store.ts";

const MAX_EXAMPLES = 20;

/** Counts what a sweep finds, kind by kind. */
export class SweepFindings {
  readonly #findings = new Map<string, { count: number; fixed: number; readonly examples: string[] }>();

  /** @param example a handle, or something else that is no key. */
  add(what: string, { count = 0, fixed = 0, example }: { count?: number; fixed?: number; example?: string }): void {
    const finding = this.#findings.get(what) ?? { count: 0, fixed: 0, examples: [] };
    this.#findings.set(what, finding);
    finding.count += count;
    finding.fixed += fixed;
    if (example !== undefined && finding.examples.length < MAX_EXAMPLES) finding.examples.push(example);
  }

  /** What is left alone whatever it is: somebody may still know how to read it. */
  addUnreadable(key: SessionKey, { outcome }: FindResult): void {
    if (outcome === "malformed") this.add("malformed sessions", { count: 1, example: handleOf(key) });
    if (outcome === "newer") this.add("sessions of a newer format", { count: 1, example: handleOf(key) });
  }

  list(): readonly SweepFinding[] {
    return [...this.#findings]
      .map(([what, finding]) => ({ what, ...finding, count: Math.max(finding.count, finding.fixed) }))
      .filter(({ count }) => count > 0);
  }
}
