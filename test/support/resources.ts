/** What a test takes from the machine, and gives back when it ends: ports, folders, processes, time. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What of tap's test object the helpers use. */
export interface Teardown {
  teardown(end: () => unknown): void;
}

const LOWEST_PORT = 10_000;
/** The kernel takes the ports of outgoing connections from here on (Linux; macOS and Windows begin higher). */
const FIRST_EPHEMERAL_PORT = 32_768;

/** Ports that this process has had: a server that is down, and whoever watches it, must not find another's in its place. */
const taken = new Set<number>();
/** Of two test files that run at once, one has the even ports and the other the odd ones, for the same reason. */
const PARITY = Number(process.env.TAP_JOB_ID ?? 0) % 2;

/**
 * A loopback port that nobody listens on, below the ephemeral ones: no outgoing connection takes it while its server is
 * down, and a client that tries it again and again cannot end up connected to itself. A Sentinel that found the Redis of
 * another test on the port of a replica that was killed would make it a replica, and empty it.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const places = (FIRST_EPHEMERAL_PORT - LOWEST_PORT) / 2;
    const port = LOWEST_PORT + 2 * Math.floor(Math.random() * places) + PARITY;
    if (taken.has(port)) continue;
    const server = createServer().listen(port, "127.0.0.1");
    const free = await once(server, "listening").then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "EADDRINUSE") return false;
        throw error;
      },
    );
    if (!free) continue;
    taken.add(port);
    server.close();
    await once(server, "close");
    return port;
  }
}

export async function temporaryFolder(t: Teardown): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "coatcheck-test-"));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Waits for something that cannot be awaited otherwise. @throws Error with `what` after `timeoutMs`. */
export async function eventually<T>(what: string, look: () => T | Promise<T>, timeoutMs = 15_000, pauseMs = 20) {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const seen = await look();
    if (seen) return seen as NonNullable<T>;
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

const children = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

/** On Linux the kernel ends the children of a test whatever ends the test itself, SIGKILL included. */
const DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"] as const;
const canDieWithParent = spawnSync(DIE_WITH_PARENT[0], [...DIE_WITH_PARENT.slice(1), "true"]).status === 0;

/** A process that does not outlive the test's. What it says is appended to a file. */
export function spawnServer(
  command: string,
  args: readonly string[],
  { cwd, logFile }: { cwd: string; logFile: string },
): ChildProcess {
  const [first = command, ...rest] = [...(canDieWithParent ? DIE_WITH_PARENT : []), command, ...args];
  const log = openSync(logFile, "a", 0o600);
  const child = spawn(first, rest, { stdio: ["ignore", log, log], cwd });
  closeSync(log);
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

export function isRunning(child: ChildProcess | undefined): child is ChildProcess {
  return child !== undefined && child.exitCode === null && child.signalCode === null;
}

/** Resolves when the process is gone; at once if it already is. */
export async function end(child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<void> {
  if (!isRunning(child)) return;
  const exited = once(child, "exit");
  child.kill(signal);
  await exited;
}
