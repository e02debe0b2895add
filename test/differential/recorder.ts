/** An upstream that keeps the octets of every connection as they came. */
import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { eventually, type Teardown } from "../support/resources.ts";
import { type RequestMessage, readRequests, valuesOf } from "./reader.ts";

/** The target of requests that ask whether the connections behind a proxy are sound. */
export const PROBE = "/probe-";

/** What the upstream sends when its answer is not the usual one. */
export interface Script {
  /** In the pieces in which it is sent. */
  readonly answer?: string | readonly string[] | undefined;
  readonly closes?: boolean | undefined;
}

interface Connection {
  readonly socket: Socket;
  octets: string;
  answered: number;
  continued: boolean;
  /** It sends nothing more: it has said nonsense, or was told to. */
  mute: boolean;
}

export class Recorder {
  readonly port: number;
  readonly #server: Server;
  readonly #open = new Set<Connection>();
  #seen: Connection[] = [];
  script: Script = {};
  /** Answers whose last piece is not out. */
  #sending = 0;
  /** Grows with everything that happens. */
  activity = 0;

  constructor(server: Server) {
    this.#server = server;
    this.port = (server.address() as AddressInfo).port;
    server.on("connection", (socket: Socket) => this.#serve(socket));
  }

  /** Forgets what was, and ends the connections that are open; resolves when the proxy has noticed. */
  async begin(script: Script): Promise<void> {
    await this.clear();
    this.script = script;
    this.#seen = [];
  }

  /** Forgets what was said on connections that are between two messages, and those that are closed. */
  forget(): void {
    this.#seen = this.#seen.filter((connection) => this.#open.has(connection));
    for (const connection of this.#seen) {
      const { rest, error } = readRequests(connection.octets);
      if (rest !== "" || error !== undefined) continue;
      connection.octets = "";
      connection.answered = 0;
    }
  }

  /** Until no connection is within a message; those that are must end. @throws Error after `timeoutMs`. */
  async atRest(timeoutMs: number): Promise<void> {
    const isWithin = ({ octets }: Connection) => readRequests(octets).rest !== "";
    await eventually("no request is cut off and held open", () => ![...this.#open].some(isWithin), timeoutMs, 2);
  }

  /** Until every piece of every answer is out. */
  async sent(): Promise<void> {
    while (this.#sending > 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  async clear(): Promise<void> {
    const closed = [...this.#open].map(({ socket }) => {
      socket.end();
      // Whoever does not notice the end is cut off.
      const timer = setTimeout(() => socket.destroy(), 1000);
      return new Promise<void>((resolve) => {
        socket.once("close", () => {
          clearTimeout(timer);
          resolve();
        });
      });
    });
    await Promise.all(closed);
  }

  /** The octets of each connection since `begin`, those of probes left out where a probe came alone. */
  get connections(): string[] {
    return this.#seen.map(({ octets }) => octets);
  }

  close(): void {
    for (const { socket } of this.#open) socket.destroy();
    this.#server.close();
  }

  #serve(socket: Socket): void {
    const connection: Connection = { socket, octets: "", answered: 0, continued: false, mute: false };
    this.#open.add(connection);
    this.#seen.push(connection);
    this.activity++;
    socket.setNoDelay(true);
    socket.on("error", () => {});
    socket.on("close", () => {
      this.#open.delete(connection);
      this.activity++;
    });
    socket.setEncoding("latin1").on("data", (piece: string) => {
      this.activity++;
      connection.octets += piece;
      this.#respond(connection);
    });
  }

  #respond(connection: Connection): void {
    if (connection.mute) return;
    const { messages, rest, error, headSeen } = readRequests(connection.octets);
    for (const request of messages.slice(connection.answered)) {
      connection.answered++;
      connection.continued = false;
      this.#answer(connection, request);
      if (connection.mute) return;
    }
    if (error !== undefined) {
      connection.mute = true;
      connection.socket.end("HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\nConnection: close\r\n\r\nmalformed");
    } else if (headSeen && !connection.continued && /\r\nexpect: 100-continue\r\n/i.test(rest)) {
      connection.continued = true;
      connection.socket.write("HTTP/1.1 100 Continue\r\n\r\n");
    }
  }

  #answer({ socket }: Connection, request: RequestMessage): void {
    const { answer, closes } = this.script;
    if (answer !== undefined && !request.target.startsWith(PROBE)) {
      this.#sending++;
      void sendPieces(socket, typeof answer === "string" ? [answer] : answer, closes === true).then(() => {
        this.#sending--;
      });
      return;
    }
    const content = `${request.method} ${request.target} ${request.body.length}`.slice(0, 200);
    const close = request.version === "HTTP/1.0" || /close/i.test(valuesOf(request.fields, "connection").join());
    socket.write(
      `HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${content.length}\r\n${close ? "Connection: close\r\n" : ""}\r\n` +
        (request.method === "HEAD" ? "" : content),
      "latin1",
    );
    if (close) socket.end();
  }
}

async function sendPieces(socket: Socket, pieces: readonly string[], closes: boolean): Promise<void> {
  for (const [i, piece] of pieces.entries()) {
    if (socket.destroyed) return;
    socket.write(piece, "latin1");
    if (i < pieces.length - 1) await new Promise((resolve) => setImmediate(resolve));
  }
  if (closes) socket.end();
}

export async function startRecorder(t: Teardown): Promise<Recorder> {
  const server = createServer({ noDelay: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const recorder = new Recorder(server);
  t.teardown(() => recorder.close());
  return recorder;
}
