import type { Exchange } from "./exchange.ts";
import { nodeIdentifier, type Peer } from "./peer.ts";
import type { RequestHead } from "./request-head.ts";
import type { RequestTarget } from "./request-target.ts";
import { formatTraceParent, newSpanId } from "./trace-context.ts";

/** A host as an earlier, trusted proxy may name it. */
const PLAIN_HOST = /^[A-Za-z0-9.:[\]_-]+$/;

/**
 * The header section for upstream: what is left of the client's, and what the gateway says about the request. Identity
 * comes after this.
 * @param cookies the `Cookie` field without the session cookie.
 */
export function upstreamFields(
  head: RequestHead,
  target: RequestTarget,
  cookies: string | undefined,
  peer: Peer,
  exchange: Exchange,
): string[] {
  const fields = head.kept;
  fields.push("host", target.authority);
  if (cookies !== undefined) fields.push("cookie", cookies);
  const via = `${exchange.httpVersion} coatcheck`;
  fields.push("via", head.via === undefined ? via : `${head.via}, ${via}`);
  exchange.upstreamSpanId = newSpanId();
  fields.push("traceparent", formatTraceParent(exchange.traceId, exchange.upstreamSpanId, exchange.sampled));
  // Only a trusted peer's are here, and without its traceparent they belong to nothing.
  if (exchange.parentSpanId !== undefined && head.tracestate !== undefined) fields.push("tracestate", head.tracestate);
  if (head.baggage !== undefined) fields.push("baggage", head.baggage);
  if (exchange.method === "OPTIONS" && head.maxForwards !== undefined) {
    fields.push("max-forwards", String(Number(head.maxForwards) - 1));
  }
  pushForwarded(fields, head, target, peer, exchange);
  return fields;
}

/** The whole `Forwarded` family anew (RFC 7239): on top of what a trusted proxy said, instead of what others did. */
function pushForwarded(
  fields: string[],
  head: RequestHead,
  target: RequestTarget,
  peer: Peer,
  exchange: Exchange,
): void {
  const forwardedFor = head.forwardedFor === undefined ? peer.address : `${head.forwardedFor}, ${peer.address}`;
  if (head.forwardedProto === "https" || head.forwardedProto === "http") exchange.scheme = head.forwardedProto;
  const told = head.forwardedHost;
  const host = told !== undefined && PLAIN_HOST.test(told) ? told : target.authority;
  const node = exchange.clientAddress === peer.address ? peer.node : nodeIdentifier(exchange.clientAddress);
  fields.push("x-forwarded-for", forwardedFor, "x-forwarded-proto", exchange.scheme, "x-forwarded-host", host);
  fields.push("forwarded", `for=${node};host="${host}";proto=${exchange.scheme}`);
}
