/** A client of HTTP/2 at the level of frames, for what no library would send. */
import { once } from "node:events";
import { connect, type TLSSocket } from "node:tls";

/** RFC 9113 §6. */
export const FRAME = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;
export const FLAG = { endStream: 1, ack: 1, endHeaders: 4 } as const;
/** RFC 9113 §7. */
export const CODE = {
  none: 0,
  protocolError: 1,
  internalError: 2,
  flowControlError: 3,
  refusedStream: 7,
  cancel: 8,
  enhanceYourCalm: 11,
} as const;

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

export function frame(type: number, flags: number, stream: number, payload: Buffer | string = ""): Buffer {
  const content = Buffer.from(payload as string, "latin1");
  const head = Buffer.alloc(9);
  head.writeUIntBE(content.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, content]);
}

/** A header block without compression: literals that are not indexed (RFC 7541 §6.2.2). @param fields names and values in turn. */
export function headerBlock(fields: readonly string[]): Buffer {
  const pieces: Buffer[] = [];
  for (let i = 0; i < fields.length; i += 2) {
    pieces.push(Buffer.from([0]), literal(fields[i] as string), literal(fields[i + 1] as string));
  }
  return Buffer.concat(pieces);
}

function literal(text: string): Buffer {
  const octets = Buffer.from(text, "latin1");
  if (octets.length < 127) return Buffer.concat([Buffer.from([octets.length]), octets]);
  const rest: number[] = [127];
  let left = octets.length - 127;
  for (; left >= 128; left >>= 7) rest.push((left & 127) | 128);
  return Buffer.concat([Buffer.from([...rest, left]), octets]);
}

export const uint32 = (value: number): Buffer => {
  const octets = Buffer.alloc(4);
  octets.writeUInt32BE(value);
  return octets;
};

/** The four pseudo-header fields of a plain GET. */
export const GET = [":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/"] as const;

export class FrameClient {
  readonly socket: TLSSocket;
  /** What came, but for SETTINGS and WINDOW_UPDATE. */
  readonly frames: Frame[] = [];
  closed = false;
  #rest = Buffer.alloc(0);
  #waiting: (() => void)[] = [];

  private constructor(socket: TLSSocket) {
    this.socket = socket;
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => this.#read(chunk));
    socket.on("close", () => {
      this.closed = true;
      this.#tell();
    });
  }

  /** Connects, and sends the preface and SETTINGS. */
  static async connect(port: number, ca: Buffer, settings: Buffer = Buffer.alloc(0)): Promise<FrameClient> {
    const socket = connect({ port, host: "127.0.0.1", ca, ALPNProtocols: ["h2"] });
    await once(socket, "secureConnect");
    const client = new FrameClient(socket);
    client.send(Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(FRAME.settings, 0, 0, settings));
    return client;
  }

  send(...frames: readonly Buffer[]): boolean {
    return this.socket.writable && this.socket.write(Buffer.concat(frames));
  }

  /** Opens a stream. @param fields names and values in turn, pseudo-header fields included. */
  request(stream: number, fields: readonly string[] = GET, flags: number = FLAG.endStream | FLAG.endHeaders): boolean {
    return this.send(frame(FRAME.headers, flags, stream, headerBlock(fields)));
  }

  /** Waits for a frame that fits, or for the end of the connection. */
  async until(fits: (frame: Frame) => boolean): Promise<Frame | undefined> {
    for (;;) {
      const found = this.frames.find(fits);
      if (found !== undefined || this.closed) return found;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  /** @returns the code by which a stream was reset, or "answered" for one that was not. */
  async outcome(stream: number): Promise<number | "answered" | "closed"> {
    const last = await this.until(
      ({ type, flags, stream: id }) =>
        id === stream &&
        (type === FRAME.reset || ((type === FRAME.headers || type === FRAME.data) && (flags & FLAG.endStream) !== 0)),
    );
    if (last === undefined) return "closed";
    return last.type === FRAME.reset ? last.payload.readUInt32BE(0) : "answered";
  }

  /** @returns the error code of GOAWAY, or undefined for a connection that ended without. */
  async goaway(): Promise<number | undefined> {
    return (await this.until(({ type }) => type === FRAME.goaway))?.payload.readUInt32BE(4);
  }

  /** @returns when the connection has ended. */
  async ended(): Promise<void> {
    await this.until(() => false);
  }

  #read(chunk: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, chunk]);
    for (;;) {
      if (this.#rest.length < 9) break;
      const end = 9 + this.#rest.readUIntBE(0, 3);
      if (this.#rest.length < end) break;
      const type = this.#rest.readUInt8(3);
      const read = {
        type,
        flags: this.#rest.readUInt8(4),
        stream: this.#rest.readUInt32BE(5) & 0x7fffffff,
        payload: this.#rest.subarray(9, end),
      };
      if (type !== FRAME.settings && type !== FRAME.windowUpdate) this.frames.push(read);
      this.#rest = this.#rest.subarray(end);
    }
    this.#tell();
  }

  #tell(): void {
    for (const go of this.#waiting.splice(0)) go();
  }
}
