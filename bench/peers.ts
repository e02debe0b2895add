import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** What a peer has around it; addresses are `http://127.0.0.1:PORT`. */
export interface Surroundings {
  /** For this start of this peer only. */
  readonly folder: string;
  readonly port: number;
  readonly adminPort: number;
  readonly upstream: string;
  readonly collector: string;
  /** `redis://…`; only where `needsRedis`. */
  readonly redis: string | undefined;
}

export interface Launch {
  /** Arguments for node. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface Peer {
  readonly name: string;
  /** What it is and what it does, for the report. */
  readonly about: string;
  /** Coatcheck: has sessions, an admin port, and a metric that has to agree with the load generator. */
  readonly gateway: boolean;
  readonly needsRedis: boolean;
  /** Its spans must have reached the collector when the measurement is over. */
  readonly traced: boolean;
  /** Observability is also switched on and off within one process of it. */
  readonly switched?: boolean;
  /** Whether it removes what `Connection` lists; http-proxy does not. */
  readonly cleansHopByHop: boolean;
  readonly launch: (around: Surroundings) => Launch;
}

/** The yardstick: every ratio is to this one. */
export const BASELINE = "bare-undici";

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

const BARE = { gateway: false, needsRedis: false, traced: false } as const;
const GATEWAY = { gateway: true, needsRedis: false, traced: true, cleansHopByHop: true } as const;

export const PEERS: readonly Peer[] = [
  {
    ...BARE,
    name: BASELINE,
    about: "node:http and undici's dispatch, streaming; the cheapest correct proxy: no session, no metrics, no log",
    cleansHopByHop: true,
    launch: ({ port, upstream }) => ({ args: [path("peers/bare-undici.ts"), String(port), upstream], env: {} }),
  },
  {
    ...BARE,
    name: "http-proxy",
    about: "http-proxy 1.18.1 with a keep-alive agent: no session, no metrics, no log",
    cleansHopByHop: false,
    launch: ({ port, upstream }) => ({
      // It calls util._extend, which node deprecates with a warning.
      args: ["--no-deprecation", path("peers/http-proxy.ts"), String(port), upstream],
      env: {},
    }),
  },
  {
    ...GATEWAY,
    name: "coatcheck-quiet",
    about: "SQLite; no access log, no traces, no recorder (metrics cannot be switched off)",
    traced: false,
    launch: (around) => coatcheck(around, "sqlite", QUIET),
  },
  {
    ...GATEWAY,
    name: "coatcheck-sqlite",
    about: "SQLite; access log, metrics, recorder, 1 % of traces to a collector",
    switched: true,
    launch: (around) => coatcheck(around, "sqlite", OBSERVED),
  },
  {
    ...GATEWAY,
    name: "coatcheck-redis-quiet",
    about: "Redis and the near cache; no access log, no traces, no recorder (metrics cannot be switched off)",
    needsRedis: true,
    traced: false,
    launch: (around) => coatcheck(around, "redis", QUIET),
  },
  {
    ...GATEWAY,
    name: "coatcheck-redis",
    about: "Redis and the near cache; access log, metrics, recorder, 1 % of traces to a collector",
    needsRedis: true,
    switched: true,
    launch: (around) => coatcheck(around, "redis", OBSERVED),
  },
  {
    ...GATEWAY,
    name: "coatcheck-redis-uncached",
    about: "the same without the near cache: a look-up in Redis for each request",
    needsRedis: true,
    launch: (around) => coatcheck(around, "redis", OBSERVED, { maxBytes: "0B" }),
  },
];

/** In the folder of a peer. */
export const CONFIG_FILE = "coatcheck.yaml";

/** As installed, but written down: a change of the defaults must not change what is measured. */
export const OBSERVED = {
  log: { level: "info", access: "all" },
  traces: { ratio: 0.01, slowerThan: "1s", errors: true },
  recorder: { exchanges: 1000, slow: 200, errors: 200 },
} as const;

export const QUIET = {
  log: { level: "info", access: "none" },
  traces: { ratio: 0, slowerThan: "1h", errors: false },
  recorder: { exchanges: 0, slow: 0, errors: 0 },
} as const;

/** The gateway as an operator would run it: one process, a configuration file, the standard variables. */
function coatcheck(
  around: Surroundings,
  store: "sqlite" | "redis",
  observe: typeof OBSERVED | typeof QUIET,
  cache: Record<string, string> = {},
): Launch {
  const file = join(around.folder, CONFIG_FILE);
  const settings = {
    listen: { host: "127.0.0.1", port: around.port },
    admin: { host: "127.0.0.1", port: around.adminPort },
    store: store === "redis" ? around.redis : `sqlite:${join(around.folder, "sessions.db")}`,
    // Touches are due every tenth of this, so that they happen while it is measured.
    session: { idleTimeout: "1m", cookie: { secrets: ["not-a-secret-but-long-enough-for-a-bench"] } },
    routes: [
      { match: { path: "/" }, upstream: around.upstream, session: "required" },
      { match: { path: "/login" }, upstream: around.upstream, session: "optional", write: ["user"] },
    ],
    observe,
    cache,
  };
  // JSON is YAML.
  writeFileSync(file, JSON.stringify(settings, null, 2));
  return {
    args: [path("../src/main.ts"), "serve", "--config", file],
    env: observe === OBSERVED ? { OTEL_EXPORTER_OTLP_ENDPOINT: around.collector } : {},
  };
}
