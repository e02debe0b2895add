/** The Kubernetes manifests as kustomize builds them: no unknown field, and fit for the pod security standard "restricted". */
import { spawnSync } from "node:child_process";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ROOT } from "../support/project.ts";
import { temporaryFolder } from "../support/servers.ts";

t.setTimeout(600_000);

function build(...folders: string[]) {
  return spawnSync("go", ["run", "-mod=readonly", ".", ...folders], {
    cwd: join(ROOT, "test/go/kubernetes"),
    encoding: "utf8",
  });
}

t.test("kustomize builds them, Kubernetes' types have every field, and the pods may run anywhere", async (t) => {
  const folders = ["base", "example"].map((name) => join(ROOT, "packaging/kubernetes", name));
  const { status, stdout, stderr, error } = build(...folders);
  t.equal(status, 0, `Go 1.26 or later says\n${stdout}${stderr}${error ?? ""}`);
  for (const kind of ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceMonitor"])
    t.equal(stdout.match(new RegExp(`: ${kind}/coatcheck\\b`, "g"))?.length, kind === "Service" ? 4 : 2, kind);
});

t.test("it would notice", async (t) => {
  const folder = await temporaryFolder(t);
  cpSync(join(ROOT, "packaging/kubernetes/base"), folder, { recursive: true });
  const file = join(folder, "deployment.yaml");
  const text = readFileSync(file, "utf8");
  writeFileSync(file, text.replace("runAsNonRoot: true", "runAsNonRoot: false").replace("replicas: 2", "replicaz: 2"));
  t.match(build(folder), { status: 1, stdout: /unknown field "spec\.replicaz"/ });
  writeFileSync(file, text.replace("runAsNonRoot: true", "runAsNonRoot: false"));
  t.match(build(folder), { status: 1, stdout: /not restricted: runAsNonRoot/ });
});
