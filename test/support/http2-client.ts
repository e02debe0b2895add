/** Requests over node's HTTP/2 client. */
import { type ClientHttp2Session, type ClientHttp2Stream, connect } from "node:http2";
import type { Teardown } from "./resources.ts";

export interface Http2Reply {
  readonly status: number;
  /** Names and values in turn. */
  readonly rawHeaders: readonly string[];
  readonly headers: NodeJS.Dict<string | string[]>;
  readonly body: string;
  /** Names and values in turn. */
  readonly trailers: readonly string[];
  readonly interim: readonly number[];
}

/** A connection that trusts `ca` and ends with the test. */
export function http2Connect(t: Teardown, url: string, ca: Buffer): ClientHttp2Session {
  const session = connect(url, { ca });
  session.on("error", () => {});
  t.teardown(() => session.destroy());
  return session;
}

export interface Http2Ask {
  readonly body?: string | Buffer;
  /** Keeps the request open: the caller ends it. */
  readonly onStream?: (stream: ClientHttp2Stream) => void;
}

/** One request. Rejects when the stream is reset or its session ends. @param fields pseudo-header fields may be left out. */
export function http2Ask(
  session: ClientHttp2Session,
  fields: Record<string, string | string[]> = {},
  { body, onStream }: Http2Ask = {},
): Promise<Http2Reply> {
  return new Promise((resolve, reject) => {
    const stream = session.request(fields, { endStream: body === undefined && onStream === undefined });
    const interim: number[] = [];
    let head: { headers: NodeJS.Dict<string | string[]>; raw: readonly string[] } | undefined;
    let trailers: readonly string[] = [];
    let text = "";
    stream.setEncoding("latin1");
    stream.on("headers", (headers) => interim.push(Number(headers[":status"])));
    stream.on("response", (headers, _flags, raw) => {
      head = { headers: headers as NodeJS.Dict<string | string[]>, raw };
    });
    stream.on("trailers", (_headers, _flags, raw: readonly string[]) => {
      trailers = raw;
    });
    stream.on("data", (piece: string) => {
      text += piece;
    });
    stream.on("error", reject);
    stream.on("close", () => {
      if (head === undefined || stream.rstCode !== 0 || !stream.readableEnded)
        reject(new Error(`the stream was closed with ${stream.rstCode}`));
      else
        resolve({
          status: Number(head.headers[":status"]),
          rawHeaders: head.raw,
          headers: head.headers,
          body: text,
          trailers,
          interim,
        });
    });
    if (onStream !== undefined) onStream(stream);
    else if (body !== undefined) stream.end(body);
  });
}
