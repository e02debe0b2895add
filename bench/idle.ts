/**
 * Ten thousand connections that are kept and say nothing: what each takes, with HTTP/1.1, TLS and as a WebSocket, and when
 * the first are closed. `npm run bench:idle`.
 */

import { once } from "node:events";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { makeCertificate } from "../test/support/certificates.ts";
import { knock } from "./ask.ts";
import { endAll, endChild, freePort, startChild, untilReady } from "./children.ts";
import { residentMiB } from "./process-stats.ts";

const { values } = parseArgs({
  options: {
    connections: { type: "string", default: "10000" },
    /** How long they are left alone. */
    seconds: { type: "string", default: "60" },
    "no-results": { type: "boolean", default: false },
  },
});
const connections = Number(values.connections);
/** Besides the connections. */
const OTHER_DESCRIPTORS = 200;
const AT_ONCE = 100;
const KINDS = ["HTTP/1.1", "TLS", "WebSocket"] as const;
type Kind = (typeof KINDS)[number];

interface Row {
  readonly kind: Kind;
  readonly rssBytes: number;
  readonly heapBytes: number;
  readonly closed: number;
}

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));

const limit = Number(/^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "latin1"))?.[1]);
// A WebSocket has a connection to the application as well.
const needed = 2 * connections + OTHER_DESCRIPTORS;
if (limit < connections + OTHER_DESCRIPTORS) {
  process.stderr.write(
    `bench: ${connections} connections need ${connections + OTHER_DESCRIPTORS} descriptors a process, and ${limit} are allowed: raise them (ulimit -n ${needed}), or use fewer (--connections)\n`,
  );
  process.exit(1);
}

const folder = await mkdtemp(join(tmpdir(), "coatcheck-idle-"));
try {
  const certificate = makeCertificate(folder, "idle");
  const upstreamPort = await freePort();
  const upstream = startChild("upstream", [process.execPath, path("stream-upstream.ts"), String(upstreamPort)], {
    cpus: undefined,
  });
  await untilReady(upstream, () => knock(upstreamPort));
  const rows: Row[] = [];
  for (const kind of KINDS) rows.push(await measure(kind, upstreamPort, certificate));
  const text = report(rows);
  process.stdout.write(text);
  if (!values["no-results"]) writeFileSync(new URL("results/idle.md", import.meta.url), text);
} finally {
  await endAll();
  await rm(folder, { recursive: true, force: true });
}
process.exit();

/** How many of a kind; a WebSocket takes two descriptors of the gateway. */
function countOf(kind: Kind): number {
  return kind === "WebSocket" ? Math.min(connections, Math.floor((limit - OTHER_DESCRIPTORS) / 2)) : connections;
}

async function measure(kind: Kind, upstreamPort: number, certificate: { cert: string; key: string }): Promise<Row> {
  const [port, adminPort] = [await freePort(), await freePort()];
  const config = join(folder, "coatcheck.yaml");
  const settings = {
    listen: { host: "127.0.0.1", port, ...(kind === "TLS" && { tls: certificate }) },
    admin: { port: adminPort },
    store: "memory:",
    routes: [{ upstream: `http://127.0.0.1:${upstreamPort}`, session: "none", websockets: { idleTimeout: "1h" } }],
  };
  await writeFile(config, JSON.stringify(settings));
  const command = [process.execPath, "--expose-gc", "--import", path("../test/soak/measured.ts")];
  const child = startChild("coatcheck", [...command, path("../src/main.ts"), "serve", "--config", config], {
    cpus: undefined,
    ipc: true,
  });
  await untilReady(child, () => knock(port));
  const held = async () => {
    child.process.send("measure");
    const [{ heapBytes }] = (await once(child.process, "message")) as [{ heapBytes: number }];
    return { heapBytes, rssBytes: residentMiB(child.pid) * 1024 * 1024 };
  };
  const ca = readFileSync(certificate.cert);
  // What the first ones teach the process is not the cost of a connection.
  for (const socket of await open(kind, port, ca, 200)) socket.destroy();
  const before = await held();
  const sockets = await open(kind, port, ca, countOf(kind));
  const after = await held();
  const descriptors = readdirSync(`/proc/${child.pid}/fd`).length;
  if (descriptors < sockets.length) throw new Error(`${sockets.length} connections, and ${descriptors} descriptors`);
  await sleep(Number(values.seconds) * 1000);
  const closed = sockets.filter((socket) => socket.destroyed || socket.readableEnded).length;
  for (const socket of sockets) socket.destroy();
  await endChild(child);
  return {
    kind,
    rssBytes: (after.rssBytes - before.rssBytes) / sockets.length,
    heapBytes: (after.heapBytes - before.heapBytes) / sockets.length,
    closed,
  };
}

/** Connections that have had one answer. */
async function open(kind: Kind, port: number, ca: Buffer, count: number): Promise<Socket[]> {
  const sockets: Socket[] = [];
  const upgrade =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
  // HEAD: the whole answer is a head.
  const request = `${kind === "WebSocket" ? "GET" : "HEAD"} / HTTP/1.1\r\nHost: idle\r\n${kind === "WebSocket" ? upgrade : ""}\r\n`;
  const one = async (): Promise<void> => {
    const where = { port, host: "127.0.0.1" };
    const socket = kind === "TLS" ? connectTls({ ...where, ca }) : connect(where);
    sockets.push(socket);
    await once(socket, kind === "TLS" ? "secureConnect" : "connect");
    socket.write(request);
    const [head] = await once(socket, "data");
    if (!/^HTTP\/1\.1 (101|200) /.test(String(head))) throw new Error(`${kind}: ${String(head).slice(0, 40)}`);
    socket.on("error", () => {});
    socket.resume();
  };
  for (let i = 0; i < count; i += AT_ONCE) await Promise.all(Array.from({ length: Math.min(AT_ONCE, count - i) }, one));
  return sockets;
}

function report(rows: readonly Row[]): string {
  const lines = [
    "# Idle connections",
    "",
    "Connections that have had one answer and say nothing more. Made by `npm run bench:idle`.",
    "",
    `| | connections | resident KiB each | heap KiB each, after garbage collection | closed after ${values.seconds} s |`,
    "|---|---:|---:|---:|---:|",
  ];
  for (const { kind, rssBytes, heapBytes, closed } of rows)
    lines.push(
      `| ${kind} | ${countOf(kind)} | ${(rssBytes / 1024).toFixed(1)} | ${(heapBytes / 1024).toFixed(1)} | ${closed} |`,
    );
  return `${lines.join("\n")}

A WebSocket has a connection to the application as well; both are counted. Idle connections are closed after 75 s by the
gateway, WebSockets after \`websockets.idleTimeout\` (an hour here).

- date: ${new Date().toISOString()}
- machine: ${cpus().length} × ${cpus()[0]?.model}, node ${process.version}, ${limit} descriptors a process
`;
}
