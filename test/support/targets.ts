/** Targets of an upstream that are killed, hang, fail and come back, each on a port of its own. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { ask } from "./client.ts";
import { freePort, type RunningGateway, type Teardown } from "./servers.ts";

export type Behaviour = (req: IncomingMessage, res: ServerResponse) => void;

/** What a healthy one does: it reads the request, and says who it is. */
export const WELL: Behaviour = (req, res) => {
  req.resume();
  req.once("end", () => res.end(`${req.socket.localPort}`));
};
export const FAILING: Behaviour = (req, res) => {
  req.resume();
  req.once("end", () => res.writeHead(503).end("no"));
};
export const RESETTING: Behaviour = (req) => {
  req.once("end", () => req.socket.resetAndDestroy());
  req.resume();
};
export const HANGING: Behaviour = (req) => void req.resume();

export class TestTarget {
  readonly port: number;
  readonly url: string;
  behaviour: Behaviour = WELL;
  /** Method and path of each request but the health checks, in the order of arrival. */
  readonly requests: string[] = [];
  checks = 0;
  #server: Server | undefined;
  readonly #address: string;

  private constructor(port: number, address: string) {
    this.port = port;
    this.#address = address;
    this.url = `http://${address}:${port}`;
  }

  static async start(t: Teardown, { port, address = "127.0.0.1" }: { port?: number; address?: string } = {}) {
    const target = new TestTarget(port ?? (await freePort()), address);
    await target.start();
    t.teardown(() => target.kill());
    return target;
  }

  async start(): Promise<void> {
    this.#server = createServer((req, res) => {
      if (req.url === "/healthz") this.checks++;
      else this.requests.push(`${req.method} ${req.url}`);
      this.behaviour(req, res);
    }).listen(this.port, this.#address);
    await once(this.#server, "listening");
  }

  /** As when the process is killed: connections are cut, and new ones refused. */
  async kill(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    const closed = once(server, "close");
    server.close();
    server.closeAllConnections();
    await closed;
  }
}

export function startTargets(t: Teardown, count: number): Promise<TestTarget[]> {
  return Promise.all(Array.from({ length: count }, () => TestTarget.start(t)));
}

/** A route to several targets, for everybody. */
export function balanced(targets: readonly (TestTarget | string | object)[], settings: object = {}) {
  const urls = targets.map((target) => (target instanceof TestTarget ? target.url : target));
  return { routes: [{ upstream: { targets: urls, ...settings }, session: "none" }] };
}

/** The value of a series of a target, or of all targets together. */
export async function counted(gateway: RunningGateway, name: string, labels: Record<string, string> = {}) {
  const metrics = await gateway.metrics();
  let sum = 0;
  for (const [, series = "", value] of metrics.matchAll(new RegExp(`^${name}(\\{[^}]*\\})? (\\S+)`, "gm")))
    if (Object.entries(labels).every(([label, text]) => series.includes(`${label}="${text}"`))) sum += Number(value);
  return sum;
}

export interface ShownEndpoint {
  readonly peer: string | null;
  readonly state: string;
  readonly share: number;
  readonly active: number;
  readonly reason: string | null;
  readonly lastCheck: { readonly ok: boolean; readonly detail: string } | null;
}
export interface ShownUpstream {
  readonly routes: readonly string[];
  readonly panic: boolean;
  readonly queued: number;
  readonly balance: string | null;
  readonly targets: readonly { readonly address: string; readonly endpoints: readonly ShownEndpoint[] }[];
}

/** What `GET /upstreams` says of the first. */
export async function shown(gateway: RunningGateway): Promise<ShownUpstream> {
  const [first] = await shownUpstreams(gateway);
  if (first === undefined) throw new Error("there is no upstream");
  return first;
}

export async function shownUpstreams(gateway: RunningGateway): Promise<ShownUpstream[]> {
  const { body } = await ask(`${gateway.adminUrl}/upstreams`);
  return JSON.parse(body).upstreams;
}

/** State of the only endpoint of each target. */
export async function statesOf(gateway: RunningGateway): Promise<string[]> {
  return (await shown(gateway)).targets.map(({ endpoints }) => endpoints[0]?.state ?? "none");
}
