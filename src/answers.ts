import { ServerResponse, STATUS_CODES } from "node:http";
import { TLSSocket } from "node:tls";
import type { ClientUpgrade } from "./client-upgrade.ts";
import { maskFields } from "./core/capture.ts";
import { type ErrorCode, ProxyError } from "./core/errors.ts";
import type { Exchange } from "./core/exchange.ts";
import { lingerAtEnd } from "./core/linger.ts";
import type { ClientRequest, ClientResponse } from "./core/messages.ts";
import { isForPerson } from "./core/navigation.ts";
import type { Peer } from "./core/peer.ts";
import { STRICT_TRANSPORT } from "./core/response-head.ts";
import { type ErrorPages, wordsFor } from "./error-pages.ts";
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

/** Seconds after which a client may try again when the store or the application is away. */
const RETRY_AFTER_SECONDS = 5;

/** A head, names and values in turn, and the content that it announces. */
export interface OwnMessage {
  readonly head: string[];
  readonly body: string;
}

export interface OwnMessageOptions {
  readonly errorPages: ErrorPages;
  readonly traceId: string;
  readonly strictTransport: string | undefined;
  /** A person waits for a page; otherwise it is problem details (RFC 9457). Both have the trace id, as log and recorder have. */
  readonly forPerson: boolean;
}

/** What Coatcheck says instead of the application, be it on a request or on what never became one. */
export function ownMessage({ status, error, fields = [] }: Answer, options: OwnMessageOptions): OwnMessage {
  const { errorPages, traceId, strictTransport, forPerson } = options;
  const head = ["cache-control", "no-store", ...fields];
  let body = "";
  if (status >= 400) head.push("vary", "accept, sec-fetch-mode", "x-content-type-options", "nosniff");
  if (status >= 400 && forPerson) {
    const page = errorPages.page(status, error, traceId);
    body = page.body;
    head.push(...page.fields);
  } else if (status >= 300) {
    body = problemBody(status, error, traceId);
    head.push("content-type", "application/problem+json");
  }
  if (status !== 204) head.push("content-length", String(Buffer.byteLength(body)));
  if (error !== undefined) head.push("proxy-status", `coatcheck; error=${error}`);
  // RFC 6455 §4.4.
  if (status === 426) head.push("upgrade", "websocket", "sec-websocket-version", "13");
  if (status === 503 && !fields.includes("retry-after")) head.push("retry-after", String(RETRY_AFTER_SECONDS));
  if (strictTransport !== undefined) head.push(STRICT_TRANSPORT, strictTransport);
  return { head, body };
}

/** With the type `about:blank` the title is the status's own (RFC 9457 §4.2.1); what people are told is the detail. */
function problemBody(status: number, error: ErrorCode | undefined, traceId: string): string {
  const detail = status < 400 ? undefined : wordsFor(status, error).message;
  return `${JSON.stringify({ type: "about:blank", title: reasonOf(status), status, detail, error, traceId })}\n`;
}

export function reasonOf(status: number): string {
  return STATUS_CODES[status] ?? "";
}

/** Sends an answer of our own. A request whose content was not read closes the connection: the rest is no request. */
export function answer(conversation: Conversation, answer: Answer): void {
  const { req, res, exchange, errorPages, strictTransport } = conversation;
  const { status, error } = answer;
  exchange.status = status;
  exchange.source = "proxy";
  const forPerson = status >= 400 && isForPerson(req.rawHeaders);
  const options = { errorPages, traceId: exchange.traceId, strictTransport, forPerson };
  const { head, body } = ownMessage(answer, options);
  // In HTTP/2 the rest belongs to this stream alone, which ends with the answer.
  const unread = exchange.requestHasContent && !req.complete && req.httpVersionMajor === 1;
  // What follows a message that was not understood may be no message.
  if (unread || error === "http_request_error") {
    // RFC 9110 §7.8: a 426 names what to upgrade to, and so does its connection.
    head.push("connection", status === 426 ? "upgrade, close" : "close");
    lingerAtEnd(res.socket);
  }
  if (exchange.capture !== undefined) exchange.capture.response = maskFields(head);
  res.writeHead(status, reasonOf(status), head);
  if (exchange.method !== "HEAD") exchange.responseBytes = Buffer.byteLength(body);
  if (unread) {
    // The rest is dropped: there are clients that send everything before they read anything.
    req.unpipe();
    req.resume();
  }
  res.end(body);
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
  exchange.fail(failure.code, failure.message, failure.limit);
  if (res.headersSent) {
    exchange.status ||= failure.status;
    cut(res, exchange.httpVersion);
  } else answer(conversation, { status: statusFor(exchange, failure), error: failure.code, fields: failure.fields });
}

/**
 * A proxy that asks understands that a request may not go on, by 403; nginx takes any other 4xx for a failure. The others
 * tell the client to come more slowly as well.
 */
export function statusFor({ verification }: Exchange, { status }: ProxyError): number {
  if (verification === undefined || status < 400 || status >= 500) return status;
  return status === 429 && verification.protocol !== "auth-request" ? status : 403;
}

/** In HTTP/1.0 the content may end with the connection: only a reset says that there should have been more. */
function cut(res: ClientResponse, httpVersion: string): void {
  if (
    httpVersion === "1.0" &&
    res instanceof ServerResponse &&
    res.socket !== null &&
    !(res.socket instanceof TLSSocket)
  )
    res.socket.resetAndDestroy();
  res.destroy();
}
