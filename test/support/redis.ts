/** Real redis-servers, one by one; `redis-cluster.ts` and `redis-sentinel.ts` put several together. */
import { type ChildProcess, spawnSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { Redis, type RedisOptions } from "ioredis";
import { end, eventually, freePort, isRunning, spawnServer, type Teardown, temporaryFolder } from "./resources.ts";

export interface RedisServerOptions {
  /** As on the command line: `["--maxmemory", "2mb"]`. */
  readonly args?: readonly string[];
  /** Of the default user. */
  readonly password?: string;
  /** ACL users by name: `{ reader: "on >secret ~coatcheck:* +@read" }`. */
  readonly users?: Readonly<Record<string, string>>;
  /** TLS with a certificate of its own for 127.0.0.1 and localhost, and no port without; the URL is `rediss://…?ca=FILE`. */
  readonly tls?: boolean;
  /** Every write is on the disk before it is answered, so that `kill` and `start` lose nothing. */
  readonly save?: boolean;
}

export type ClientOptions = Omit<RedisOptions, "replyMapping">;

export interface RedisServer {
  /** With the password, if there is one. For another user: `new URL(url)`, then `username` and `password`. */
  readonly url: string;
  readonly port: number;
  /** Certificate to trust, a PEM file; absent without TLS. */
  readonly ca?: string;
  /** Started, and neither ended nor frozen. */
  readonly running: boolean;
  /** Done when the server answers commands, everything loaded. */
  start(): Promise<void>;
  /** Ends it in an orderly way (SIGTERM). */
  stop(): Promise<void>;
  /** Ends it as a crash does. */
  kill(): Promise<void>;
  /** Stops and continues the process: a server that accepts and does not answer. */
  freeze(): void;
  thaw(): void;
  /** A connection that is closed with the test. */
  client(options?: ClientOptions): Redis;
  /** One command on a connection that the helpers keep for themselves (`CLIENT LIST` calls it `test-support`). */
  call(command: string, ...args: readonly (string | number)[]): Promise<unknown>;
  /** What the server has written to its log. */
  log(): Promise<string>;
}

/** Of ioredis, untyped: a connection that is already gone is waited for all the same, two seconds unless told. */
const QUICK_END = { disconnectTimeout: 50 };

/** A redis-server of its own, without persistence unless it is asked for. */
export async function startRedis(t: Teardown, options: RedisServerOptions = {}): Promise<RedisServer> {
  return startServer(t, { ...options, config: [] });
}

export interface ServerSettings extends RedisServerOptions {
  /** Lines of redis.conf beyond the usual. */
  readonly config: readonly string[];
  readonly port?: number;
}

/**
 * `startRedis` with everything that can be set. The server has a configuration file, which it may rewrite: what a
 * Sentinel has told it holds after a restart.
 */
export async function startServer(t: Teardown, settings: ServerSettings): Promise<RedisServer> {
  const { password, tls = false } = settings;
  const folder = await temporaryFolder(t);
  const port = settings.port ?? (await freePort());
  if (tls) makeCertificate(folder);
  const ca = tls ? join(folder, "server.crt") : undefined;
  const auth = password === undefined ? "" : `:${encodeURIComponent(password)}@`;
  const connection: ClientOptions = {
    ...QUICK_END,
    host: "127.0.0.1",
    port,
    ...(password !== undefined && { password }),
    ...(ca && { tls: { ca: await readFile(ca) } }),
  };
  const file = join(folder, "redis.conf");
  await writeFile(file, configuration(port, settings), { mode: 0o600 });

  let child: ChildProcess | undefined;
  let frozen = false;
  let control: Redis | undefined;
  const logFile = join(folder, "redis.log");
  const log = () => readFile(logFile, "utf8");

  const client = (clientOptions: ClientOptions = {}) => {
    const redis = new Redis({ ...connection, ...clientOptions });
    // A command that fails says so itself; without a listener ioredis would print it.
    redis.on("error", () => {});
    t.teardown(() => redis.disconnect());
    return redis;
  };
  const endWith = async (signal: NodeJS.Signals) => {
    control?.disconnect();
    control = undefined;
    await end(child, signal);
    frozen = false;
  };

  const server: RedisServer = {
    url: `${tls ? "rediss" : "redis"}://${auth}127.0.0.1:${port}/0${ca ? `?ca=${encodeURIComponent(ca)}` : ""}`,
    port,
    ...(ca && { ca }),
    get running() {
      return isRunning(child) && !frozen;
    },
    start: async () => {
      if (isRunning(child)) return;
      const started = spawnServer("redis-server", [file, ...(settings.args ?? [])], { cwd: folder, logFile });
      child = started;
      await eventually("redis-server listens", async () => {
        if (!isRunning(started)) throw new Error(`redis-server ended before it listened: ${await log()}`);
        return accepts(port);
      });
      // ioredis calls a connection ready when the server has loaded its data.
      control = client({ connectionName: "test-support", lazyConnect: true });
      await control.connect();
    },
    stop: () => endWith("SIGTERM"),
    kill: () => endWith("SIGKILL"),
    freeze: () => {
      frozen = true;
      child?.kill("SIGSTOP");
    },
    thaw: () => {
      frozen = false;
      child?.kill("SIGCONT");
    },
    client,
    call: async (command, ...args) => {
      if (control === undefined) throw new Error(`redis-server ${port} is not running`);
      return control.call(command, ...args);
    },
    log,
  };
  t.teardown(() => server.kill());
  await server.start();
  return server;
}

function configuration(port: number, { password, users = {}, tls, save, config }: ServerSettings): string {
  return [
    "bind 127.0.0.1",
    `port ${tls ? 0 : port}`,
    'save ""',
    ...(tls ? [`tls-port ${port}`, "tls-cert-file server.crt", "tls-key-file server.key", "tls-auth-clients no"] : []),
    ...(tls ? ["tls-ca-cert-file server.crt"] : []),
    ...(save ? ["appendonly yes", "appendfsync always"] : ["appendonly no"]),
    ...(password === undefined ? [] : [`requirepass ${JSON.stringify(password)}`]),
    ...Object.entries(users).map(([name, rules]) => `user ${name} ${rules}`),
    ...config,
    "",
  ].join("\n");
}

/** Whether anybody listens on a loopback port. */
export function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

/** `server.crt` and `server.key` for 127.0.0.1 and localhost, of nobody's authority. */
export function makeCertificate(folder: string): void {
  const args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
  const files = ["-keyout", "server.key", "-out", "server.crt"];
  const { status, stderr } = spawnSync("openssl", [...args, ...subject, ...files], { cwd: folder, encoding: "utf8" });
  if (status !== 0) throw new Error(`openssl made no certificate: ${stderr}`);
}
