/** The `ws` package on both sides: large messages, many at once, compressed or not, with TLS or without. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import t from "tap";
import { WebSocket, WebSocketServer } from "ws";
import { makeCertificate } from "./support/certificates.ts";
import { until } from "./support/client.ts";
import { freePort, startGateway, temporaryFolder } from "./support/servers.ts";

const MIB = 1024 * 1024;
const CLIENTS = 8;
const MESSAGES = 3;

for (const encrypted of [false, true])
  for (const compressed of [false, true]) {
    const name = `${encrypted ? "TLS" : "plain"}, ${compressed ? "compressed" : "as they are"}`;
    t.test(`1 MiB both ways, ${CLIENTS} at once: ${name}`, async (t) => {
      const port = await freePort();
      const app = new WebSocketServer({ port, host: "127.0.0.1", perMessageDeflate: compressed });
      await once(app, "listening");
      app.on("connection", (socket) => socket.on("message", (data, binary) => socket.send(data, { binary })));
      t.teardown(() => {
        for (const client of app.clients) client.terminate();
        app.close();
      });
      const tls = makeCertificate(await temporaryFolder(t), "own");
      const gateway = await startGateway(t, {
        listen: { host: "127.0.0.1", port: 0, ...(encrypted && { tls }) },
        upstream: `http://127.0.0.1:${port}`,
      });
      const clients = Array.from(
        { length: CLIENTS },
        () =>
          new WebSocket(gateway.url.replace("http", "ws"), {
            ca: readFileSync(tls.cert),
            perMessageDeflate: compressed,
          }),
      );
      const echoed = clients.map(async (client) => {
        await once(client, "open");
        // Half of it can be compressed.
        const sent = Array.from({ length: MESSAGES }, () =>
          Buffer.concat([randomBytes(MIB / 2), Buffer.alloc(MIB / 2)]),
        );
        const received: Buffer[] = [];
        client.on("message", (data: Buffer) => received.push(data));
        for (const message of sent) client.send(message);
        await until(() => received.length === MESSAGES);
        client.close(1000, "done");
        const [code] = await once(client, "close");
        return code === 1000 && received.every((message, i) => message.equals(sent[i] as Buffer));
      });
      t.same(new Set(await Promise.all(echoed)), new Set([true]));
      t.equal(
        clients[0]?.extensions,
        compressed ? "permessage-deflate" : "",
        "the two agreed on it, through the gateway",
      );
      await until(async () => /^coatcheck_websockets_open 0$/m.test(await gateway.metrics()));
      const bytes = ["in", "out"].map(
        (way) => new RegExp(`^coatcheck_websocket_bytes_total\\{direction="${way}"\\} (\\d+)$`, "m"),
      );
      const metrics = await gateway.metrics();
      for (const pattern of bytes)
        t.ok(Number(pattern.exec(metrics)?.[1]) > (CLIENTS * MESSAGES * MIB) / 2, String(pattern.exec(metrics)?.[1]));
    });
  }
