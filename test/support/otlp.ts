/** A real OTLP receiver, for each of its protocols: takes what an exporter sends and gives the spans back. */
import { once } from "node:events";
import type { IncomingHttpHeaders } from "node:http";
import { createServer, type Http2Session, type ServerHttp2Stream } from "node:http2";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import type { OtlpProtocol } from "../../src/core/trace-export.ts";
import { spansIn } from "./protobuf.ts";
import { startHttp, type Teardown } from "./servers.ts";

export interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | undefined;
  readonly name: string;
  /** OTLP's numbers: 1 internal, 2 server, 3 client. */
  readonly kind: number;
  readonly startNs: bigint;
  readonly endNs: bigint;
  readonly status: number;
  readonly attributes: Record<string, unknown>;
  readonly resource: Record<string, unknown>;
}

export interface Receiver {
  readonly environment: Record<string, string>;
  readonly spans: Span[];
  /** Every body as it came. */
  readonly bodies: string[];
  /** The headers, or with gRPC the metadata, of each. */
  readonly requests: IncomingHttpHeaders[];
}

interface OtlpAttribute {
  readonly key: string;
  readonly value: Record<string, unknown>;
}

interface ResourceSpans {
  readonly resource: { readonly attributes?: OtlpAttribute[] };
  readonly scopeSpans: readonly {
    readonly spans: readonly (Omit<Span, "status" | "attributes"> & {
      readonly startTimeUnixNano: string;
      readonly endTimeUnixNano: string;
      readonly status?: { readonly code?: number };
      readonly attributes?: OtlpAttribute[];
    })[];
  }[];
}

const attributesOf = (list: readonly OtlpAttribute[] = []) =>
  Object.fromEntries(
    list.map(({ key, value }) => [key, "intValue" in value ? Number(value.intValue) : Object.values(value)[0]]),
  );

export async function startReceiver(t: Teardown, protocol: OtlpProtocol = "http/json"): Promise<Receiver> {
  const spans: Span[] = [];
  const bodies: string[] = [];
  const requests: IncomingHttpHeaders[] = [];
  const take = (body: Buffer, headers: IncomingHttpHeaders) => {
    requests.push(headers);
    bodies.push(body.toString(protocol === "http/json" ? "utf8" : "latin1"));
    spans.push(...(protocol === "http/json" ? jsonSpansIn(body.toString()) : spansIn(body)));
  };
  const port = await (protocol === "grpc" ? receiveGrpc(t, take) : receiveHttp(t, protocol, take));
  const environment = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: protocol,
  };
  return { spans, bodies, requests, environment };
}

type Take = (body: Buffer, headers: IncomingHttpHeaders) => void;

async function receiveHttp(t: Teardown, protocol: OtlpProtocol, take: Take): Promise<number> {
  const type = protocol === "http/json" ? "application/json" : "application/x-protobuf";
  const { port } = await startHttp(t, async (req, res) => {
    const body = await buffer(req);
    if (req.url !== "/v1/traces" || req.headers["content-type"] !== type) {
      res.writeHead(400).end();
      return;
    }
    take(body, req.headers);
    res.writeHead(200, { "content-type": type }).end(protocol === "http/json" ? "{}" : "");
  });
  return port;
}

/** gRPC is a POST of HTTP/2 whose body has a flag and a length before the message, and whose status is a trailer. */
async function receiveGrpc(t: Teardown, take: Take): Promise<number> {
  const sessions = new Set<Http2Session>();
  const server = createServer().listen(0, "127.0.0.1");
  server.on("session", (session) => sessions.add(session));
  server.on("stream", async (stream: ServerHttp2Stream, headers) => {
    const body = await buffer(stream);
    const isExport = headers[":path"] === "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    if (isExport) take(body.subarray(5), headers);
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": isExport ? "0" : "12" }));
    stream.end(Buffer.alloc(5));
  });
  await once(server, "listening");
  t.teardown(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

function jsonSpansIn(body: string): Span[] {
  return JSON.parse(body).resourceSpans.flatMap(({ resource, scopeSpans }: ResourceSpans) =>
    scopeSpans
      .flatMap((scope) => scope.spans)
      .map((span) => ({
        ...span,
        startNs: BigInt(span.startTimeUnixNano),
        endNs: BigInt(span.endTimeUnixNano),
        // The Collector writes an empty text where there is none.
        parentSpanId: span.parentSpanId || undefined,
        status: span.status?.code ?? 0,
        attributes: attributesOf(span.attributes),
        resource: attributesOf(resource.attributes),
      })),
  );
}

/** The exporters of OpenTelemetry read their variables from the process. */
export function exportTo(environment: Record<string, string>, t: Teardown): void {
  Object.assign(process.env, environment);
  t.teardown(() => {
    for (const name of Object.keys(environment)) delete process.env[name];
  });
}
