/** A real Prometheus: Debian's package, in a folder of its own, ended with the test. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { stringify } from "yaml";
import { end, eventually, freePort, spawnServer, type Teardown, temporaryFolder } from "./resources.ts";

export interface ScrapeTarget {
  readonly port: number;
  readonly scheme: "http" | "https";
}

/** A series and its samples, NaN and infinities left out. */
export interface Answer {
  readonly labels: Readonly<Record<string, string>>;
  readonly values: readonly number[];
}

interface Result {
  readonly metric: Readonly<Record<string, string>>;
  readonly value?: readonly [number, string];
  readonly values?: readonly (readonly [number, string])[];
}

export interface Prometheus {
  readonly url: string;
  /** At this moment. */
  query(query: string): Promise<Answer[]>;
  /** Once a second since it was started. */
  queryAll(query: string): Promise<Answer[]>;
  /** Whatever its API says below `/api/v1/`. */
  ask<T>(path: string, parameters?: Readonly<Record<string, string>>): Promise<T>;
}

/** Scrapes and evaluates twice a second. @param ruleFiles absolute paths. */
export async function startPrometheus(
  t: Teardown,
  { targets, ruleFiles }: { targets: readonly ScrapeTarget[]; ruleFiles: readonly string[] },
): Promise<Prometheus> {
  const folder = await temporaryFolder(t);
  const port = await freePort();
  const configuration = {
    global: { scrape_interval: "500ms", scrape_timeout: "500ms", evaluation_interval: "500ms" },
    rule_files: ruleFiles,
    scrape_configs: [
      {
        job_name: "coatcheck",
        tls_config: { insecure_skip_verify: true },
        static_configs: targets.map(({ port: target, scheme }) => ({
          targets: [`127.0.0.1:${target}`],
          labels: { __scheme__: scheme },
        })),
      },
    ],
  };
  const file = join(folder, "prometheus.yml");
  await writeFile(file, stringify(configuration));
  const args = [
    `--config.file=${file}`,
    `--storage.tsdb.path=${join(folder, "data")}`,
    `--web.listen-address=127.0.0.1:${port}`,
    "--enable-feature=exemplar-storage",
    "--log.level=warn",
  ];
  const child = spawnServer("prometheus", args, { cwd: folder, logFile: join(folder, "prometheus.log") });
  t.teardown(() => end(child, "SIGKILL"));
  const url = `http://127.0.0.1:${port}`;
  await eventually("Prometheus is ready", () =>
    fetch(`${url}/-/ready`).then(
      ({ ok }) => ok,
      () => false,
    ),
  );
  const startedAt = Date.now() / 1000;
  const ask = async <T>(path: string, parameters: Readonly<Record<string, string>> = {}): Promise<T> => {
    const response = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const { status, error, data } = (await response.json()) as { status: string; error?: string; data: T };
    if (status !== "success") throw new Error(`${path} ${parameters.query}: ${error}`);
    return data;
  };
  return {
    url,
    ask,
    query: async (query) => answers(await ask("query", { query })),
    queryAll: async (query) => {
      const end = Date.now() / 1000;
      return answers(await ask("query_range", { query, start: String(startedAt), end: String(end), step: "1" }));
    },
  };
}

function answers({ result }: { result: readonly Result[] }): Answer[] {
  return result
    .map(({ metric, value, values = value === undefined ? [] : [value] }) => ({
      labels: metric,
      values: values.map(([, text]) => Number(text)).filter(Number.isFinite),
    }))
    .filter(({ values }) => values.length > 0);
}
