import {
  createServer,
  type IncomingMessage,
  METHODS,
  type Server,
  type ServerOptions,
  ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { Socket } from "node:net";
import { TLSSocket, type TlsOptions, Server as TlsServer } from "node:tls";
import { type Conversation, fail, ownMessage, reasonOf } from "./answers.ts";
import { asksForWebSocket, ClientUpgrade, hasContent } from "./client-upgrade.ts";
import type { LimitsConfig } from "./config/limits.ts";
import { type ClientError, describeClientError, type Refusal } from "./core/client-error.ts";
import { badRequest, ProxyError } from "./core/errors.ts";
import { Exchange } from "./core/exchange.ts";
import { handshakeFailure } from "./core/handshake-failure.ts";
import { methodLabel } from "./core/labels.ts";
import { endLingering } from "./core/linger.ts";
import type { ClientRequest, ClientResponse } from "./core/messages.ts";
import { isForPerson } from "./core/navigation.ts";
import { describePeer, type Encryption, type Peer, type TrustedProxies } from "./core/peer.ts";
import { newSpanId, newTraceId } from "./core/trace-context.ts";
import type { Generations } from "./generation.ts";
import type { Http2Request } from "./http2-messages.ts";
import { Http2Sessions } from "./http2-sessions.ts";
import type { ConnectionCare } from "./listening.ts";
import { type Gate, handle } from "./pipeline.ts";

/** What is going on on one connection. */
interface Connection {
  peer: Peer;
  /** Who was believed when the peer was described. */
  trusted: TrustedProxies;
  /** Requests that were started and whose response is not out. */
  readonly running: Set<Conversation>;
  /** Pipelined requests whose turn has not come. */
  waiting: number;
  /** A later message was malformed: say so when the earlier answers are out. */
  refusal: Refusal | undefined;
}

/** How often node looks for heads that have taken too long, at most. */
const MAX_HEAD_CHECK_MS = 2_000;

/** How node reads messages here. */
export function httpOptions({ head, idleTimeoutMs }: LimitsConfig): ServerOptions {
  return {
    maxHeaderSize: head.maxBytes,
    headersTimeout: head.timeoutMs,
    connectionsCheckingInterval: Math.min(MAX_HEAD_CHECK_MS, Math.ceil(head.timeoutMs / 4)),
    requestTimeout: 0,
    keepAliveTimeout: idleTimeoutMs,
    requireHostHeader: false, // checked with the rest of the target, where it gets a reason
    insecureHTTPParser: false,
    joinDuplicateHeaders: false,
    // A request that announces no content has none: node need not play the life of a stream for it.
    optimizeEmptyRequests: true,
  };
}

export const CONNECT_REFUSAL: Refusal = { status: 405, message: "CONNECT is not forwarded" };
const UPGRADE_REFUSAL: Refusal = { status: 501, message: "an upgrade with content, or behind another request" };
const VERSION_REFUSAL: Refusal = { status: 505, message: "neither HTTP/1.1 nor HTTP/1.0" };

/** Those that node reads in HTTP/1.1. */
const KNOWN_METHODS: ReadonlySet<string> = new Set(METHODS);

export interface ListenerOptions {
  /** Absent: no TLS. */
  readonly tls?: { readonly options: TlsOptions; readonly http2: boolean };
  /** What becomes of a request; by default the way of `pipeline.ts`. */
  readonly respond?: (gate: Gate, conversation: Conversation) => Promise<void>;
}

export interface Listener {
  readonly server: Server;
  /** How its connections end, but for WebSockets. */
  readonly care: ConnectionCare;
}

/**
 * The server that browsers reach. It takes care of connections and framing; `pipeline.ts` of everything else.
 * @param generations whose current one is that of a request for as long as it lives.
 */
export function createListener(generations: Generations, options: ListenerOptions = {}): Listener {
  const { tls, respond = handle } = options;
  /** For what belongs to no request, or does not change. */
  const currentGate = (): Gate => generations.current.gate;
  const { observer, isDraining, limits, connections: allConnections } = currentGate();
  const strictTransportOf = (gate: Gate) => (tls === undefined ? undefined : gate.strictTransport);
  const connections = new WeakMap<Socket, Connection>();
  const open = new Set<Connection>();
  /** What node does not read on from behind, whether or not it is granted. */
  const upgrades = new WeakSet<IncomingMessage>();
  const serverOptions: ServerOptions = {
    ...httpOptions(limits),
    shouldUpgradeCallback: (req) => {
      // Behind another request it would have to wait for that one's response, and nobody does so.
      const { running, waiting } = connectionOf(req.socket);
      const isGranted = respond === handle && running.size === 0 && waiting === 0 && asksForWebSocket(req);
      if (!isGranted) upgrades.add(req);
      return isGranted;
    },
  };
  const server =
    tls === undefined
      ? createServer(serverOptions)
      : createTlsServer({ ...serverOptions, ...tls.options, handshakeTimeout: limits.head.timeoutMs });
  server.maxHeadersCount = 0; // none: core/request-head.ts counts
  // Before node makes anything of a connection.
  const [serve] = server.listeners("connection");
  server.removeAllListeners("connection");
  server.on("connection", (socket: Socket) => {
    if (allConnections.admit(socket)) serve?.call(server, socket);
  });

  const connectionOf = (socket: Socket): Connection => {
    const { trusted } = currentGate();
    let connection = connections.get(socket);
    if (connection === undefined) {
      const peer = describePeer(socket.remoteAddress, encryptionOf(socket), trusted);
      connection = { peer, trusted, running: new Set(), waiting: 0, refusal: undefined };
      connections.set(socket, connection);
      const opened = connection;
      open.add(opened);
      socket.once("close", () => open.delete(opened));
    } else if (connection.trusted !== trusted) {
      connection.trusted = trusted;
      connection.peer = describePeer(socket.remoteAddress, encryptionOf(socket), trusted);
    }
    return connection;
  };

  /** Answers a message that never became a request, with a record of its own, and closes the connection. */
  const refuse = (socket: Socket, connection: Connection, refusal: Refusal): void => {
    if (!socket.writable) return;
    const gate = currentGate();
    const exchange = openExchange(gate, "", "1.1", connection.peer);
    exchange.status = refusal.status;
    exchange.fail("http_request_error", refusal.message, refusal.limit);
    const { errorPages } = gate;
    writeRefusal({ errorPages, strictTransport: strictTransportOf(gate) }, socket, refusal, exchange);
    closeExchange(gate, exchange, true);
  };

  const begin = (
    socket: Socket,
    req: ClientRequest,
    res: ClientResponse,
    httpVersion: string,
    expectsContinue: boolean,
    upgrade?: ClientUpgrade,
  ): Conversation => {
    const connection = connectionOf(socket);
    const generation = generations.current;
    const { gate } = generation;
    generation.begin();
    const exchange = openExchange(gate, req.method ?? "", httpVersion, connection.peer);
    const conversation: Conversation = {
      req,
      res,
      peer: connection.peer,
      exchange,
      strictTransport: strictTransportOf(gate),
      errorPages: gate.errorPages,
      expectsContinue,
      upgrade,
    };
    connection.running.add(conversation);
    res.once("close", () => {
      connection.running.delete(conversation);
      conversation.onClose?.();
      generation.end();
      closeExchange(gate, exchange, res.writableFinished);
      if (connection.refusal !== undefined && connection.running.size === 0)
        refuse(socket, connection, connection.refusal);
    });
    return conversation;
  };

  const run = (conversation: Conversation): void => {
    // In the same turn as it began: the same generation.
    respond(currentGate(), conversation).catch((error: unknown) =>
      observer.log.unexpected(error, conversation.exchange),
    );
  };

  const start = (req: IncomingMessage, res: ServerResponse, expectsContinue: boolean): void => {
    const connection = connectionOf(req.socket);
    // A pipelined request waits for the response before it, so that a POST cannot overtake.
    if (res.socket === null) {
      if (++connection.waiting > limits.maxPipelined) refuseFlood(currentGate(), req.socket, connection);
      res.once("socket", () => {
        connection.waiting--;
        start(req, res, expectsContinue);
      });
      return;
    }
    // What a client sends behind a response that ends the connection is no request.
    if (req.socket.writableEnded) return;
    if (connection.refusal !== undefined && !req.complete) {
      // Its content is what was malformed: it will never be whole.
      refuse(req.socket, connection, connection.refusal);
      return;
    }
    // llhttp reads a line without a version as HTTP/0.9, and one of HTTP/2.0 like any other.
    if (req.httpVersionMajor !== 1) {
      refuse(req.socket, connection, VERSION_REFUSAL);
      return;
    }
    // Node drops what is behind an upgrade in the same packet, so the client is told that nothing else was read.
    const isLast = req.headers.upgrade !== undefined && upgrades.has(req);
    if (isLast || isDraining()) res.shouldKeepAlive = false;
    run(begin(req.socket, req, res, versionOf(req), expectsContinue));
  };

  const startUpgrade = (req: IncomingMessage, socket: Socket, octets: Buffer): void => {
    socket.on("error", () => socket.destroy());
    if (socket.writableEnded) {
      socket.resume();
      return;
    }
    const { running } = connectionOf(socket);
    // Before Node 24.9, those that are not granted come this way too.
    if (running.size > 0 || hasContent(req)) {
      refuse(socket, connectionOf(socket), UPGRADE_REFUSAL);
      return;
    }
    const upgrade = new ClientUpgrade(req, socket, octets);
    const isGranted = respond === handle && asksForWebSocket(req);
    run(begin(socket, req, upgrade.res, versionOf(req), false, isGranted ? upgrade : undefined));
  };

  const http2 = new Http2Sessions({
    maxHeadBytes: limits.head.maxBytes,
    maxFields: limits.head.maxFields,
    headTimeoutMs: limits.head.timeoutMs,
    idleTimeoutMs: limits.idleTimeoutMs,
    sendTimeoutMs: limits.sendTimeoutMs,
    onRequest: (socket, req, res) => {
      const conversation = begin(socket, req, res, "2", req.expectsContinue);
      const problem = http2Problem(req, limits.head.maxBytes);
      if (problem === undefined) run(conversation);
      else fail(conversation, problem, observer);
    },
    isDraining,
    onRefused: (socket, refusal) => record(currentGate(), connectionOf(socket), "2", refusal),
  });
  if (server instanceof TlsServer) {
    // Node's own, which reads HTTP/1.1 from every connection.
    const [serveHttp1] = server.listeners("secureConnection");
    server.removeAllListeners("secureConnection");
    server.on("secureConnection", (socket: TLSSocket) => {
      if (socket.alpnProtocol === "h2") http2.accept(socket);
      else serveHttp1?.call(server, socket);
    });
    server.on("tlsClientError", (error: ClientError) => observer.metrics.handshakeFailed(handshakeFailure(error.code)));
  }

  /** The gateway ends, and these requests have not: who waits is told where that is possible, and the record says so. */
  const cut = (): number => {
    let requests = 0;
    for (const { running } of open) {
      for (const conversation of running) {
        const { res, exchange, onClose } = conversation;
        // Answered, and read on from for a moment.
        if (exchange.endedMs !== undefined) continue;
        requests++;
        onClose?.();
        if (res instanceof ServerResponse) res.shouldKeepAlive = false;
        fail(conversation, new ProxyError("proxy_shutdown", "it had not ended within shutdown.timeout"), observer);
      }
    }
    return requests;
  };

  server.timeout = limits.sendTimeoutMs;
  server.on("timeout", (socket: Socket) => {
    const [current] = connectionOf(socket).running;
    // An answer that is yet to come is the upstream's affair; it has timeouts of its own.
    const waitsForUpstream = current !== undefined && !current.res.writableEnded && !current.res.writableNeedDrain;
    if (waitsForUpstream) socket.setTimeout(limits.sendTimeoutMs);
    else socket.destroy();
  });
  server.on("request", (req, res) => start(req, res, false));
  server.on("checkContinue", (req, res) => start(req, res, true));
  server.on("checkExpectation", (req, res) => start(req, res, false));
  server.on("upgrade", startUpgrade);
  server.on("connect", (_req: IncomingMessage, socket: Socket) => {
    // Node has let go of this socket: without a listener its error would end the process.
    socket.on("error", () => socket.destroy());
    const connection = connectionOf(socket);
    if (connection.running.size === 0) {
      refuse(socket, connection, CONNECT_REFUSAL);
      return;
    }
    connection.refusal = CONNECT_REFUSAL;
    // Nor does it read on, and would not see that the client leaves before its answers are out.
    socket.on("end", () => socket.destroy());
    socket.resume();
  });
  server.on("clientError", (error: ClientError, socket: Socket) => {
    // It has had its last answer, which is still to be read; `linger.ts` sees to its end.
    if (socket.writableEnded) return;
    const connection = connectionOf(socket);
    const refusal = describeClientError(error);
    const [current] = connection.running;
    // A browser connects in advance, and may never ask: nothing is told of such a connection, neither here nor to it.
    const isSilent = socket.bytesRead === 0;
    if (refusal === undefined || isSilent || !socket.writable) socket.destroy();
    else if (current === undefined) refuse(socket, connection, refusal);
    else if (current.req.complete) connection.refusal = refusal;
    else if (current.res.headersSent) socket.destroy();
    else {
      // The content of the request that is running is malformed: what went upstream of it is cut off.
      current.exchange.fail("http_request_error", refusal.message, refusal.limit);
      current.exchange.status = refusal.status;
      current.onClose?.();
      const forPerson = isForPerson(current.req.rawHeaders);
      writeRefusal(current, socket, { ...refusal, forPerson }, current.exchange);
      // Its answer is on its way, and it is over now, not when the connection has lingered.
      if (current.res instanceof ServerResponse) current.res.detachSocket(socket);
      current.res.emit("close");
    }
  });
  return { server, care: { leave: () => http2.close(), cut } };
}

/** What node has no opinion of in HTTP/2, and would have refused in HTTP/1.1. */
function http2Problem({ method, scheme, url, headBytes }: Http2Request, maxHeadBytes: number): ProxyError | undefined {
  if (headBytes > maxHeadBytes)
    return url.length > maxHeadBytes
      ? badRequest("the target is too long", 414, "target-bytes")
      : badRequest("the header section is too large", 431, "head-bytes");
  if (method === "CONNECT") return badRequest(CONNECT_REFUSAL.message, CONNECT_REFUSAL.status);
  if (!KNOWN_METHODS.has(method)) return badRequest("an unknown method", 501);
  // Another scheme is about another resource, which this connection cannot speak for (RFC 9110 §4.3.3).
  if (scheme !== "https") return badRequest("a :scheme other than https over TLS");
  return undefined;
}

function encryptionOf(socket: Socket): Encryption | undefined {
  if (!(socket instanceof TLSSocket)) return undefined;
  const cipher = socket.getCipher();
  return { version: (socket.getProtocol() ?? "").replace("TLSv", ""), cipher: cipher?.standardName ?? "" };
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
  exchange.tls = peer.tls;
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

/** Ends a connection on which too much waits: it would cost memory without an end. There is no place for an answer. */
function refuseFlood(gate: Gate, socket: Socket, connection: Connection): void {
  if (socket.destroyed) return;
  record(gate, connection, "1.1", { status: 429, message: "too many pipelined requests", limit: "pipelined" });
  socket.destroy();
}

/** What never became a request has a record too. */
function record(gate: Gate, { peer }: Connection, httpVersion: string, { status, message, limit }: Refusal): void {
  const exchange = openExchange(gate, "", httpVersion, peer);
  exchange.status = status;
  exchange.fail("http_request_error", message, limit);
  closeExchange(gate, exchange, true);
}

/** Says why, and closes; a client that keeps its side open is not waited for. */
function writeRefusal(
  { errorPages, strictTransport }: Pick<Conversation, "errorPages" | "strictTransport">,
  socket: Socket,
  { status, forPerson = false }: Refusal,
  { method, traceId }: Exchange,
): void {
  const options = { errorPages, traceId, strictTransport, forPerson };
  const { head, body } = ownMessage({ status, error: "http_request_error" }, options);
  head.push("date", new Date().toUTCString(), "connection", "close");
  let text = `HTTP/1.1 ${status} ${reasonOf(status)}\r\n`;
  for (let i = 0; i < head.length; i += 2) text += `${head[i]}: ${head[i + 1]}\r\n`;
  socket.end(`${text}\r\n${method === "HEAD" ? "" : body}`);
  endLingering.call(socket);
}
