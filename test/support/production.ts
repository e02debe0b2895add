/**
 * The deployment of examples/production on one machine: each host has a loopback address of its own, so that the files are
 * used as they are, but for the network, the folders, HAProxy's two public ports and user, and the haste of
 * Prometheus and of the first replication.
 */
import { type ChildProcess, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseEnv } from "node:util";
import { makeCertificate } from "./certificates.ts";
import { command, type Running } from "./command.ts";
import { ROOT } from "./project.ts";
import { end, eventually, spawnServer, type Teardown, temporaryFolder } from "./resources.ts";

export const EXAMPLES = join(ROOT, "examples/production");
/** Ten programs start on a machine that has other work. */
export const PATIENCE_MS = 60_000;
const HTTP_PORT = 8000;
export const HTTPS_PORT = 8443;

export interface Production {
  /** `127.x.y`, in the place of `10.0.0`. */
  readonly network: string;
  /** Where the files of a host are: `FOLDER/HOST/etc/…`. */
  readonly folder: string;
  readonly secrets: Readonly<Record<string, string>>;
  /** Of the certificate that HAProxy shows. */
  readonly authority: string;
  /** What systemd gives a gateway: the variables of its coatcheck.env. */
  environment(host: string): Record<string, string>;
  configuration(host: string): string;
  startRedis(host: string): ChildProcess;
  startSentinel(host: string): ChildProcess;
  startGateway(host: string): Running;
  startApplication(): ChildProcess;
  startBalancer(): ChildProcess;
  startPrometheus(): ChildProcess;
  /** `redis-cli` as the operator does it; the answer without its last line break. */
  redis(host: string, ...args: string[]): string;
  sentinel(host: string, ...args: string[]): string;
  /** Waits until HAProxy sends requests to a gateway, or does not. */
  balanced(gateway: string, state: "UP" | "DOWN"): Promise<void>;
}

/** Makes the files; starts nothing. */
export async function layOut(t: Teardown): Promise<Production> {
  const folder = await temporaryFolder(t);
  const octet = () => 2 + Math.floor(Math.random() * 250);
  const network = `127.${octet()}.${octet()}`;
  runOrThrow("sh", [join(EXAMPLES, "fill.sh"), folder, network]);
  const secrets = parseEnv(readFileSync(join(folder, "secrets.env"), "utf8")) as Record<string, string>;
  const edit = (host: string, file: string, change: (text: string) => string = (text) => text) => {
    const path = join(folder, host, "etc", file);
    const moved = readFileSync(path, "utf8").replace(/\/(etc|run|var\/lib)\//g, (found) => join(folder, host, found));
    writeFileSync(path, change(moved));
  };
  for (const host of ["redis-1", "redis-2", "redis-3"]) {
    edit(host, "redis/redis.conf", (text) => `${text}\nrepl-diskless-sync-delay 0\n`);
    edit(host, "redis/sentinel.conf");
    mkdirSync(join(folder, host, "var/lib/redis"), { recursive: true });
  }
  for (const host of ["gw-1", "gw-2"]) {
    edit(host, "coatcheck/coatcheck.yaml");
    mkdirSync(join(folder, host, "var/lib/coatcheck"), { recursive: true });
  }
  edit("lb", "haproxy/haproxy.cfg", (text) =>
    text
      .replace(/^ *(user|group) haproxy\n/gm, "")
      .replace(/:80$/m, `:${HTTP_PORT}`)
      .replace(/:443 /, `:${HTTPS_PORT} `),
  );
  mkdirSync(join(folder, "lb/run/haproxy"), { recursive: true });
  const { cert, key } = makeCertificate(folder, "shop", { names: [`IP:${network}.10`] });
  writeFileSync(join(folder, "lb/etc/haproxy/site.pem"), readFileSync(cert, "utf8") + readFileSync(key, "utf8"));
  edit("monitor", "prometheus/prometheus.yml", (text) => text.replaceAll("15s", "1s"));

  const start = (host: string, name: string, program: string, args: readonly string[]) => {
    const child = spawnServer(program, args, { cwd: join(folder, host), logFile: join(folder, host, `${name}.log`) });
    t.teardown(() => end(child, "SIGKILL"));
    return child;
  };
  const addressOf = (host: string) => `${network}.2${host.at(-1)}`;
  const cli = (password: string, args: readonly string[]) => {
    const env = { ...process.env, REDISCLI_AUTH: password };
    return runOrThrow("redis-cli", args, env).replace(/\n$/, "");
  };
  const environment = (host: string) =>
    parseEnv(readFileSync(join(folder, host, "etc/coatcheck/coatcheck.env"), "utf8")) as Record<string, string>;
  const configuration = (host: string) => join(folder, host, "etc/coatcheck/coatcheck.yaml");
  return {
    network,
    folder,
    secrets,
    authority: readFileSync(cert, "utf8"),
    environment,
    configuration,
    startRedis: (host) => start(host, "redis", "redis-server", [join(folder, host, "etc/redis/redis.conf")]),
    startSentinel: (host) =>
      start(host, "sentinel", "redis-server", [join(folder, host, "etc/redis/sentinel.conf"), "--sentinel"]),
    startGateway: (host) =>
      command(t, ["--config", configuration(host)], environment(host), {
        cwd: join(folder, host, "var/lib/coatcheck"),
      }),
    startApplication: () =>
      start(".", "shop", "env", [
        `HOST=${network}.40`,
        "PORT=3000",
        process.execPath,
        join(ROOT, "examples/legacy-shop/server.mjs"),
      ]),
    startBalancer: () => start("lb", "haproxy", "haproxy", ["-db", "-f", join(folder, "lb/etc/haproxy/haproxy.cfg")]),
    startPrometheus: () =>
      start("monitor", "prometheus", "prometheus", [
        `--config.file=${join(folder, "monitor/etc/prometheus/prometheus.yml")}`,
        `--storage.tsdb.path=${join(folder, "monitor/data")}`,
        `--web.listen-address=${network}.30:9090`,
        "--log.level=warn",
      ]),
    redis: (host, ...args) =>
      cli(secrets.OPERATOR_PASSWORD ?? "", ["-h", addressOf(host), "--user", "operator", ...args]),
    sentinel: (host, ...args) =>
      cli(secrets.SENTINEL_ACCESS_PASSWORD ?? "", ["-h", addressOf(host), "-p", "26379", ...args]),
    balanced: async (gateway, state) => {
      await eventually(
        `HAProxy has ${gateway} ${state}`,
        async () => {
          const text = await fetch(`http://${network}.10:8404/metrics`).then(
            (response) => response.text(),
            () => "",
          );
          return new RegExp(
            `^haproxy_server_status\\{proxy="coatcheck",server="${gateway}",state="${state}"\\} 1$`,
            "m",
          ).test(text);
        },
        PATIENCE_MS,
      );
    },
  };
}

function runOrThrow(program: string, args: readonly string[], env = process.env): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", env });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${error ?? stderr + stdout}`);
  return stdout;
}
