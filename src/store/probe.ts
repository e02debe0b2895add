import { randomBytes } from "node:crypto";
import type { ProbeStep, StoreReport } from "../core/administration.ts";
import type { FindResult, Session, SessionKey } from "../core/session.ts";
import type { SessionStore, StoreInspection } from "../core/store.ts";
import { explain } from "./failures.ts";

/** How long the probe session would live if nothing else worked any more. */
const PROBE_LIFE_MS = 60_000;
/** From here on a step is worth a warning: every request waits for one of these. */
const SLOW_STEP_MS = 50;

type Step = readonly [name: string, expected: string, act: () => Promise<string>];

/**
 * Takes a session of its own through its life, as requests would, and says in plain words where a store fails. The
 * probe session belongs to nobody, has a random key, and is gone afterwards.
 */
export async function probeStore(store: SessionStore, now: () => number): Promise<StoreReport> {
  const key = randomBytes(32).toString("base64url");
  const steps: ProbeStep[] = [];
  try {
    for (const step of life(store, key, now)) {
      const broken = steps.some(({ result }) => result === "failed");
      steps.push(broken ? { step: step[0], result: "skipped", ms: 0 } : await take(step));
    }
  } finally {
    await cleanUp(store, key);
  }
  const { facts, warnings } = await inspect(store);
  const ok = steps.every(({ result }) => result === "ok");
  return { ok, store: store.kind, steps, facts, warnings: [...slowSteps(steps), ...warnings] };
}

/** What a session goes through, and the answer that a sound store gives. */
function life(store: SessionStore, key: SessionKey, now: () => number): readonly Step[] {
  const begun = now();
  const created: Session = {
    user: null,
    data: { probe: "created" },
    createdAt: begun,
    expiresAt: begun + PROBE_LIFE_MS,
    usedAt: begun,
    version: 1,
  };
  const changed: Session = { ...created, data: { probe: "changed" }, version: 2 };
  const extended = created.expiresAt + PROBE_LIFE_MS;
  return [
    ["create", "created", async () => store.create(key, created)],
    ["find", "as created", async () => seen(await store.find(key), "created", created.expiresAt)],
    ["commit", "committed", async () => store.commit(key, changed)],
    // Somebody else has written since: without this, one of two writers at the same time loses what it wrote.
    ["commit, too late", "conflict", async () => store.commit(key, changed)],
    ["touch", "touched", async () => store.touch(key, extended)],
    ["find again", "as changed", async () => seen(await store.find(key), "changed", extended)],
    ["destroy", "destroyed", async () => store.destroy(key)],
    ["find after the end", "unknown", async () => afterTheEnd(await store.find(key))],
  ];
}

function seen(found: FindResult, probe: string, expiresAt: number): string {
  if (found.outcome !== "hit") return found.outcome;
  return found.session.data.probe === probe && found.session.expiresAt === expiresAt ? `as ${probe}` : "something else";
}

/** A store that has to keep the place of an ended session taken answers `expired`, which is as good. */
function afterTheEnd({ outcome }: FindResult): string {
  return outcome === "expired" ? "unknown" : outcome;
}

async function take([step, expected, act]: Step): Promise<ProbeStep> {
  const startedMs = performance.now();
  const ms = () => Math.round((performance.now() - startedMs) * 1000) / 1000;
  try {
    const answer = await act();
    if (answer === expected) return { step, result: "ok", ms: ms() };
    return {
      step,
      result: "failed",
      ms: ms(),
      problem: `the store answered "${answer}" where "${expected}" was due`,
      advice:
        "something removes or changes sessions behind Coatcheck's back, or the store does not keep its contract: look for eviction, for another program on the same data, and at storeContract for a store of your own",
    };
  } catch (error) {
    return { step, result: "failed", ms: ms(), ...explain(error) };
  }
}

/** Whatever came before: a session that was perhaps written is ended. If that fails too, it expires by itself. */
async function cleanUp(store: SessionStore, key: SessionKey): Promise<void> {
  try {
    await store.destroy(key);
  } catch {}
}

async function inspect(store: SessionStore): Promise<StoreInspection> {
  try {
    return (await store.inspect?.()) ?? { facts: [], warnings: [] };
  } catch (error) {
    return { facts: [], warnings: [`the store could not be inspected: ${explain(error).problem}`] };
  }
}

function slowSteps(steps: readonly ProbeStep[]): string[] {
  const slow = steps.filter(({ ms }) => ms >= SLOW_STEP_MS).map(({ step, ms }) => `${step} (${ms.toFixed(0)} ms)`);
  if (slow.length === 0) return [];
  return [
    `slow: ${slow.join(", ")}; every request waits for the store, so it should be near and answer within a millisecond`,
  ];
}
