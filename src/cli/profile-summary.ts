import { grouped, plain, table } from "./text.ts";

/** The heaviest functions of V8's profiles, for whoever has a terminal and nothing else. */

const ROWS = 12;

interface CallFrame {
  readonly functionName?: string;
  readonly url?: string;
  /** From 0. */
  readonly lineNumber?: number;
}

interface CpuProfile {
  readonly nodes?: readonly { readonly id: number; readonly callFrame?: CallFrame }[];
  /** Ids of nodes. */
  readonly samples?: readonly number[];
  /** Microseconds before each of them. */
  readonly timeDeltas?: readonly number[];
}

interface HeapNode {
  readonly callFrame?: CallFrame;
  /** Bytes. */
  readonly selfSize?: number;
  readonly children?: readonly HeapNode[];
}

/** Where the time of a `.cpuprofile` went, without what the functions called. */
export function renderCpuProfile({ nodes = [], samples = [], timeDeltas = [] }: CpuProfile): string {
  const frames = new Map(nodes.map(({ id, callFrame = {} }) => [id, callFrame]));
  const spent = samples.map((id, index) => [frames.get(id) ?? {}, timeDeltas[index] ?? 0] as const);
  return heaviest(spent, "MS", (us) => (us / 1000).toFixed(0));
}

/** What holds the memory of a `.heapprofile`, by the function that asked for it. */
export function renderHeapProfile({ head }: { readonly head?: HeapNode }): string {
  const held: [CallFrame, number][] = [];
  const waiting = head === undefined ? [] : [head];
  for (let node = waiting.pop(); node !== undefined; node = waiting.pop()) {
    held.push([node.callFrame ?? {}, node.selfSize ?? 0]);
    waiting.push(...(node.children ?? []));
  }
  return heaviest(held, "KIB", (bytes) => grouped(Math.round(bytes / 1024)));
}

function heaviest(
  weights: readonly (readonly [frame: CallFrame, weight: number])[],
  unit: string,
  shown: (weight: number) => string,
): string {
  const sums = new Map<string, number>();
  let total = 0;
  for (const [frame, weight] of weights) {
    const name = nameOf(frame);
    sums.set(name, (sums.get(name) ?? 0) + weight);
    total += weight;
  }
  const rows = [...sums]
    .filter(([, weight]) => weight > 0)
    .sort(([, a], [, b]) => b - a)
    .slice(0, ROWS)
    .map(([name, weight]) => [`${((weight / total) * 100).toFixed(1)} %`, shown(weight), plain(name, 90)]);
  return rows.length === 0 ? "nothing was seen\n" : table([["SHARE", unit, "FUNCTION"], ...rows], [0, 1]);
}

/** `forward (upstream/forward.ts:88)`. */
function nameOf({ functionName = "", url = "", lineNumber = 0 }: CallFrame): string {
  const name = functionName === "" ? "(anonymous)" : functionName;
  return url === "" ? name : `${name} (${url.split("/").slice(-2).join("/")}:${lineNumber + 1})`;
}
