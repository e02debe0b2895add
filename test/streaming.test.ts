/**
 * Large contents in both directions, in constant memory: that of a gateway in a process of its own.
 * `COATCHECK_STREAM_MIB` is how many MiB go each way: 96 by default, several thousand for a longer look.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { createInterface } from "node:readline";
import t from "tap";
import { startHttp } from "./support/servers.ts";

const MIB = 1024 * 1024;
const SIZE = Number(process.env.COATCHECK_STREAM_MIB ?? 96) * MIB;
/** What the gateway may grow by while contents pass: buffers of sockets, and garbage. It does not depend on their size. */
const ALLOWANCE = 128 * MIB;

/** Each octet says where it stands, so that none can be lost, doubled or moved. */
const PATTERN = Buffer.from(Array.from({ length: 251 * 256 }, (_, i) => i % 251));

/** A gateway by itself: says where it listens, and ends with its standard input. */
const GATEWAY = `
  import { loadConfig } from ${JSON.stringify(new URL("../src/config/load.ts", import.meta.url).href)};
  import { Gateway } from ${JSON.stringify(new URL("../src/gateway.ts", import.meta.url).href)};
  const { config } = loadConfig(JSON.parse(process.env.SETTINGS), {});
  const gateway = await Gateway.create(config, { logDestination: { write() {} } });
  await gateway.listen();
  console.log(gateway.url);
  process.stdin.on("end", () => process.exit()).resume();
`;

async function send(stream: NodeJS.WritableStream): Promise<void> {
  for (let sent = 0; sent < SIZE; sent += PATTERN.length)
    if (!stream.write(PATTERN.subarray(0, Math.min(PATTERN.length, SIZE - sent)))) await once(stream, "drain");
  stream.end();
}

/** @returns how many octets came. @throws Error when one of them stands in the wrong place. */
async function receive(stream: IncomingMessage): Promise<number> {
  let received = 0;
  for await (const piece of stream as AsyncIterable<Buffer>) {
    for (let at = 0; at < piece.length; ) {
      const from = (received + at) % 251;
      const length = Math.min(piece.length - at, PATTERN.length - 251);
      if (piece.compare(PATTERN, from, from + length, at, at + length) !== 0) throw new Error(`at ${received + at}`);
      at += length;
    }
    received += piece.length;
  }
  return received;
}

/** Octets of a process that are in memory, or were at most (`VmHWM`). */
function memoryOf(pid: number, field: "VmRSS" | "VmHWM"): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) * 1024;
}

for (const framing of ["with a length", "in chunks"]) {
  t.test(`${SIZE / MIB} MiB each way, ${framing}`, { timeout: 60_000 + SIZE / 5_000 }, async (t) => {
    const length = framing === "in chunks" ? {} : { "content-length": SIZE };
    let uploaded = 0;
    const { port } = await startHttp(t, async (req, res) => {
      if (req.method === "POST") {
        uploaded = await receive(req);
        res.end();
      } else {
        res.writeHead(200, length);
        await send(res);
      }
    });
    const settings = {
      listen: { host: "127.0.0.1", port: 0 },
      admin: { port: 0 },
      store: "memory:",
      session: { cookie: { name: "session", secure: false, secrets: ["an old secret that has 32 characters"] } },
      routes: [{ upstream: `http://127.0.0.1:${port}`, session: "none" }],
    };
    const gateway = spawn(process.execPath, ["--input-type=module-typescript", "--eval", GATEWAY], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, SETTINGS: JSON.stringify(settings) },
    });
    t.teardown(() => gateway.kill());
    const [url] = (await once(createInterface(gateway.stdout), "line")) as [string];
    const pid = gateway.pid ?? 0;
    const before = memoryOf(pid, "VmRSS");
    const startedMs = performance.now();
    const upload = httpRequest(url, { method: "POST", agent: false, headers: length });
    const download = httpRequest(url, { agent: false }).end();
    const answers = [once(download, "response"), once(upload, "response")] as Promise<[IncomingMessage]>[];
    const [downloaded] = await Promise.all([answers[0]?.then(([res]) => receive(res)), answers[1], send(upload)]);
    const seconds = (performance.now() - startedMs) / 1000;
    const grown = Math.round((memoryOf(pid, "VmHWM") - before) / MIB);
    t.equal(uploaded, SIZE);
    t.equal(downloaded, SIZE);
    t.ok(grown * MIB < ALLOWANCE, `the gateway grew by ${grown} MiB`);
    t.comment(`the gateway grew by ${grown} MiB from ${Math.round(before / MIB)}; ${seconds.toFixed(1)} s`);
  });
}
