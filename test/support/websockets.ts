/** An application with WebSockets: `ws`, on a free port. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocketServer } from "ws";
import type { Teardown } from "./resources.ts";

/** What a client is greeted with: the request as the application received it. */
export interface Greeting {
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
}

export interface WebSocketApp {
  readonly url: string;
  readonly http: Server;
  readonly server: WebSocketServer;
  /** Responses of `/slow`, which are the test's to end. */
  readonly slow: ServerResponse[];
}

/**
 * Echoes each message, after a greeting. Requests without an upgrade command the session: `POST /start`, with what it is
 * sent.
 */
export async function startWebSocketApp(t: Teardown, { greets = true } = {}): Promise<WebSocketApp> {
  const slow: ServerResponse[] = [];
  const http = createServer(async (req, res) => {
    let body = "";
    for await (const piece of req) body += piece;
    if (req.url === "/slow") slow.push(res);
    else {
      if (req.url === "/start") res.setHeader("x-session-start", body);
      res.end();
    }
  }).listen(0, "127.0.0.1");
  await once(http, "listening");
  const server = new WebSocketServer({ server: http, maxPayload: 64 * 1024 * 1024 });
  server.on("connection", (socket, req) => {
    socket.on("error", () => {});
    if (greets) socket.send(JSON.stringify({ url: req.url ?? "", headers: req.headers } satisfies Greeting));
    socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  t.teardown(() => {
    for (const client of server.clients) client.terminate();
    server.close();
    http.closeAllConnections();
    http.close();
  });
  return { url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`, http, server, slow };
}
