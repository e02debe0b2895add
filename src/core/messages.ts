import type { Socket } from "node:net";
import type { Readable, Writable } from "node:stream";

/**
 * A request and its response as everything behind the listener sees them. HTTP/1.x has node's own `IncomingMessage` and
 * `ServerResponse`, HTTP/2 the adapters of `http2-messages.ts`.
 */

export interface ClientRequest extends Readable {
  readonly httpVersionMajor: number;
  readonly method?: string | undefined;
  /** The request target. */
  readonly url?: string | undefined;
  /** Names and values in turn, as sent, with `host`. */
  readonly rawHeaders: readonly string[];
  /** Whether all of it has arrived. */
  readonly complete: boolean;
}

export interface ClientResponse extends Writable {
  /** The connection that ends with this response if the head says so; absent in HTTP/2, where streams end. */
  readonly socket?: Socket | null;
  readonly headersSent: boolean;
  /** @param fields names and values in turn. */
  writeHead(status: number, reason: string, fields: string[]): unknown;
  /** Sends 100 (Continue). */
  writeContinue(): void;
  /** Sends an interim head; absent in older versions of Node (24.21 and 26.2 have it). @param status 102 to 199. @param fields names and values in turn, ASCII. */
  writeInformation?(status: number, fields: string[]): unknown;
  /** What follows the content, where its length was not told; otherwise it is left out. */
  addTrailers(fields: readonly [name: string, value: string][]): void;
  /** Sends the head before there is any content. */
  flushHeaders(): void;
}
