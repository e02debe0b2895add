/** A real PostgreSQL server for the tests, on a free loopback port, ended with the test. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { chown } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import { freePort, type Teardown, temporaryFolder } from "./servers.ts";

/** Debian keeps the programs of each version in a folder of its own, which is not in the path. */
const DEBIAN_VERSIONS = "/usr/lib/postgresql";

/** How to call one of PostgreSQL's programs, of the newest version that is installed. */
export function postgresProgram(name: string): string {
  if (!existsSync(DEBIAN_VERSIONS)) return name;
  const newest = readdirSync(DEBIAN_VERSIONS).sort((a, b) => Number(b) - Number(a))[0];
  return newest === undefined ? name : join(DEBIAN_VERSIONS, newest, "bin", name);
}

export interface PostgresServer {
  readonly url: string;
  readonly port: number;
  start(): Promise<void>;
  /** Ends it as a crash does. */
  kill(): Promise<void>;
}

/** PostgreSQL refuses to run as root; the Debian package brings a user for it. */
function owner(): { readonly uid?: number; readonly gid?: number } {
  if (process.getuid?.() !== 0) return {};
  const idOf = (option: string) => Number(execFileSync("id", [option, "postgres"], { encoding: "utf8" }));
  return { uid: idOf("-u"), gid: idOf("-g") };
}

/** A server of its own with an empty database, which nothing protects but its address. */
export async function startPostgres(t: Teardown): Promise<PostgresServer> {
  const folder = await temporaryFolder(t);
  const user = owner();
  if (user.uid !== undefined && user.gid !== undefined) await chown(folder, user.uid, user.gid);
  const data = join(folder, "data");
  const initdb = ["-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"];
  execFileSync(postgresProgram("initdb"), initdb, { ...user, cwd: folder, stdio: ["ignore", "ignore", "inherit"] });

  const port = await freePort();
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  const settings = { fsync: "off", listen_addresses: "127.0.0.1", unix_socket_directories: "", shared_buffers: "16MB" };
  const args = ["-D", data, "-p", String(port), ...Object.entries(settings).flatMap(([k, v]) => ["-c", `${k}=${v}`])];
  // The kernel ends it with the test, whatever ends the test.
  const bound = user.uid === undefined ? [] : ["setpriv", "--pdeathsig", "KILL"];
  const [program = "", ...rest] = [...bound, postgresProgram("postgres"), ...args];
  let child: ChildProcess | undefined;
  const runs = () => child !== undefined && child.exitCode === null && child.signalCode === null;
  const end = async (signal: NodeJS.Signals) => {
    if (child === undefined || !runs()) return;
    const exited = once(child, "exit");
    child.kill(signal);
    await exited;
  };
  const server: PostgresServer = {
    url,
    port,
    start: async () => {
      do {
        // After a crash it refuses to start until the last process of the old one has noticed.
        if (!runs()) child = spawn(program, rest, { ...user, cwd: folder, stdio: "ignore" });
        await new Promise((resolve) => setTimeout(resolve, 20));
      } while (!(await answers(url)));
    },
    kill: () => end("SIGKILL"),
  };
  t.teardown(() => end("SIGQUIT"));
  await server.start();
  return server;
}

async function answers(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  try {
    await client.connect();
    await client.end();
    return true;
  } catch {
    return false;
  }
}
