import type { Environment } from "../config/load.ts";
import { parseTarget } from "../demo/target.ts";
import { startTraffic, type TrafficSettings } from "../demo/traffic.ts";
import { startDemo } from "../demo.ts";
import type { Gateway } from "../gateway.ts";
import { parse, print, UsageError } from "./arguments.ts";

const USAGE = `coatcheck demo: an example application behind a gateway, to try things out

Usage:
  coatcheck demo                         and a tour of it
  coatcheck demo --traffic               and people who use it, with a failure now and then
  coatcheck demo --traffic-only --target URL
                                         the people only, for a demo gateway that runs elsewhere
                                         (examples/compose.yaml)

Options:
      --port N          port for browsers (default: 8080)
      --admin-port N    port for operators (default: 9090)
      --redis           sessions in a Redis of its own, which must be installed; with traffic it
                        fails now and then
      --users N         with traffic: how many people, 1 to 1000 (default: 50)
      --rate N          with traffic: about how many requests a second, 1 to 500 (default: 20)
      --seconds N       with traffic: for how long, at most 86400 (default: 3600)
      --seed N          with traffic: the same people with the same ideas again (default: others)
      --target URL      with --traffic-only: localhost, a loopback address or http://gateway:PORT,
                        no other

Environment:
  REDIS_URL             keep sessions in this Redis instead of SQLite; nothing is done to it

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  port: { type: "string" },
  "admin-port": { type: "string" },
  redis: { type: "boolean" },
  traffic: { type: "boolean" },
  "traffic-only": { type: "boolean" },
  target: { type: "string" },
  users: { type: "string" },
  rate: { type: "string" },
  seconds: { type: "string" },
  seed: { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

type Options = ReturnType<typeof parse<typeof OPTIONS>>["values"];

const TRAFFIC_OPTIONS = ["users", "rate", "seconds", "seed"] as const;

/** How the process that runs a gateway ends, in `run.ts`. */
export interface ProcessEdge {
  attend(gateway: Gateway): void;
  /** @param sooner ends it too. */
  untilSignal(close: () => Promise<void>, sooner?: Promise<unknown>): Promise<number>;
}

/** The command `demo`. @returns the exit status. */
export async function runDemo(args: readonly string[], environment: Environment, edge: ProcessEdge): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS);
  if (values.help) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${positionals.join(" ")}"`);
  const settings = trafficOf(values);
  if (values["traffic-only"]) return trafficOnly(values, settings, edge);
  if (values.target !== undefined) throw new UsageError("--target goes with --traffic-only");
  if (!values.traffic) {
    const unused = TRAFFIC_OPTIONS.find((name) => values[name] !== undefined);
    if (unused !== undefined) throw new UsageError(`--${unused} goes with --traffic`);
  }
  const demo = await startDemo({
    environment,
    port: values.port ?? "8080",
    adminPort: values["admin-port"] ?? "9090",
    ownRedis: values.redis === true,
    ...(values.traffic && { traffic: settings }),
  });
  edge.attend(demo.gateway);
  if (!values.traffic) {
    print(demo.tour);
    return edge.untilSignal(() => demo.close());
  }
  print(demo.heading);
  const traffic = startTraffic({ ...settings, url: demo.url, print, redis: demo.redis, revoke: demo.revoke });
  return edge.untilSignal(async () => {
    await traffic.stop();
    await demo.close();
  }, traffic.finished);
}

function trafficOnly(values: Options, settings: TrafficSettings, { untilSignal }: ProcessEdge): Promise<number> {
  const unused = (["port", "admin-port", "redis"] as const).find((name) => values[name] !== undefined);
  if (unused !== undefined)
    throw new UsageError(`--${unused} does not go with --traffic-only, which starts no gateway`);
  if (values.target === undefined) throw new UsageError("--traffic-only needs --target URL");
  const url = parseTarget(values.target);
  const { users, rate, seed } = settings;
  print(`${users} people at ${url}, about ${rate} requests a second, seed ${seed}. Ctrl-C ends it.\n`);
  const traffic = startTraffic({ ...settings, url, print });
  return untilSignal(() => traffic.stop(), traffic.finished);
}

function trafficOf(values: Options): TrafficSettings {
  const whole = (name: (typeof TRAFFIC_OPTIONS)[number], otherwise: number, min: number, max: number): number => {
    const text = values[name] ?? String(otherwise);
    const number = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
    if (!(number >= min && number <= max))
      throw new UsageError(`--${name} must be a whole number from ${min} to ${max}`);
    return number;
  };
  return {
    users: whole("users", 50, 1, 1000),
    rate: whole("rate", 20, 1, 500),
    seconds: whole("seconds", 3600, 1, 86_400),
    seed: whole("seed", Math.floor(Math.random() * 100_000), 0, 100_000),
  };
}
