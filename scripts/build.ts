/** Builds dist/: what the package and the image run. */
import { spawnSync } from "node:child_process";
import { chmodSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
rmSync(new URL("../dist", import.meta.url), { recursive: true, force: true });
const { status } = spawnSync("tsc", ["-p", "tsconfig.json"], { cwd: root, stdio: "inherit" });
if (status === 0) chmodSync(new URL("../dist/main.js", import.meta.url), 0o755);
process.exitCode = status ?? 1;
