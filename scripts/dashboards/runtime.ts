import { type DashboardOptions, of, orZero, type Row, rate, series, stat, sumRate, table } from "./model.ts";

const LAG = "nodejs_eventloop_lag";

const isItAllRight: Row = {
  title: "Is it all right?",
  panels: [
    stat({
      title: "Instances up",
      about: "Instances whose metrics Prometheus can read.",
      unit: "short",
      alert: "CoatcheckDown",
      thresholds: [
        ["red", null],
        ["green", 1],
      ],
      queries: [{ expr: `sum(${of("up")})` }],
    }),
    stat({
      title: "Event loop p99",
      about: "How late the event loop came round, of the worst instance. Everything that is handled waits for so long.",
      unit: "s",
      alert: "CoatcheckEventLoopBlocked",
      thresholds: [
        ["green", null],
        ["orange", 0.05],
        ["red", 0.1],
      ],
      queries: [{ expr: `max(${of(`${LAG}_p99_seconds`)})` }],
    }),
    stat({
      title: "CPU",
      about:
        "Of one core for each worker, of the busiest instance. Near 1: more workers if there are more cores, or more instances.",
      unit: "percentunit",
      decimals: 0,
      thresholds: [
        ["green", null],
        ["orange", 0.7],
        ["red", 0.9],
      ],
      queries: [
        {
          expr: `max(sum by (instance) (${rate("process_cpu_seconds_total")}) / sum by (instance) (${of("coatcheck_workers", 'state="serving"')}))`,
        },
      ],
    }),
    stat({
      title: "Memory",
      about: "Resident memory of the largest instance.",
      unit: "bytes",
      thresholds: [
        ["green", null],
        ["orange", 1_000_000_000],
        ["red", 2_000_000_000],
      ],
      queries: [{ expr: `max(${of("process_resident_memory_bytes")})` }],
    }),
    stat({
      title: "Descriptors",
      about:
        "Share of the allowed file descriptors that are open, of the worst instance. At 1 no connection is accepted; raise `ulimit -n`.",
      unit: "percentunit",
      decimals: 0,
      max: 1,
      thresholds: [
        ["green", null],
        ["orange", 0.7],
        ["red", 0.9],
      ],
      queries: [{ expr: `max(${of("process_open_fds")} / ${of("process_max_fds")})` }],
    }),
    stat({
      title: "Youngest instance",
      about: "How long ago the youngest process started. Minutes, though nobody deployed: it crashes or is killed.",
      unit: "s",
      thresholds: [
        ["orange", null],
        ["green", 600],
      ],
      queries: [{ expr: `time() - max(${of("process_start_time_seconds")})` }],
    }),
    stat({
      title: "Configuration",
      about:
        "Whether the last reload was taken by every instance. REFUSED: the file has a problem, and the one before is in effect.",
      unit: "none",
      alert: "CoatcheckConfigReloadFailed",
      noValue: "unknown",
      thresholds: [["text", null]],
      words: { 0: ["REFUSED", "red"], 1: ["in effect", "green"] },
      queries: [{ expr: `min(${of("coatcheck_config_last_reload_successful")})` }],
    }),
    stat({
      title: "Certificate",
      about: "When the first certificate expires.",
      unit: "s",
      noValue: "no TLS",
      alert: "CoatcheckCertificateExpiring",
      thresholds: [
        ["red", null],
        ["orange", 3 * 86_400],
        ["green", 14 * 86_400],
      ],
      queries: [{ expr: `min(${of("coatcheck_certificate_not_after_timestamp_seconds")}) - time()` }],
    }),
  ],
};

const eventLoop: Row = {
  title: "Event loop and CPU",
  panels: [
    series({
      title: "Event loop lag",
      about: "How late the event loop came round: half of the rounds, 99 of 100, and the latest between two scrapes.",
      unit: "s",
      limit: 0.1,
      alert: "CoatcheckEventLoopBlocked",
      queries: [
        { expr: `max by (instance) (${of(`${LAG}_p50_seconds`)})`, legend: "{{instance}} p50" },
        { expr: `max by (instance) (${of(`${LAG}_p99_seconds`)})`, legend: "{{instance}} p99" },
        { expr: `max by (instance) (${of(`${LAG}_max_seconds`)})`, legend: "{{instance}} max" },
      ],
    }),
    series({
      title: "CPU by instance",
      about: "Of one core. More than 1 is the garbage collector, TLS and DNS on other threads.",
      unit: "percentunit",
      queries: [
        { expr: `sum by (instance) (${rate("process_cpu_user_seconds_total")})`, legend: "{{instance}} user" },
        { expr: `sum by (instance) (${rate("process_cpu_system_seconds_total")})`, legend: "{{instance}} system" },
      ],
    }),
    series({
      title: "Garbage collection",
      about:
        "Share of the time, by kind. `major` for more than a few per cent: the heap is too small for what is kept; see `cache.maxBytes` and the recorder's sizes.",
      unit: "percentunit",
      queries: [
        { expr: sumRate("nodejs_gc_duration_seconds_sum", "", ["instance", "kind"]), legend: "{{instance}} {{kind}}" },
      ],
    }),
    series({
      title: "Handles and descriptors",
      about:
        "Sockets, timers and files that are open: about one for each connection of a client, upstream and to the store. Steadily up: a leak.",
      unit: "short",
      queries: [
        { expr: `sum by (instance) (${of("process_open_fds")})`, legend: "{{instance}} descriptors" },
        { expr: `sum by (instance) (${of("nodejs_active_handles")})`, legend: "{{instance}} handles" },
      ],
    }),
  ],
};

const memory: Row = {
  title: "Heap and buffers",
  panels: [
    series({
      title: "Process",
      about:
        "Resident memory, and what of it the JavaScript heap has taken and uses. Resident up and heap not: buffers, see `external`.",
      unit: "bytes",
      queries: [
        { expr: `sum by (instance) (${of("process_resident_memory_bytes")})`, legend: "{{instance}} resident" },
        { expr: `sum by (instance) (${of("nodejs_heap_size_total_bytes")})`, legend: "{{instance}} heap" },
        { expr: `sum by (instance) (${of("nodejs_heap_size_used_bytes")})`, legend: "{{instance}} heap used" },
        { expr: `sum by (instance) (${of("nodejs_external_memory_bytes")})`, legend: "{{instance}} external" },
      ],
    }),
    series({
      title: "Heap by space",
      about: "`old` up after each collection, for hours: a leak. Take a heap profile with the admin API.",
      unit: "bytes",
      stacked: true,
      queries: [{ expr: `sum by (space) (${of("nodejs_heap_space_size_used_bytes")})`, legend: "{{space}}" }],
    }),
  ],
};

const whatRuns: Row = {
  title: "What runs",
  panels: [
    table({
      title: "Builds",
      about:
        "Versions and how many instances run them. More than one line outside a rollout: somebody forgot an instance.",
      unit: "none",
      width: 12,
      height: 6,
      labels: { version: "Coatcheck", node_version: "Node" },
      columns: [
        {
          title: "Instances",
          unit: "short",
          query: `count by (version, node_version) (${of("coatcheck_build_info")})`,
        },
      ],
    }),
    series({
      title: "Uptime",
      about: "Since the process behind each address started. It falls to zero at a restart; a saw: something kills it.",
      unit: "s",
      width: 12,
      height: 6,
      queries: [{ expr: `time() - max by (instance) (${of("process_start_time_seconds")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Configuration reloads",
      about: "Reloads in each interval by result. `refused`: the reason is in the log, as `config.reload-refused`.",
      unit: "short",
      alert: "CoatcheckConfigReloadFailed",
      colors: { applied: "green", refused: "red" },
      queries: [
        {
          expr: `sum by (result) (increase(${of("coatcheck_config_reloads_total")}[$__rate_interval]))`,
          legend: "{{result}}",
        },
      ],
    }),
    series({
      title: "Age of the configuration",
      about: "Since the last reload that was tried, or the start. Differs between instances: somebody forgot one.",
      unit: "s",
      queries: [
        {
          expr: `time() - max by (instance) (${of("coatcheck_config_last_reload_timestamp_seconds")})`,
          legend: "{{instance}}",
        },
      ],
    }),
    series({
      title: "Restart needed",
      about:
        "Keys of the configuration that are not in effect before a restart; the line `config.reloaded` names them.",
      unit: "short",
      alert: "CoatcheckRestartNeeded",
      queries: [{ expr: `max by (instance) (${of("coatcheck_config_restart_needed")})`, legend: "{{instance}}" }],
    }),
    series({
      title: "Configurations in use, and draining",
      about:
        "Requests go by the configuration that they began with: above 1 while some from before a reload last. `draining`: an instance is about to end.",
      unit: "short",
      queries: [
        { expr: `max by (instance) (${of("coatcheck_configs_in_use")})`, legend: "{{instance}}" },
        { expr: `max by (instance) (${of("coatcheck_draining")})`, legend: "{{instance}} draining" },
      ],
    }),
    series({
      title: "Certificates",
      about: "How long each certificate is still valid, by listener.",
      unit: "s",
      alert: "CoatcheckCertificateExpiring",
      queries: [
        {
          expr: `min by (instance, listener) (${of("coatcheck_certificate_not_after_timestamp_seconds")}) - time()`,
          legend: "{{instance}} {{listener}}",
        },
      ],
    }),
    series({
      title: "Failed TLS handshakes",
      about:
        "With browsers, by reason. `closed` and `not_tls` are mostly scans; many of `alert` after a renewal: the new certificate is not trusted.",
      unit: "cps",
      queries: [
        {
          expr: `sum by (reason) (rate(${of("coatcheck_tls_handshake_failures_total")}[$__rate_interval]))`,
          legend: "{{reason}}",
        },
      ],
    }),
    series({
      title: "Users and sessions under watch",
      about: "Each request of theirs is traced and recorded in full. They end by themselves.",
      unit: "short",
      queries: [{ expr: `sum by (instance) (${of("coatcheck_watches_active")})`, legend: "{{instance}}" }],
    }),
  ],
};

const workers: Row = {
  title: "Workers",
  panels: [
    series({
      title: "Workers by state",
      about:
        "Processes that serve, of all instances; one each, unless `workers` says more. `waiting` is one that has ended and is not back yet.",
      unit: "short",
      stacked: true,
      colors: { serving: "green", starting: "blue", draining: "orange", waiting: "red" },
      queries: [{ expr: `sum by (state) (${of("coatcheck_workers")})`, legend: "{{state}}" }],
    }),
    series({
      title: "Workers that ended unasked",
      about:
        "In each interval, by how. `killed` is mostly the kernel, for want of memory; the log has `worker.exited`.",
      unit: "short",
      alert: "CoatcheckWorkersKeepEnding",
      queries: [
        {
          expr: `sum by (instance, reason) (increase(${of("coatcheck_worker_restarts_total")}[$__rate_interval]))`,
          legend: "{{instance}} {{reason}}",
        },
      ],
    }),
    series({
      title: "CPU by worker",
      about: "Of one core; of a single process, where there is one. One far above the others has the busy connections.",
      unit: "percentunit",
      queries: [
        {
          expr: `sum by (instance, worker) (${rate("coatcheck_worker_cpu_seconds_total")}) or on (instance) sum by (instance) (${rate("process_cpu_seconds_total")})`,
          legend: "{{instance}} {{worker}}",
        },
      ],
    }),
    series({
      title: "Memory by worker",
      about: "Resident; of a single process, where there is one. A gap: a worker was replaced.",
      unit: "bytes",
      queries: [
        {
          expr: `sum by (instance, worker) (${of("coatcheck_worker_memory_bytes")}) or on (instance) sum by (instance) (${of("process_resident_memory_bytes")})`,
          legend: "{{instance}} {{worker}}",
        },
      ],
    }),
  ],
};

const telemetry: Row = {
  title: "What observes",
  panels: [
    series({
      title: "Spans",
      about: "Exported to the collector, and dropped because it is down or too slow; requests are not affected.",
      unit: "ops",
      alert: "CoatcheckSpansDropped",
      colors: { exported: "green", dropped: "red" },
      queries: [
        { expr: sumRate("coatcheck_spans_exported_total"), legend: "exported" },
        { expr: sumRate("coatcheck_spans_dropped_total"), legend: "dropped" },
      ],
    }),
    series({
      title: "Log lines dropped",
      about: "Lines that whoever reads the log did not take in time. The audit trail has a gap there.",
      unit: "cps",
      alert: "CoatcheckLogLinesDropped",
      queries: [{ expr: orZero(sumRate("coatcheck_log_lines_dropped_total")), legend: "dropped" }],
    }),
  ],
};

export const runtime: DashboardOptions = {
  uid: "coatcheck-runtime",
  title: "Coatcheck / Runtime",
  about:
    "The processes: event loop, memory, descriptors, configuration, certificates, and what is lost of spans and log lines.",
  rows: [isItAllRight, eventLoop, memory, workers, whatRuns, telemetry],
};
