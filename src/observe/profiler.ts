import { Session } from "node:inspector/promises";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { getHeapSnapshot } from "node:v8";

/** Bytes between two samples of the heap, on average: V8's own default. */
const HEAP_SAMPLE_BYTES = 32_768;

/** V8's profiles of this process, one at a time. */
export class Profiler {
  #busy = false;

  /** Whether one is being taken; another one has to wait. */
  get busy(): boolean {
    return this.#busy;
  }

  /**
   * Where the processor time goes: function names and places, no values.
   * @param signal ends it early.
   * @returns the JSON of a `.cpuprofile`.
   */
  cpu(seconds: number, signal: AbortSignal): Promise<string> {
    return this.#inspect(async (session) => {
      await session.post("Profiler.enable");
      await session.post("Profiler.start");
      await passed(seconds, signal);
      const { profile } = await session.post("Profiler.stop");
      return JSON.stringify(profile);
    });
  }

  /**
   * Which functions made what is still alive at the end: names and sizes, no values.
   * @returns the JSON of a `.heapprofile`.
   */
  heapSampling(seconds: number, signal: AbortSignal): Promise<string> {
    return this.#inspect(async (session) => {
      await session.post("HeapProfiler.enable");
      await session.post("HeapProfiler.startSampling", { samplingInterval: HEAP_SAMPLE_BYTES });
      await passed(seconds, signal);
      const { profile } = await session.post("HeapProfiler.stopSampling");
      return JSON.stringify(profile);
    });
  }

  /**
   * The whole heap, with every string in it. Nothing else runs until V8 has made and written it: seconds for each 100 MiB
   * of heap, and up to ten times as much memory.
   * @returns the JSON of a `.heapsnapshot`, to be read to its end or destroyed.
   */
  heapSnapshot(): Readable {
    this.#busy = true;
    try {
      return getHeapSnapshot().once("close", () => {
        this.#busy = false;
      });
    } catch (error) {
      this.#busy = false;
      throw error;
    }
  }

  async #inspect(take: (session: Session) => Promise<string>): Promise<string> {
    this.#busy = true;
    const session = new Session();
    try {
      session.connect();
      return await take(session);
    } finally {
      session.disconnect();
      this.#busy = false;
    }
  }
}

async function passed(seconds: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(seconds * 1000, undefined, { signal });
  } catch {
    // Nobody waits for it any more.
  }
}
