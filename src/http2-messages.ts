import { constants, type ServerHttp2Stream } from "node:http2";
import { Readable, Writable } from "node:stream";
import type { ClientRequest, ClientResponse } from "./core/messages.ts";

/** An HTTP/2 stream in the form of an HTTP/1.1 request and its response, so that there is one way through the gateway. */

/** An expectation of 100 (Continue) cannot be met any more when the content is there. */
const CONTINUE = /^100-continue$/i;

/** `: ` and the end of the line. */
const FIELD_OVERHEAD = 4;

/** What the client sends on one stream. */
export class Http2Request extends Readable implements ClientRequest {
  readonly httpVersionMajor = 2;
  readonly method: string;
  readonly url: string;
  readonly scheme: string;
  readonly rawHeaders: string[] = [];
  /** Octets of the request head, as many as they would be in HTTP/1.1. */
  headBytes = 0;
  complete: boolean;
  expectsContinue = false;
  readonly #stream: ServerHttp2Stream;

  /**
   * @param raw names and values in turn, pseudo-header fields included. nghttp2 has checked by RFC 9113 §8.2 and §8.3
   *   that those that must be there are, once, in front and not empty; that no name has an upper-case letter and no field
   *   is about the connection; and it checks that the content is as long as `content-length` says.
   * @param endStream whether no content follows.
   */
  constructor(stream: ServerHttp2Stream, raw: readonly string[], endStream: boolean) {
    super();
    this.#stream = stream;
    this.complete = endStream;
    let [method, path, scheme, authority] = ["", "", "", undefined as string | undefined];
    let hasLength = false;
    for (let i = 0; i < raw.length; i += 2) {
      const name = raw[i] as string;
      const value = raw[i + 1] as string;
      this.headBytes += name.length + value.length + FIELD_OVERHEAD;
      if (name === ":method") method = value;
      else if (name === ":path") path = value;
      else if (name === ":scheme") scheme = value;
      else if (name === ":authority") {
        authority = value;
        this.rawHeaders.push("host", value);
      } else if (name.startsWith(":")) continue;
      // Where they differ (RFC 9113 §8.3.1), two Hosts are left, and are refused as in HTTP/1.1.
      else if (name !== "host" || value !== authority) {
        this.rawHeaders.push(name, value);
        if (name === "content-length") hasLength = true;
        else if (name === "expect") this.expectsContinue = !endStream && CONTINUE.test(value);
      }
    }
    // What HTTP/2 says by its frames, HTTP/1.1 has to say in a field.
    if (!endStream && !hasLength) this.rawHeaders.push("transfer-encoding", "chunked");
    this.method = method;
    this.url = path;
    this.scheme = scheme;
    // Like node's: whoever listens hears of a client that has gone, and nobody has to.
    this.on("error", () => {});
    if (endStream) stream.resume();
    else this.#receive();
  }

  #receive(): void {
    const stream = this.#stream;
    stream.pause();
    stream.on("data", (chunk: Buffer) => {
      if (!this.push(chunk)) stream.pause();
    });
    stream.once("end", () => {
      // A reset ends the stream as well.
      if (stream.aborted || stream.rstCode !== constants.NGHTTP2_NO_ERROR) this.#lose();
      else {
        this.complete = true;
        this.push(null);
      }
    });
    stream.once("aborted", () => this.#lose());
    stream.once("close", () => this.#lose());
  }

  #lose(): void {
    if (!this.complete) this.destroy(Object.assign(new Error("aborted"), { code: "ECONNRESET" }));
  }

  override _read(): void {
    if (this.complete) this.push(null);
    else this.#stream.resume();
  }
}

/** What the client gets on one stream. Cut short, it is reset, so that it is seen as cut short. */
export class Http2Response extends Writable implements ClientResponse {
  headersSent = false;
  readonly #stream: ServerHttp2Stream;
  /** For a HEAD, and with 204 and 304: the stream has ended with the head. */
  #bodiless: boolean;
  /** The stream was told that nothing follows. */
  #ended = false;
  /** Of unknown length: the end goes out by itself, with these fields. */
  #trailers: Record<string, string | string[]> | undefined;
  #onTrailersSent: (() => void) | undefined;
  readonly #sendTimeoutMs: number;

  /**
   * @param isHead whether the request is a HEAD, whose answer has no content whatever its head says.
   * @param sendTimeoutMs how long a client may read nothing of what waits for it.
   */
  constructor(stream: ServerHttp2Stream, isHead: boolean, sendTimeoutMs: number) {
    super();
    this.#stream = stream;
    this.#sendTimeoutMs = sendTimeoutMs;
    this.#bodiless = isHead;
    stream.on("error", () => {});
    this.on("error", () => {});
    // The first is when a client resets the stream whose content is still to be read, the second in all other cases.
    stream.once("aborted", () => this.destroy());
    stream.once("close", () => this.destroy());
  }

  writeHead(status: number, _reason: string, fields: readonly string[]): this {
    if (this.#isGone()) return this;
    const stream = this.#stream;
    if (status === 204 || status === 304) this.#bodiless = true;
    this.headersSent = true;
    const head = [":status", String(status)];
    let hasLength = false;
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i] as string;
      // What is about a connection is not for HTTP/2 (RFC 9113 §8.2.2).
      if (name === "connection") continue;
      if (name.length === 14 && name.toLowerCase() === "content-length") hasLength = true;
      head.push(name, fields[i + 1] as string);
    }
    // Node ends a stream before it resets it, and a client that knows no length would take that for the end.
    const waitForTrailers = !hasLength && !this.#bodiless;
    stream.respond(head, { endStream: this.#bodiless, waitForTrailers });
    if (waitForTrailers) {
      this.#trailers = {};
      stream.once("wantTrailers", () => this.#sendTrailers());
    }
    if (!this.#bodiless) this.#expectReading();
    return this;
  }

  writeContinue(): void {
    this.writeInformation(100, []);
  }

  /** @param status 100 to 199, but for 101, which HTTP/2 does not have. @param fields names and values in turn. */
  writeInformation(status: number, fields: readonly string[]): void {
    if (!this.#isGone()) this.#stream.additionalHeaders({ ":status": status, ...gathered(fields) });
  }

  addTrailers(fields: readonly [name: string, value: string][]): void {
    if (this.#trailers !== undefined) this.#trailers = gathered(fields.flat());
  }

  #sendTrailers(): void {
    if (this.#isGone()) return;
    this.#stream.sendTrailers(this.#trailers ?? {});
    this.#trailers = undefined;
    this.#onTrailersSent?.();
  }

  /** The head went out when it was written. */
  flushHeaders(): void {}

  #isGone(): boolean {
    return this.destroyed || this.#stream.destroyed || this.#stream.closed;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#bodiless) done();
    else if (this.writableEnded && this.writableLength === chunk.length) {
      // The last of it goes into one frame with the end.
      this.#ended = true;
      this.#stream.end(chunk, () => done());
    } else this.#stream.write(chunk, done);
  }

  /**
   * A client that opens no window would keep here for ever what it has asked for (CVE-2019-9517). Node begins the time anew
   * with each frame that goes out; what the application has not said yet is not the client's fault.
   */
  #expectReading(): void {
    const stream = this.#stream;
    stream.setTimeout(this.#sendTimeoutMs);
    stream.on("timeout", () => {
      if (this.writableLength > 0 || this.writableEnded) this.destroy();
      else stream.setTimeout(this.#sendTimeoutMs);
    });
  }

  override _final(done: (error?: Error | null) => void): void {
    if (this.#bodiless || (this.#ended && this.#trailers === undefined)) done();
    else if (this.#trailers !== undefined) {
      this.#onTrailersSent = done;
      if (!this.#ended) this.#stream.end();
    } else this.#stream.end(() => done());
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    const stream = this.#stream;
    if (!this.writableFinished) stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    // Nobody reads the rest of the request (RFC 9113 §8.1).
    else if (!stream.readableEnded && !stream.endAfterHeaders) {
      stream.close(constants.NGHTTP2_NO_ERROR);
      // What has arrived of it would keep the stream, and with it the connection, from ever being over.
      stream.removeAllListeners("data");
      stream.resume();
    }
    done(error);
  }
}

/** @param fields names and values in turn. */
function gathered(fields: readonly string[]): Record<string, string | string[]> {
  const all: Record<string, string | string[]> = {};
  for (let i = 0; i < fields.length; i += 2) {
    const name = (fields[i] as string).toLowerCase();
    const value = fields[i + 1] as string;
    const before = all[name];
    all[name] = before === undefined ? value : ([] as string[]).concat(before, value);
  }
  return all;
}
