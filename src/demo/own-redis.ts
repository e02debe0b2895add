import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { CommandError } from "../cli/arguments.ts";

const START_TIMEOUT_MS = 5_000;

/** A Redis that lives as long as the demo, so that the demo may do to it what happens to one. */
export interface OwnRedis {
  /** With its password. */
  readonly url: string;
  /** It accepts and does not answer, as a machine that swaps. */
  freeze(): void;
  thaw(): void;
  /** Everything in it is gone, as after a restart without persistence. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

/** @throws CommandError when redis-server is not installed or does not start. */
export async function startOwnRedis(folder: string): Promise<OwnRedis> {
  const port = await freePort();
  const password = randomBytes(18).toString("base64url");
  // Its configuration comes by standard input: a command line can be read by everybody on the machine.
  const child = spawn("redis-server", ["-"], { cwd: folder, stdio: ["pipe", "ignore", "ignore"], detached: true });
  const exited = new Promise<void>((resolve) => {
    child.once("error", () => resolve());
    child.once("exit", () => resolve());
  });
  const kill = (): boolean => child.kill("SIGKILL");
  process.once("exit", kill);
  child.stdin.on("error", () => {});
  child.stdin.end(`bind 127.0.0.1\nport ${port}\nrequirepass ${password}\nsave ""\nappendonly no\nmaxmemory 64mb\n`);
  const say = (command: string): Promise<string> => speak(port, password, command);
  const ended = exited.then(() => {
    throw new CommandError("redis-server does not start; is it installed? Without --redis sessions are kept in SQLite");
  });
  await Promise.race([answers(() => say("PING")), ended]);
  return {
    url: `redis://:${password}@127.0.0.1:${port}/0`,
    freeze: () => child.kill("SIGSTOP"),
    thaw: () => child.kill("SIGCONT"),
    flush: async () => {
      await say("FLUSHDB");
    },
    close: async () => {
      process.off("exit", kill);
      kill();
      await exited;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function answers(ask: () => Promise<string>): Promise<void> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  while (!(await ask().catch(() => "")).includes("PONG")) {
    if (performance.now() > deadline) throw new CommandError("redis-server was started and does not answer");
    await pause(30);
  }
}

/** One command on a connection of its own, in Redis's inline form. */
async function speak(port: number, password: string, command: string): Promise<string> {
  const socket = connect(port, "127.0.0.1");
  socket.setTimeout(1_000, () => socket.destroy(new Error("no answer")));
  socket.write(`AUTH ${password}\r\n${command}\r\nQUIT\r\n`);
  let text = "";
  for await (const piece of socket.setEncoding("latin1")) text += piece;
  return text;
}
