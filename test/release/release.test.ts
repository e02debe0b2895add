/**
 * What is given to others, as they get it: the folder that packaging/release.sh makes, and npm's package installed into an
 * empty folder with its dependencies from the registry. It takes a minute, so it is no part of `npm test`.
 */
import { type SpawnSyncReturns, spawn, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { ask } from "../support/client.ts";
import { ROOT } from "../support/project.ts";
import { end, eventually, freePort } from "../support/resources.ts";
import { startUpstream, temporaryFolder } from "../support/servers.ts";

t.setTimeout(600_000);

const PATH = process.env.PATH ?? "";

/** Runs a program with nothing of this checkout's environment but what npm needs. */
function execute(cwd: string, program: string, ...args: string[]): SpawnSyncReturns<string> {
  const { NODE_OPTIONS: _, ...env } = process.env;
  return spawnSync(program, args, { cwd, encoding: "utf8", env, maxBuffer: 64 * 1024 * 1024 });
}

/** Starts it as an installed program, and asks it something. */
async function serves(t: Test, program: string, cwd: string, env: NodeJS.ProcessEnv): Promise<void> {
  const app = await startUpstream(t);
  const [port, adminPort] = [await freePort(), await freePort()];
  const args = ["--upstream", app.url, "--store", "memory:", "--port", String(port), "--admin-port", String(adminPort)];
  const child = spawn(program, args, { cwd, env, stdio: "ignore" });
  t.teardown(() => end(child, "SIGKILL"));
  const ready = () =>
    ask(`http://127.0.0.1:${adminPort}/readyz`).then(
      ({ status }) => status === 200,
      () => false,
    );
  await eventually("it is ready", ready, 60_000);
  t.equal((await ask(`http://127.0.0.1:${port}/hello`)).status, 200);
  t.equal(app.received.at(-1)?.url, "/hello");
  await end(child, "SIGTERM");
  t.equal(child.exitCode, 0);
}

t.test("a release runs with nothing around it, and says what it is made of", async (t) => {
  const folder = join(await temporaryFolder(t), "coatcheck-x");
  const made = execute(ROOT, "sh", "packaging/release.sh", folder);
  t.equal(made.status, 0, made.stdout + made.stderr);
  const again = execute(ROOT, "sh", "packaging/release.sh", folder);
  t.match(again, { status: 1, stderr: /never changed/ });
  t.equal(statSync(join(folder, "bin/node")).mode & 0o777, 0o755);

  const { version } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  const bare = { PATH: "/usr/bin:/bin" };
  const told = spawnSync(join(folder, "bin/coatcheck"), ["--version"], { env: bare, encoding: "utf8" });
  t.equal(told.stdout, `${version}\n`);
  await serves(t, join(folder, "bin/coatcheck"), folder, bare);

  const bill = JSON.parse(readFileSync(join(folder, "sbom.cdx.json"), "utf8"));
  t.match(bill, { bomFormat: "CycloneDX", metadata: { component: { name: "coatcheck", version } } });
  const installed = JSON.parse(readFileSync(join(folder, "node_modules/.package-lock.json"), "utf8")).packages;
  const there = Object.entries(installed as Record<string, { version: string }>).map(
    ([path, { version }]) => `${path.split("node_modules/").at(-1)}@${version}`,
  );
  const named = bill.components.map(({ purl }: { purl: string }) =>
    decodeURIComponent(purl.replace("pkg:npm/", "").split("?")[0] ?? ""),
  );
  t.same([...new Set(named)].sort(), [...new Set(there)].sort(), "what is in node_modules is what is in the bill");
  t.ok(named.length > 20);
});

t.test("npm's package, installed into an empty folder", async (t) => {
  const folder = await temporaryFolder(t);
  t.equal(execute(ROOT, "npm", "run", "--silent", "build").status, 0);
  const packed = execute(ROOT, "npm", "pack", "--json", "--ignore-scripts", "--pack-destination", folder);
  const [{ filename }] = JSON.parse(packed.stdout);
  const project = join(folder, "empty");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), "{}");
  const installed = execute(project, "npm", "install", "--no-audit", "--no-fund", `../${filename}`);
  t.equal(installed.status, 0, installed.stderr);
  await serves(t, join(project, "node_modules/.bin/coatcheck"), project, { PATH });
});
