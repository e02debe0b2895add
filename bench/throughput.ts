/**
 * Large bodies and WebSocket messages beside nginx, in one run: CPU of the proxy for each mebibyte or message, with the one
 * and the other by turns. `npm run bench:throughput`.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ask, knock } from "./ask.ts";
import { type Child, endAll, endChild, findPins, freePort, startChild, untilReady } from "./children.ts";
import { cpuSeconds } from "./process-stats.ts";
import { median } from "./report.ts";
import type { StreamKind, StreamOrder, StreamResult } from "./streams.ts";

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "2" },
    "no-results": { type: "boolean", default: false },
  },
});
const rounds = Number(values.rounds);
const seconds = Number(values.seconds);

/** What is measured, and what one of it is called. */
const KINDS: Readonly<Record<StreamKind, { readonly about: string; readonly unit: string }>> = {
  download: { about: "1 MiB down", unit: "MiB" },
  upload: { about: "1 MiB up", unit: "MiB" },
  small: { about: "WebSocket, 64 octets there and back", unit: "message" },
  large: { about: "WebSocket, 64 KiB there and back", unit: "message" },
};

interface Sample {
  readonly cpuMicros: number;
  readonly perSecond: number;
}

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const pins = findPins(availableParallelism());
const folder = await mkdtemp(join(tmpdir(), "coatcheck-throughput-"));
try {
  if (spawnSync("nginx", ["-v"]).status !== 0) throw new Error("nginx is not installed; it is what this compares with");
  const upstreamPort = await freePort();
  const upstream = startChild("upstream", [process.execPath, path("stream-upstream.ts"), String(upstreamPort)], {
    cpus: pins?.others,
  });
  await untilReady(upstream, () => knock(upstreamPort));
  const load = startChild("load", [process.execPath, path("streams.ts")], { cpus: pins?.others, ipc: true });
  const proxies = [await startNginx(upstreamPort), await startCoatcheck(upstreamPort)];
  const samples = new Map<string, Sample[]>();
  for (let round = -1; round < rounds; round++) {
    for (const kind of Object.keys(KINDS) as StreamKind[]) {
      // Each is the first of its pair as often as the other.
      for (const proxy of round % 2 === 0 ? proxies : proxies.toReversed()) {
        const before = cpuSeconds(proxy.worker);
        const result = await fire(load, { kind, url: proxy.url, cookie: proxy.cookie, seconds });
        const cpu = cpuSeconds(proxy.worker) - before;
        // The first round warms up.
        if (round < 0) continue;
        const key = `${kind} ${proxy.name}`;
        const sample = { cpuMicros: (cpu / result.done) * 1e6, perSecond: result.done / result.seconds };
        samples.set(key, [...(samples.get(key) ?? []), sample]);
        process.stdout.write(
          `round ${round + 1}/${rounds}  ${key.padEnd(20)} ${sample.cpuMicros.toFixed(1)} µs, ${sample.perSecond.toFixed(0)}/s\n`,
        );
      }
    }
  }
  const text = report(samples);
  process.stdout.write(`\n${text}`);
  if (!values["no-results"]) writeFileSync(new URL("results/throughput.md", import.meta.url), text);
  for (const { child } of proxies) await endChild(child);
} finally {
  await endAll();
  await rm(folder, { recursive: true, force: true });
}
process.exit();

interface Proxy {
  readonly name: string;
  readonly child: Child;
  /** The process that does the work. */
  readonly worker: number;
  readonly url: string;
  readonly cookie: string;
}

async function startNginx(upstreamPort: number): Promise<Proxy> {
  const port = await freePort();
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (name) => `${name}_temp_path ${folder}/${name};`,
  );
  mkdirSync(join(folder, "logs"));
  // One process, no log, streaming both ways as Coatcheck does, connections to the application kept.
  const config = `daemon off; master_process off; pid ${folder}/nginx.pid; error_log ${folder}/error.log;
events { worker_connections 1024; }
http { ${temporary.join(" ")} access_log off; client_max_body_size 0; keepalive_requests 1000000;
  map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
  upstream app { server 127.0.0.1:${upstreamPort}; keepalive 64; keepalive_requests 1000000; }
  server { listen 127.0.0.1:${port}; location / { proxy_pass http://app; proxy_http_version 1.1;
    proxy_buffering off; proxy_request_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; } } }`;
  const file = join(folder, "nginx.conf");
  writeFileSync(file, config);
  const child = startChild("nginx", ["nginx", "-c", file, "-p", folder], { cpus: pins?.proxy });
  await untilReady(child, () => knock(port));
  return { name: "nginx", child, worker: child.pid, url: `http://127.0.0.1:${port}`, cookie: "session=none" };
}

async function startCoatcheck(upstreamPort: number): Promise<Proxy> {
  const [port, adminPort] = [await freePort(), await freePort()];
  const upstream = `http://127.0.0.1:${upstreamPort}`;
  const file = join(folder, "coatcheck.yaml");
  const settings = {
    listen: { host: "127.0.0.1", port },
    admin: { port: adminPort },
    store: "memory:",
    session: { cookie: { secrets: ["not-a-secret-but-long-enough-for-a-bench"] } },
    routes: [
      { match: { path: "/" }, upstream, session: "required" },
      { match: { path: "/login" }, upstream, session: "optional", write: ["user"] },
    ],
  };
  writeFileSync(file, JSON.stringify(settings));
  const command = [process.execPath, ...profiling(), path("../src/main.ts"), "serve", "--config", file];
  const child = startChild("coatcheck", command, { cpus: pins?.proxy });
  await untilReady(child, () => knock(port));
  const url = `http://127.0.0.1:${port}`;
  const { headers } = await ask(`${url}/login`, { method: "POST", body: "{}" });
  const cookie = headers["set-cookie"]?.[0]?.split(";", 1)[0];
  if (cookie === undefined) throw new Error("the login failed");
  return { name: "coatcheck", child, worker: child.pid, url, cookie };
}

/** `PROFILE=FOLDER` in the environment: a CPU profile of Coatcheck. */
function profiling(): string[] {
  const { PROFILE } = process.env;
  return PROFILE === undefined ? [] : ["--cpu-prof", "--cpu-prof-interval=250", `--cpu-prof-dir=${PROFILE}`];
}

function fire(load: Child, order: StreamOrder): Promise<StreamResult> {
  const answered = new Promise<StreamResult>((resolve, reject) =>
    load.process.once("message", (message: StreamResult | { failed: string }) =>
      "failed" in message ? reject(new Error(`${order.kind}: ${message.failed}`)) : resolve(message),
    ),
  );
  load.process.send(order);
  return Promise.race([answered, load.died]);
}

function report(samples: ReadonlyMap<string, readonly Sample[]>): string {
  const lines = [
    "# Throughput beside nginx",
    "",
    "Only the ratios mean anything: the absolute numbers belong to one machine at one moment.",
    "",
    "| | nginx, CPU µs | Coatcheck, CPU µs | ratio of CPU | nginx, a second | Coatcheck, a second | ratio |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ];
  for (const [kind, { about, unit }] of Object.entries(KINDS)) {
    const nginx = samples.get(`${kind} nginx`) ?? [];
    const coatcheck = samples.get(`${kind} coatcheck`) ?? [];
    const ratio = (column: keyof Sample) => {
      const ratios = coatcheck.map((sample, i) => sample[column] / (nginx[i]?.[column] ?? Number.NaN));
      return `**${median(ratios).toFixed(2)}** (${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)})`;
    };
    const middle = (all: readonly Sample[], column: keyof Sample) => median(all.map((sample) => sample[column]));
    lines.push(
      `| ${about}, a ${unit} | ${middle(nginx, "cpuMicros").toFixed(1)} | ${middle(coatcheck, "cpuMicros").toFixed(1)} | ${ratio("cpuMicros")} | ${middle(nginx, "perSecond").toFixed(0)} | ${middle(coatcheck, "perSecond").toFixed(0)} | ${ratio("perSecond")} |`,
    );
  }
  return `${lines.join("\n")}

16 connections over plain HTTP/1.1. nginx runs as one process, streams both ways, and has neither sessions nor a log; Coatcheck
has a session on each request, access log, metrics and recorder. Made by \`npm run bench:throughput\`: ${rounds} rounds of ${seconds} s for each,
nginx and Coatcheck by turns; medians, and of the ratios, which are taken within a round, the least and the greatest as well.

- date: ${new Date().toISOString()}
- machine: ${cpus().length} × ${cpus()[0]?.model}, node ${process.version}
- pinned: ${pins === undefined ? "no" : "the proxy to one core, everything else to the others"}
`;
}
