/** Gateways with several workers, as processes of their own, and clients that know which worker they talk to. */

import { writeFile } from "node:fs/promises";
import { Agent, request as httpRequest, type OutgoingHttpHeaders } from "node:http";
import { join } from "node:path";
import { ask, until } from "./client.ts";
import { command, type Running } from "./command.ts";
import type { Teardown } from "./resources.ts";
import { temporaryFolder } from "./resources.ts";
import { SECRET } from "./servers.ts";

export type Line = Readonly<Record<string, unknown>>;

export interface WorkersSettings {
  readonly upstream?: string;
  readonly [key: string]: unknown;
}

export interface WorkersGateway {
  readonly running: Running;
  readonly file: string;
  readonly url: string;
  readonly port: number;
  readonly adminUrl: string;
  readonly write: (settings: WorkersSettings) => Promise<void>;
  /** Log lines of one kind. */
  readonly events: (name: string) => Line[];
  readonly logs: () => Line[];
  /** JSON of the admin listener. */
  readonly admin: (path: string, init?: { method?: string; body?: object }) => Promise<AdminReply>;
  readonly metrics: () => Promise<string>;
  /** The process of a worker that serves. */
  readonly pidOf: (worker: number) => number;
}

export interface AdminReply {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for
  readonly body: any;
}

/** A gateway with two workers, if the settings do not say otherwise, and SQLite. */
export async function startWorkers(t: Teardown, settings: WorkersSettings): Promise<WorkersGateway> {
  const folder = await temporaryFolder(t);
  const file = join(folder, "coatcheck.yaml");
  const write = ({ upstream = "http://127.0.0.1:9", ...others }: WorkersSettings) =>
    writeFile(
      file,
      // YAML, too.
      JSON.stringify({
        listen: { host: "127.0.0.1", port: 0 },
        admin: { port: 0 },
        workers: 2,
        store: `sqlite:${join(folder, "sessions.db")}`,
        session: { cookie: { name: "session", secure: false, secrets: [SECRET] } },
        routes: [{ match: { path: "/" }, upstream, session: "optional", write: ["user", "cart", "theme"] }],
        ...others,
      }),
    );
  await write(settings);
  const running = command(t, ["--config", file]);
  const logs = () =>
    running
      .stdout()
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Line);
  const events = (name: string) => logs().filter(({ event }) => event === name);
  const started = await until(() => {
    if (running.child.exitCode !== null) throw new Error(running.stderr() || "it ended");
    return events("gateway.started")[0];
  });
  const [url, adminUrl] = [String(started.url), String(started.admin)];
  return {
    running,
    file,
    url,
    port: Number(new URL(url).port),
    adminUrl,
    write,
    logs,
    events,
    admin: async (path, { method = "GET", body } = {}) => {
      const reply = await ask(adminUrl + path, {
        method,
        ...(body && { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
      });
      return { status: reply.status, body: JSON.parse(reply.body) };
    },
    metrics: async () => (await ask(`${adminUrl}/metrics`)).body,
    pidOf: (worker) => Number(events("worker.started").findLast((line) => line.worker === worker)?.pid),
  };
}

/** A client with one connection, which one worker has. */
export interface Client {
  readonly worker: number;
  readonly ask: (
    path: string,
    init?: { method?: string; headers?: OutgoingHttpHeaders; body?: string },
  ) => Promise<ClientReply>;
}

export interface ClientReply {
  readonly status: number;
  readonly headers: NodeJS.Dict<string | string[]>;
  readonly body: string;
}

let clients = 0;

/** A client of each worker: connections are opened until every one has taken one. */
export async function clientOfEach(t: Teardown, gateway: WorkersGateway, workers = 2): Promise<Map<number, Client>> {
  const found = new Map<number, Client>();
  while (found.size < workers) {
    // Several at once: a worker that has nothing to do takes all that come one by one.
    for (const client of await Promise.all(Array.from({ length: 8 }, () => openClient(t, gateway)))) {
      if (!found.has(client.worker)) found.set(client.worker, client);
    }
  }
  return found;
}

export async function openClient(t: Teardown, gateway: WorkersGateway): Promise<Client> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => agent.destroy());
  const send: Client["ask"] = (path, { method = "GET", headers = {}, body } = {}) =>
    new Promise((resolve, reject) => {
      const req = httpRequest(gateway.url + path, { method, headers, agent }, async (res) => {
        try {
          let text = "";
          for await (const piece of res.setEncoding("utf8")) text += piece;
          resolve({ status: res.statusCode ?? 0, headers: res.headers, body: text });
        } catch (error) {
          reject(error);
        }
      });
      req.on("error", reject);
      req.end(body);
    });
  const path = `/which-worker-${clients++}`;
  await send(path);
  const { worker } = await until(
    async () => (await gateway.admin(`/debug/exchanges?path=${path}`)).body.exchanges[0] as { worker: number },
  );
  return { worker, ask: send };
}
