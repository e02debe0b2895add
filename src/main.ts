#!/usr/bin/env node
/** The edge of the process. Everything that needs a recent Node is behind the check. */

const OLDEST_NODE = 24;

if (Number.parseInt(process.versions.node, 10) < OLDEST_NODE) {
  process.stderr.write(`coatcheck needs Node ${OLDEST_NODE} or later; this is ${process.versions.node}\n`);
  process.exit(1);
}

const { run } = await import("./cli.ts");
process.exitCode = await run(process.argv.slice(2), process.env);

export {};
