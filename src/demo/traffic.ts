import { Agent } from "node:http";
import { Browser, rest } from "./browser.ts";
import type { OwnRedis } from "./own-redis.ts";
import { Random } from "./random.ts";
import { Tally } from "./tally.ts";
import { TROUBLES, trouble } from "./trouble.ts";
import { type Spell, Visitor } from "./visitor.ts";

export interface TrafficSettings {
  /** How many people there are. */
  readonly users: number;
  /** About how many requests a second they make together. */
  readonly rate: number;
  /** It ends by itself after so long. */
  readonly seconds: number;
  /** The same seed, the same people with the same ideas. */
  readonly seed: number;
}

export interface TrafficOptions extends TrafficSettings {
  /** Origin of the gateway; see `parseTarget`. */
  readonly url: string;
  readonly print: (text: string) => void;
  /** What the demo has started itself, and may therefore trouble. */
  readonly redis?: OwnRedis | undefined;
  readonly revoke?: ((userId: string) => Promise<unknown>) | undefined;
}

export interface Traffic {
  /** Done when it has ended, by itself or by `stop`. */
  readonly finished: Promise<void>;
  /** Ends it and prints the summary. */
  stop(): Promise<void>;
}

const LINE_EVERY_MS = 5_000;
/** Most acts are one request, a login is four. */
const REQUESTS_PER_ACT = 1.5;
const MAX_CONNECTIONS = 100;

/** How long a person thinks between two acts, on the average, milliseconds. */
export function thinkTimeMs({ users, rate }: Pick<TrafficSettings, "users" | "rate">): number {
  return ((users * REQUESTS_PER_ACT) / rate) * 1000;
}

/** People who shop at a gateway, and what goes wrong around them. */
export function startTraffic(options: TrafficOptions): Traffic {
  const { url, users, seconds, seed, print, redis, revoke } = options;
  const end = new AbortController();
  const { signal } = end;
  const timer = setTimeout(() => end.abort(), seconds * 1000);
  const began = performance.now();
  const tally = new Tally();
  let spell: Spell;
  const shared = {
    url,
    agent: new Agent({ keepAlive: true, maxSockets: MAX_CONNECTIONS }),
    onAnswer: tally.answer.bind(tally),
    onAct: tally.act.bind(tally),
    spell: () => spell,
    thinkMs: thinkTimeMs(options),
  };
  const visitors = Array.from(
    { length: users },
    (_, n) => new Visitor({ ...shared, number: n + 1, random: new Random(seed * 10_007 + n) }),
  );
  const stranger = new Browser({ ...shared, userAgent: "curl/8.16.0" });
  const surroundings = {
    visit: (path: string, headers = {}) => stranger.look(path, { headers }),
    setSpell: (next: Spell) => {
      spell = next;
    },
    redis,
    revoke,
  };
  const line = (): void => {
    const signedIn = visitors.filter((visitor) => visitor.signedIn).length;
    print(`${tally.line(Date.now(), { signedIn, users })}\n`);
  };
  const lines = setInterval(line, LINE_EVERY_MS);
  const finished = Promise.all([
    ...visitors.map((visitor) => visitor.run(signal)),
    trouble(surroundings, new Random(seed), {
      signal,
      onTrouble: (kind) => print(`${new Date().toTimeString().slice(0, 8)}  trouble: ${TROUBLES[kind]}\n`),
    }),
    rest(seconds * 1000, signal),
  ]).then(() => {
    clearTimeout(timer);
    clearInterval(lines);
    shared.agent.destroy();
    print(tally.summary((performance.now() - began) / 1000));
  });
  return {
    finished,
    stop: () => {
      end.abort();
      return finished;
    },
  };
}
