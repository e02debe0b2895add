/**
 * Real processes under load while their configuration is read again, or while they are restarted one after the other:
 * nothing that a client sent may be lost.
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ask } from "../support/client.ts";
import { command, type Running } from "../support/command.ts";
import { end, eventually, freePort, isRunning, spawnServer, temporaryFolder } from "../support/resources.ts";
import { startHttp, startRedis, type Teardown } from "../support/servers.ts";
import { logIn, type TrafficOptions, type TrafficReport, traffic, type Visitor } from "../support/traffic.ts";

const SECRETS = ["hunter2hunter2hunter2hunter2hunter2", "hunter3hunter3hunter3hunter3hunter3"] as const;
/** Longer than the time between two reloads. */
const SLOW_MS = 1_500;
/** So many connections with requests that are answered at once, and so many with slow ones. */
const QUICK = 12;
export const SLOW = 8;
export const USERS = 20;

export interface Outcome {
  readonly quick: TrafficReport;
  readonly slow: TrafficReport;
  /** How often was done what the scenario is about. */
  readonly times: number;
}

/** Echoes the user that it was told; `/slow` takes its time, half of it after the head. */
export async function startApp(t: Teardown): Promise<string> {
  const { port } = await startHttp(t, async (req, res) => {
    let body = "";
    for await (const piece of req.setEncoding("latin1")) body += piece;
    if (req.url === "/start") res.setHeader("X-Session-Start", body);
    res.setHeader("content-type", "application/json");
    const answer = JSON.stringify({ headers: { "x-user-id": req.headers["x-user-id"] } });
    if (req.url !== "/slow") {
      res.end(answer);
      return;
    }
    const half = Math.floor(answer.length / 2);
    setTimeout(() => res.write(answer.slice(0, half)), SLOW_MS / 2);
    setTimeout(() => res.end(answer.slice(half)), SLOW_MS);
  });
  return `http://127.0.0.1:${port}`;
}

export interface Instance {
  readonly url: string;
  readonly adminPort: number;
  readonly port: number;
  readonly file: string;
  readonly running: () => Running;
  /** Lines of the log with this event, of all its processes. */
  events(name: string): Record<string, unknown>[];
  start(): Promise<void>;
}

export async function startInstance(t: Teardown, settings: object): Promise<Instance> {
  const [port, adminPort] = [await freePort(), await freePort()];
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  const listen = { host: "127.0.0.1", port };
  const text = (more: object) => JSON.stringify({ listen, admin: { port: adminPort }, ...settings, ...more });
  await writeFile(file, text({}));
  const all: Running[] = [];
  const events = (name: string) =>
    all
      .flatMap(({ stdout }) => stdout().split("\n").slice(0, -1))
      .map((line) => JSON.parse(line))
      .filter(({ event }) => event === name);
  const start = async () => {
    all.push(command(t, ["serve", "--config", file]));
    await eventually("it is ready", () => events("gateway.started").length === all.length, 30_000);
  };
  await start();
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    adminPort,
    file,
    running: () => all.at(-1) as Running,
    events,
    start,
  };
}

/** Nothing of the rest is of interest, and a line for each request would cost most of the time. */
export const OBSERVE = { log: { access: "errors" }, traces: { ratio: 0 } };

/** Two loads until `done`. */
export async function underLoad(
  url: string,
  visitors: readonly Visitor[],
  act: () => Promise<number>,
  { quick: ofQuick, slow: ofSlow }: { quick?: Partial<TrafficOptions>; slow?: Partial<TrafficOptions> } = {},
): Promise<Outcome> {
  const done = new AbortController();
  const options = { cookies: visitors, forMs: 600_000, signal: done.signal };
  const quick = traffic(url, { ...options, connections: QUICK, ...ofQuick });
  const slow = traffic(url, { ...options, connections: SLOW, path: "/slow", ...ofSlow });
  let times: number;
  try {
    times = await act();
  } finally {
    done.abort();
  }
  return { quick: await quick, slow: await slow, times };
}

/** What each reload changes: where requests go, what the application is told, and which secrets sign. */
export function versions(apps: readonly string[]): object[] {
  const route = (upstream: string) => ({ upstream, session: "optional", write: ["user"] });
  const cookie = (...secrets: string[]) => ({ cookie: { name: "session", secure: false, secrets } });
  const [one = "", two = ""] = apps;
  const [first, second] = SECRETS;
  return [
    { routes: [route(one)], session: cookie(first) },
    { routes: [route(two)], session: cookie(second, first) },
    { routes: [route(two), { match: { path: "/other" }, upstream: one }], session: cookie(first, second) },
    {
      routes: [route(one)],
      session: { ...cookie(first), idleTimeout: "10m" },
      identity: { headers: { "X-User-Id": "/user/id", "X-Handle": "handle" } },
    },
  ];
}

/**
 * Another configuration every second.
 * @param broken instead, one that makes no sense: each is refused.
 */
export async function reloads(t: Teardown, { seconds, broken = false }: { seconds: number; broken?: boolean }) {
  const apps = [await startApp(t), await startApp(t)];
  const all = versions(apps);
  const instance = await startInstance(t, { store: "memory:", observe: OBSERVE, reload: { watch: false }, ...all[0] });
  const { listen, admin } = JSON.parse(await readFile(instance.file, "utf8"));
  const visitors = await logIn(instance.url, USERS);
  const event = broken ? "config.reload-refused" : "config.reloaded";
  const outcome = await underLoad(instance.url, visitors, async () => {
    for (let i = 1; i <= seconds; i++) {
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      const settings = { listen, admin, store: "memory:", observe: OBSERVE, reload: { watch: false } };
      await writeFile(instance.file, broken ? "rutes: [" : JSON.stringify({ ...settings, ...all[i % all.length] }));
      instance.running().child.kill("SIGHUP");
      await eventually("it was read", () => instance.events(event).length === i);
    }
    return seconds;
  });
  const metrics = async () => (await ask(`http://127.0.0.1:${instance.adminPort}/metrics`)).body;
  await eventually("only one configuration is in use", async () =>
    /^coatcheck_configs_in_use 1$/m.test(await metrics()),
  );
  instance.running().child.kill("SIGTERM");
  return { ...outcome, status: await instance.running().ended };
}

/** Two instances behind HAProxy, as in docs/lifecycle.md, restarted one after the other. */
export async function rollingRestarts(t: Teardown, { rounds }: { rounds: number }) {
  const redis = await startRedis(t);
  const [version] = versions([await startApp(t), ""]);
  const shutdown = { delay: "1500ms", timeout: "10s" };
  const settings = { ...version, store: redis.url, observe: OBSERVE, shutdown };
  const instances = [await startInstance(t, settings), await startInstance(t, settings)];
  const proxy = await startHaproxy(t, instances);
  const visitors = await logIn(proxy.url, USERS);
  const statuses: (number | string)[] = [];
  const outcome = await underLoad(proxy.url, visitors, async () => {
    for (let round = 0; round < rounds; round++) {
      for (const [i, instance] of instances.entries()) {
        await new Promise((resolve) => setTimeout(resolve, 500));
        instance.running().child.kill("SIGTERM");
        statuses.push(await instance.running().ended);
        await instance.start();
        await eventually("HAProxy uses it again", () => proxy.isUp(i), 30_000);
      }
    }
    return rounds * instances.length;
  });
  const cut = instances.flatMap(({ events }) => events("gateway.stopped")).map(({ requests_cut }) => requests_cut);
  return { ...outcome, statuses, cut };
}

async function startHaproxy(t: Teardown, instances: readonly Instance[]) {
  const folder = await temporaryFolder(t);
  const [port, statisticsPort] = [await freePort(), await freePort()];
  const servers = instances.map(({ port, adminPort }, i) => `  server s${i} 127.0.0.1:${port} check port ${adminPort}`);
  await writeFile(
    join(folder, "haproxy.cfg"),
    `global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  # A machine that is busy is slow to answer, and not down.
  timeout check 5s
frontend browsers
  bind 127.0.0.1:${port}
  default_backend coatcheck
backend coatcheck
  option httpchk GET /readyz
  default-server inter 250ms fall 2 rise 2
${servers.join("\n")}
frontend statistics
  bind 127.0.0.1:${statisticsPort}
  stats enable
  stats uri /
`,
  );
  const logFile = join(folder, "log");
  const child = spawnServer("haproxy", ["-db", "-f", join(folder, "haproxy.cfg")], { cwd: folder, logFile });
  t.teardown(() => end(child, "SIGTERM"));
  const isUp = async (i: number): Promise<boolean> => {
    if (!isRunning(child)) throw new Error(`haproxy ended: ${await readFile(logFile, "utf8")}`);
    const { body } = await ask(`http://127.0.0.1:${statisticsPort}/;csv`).catch(() => ({ body: "" }));
    return body.split("\n").some((line) => line.startsWith(`coatcheck,s${i},`) && /,UP,/.test(line));
  };
  for (const i of instances.keys()) await eventually("HAProxy has found it", () => isUp(i));
  return { url: `http://127.0.0.1:${port}`, isUp };
}
