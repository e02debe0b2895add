import { changedKeys } from "./changes.ts";
import { type Config, compile } from "./compile.ts";
import type { Settings } from "./schema.ts";

/**
 * What cannot change while the gateway runs, with everything below it: what listens, where sessions live and how they are
 * written, what keeps them in memory, and how its log looks. All else is in effect with the next request.
 */
export const NEEDS_RESTART: readonly string[] = [
  "listen.host",
  "listen.port",
  // Taken as a whole when it comes or goes.
  "listen.tls.http2",
  "listen.tls.redirectFrom",
  "limits.head",
  "limits.idleTimeout",
  "limits.sendTimeout",
  "limits.maxPipelined",
  "admin",
  "workers",
  "store",
  "cache",
  "session.absoluteTimeout",
  "session.codec",
  "session.encryptionKeys",
  "session.layout",
  "observe.log.format",
];

/** A new configuration, as far as it can be applied. */
export interface ConfigChange {
  /** What is to be in effect. */
  readonly config: Config;
  /** Keys that differ from what was in effect, and are applied. */
  readonly applied: readonly string[];
  /** Keys that differ from what is going to be in effect, for which a restart is needed. */
  readonly needsRestart: readonly string[];
}

/** What becomes of a running configuration when another is read. The environment of traces stays. */
export function change(running: Config, read: Config): ConfigChange {
  const settings = applicable(running.settings, read.settings);
  // One that was made has been made for all workers.
  const made = [running, read].find(({ session }) => session.ephemeralSecret);
  const secret = made?.session.cookie.secrets[0];
  return {
    config: compile(settings, running.observe.traceExport, secret),
    applied: changedKeys(running.settings, settings),
    needsRestart: changedKeys(settings, read.settings),
  };
}

/** The new settings, with those that cannot change as they were. */
function applicable(running: Settings, read: Settings): Settings {
  const settings = structuredClone(read);
  for (const path of NEEDS_RESTART) keep(settings, running, path.split("."));
  return settings;
}

type Section = Record<string, unknown>;

function keep(settings: Section, running: Readonly<Section>, [name = "", ...rest]: readonly string[]): void {
  const [before, after] = [running[name], settings[name]];
  if (rest.length > 0 && isSection(before) && isSection(after)) keep(after, before, rest);
  else if (before === undefined) delete settings[name];
  else settings[name] = before;
}

function isSection(value: unknown): value is Section {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
