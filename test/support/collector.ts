/** A real OpenTelemetry Collector, built from Go modules and kept for the next time. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { accepts } from "./redis.ts";
import { end, eventually, freePort, spawnServer, type Teardown, temporaryFolder } from "./resources.ts";

const SOURCE = fileURLToPath(new URL("../go/collector/", import.meta.url));

/** @throws Error when Go is missing: a test that did not run must not look as if it had. */
function builtCollector(): string {
  const version = spawnSync("go", ["version"], { encoding: "utf8" });
  if (version.status !== 0)
    throw new Error("this test builds an OpenTelemetry Collector and needs Go 1.26 or later: https://go.dev/dl/");
  const hash = createHash("sha256").update(version.stdout);
  for (const file of ["go.mod", "go.sum", "main.go"]) hash.update(readFileSync(join(SOURCE, file)));
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  const program = join(cache, "coatcheck", `collector-${hash.digest("hex").slice(0, 16)}`);
  if (existsSync(program)) return program;
  process.stderr.write("building an OpenTelemetry Collector; that takes a minute or two…\n");
  mkdirSync(dirname(program), { recursive: true });
  const unfinished = `${program}.${process.pid}`;
  const built = spawnSync("go", ["build", "-mod=readonly", "-o", unfinished, "."], { cwd: SOURCE, stdio: "inherit" });
  if (built.status !== 0) throw new Error("the Collector could not be built");
  renameSync(unfinished, program);
  return program;
}

export interface Collector {
  readonly grpcPort: number;
  readonly httpPort: number;
}

/** @param target where it passes on what it gets, as OTLP/HTTP in JSON. */
export async function startCollector(t: Teardown, target: string): Promise<Collector> {
  const program = builtCollector();
  const [grpcPort, httpPort, folder] = [await freePort(), await freePort(), await temporaryFolder(t)];
  const configuration = {
    receivers: {
      otlp: {
        protocols: {
          grpc: { endpoint: `127.0.0.1:${grpcPort}` },
          http: { endpoint: `127.0.0.1:${httpPort}` },
        },
      },
    },
    exporters: { otlp_http: { endpoint: target, encoding: "json", compression: "none" } },
    service: { pipelines: { traces: { receivers: ["otlp"], exporters: ["otlp_http"] } } },
  };
  const logFile = join(folder, "collector.log");
  const child = spawnServer(program, ["--config", `yaml:${JSON.stringify(configuration)}`], { cwd: folder, logFile });
  t.teardown(() => end(child, "SIGKILL"));
  await eventually("the Collector listens", async () => {
    if (child.exitCode !== null) throw new Error(`the Collector ended: ${readFileSync(logFile, "utf8")}`);
    return (await accepts(grpcPort)) && (await accepts(httpPort));
  });
  return { grpcPort, httpPort };
}
