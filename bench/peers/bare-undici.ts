import { createServer, type ServerResponse } from "node:http";
import { type Dispatcher, Pool } from "undici";
import { endOnSignal } from "../end-on-signal.ts";

/**
 * The cheapest proxy that is still correct: hop-by-hop fields are removed both ways, contents stream both ways at the
 * pace of the slower side, bytes and order of fields are kept, and a client that leaves frees the upstream connection.
 */

const [port, upstream = ""] = process.argv.slice(2);

const HOP_BY_HOP = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);

// As in src/upstream/upstream.ts, so that the pool is no difference.
const pool = new Pool(upstream, { connections: 1024, pipelining: 1 });

createServer((req, res) => {
  const { fields, hasContent } = readRequest(req.rawHeaders);
  pool.dispatch(
    {
      method: req.method as Dispatcher.HttpMethod,
      path: req.url ?? "/",
      headers: fields,
      body: hasContent ? req : null,
    },
    relay(res),
  );
}).listen(Number(port), "127.0.0.1");

endOnSignal();

function readRequest(raw: readonly string[]): { readonly fields: string[]; readonly hasContent: boolean } {
  const fields: string[] = [];
  let connection: string | undefined;
  let hasContent = false;
  for (let i = 0; i < raw.length; i += 2) {
    const sent = raw[i] as string;
    const value = raw[i + 1] as string;
    const name = sent.toLowerCase();
    if (name === "connection") connection = value;
    else if (name === "transfer-encoding" || (name === "content-length" && value !== "0")) hasContent = true;
    if (!HOP_BY_HOP.has(name)) fields.push(sent, value);
  }
  return { fields: withoutListed(fields, connection), hasContent };
}

function readResponse(raw: readonly (Buffer | string)[]): string[] {
  const fields: string[] = [];
  let connection: string | undefined;
  for (let i = 0; i < raw.length; i += 2) {
    const sent = (raw[i] as Buffer).toString("latin1");
    const value = (raw[i + 1] as Buffer).toString("latin1");
    const name = sent.toLowerCase();
    if (name === "connection") connection = value;
    if (!HOP_BY_HOP.has(name)) fields.push(sent, value);
  }
  return withoutListed(fields, connection);
}

/** Without the fields that `Connection` lists (RFC 9110 §7.6.1). */
function withoutListed(fields: string[], connection: string | undefined): string[] {
  if (connection === undefined || connection === "keep-alive" || connection === "close") return fields;
  const listed = new Set(connection.split(",").map((name) => name.trim().toLowerCase()));
  return fields.filter((_, i) => !listed.has((fields[i - (i % 2)] as string).toLowerCase()));
}

function relay(res: ServerResponse): Dispatcher.DispatchHandler {
  let ended = false;
  return {
    onRequestStart(controller) {
      res.once("close", () => {
        if (!ended) controller.abort(new Error("the client has gone"));
      });
    },
    onResponseStart(controller, status, _headers, reason) {
      if (status < 200) return;
      res.writeHead(
        status,
        reason ?? "",
        readResponse(Array.isArray(controller.rawHeaders) ? controller.rawHeaders : []),
      );
    },
    onResponseData(controller, chunk) {
      if (res.write(chunk)) return;
      controller.pause();
      res.once("drain", () => controller.resume());
    },
    onResponseEnd() {
      ended = true;
      res.end();
    },
    onResponseError() {
      ended = true;
      if (res.headersSent) res.destroy();
      else res.writeHead(502).end();
    },
  };
}
