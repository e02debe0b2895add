/** The load generator for `throughput.ts`: 16 connections that do one thing as fast as they can. */
import { once } from "node:events";
import { Agent, request } from "node:http";
import { WebSocket } from "ws";

export type StreamKind = "download" | "upload" | "small" | "large";

export interface StreamOrder {
  readonly kind: StreamKind;
  readonly url: string;
  readonly cookie: string;
  readonly seconds: number;
}

export interface StreamResult {
  /** Bodies of 1 MiB, or messages that came back. */
  readonly done: number;
  readonly seconds: number;
}

const CONNECTIONS = 16;
/** Messages of one WebSocket that are on their way. */
const IN_FLIGHT = 8;
const MIB = 1024 * 1024;
const BODY = Buffer.alloc(MIB, "x");

process.on("message", (order: StreamOrder) => {
  fire(order).then(
    (result) => process.send?.(result),
    (error: unknown) => process.send?.({ failed: String(error) }),
  );
});
// The bench is gone.
process.on("disconnect", () => process.exit(0));

async function fire(order: StreamOrder): Promise<StreamResult> {
  const beganMs = performance.now();
  const untilMs = beganMs + order.seconds * 1000;
  const one = order.kind === "download" || order.kind === "upload" ? bodies : messages;
  const counts = await Promise.all(Array.from({ length: CONNECTIONS }, () => one(order, untilMs)));
  return { done: counts.reduce((sum, count) => sum + count, 0), seconds: (performance.now() - beganMs) / 1000 };
}

async function bodies({ kind, url, cookie }: StreamOrder, untilMs: number): Promise<number> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  let done = 0;
  while (performance.now() < untilMs) {
    await (kind === "download" ? exchange(agent, url, cookie, MIB) : exchange(agent, url, cookie, 0, BODY));
    done++;
  }
  agent.destroy();
  return done;
}

function exchange(agent: Agent, url: string, cookie: string, wanted: number, body?: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const headers = { cookie, ...(body && { "content-length": body.length }) };
    const method = body === undefined ? "GET" : "POST";
    const req = request(`${url}/body`, { agent, method, headers }, (res) => {
      let bytes = 0;
      res.on("data", (piece: Buffer) => {
        bytes += piece.length;
      });
      res.on("error", reject);
      res.on("end", () =>
        res.statusCode === 200 && bytes === wanted
          ? resolve()
          : reject(new Error(`${method}: ${res.statusCode}, ${bytes} octets`)),
      );
    });
    req.on("error", reject);
    req.end(body);
  });
}

async function messages({ kind, url, cookie }: StreamOrder, untilMs: number): Promise<number> {
  const ws = new WebSocket(url.replace("http", "ws"), { headers: { cookie }, perMessageDeflate: false });
  await once(ws, "open");
  const message = Buffer.alloc(kind === "small" ? 64 : 64 * 1024, "x");
  let done = 0;
  let isLost = false;
  const over = new Promise<void>((resolve) => {
    ws.on("message", (data: Buffer) => {
      isLost ||= data.length !== message.length;
      done++;
      if (performance.now() < untilMs) ws.send(message);
      else ws.close();
    });
    ws.once("close", () => resolve());
  });
  for (let i = 0; i < IN_FLIGHT; i++) ws.send(message);
  await over;
  if (isLost || performance.now() < untilMs) throw new Error("a WebSocket ended early, or a message came back changed");
  return done;
}
