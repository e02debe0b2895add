/** Grafana reads the dashboards as they are meant: its own schema, in Go, knows every field of them. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import t from "tap";
import { dashboards, GRAFANA } from "../support/dashboards.ts";
import { ROOT } from "../support/project.ts";

t.setTimeout(600_000);

t.test("the dashboards fit Grafana's own schema", async (t) => {
  const files = Object.keys(dashboards()).map((file) => join(GRAFANA, "dashboards", file));
  t.ok(files.length >= 4);
  const { status, stdout, stderr, error } = spawnSync("go", ["run", "-mod=readonly", ".", ...files], {
    cwd: join(ROOT, "test/go/grafana-schema"),
    encoding: "utf8",
  });
  t.equal(status, 0, `Go 1.26 or later says\n${stdout}${stderr}${error ?? ""}`);
});
