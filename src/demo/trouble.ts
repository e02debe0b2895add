import { rest } from "./browser.ts";
import type { OwnRedis } from "./own-redis.ts";
import type { Random } from "./random.ts";
import type { Spell } from "./visitor.ts";

/** What the traffic can do to what is around it. */
export interface Surroundings {
  /** Requests a page as a stranger. */
  readonly visit: (path: string, headers?: Readonly<Record<string, string>>) => Promise<unknown>;
  readonly setSpell: (spell: Spell) => void;
  /** Only a Redis that the demo itself has started. */
  readonly redis?: OwnRedis | undefined;
  /** Ends all sessions of a user, by the admin listener of a gateway that the demo itself has started. */
  readonly revoke?: ((userId: string) => Promise<unknown>) | undefined;
}

export const TROUBLES = {
  "slow spell": "the application is slow for 6 s",
  "failing spell": "the application fails every other request for 6 s",
  "refusing application": "the application refuses connections for 1.5 s",
  forgeries: "somebody forges 20 identities",
  revocation: "an operator ends the sessions of a shopper",
  "silent store": "Redis does not answer for 3 s",
  "emptied store": "Redis loses everything",
} as const;
export type Trouble = keyof typeof TROUBLES;

const SPELL_MS = 6_000;
const OUTAGE_MS = 3_000;
const FORGERIES = 20;
/** Between the end of one and the beginning of the next. */
const MEAN_QUIET_MS = 12_000;
const FIRST_AFTER_MS = 4_000;

/** One trouble after another, with quiet times between, until the signal. */
export async function trouble(
  surroundings: Surroundings,
  random: Random,
  { signal, onTrouble }: { signal: AbortSignal; onTrouble: (trouble: Trouble) => void },
): Promise<void> {
  const { redis, revoke } = surroundings;
  const weights: Partial<Record<Trouble, number>> = {
    "slow spell": 3,
    "failing spell": 3,
    "refusing application": 3,
    forgeries: 2,
    ...(revoke !== undefined && { revocation: 2 }),
    ...(redis !== undefined && { "silent store": 2, "emptied store": 1 }),
  };
  await rest(FIRST_AFTER_MS, signal);
  while (!signal.aborted) {
    const kind = random.weighted<Trouble>(weights);
    onTrouble(kind);
    await make(kind, surroundings, { random, signal });
    await rest(random.exponential(MEAN_QUIET_MS), signal);
  }
}

async function make(
  kind: Trouble,
  { visit, setSpell, redis, revoke }: Surroundings,
  { random, signal }: { random: Random; signal: AbortSignal },
): Promise<void> {
  switch (kind) {
    case "slow spell":
    case "failing spell":
      setSpell(kind === "slow spell" ? "slow" : "failing");
      await rest(SPELL_MS, signal);
      setSpell(undefined);
      return;
    case "refusing application":
      await visit("/refuse?ms=1500");
      return;
    case "forgeries":
      for (let n = 0; n < FORGERIES && !signal.aborted; n++) await visit("/headers", { "X-User-Id": String(n) });
      return;
    case "revocation":
      await revoke?.(String(1001 + random.below(10)));
      return;
    case "silent store":
      redis?.freeze();
      await rest(OUTAGE_MS, signal);
      redis?.thaw();
      return;
    case "emptied store":
      await redis?.flush().catch(() => {});
      return;
  }
}
