import type { Capture } from "../core/capture.ts";
import type { Exchange } from "../core/exchange.ts";
import type { StoreCommand } from "../core/store.ts";
import type { UpstreamAttempt } from "../core/upstream.ts";

/** An exchange as JSON, for `GET /debug/exchanges`. An allow-list: a new field appears here or nowhere. */
export function renderRecord(exchange: Exchange) {
  return {
    time: new Date(exchange.startedAt).toISOString(),
    traceId: exchange.traceId,
    spanId: exchange.spanId,
    sampled: exchange.sampled,
    watched: exchange.watched,
    request: {
      method: exchange.method,
      host: exchange.host,
      path: exchange.path,
      httpVersion: exchange.httpVersion,
      tls: exchange.tls && { version: exchange.tls.version, cipher: exchange.tls.cipher },
      client: exchange.clientAddress,
      bytes: exchange.requestBytes,
    },
    verification: exchange.verification && { ...exchange.verification },
    route: exchange.route?.id,
    session: {
      cookie: exchange.cookie,
      cookieSecret: exchange.cookieSecret,
      outcome: exchange.session,
      source: exchange.sessionSource,
      logout: exchange.logout,
      staleMs: exchange.staleMs,
      handle: exchange.handle,
      decision: exchange.decision,
    },
    headers: {
      stripped: exchange.stripped ?? {},
      strippedNames: exchange.strippedNames ?? [],
      identity: exchange.identified,
    },
    storeCommands: exchange.storeCommands?.map((command) => renderCommand(exchange, command)),
    storeCommandsDropped: exchange.storeCommandsDropped,
    writeBack: exchange.writeBack?.map(({ command, result }) => ({ command, result })),
    writeBackKeysDropped: exchange.writeBackDropped,
    upstream:
      exchange.upstream === undefined
        ? undefined
        : {
            address: exchange.upstream,
            status: exchange.upstreamStatus,
            peer: exchange.upstreamPeer,
            choice: exchange.upstreamChoice,
            waitedMs: exchange.upstreamWaitMs,
            retries: exchange.upstreamRetries,
            retryRefused: exchange.retryRefused,
            attempts: exchange.upstreamAttempts?.map(renderAttempt),
            interimHeads: exchange.interimHeads,
            error: exchange.upstreamError,
          },
    queueRefused: exchange.queueRefused,
    response: {
      status: exchange.status,
      source: exchange.source,
      bytes: exchange.responseBytes,
      clientGone: exchange.clientGone,
    },
    limited: exchange.limited,
    error: exchange.error === undefined ? undefined : { type: exchange.error, message: exchange.errorMessage },
    /** Milliseconds after `time`. */
    timings: {
      resolveStarted: exchange.resolveStartedMs,
      resolved: exchange.resolvedMs,
      forwarded: exchange.forwardedMs,
      attempt: exchange.attemptMs,
      upstreamHead: exchange.upstreamHeadMs,
      saved: exchange.savedMs,
      upstreamEnd: exchange.upstreamEndMs,
      ended: exchange.endedMs,
    },
  };
}

function renderAttempt({ upstream, peer, choice, startedMs, endedMs, status, error, retry }: UpstreamAttempt) {
  return { address: upstream, peer, choice, started: startedMs, ended: endedMs, status, error, retry };
}

function renderCommand(exchange: Exchange, command: StoreCommand) {
  const { server, name, script, startedMs, endedMs, failure, code } = command;
  return {
    name,
    script,
    server: server.address === undefined ? server.system : `${server.address}:${server.port}`,
    started: exchange.sinceStart(startedMs),
    ended: exchange.sinceStart(endedMs),
    failure,
    code,
  };
}

export type ExchangeRecord = ReturnType<typeof renderRecord>;

/** The same of a request under watch: for which watches, and its header sections, masked. */
export function renderWatched(exchange: Exchange, capture: Capture) {
  const { watches, query, request, forwarded, upstreamResponse, response } = capture;
  const watch = { ids: [...watches], query, request, forwarded, upstreamResponse, response };
  return { ...renderRecord(exchange), watch };
}

export type WatchedRecord = ReturnType<typeof renderWatched>;
