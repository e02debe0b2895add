import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** The processes of the bench: started here, and ended here by their ids, whatever happens. */

export interface Child {
  readonly name: string;
  readonly pid: number;
  readonly process: ChildProcess;
  /** Rejects when the process ends before it was asked to; never resolves. */
  readonly died: Promise<never>;
}

/** CPU lists for taskset; `undefined` where nothing can be pinned. */
export interface Pins {
  readonly proxy: string;
  readonly others: string;
}

export interface ChildOptions {
  readonly cpus: string | undefined;
  readonly env?: Readonly<Record<string, string>>;
  readonly ipc?: boolean;
}

const GRACE_MS = 5_000;
const START_TIMEOUT_MS = 15_000;
const POLL_MS = 20;
const KEPT_ERROR_CHARACTERS = 4_000;

const running = new Set<Child>();
let ending = false;

process.once("exit", () => {
  for (const child of running) child.process.kill("SIGKILL");
});

/** The proxy alone on one core, everything else on the others. */
export function findPins(cpus: number): Pins | undefined {
  if (cpus < 2) return undefined;
  const pins = { proxy: "0", others: cpus === 2 ? "1" : `1-${cpus - 1}` };
  const works = (list: string) => spawnSync("taskset", ["-c", list, "true"]).status === 0;
  return works(pins.proxy) && works(pins.others) ? pins : undefined;
}

/** Starts a process with nothing of this environment but the search path: no OTEL_* or NODE_OPTIONS comes along. */
export function startChild(name: string, command: readonly string[], options: ChildOptions): Child {
  if (ending) throw new Error("the bench is ending");
  const [file = "", ...args] = options.cpus === undefined ? command : ["taskset", "-c", options.cpus, ...command];
  const child = spawn(file, args, {
    env: { PATH: process.env.PATH ?? "", NODE_ENV: "production", ...options.env },
    stdio: ["ignore", "ignore", "pipe", ...(options.ipc ? (["ipc"] as const) : [])],
  });
  let errors = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-KEPT_ERROR_CHARACTERS);
  });
  const died = new Promise<never>((_resolve, reject) => {
    child.once("error", (error) => reject(new Error(`${name} cannot be started: ${error.message}`)));
    child.once("close", (code, signal) => reject(new Error(`${name} ended (${signal ?? code})\n${errors}`)));
  });
  // Whoever waits for something of the child hears of it; nobody else needs to.
  died.catch(() => {});
  const started: Child = { name, pid: child.pid ?? 0, process: child, died };
  running.add(started);
  child.once("exit", () => running.delete(started));
  child.once("error", () => running.delete(started));
  return started;
}

/** Ends one process: politely first. */
export async function endChild({ process: child }: Child): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const exited = once(child, "exit");
  const kill = setTimeout(() => child.kill("SIGKILL"), GRACE_MS);
  child.kill("SIGTERM");
  await exited;
  clearTimeout(kill);
}

/** Ends everything that was started; nothing can be started after this. */
export async function endAll(): Promise<void> {
  ending = true;
  await Promise.all([...running].map(endChild));
}

/** A port that is free now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** Waits until the child answers. @param ask resolves when it does and rejects when it does not yet. */
export async function untilReady(child: Child, ask: () => Promise<unknown>): Promise<void> {
  const deadlineMs = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    try {
      await Promise.race([ask(), child.died]);
      return;
    } catch (error) {
      if (!running.has(child)) return child.died;
      if (performance.now() > deadlineMs) throw new Error(`${child.name} does not answer`, { cause: error });
    }
    await sleep(POLL_MS);
  }
}
