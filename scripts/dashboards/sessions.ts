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
} from "./model.ts";
import { liveSessions, lookupsP99, SPOOFS, SURPRISES, spoofAttempts, surpriseLogouts } from "./shared.ts";

const RESOLUTIONS = "coatcheck_session_resolutions_total";
const LOGOUTS = "coatcheck_session_logouts_total";
const VERIFICATIONS = "coatcheck_cookie_verifications_total";
const OPERATIONS = "coatcheck_session_operations_total";
const OPERATION_DURATION = "coatcheck_session_operation_duration_seconds";
const EVENTS = "coatcheck_session_events_total";
const REVOCATION = "coatcheck_session_revocation_delay_seconds";

const isItAllRight: Row = {
  title: "Is it all right?",
  panels: [
    stat({
      title: "Live sessions",
      about:
        "About how many live sessions the store holds, asked once a minute. A sudden fall without log-outs: sessions were lost.",
      unit: "short",
      noValue: "not counted",
      thresholds: [["blue", null]],
      queries: [{ expr: liveSessions() }],
    }),
    stat({
      title: "Surprise logouts",
      about:
        "Visitors a minute who came with a session cookie of ours and were not recognised, though nothing of theirs had ended. Normal: none.",
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
      title: "Recognised",
      about:
        "Share of requests with a session cookie whose session was found. Falls together with surprise logouts, or when many sessions expire.",
      unit: "percentunit",
      decimals: 1,
      max: 1,
      noValue: "no visitors",
      thresholds: [
        ["red", null],
        ["orange", 0.9],
        ["green", 0.98],
      ],
      queries: [{ expr: `${sumRate(RESOLUTIONS, 'outcome="hit"')} / ${sumRate(RESOLUTIONS, 'outcome!="absent"')}` }],
    }),
    stat({
      title: "Not verified",
      about:
        "Share of session cookies that no configured secret verifies. Above a few per cent: a secret was removed too early, or somebody makes up cookies.",
      unit: "percentunit",
      decimals: 1,
      max: 1,
      noValue: "no cookies",
      alert: "CoatcheckCookieSecretMissing",
      thresholds: [
        ["green", null],
        ["orange", 0.02],
        ["red", 0.2],
      ],
      queries: [{ expr: `${orZero(sumRate(VERIFICATIONS, 'secret="none"'))} / ${sumRate(VERIFICATIONS)}` }],
    }),
    stat({
      title: "Look-up p99",
      about:
        "99 of 100 look-ups in the store took no longer. Sessions from the near cache take microseconds and are not in it.",
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
      title: "Refused for outage",
      about:
        "Requests a second whose session could not be looked up, because the store did not answer. They were not logged out.",
      unit: "reqps",
      alert: "CoatcheckStoreDown",
      thresholds: [
        ["green", null],
        ["red", 0.01],
      ],
      queries: [{ expr: orZero(sumRate(RESOLUTIONS, 'outcome="unavailable"')) }],
    }),
    stat({
      title: "Spoof attempts",
      about:
        "Headers a minute by which clients tried to say who they are, or to remove what we say. All were removed. A few are scanners.",
      unit: "cpm",
      alert: "CoatcheckSpoofAttempts",
      thresholds: [
        ["green", null],
        ["orange", 6],
        ["red", 60],
      ],
      queries: [{ expr: `60 * ${orZero(spoofAttempts())}` }],
    }),
    stat({
      title: "Revocation p99",
      about:
        "From the end of a session, on whichever instance, to the moment when each instance knew. Should stay below 50 ms.",
      unit: "s",
      noValue: "none ended",
      alert: "CoatcheckRevocationSlow",
      thresholds: [
        ["green", null],
        ["orange", 0.05],
        ["red", 0.1],
      ],
      queries: [{ expr: quantile(0.99, REVOCATION) }],
    }),
  ],
};

const loggedOut: Row = {
  title: "Why are people being logged out?",
  panels: [
    series({
      title: "Logged out by surprise",
      about:
        "Visitors a minute by reason. `lost`: the store does not know the session and nobody ended it: evicted, flushed, a failover. `signature`: no configured secret verifies the cookie. `malformed`: what is stored cannot be read, perhaps for want of an encryption key. `newer`: a rollout that goes back. `mismatch`: `session.bind`. `ambiguous`: two live cookies of one name.",
      unit: "cpm",
      stacked: true,
      alert: "CoatcheckSurpriseLogouts",
      colors: {
        lost: "red",
        signature: "orange",
        malformed: "purple",
        newer: "blue",
        mismatch: "yellow",
        ambiguous: "super-light-red",
      },
      queries: [{ expr: `60 * ${sumRate(LOGOUTS, SURPRISES, ["reason"])}`, legend: "{{reason}}" }],
    }),
    series({
      title: "Logged out as they should be",
      about:
        "Visitors a minute who came back too late, or after a logout, an operator or `maxPerUser` had ended their session.",
      unit: "cpm",
      stacked: true,
      colors: { expired: "blue", ended: "green" },
      queries: [{ expr: `60 * ${sumRate(LOGOUTS, 'reason=~"expired|ended"', ["reason"])}`, legend: "{{reason}}" }],
    }),
    series({
      title: "Cookies by secret",
      about:
        "Which secret verified the session cookies. After a rotation `older` falls. `none` on one instance only: that one has other secrets than the rest.",
      unit: "reqps",
      alert: "CoatcheckCookieSecretMissing",
      colors: { first: "green", older: "blue", none: "red" },
      queries: [{ expr: sumRate(VERIFICATIONS, "", ["secret"]), legend: "{{secret}}" }],
    }),
    series({
      title: "Cookies that no secret verifies, by instance",
      about: "Share of the session cookies that each instance sees. High on one: compare its secrets with the others'.",
      unit: "percentunit",
      max: 1,
      alert: "CoatcheckCookieSecretMissing",
      queries: [
        {
          expr: `${sumRate(VERIFICATIONS, 'secret="none"', ["instance"])} / ${sumRate(VERIFICATIONS, "", ["instance"])}`,
          legend: "{{instance}}",
        },
      ],
    }),
  ],
};

const resolutions: Row = {
  title: "Look-ups",
  panels: [
    series({
      title: "Resolutions by outcome",
      about:
        "What became of the session of each request. `absent`: no cookie. `unavailable`: the store does not answer.",
      unit: "reqps",
      stacked: true,
      colors: {
        hit: "green",
        absent: "super-light-blue",
        unknown: "red",
        expired: "blue",
        unavailable: "dark-red",
        malformed: "orange",
        mismatch: "yellow",
        ambiguous: "purple",
      },
      queries: [{ expr: sumRate(RESOLUTIONS, "", ["outcome"]), legend: "{{outcome}}" }],
    }),
    series({
      title: "Resolutions by source",
      about:
        "Where the answer came from. `store` instead of `cache`: the near cache is bypassed, see its feed on the Store dashboard. `stale`: from before an outage.",
      unit: "reqps",
      stacked: true,
      colors: { cache: "green", coalesced: "light-green", store: "blue", stale: "orange", none: "super-light-blue" },
      queries: [{ expr: sumRate(RESOLUTIONS, "", ["source"]), legend: "{{source}}" }],
    }),
    series({
      title: "Operations by answer",
      about:
        "What the store was asked and what it answered. `error` is an outage; `conflict` on `setAll` is two requests that changed the same attribute.",
      unit: "ops",
      queries: [{ expr: sumRate(OPERATIONS, "", ["operation", "status"]), legend: "{{operation}} {{status}}" }],
    }),
    series({
      title: "Latency of operations, p99",
      about:
        "By operation. All slow: the store or the way to it. One slow: a large session, or a user with very many of them.",
      unit: "s",
      alert: "CoatcheckLookupLatencyBudgetBurn",
      queries: [
        { expr: quantile(0.99, OPERATION_DURATION, "", ["operation"]), legend: "{{operation}}", exemplar: true },
      ],
    }),
  ],
};

const life: Row = {
  title: "The life of sessions",
  panels: [
    series({
      title: "Live sessions by store",
      about: "About how many the store holds. A cliff is a loss; a slope is the night.",
      unit: "short",
      queries: [{ expr: `max by (store) (${of("coatcheck_session_store_sessions")})`, legend: "{{store}}" }],
    }),
    series({
      title: "Begun and ended",
      about:
        "Sessions a minute. Many `rotated` for few `created`: people log in again and again, so something logs them out. `revoked`: by an operator. `evicted`: `maxPerUser`.",
      unit: "cpm",
      colors: {
        created: "green",
        rotated: "light-green",
        ended: "blue",
        expired: "light-blue",
        evicted: "yellow",
        mismatch: "orange",
        revoked: "red",
      },
      queries: [{ expr: `60 * ${sumRate(EVENTS, "", ["event"])}`, legend: "{{event}}" }],
    }),
  ],
};

const security: Row = {
  title: "Hijacking, spoofing, revocation",
  panels: [
    series({
      title: "Signs of hijacking",
      about:
        "Requests a minute with a session that another client began (`mismatch`), with two live cookies of one name (`ambiguous`, cookie tossing), or with ids that nobody gave out (`unknown`, if nothing was lost).",
      unit: "cpm",
      colors: { mismatch: "orange", ambiguous: "purple", unknown: "red" },
      queries: [
        {
          expr: `60 * ${sumRate(RESOLUTIONS, 'outcome=~"mismatch|ambiguous|unknown"', ["outcome"])}`,
          legend: "{{outcome}}",
        },
      ],
    }),
    series({
      title: "Headers removed from requests",
      about:
        "By class, a minute. `managed`, `alias`, `internal` and `connection` are attempts to forge or remove an identity header; the recorder has the requests. `forwarded` is normal behind a proxy that is not in `trustedProxies`.",
      unit: "cpm",
      alert: "CoatcheckSpoofAttempts",
      queries: [{ expr: `60 * ${sumRate("coatcheck_headers_stripped_total", "", ["class"])}`, legend: "{{class}}" }],
    }),
    series({
      title: "Spoof attempts by instance",
      about: "The same without what proxies add, for each instance. On one only: somebody goes past the load balancer.",
      unit: "cpm",
      alert: "CoatcheckSpoofAttempts",
      queries: [
        { expr: `60 * ${sumRate("coatcheck_headers_stripped_total", SPOOFS, ["instance"])}`, legend: "{{instance}}" },
      ],
    }),
    series({
      title: "Asked by other proxies",
      about:
        "Requests a second that another proxy asked about, by what was decided. `undecided` were refused: an address that is not in `listen.trustedProxies`, two readings, or a forged identity header; the log line `verification.refused` says which.",
      unit: "reqps",
      stacked: true,
      colors: {
        identified: "green",
        anonymous: "super-light-blue",
        denied: "yellow",
        "login-redirect": "blue",
        outage: "dark-red",
        undecided: "red",
      },
      queries: [
        {
          expr: sumRate("coatcheck_verifications_total", "", ["protocol", "decision"]),
          legend: "{{decision}} {{protocol}}",
        },
      ],
    }),
    series({
      title: "Session commands of the application",
      about:
        "Write-back headers by what became of them. `not-allowed`: a route without `write` sends them, by mistake or by an attack on the application. `malformed`: a bug in the application. `failed`: the store was down.",
      unit: "ops",
      queries: [
        {
          expr: sumRate("coatcheck_write_back_total", "", ["command", "result"]),
          legend: "{{command}} {{result}}",
        },
        { expr: sumRate("coatcheck_write_back_keys_dropped_total"), legend: "keys that may not be written" },
      ],
    }),
    series({
      title: "Revocation delay",
      about: "From the end of a session, on whichever instance, to the moment when an instance knew; by both clocks.",
      unit: "s",
      limit: 0.05,
      alert: "CoatcheckRevocationSlow",
      queries: [
        { expr: quantile(0.5, REVOCATION), legend: "p50" },
        { expr: quantile(0.99, REVOCATION), legend: "p99", exemplar: true },
      ],
    }),
    heatmap({
      title: "Revocations",
      about: "How many instances learned of an end after how long.",
      unit: "s",
      alert: "CoatcheckRevocationSlow",
      queries: [{ expr: `sum by (le) (${rate(`${REVOCATION}_bucket`)})`, exemplar: true }],
    }),
  ],
};

export const sessions: DashboardOptions = {
  uid: "coatcheck-sessions",
  title: "Coatcheck / Sessions",
  about:
    "Why people are being logged out, how sessions are looked up, begin and end, and who tries what is not theirs.",
  rows: [isItAllRight, loggedOut, resolutions, life, security],
};
