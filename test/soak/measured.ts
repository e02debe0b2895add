/** Loaded beside the real command (`node --expose-gc --import`): tells its parent, when asked, what the process holds. */

/** What is left after a garbage collection. */
export interface Held {
  readonly heapBytes: number;
  /** Timers, sockets and whatever else keeps a process alive, by kind. */
  readonly resources: Readonly<Record<string, number>>;
}

process.on("message", async () => {
  for (let i = 0; i < 4; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const resources: Record<string, number> = {};
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1;
  const { heapUsed, external } = process.memoryUsage();
  process.send?.({ heapBytes: heapUsed + external, resources } satisfies Held);
});
// It must not keep the process from its end.
process.channel?.unref();
