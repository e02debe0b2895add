import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { ask, knock } from "./ask.ts";
import { type Child, freePort, type Pins, startChild, untilReady } from "./children.ts";
import type { LoadOrder, LoadResult } from "./load.ts";

/** What runs all the time, next to one peer after the other. */
export interface Support {
  readonly upstream: string;
  readonly collector: string;
  readonly redis: string | undefined;
  readonly load: (order: LoadOrder) => Promise<LoadResult>;
  /** Bytes of spans that have arrived so far. */
  readonly collectedBytes: () => Promise<number>;
}

/** How much later than ordered the load generator may be ready. */
const LOAD_GRACE_MS = 15_000;

export async function startSupport(pins: Pins | undefined, folder: string, needsRedis: boolean): Promise<Support> {
  const cpus = pins?.others;
  const upstream = await startServer("upstream", "upstream.ts", cpus);
  const collector = await startServer("collector", "collector.ts", cpus);
  const redis = needsRedis ? await startRedis(cpus, folder) : undefined;
  const generator = startChild("load", [process.execPath, scriptPath("load.ts")], { cpus, ipc: true });
  return {
    upstream,
    collector,
    redis,
    load: (order) => fire(generator, order),
    collectedBytes: async () => Number((await ask(collector)).body),
  };
}

async function startServer(name: string, script: string, cpus: string | undefined): Promise<string> {
  const port = await freePort();
  const child = startChild(name, [process.execPath, scriptPath(script), String(port)], { cpus });
  await untilReady(child, () => knock(port));
  return `http://127.0.0.1:${port}`;
}

/** A server of the bench's own, that keeps nothing on disk. */
export async function startRedis(cpus: string | undefined, folder: string): Promise<string> {
  const port = await freePort();
  const flags = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder];
  const child = startChild("redis-server", ["redis-server", ...flags], { cpus });
  await untilReady(child, () => knock(port));
  return `redis://127.0.0.1:${port}/0`;
}

async function fire(generator: Child, order: LoadOrder): Promise<LoadResult> {
  const timeout = AbortSignal.timeout(order.seconds * 1000 + LOAD_GRACE_MS);
  const answered = once(generator.process, "message", { signal: timeout });
  generator.process.send(order);
  const [result] = (await Promise.race([answered, generator.died])) as [LoadResult | { readonly failed: string }];
  if ("failed" in result) throw new Error(`the load generator failed: ${result.failed}`);
  return result;
}

function scriptPath(script: string): string {
  return fileURLToPath(new URL(script, import.meta.url));
}
