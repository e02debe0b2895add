/**
 * Large contents in both directions, in constant memory. `COATCHECK_STREAM_MIB` is how many MiB go each way: 256 by default,
 * several thousand for a longer look.
 */
import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import t from "tap";
import { startGateway, startHttp } from "./support/servers.ts";

const MIB = 1024 * 1024;
const SIZE = Number(process.env.COATCHECK_STREAM_MIB ?? 256) * MIB;
/** What a run may take more than before it: buffers of sockets, and garbage; client, gateway and application together. */
const ALLOWANCE = 220 * MIB;

/** Each octet says where it stands, so that none can be lost, doubled or moved. */
const PATTERN = Buffer.from(Array.from({ length: 251 * 256 }, (_, i) => i % 251));

async function send(stream: NodeJS.WritableStream & { readonly destroyed?: boolean }): Promise<void> {
  for (let sent = 0; sent < SIZE && stream.destroyed !== true; sent += PATTERN.length)
    if (!stream.write(PATTERN.subarray(0, Math.min(PATTERN.length, SIZE - sent)))) await once(stream, "drain");
  stream.end();
}

/** @returns how many octets came. @throws Error when one of them stands in the wrong place. */
async function receive(stream: IncomingMessage): Promise<number> {
  let received = 0;
  for await (const piece of stream as AsyncIterable<Buffer>) {
    const offset = received % 251;
    for (let at = 0; at < piece.length; ) {
      const length = Math.min(piece.length - at, PATTERN.length - offset - 251);
      const from = (received + at) % 251;
      if (piece.compare(PATTERN, from, from + length, at, at + length) !== 0) throw new Error(`at ${received + at}`);
      at += length;
    }
    received += piece.length;
  }
  return received;
}

for (const framing of ["with a length", "in chunks"]) {
  t.test(
    `${SIZE / MIB} MiB each way, ${framing}, in constant memory`,
    { timeout: 30_000 + SIZE / 5_000 },
    async (t) => {
      let uploaded = 0;
      const length = framing === "in chunks" ? {} : { "content-length": SIZE };
      const { port } = await startHttp(t, async (req, res) => {
        if (req.method === "POST") {
          uploaded = await receive(req);
          res.end();
        } else {
          res.writeHead(200, length);
          await send(res);
        }
      });
      const gateway = await startGateway(t, { routes: [{ upstream: `http://127.0.0.1:${port}`, session: "none" }] });
      const before = process.memoryUsage.rss();
      let highest = before;
      const watch = setInterval(() => (highest = Math.max(highest, process.memoryUsage.rss())), 20);
      const upload = httpRequest(gateway.url, { method: "POST", agent: false, headers: length });
      const download = httpRequest(gateway.url, { agent: false }).end();
      const answers = [once(download, "response"), once(upload, "response")] as Promise<[IncomingMessage]>[];
      const [downloaded] = await Promise.all([answers[0]?.then(([res]) => receive(res)), answers[1], send(upload)]);
      clearInterval(watch);
      t.equal(uploaded, SIZE);
      t.equal(downloaded, SIZE);
      const grown = Math.round((highest - before) / MIB);
      t.ok(highest - before < ALLOWANCE, `memory grew by ${grown} MiB`);
      t.comment(`memory grew by ${grown} MiB`);
    },
  );
}
