/** Makes sure that the servers of other people are there before the tests: they use real ones, and skip nothing. */
import { spawnSync } from "node:child_process";
import { CHROMIUM } from "./browser.ts";
import { postgresProgram } from "./postgres.ts";

/** Debian's packages, and how to see that one is there. */
const SERVERS = {
  "redis-server": { version: "7", isThere: () => runs("redis-server") },
  prometheus: { version: "2.42", isThere: () => runs("prometheus") && runs("promtool") },
  curl: { version: "7.88", isThere: () => runs("curl") },
  "nghttp2-client": { version: "1.52", isThere: () => runs("h2load") },
  nginx: { version: "1.22", isThere: () => runs("nginx", "-v") },
  "redis-tools": { version: "7", isThere: () => runs("redis-cli") },
  openssl: { version: "3", isThere: () => runs("openssl", "version") },
  // Its tools read the unit; the tests need no systemd that runs.
  systemd: { version: "252", isThere: () => runs("systemd-analyze") },
  haproxy: { version: "2.6", isThere: () => runs("haproxy", "-v") },
  caddy: { version: "2.6", isThere: () => runs("caddy", "version") },
  radicale: { version: "3.1", isThere: () => runs("radicale") },
  chromium: { version: "120", isThere: () => runs(CHROMIUM) },
  postgresql: { version: "15", isThere: () => runs(postgresProgram("postgres")) && runs(postgresProgram("initdb")) },
};

function runs(program: string, option = "--version"): boolean {
  return spawnSync(program, [option], { stdio: "ignore" }).status === 0;
}

function missing(): (keyof typeof SERVERS)[] {
  return (Object.keys(SERVERS) as (keyof typeof SERVERS)[]).filter((name) => !SERVERS[name].isThere());
}

function aptGet(...args: string[]): boolean {
  // RUNLEVEL: invoke-rc.d starts no service of a package; the tests start their own.
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive", RUNLEVEL: "1" };
  return spawnSync("apt-get", ["-qq", ...args], { stdio: ["ignore", "ignore", "inherit"], env }).status === 0;
}

const wanted = missing();
if (wanted.length > 0 && process.getuid?.() === 0) {
  process.stderr.write(`${wanted.join(" and ")} missing; installing Debian's packages…\n`);
  aptGet("update") && aptGet("install", "-y", "--no-install-recommends", ...wanted);
}
for (const name of missing()) {
  process.stderr.write(
    `The tests need ${name} ${SERVERS[name].version} or later: install it (Debian: apt-get install ${name}) and run them again.\n`,
  );
  process.exitCode = 1;
}
