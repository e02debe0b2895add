/** A real OTLP/HTTP receiver: takes what an exporter posts and gives the spans back. */
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
}

interface OtlpAttribute {
  readonly key: string;
  readonly value: Record<string, unknown>;
}

const attributesOf = (list: readonly OtlpAttribute[] = []) =>
  Object.fromEntries(
    list.map(({ key, value }) => [key, "intValue" in value ? Number(value.intValue) : Object.values(value)[0]]),
  );

export async function startReceiver(t: Teardown): Promise<Receiver> {
  const spans: Span[] = [];
  const bodies: string[] = [];
  const { port } = await startHttp(t, async (req, res) => {
    let body = "";
    for await (const piece of req.setEncoding("utf8")) body += piece;
    if (req.url !== "/v1/traces" || req.headers["content-type"] !== "application/json") {
      res.writeHead(400).end();
      return;
    }
    bodies.push(body);
    for (const { resource, scopeSpans } of JSON.parse(body).resourceSpans) {
      for (const span of scopeSpans.flatMap((scope: { spans: unknown[] }) => scope.spans)) {
        spans.push({
          ...span,
          startNs: BigInt(span.startTimeUnixNano),
          endNs: BigInt(span.endTimeUnixNano),
          status: span.status?.code ?? 0,
          attributes: attributesOf(span.attributes),
          resource: attributesOf(resource.attributes),
        });
      }
    }
    res.writeHead(200, { "content-type": "application/json" }).end("{}");
  });
  const environment = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
  };
  return { spans, bodies, environment };
}
