import { STATUS_CODES } from "node:http";
import type { ClientUpgrade } from "./client-upgrade.ts";
import { maskFields } from "./core/capture.ts";
import { type ErrorCode, ProxyError } from "./core/errors.ts";
import type { Exchange } from "./core/exchange.ts";
import type { ClientRequest, ClientResponse } from "./core/messages.ts";
import type { Peer } from "./core/peer.ts";
import { STRICT_TRANSPORT } from "./core/response-head.ts";
import { type ErrorPages, isForPerson, wordsFor } from "./error-pages.ts";
import type { Observer } from "./observe/observer.ts";

/** What Coatcheck says itself, without the application. Never an address of the inside, never a stack trace. */

/** A request and its response, from one connection. */
export interface Conversation {
  readonly req: ClientRequest;
  readonly res: ClientResponse;
  readonly peer: Peer;
  readonly exchange: Exchange;
  /** Value of `Strict-Transport-Security`, which every response of this listener has. */
  readonly strictTransport: string | undefined;
  readonly errorPages: ErrorPages;
  /** The client waits for 100 (Continue) before it sends the content; false when it was told to. */
  expectsContinue: boolean;
  /** Set when the client asks for a WebSocket. */
  readonly upgrade?: ClientUpgrade | undefined;
  /** Set while an upstream is at work: called when the client's connection ends, with or without a whole response. */
  onClose?: () => void;
}

export interface Answer {
  readonly status: number;
  /** With an error, `Proxy-Status` tells its RFC 9209 type. */
  readonly error?: ErrorCode;
  /** Further fields, names and values in turn. */
  readonly fields?: readonly string[];
}

/** How long a client that was refused is read on, milliseconds. */
export const LINGER_MS = 1_000;

/** Seconds after which a client may try again when the store or the application is away. */
const RETRY_AFTER_SECONDS = 5;

/** Problem details for the client (RFC 9457), with the trace id that the log and the recorder have. */
export function problemBody(status: number, error: ErrorCode | undefined, traceId: string): string {
  const problem = { type: "about:blank", title: titleOf(status, error), status, ...(error && { error }), traceId };
  return `${JSON.stringify(problem)}\n`;
}

function titleOf(status: number, error: ErrorCode | undefined): string {
  return status < 400 ? (STATUS_CODES[status] ?? "") : wordsFor(status, error).title;
}

/** Sends an answer of our own. A request whose content was not read closes the connection: the rest is no request. */
export function answer(conversation: Conversation, { status, error, fields = [] }: Answer): void {
  const { req, res, exchange } = conversation;
  exchange.status = status;
  exchange.source = "proxy";
  // In HTTP/2 the rest belongs to this stream alone, which ends with the answer.
  const unread = exchange.requestHasContent && !req.complete && req.httpVersionMajor === 1;
  const head = ["cache-control", "no-store", ...fields];
  let body = "";
  if (status >= 400 && isForPerson(req.rawHeaders)) {
    const page = conversation.errorPages.page(status, error, exchange.traceId);
    body = page.body;
    head.push(...page.fields);
  } else if (status !== 204) {
    body = problemBody(status, error, exchange.traceId);
    head.push("content-type", "application/problem+json");
  }
  const length = Buffer.byteLength(body);
  if (status !== 204) head.push("content-length", String(length));
  if (error !== undefined) head.push("proxy-status", `coatcheck; error=${error}`);
  // RFC 6455 §4.4.
  if (status === 426) head.push("upgrade", "websocket", "sec-websocket-version", "13");
  if (status === 503) head.push("retry-after", String(RETRY_AFTER_SECONDS));
  // What follows a message that was not understood may be no message.
  if (unread || error === "http_request_error") head.push("connection", "close");
  if (conversation.strictTransport !== undefined) head.push(STRICT_TRANSPORT, conversation.strictTransport);
  if (exchange.capture !== undefined) exchange.capture.response = maskFields(head);
  res.writeHead(status, STATUS_CODES[status] ?? "", head);
  if (exchange.method !== "HEAD") exchange.responseBytes = length;
  // Where no content was announced, node has ended the request already, and nothing of it is still under way.
  const lingers = unread && !req.readableEnded && !conversation.expectsContinue && exchange.method !== "HEAD";
  if (lingers) lingeringEnd(req, res, exchange, body);
  else res.end(body);
}

/**
 * Sends the whole answer, and reads on for a moment before the connection ends: closing it under what the client still
 * sends would take the answer with it.
 */
function lingeringEnd(req: ClientRequest, res: ClientResponse, exchange: Exchange, body: string): void {
  exchange.endedMs = exchange.elapsedMs();
  res.write(body);
  const linger = setTimeout(() => res.end(), LINGER_MS);
  res.once("close", () => clearTimeout(linger));
  req.once("end", () => res.end());
  req.unpipe();
  req.resume();
}

/**
 * Ends a conversation that failed: with an answer where the head is not out yet, and otherwise by cutting the
 * connection, so that a response cut short is seen as cut short.
 */
export function fail(conversation: Conversation, error: unknown, observer: Observer): void {
  const { req, res, exchange } = conversation;
  if (res.destroyed || req.errored) {
    // The client went away; what broke after that broke because of it.
    res.destroy();
    return;
  }
  let failure: ProxyError;
  if (error instanceof ProxyError) failure = error;
  else {
    observer.log.unexpected(error, exchange);
    failure = new ProxyError("proxy_internal_error", "see the line error.unexpected of this trace", { cause: error });
  }
  exchange.fail(failure.code, failure.message);
  if (res.headersSent) {
    exchange.status ||= failure.status;
    res.destroy();
  } else answer(conversation, { status: failure.status, error: failure.code });
}
