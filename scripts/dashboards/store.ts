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
  states,
  sumRate,
} from "./model.ts";
import { cacheHitRatio, lookupsP99, STORE_WORDS } from "./shared.ts";

const DURATION = "coatcheck_session_operation_duration_seconds";
const DATABASE = "db_client_operation_duration_seconds";
const FAILURES = "coatcheck_session_store_failures_total";
const CHANGE = "coatcheck_session_change_delay_seconds";

const isItAllRight: Row = {
  title: "Is it all right?",
  panels: [
    stat({
      title: "Session store",
      about:
        "Whether the store answers every instance. DOWN: whoever needs a session gets 503, nobody is logged out, and everything goes on when it is back.",
      unit: "none",
      alert: "CoatcheckStoreDown",
      noValue: "not asked yet",
      thresholds: [["text", null]],
      words: STORE_WORDS,
      queries: [{ expr: `min(${of("coatcheck_session_store_up")})` }],
    }),
    stat({
      title: "No answer",
      about: "Attempts a second that the store gave no answer to. The reasons are below.",
      unit: "ops",
      alert: "CoatcheckStoreDown",
      thresholds: [
        ["green", null],
        ["orange", 0.01],
        ["red", 1],
      ],
      queries: [{ expr: orZero(sumRate(FAILURES)) }],
    }),
    stat({
      title: "Look-up p99",
      about: "99 of 100 look-ups in the store took no longer. In Redis nearby: about a millisecond.",
      unit: "s",
      noValue: "none",
      alert: "CoatcheckLookupLatencyBudgetBurn",
      thresholds: [
        ["green", null],
        ["orange", 0.01],
        ["red", 0.1],
      ],
      queries: [{ expr: lookupsP99() }],
    }),
    stat({
      title: "Cache hit ratio",
      about:
        "Share of the sessions found that the near cache had. Low with few visitors, or when each comes rarely; 0 when it is bypassed.",
      unit: "percentunit",
      decimals: 1,
      max: 1,
      noValue: "no visitors",
      alert: "CoatcheckCacheBypassed",
      thresholds: [
        ["red", null],
        ["orange", 0.05],
        ["green", 0.5],
      ],
      queries: [{ expr: cacheHitRatio() }],
    }),
    stat({
      title: "Cache feed",
      about:
        "Whether every instance hears of changes. NOT HEARD: the near cache is bypassed there, and each request reads the store.",
      unit: "none",
      noValue: "no feed",
      alert: "CoatcheckCacheBypassed",
      thresholds: [["text", null]],
      words: { 0: ["heard", "green"], 1: ["NOT HEARD", "orange"] },
      queries: [{ expr: `max(${of("coatcheck_session_feed", 'state=~"lost|refused"')})` }],
    }),
    stat({
      title: "Change delay p99",
      about: "How long a change of our own took to come back: how old a cached session can be.",
      unit: "s",
      noValue: "no feed",
      alert: "CoatcheckRevocationSlow",
      thresholds: [
        ["green", null],
        ["orange", 0.05],
        ["red", 0.1],
      ],
      queries: [{ expr: quantile(0.99, CHANGE) }],
    }),
    stat({
      title: "Resting servers",
      about:
        "Servers of the store that are not asked, because they have not answered lately; of the instance with the most.",
      unit: "short",
      noValue: "0",
      alert: "CoatcheckStoreDown",
      thresholds: [
        ["green", null],
        ["red", 1],
      ],
      queries: [{ expr: `max(${of("coatcheck_session_store_resting")})` }],
    }),
    stat({
      title: "Touches dropped",
      about:
        "Uses of sessions a minute that were not written, because too many were waiting. Such sessions may expire early.",
      unit: "cpm",
      alert: "CoatcheckTouchesDropped",
      thresholds: [
        ["green", null],
        ["red", 1],
      ],
      queries: [{ expr: `60 * ${sumRate("coatcheck_session_touches_dropped_total")}` }],
    }),
  ],
};

const latency: Row = {
  title: "Latency",
  panels: [
    series({
      title: "Operations, p50 and p99",
      about: "From the question to the answer, waiting for a connection and second attempts included.",
      unit: "s",
      logarithmic: true,
      alert: "CoatcheckLookupLatencyBudgetBurn",
      queries: [
        { expr: quantile(0.5, DURATION, "", ["operation"]), legend: "{{operation}} p50" },
        { expr: quantile(0.99, DURATION, "", ["operation"]), legend: "{{operation}} p99", exemplar: true },
      ],
    }),
    heatmap({
      title: "Look-ups",
      about: "How many look-ups took how long. A band at half a second: attempts that were given up.",
      unit: "s",
      queries: [{ expr: `sum by (le) (${rate(`${DURATION}_bucket`, 'operation="find"')})`, exemplar: true }],
    }),
    series({
      title: "Commands to the database, p99",
      about:
        "As the client of the database sees them: OpenTelemetry's `db.client.operation.duration`. Slow here and in the SLOWLOG of Redis: Redis. Slow only here: the network, or this process.",
      unit: "s",
      logarithmic: true,
      queries: [
        {
          expr: quantile(0.99, DATABASE, "", ["db_system_name", "db_operation_name"]),
          legend: "{{db_system_name}} {{db_operation_name}}",
          exemplar: true,
        },
      ],
    }),
    series({
      title: "Commands to the database",
      about:
        "How many of each kind. Many more than requests: the near cache does not help, or something writes all the time.",
      unit: "ops",
      stacked: true,
      queries: [{ expr: sumRate(`${DATABASE}_count`, "", ["db_operation_name"]), legend: "{{db_operation_name}}" }],
    }),
  ],
};

const failures: Row = {
  title: "Errors and connections",
  panels: [
    series({
      title: "No answer, by reason",
      about:
        "`timeout`: it hangs or is overloaded. `closed`: it is down or cannot be reached. `loading`, `readonly`, `master-down`, `cluster-down`: a restart or a failover; it passes. `not-authorized`: user, password or rights. `out-of-memory`: nobody can log in. `breaker`: requests that were spared the wait.",
      unit: "ops",
      stacked: true,
      alert: "CoatcheckStoreDown",
      queries: [{ expr: sumRate(FAILURES, "", ["reason"]), legend: "{{reason}}" }],
    }),
    series({
      title: "Failed commands to the database",
      about: "By error, as the database or the connection gave it.",
      unit: "ops",
      queries: [
        {
          expr: sumRate(`${DATABASE}_count`, 'error_type!=""', ["db_operation_name", "error_type"]),
          legend: "{{db_operation_name}} {{error_type}}",
        },
      ],
    }),
    series({
      title: "Connections made and lost",
      about:
        "A minute, by kind: `data` for sessions, `tracking` and `messages` for changes. `lost` going up steadily: something in between cuts connections.",
      unit: "cpm",
      queries: [
        {
          expr: `60 * ${sumRate("coatcheck_session_store_connections_total", "", ["connection", "event"])}`,
          legend: "{{connection}} {{event}}",
        },
      ],
    }),
    states({
      title: "Store up, by instance",
      about: "Whether the store answered last time. Down on one instance only: the way from there.",
      unit: "none",
      alert: "CoatcheckStoreDown",
      thresholds: [["text", null]],
      words: STORE_WORDS,
      queries: [{ expr: `min by (instance) (${of("coatcheck_session_store_up")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Resting servers and dropped touches",
      about: "Servers that are not asked, by instance, and touches a second that found no room.",
      unit: "short",
      alert: "CoatcheckTouchesDropped",
      queries: [
        { expr: `max by (instance) (${of("coatcheck_session_store_resting")})`, legend: "resting {{instance}}" },
        { expr: sumRate("coatcheck_session_touches_dropped_total", "", ["instance"]), legend: "dropped {{instance}}" },
      ],
    }),
  ],
};

const cache: Row = {
  title: "Near cache",
  panels: [
    series({
      title: "Hit ratio",
      about: "Share of the sessions found that the near cache had, by instance.",
      unit: "percentunit",
      max: 1,
      queries: [
        {
          expr: `${sumRate("coatcheck_session_resolutions_total", 'outcome="hit", source=~"cache|coalesced"', ["instance"])} / ${sumRate("coatcheck_session_resolutions_total", 'outcome="hit"', ["instance"])}`,
          legend: "{{instance}}",
        },
      ],
    }),
    states({
      title: "Feed",
      about:
        "How each instance hears of changes: `tracking` is normal, `messages`: the server refuses CLIENT TRACKING, `lost`: bypassed, `refused`: off.",
      unit: "none",
      alert: "CoatcheckCacheBypassed",
      thresholds: [
        ["transparent", null],
        ["blue", 1],
      ],
      words: { 0: [" ", "transparent"], 1: ["yes", "blue"] },
      queries: [
        { expr: `max by (instance, state) (${of("coatcheck_session_feed")})`, legend: "{{instance}} {{state}}" },
      ],
    }),
    series({
      title: "Sessions in the cache",
      about: "By instance. Much fewer than active users: see the evictions, and `cache.maxAge`.",
      unit: "short",
      queries: [{ expr: `sum by (instance) (${of("coatcheck_session_cache_entries")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Size of the cache",
      about: "By instance. Near `cache.maxBytes` with evictions: raise it, or store less in a session.",
      unit: "bytes",
      queries: [{ expr: `sum by (instance) (${of("coatcheck_session_cache_bytes")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Evictions and invalidations",
      about:
        "What left the cache for want of room, and what left it because it was changed. About one invalidation a minute for each active session is the touch.",
      unit: "ops",
      colors: { evictions: "orange", invalidations: "blue" },
      queries: [
        { expr: sumRate("coatcheck_session_cache_evictions_total"), legend: "evictions" },
        { expr: sumRate("coatcheck_session_cache_invalidations_total"), legend: "invalidations" },
      ],
    }),
    series({
      title: "Change delay",
      about: "How long a change of our own took to come back, by way, measured once a second.",
      unit: "s",
      limit: 0.05,
      alert: "CoatcheckRevocationSlow",
      queries: [
        { expr: quantile(0.5, CHANGE, "", ["by"]), legend: "{{by}} p50" },
        { expr: quantile(0.99, CHANGE, "", ["by"]), legend: "{{by}} p99", exemplar: true },
      ],
    }),
  ],
};

export const store: DashboardOptions = {
  uid: "coatcheck-store",
  title: "Coatcheck / Store",
  about: "The session store as the gateway sees it, and the near cache before it.",
  rows: [isItAllRight, latency, failures, cache],
};
