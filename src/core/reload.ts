/** What becomes of a configuration that is read while the gateway runs; the admin API says it in JSON. */

/** Who asked: SIGHUP, a change of the file, an operator by the admin API, or the program that the gateway is part of. */
export type ReloadCause = "signal" | "file" | "operator" | "program";

/** By the names of keys, as the file has them. */
export interface ReloadResult {
  /** Changed, and in effect. */
  readonly applied: readonly string[];
  /** Different from what is in effect, and not applied before the next start. */
  readonly needsRestart: readonly string[];
}

export type ReloadOutcome =
  | ({ readonly result: "applied" } & ReloadResult)
  /** Everything goes on as it was. `problems`: a line each. */
  | { readonly result: "refused"; readonly problems: readonly string[] }
  /** The configuration is not in a file. */
  | { readonly result: "nothing-to-read" };
