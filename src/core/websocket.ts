import { createHash, randomBytes } from "node:crypto";
import { badRequest, ProxyError } from "./errors.ts";
import type { RequestHead } from "./request-head.ts";

/** What the gateway has to know of the WebSocket protocol: the handshake, where frames end, and how to say goodbye. */

/** Of a route: who may open one, and for how long it may be silent. */
export interface WebSocketPolicy {
  /** Beside the host's own: `scheme://host[:port]`, lower case, no default port. */
  readonly origins: ReadonlySet<string>;
  /** Without an octet in either direction, milliseconds. */
  readonly idleTimeoutMs: number;
}

/** Why a WebSocket was closed; the label of a metric and a field of the log. */
export const WEBSOCKET_CLOSE_REASONS = [
  /** The client closed it, or has gone. */
  "client",
  /** The application closed it, or its connection was lost. */
  "upstream",
  /** Nothing came from either side for `websockets.idleTimeout`. */
  "idle",
  /** The session was ended: by a logout, an operator or `maxPerUser`, here or at another instance. */
  "session-ended",
  /** The session was idle for too long, has reached its greatest age, or was replaced by a login. */
  "session-expired",
  /** A reload took its route away, sent it elsewhere, or takes no WebSockets there any more. */
  "route-changed",
  "shutdown",
] as const;
export type WebSocketCloseReason = (typeof WEBSOCKET_CLOSE_REASONS)[number];

/** @see https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1 */
export const CLOSE_CODES: Readonly<Record<Exclude<WebSocketCloseReason, "client" | "upstream">, number>> = {
  idle: 1001,
  "route-changed": 1001,
  shutdown: 1001,
  "session-ended": 1008,
  "session-expired": 1008,
};

/** RFC 6455 §1.3. */
const ACCEPT_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/** Sixteen octets in base64 (RFC 6455 §4.1). */
const KEY = /^[A-Za-z0-9+/]{21}[AQgw]==$/;
const SUPPORTED_VERSION = "13";

/** What `Sec-WebSocket-Accept` has to be for a key (RFC 6455 §4.2.2). */
export function acceptFor(key: string): string {
  return createHash("sha1")
    .update(key + ACCEPT_SUFFIX)
    .digest("base64");
}

/**
 * Checks the opening handshake of a client.
 * @param authority what the request is for: host, and port where it was said.
 * @param scheme as the client sees it.
 * @returns what the application has to answer with.
 * @throws ProxyError `http_request_error` (400, 426) for what is no handshake; `http_request_denied` (403) for a route
 *   that takes none, and for a page of another origin: the browser sends the session cookie along with it, whoever wrote
 *   the page, and no preflight asks before (cross-site WebSocket hijacking, CWE-1385).
 */
export function checkHandshake(
  policy: WebSocketPolicy | undefined,
  head: RequestHead,
  authority: string,
  scheme: "http" | "https",
): string {
  const [key, ...otherKeys] = valuesOf(head.kept, "sec-websocket-key");
  if (key === undefined || otherKeys.length > 0 || !KEY.test(key)) throw badRequest("not one valid Sec-WebSocket-Key");
  const versions = valuesOf(head.kept, "sec-websocket-version");
  if (versions.length !== 1 || versions[0] !== SUPPORTED_VERSION)
    throw badRequest("a Sec-WebSocket-Version other than 13", 426);
  if (policy === undefined) throw new ProxyError("http_request_denied", "the route takes no WebSockets");
  const origins = valuesOf(head.kept, "origin");
  if (origins.length > 0 && !(origins.length === 1 && isAllowed(origins[0] as string, policy, authority, scheme)))
    throw new ProxyError(
      "http_request_denied",
      "an Origin that is neither the host's own nor in websockets.origins of the route",
    );
  return acceptFor(key);
}

/** Whether a page of this origin may open a WebSocket here. */
export function isAllowed(
  origin: string,
  { origins }: Pick<WebSocketPolicy, "origins">,
  authority: string,
  scheme: "http" | "https",
): boolean {
  if (!/^https?:\/\/[^/?#@\\\s]+$/i.test(origin) || !URL.canParse(origin)) return false;
  const url = new URL(origin);
  if (origins.has(url.origin)) return true;
  // Whoever can change what is not encrypted must not speak for what is.
  if (scheme === "https" && url.protocol === "http:") return false;
  // Read with the scheme of the origin: a proxy in front may have taken the encryption off without telling.
  const own = `${url.protocol}//${authority}`;
  return URL.canParse(own) && new URL(own).host === url.host;
}

/**
 * Checks what an application says to a handshake: only who has read it can know the answer. Without this, one that
 * does not know the protocol, or obeys somebody else, becomes a tunnel past everything that the gateway does.
 * @throws ProxyError `http_upgrade_failed` (502).
 */
export function checkAnswer(
  fields: readonly string[],
  protocol: string | readonly string[] | undefined,
  accept: string,
): void {
  const accepts = valuesOf(fields, "sec-websocket-accept");
  if (String(protocol).toLowerCase() !== "websocket" || accepts.length !== 1 || accepts[0] !== accept)
    throw new ProxyError("http_upgrade_failed", "the upstream's 101 is no answer to this WebSocket handshake");
}

/** @param fields names and values in turn. @param name in lower case. */
function valuesOf(fields: readonly string[], name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i < fields.length; i += 2) {
    if ((fields[i] as string).toLowerCase() === name) values.push((fields[i + 1] as string).trim());
  }
  return values;
}

const OPCODE_CLOSE = 8;
const MASK_OCTETS = 4;
const LONGEST_SHORT = 125;

/** What the next octet is: the first of a frame, the one with the length, of a longer length, or of the rest. */
type Place = "start" | "length" | "more-length" | "rest";

/** Follows the frames of one direction, to know where one ends. It reads lengths only; what is said is not its affair. */
export class FrameTracker {
  /** Frames of messages that have begun, in whole or in parts; without pings, pongs and closes. */
  messageFrames = 0;
  /** A close frame has begun: nothing follows it (RFC 6455 §5.5.1). */
  sawClose = false;
  #place: Place = "start";
  /** Octets to come at this place. */
  #left = 0;
  #length = 0;
  #masked = false;

  /** Nothing is half said. */
  get atBoundary(): boolean {
    return this.#place === "start";
  }

  /**
   * Reads on.
   * @param onlyThisFrame stops where the frame ends that is under way.
   * @returns how many octets were read: all, but for `onlyThisFrame`.
   */
  read(chunk: Buffer, onlyThisFrame = false): number {
    let at = 0;
    while (at < chunk.length) {
      if (this.#place === "rest") {
        const step = Math.min(this.#left, chunk.length - at);
        at += step;
        this.#left -= step;
        if (this.#left === 0) this.#place = "start";
      } else this.#readHead(chunk[at++] as number);
      if (onlyThisFrame && this.#place === "start") break;
    }
    return at;
  }

  #readHead(octet: number): void {
    if (this.#place === "start") {
      const opcode = octet & 0x0f;
      if (opcode < OPCODE_CLOSE) this.messageFrames++;
      else if (opcode === OPCODE_CLOSE) this.sawClose = true;
      this.#place = "length";
    } else if (this.#place === "length") {
      this.#masked = (octet & 0x80) !== 0;
      const length = octet & 0x7f;
      this.#left = length > LONGEST_SHORT + 1 ? 8 : 2;
      this.#length = 0;
      if (length > LONGEST_SHORT) this.#place = "more-length";
      else this.#begin(length);
    } else {
      // Beyond 2^53 it is not exact, and never comes to its end anyway.
      this.#length = this.#length * 256 + octet;
      if (--this.#left === 0) this.#begin(this.#length);
    }
  }

  #begin(length: number): void {
    this.#left = length + (this.#masked ? MASK_OCTETS : 0);
    this.#place = this.#left === 0 ? "start" : "rest";
  }
}

/**
 * A close frame.
 * @param reason ASCII, at most 123 characters.
 * @param masked as a client has to (RFC 6455 §5.3).
 */
export function closeFrame(code: number, reason: string, masked: boolean): Buffer {
  const payload = Buffer.concat([Buffer.from([code >> 8, code & 0xff]), Buffer.from(reason, "latin1")]);
  const head = Buffer.from([0x80 | OPCODE_CLOSE, (masked ? 0x80 : 0) | payload.length]);
  if (!masked) return Buffer.concat([head, payload]);
  const mask = randomBytes(MASK_OCTETS);
  return Buffer.concat([head, mask, payload.map((octet, i) => octet ^ (mask[i % MASK_OCTETS] as number))]);
}
