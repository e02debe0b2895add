/** What is published: built JavaScript, types, the example of the demo, and nothing else; and it runs as installed. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { renderDocs } from "../scripts/generate-docs.ts";
import { run } from "./support/command.ts";
import { temporaryFolder } from "./support/servers.ts";

/** Runs a program without the hooks by which tap follows child processes: the compiler does not bear them. */
function execute(cwd: string, program: string, ...args: string[]): string {
  return execFileSync("env", ["-u", "NODE_OPTIONS", program, ...args], {
    cwd,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
}

const ROOT = fileURLToPath(new URL("..", import.meta.url));

t.test("npm pack holds only what is needed to run, and the installed package works", async (t) => {
  const folder = await temporaryFolder(t);
  const npm = (...args: string[]) => execute(ROOT, "npm", ...args);
  npm("run", "--silent", "build");
  const [packed] = JSON.parse(npm("pack", "--json", "--ignore-scripts", "--pack-destination", folder));
  const files: string[] = packed.files.map((file: { path: string }) => file.path);
  for (const file of files) {
    t.match(
      file,
      /^(dist\/[\w./-]+\.(js|d\.ts)|examples\/legacy-shop\/server\.mjs|package\.json|README\.md|LICENSE|CHANGELOG\.md)$/,
    );
  }
  for (const file of [
    "dist/main.js",
    "dist/index.js",
    "dist/index.d.ts",
    "dist/store/contract.js",
    "dist/store/contract.d.ts",
    "examples/legacy-shop/server.mjs",
    "LICENSE",
    "README.md",
  ]) {
    t.ok(files.includes(file), file);
  }

  // Installed as npm would, with the dependencies of this checkout.
  const modules = join(folder, "node_modules");
  mkdirSync(join(modules, "coatcheck"), { recursive: true });
  execute(
    folder,
    "tar",
    "-xzf",
    join(folder, packed.filename),
    "--strip-components=1",
    "-C",
    join(modules, "coatcheck"),
  );
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  for (const name of Object.keys(dependencies)) {
    if (name.includes("/")) mkdirSync(join(modules, name, ".."), { recursive: true });
    symlinkSync(join(ROOT, "node_modules", name), join(modules, name));
  }
  const main = join(modules, "coatcheck/dist/main.js");
  t.match(await run(t, ["--version"], {}, { main }), { status: 0, stdout: /^\d/ });

  writeFileSync(join(folder, "package.json"), '{"type":"module"}');
  writeFileSync(
    join(folder, "embed.ts"),
    `import { Gateway, loadConfig, type SessionStore } from "coatcheck";
     import { storeContract } from "coatcheck/store-contract";
     const { config } = loadConfig({ store: "memory:", listen: { port: 0 }, admin: { port: 0 }, routes: [{ upstream: "http://127.0.0.1:9" }] }, {});
     const gateway = await Gateway.create(config);
     await gateway.listen();
     const reply = await fetch(gateway.url);
     await gateway.close();
     const store: SessionStore | undefined = undefined;
     console.log(reply.status, storeContract.length > 10, store === undefined);`,
  );
  const embedded = execute(folder, process.execPath, join(folder, "embed.ts"));
  t.match(embedded, /^401 true true$/m);
  symlinkSync(join(ROOT, "node_modules/@types"), join(modules, "@types"));
  const options = [
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--module",
    "nodenext",
    "--target",
    "es2024",
    "--types",
    "node",
  ];
  t.doesNotThrow(
    () => execute(folder, join(ROOT, "node_modules/.bin/tsc"), ...options, join(folder, "embed.ts")),
    "the types serve",
  );
});

t.test("an old Node gets one line, not a stack", async (t) => {
  const main = readFileSync(join(ROOT, "src/main.ts"), "utf8");
  t.match(main, /needs Node/);
  const imports = [...main.matchAll(/^import .* from "(.*)";$/gm)].map(([, module]) => module);
  t.same(imports, ["node:v8"], "nothing of ours is loaded before the check");
});

t.test("generated documents are up to date", async (t) => {
  for (const [file, text] of Object.entries(await renderDocs()))
    t.equal(readFileSync(join(ROOT, file), "utf8"), text, `${file}: npm run docs`);
});

t.test("the configuration examples in the documents are valid", async (t) => {
  const { loadConfigText } = await import("../src/config/load.ts");
  const environment = { COATCHECK_SECRET: "x".repeat(32), COATCHECK_ADMIN_TOKEN: "x".repeat(32) };
  for (const file of ["README.md", "docs/configuration.md", "docs/architecture.md", "docs/admin-api.md"]) {
    const blocks = [...readFileSync(join(ROOT, file), "utf8").matchAll(/```yaml\n([\s\S]*?)```/g)];
    for (const [, text = ""] of blocks) t.doesNotThrow(() => loadConfigText(text, environment, file), text);
  }
});
