import {
  type DashboardOptions,
  heatmap,
  of,
  orZero,
  quantile,
  type Row,
  rate,
  series,
  stat,
  sumRate,
  table,
} from "./model.ts";
import { lookupsP99, STORE_WORDS, surpriseLogouts } from "./shared.ts";

const SERVER = "http_server_request_duration_seconds";
const CLIENT = "http_client_request_duration_seconds";
const OVERHEAD = "coatcheck_proxy_overhead_seconds";
const FAILED = 'http_response_status_code=~"5.."';

/** A client that went away is nobody's failure. */
const COUNTED = 'http_response_status_code!="499"';

/** What of the alerts' objective the stat turns red at; the rules say the same. */
export const AVAILABILITY_OBJECTIVE = 0.999;

const isItAllRight: Row = {
  title: "Is it all right?",
  panels: [
    stat({
      title: "Availability",
      about:
        "Share of requests that were not answered with 5xx, by the application or by the gateway. Clients that went away do not count. Red below the objective of the alerts.",
      unit: "percentunit",
      decimals: 2,
      max: 1,
      noValue: "no traffic",
      alert: "CoatcheckAvailabilityBudgetBurn",
      thresholds: [
        ["red", null],
        ["orange", AVAILABILITY_OBJECTIVE],
        ["green", 1 - (1 - AVAILABILITY_OBJECTIVE) / 2],
      ],
      queries: [{ expr: `1 - ${orZero(sumRate(`${SERVER}_count`, FAILED))} / ${sumRate(`${SERVER}_count`, COUNTED)}` }],
    }),
    stat({
      title: "Requests",
      about: "Requests a second that ended. None for minutes: nobody reaches the gateway, or Prometheus does not.",
      unit: "reqps",
      noValue: "no traffic",
      thresholds: [["blue", null]],
      queries: [{ expr: sumRate(`${SERVER}_count`) }],
    }),
    stat({
      title: "Duration p99",
      about:
        "99 of 100 requests took no longer, the application included. If this is high and the overhead is not, it is the application.",
      unit: "s",
      noValue: "no traffic",
      thresholds: [
        ["green", null],
        ["orange", 1],
        ["red", 5],
      ],
      queries: [{ expr: quantile(0.99, SERVER) }],
    }),
    stat({
      title: "Overhead p99",
      about: "What the gateway itself took of a request, the session look-up included. Normal: a millisecond or two.",
      unit: "s",
      noValue: "no traffic",
      thresholds: [
        ["green", null],
        ["orange", 0.01],
        ["red", 0.05],
      ],
      queries: [{ expr: quantile(0.99, OVERHEAD) }],
    }),
    stat({
      title: "Surprise logouts",
      about:
        "Visitors a minute who came with a session cookie of ours and were not recognised, though nothing of theirs had ended. Normal: none. Go to the Sessions dashboard for the reason.",
      unit: "cpm",
      alert: "CoatcheckSurpriseLogouts",
      thresholds: [
        ["green", null],
        ["orange", 1],
        ["red", 6],
      ],
      queries: [{ expr: `60 * ${orZero(surpriseLogouts())}` }],
    }),
    stat({
      title: "Session store",
      about:
        "Whether the session store answers every instance. DOWN: whoever needs a session gets 503, nobody is logged out. Go to the Store dashboard.",
      unit: "none",
      alert: "CoatcheckStoreDown",
      noValue: "not asked yet",
      thresholds: [["text", null]],
      words: STORE_WORDS,
      queries: [{ expr: `min(${of("coatcheck_session_store_up")})` }],
    }),
    stat({
      title: "Upstreams down",
      about: "Upstreams whose last request was not answered, counted for each instance.",
      unit: "short",
      alert: "CoatcheckUpstreamDown",
      thresholds: [
        ["green", null],
        ["red", 1],
      ],
      queries: [{ expr: orZero(`count(${of("coatcheck_upstream_up")} == 0)`) }],
    }),
    stat({
      title: "Instances down",
      about: "Instances whose metrics Prometheus cannot read.",
      unit: "short",
      alert: "CoatcheckDown",
      thresholds: [
        ["green", null],
        ["red", 1],
      ],
      queries: [{ expr: orZero(`count(${of("up")} == 0)`) }],
    }),
    table({
      title: "Alerts",
      about:
        "Alerts of Coatcheck that are firing, or pending: true, but not for long enough yet. Empty is good, if the rules in grafana/prometheus are loaded.",
      unit: "none",
      noValue: "none",
      height: 5,
      labels: { alertname: "Alert", severity: "Severity", alertstate: "State" },
      columns: [
        {
          title: "Series",
          unit: "short",
          // Prometheus makes this one itself; what is burnt or absent has no instance.
          query: 'count by (alertname, severity, alertstate) (ALERTS{job=~"$job", alertname=~"Coatcheck.+"})',
        },
      ],
    }),
  ],
};

const ROUTE_QUERIES = {
  requests: sumRate(`${SERVER}_count`, "", ["http_route"]),
  // A route without a failure has no such series: 0 of its own requests.
  failures: `(${sumRate(`${SERVER}_count`, FAILED, ["http_route"])} or 0 * ${sumRate(`${SERVER}_count`, "", ["http_route"])}) / ${sumRate(`${SERVER}_count`, COUNTED, ["http_route"])}`,
};

const routes: Row = {
  title: "Requests, errors, durations by route",
  panels: [
    table({
      title: "Routes now",
      about: "Each route of the configuration; `none` is what no route matches. Sorted by requests.",
      unit: "none",
      height: 7,
      labels: { http_route: "Route" },
      columns: [
        { title: "Requests", unit: "reqps", query: ROUTE_QUERIES.requests },
        {
          title: "Failed",
          unit: "percentunit",
          query: ROUTE_QUERIES.failures,
          thresholds: [
            ["transparent", null],
            ["orange", 0.001],
            ["red", 0.05],
          ],
        },
        { title: "p50", unit: "s", query: quantile(0.5, SERVER, "", ["http_route"]) },
        { title: "p99", unit: "s", query: quantile(0.99, SERVER, "", ["http_route"]) },
      ],
    }),
    series({
      title: "Requests by route",
      about:
        "How many requests of each route ended. A route that falls to nothing while others go on: its links or its load balancer.",
      unit: "reqps",
      width: 8,
      stacked: true,
      queries: [{ expr: ROUTE_QUERIES.requests, legend: "{{http_route}}" }],
    }),
    series({
      title: "Failed requests by route",
      about: "Share of 5xx. One route: its application. All at once: the session store, or the gateway itself.",
      unit: "percentunit",
      width: 8,
      max: 1,
      alert: "CoatcheckAvailabilityBudgetBurn",
      queries: [{ expr: ROUTE_QUERIES.failures, legend: "{{http_route}}" }],
    }),
    series({
      title: "Duration p95 by route",
      about: "19 of 20 requests took no longer. The points are single requests: each leads to its trace.",
      unit: "s",
      width: 8,
      queries: [{ expr: quantile(0.95, SERVER, "", ["http_route"]), legend: "{{http_route}}", exemplar: true }],
    }),
  ],
};

const errors: Row = {
  title: "Errors by cause",
  panels: [
    series({
      title: "Failures of the gateway by cause",
      about:
        "Requests that ended with an error of our own, by the word that is also in Proxy-Status, in the log and in the trace. `session_store_unavailable`: the store. `connection_refused`, `connection_terminated`, `http_response_timeout`: the application. `http_request_error`: what clients sent.",
      unit: "reqps",
      stacked: true,
      queries: [{ expr: sumRate(`${SERVER}_count`, 'error_type!=""', ["error_type"]), legend: "{{error_type}}" }],
    }),
    series({
      title: "Responses by status",
      about:
        "What clients were answered. 499: the client went away before the end; many of them mean that people gave up waiting.",
      unit: "reqps",
      stacked: true,
      queries: [
        {
          expr: sumRate(`${SERVER}_count`, "", ["http_response_status_code"]),
          legend: "{{http_response_status_code}}",
        },
      ],
    }),
    series({
      title: "Failed attempts upstream",
      about:
        "Attempts that got no whole response, by upstream and cause. Nothing here and 5xx above: the application itself answered with an error.",
      unit: "reqps",
      alert: "CoatcheckUpstreamDown",
      queries: [
        {
          expr: sumRate(`${CLIENT}_count`, 'error_type!=""', ["server_address", "server_port", "error_type"]),
          legend: "{{server_address}}:{{server_port}} {{error_type}}",
        },
      ],
    }),
    series({
      title: "Upstream up",
      about: "Whether the last request to each upstream was answered, as the worst instance sees it.",
      unit: "bool_yes_no",
      max: 1,
      alert: "CoatcheckUpstreamDown",
      queries: [
        {
          expr: `min by (server_address, server_port) (${of("coatcheck_upstream_up")})`,
          legend: "{{server_address}}:{{server_port}}",
        },
      ],
    }),
  ],
};

const time: Row = {
  title: "Where the time goes",
  panels: [
    series({
      title: "Overhead beside upstream time",
      about:
        "Logarithmic. Whole requests, the part of it upstream, and what the gateway itself took. If whole and upstream rise together it is the application; if the overhead rises, it is the look-up (beside it) or the event loop.",
      unit: "s",
      logarithmic: true,
      colors: {
        "overhead p50": "light-orange",
        "overhead p99": "orange",
        "upstream p50": "light-blue",
        "upstream p99": "blue",
        "whole p99": "purple",
        "look-up p99": "green",
      },
      queries: [
        { expr: quantile(0.5, OVERHEAD), legend: "overhead p50" },
        { expr: quantile(0.99, OVERHEAD), legend: "overhead p99", exemplar: true },
        { expr: quantile(0.5, CLIENT), legend: "upstream p50" },
        { expr: quantile(0.99, CLIENT), legend: "upstream p99", exemplar: true },
        { expr: quantile(0.99, SERVER), legend: "whole p99" },
        { expr: lookupsP99(), legend: "look-up p99" },
      ],
    }),
    heatmap({
      title: "Overhead",
      about:
        "How many requests took how much of the gateway's own time. Two bands: cached sessions, and those that were asked for. A third: something stalls.",
      unit: "s",
      queries: [{ expr: `sum by (le) (${rate(`${OVERHEAD}_bucket`)})`, exemplar: true }],
    }),
    series({
      title: "Active requests",
      about:
        "Requests in flight. Rises when the application slows down or clients read slowly. It should fall to zero at night; what does not, hangs.",
      unit: "short",
      queries: [
        {
          expr: `sum by (http_request_method) (${of("http_server_active_requests")})`,
          legend: "{{http_request_method}}",
        },
      ],
    }),
    heatmap({
      title: "Duration of requests",
      about: "How many requests took how long. The points are single requests: each leads to its trace.",
      unit: "s",
      queries: [{ expr: `sum by (le) (${rate(`${SERVER}_bucket`)})`, exemplar: true }],
    }),
  ],
};

const webSockets: Row = {
  title: "WebSockets",
  panels: [
    series({
      title: "Open WebSockets",
      about:
        "Their requests ended with the handshake: they are in no other panel. Falls at once: an application was restarted.",
      unit: "short",
      queries: [{ expr: `sum by (instance) (${of("coatcheck_websockets_open")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Closed WebSockets by reason",
      about:
        "Whose doing it was. `session-ended` goes with logouts and revocations; `idle`: applications that send no pings.",
      unit: "cps",
      queries: [{ expr: `sum by (reason) (${rate("coatcheck_websockets_closed_total")})`, legend: "{{reason}}" }],
    }),
    series({
      title: "Traffic of WebSockets",
      about: "Octets from clients (in) and from applications (out).",
      unit: "Bps",
      queries: [{ expr: `sum by (direction) (${rate("coatcheck_websocket_bytes_total")})`, legend: "{{direction}}" }],
    }),
  ],
};

const TARGET = "{{server_address}}:{{server_port}}";
const BY_TARGET = ["server_address", "server_port"];
const targets: Row = {
  title: "Targets of applications",
  panels: [
    series({
      title: "Targets out of service",
      about:
        "Addresses that get no requests, because they fail or their health checks do, as the worst instance sees it. One at a time, for minutes: a rollout.",
      unit: "short",
      alert: "CoatcheckTargetOut",
      queries: [
        {
          expr: `max by (server_address, server_port) (${of("coatcheck_upstream_endpoints", 'state="out"')})`,
          legend: TARGET,
        },
        { expr: `max by (http_route) (${of("coatcheck_upstream_panic")})`, legend: "panic {{http_route}}" },
      ],
    }),
    series({
      title: "Ejections and returns",
      about:
        "Per minute. A target that goes out and comes back again and again flaps; each time it is out for twice as long. `spared`: it was the last one in service.",
      unit: "cpm",
      queries: [
        {
          expr: `60 * ${sumRate("coatcheck_upstream_ejections_total", "", [...BY_TARGET, "reason"])}`,
          legend: `out ${TARGET} {{reason}}`,
        },
        {
          expr: `60 * ${sumRate("coatcheck_upstream_returns_total", "", [...BY_TARGET, "reason"])}`,
          legend: `back ${TARGET} {{reason}}`,
        },
        {
          expr: `60 * ${sumRate("coatcheck_upstream_ejections_spared_total", "", BY_TARGET)}`,
          legend: `spared ${TARGET}`,
        },
      ],
    }),
    series({
      title: "Requests sent again",
      about:
        "Per minute, by the target that failed. `idle-closed`: it closed an idle connection while a request was on its way; many mean that its keep-alive timeout is shorter than ours (4 seconds). The others went to another target. `refused`: the budget was used up.",
      unit: "cpm",
      queries: [
        {
          expr: `60 * ${sumRate("coatcheck_upstream_retries_total", "", [...BY_TARGET, "reason"])}`,
          legend: `${TARGET} {{reason}}`,
        },
        {
          expr: `60 * ${sumRate("coatcheck_upstream_retries_refused_total", "", BY_TARGET)}`,
          legend: `refused ${TARGET}`,
        },
      ],
    }),
    series({
      title: "Connections in use",
      about: "Requests under way and WebSockets, by target. Uneven: one is slower than the others, or has more weight.",
      unit: "short",
      queries: [
        {
          expr: `sum by (server_address, server_port) (${of("coatcheck_upstream_connections_in_use")})`,
          legend: TARGET,
        },
      ],
    }),
    series({
      title: "Waiting for a connection",
      about:
        "Requests beyond `maxConnections`: how many wait, and how many a second got 503 because too many waited or one waited for too long.",
      unit: "short",
      alert: "CoatcheckUpstreamFull",
      queries: [
        {
          expr: `sum by (http_route) (${of("coatcheck_upstream_queue_length")})`,
          legend: "waiting {{http_route}}",
        },
        { expr: sumRate("coatcheck_upstream_queue_refused_total", "", ["reason"]), legend: "503 {{reason}}" },
      ],
    }),
    series({
      title: "Time in the queue",
      about: "Of the requests that had to wait. It is in the duration of requests, and not in the overhead.",
      unit: "s",
      queries: [
        { expr: quantile(0.5, "coatcheck_upstream_queue_wait_seconds"), legend: "p50" },
        { expr: quantile(0.99, "coatcheck_upstream_queue_wait_seconds"), legend: "p99", exemplar: true },
      ],
    }),
    series({
      title: "Health checks and names",
      about:
        "Per minute: active checks that failed, by target; and names that gave other addresses than before, or none.",
      unit: "cpm",
      queries: [
        {
          expr: `60 * ${sumRate("coatcheck_upstream_health_checks_total", 'result="failed"', BY_TARGET)}`,
          legend: `check ${TARGET}`,
        },
        {
          expr: `60 * ${sumRate("coatcheck_upstream_resolutions_total", "", [...BY_TARGET, "result"])}`,
          legend: `name ${TARGET} {{result}}`,
        },
      ],
    }),
  ],
};

const limits: Row = {
  title: "Slow and greedy clients",
  panels: [
    series({
      title: "Requests refused by a limit",
      about:
        "Per minute, by limit (docs/limits.md). `address-rate` and `session-rate` are 429. A rise for one reason with ordinary traffic: the limit is too low.",
      unit: "cpm",
      queries: [{ expr: `60 * ${sumRate("coatcheck_requests_limited_total", "", ["reason"])}`, legend: "{{reason}}" }],
    }),
    series({
      title: "Connections of clients",
      about: "Open ones, by instance. Near `limits.connections.total`, new ones are refused.",
      unit: "short",
      alert: "CoatcheckConnectionsRefused",
      queries: [{ expr: `sum by (instance) (${of("coatcheck_connections_open")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Refused connections",
      about: "Per minute: `total`, all of this instance are in use; `address`, one client has all that it may.",
      unit: "cpm",
      alert: "CoatcheckConnectionsRefused",
      queries: [
        { expr: `60 * ${sumRate("coatcheck_connections_refused_total", "", ["reason"])}`, legend: "{{reason}}" },
      ],
    }),
    series({
      title: "Rate limits by who answered",
      about:
        "Checks a second. `shared`: Redis, for all gateways. `fallback`: Redis was too slow, so that limits hold for each gateway by itself.",
      unit: "reqps",
      queries: [{ expr: sumRate("coatcheck_request_limiter_answers_total", "", ["by"]), legend: "{{by}}" }],
    }),
    series({
      title: "Rate limits by oneself",
      about: "Whether an instance counts requests for itself, because Redis gives no answer in time.",
      unit: "bool_yes_no",
      max: 1,
      queries: [{ expr: `max by (instance) (${of("coatcheck_request_limiter_fallback")})`, legend: "{{instance}}" }],
    }),
  ],
};

export const overview: DashboardOptions = {
  uid: "coatcheck-overview",
  title: "Coatcheck / Overview",
  about: "Start here: requests, errors by cause, durations, and what of them is the gateway's.",
  rows: [isItAllRight, routes, errors, targets, time, limits, webSockets],
};
