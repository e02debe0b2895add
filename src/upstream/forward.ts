import { type Duplex, PassThrough } from "node:stream";
import type { Dispatcher } from "undici";
import { maskFields } from "../core/capture.ts";
import { badRequest, type ErrorCode, ProxyError } from "../core/errors.ts";
import type { Exchange } from "../core/exchange.ts";
import type { RouteLimits } from "../core/limits.ts";
import { lingerAtEnd } from "../core/linger.ts";
import type { ClientRequest, ClientResponse } from "../core/messages.ts";
import {
  addSessionCookie,
  type ParsedHeaders,
  type ResponseHead,
  type ResponseHeaderRules,
} from "../core/response-head.ts";
import type { SessionKey } from "../core/session.ts";
import { formatTraceParent, newSpanId } from "../core/trace-context.ts";
import type { RetryReason } from "../core/upstream.ts";
import { checkAnswer } from "../core/websocket.ts";
import type { Endpoint } from "./endpoint.ts";
import { upstreamError } from "./errors.ts";
import type { Applicant, Upstream } from "./upstream.ts";

/** 1xx heads that one response may send before its own. */
const MAX_INTERIM_HEADS = 16;

/** Methods whose content has no defined meaning: servers differ in whether they read it (RFC 9110 §9.3). */
const BODILESS_METHODS: ReadonlySet<string> = new Set(["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"]);

/**
 * Methods that change nothing, so that a request without content may be sent again (RFC 9110 §9.2.2). Other idempotent
 * ones may too, but a `DELETE` that was carried out twice says that there was nothing to delete.
 */
const SAFE_METHODS: ReadonlySet<string> = new Set(["GET", "HEAD", "OPTIONS"]);

/** Failures that say nothing of the target: the client's, and our own, such as no file descriptor left. */
const NO_STRIKES: ReadonlySet<ErrorCode> = new Set([
  "http_request_error",
  "proxy_internal_error",
  "connection_limit_reached",
]);

export interface ForwardRequest {
  readonly upstream: Upstream;
  /** Of the session that the request came with: what targets are chosen by. */
  readonly sessionKey: SessionKey | undefined;
  readonly method: string;
  readonly path: string;
  /** Names and values in turn. */
  readonly headers: string[];
  readonly hasContent: boolean;
  readonly chunked: boolean;
  /** Of the content. */
  readonly limits: RouteLimits;
  readonly responseRules: ResponseHeaderRules;
  /**
   * Called when the response commands the session, or always if `holdsHead`. The head is held back until the promise is
   * done; its value is the `Set-Cookie` to add. A rejection replaces the response.
   */
  readonly onHead: (head: ResponseHead) => Promise<string | undefined>;
  readonly holdsHead: boolean;
  /** Called once, unless the response went out whole: nothing of it has been sent when `res.headersSent` is false. */
  readonly onFailure: (error: ProxyError) => void;
  readonly closeConnection: () => boolean;
  /** Whether the client reads fields after the content; it has said so with `TE: trailers`. */
  readonly wantsTrailers: boolean;
  /** Called when there is a connection that the content can go to, where the client waits for that (100). */
  readonly onConnected: (() => void) | undefined;
  /** The client asks for a WebSocket. An application that answers with anything but a 101 is answered for as ever. */
  readonly upgrade?: UpgradeRequest | undefined;
}

export interface UpgradeRequest {
  /** What `Sec-WebSocket-Accept` has to be. */
  readonly accept: string;
  /** As `onHead`, for a 101. */
  readonly onHead: (head: ResponseHead) => Promise<string | undefined>;
  /**
   * Sends the 101 to the client, and takes over the connection to the application, of which nothing more has been read.
   * From then on `forward`'s function is not to be called any more.
   */
  readonly open: (fields: string[], upstream: Duplex) => void;
}

/**
 * Sends the request upstream and streams the response back; both ways at the pace of the slower side.
 * @returns what to call when the client's connection has ended.
 */
export function forward(
  request: ForwardRequest,
  req: ClientRequest,
  res: ClientResponse,
  exchange: Exchange,
): () => void {
  const attempt = new ForwardAttempt(request, req, res, exchange);
  attempt.begin();
  return () => attempt.abandon();
}

/**
 * The content as a stream of its own: undici destroys the body of a failed request, and destroying `req` would take
 * the client's connection with it before the error could be told. Nothing is read before `begin`, when there is a
 * connection to send it on: a request that got none can be sent elsewhere, whatever its method.
 */
class RequestContent extends PassThrough {
  readonly #req: ClientRequest;
  readonly #exchange: Exchange;
  #hasBegun = false;

  constructor(req: ClientRequest, exchange: Exchange) {
    super();
    this.#req = req;
    this.#exchange = exchange;
    // undici reports the failure of the body through the attempt; nobody else needs to hear of it.
    this.on("error", () => {});
  }

  /**
   * @param idleTimeoutMs between two pieces. undici does not count the time while it writes, so either side could hold
   *   the connection for ever.
   */
  begin(idleTimeoutMs: number, limits: RouteLimits): void {
    const req = this.#req;
    const exchange = this.#exchange;
    const { maxBodyBytes } = limits;
    this.#hasBegun = true;
    const idle = setTimeout(() => this.destroy(stalled(this.writableNeedDrain)), idleTimeoutMs);
    const slow = limits.minBodyRate > 0 ? watchProgress(this, exchange, limits) : undefined;
    const count = (chunk: Buffer): void => {
      exchange.requestBytes += chunk.length;
      if (exchange.requestBytes > maxBodyBytes) this.destroy(tooLarge(maxBodyBytes));
      idle.refresh();
    };
    const stop = (): void => {
      clearTimeout(idle);
      clearInterval(slow);
    };
    req.on("data", count);
    req.on("end", stop);
    req.on("error", (error) => this.destroy(error));
    // Also when undici has an answer or a failure before the end. The rest is read and dropped: there are clients that send
    // everything before they read anything.
    this.on("close", () => {
      stop();
      req.off("data", count);
      req.unpipe(this);
      req.resume();
    });
    req.pipe(this);
  }

  /** It is not going anywhere any more. */
  letGo(): void {
    this.destroy(); // undici does not, where it found no connection
    if (!this.#hasBegun) this.#req.resume();
  }
}

/** Whoever keeps a request going with an octet now and then holds a connection on either side for nothing (slow POST). */
function watchProgress(
  content: PassThrough,
  exchange: Exchange,
  { minBodyRate, bodyWindowMs }: RouteLimits,
): NodeJS.Timeout {
  const minBytes = (minBodyRate * bodyWindowMs) / 1000;
  let before = 0;
  return setInterval(() => {
    const bytes = exchange.requestBytes - before;
    before = exchange.requestBytes;
    // An application that reads slowly slows its client down.
    if (bytes >= minBytes || content.writableNeedDrain) return;
    content.destroy(
      badRequest(`the content arrives with less than ${minBodyRate} octets a second`, 408, "body-timeout"),
    );
  }, bodyWindowMs);
}

function tooLarge(maxBodyBytes: number): ProxyError {
  return badRequest(`content beyond ${maxBodyBytes} octets`, 413, "body-bytes");
}

function stalled(byUpstream: boolean): ProxyError {
  return byUpstream
    ? new ProxyError("connection_write_timeout", "the upstream stopped reading the request")
    : badRequest("the client stopped sending the request", 408, "body-timeout");
}

class ForwardAttempt implements Dispatcher.DispatchHandler, Applicant {
  readonly #request: ForwardRequest;
  readonly #req: ClientRequest;
  readonly #res: ClientResponse;
  readonly #exchange: Exchange;
  /** The place that it has, until that is given back. */
  #endpoint: Endpoint | undefined;
  #content: RequestContent | undefined;
  /** Those that have failed. */
  #tried: Endpoint[] | undefined;
  /** Set when an answer was put aside, because another target is to be asked. */
  #refusedStatus: number | undefined;
  #controller: Dispatcher.DispatchController | undefined;
  /** Whether anything may have reached the target. */
  #isSent = false;
  /** Whether the connection has had a request before this one: then its server may have closed it just now. */
  #isReused = false;
  #answerBegun = false;
  #interimHeads = 0;
  #headSeen = false;
  /** The head waits, and so does the end, which nothing holds back where there is no content. */
  #held = false;
  #endedWhileHeld = false;
  /** How long the content is, where it may come in one piece; and that piece, which waits for the end. */
  #wholeLength = Number.NaN;
  #whole: Buffer | undefined;
  #drain: NodeJS.Timeout | undefined;
  /** The connection that has become a tunnel, until somebody takes it over. */
  #tunnel: Duplex | undefined;
  #done = false;

  constructor(request: ForwardRequest, req: ClientRequest, res: ClientResponse, exchange: Exchange) {
    this.#request = request;
    this.#req = req;
    this.#res = res;
    this.#exchange = exchange;
  }

  get sessionKey(): SessionKey | undefined {
    return this.#request.sessionKey;
  }

  get exchange(): Exchange {
    return this.#exchange;
  }

  get tried(): readonly Endpoint[] | undefined {
    return this.#tried;
  }

  /** @throws ProxyError: see `Upstream.acquire`. */
  begin(): void {
    const endpoint = this.#request.upstream.acquire(this);
    if (endpoint !== undefined) this.granted(endpoint);
  }

  granted(endpoint: Endpoint): void {
    const { method, path, headers, hasContent, chunked, upgrade } = this.#request;
    const exchange = this.#exchange;
    const { target } = endpoint;
    this.#endpoint = endpoint;
    exchange.upstream = target.address;
    exchange.upstreamPeer = endpoint.peer;
    exchange.upstreamScheme = target.scheme;
    const now = exchange.elapsedMs();
    exchange.attemptMs = now;
    if (this.#tried === undefined) exchange.forwardedMs = now;
    if (hasContent) this.#content = new RequestContent(this.#req, exchange);
    endpoint.dispatch(
      {
        method: method as Dispatcher.HttpMethod,
        path,
        headers,
        ...(upgrade !== undefined && { upgrade: "websocket" }),
        body: this.#content ?? null,
        // A server that ignores the content of a DELETE reads it as the next request on the connection, so there must
        // not be a next one (CVE-2026-29057).
        ...(hasContent &&
          (BODILESS_METHODS.has(method) ||
            (chunked && method !== "POST" && method !== "PUT" && method !== "PATCH")) && {
            reset: true,
          }),
      },
      this,
    );
  }

  /** No connection became free. */
  refused(error: ProxyError): void {
    if (!this.#done) this.#fail(error);
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    this.#isReused = this.#endpoint?.hasJustConnected() !== true;
    if (this.#done) {
      controller.abort(new Error("the client has gone"));
      return;
    }
    this.#isSent = true;
    this.#content?.begin(this.#request.upstream.idleTimeoutMs, this.#request.limits);
    this.#request.onConnected?.();
  }

  /** The first octet, of an interim answer too. */
  onResponseStarted(): void {
    this.#answerBegun = true;
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    status: number,
    parsed: ParsedHeaders,
    reason?: string,
  ): void {
    if (status < 100 || status > 599) throw new ProxyError("http_protocol_error", `the upstream sent status ${status}`);
    if (status < 200) {
      if (++this.#interimHeads > MAX_INTERIM_HEADS || status === 101) {
        throw new ProxyError("http_protocol_error", "unasked 101, or too many interim responses");
      }
      this.#passInterim(status, controller);
      return;
    }
    if (this.#endpoint !== undefined) this.#request.upstream.answered(this.#endpoint, status);
    if (status >= 502 && this.#mayRetry("status", status)) {
      this.#refusedStatus = status;
      throw new ProxyError("destination_unavailable", `status ${status}, for which another target is asked`);
    }
    this.#headSeen = true;
    this.#exchange.upstreamHeadMs = this.#exchange.elapsedMs();
    this.#exchange.upstreamStatus = status;
    const { capture } = this.#exchange;
    if (capture !== undefined) capture.upstreamResponse = maskFields(rawHeaders(controller));
    const head = this.#request.responseRules.read(rawHeaders(controller), parsed);
    if (head.commands === undefined && !this.#request.holdsHead) {
      this.#release(status, reason, head);
      return;
    }
    // Paused with nothing left to read, undici would take the end of the connection for a failure.
    if (this.#hasContent(status, head)) controller.pause();
    this.#held = true;
    this.#request
      .onHead(head)
      .then((setCookie) => {
        if (this.#done) return;
        if (setCookie !== undefined) addSessionCookie(head.kept, setCookie);
        this.#release(status, reason, head);
        this.#held = false;
        this.#res.flushHeaders(); // what was saved is told, whatever becomes of the content
        controller.resume();
        if (this.#endedWhileHeld) this.onResponseEnd();
      })
      .catch((error: unknown) => {
        if (!this.#done) this.#fail(upstreamError(error, true));
      });
  }

  /** The application has switched protocols; undici has let go of the connection. */
  onRequestUpgrade(
    controller: Dispatcher.DispatchController,
    status: number,
    parsed: ParsedHeaders,
    socket: Duplex,
  ): void {
    const { upgrade, responseRules } = this.#request;
    const exchange = this.#exchange;
    socket.on("error", () => socket.destroy());
    const endpoint = this.#endpoint;
    this.#endpoint = undefined;
    if (endpoint !== undefined) {
      // A WebSocket has a connection for as long as it lasts.
      endpoint.webSockets++;
      socket.once("close", () => {
        endpoint.webSockets--;
        this.#request.upstream.release(endpoint);
      });
      this.#request.upstream.answered(endpoint, status);
    }
    this.#headSeen = true;
    exchange.upstreamHeadMs = exchange.elapsedMs();
    exchange.upstreamStatus = status;
    if (exchange.capture !== undefined) exchange.capture.upstreamResponse = maskFields(rawHeaders(controller));
    if (upgrade === undefined) throw new ProxyError("http_protocol_error", "an unasked 101");
    const head = responseRules.read(rawHeaders(controller), parsed);
    checkAnswer(head.kept, parsed.upgrade, upgrade.accept);
    removeContentLength(head.kept);
    this.#tunnel = socket;
    upgrade
      .onHead(head)
      .then((setCookie) => {
        if (this.#done) return;
        if (socket.destroyed) throw new ProxyError("connection_terminated", "the upstream closed after its 101");
        if (setCookie !== undefined) addSessionCookie(head.kept, setCookie);
        exchange.status = status;
        exchange.source = "upstream";
        exchange.upstreamEndMs = exchange.elapsedMs();
        if (exchange.capture !== undefined) exchange.capture.response = maskFields(head.kept);
        upgrade.open(head.kept, socket);
      })
      .catch((error: unknown) => {
        if (!this.#done) this.#fail(upstreamError(error, true));
      });
  }

  /** 103 (Early Hints) and its like. Whether to go on is ours to say (100), and HTTP/1.0 knows no interim heads. */
  #passInterim(status: number, controller: Dispatcher.DispatchController): void {
    if (this.#done || status === 100 || this.#exchange.httpVersion === "1.0") return;
    // Not every Node that this runs on has it, and nobody needs what an interim head says.
    if (this.#res.writeInformation === undefined) return;
    const fields = this.#request.responseRules.readAside(rawHeaders(controller)).flat();
    this.#exchange.interimHeads++;
    this.#res.writeInformation(status, fields);
  }

  /** Sends the response head. */
  #release(status: number, reason: string | undefined, head: ResponseHead): void {
    const exchange = this.#exchange;
    exchange.status = status;
    exchange.source = "upstream";
    const fields = head.kept;
    if (status === 204 && head.contentLength !== undefined) removeContentLength(fields);
    if (this.#request.closeConnection() || !this.#requestIsRead()) {
      fields.push("connection", "close");
      lingerAtEnd(this.#res.socket);
    }
    if (exchange.capture !== undefined) {
      // A login may have put it under watch only now.
      exchange.capture.upstreamResponse ??= maskFields(rawHeaders(this.#controller));
      exchange.capture.response = maskFields(fields);
    }
    this.#res.writeHead(status, plainReason(reason), fields);
    // The head does not wait for the first piece of content: an event stream may take a while to say something.
    if (head.contentLength === undefined) queueMicrotask(() => this.#flushHead());
    // Small content mostly comes in one piece: node writes that with the head and the end at once.
    else if (head.contentLength.length < 5) this.#wholeLength = Number(head.contentLength);
  }

  #flushHead(): void {
    if (!this.#done && this.#exchange.responseBytes === 0) this.#res.flushHeaders();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#exchange.responseBytes += chunk.length;
    if (chunk.length === this.#wholeLength) {
      this.#whole = chunk;
      return;
    }
    if (this.#res.write(chunk)) return;
    controller.pause();
    if (this.#drain !== undefined) return;
    // A reader that has stopped reading is a client that has gone.
    this.#drain = setTimeout(() => this.#res.destroy(), this.#request.upstream.idleTimeoutMs);
    this.#res.once("drain", () => {
      clearTimeout(this.#drain);
      this.#drain = undefined;
      controller.resume();
    });
  }

  onResponseEnd(): void {
    // Whatever becomes of the answer: undici has nothing more to tell of it.
    this.#giveBack();
    if (this.#held) {
      this.#endedWhileHeld = true;
      return;
    }
    this.#done = true;
    this.#exchange.upstreamEndMs = this.#exchange.elapsedMs();
    if (this.#request.wantsTrailers) this.#addTrailers();
    if (this.#whole === undefined) this.#res.end();
    else this.#res.end(this.#whole.toString("latin1"), "latin1");
  }

  #addTrailers(): void {
    const raw = this.#controller?.rawTrailers;
    if (!Array.isArray(raw) || raw.length === 0) return;
    const fields = this.#request.responseRules.readAside(raw);
    if (fields.length > 0) this.#res.addTrailers(fields);
  }

  onResponseError(_controller: Dispatcher.DispatchController | undefined, error: Error): void {
    const { upstream } = this.#request;
    const endpoint = this.#giveBack();
    if (this.#done) return;
    const status = this.#refusedStatus;
    if (status !== undefined) {
      this.#sendAgain("status", undefined, endpoint);
      return;
    }
    const failure = upstreamError(error, this.#headSeen);
    const reason = this.#retryReason(failure.code);
    // An idle connection that was closed says nothing of how its server is.
    if (endpoint !== undefined && reason !== "idle-closed" && !this.#headSeen && !NO_STRIKES.has(failure.code))
      upstream.failed(endpoint, failure.code);
    if (reason !== undefined && this.#mayRetry(reason, undefined, endpoint))
      this.#sendAgain(reason, failure.code, endpoint);
    else this.#fail(failure);
  }

  /** Gives the place back. */
  #giveBack(): Endpoint | undefined {
    const endpoint = this.#endpoint;
    this.#endpoint = undefined;
    if (endpoint !== undefined) this.#request.upstream.release(endpoint);
    return endpoint;
  }

  /**
   * Why the request may be sent again, in principle. Nothing went out: any request. Otherwise it has to be one that
   * changes nothing, and no answer may have begun.
   *
   * A server that closes an idle connection at the very moment when a request is sent on it has not read that request
   * (RFC 9112 §9.3.1). A connection that was made for the request is another matter: the request may be what broke it.
   */
  #retryReason(code: ErrorCode): RetryReason | undefined {
    if (!this.#isSent) return "connect";
    if (this.#answerBegun || !this.#isSafe()) return undefined;
    if (code === "http_response_timeout") return "timeout";
    if (code !== "connection_terminated") return undefined;
    return this.#isReused && this.#exchange.upstreamRetries === 0 ? "idle-closed" : "closed";
  }

  #isSafe(): boolean {
    return !this.#request.hasContent && SAFE_METHODS.has(this.#request.method);
  }

  /** @param endpoint that has failed. */
  #mayRetry(reason: RetryReason, status?: number, endpoint = this.#endpoint): boolean {
    if (reason === "status" && (this.#interimHeads > 0 || !this.#isSafe())) return false;
    const tried = endpoint === undefined ? [] : [...(this.#tried ?? []), endpoint];
    return this.#request.upstream.mayRetry(reason, status, { exchange: this.#exchange, tried });
  }

  /** Not at once: undici is still about to clear the old connection away. */
  #sendAgain(retry: RetryReason, error: ErrorCode | undefined, failed: Endpoint | undefined): void {
    const exchange = this.#exchange;
    const spanId = exchange.upstreamSpanId ?? newSpanId();
    exchange.keepAttempt(retry, this.#refusedStatus, error, spanId);
    exchange.upstreamSpanId = newSpanId();
    replaceTraceParent(this.#request.headers, exchange);
    // The same target takes what its idle connection did not, if there is no other.
    if (failed !== undefined) this.#tried = [...(this.#tried ?? []), failed];
    this.#controller = undefined;
    this.#content?.destroy();
    this.#content = undefined;
    this.#refusedStatus = undefined;
    this.#isSent = false;
    this.#answerBegun = false;
    queueMicrotask(() => {
      if (this.#done) return;
      try {
        this.begin();
      } catch (refusal) {
        this.#fail(upstreamError(refusal, false));
      }
    });
  }

  #fail(error: ProxyError): void {
    this.#done = true;
    this.#exchange.upstreamEndMs = this.#exchange.elapsedMs();
    this.#controller?.abort(error);
    this.#letGoOfContent();
    this.#tunnel?.destroy();
    this.#request.onFailure(error);
  }

  /** The client went away: without this a paused response would hold its upstream connection for ever. */
  abandon(): void {
    clearTimeout(this.#drain);
    if (this.#done) return;
    this.#request.upstream.withdraw(this);
    this.#done = true;
    this.#exchange.upstreamEndMs = this.#exchange.elapsedMs();
    this.#controller?.abort(new Error("the client has gone"));
    this.#letGoOfContent();
    this.#tunnel?.destroy();
  }

  #letGoOfContent(): void {
    if (this.#content !== undefined) this.#content.letGo();
    else if (this.#request.hasContent) this.#req.resume(); // it waited for a connection in vain
  }

  #hasContent(status: number, { contentLength }: ResponseHead): boolean {
    return this.#request.method !== "HEAD" && status !== 204 && status !== 304 && contentLength !== "0";
  }

  /** Whether the client's connection is free for another request once the response is out. */
  #requestIsRead(): boolean {
    return !this.#request.hasContent || this.#req.complete || this.#req.httpVersionMajor === 2;
  }
}

/** undici reads the reason phrase as UTF-8, where it is Latin-1; one that is not ASCII is left out (RFC 9112 §4). */
function plainReason(reason = ""): string {
  return /^[\t\x20-\x7e]*$/.test(reason) ? reason : "";
}

/** The octets of the response head. The parsed form that undici offers beside them has lost spelling and order. */
function rawHeaders(controller: Dispatcher.DispatchController | undefined): readonly (Buffer | string)[] {
  return Array.isArray(controller?.rawHeaders) ? controller.rawHeaders : [];
}

/** Each attempt is a span of its own, and what the application says belongs to the one that it answered. */
function replaceTraceParent(fields: string[], { traceId, upstreamSpanId, sampled }: Exchange): void {
  if (upstreamSpanId === undefined) return;
  for (let i = 0; i < fields.length; i += 2)
    if (fields[i] === "traceparent") fields[i + 1] = formatTraceParent(traceId, upstreamSpanId, sampled);
}

function removeContentLength(fields: string[]): void {
  for (let i = fields.length - 2; i >= 0; i -= 2) {
    if ((fields[i] as string).toLowerCase() === "content-length") fields.splice(i, 2);
  }
}
