import { createServer, IncomingMessage, type Server, type ServerOptions, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { type Conversation, LINGER_MS, problemBody } from "./answers.ts";
import { type ClientError, describeClientError, type Refusal } from "./core/client-error.ts";
import { Exchange } from "./core/exchange.ts";
import { methodLabel } from "./core/labels.ts";
import { describePeer, type Peer } from "./core/peer.ts";
import { newSpanId, newTraceId } from "./core/trace-context.ts";
import { type Gate, handle } from "./pipeline.ts";

/** Octets of a request head, and of a request line; larger ones get 431 and 414. */
const MAX_HEAD_BYTES = 32 * 1024;
/** A head must be complete within this time; contents only have to go on (`upstream.timeouts.idle`). */
const HEADERS_TIMEOUT_MS = 15_000;
/** Longer than the usual load balancer keeps its side, so that it is not we who close under a request. */
const KEEP_ALIVE_TIMEOUT_MS = 75_000;

/** Requests that may wait on one connection for the answers before theirs. */
const MAX_PIPELINED = 100;
/** Without progress on a connection whose answer is under way, its client has gone. */
const CLIENT_IDLE_TIMEOUT_MS = 60_000;

/** What is going on on one connection. */
interface Connection {
  readonly peer: Peer;
  /** Requests that were started and whose response is not out. */
  readonly running: Set<Conversation>;
  /** Pipelined requests whose turn has not come. */
  waiting: number;
  /** A later message was malformed: say so when the earlier answers are out. */
  refusal: Refusal | undefined;
}

/** How node reads messages here. */
export const HTTP_OPTIONS: ServerOptions = {
  maxHeaderSize: MAX_HEAD_BYTES,
  headersTimeout: HEADERS_TIMEOUT_MS,
  requestTimeout: 0,
  keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
  requireHostHeader: false, // checked with the rest of the target, where it gets a reason
  insecureHTTPParser: false,
  joinDuplicateHeaders: false,
  // A request that announces no content has none: node need not play the life of a stream for it.
  optimizeEmptyRequests: true,
};

export const CONNECT_REFUSAL: Refusal = { status: 405, message: "CONNECT is not forwarded" };

const VERSION_REFUSAL: Refusal = { status: 505, message: "neither HTTP/1.1 nor HTTP/1.0" };

/** The server that browsers reach. It takes care of connections and framing; `pipeline.ts` of everything else. */
export function createListener(gate: Gate): Server {
  const connections = new WeakMap<Socket, Connection>();
  const server = createServer(HTTP_OPTIONS);
  server.maxHeadersCount = 0; // none: core/request-head.ts counts

  const connectionOf = (socket: Socket): Connection => {
    let connection = connections.get(socket);
    if (connection === undefined) {
      const peer = describePeer(socket.remoteAddress, "encrypted" in socket, gate.trusted);
      connection = { peer, running: new Set(), waiting: 0, refusal: undefined };
      connections.set(socket, connection);
    }
    return connection;
  };

  const start = (req: IncomingMessage, res: ServerResponse, expectsContinue: boolean): void => {
    const connection = connectionOf(req.socket);
    // A pipelined request waits for the response before it, so that a POST cannot overtake.
    if (res.socket === null) {
      if (++connection.waiting > MAX_PIPELINED) refuseFlood(gate, req.socket, connection);
      res.once("socket", () => {
        connection.waiting--;
        start(req, res, expectsContinue);
      });
      return;
    }
    if (connection.refusal !== undefined && !req.complete) {
      // Its content is what was malformed: it will never be whole.
      refuse(gate, req.socket, connection, connection.refusal);
      return;
    }
    // llhttp reads a line without a version as HTTP/0.9, and one of HTTP/2.0 like any other.
    if (req.httpVersionMajor !== 1 && req instanceof IncomingMessage) {
      refuse(gate, req.socket, connection, VERSION_REFUSAL);
      return;
    }
    const exchange = openExchange(gate, req.method ?? "", versionOf(req), connection.peer);
    const conversation: Conversation = { req, res, peer: connection.peer, exchange, expectsContinue };
    connection.running.add(conversation);
    res.once("close", () => {
      connection.running.delete(conversation);
      conversation.onClose?.();
      closeExchange(gate, exchange, res.writableFinished);
      if (connection.refusal !== undefined && connection.running.size === 0)
        refuse(gate, req.socket, connection, connection.refusal);
    });
    handle(gate, conversation).catch((error: unknown) => gate.observer.log.unexpected(error, exchange));
  };

  server.timeout = CLIENT_IDLE_TIMEOUT_MS;
  server.on("timeout", (socket: Socket) => {
    const [current] = connectionOf(socket).running;
    // An answer that is yet to come is the upstream's affair; it has timeouts of its own.
    const waitsForUpstream = current !== undefined && !current.res.writableEnded && !current.res.writableNeedDrain;
    if (waitsForUpstream) socket.setTimeout(CLIENT_IDLE_TIMEOUT_MS);
    else socket.destroy();
  });
  server.on("request", (req, res) => start(req, res, false));
  server.on("checkContinue", (req, res) => start(req, res, true));
  server.on("checkExpectation", (req, res) => start(req, res, false));
  server.on("connect", (_req: IncomingMessage, socket: Socket) => {
    // Node has let go of this socket: without a listener its error would end the process.
    socket.on("error", () => socket.destroy());
    const connection = connectionOf(socket);
    if (connection.running.size === 0) {
      refuse(gate, socket, connection, CONNECT_REFUSAL);
      return;
    }
    connection.refusal = CONNECT_REFUSAL;
    // Nor does it read on, and would not see that the client leaves before its answers are out.
    socket.on("end", () => socket.destroy());
    socket.resume();
  });
  server.on("clientError", (error: ClientError, socket: Socket) => {
    const connection = connectionOf(socket);
    const refusal = describeClientError(error);
    const [current] = connection.running;
    if (refusal === undefined || !socket.writable) socket.destroy();
    else if (current === undefined) refuse(gate, socket, connection, refusal);
    else if (current.req.complete) connection.refusal = refusal;
    else if (current.exchange.endedMs !== undefined) current.res.end();
    else if (current.res.headersSent) socket.destroy();
    else {
      // The content of the request that is running is malformed: what went upstream of it is cut off.
      current.exchange.fail("http_request_error", refusal.message);
      current.exchange.status = refusal.status;
      current.onClose?.();
      writeRefusal(socket, refusal, current.exchange.traceId);
    }
  });
  return server;
}

/** Nearly always the same text: node makes a new one for each request, and records would keep it. */
function versionOf({ httpVersion }: IncomingMessage): string {
  return httpVersion === "1.1" ? "1.1" : httpVersion;
}

function openExchange(gate: Gate, method: string, httpVersion: string, peer: Peer): Exchange {
  const exchange = new Exchange({
    method,
    methodLabel: methodLabel(method),
    httpVersion,
    traceId: newTraceId(),
    spanId: newSpanId(),
  });
  exchange.scheme = peer.scheme;
  exchange.connectionScheme = peer.scheme;
  exchange.clientAddress = peer.address;
  gate.observer.started(exchange);
  return exchange;
}

function closeExchange(gate: Gate, exchange: Exchange, responseFinished: boolean): void {
  if (!responseFinished && exchange.error === undefined) {
    exchange.clientGone = true;
    exchange.status = 499;
  }
  exchange.endedMs ??= exchange.elapsedMs();
  const end = () => gate.observer.ended(exchange);
  if (exchange.pending === undefined) end();
  // Whoever waits for the same was there first, and has noted what came of it.
  else
    exchange.pending.then(
      () => setImmediate(end),
      () => setImmediate(end),
    );
}

/** Answers a message that never became a request, with a record of its own, and closes the connection. */
function refuse(gate: Gate, socket: Socket, connection: Connection, refusal: Refusal): void {
  if (!socket.writable) return;
  const exchange = openExchange(gate, "", "1.1", connection.peer);
  exchange.status = refusal.status;
  exchange.fail("http_request_error", refusal.message);
  writeRefusal(socket, refusal, exchange.traceId);
  closeExchange(gate, exchange, true);
}

/** Ends a connection on which too much waits: it would cost memory without an end. There is no place for an answer. */
function refuseFlood(gate: Gate, socket: Socket, connection: Connection): void {
  if (socket.destroyed) return;
  const exchange = openExchange(gate, "", "1.1", connection.peer);
  exchange.status = 429;
  exchange.fail("http_request_error", "too many pipelined requests");
  closeExchange(gate, exchange, true);
  socket.destroy();
}

/** Says why, and closes; a client that keeps its side open is not waited for. */
function writeRefusal(socket: Socket, { status }: Refusal, traceId: string): void {
  const body = problemBody(status, "http_request_error", traceId);
  socket.end(
    `HTTP/1.1 ${status} Refused\r\ndate: ${new Date().toUTCString()}\r\ncontent-type: application/problem+json\r\n` +
      `content-length: ${body.length}\r\nproxy-status: coatcheck; error=http_request_error\r\ncache-control: no-store\r\n` +
      `connection: close\r\n\r\n${body}`,
  );
  socket.resume();
  const linger = setTimeout(() => socket.destroy(), LINGER_MS).unref();
  socket.once("close", () => clearTimeout(linger));
}
