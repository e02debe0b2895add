#!/usr/bin/env node
/** The edge of the process. Everything that needs a recent Node is behind the check. */
import { setFlagsFromString } from "node:v8";

const OLDEST_NODE = 24;

if (Number.parseInt(process.versions.node, 10) < OLDEST_NODE) {
  process.stderr.write(`coatcheck needs Node ${OLDEST_NODE} or later; this is ${process.versions.node}\n`);
  process.exit(1);
}

// V8 learns from the first slow requests that what they make lives long, and from then on puts the objects of every
// request into the old generation, where they hold one another: that cost a fifth of the CPU of a request, and most of
// the time of a garbage collection (bench/README.md).
setFlagsFromString("--no-allocation-site-pretenuring");

const { run } = await import("./cli/run.ts");
process.exitCode = await run(process.argv.slice(2), process.env);
