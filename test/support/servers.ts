/** Real servers for the tests: upstreams and gateways, each on a free loopback port, each ended with the test. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Socket, type Server as TcpServer } from "node:net";
import type { Config } from "../../src/config/compile.ts";
import { loadConfig } from "../../src/config/load.ts";
import type { FeedState } from "../../src/core/store.ts";
import { Gateway, type GatewayOptions } from "../../src/gateway.ts";
import type { ExchangeRecord } from "../../src/observe/record.ts";
import type { Teardown } from "./resources.ts";

export { type RedisServer, startRedis } from "./redis.ts";
export { freePort, type Teardown, temporaryFolder } from "./resources.ts";

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

/** A configuration for tests: free ports, memory store, one optional route that may write. */
export function testConfig(
  { upstream = "http://127.0.0.1:9", ...settings }: GatewaySettings,
  environment: Record<string, string> = {},
): Config {
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
  return config;
}

/** A gateway with settings for tests: see `testConfig`. */
export async function startGateway(
  t: Teardown,
  settings: GatewaySettings,
  options: GatewayOptions & { environment?: Record<string, string> } = {},
): Promise<RunningGateway> {
  const { environment = {}, ...gatewayOptions } = options;
  const config = testConfig(settings, environment);
  let text = "";
  const logDestination = {
    write: (line: string) => {
      text += line;
    },
  };
  const gateway = await Gateway.create(config, { logDestination, ...gatewayOptions });
  await gateway.listen();
  // What a test leaves open is not waited for as long as a client would be.
  t.teardown(() => gateway.close({ delayMs: 0, timeoutMs: 1_000 }));
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

/** How the gateway's store tells of changes, as its metrics say. */
export async function feedState(gateway: RunningGateway): Promise<FeedState | undefined> {
  const metrics = await gateway.metrics();
  return /^coatcheck_session_feed\{state="(\w+)"\} 1$/m.exec(metrics)?.[1] as FeedState | undefined;
}
