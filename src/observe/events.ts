import { ATTRIBUTES as A } from "./names.ts";

/**
 * Every line that can be in the log, field by field: docs/logs.md is made from these lists, and the tests hold what is
 * written against them. A renamed event or field is a breaking change.
 */

export type Level = "debug" | "info" | "warn" | "error";

/** Meaning by name; a `?` at the end of a name: the field may be absent. */
export type Fields = Readonly<Record<string, string>>;

/** In every line. */
export const LINE_FIELDS = {
  level: "`debug`, `info`, `warn` or `error`.",
  time: "When it was written: ISO 8601, UTC, milliseconds.",
  event: "What kind of line it is; its name never changes.",
  msg: "The same for a person, in words that may change.",
  "worker?": "With `workers`: the number of the one that writes it. Absent: the process above them, or the only one.",
} as const satisfies Fields;

/** In every line that belongs to a request. */
export const REQUEST_FIELDS = {
  trace_id: "32 hex digits. The request has it in all records, and the application gets it in `traceparent`.",
  span_id: "16 hex digits: the gateway's own span.",
  trace_flags: "`01`: the trace is sampled; `00`: it is not.",
  [A.client]: "Address of the client; behind a proxy of `listen.trustedProxies`, the one that it tells.",
  [`${A.route}?`]: "Route as configured: host and path prefix. Absent until one is chosen.",
} as const satisfies Fields;

/** The access line, beside the fields of every line and of every request. */
export const ACCESS_FIELDS = {
  [A.method]: "Method as sent; empty for a message that never became a request.",
  [A.host]: "Host that was asked for, without port; at most 255 characters.",
  [A.path]: "Path without the query, which may carry secrets; at most 512 characters.",
  [A.status]: "Status of the response; 499 when the client went away before it was complete.",
  [A.source]: "Who produced the status: `upstream`, or `proxy` for Coatcheck itself.",
  [A.sessionOutcome]:
    "`hit`, `absent` (no cookie), `unknown`, `expired`, `malformed`, `newer`, `mismatch`, `ambiguous`, `unavailable` (the store gave no answer), `not-asked`.",
  [A.decision]:
    "What the route made of that: `identified`, `anonymous`, `login-redirect`, `denied`, `outage`, or `undecided` when it did not come to that.",
  duration_s: "Seconds from the request head to the end of the response.",
  bytes_in: "Octets of the request content that went upstream.",
  bytes_out: "Octets of the response content that went to the client.",
  [`${A.verification}?`]:
    "Another proxy asked whether a request may go on; host, path and route are of that request. How it asked: `auth-request` (nginx), `forward-auth` (Traefik, Caddy), `ext-authz` (Envoy), or `unknown`. Absent for requests that came themselves.",
  [`${A.sessionSource}?`]: "Where the session came from: `cache`, `coalesced`, `store` or `stale`.",
  "handle?": "Names the session; it opens nothing.",
  "logout?":
    "Why somebody who came with a session cookie of ours was not recognised: `expired`, `ended`, `lost`, `signature`, `malformed`, `newer`, `mismatch` or `ambiguous`; see `coatcheck_session_logouts_total`.",
  "upstream?": "`host:port` of the application that was asked.",
  [`${A.errorType}?`]: "Why it failed: a word of RFC 9209, as in `Proxy-Status`.",
  "error_message?": "The same in a sentence, for operators.",
  "limited?": "The limit that it was refused for, as in `coatcheck_requests_limited_total`.",
  "stripped?": "How many headers were removed that a client may not send, by class.",
  "sample?":
    "The share of such lines that is written, when that is less than 1: count it as `1/sample` requests. Absent in lines that are always written: failed, slow and watched requests.",
} as const satisfies Fields;

export interface EventDefinition {
  /** One, or those that it can have. */
  readonly levels: readonly Level[];
  readonly about: string;
  /** Whether the line has the fields of a request; `sometimes`: where there was one. */
  readonly request?: "always" | "sometimes";
  readonly fields: Fields;
  /** What to do about it. */
  readonly advice: string;
}

const HANDLE = "Names the session; it opens nothing.";
const SUPPRESSED = "How many more there were since the line before this one.";
const RELOAD_CAUSE =
  "`signal` (SIGHUP), `file` (it was changed), `operator` (`POST /reload`), or `program`: the one that the gateway is part of.";

export const EVENTS = {
  "session.created": {
    levels: ["info"],
    about: "Somebody logged in, or an application began a session for a visitor.",
    request: "always",
    fields: { handle: HANDLE },
    advice: "Nothing. Many from one address: somebody makes accounts, or tries stolen passwords with success.",
  },
  "session.rotated": {
    levels: ["info"],
    about: "A login with a session at hand: a new id took the place of the old one, which ends within ten seconds.",
    request: "always",
    fields: { handle: "The new session.", previous_handle: "The session before." },
    advice: "Follow `previous_handle` to see what the same visitor did before the login.",
  },
  "session.ended": {
    levels: ["info"],
    about: "An application ended the session (`X-Session-End`): a logout.",
    request: "always",
    fields: {
      "handle?": "The session that the request came with. Absent when it came with several.",
      scope: "`this`, or `all` sessions of the user.",
      count: "How many ended, with those that a login had just replaced.",
      handles: "Theirs; the first 100.",
    },
    advice: "Nothing. A user who did not log out: look for the request by `trace_id`.",
  },
  "session.expired": {
    levels: ["info"],
    about: "A visitor came back with a session that had ended by itself within the last five minutes.",
    request: "always",
    fields: {
      handle: HANDLE,
      "reason?":
        "`idle` (`session.idleTimeout`), `absolute` (`session.absoluteTimeout`), `replaced` (by a login more than ten seconds ago), `ended` (a session that was ended while the store is being replaced). Absent where a store does not tell.",
    },
    advice:
      "`idle` in numbers: people come back later than `session.idleTimeout` lets them. `replaced`: a client goes on with an old cookie; does it keep what a login sets?",
  },
  "session.evicted": {
    levels: ["info"],
    about: "A login ended the oldest session of its user, who had `session.maxPerUser` already.",
    request: "always",
    fields: { handle: "The session that ended.", by_handle: "The session whose login ended it." },
    advice: "Often, for one user: a shared account, or a client that logs in for every request.",
  },
  "session.mismatch": {
    levels: ["warn"],
    about: "A session was used by another client than it was begun by (`session.bind`).",
    request: "always",
    fields: {
      handle: HANDLE,
      bind: "What it is bound to: `user-agent`, `ip-prefix` or `both`.",
      denied: "Whether it was not believed (`session.onMismatch: deny`).",
    },
    advice:
      "One now and then is a browser that was updated or a phone that changed networks. Several of one handle, from far apart: a stolen cookie; end the session.",
  },
  "websocket.closed": {
    levels: ["info"],
    about:
      "A WebSocket has ended. Its handshake has an access line of its own, with status 101 and the same `trace_id`.",
    request: "always",
    fields: {
      "handle?": "Names the session that it was opened with; absent: without one.",
      upstream: "`host:port` of the application.",
      reason:
        "Whose doing it was: `client`, `upstream`, `idle` (`websockets.idleTimeout`), `session-ended`, `session-expired`, `shutdown`.",
      duration_s: "Seconds from the request head of the handshake to the end of both connections.",
      bytes_in: "Octets from the client.",
      bytes_out: "Octets from the application.",
    },
    advice:
      "`upstream` in numbers, all at once: an application was restarted. For the rest see `coatcheck_websockets_closed_total`.",
  },
  "session.revoked": {
    levels: ["info"],
    about: "An operator ended the session. One line for each.",
    fields: {
      handle: HANDLE,
      scope: "What was asked for: `one`, `all` of a user, or `others`: all but one.",
      "client.address?": "Of the operator, as the admin listener saw it.",
    },
    advice: "Nothing, if you know who did it.",
  },
  "connections.refused": {
    levels: ["warn"],
    about:
      "A connection was closed at once, because there were as many as there may be. At most one line a minute for each address (IPv6: /64) and reason; when more than 256 try at once, the others share one.",
    fields: {
      reason: "`total` (`limits.connections.total`) or `address` (`limits.connections.perAddress`).",
      [A.client]: "Of the connection: where a proxy is in front, the proxy's.",
      suppressed: SUPPRESSED,
    },
    advice:
      "`address`: one client with too many connections, or many behind one address: raise `perAddress`, or put the proxy into `listen.trustedProxies`. `total`: see `coatcheck_connections_open`.",
  },
  "limits.fallback": {
    levels: ["warn"],
    about: "Redis gave no answer to a rate limit within 50 ms: each gateway counts requests for itself.",
    fields: { failure: "What went wrong, in words." },
    advice: "As for `store.down`. Requests are not held up; a client may send its share to each gateway.",
  },
  "limits.shared": {
    levels: ["info"],
    about: "Redis answers again: gateways count requests together.",
    fields: {},
    advice: "Nothing.",
  },
  "security.spoof-attempt": {
    levels: ["warn"],
    about:
      "A request tried to set or to remove what only the gateway may say. It was removed, and the request went on without it; a request that another proxy asked about was refused. At most one line a minute for each client address (IPv6: /64); when more than 256 try at once, the others share one.",
    request: "always",
    fields: {
      classes:
        "How many headers, by class: `managed` (an identity header), `alias` (another spelling that reaches the application as the same), `connection` (listed in `Connection`, to have it removed), `internal` (a write-back header or `X-Coatcheck-…`).",
      names: "Names of these headers as they were sent, at most 16. Never a value.",
      suppressed: SUPPRESSED,
    },
    advice:
      "From inside: a service that sets identity headers of its own, which is a mistake to correct. From outside: somebody tries doors. Nothing reached the application; block the address if it goes on.",
  },
  "verification.refused": {
    levels: ["warn"],
    about:
      "Another proxy asked about a request (`forwardAuth`), and the request was refused without a look at its session. At most one line a minute for each client address (IPv6: /64); when more than 256 try at once, the others share one.",
    request: "always",
    fields: {
      [A.verification]: "How it asked, or `unknown`.",
      reason: "What was wrong, in a sentence.",
      suppressed: SUPPRESSED,
    },
    advice:
      "`is not in listen.trustedProxies`, with the address of the proxy: add it there. With the address of a visitor: somebody asks past the proxy, which must not pass on the path of `forwardAuth`. `names no path`, `names no host`: the proxy does not send what it has to; docs/forward-auth.md has what each needs. `two paths`, `two hosts`: the visitor has sent a header that the proxy passes on beside its own. `an identity header`: the visitor tries to be somebody else, or the proxy asks twice about one request. `no route`: add one.",
  },
  "write-back.refused": {
    levels: ["warn"],
    about:
      "A session command of an application was not obeyed, or not as a whole. At most one line a minute for each route, command and reason.",
    request: "always",
    fields: {
      upstream: "`host:port` of the application.",
      "command?": "`start`, `set` or `end`. Absent with `keys-dropped`.",
      reason:
        "`not-allowed`: the route has no `write`. `malformed`: it says nothing that can be obeyed; the response became 502. `keys-dropped`: keys that `write` does not list were left out, the others were saved. `conflict`: another response had changed the same attribute; 409. `failed`: the store gave no answer; 503.",
      "keys?": "With `keys-dropped`: names of the keys, at most 16. Never a value.",
      "error_message?": "What was wrong, in a sentence.",
      suppressed: SUPPRESSED,
    },
    advice:
      "`not-allowed` and `keys-dropped`: add to `write` what the application should be able to write, or find out why it tries. `malformed`: correct the application. `conflict`: two requests of a visitor change the same attribute at once.",
  },
  "upstream.ejected": {
    levels: ["warn"],
    about: "A target, or one address of it, gets no requests for a while.",
    fields: {
      upstream: "`host:port` of the target.",
      "peer?": "`address:port`, where Coatcheck resolves the name.",
      reason:
        "`failures` (requests in a row got no answer), `server-errors` (they got a status from 500 on), `health-check`.",
      failure: "What was wrong the last time: a word of RFC 9209, or a status.",
      "for_s?": "For how long, seconds; absent: until health checks succeed.",
      in_service: "How many are left.",
    },
    advice: "Look at that target. Again and again: it flaps, and each time it is out for longer.",
  },
  "upstream.returned": {
    levels: ["info"],
    about: "It gets requests again, a tenth of its share at first (`slowStart`).",
    fields: {
      upstream: "`host:port` of the target.",
      "peer?": "`address:port`, where Coatcheck resolves the name.",
      reason: "`time`: the ejection is over, and the next failure begins another. `health-check`: it answers.",
    },
    advice: "Nothing.",
  },
  "upstream.spared": {
    levels: ["error"],
    about:
      "A target fails as one does that is taken out, and stays because it is the last one in service. Once until it answers.",
    fields: {
      upstream: "`host:port` of the target.",
      "peer?": "`address:port`, where Coatcheck resolves the name.",
      reason: "As in `upstream.ejected`.",
    },
    advice: "All targets are in trouble at once: look at what they share.",
  },
  "upstream.panic": {
    levels: ["error"],
    about: "No target of an upstream is in service, so that all of them get requests as if they were.",
    fields: { [A.route]: "The first route that has the upstream.", upstreams: "`host:port` of its targets." },
    advice: "Visitors get errors: the application is down. They do not: the health check is wrong.",
  },
  "upstream.panic-over": {
    levels: ["info"],
    about: "A target is in service again, and gets all requests.",
    fields: { [A.route]: "The first route that has the upstream.", upstreams: "`host:port` of its targets." },
    advice: "Nothing.",
  },
  "upstream.resolved": {
    levels: ["info"],
    about: "The name of a target has other addresses than before (`resolve`); also once at the start.",
    fields: {
      upstream: "`host:port` of the target.",
      addresses: "All that it has now, `address:port`.",
      added: "Those that are new.",
      removed: "Those that are gone; they end what they have begun.",
    },
    advice: "Nothing, if you know who did it.",
  },
  "upstream.resolve-failed": {
    levels: ["warn"],
    about: "The name of a target cannot be resolved; the addresses that were known go on. Once until it can.",
    fields: { upstream: "`host:port` of the target.", failure: "What the resolver said: `ENOTFOUND`, `ETIMEOUT`." },
    advice: "Ask the same name with `dig` or `getent hosts` where Coatcheck runs.",
  },
  "store.down": {
    levels: ["error"],
    about: "The session store does not answer. Requests that need a session get 503, and nobody is logged out.",
    fields: { store: "Its kind." },
    advice: "`coatcheck check --config FILE --store` tells what is wrong with it.",
  },
  "store.up": {
    levels: ["info"],
    about: "The session store answers again.",
    fields: { store: "Its kind." },
    advice: "Nothing.",
  },
  "store.feed": {
    levels: ["info", "warn"],
    about: "How the session store tells of changes has changed, and with it what the near cache can do.",
    fields: { feed: "`tracking` (the normal state), `messages`, `lost` or `refused`." },
    advice: "`lost`: passes with the outage. `messages` and `refused`: give the Redis user the right; docs/redis.md.",
  },
  "store.resting": {
    levels: ["info", "warn"],
    about: "Servers of the session store that have not answered lately are asked in the background only.",
    fields: { servers: "How many; 0: all answer again." },
    advice: "Look at the servers. In a cluster it can be one node of many.",
  },
  "store.connection-ready": {
    levels: ["debug"],
    about: "A connection to the session store is there.",
    fields: { connection: "`data`, `tracking` or `messages`." },
    advice: "Nothing.",
  },
  "store.connection-lost": {
    levels: ["debug"],
    about: "A connection to the session store was lost; it is opened again.",
    fields: { connection: "`data`, `tracking` or `messages`." },
    advice: "Often: something between here and the store cuts connections.",
  },
  "config.ephemeral-secret": {
    levels: ["warn"],
    about: "`session.cookie.secrets` is empty, so a random secret was made: a restart ends every session.",
    fields: {},
    advice: "Make one with `openssl rand -base64 32`.",
  },
  "config.reloaded": {
    levels: ["info", "warn"],
    about: "The configuration was read again and applied; `warn` when a restart is needed for a part of it.",
    fields: {
      by: RELOAD_CAUSE,
      applied: "Keys that changed and are in effect.",
      needs_restart: "Keys that differ from what is in effect, and are not applied before the next start.",
    },
    advice: "Restart when `needs_restart` names something.",
  },
  "config.reload-refused": {
    levels: ["error"],
    about: "The configuration was read again and is wrong; the one before goes on.",
    fields: { by: RELOAD_CAUSE, problems: "What is wrong, each with its path; the first 50." },
    advice: "Correct the file; a restart with it would fail.",
  },
  "config.nothing-to-reload": {
    levels: ["warn"],
    about: "The configuration was to be read again, and it is not in a file but on the command line.",
    fields: { by: RELOAD_CAUSE },
    advice: "Restart with other options, or use `--config FILE`.",
  },
  "observe.changed": {
    levels: ["info"],
    about: "What is observed was changed while the gateway runs.",
    fields: {
      by: "`operator` (`POST /observe`), `time` (what was meant for a while is over) or `reload`.",
      changed: "By key of the section `observe`: `from`, the value before, and `to`.",
      "until?": "When it ends by itself, ISO 8601.",
    },
    advice: "Nothing, if you know who did it.",
  },
  "traces.down": {
    levels: ["warn"],
    about: "The collector does not take spans; they are dropped until it does. Once for each outage.",
    fields: { failure: "The code of a broken connection, or a status of HTTP or gRPC." },
    advice:
      "`ECONNREFUSED`: it is down, or `OTEL_EXPORTER_OTLP_ENDPOINT` is wrong. `401`: see `OTEL_EXPORTER_OTLP_HEADERS`.",
  },
  "traces.up": {
    levels: ["info"],
    about: "It takes them again.",
    fields: {},
    advice: "Nothing; `coatcheck_spans_dropped_total` says how many are missing.",
  },
  "watch.began": {
    levels: ["info"],
    about: "An operator put a user or a session under watch. No line says which user: `GET /debug/watch` does.",
    fields: { watch: "`user` or `session`.", "handle?": "The session.", until: "When it ends by itself, ISO 8601." },
    advice: "Nothing, if you know who did it.",
  },
  "watch.ended": {
    levels: ["info"],
    about: "A watch is over.",
    fields: {
      watch: "`user` or `session`.",
      "handle?": "The session.",
      by: "`time`, or `operator`.",
      requests: "How many were recorded.",
    },
    advice: "Nothing.",
  },
  "dump.written": {
    levels: ["info"],
    about: "A dump was written.",
    fields: { path: "Where.", bytes: "How large it is." },
    advice: "Send it to whoever helps you; it holds no secret.",
  },
  "dump.refused": {
    levels: ["warn"],
    about: "No dump was written: one is being written, or there are ten of this process from the last hour.",
    fields: { "folder?": "Where they are." },
    advice: "Move the dumps away.",
  },
  "dump.failed": {
    levels: ["error"],
    about: "No dump could be written; the message says why.",
    fields: { folder: "Where it should have been." },
    advice: "Fetch one with `coatcheck dump` instead, which writes it where you are.",
  },
  "gateway.started": {
    levels: ["info"],
    about: "Both listeners are open.",
    fields: {
      version: "Of Coatcheck.",
      url: "Where browsers reach it.",
      "redirect?": "Where they are redirected from to HTTPS, if anywhere.",
      admin: "Where operators reach it.",
      store: "Kind of the session store.",
      "workers?": "How many processes serve; absent: one.",
    },
    advice: "Unexpected: something ended the process before; look at the lines above.",
  },
  "worker.started": {
    levels: ["info"],
    about: "With `workers`: a worker serves.",
    fields: { worker: "Its number, from 1.", pid: "Its process.", took_s: "From its start until it served, seconds." },
    advice: "Unexpected: the `worker.exited` above says why the one before ended.",
  },
  "worker.exited": {
    levels: ["error", "info"],
    about:
      "With `workers`: a worker has ended. `error`: unasked; another one takes its place. `info`: the gateway ends.",
    fields: {
      worker: "Its number.",
      pid: "Its process.",
      served_s: "How long it served, seconds; 0: it never did.",
      "status?": "Its exit status.",
      "signal?": "The signal that ended it.",
      "problem?": "Why it could not start.",
      "reason?": "`killed`, `crashed`, `exited` or `not_started`, as in `coatcheck_worker_restarts_total`.",
      "pause_s?": "How long until the next one is started, seconds.",
    },
    advice:
      "`SIGKILL`: probably the kernel's out-of-memory killer (`dmesg`). `crashed`: report the `error.unexpected` above with its stack. `not_started`: `problem` says what to mend.",
  },
  "gateway.draining": {
    levels: ["info"],
    about: "It was asked to end: readiness is 503, and requests in flight go on.",
    fields: {
      delay_s: "How long new requests are still served (`shutdown.delay`), seconds.",
      timeout_s: "How long those in flight may take after that (`shutdown.timeout`), seconds.",
      requests: "How many are in flight.",
      websockets: "How many are open.",
    },
    advice: "Nothing.",
  },
  "gateway.stopped": {
    levels: ["info", "warn"],
    about: "The last request has ended; `warn` when some had not in time and were cut.",
    fields: {
      duration_s: "Since `gateway.draining`, seconds.",
      "requests_cut?":
        "How many requests were cut (error `proxy_shutdown`). Absent of the process above workers: each of them says its own.",
    },
    advice:
      "Missing after `gateway.draining`: it was killed, or something hung. Requests cut: give `shutdown.timeout` more.",
  },
  "gateway.abandoned": {
    levels: ["warn"],
    about: "A second SIGTERM or SIGINT came while it drained: it ends at once.",
    fields: { requests: "How many were cut off.", websockets: "How many were cut off." },
    advice:
      "Somebody was impatient, or the supervisor's patience is shorter than `shutdown.delay` and `shutdown.timeout`.",
  },
  "certificate.replaced": {
    levels: ["info"],
    about: "The files of a certificate changed, and new connections get the new one.",
    fields: { listener: "`admin`.", not_after: "Until when it is valid, ISO 8601." },
    advice: "Nothing.",
  },
  "certificate.refused": {
    levels: ["error"],
    about: "The files of a certificate changed, and cannot be used; the one before goes on.",
    fields: { listener: "`admin`.", problem: "What is wrong with them." },
    advice: "Correct the files before the old certificate ends; they are looked at again when they change.",
  },
  "error.unexpected": {
    levels: ["error"],
    about: "A mistake in Coatcheck, or in a store of your own.",
    request: "sometimes",
    fields: {
      "exception.type": "Class of the error.",
      "exception.message": "Its message.",
      "exception.stacktrace?": "Where it came from.",
    },
    advice: "Report it with the stack.",
  },
} as const satisfies Record<string, EventDefinition>;

export type EventName = keyof typeof EVENTS;
