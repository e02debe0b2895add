/** Makes sure that a redis-server is there before the tests: they use real ones, and skip nothing. */
import { spawnSync } from "node:child_process";

function version(): string | undefined {
  const { status, stdout } = spawnSync("redis-server", ["--version"], { encoding: "utf8" });
  return status === 0 ? stdout.trim() : undefined;
}

function aptGet(...args: string[]): boolean {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  return spawnSync("apt-get", ["-qq", ...args], { stdio: ["ignore", "ignore", "inherit"], env }).status === 0;
}

function install(): boolean {
  if (process.getuid?.() !== 0) return false;
  process.stderr.write("redis-server is missing; installing Debian's package…\n");
  // A service of its own would be started by the package; the tests start their own servers.
  return aptGet("update") && aptGet("install", "-y", "--no-install-recommends", "redis-server");
}

if (version() === undefined && !(install() && version() !== undefined)) {
  process.stderr.write(
    "The tests need redis-server 7 or later: install it (Debian: apt-get install redis-server) and run them again.\n",
  );
  process.exit(1);
}
