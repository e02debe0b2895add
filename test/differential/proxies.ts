/**
 * The three proxies, each with as many lanes as asked for: a front port, an upstream of its own, and a path `/admin` that
 * is closed. Each sets `X-User-Id` itself and keeps connections to its upstreams.
 */
import { spawnSync } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import {
  end,
  eventually,
  freePort,
  isRunning,
  spawnServer,
  type Teardown,
  temporaryFolder,
} from "../support/resources.ts";
import { startGateway } from "../support/servers.ts";
import { type Recorder, startRecorder } from "./recorder.ts";

export const PROXIES = ["coatcheck", "nginx", "haproxy"] as const;
export type ProxyName = (typeof PROXIES)[number];

/** A way through a proxy that nothing else uses. */
export interface Lane {
  readonly port: number;
  readonly recorder: Recorder;
}

/** The value that each proxy gives the identity header. */
export const IDENTITY = "X-User-Id";

export function versionOf(proxy: ProxyName): string {
  if (proxy === "coatcheck") return "";
  const [option, pattern] = proxy === "nginx" ? ["-v", /nginx\/([\d.]+)/] : (["-v", /version ([\d.]+)/] as const);
  const { stdout, stderr } = spawnSync(proxy, [option as string], { encoding: "utf8" });
  return (pattern as RegExp).exec(stdout + stderr)?.[1] ?? "unknown";
}

export async function startLanes(t: Teardown, proxy: ProxyName, count: number): Promise<Lane[]> {
  const recorders = await Promise.all(Array.from({ length: count }, () => startRecorder(t)));
  if (proxy === "coatcheck") {
    return Promise.all(recorders.map(async (recorder) => ({ port: await startOurs(t, recorder.port), recorder })));
  }
  const ports: number[] = [];
  for (let i = 0; i < count; i++) ports.push(await freePort());
  const lanes = recorders.map((recorder, i) => ({ port: ports[i] as number, recorder }));
  if (proxy === "nginx") await startNginx(t, lanes);
  else await startHaproxy(t, lanes);
  return lanes;
}

async function startOurs(t: Teardown, upstreamPort: number): Promise<number> {
  const upstream = `http://127.0.0.1:${upstreamPort}`;
  const { port } = await startGateway(t, {
    routes: [
      { match: { path: "/admin" }, upstream, session: "required" },
      { match: { path: "/" }, upstream, session: "optional" },
    ],
  });
  return port;
}

/** As the manual says for keep-alive to the upstream, and nothing else. */
async function startNginx(t: Teardown, lanes: readonly Lane[]): Promise<void> {
  const folder = await temporaryFolder(t);
  for (const name of ["body", "proxy", "fastcgi", "uwsgi", "scgi"]) await mkdir(join(folder, name));
  const servers = lanes.map(
    ({ port, recorder }, i) => `
  upstream u${i} { server 127.0.0.1:${recorder.port}; keepalive 8; }
  server {
    listen 127.0.0.1:${port};
    location / { proxy_pass http://u${i}; }
    location /admin { return 401; }
  }`,
  );
  await writeFile(
    join(folder, "nginx.conf"),
    `daemon off;
worker_processes 1;
pid ${folder}/nginx.pid;
error_log stderr crit;
${process.getuid?.() === 0 ? "user root;" : ""}
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_set_header ${IDENTITY} gateway;
${servers.join("\n")}
}
`,
  );
  await startServer(t, folder, "nginx", ["-p", folder, "-c", join(folder, "nginx.conf"), "-e", "stderr"], lanes);
}

/** The defaults, in HTTP mode, with connections reused for everybody. */
async function startHaproxy(t: Teardown, lanes: readonly Lane[]): Promise<void> {
  const folder = await temporaryFolder(t);
  const sections = lanes.map(
    ({ port, recorder }, i) => `
frontend f${i}
  bind 127.0.0.1:${port}
  http-request deny deny_status 401 if { path_beg /admin }
  http-request set-header ${IDENTITY} gateway
  default_backend b${i}
backend b${i}
  http-reuse always
  server s 127.0.0.1:${recorder.port}
`,
  );
  await writeFile(
    join(folder, "haproxy.cfg"),
    `global
  maxconn 2000
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout http-request 30s
${sections.join("")}`,
  );
  await startServer(t, folder, "haproxy", ["-db", "-f", join(folder, "haproxy.cfg")], lanes);
}

async function startServer(
  t: Teardown,
  folder: string,
  program: string,
  args: readonly string[],
  lanes: readonly Lane[],
): Promise<void> {
  const logFile = join(folder, "log");
  const child = spawnServer(program, args, { cwd: folder, logFile });
  t.teardown(() => end(child, "SIGTERM"));
  const { port } = lanes.at(-1) as Lane;
  await eventually(`${program} listens`, async () => {
    if (!isRunning(child)) throw new Error(`${program} ended: ${await readFile(logFile, "utf8")}`);
    return accepts(port);
  });
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}
