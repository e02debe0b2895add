/** The systemd unit and the Kubernetes manifests: read by systemd itself and by Kubernetes' schemas, and in agreement with the
 * configuration beside them. test/go/kubernetes.test.ts has them built by kustomize and looks at pod security. */
import { spawnSync } from "node:child_process";
import { globSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { Deployment } from "kubernetes-models/apps/v1";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import { PodDisruptionBudget } from "kubernetes-models/policy/v1";
import { Service, ServiceAccount } from "kubernetes-models/v1";
import t from "tap";
import { parse, parseAllDocuments } from "yaml";
import type { Config } from "../src/config/compile.ts";
import { loadConfigText } from "../src/config/load.ts";
import { ROOT } from "./support/project.ts";
import { temporaryFolder } from "./support/servers.ts";

const read = (file: string) => readFileSync(join(ROOT, "packaging", file), "utf8");
/** What every process needs beside `shutdown.delay` and `shutdown.timeout`: the last spans, the store. */
const REST_SECONDS = 5;
const drainSeconds = ({ shutdown }: Config) => (shutdown.delayMs + shutdown.timeoutMs) / 1000;
const environment = {
  COATCHECK_ADDRESS: "10.0.0.11",
  COATCHECK_STORE: "redis://redis:6379/0",
  COATCHECK_SECRET: "s".repeat(64),
  COATCHECK_ENCRYPTION_KEY: "e".repeat(64),
  COATCHECK_ADMIN_TOKEN: "t".repeat(64),
  REDIS_PASSWORD: "p",
  SENTINEL_ACCESS_PASSWORD: "a",
};

/** Runs a program without the hooks by which tap follows child processes. */
function execute(program: string, ...args: string[]) {
  const { NODE_OPTIONS: _, ...env } = process.env;
  return spawnSync(program, args, { encoding: "utf8", env });
}

t.test("systemd takes the unit, and lets it do little", async (t) => {
  const folder = await temporaryFolder(t);
  // What it starts has to be there for systemd: a program of this name stands in its place.
  const unit = read("systemd/coatcheck.service").replaceAll("/opt/coatcheck/current", folder);
  mkdirSync(join(folder, "bin"));
  writeFileSync(join(folder, "bin/node"), "#!/bin/sh\n", { mode: 0o755 });
  const file = join(folder, "coatcheck.service");
  writeFileSync(file, unit);
  const verified = execute("systemd-analyze", "verify", "--man=no", file);
  // It speaks of other units of this machine too.
  t.notMatch(verified.stdout + verified.stderr, /coatcheck\.service:/);
  const { stdout } = execute("systemd-analyze", "security", "--offline=true", "--no-pager", file);
  const exposure = Number(/Overall exposure level for coatcheck\.service: ([\d.]+)/.exec(stdout)?.[1]);
  t.ok(exposure <= 1.5, `exposure ${exposure} of 10`);

  writeFileSync(file, unit.replace("Type=exec", "Type=nonsense"));
  const wrong = execute("systemd-analyze", "verify", "--man=no", file);
  t.match(wrong.stdout + wrong.stderr, /nonsense/, "it would notice");
});

t.test("nobody is killed while draining", async (t) => {
  const production = readFileSync(join(ROOT, "examples/production/coatcheck.yaml"), "utf8");
  const { config } = loadConfigText(production, environment, "coatcheck.yaml");
  const stop = Number(/^TimeoutStopSec=(\d+)$/m.exec(read("systemd/coatcheck.service"))?.[1]);
  t.ok(stop >= drainSeconds(config) + REST_SECONDS, `TimeoutStopSec=${stop}`);
  const { terminationGracePeriodSeconds: grace } = parse(read("kubernetes/base/deployment.yaml")).spec.template.spec;
  for (const folder of ["base", "example"]) {
    const text = read(`kubernetes/${folder}/coatcheck.yaml`);
    const { config } = loadConfigText(text, environment, folder);
    t.ok(grace >= drainSeconds(config) + REST_SECONDS, `${folder}: terminationGracePeriodSeconds ${grace}`);
    t.equal(config.listen.port, 8080);
    t.equal(config.admin.port, 9090);
  }
});

const MODELS = { Deployment, NetworkPolicy, PodDisruptionBudget, Service, ServiceAccount, ServiceMonitor };

t.test("the manifests fit the schemas of Kubernetes and of the Prometheus operator", async (t) => {
  const files = globSync("kubernetes/base/*.yaml", { cwd: join(ROOT, "packaging") });
  const { resources } = parse(read("kubernetes/base/kustomization.yaml"));
  t.same(
    files
      .map((file) => file.split("/").at(-1))
      .filter((file) => file !== "kustomization.yaml" && file !== "coatcheck.yaml")
      .sort(),
    [...resources].sort(),
    "each file is a resource",
  );
  const seen = new Set<string>();
  for (const file of resources as string[])
    for (const document of parseAllDocuments(read(`kubernetes/base/${file}`), { uniqueKeys: true })) {
      t.same(document.errors, []);
      const manifest = document.toJS();
      const model = withSelector(manifest);
      seen.add(manifest.kind);
      const Model = MODELS[manifest.kind as keyof typeof MODELS] as new (data: object) => { validate(): void };
      t.doesNotThrow(() => new Model(model).validate(), `${file}: ${manifest.kind} ${manifest.metadata.name}`);
    }
  t.same([...seen].sort(), Object.keys(MODELS).sort());
  const wrong = withSelector(parse(read("kubernetes/base/deployment.yaml")));
  wrong.spec.template.spec.containers[0].ports[0].containerPort = "8080";
  t.throws(() => new Deployment(wrong).validate(), "the schema would notice");
});

/** What kustomize adds. */
// biome-ignore lint/suspicious/noExplicitAny: manifests of any kind; Kubernetes' own schemas have checked them
function withSelector(manifest: any): any {
  if (manifest.kind !== "Deployment") return manifest;
  const labels = { "app.kubernetes.io/name": "coatcheck" };
  const { spec } = manifest;
  return {
    ...manifest,
    spec: { ...spec, selector: { matchLabels: labels }, template: { ...spec.template, metadata: { labels } } },
  };
}

t.test("the manifests name what the configuration and the image have", async (t) => {
  const deployment = parse(read("kubernetes/base/deployment.yaml"));
  const [container] = deployment.spec.template.spec.containers;
  const asked = [...read("kubernetes/base/coatcheck.yaml").matchAll(/\$\{(\w+)\}/g)].map(([, name]) => name);
  t.same([...new Set(asked)].sort(), ["COATCHECK_ADMIN_TOKEN", "COATCHECK_SECRET", "COATCHECK_STORE"]);
  const document = readFileSync(join(ROOT, "docs/packaging.md"), "utf8");
  for (const name of asked) t.ok(document.includes(`--from-literal=${name}=`), `the document makes ${name}`);
  const dockerfile = readFileSync(join(ROOT, "Dockerfile"), "utf8");
  const { runAsUser, runAsGroup } = deployment.spec.template.spec.securityContext;
  t.match(dockerfile, `USER ${runAsUser}:${runAsGroup}\n`);
  t.match(dockerfile, `CMD ${JSON.stringify(container.args).replace(",", ", ")}`);
  for (const { containerPort } of container.ports)
    t.match(dockerfile, new RegExp(`^EXPOSE .*\\b${containerPort}\\b`, "m"));
});
