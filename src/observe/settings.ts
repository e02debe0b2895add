import {
  differences,
  inWords,
  type ObserveChanges,
  type ObserveReport,
  type ObserveSettings,
} from "../core/observe-settings.ts";

/** As `ObserveChanges`, and nothing in it is `undefined`. */
type Changes = { readonly [Section in keyof ObserveSettings]?: Partial<ObserveSettings[Section]> };

/** Who changed the settings: an operator, the end of the time that an operator gave, or a new configuration. */
export type ChangedBy = "operator" | "time" | "reload";

export interface SettingsChange {
  readonly by: ChangedBy;
  readonly before: ObserveSettings;
  readonly after: ObserveSettings;
  /** By the keys of the configuration file. */
  readonly changed: Readonly<Record<string, { readonly from: unknown; readonly to: unknown }>>;
  /** When it ends by itself: ISO 8601, UTC. `undefined`: it stays. */
  readonly until: string | undefined;
}

/**
 * The settings of the observation that can be changed while the gateway runs: those that stay, and above them those that
 * were made for a while. Both come from an operator, and a new configuration replaces both.
 */
export class RuntimeSettings {
  readonly #onChange: (change: SettingsChange) => void;
  #lasting: ObserveSettings;
  #temporary: Changes = {};
  /** Milliseconds since the epoch. */
  #until: number | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** @param onChange told when something is in effect that was not. */
  constructor(configured: ObserveSettings, onChange: (change: SettingsChange) => void) {
    this.#lasting = configured;
    this.#onChange = onChange;
  }

  get current(): ObserveSettings {
    return merged(this.#lasting, this.#temporary);
  }

  report(): ObserveReport {
    const until = isoTime(this.#until);
    return {
      ...inWords(this.current),
      ...(until !== undefined && { temporary: { until, afterwards: inWords(this.#lasting) } }),
    };
  }

  /**
   * Changes what is named.
   * @param forMs the former values come back by themselves after so many milliseconds. Another change for a while joins
   *   the one before, and both end when the later one says. Absent: it stays, until it is changed or the configuration
   *   is read again.
   */
  adjust(named: ObserveChanges, forMs?: number): void {
    const changes = { log: defined(named.log), traces: defined(named.traces) };
    const until = forMs === undefined ? undefined : Date.now() + forMs;
    this.#change("operator", until, () => {
      if (forMs === undefined) {
        this.#lasting = merged(this.#lasting, changes);
        this.#temporary = without(this.#temporary, changes);
        if (Object.keys(this.#temporary).length === 0) this.#endTemporary();
      } else {
        this.#temporary = {
          log: { ...this.#temporary.log, ...changes.log },
          traces: { ...this.#temporary.traces, ...changes.traces },
        };
        this.#endTemporary(until);
      }
    });
  }

  /** A new configuration: what operators changed is gone. */
  replace(configured: ObserveSettings): void {
    this.#change("reload", undefined, () => {
      this.#lasting = configured;
      this.#temporary = {};
      this.#endTemporary();
    });
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  /** @param until milliseconds since the epoch; absent: there is nothing to end any more. */
  #endTemporary(until?: number): void {
    clearTimeout(this.#timer);
    this.#until = until;
    if (until === undefined) return;
    this.#timer = setTimeout(() => {
      this.#change("time", undefined, () => {
        this.#temporary = {};
        this.#until = undefined;
      });
    }, until - Date.now()).unref();
  }

  #change(by: ChangedBy, until: number | undefined, change: () => void): void {
    const before = this.current;
    change();
    const after = this.current;
    const changed = differences(inWords(before), inWords(after));
    if (Object.keys(changed).length > 0) this.#onChange({ by, before, after, changed, until: isoTime(until) });
  }
}

function isoTime(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : new Date(ms).toISOString();
}

function defined<T extends object>(values: T | undefined): { [Name in keyof T]?: Exclude<T[Name], undefined> } {
  return Object.fromEntries(Object.entries(values ?? {}).filter(([, value]) => value !== undefined)) as never;
}

function merged({ log, traces }: ObserveSettings, changes: Changes): ObserveSettings {
  return { log: { ...log, ...changes.log }, traces: { ...traces, ...changes.traces } };
}

/** @returns the changes that the others do not overrule; a section that nothing is left of is not there. */
function without(changes: Changes, others: Changes): Changes {
  const sections = Object.entries(changes).map(([section, values]): [string, object] => {
    const overruled = Object.keys(others[section as keyof Changes] ?? {});
    return [section, Object.fromEntries(Object.entries(values ?? {}).filter(([name]) => !overruled.includes(name)))];
  });
  return Object.fromEntries(sections.filter(([, values]) => Object.keys(values).length > 0));
}
