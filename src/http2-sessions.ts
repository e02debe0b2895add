import { constants, performServerHandshake, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";
import type { ClientError, Refusal } from "./core/client-error.ts";
import { Http2Request, Http2Response } from "./http2-messages.ts";

/** Requests that one connection may have under way; browsers want a hundred. */
const MAX_CONCURRENT_STREAMS = 100;
/** Content that is received and not forwarded yet, octets: of one request, and of all requests of a connection. */
const STREAM_WINDOW_BYTES = 256 * 1024;
const CONNECTION_WINDOW_BYTES = 1024 * 1024;
/** What node may hold for one connection, in its own unit of a million octets; a stream beyond that is refused. */
const MAX_SESSION_MEMORY_MB = 10;

/**
 * More than is allowed, so that what is too much gets an answer and not a reset: the octets that nghttp2 takes in one
 * HEADERS frame and eight of CONTINUATION, after which it gives up the connection (CVE-2024-28182).
 */
const RECEIVED_HEAD_BYTES = 9 * 16 * 1024;
const RECEIVED_FIELDS_FACTOR = 2;

/** How long a connection that was told to go may take. */
const GOING_TIMEOUT_MS = 1_000;

/** PING and SETTINGS frames that a client may send within ten seconds (CVE-2019-9512, CVE-2019-9515). */
const MAX_CONTROL_FRAMES = 100;
const CONTROL_WINDOW_MS = 10_000;
const TOO_MANY_CONTROL_FRAMES = "too many HTTP/2 control frames";
/** Malformed requests and frames of one connection. Each makes us reset a stream, which costs its client nothing (CVE-2025-8671). */
const MAX_INVALID_FRAMES = 100;

export interface Http2Options {
  /** Of a request head. Whoever takes the request says so when it is larger; a stream that goes far beyond is reset. */
  readonly maxHeadBytes: number;
  /** Header fields of a request; likewise. */
  readonly maxFields: number;
  /** A connection without a first request is closed after this. */
  readonly headTimeoutMs: number;
  /** One without a request under way, whatever else its client says. */
  readonly idleTimeoutMs: number;
  /** A response whose client reads nothing is reset after this. */
  readonly sendTimeoutMs: number;
  /** A request has arrived. */
  readonly onRequest: (socket: Socket, req: Http2Request, res: Http2Response) => void;
  /** @returns whether connections are to go elsewhere. */
  readonly isDraining: () => boolean;
  /** A connection was ended because of what its client sent; there is no place for an answer. */
  readonly onRefused: (socket: Socket, refusal: Refusal) => void;
}

/** The connections on which clients speak HTTP/2. */
export class Http2Sessions {
  readonly #options: Http2Options;
  readonly #sessions = new Set<Http2Connection>();

  constructor(options: Http2Options) {
    this.#options = options;
  }

  /** Takes over a connection whose client chose `h2`. */
  accept(socket: Socket): void {
    const connection = new Http2Connection(socket, this.#options, () => this.#sessions.delete(connection));
    this.#sessions.add(connection);
  }

  /** Tells all clients to go: what is under way goes on, and nothing new begins. */
  close(): void {
    for (const session of this.#sessions) session.close();
  }
}

class Http2Connection {
  readonly #socket: Socket;
  readonly #session: ServerHttp2Session;
  readonly #options: Http2Options;
  #idle: NodeJS.Timeout;
  #hasBegun = false;
  #streams = 0;
  #controlFrames = 0;
  #controlSince = 0;

  constructor(socket: Socket, options: Http2Options, onClosed: () => void) {
    this.#socket = socket;
    this.#options = options;
    const session = performServerHandshake(socket, {
      settings: {
        maxConcurrentStreams: MAX_CONCURRENT_STREAMS,
        initialWindowSize: STREAM_WINDOW_BYTES,
        maxHeaderListSize: Math.max(RECEIVED_HEAD_BYTES, options.maxHeadBytes),
      },
      maxHeaderListPairs: RECEIVED_FIELDS_FACTOR * options.maxFields,
      maxSessionMemory: MAX_SESSION_MEMORY_MB,
      maxSettings: 32,
      maxOutstandingPings: 10,
      maxSessionInvalidFrames: MAX_INVALID_FRAMES,
      maxSessionRejectedStreams: 100,
      // A client that resets what it asked for costs more than it pays (CVE-2023-44487).
      streamResetBurst: 300,
      streamResetRate: 33,
      // The application may send a field more often than node would.
      strictSingleValueFields: false,
    });
    this.#session = session;
    this.#idle = setTimeout(() => this.#onIdle(), options.headTimeoutMs).unref();
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
    session.on("stream", (stream, _headers, flags, raw) => this.#start(stream as ServerHttp2Stream, flags, raw));
    session.on("ping", () => this.#countControlFrame());
    session.on("remoteSettings", () => this.#countControlFrame());
    session.on("error", (error: ClientError & { syscall?: string }) => {
      // A connection that was lost is nobody's fault; its requests are recorded as such.
      if (error.syscall === undefined) options.onRefused(socket, describeHttp2Error(error));
    });
    session.once("close", () => {
      clearTimeout(this.#idle);
      onClosed();
    });
  }

  /**
   * GOAWAY with the last stream that was begun, and the end when the last one has ended. What the client has sent behind
   * that was not begun, and it may send it again elsewhere, whatever it is (RFC 9113 §6.8, §8.7). The notice that the RFC
   * advises to send before, with stream 2^31-1, is not to be had of node: after any GOAWAY of its, new streams are ignored.
   */
  close(): void {
    if (!this.#session.closed && !this.#session.destroyed) this.#session.close();
  }

  #start(stream: ServerHttp2Stream, flags: number, raw: readonly string[]): void {
    if (!this.#hasBegun) {
      this.#hasBegun = true;
      clearTimeout(this.#idle);
      this.#idle = setTimeout(() => this.#onIdle(), this.#options.idleTimeoutMs).unref();
    }
    const endStream = (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0;
    this.#streams++;
    stream.once("close", () => this.#ended());
    const req = new Http2Request(stream, raw, endStream);
    this.#options.onRequest(
      this.#socket,
      req,
      new Http2Response(stream, req.method === "HEAD", this.#options.sendTimeoutMs),
    );
  }

  #ended(): void {
    this.#streams--;
    this.#idle.refresh();
    if (this.#options.isDraining()) this.close();
  }

  #countControlFrame(): void {
    const now = performance.now();
    if (now - this.#controlSince > CONTROL_WINDOW_MS) {
      this.#controlSince = now;
      this.#controlFrames = 0;
    }
    if (++this.#controlFrames > MAX_CONTROL_FRAMES && !this.#session.destroyed)
      this.#session.destroy(new Error(TOO_MANY_CONTROL_FRAMES), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #onIdle(): void {
    if (this.#streams > 0) return;
    this.close();
    setTimeout(() => this.#session.destroy(), GOING_TIMEOUT_MS).unref();
  }
}

function describeHttp2Error({ code, message }: ClientError): Refusal {
  if (message === TOO_MANY_CONTROL_FRAMES) return { status: 429, message, limit: "http2-frames" };
  if (code === "ERR_HTTP2_TOO_MANY_INVALID_FRAMES")
    return { status: 429, message: "too many malformed HTTP/2 frames", limit: "http2-frames" };
  return { status: 400, message: `malformed HTTP/2 (${message})` };
}
