import { formatDuration } from "./units.ts";

/** What of the observation can be changed while a gateway runs: the admin API, its implementation and the command line share it. */

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Which requests get an access line. */
export const ACCESS_LINES = ["all", "errors", "none"] as const;
export type AccessLines = (typeof ACCESS_LINES)[number];

export interface ObserveSettings {
  readonly log: {
    readonly level: LogLevel;
    readonly access: AccessLines;
    /** With `access: all`, the share of the lines of ordinary requests that is written, 0 to 1. */
    readonly sample: number;
  };
  readonly traces: {
    /** Share of traces that are exported anyway, 0 to 1. */
    readonly ratio: number;
    /** Requests slower than this are exported, and kept as slow ones. */
    readonly slowerThanMs: number;
    /** Whether failed requests are always exported. */
    readonly errors: boolean;
  };
}

/** Any part of them; what is `undefined` stays as it is. */
export type ObserveChanges = {
  readonly [Section in keyof ObserveSettings]?:
    | { readonly [Name in keyof ObserveSettings[Section]]?: ObserveSettings[Section][Name] | undefined }
    | undefined;
};

/** The settings in the words of the configuration file. */
export interface ObserveWords {
  readonly log: ObserveSettings["log"];
  readonly traces: { readonly ratio: number; readonly slowerThan: string; readonly errors: boolean };
}

export interface ObserveReport extends ObserveWords {
  /** Absent when everything stays as it is. */
  readonly temporary?: {
    /** ISO 8601, UTC. */
    readonly until: string;
    /** What is in effect afterwards. */
    readonly afterwards: ObserveWords;
  };
}

export function inWords({ log, traces }: ObserveSettings): ObserveWords {
  const { level, access, sample } = log;
  const { ratio, slowerThanMs, errors } = traces;
  return { log: { level, access, sample }, traces: { ratio, slowerThan: formatDuration(slowerThanMs), errors } };
}

/** What differs, by the keys of the configuration file below `observe`, such as `traces.ratio`. */
export function differences(
  before: ObserveWords,
  after: ObserveWords,
): Record<string, { readonly from: unknown; readonly to: unknown }> {
  const values = (words: ObserveWords) =>
    Object.entries(words).flatMap(([section, settings]) =>
      Object.entries(settings).map(([name, value]): [string, unknown] => [`${section}.${name}`, value]),
    );
  const old = new Map(values(before));
  return Object.fromEntries(
    values(after)
      .filter(([key, value]) => old.get(key) !== value)
      .map(([key, to]) => [key, { from: old.get(key), to }]),
  );
}
