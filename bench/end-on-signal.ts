/** Ends by `process.exit`, so that a CPU profile is written, instead of being cut off by the signal. */
export function endOnSignal(): void {
  process.once("SIGTERM", () => process.exit(0));
  process.once("SIGINT", () => process.exit(0));
}
