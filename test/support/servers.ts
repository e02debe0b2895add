/** Real servers for the tests: Redis, upstreams and gateways, each on a free loopback port, each ended with the test. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from "node:http";
import {
  type AddressInfo,
  connect,
  createServer as createTcpServer,
  type Socket,
  type Server as TcpServer,
} from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../../src/config/load.ts";
import { Gateway, type GatewayOptions } from "../../src/gateway.ts";
import type { ExchangeRecord } from "../../src/observe/record.ts";

/** What of tap's test object the helpers use. */
export interface Teardown {
  teardown(end: () => unknown): void;
}

export async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

/** Resolves when something accepts connections on the port. */
async function accepting(port: number, alive: () => boolean): Promise<void> {
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    const open = await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true));
      socket.once("error", () => resolve(false));
    });
    socket.destroy();
    if (open) return;
    if (!alive()) throw new Error("the server ended before it listened");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export interface RedisServer {
  readonly url: string;
  readonly port: number;
  start(): Promise<void>;
  /** Ends it as a crash does. */
  kill(): Promise<void>;
  /** Stops and continues the process: a server that accepts and does not answer. */
  freeze(): void;
  thaw(): void;
}

/** A redis-server of its own, without persistence. */
export async function startRedis(t: Teardown): Promise<RedisServer> {
  const port = await freePort();
  let child: ChildProcess | undefined;
  const server: RedisServer = {
    url: `redis://127.0.0.1:${port}/0`,
    port,
    start: async () => {
      const started = spawn(
        "redis-server",
        ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        { stdio: "ignore", cwd: tmpdir() },
      );
      child = started;
      await accepting(port, () => started.exitCode === null);
    },
    kill: async () => {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
    },
    freeze: () => child?.kill("SIGSTOP"),
    thaw: () => child?.kill("SIGCONT"),
  };
  await server.start();
  t.teardown(() => server.kill());
  return server;
}

export async function temporaryFolder(t: Teardown): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "coatcheck-test-"));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A request as an upstream received it. */
export interface Received {
  readonly method: string;
  readonly url: string;
  readonly rawHeaders: readonly string[];
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

export interface Upstream {
  readonly url: string;
  readonly port: number;
  readonly server: Server;
  /** In the order of arrival. */
  readonly received: Received[];
}

/** An upstream that records each request and answers with `respond`, by default with 200 and what it received. */
export async function startUpstream(
  t: Teardown,
  respond?: (received: Received, req: IncomingMessage, res: ServerResponse) => void,
): Promise<Upstream> {
  const received: Received[] = [];
  const { server, port } = await startHttp(t, async (req, res) => {
    let body = "";
    try {
      for await (const piece of req.setEncoding("latin1")) body += piece;
    } catch {
      return;
    }
    const entry: Received = {
      method: req.method ?? "",
      url: req.url ?? "",
      rawHeaders: req.rawHeaders,
      headers: req.headers,
      body,
    };
    received.push(entry);
    if (respond !== undefined) respond(entry, req, res);
    else res.end(JSON.stringify(entry));
  });
  return { url: `http://127.0.0.1:${port}`, port, server, received };
}

/** A plain HTTP server on a free port. */
export async function startHttp(t: Teardown, listener: RequestListener): Promise<{ server: Server; port: number }> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return { server, port: (server.address() as AddressInfo).port };
}

/** An upstream at the level of bytes. */
export async function startTcp(
  t: Teardown,
  onConnection: (socket: Socket) => void,
): Promise<{ server: TcpServer; port: number; url: string }> {
  const sockets = new Set<Socket>();
  const server = createTcpServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    onConnection(socket);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { server, port, url: `http://127.0.0.1:${port}` };
}

export const SECRET = "an old secret that has 32 characters";

export interface RunningGateway {
  readonly url: string;
  readonly port: number;
  readonly adminUrl: string;
  readonly gateway: Gateway;
  /** Everything that was logged, a parsed line each. */
  readonly logs: Record<string, unknown>[];
  /** The log as text. */
  readonly logText: () => string;
  metrics(): Promise<string>;
  exchanges(ring?: string): Promise<ExchangeRecord[]>;
}

export interface GatewaySettings {
  readonly upstream?: string;
  readonly routes?: readonly unknown[];
  readonly store?: string | { readonly primary: string; readonly fallback: string };
  readonly [key: string]: unknown;
}

/** A gateway with settings for tests: free ports, memory store, one optional route that may write. */
export async function startGateway(
  t: Teardown,
  { upstream = "http://127.0.0.1:9", ...settings }: GatewaySettings,
  options: GatewayOptions & { environment?: Record<string, string> } = {},
): Promise<RunningGateway> {
  const { environment = {}, ...gatewayOptions } = options;
  const route = { match: { path: "/" }, upstream, session: "optional", write: ["user", "cart", "theme"] };
  const session = { cookie: { name: "session", secure: false, secrets: [SECRET] } };
  const { config } = loadConfig(
    {
      listen: { host: "127.0.0.1", port: 0 },
      admin: { port: 0 },
      store: "memory:",
      session,
      routes: [route],
      ...settings,
    },
    environment,
  );
  let text = "";
  const logDestination = {
    write: (line: string) => {
      text += line;
    },
  };
  const gateway = await Gateway.create(config, { logDestination, ...gatewayOptions });
  await gateway.listen();
  t.teardown(() => gateway.close());
  const { url, adminUrl } = gateway;
  const getText = async (path: string) => (await fetch(adminUrl + path)).text();
  return {
    url,
    port: Number(new URL(url).port),
    adminUrl,
    gateway,
    get logs() {
      return text
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line));
    },
    logText: () => text,
    metrics: () => getText("/metrics"),
    exchanges: async (ring = "recent") =>
      JSON.parse(await getText(`/debug/exchanges?limit=1000&ring=${ring}`)).exchanges,
  };
}

/** An application that commands the session with whatever it is sent: `POST /start`, `/set` and `/end`. */
export function startApp(t: Teardown): Promise<Upstream> {
  return startUpstream(t, (received, _req, res) => {
    const command = /^\/(start|set|end)$/.exec(received.url)?.[1];
    if (command !== undefined) res.setHeader(`X-Session-${command}`, received.body);
    res.setHeader("content-type", "application/json");
    res.end(JSON.stringify(received));
  });
}
