import cluster from "node:cluster";
import type { Config } from "../config/compile.ts";
import { MIN_SECRET_LENGTH } from "../config/fields.ts";
import { type Environment, loadConfig, loadConfigFile } from "../config/load.ts";
import { Gateway } from "../gateway.ts";
import { VERSION } from "../version.ts";
import type { Primary, PrimaryOptions } from "../workers/primary.ts";
import { endWhenUnread, FAILED, parse, print, tellOptions, UsageError, WRONG_USAGE } from "./arguments.ts";
import { check } from "./check.ts";
import { runDemo } from "./demo.ts";
import { runDump } from "./dump.ts";
import { runExchanges } from "./exchanges.ts";
import { runExplain } from "./explain.ts";
import { runObserve } from "./observe.ts";
import { runProfile } from "./profile.ts";
import { reloadOnSignal, sourceOf } from "./reload.ts";
import { runSessions } from "./sessions.ts";
import { runTop } from "./top.ts";
import { runWatch } from "./watch.ts";

const USAGE = `coatcheck ${VERSION}: session reverse proxy

Usage:
  coatcheck [serve] --config FILE        serve what the file describes
  coatcheck [serve] --upstream URL       serve one application, without a file
  coatcheck check --config FILE          check the file, print the effective configuration
  coatcheck check --config FILE --store  try the store that it names, tell what is wrong with it
  coatcheck demo [--traffic]             an example application behind a gateway, to try things out
  coatcheck --help | --version

Of a running gateway (coatcheck COMMAND --help has the options):
  coatcheck top                          what happens now, on a terminal
  coatcheck exchanges                    the last requests: which one was it, what became of it
  coatcheck watch                        put a user or a session under watch
  coatcheck explain                      why a request is treated as it is
  coatcheck observe                      see and change log level, access lines and traces
  coatcheck sessions                     list, look at, end, migrate and sweep sessions
  coatcheck dump                         take along everything that it knows, and read it
  coatcheck profile                      where processor time or memory goes

Options of serve and check:
  -c, --config FILE     configuration (YAML); see docs/configuration.md
  -u, --upstream URL    the application, for example http://localhost:3000
      --write KEYS      with --upstream: session keys the application may write (default: user)
      --store URL       with --upstream: redis://…, sqlite:FILE or memory:
                        (default: sqlite:./sessions.db)
      --port N          with --upstream: port for browsers (default: 8080)
      --workers N       with --upstream: processes that serve, a number or auto (default: 1)
      --admin-port N    with --upstream: port for operators (default: 9090)

Environment:
  COATCHECK_SECRET      with --upstream: signs the session cookie; at least ${MIN_SECRET_LENGTH} characters.
                        Without it every restart ends all sessions.
  COATCHECK_ADMIN_TOKEN of a running gateway: the token of its admin listener
  OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_* variables of docs/tracing.md: where traces go

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const COMMANDS: readonly string[] = [
  "serve",
  "check",
  "demo",
  "top",
  "exchanges",
  "watch",
  "explain",
  "observe",
  "sessions",
  "dump",
  "profile",
];

/** Runs a command to its end. @returns the exit status. */
export async function run(args: readonly string[], environment: Environment): Promise<number> {
  try {
    return await dispatch(args, environment);
  } catch (error) {
    if (error instanceof UsageError) {
      const [command = ""] = args;
      const help = COMMANDS.includes(command) ? `coatcheck ${command} --help` : "coatcheck --help";
      process.stderr.write(`coatcheck: ${error.message}\nTry: ${help}\n`);
      return WRONG_USAGE;
    }
    process.stderr.write(`coatcheck: ${error instanceof Error ? error.message : String(error)}\n`);
    return FAILED;
  }
}

async function dispatch(args: readonly string[], environment: Environment): Promise<number> {
  if (cluster.isWorker) return (await import("../workers/worker.ts")).runWorker({ attend, untilSignal });
  const [first, ...others] = args;
  if (first !== undefined && COMMANDS.includes(first) && first !== "serve" && first !== "demo") endWhenUnread();
  if (first === "explain") return runExplain(others, environment);
  if (first === "sessions") return runSessions(others, environment);
  if (first === "top") return runTop(others, environment);
  if (first === "dump") return runDump(others, environment);
  if (first === "profile") return runProfile(others, environment);
  if (first === "exchanges") return runExchanges(others, environment);
  if (first === "watch") return runWatch(others, environment);
  if (first === "observe") return runObserve(others, environment);
  if (first === "demo") return runDemo(others, environment, { attend, untilSignal });
  if (first === "check" && !others.some((option) => option === "--help" || option === "-h"))
    return check(others, environment);
  const { values, positionals } = parse(args, OPTIONS);
  if (values.help) return print(USAGE);
  if (values.version) return print(`${VERSION}\n`);
  const [command = "serve", ...rest] = positionals;
  if (rest.length > 0) throw new UsageError(`unexpected "${rest.join(" ")}"`);
  switch (command) {
    case "serve": {
      const names = Object.keys(values).map((name) => `--${name}`);
      const source = values.config === undefined ? undefined : sourceOf(values.config, environment);
      const gateway = await create(load(values, environment).config, {
        command: [command, ...names],
        ...(source && { source }),
      });
      attend(gateway);
      reloadOnSignal(gateway);
      await gateway.listen().catch((error: unknown) => {
        if (values.config === undefined) tellOptions(error);
        throw error;
      });
      return untilSignal(
        () => gateway.close(),
        undefined,
        () => gateway.abandon(),
      );
    }
    case "check":
      return check(values.config === undefined ? [] : ["--config", values.config], environment);
    default:
      throw new UsageError(`unknown command "${command}"; known: ${COMMANDS.join(", ")}`);
  }
}

const OPTIONS = {
  config: { type: "string", short: "c" },
  upstream: { type: "string", short: "u" },
  write: { type: "string" },
  store: { type: "string" },
  port: { type: "string" },
  "admin-port": { type: "string" },
  workers: { type: "string" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean", short: "v" },
} as const;

type Options = ReturnType<typeof parse<typeof OPTIONS>>["values"];

function load(options: Options, environment: Environment): { config: Config } {
  const { config, upstream, write, store, port } = options;
  if (config !== undefined) {
    for (const name of ["upstream", "write", "store", "port", "admin-port", "workers"] as const) {
      if (options[name] !== undefined)
        throw new UsageError(`--${name} does not go with --config; write it into the file`);
    }
    return loadConfigFile(config, environment);
  }
  if (upstream === undefined) throw new UsageError("say what to serve: --config FILE or --upstream URL");
  const secret = environment.COATCHECK_SECRET;
  const settings = {
    ...(port !== undefined && { listen: { port } }),
    ...(options["admin-port"] !== undefined && { admin: { port: options["admin-port"] } }),
    ...(options.workers !== undefined && { workers: options.workers }),
    ...(store !== undefined && { store }),
    ...(secret && { session: { cookie: { secrets: [secret] } } }),
    routes: [{ upstream, session: "optional", write: (write ?? "user").split(",").map((key) => key.trim()) }],
  };
  return loadConfig(settings, environment, "command line");
}

/** One process, or several below this one; only who has several loads what that takes. */
async function create(config: Config, options: PrimaryOptions): Promise<Gateway | Primary> {
  if (config.workers === 1) return Gateway.create(config, options);
  const { Primary } = await import("../workers/primary.ts");
  return Primary.create(config, options);
}

/** What a process does for its gateway, beside ending it. */
function attend(gateway: Gateway | Primary): void {
  guard(gateway);
  dumpOnSignal(gateway);
}

/**
 * What nobody caught: logged, with the lines that are still waiting, before the process ends. A supervisor starts it
 * again; going on in an unknown state could mix up requests. A promise that nobody waited for is only logged: no
 * request can depend on it, and one client must not be able to end the process (CVE-2024-21536).
 */
function guard({ observer: { log } }: Pick<Gateway, "observer">): void {
  process.on("unhandledRejection", (reason) => log.unexpected(reason));
  process.on("uncaughtException", (error) => {
    log.unexpected(error);
    log.flush();
    process.exit(FAILED);
  });
}

/** SIGUSR2 writes a dump. */
function dumpOnSignal(gateway: Pick<Gateway, "writeDump">): void {
  process.on("SIGUSR2", () => void gateway.writeDump());
}

/** How long the process waits for what is left when everything that counts has been closed, milliseconds. */
const LEAVE_AFTER_MS = 250;

/**
 * Serves until SIGTERM, SIGINT or `sooner`, then ends in order; a second signal ends at once.
 * @param abandon says what that cuts off.
 */
function untilSignal(
  close: () => Promise<void>,
  sooner?: Promise<unknown>,
  abandon?: Gateway["abandon"],
): Promise<number> {
  return new Promise((resolve) => {
    let ending = false;
    // A collector that is silent would hold the process for as long as its exporter has patience.
    const leave = (status: number): void => {
      setTimeout(() => process.exit(status), LEAVE_AFTER_MS).unref();
      resolve(status);
    };
    const end = (signal?: NodeJS.Signals): void => {
      if (ending) {
        const { requests, websockets } = abandon?.() ?? { requests: 0, websockets: 0 };
        const cut = `; cut off: ${requests} requests, ${websockets} WebSockets`;
        process.stderr.write(`coatcheck: ${signal} a second time: ended at once${abandon === undefined ? "" : cut}\n`);
        process.exit(FAILED);
      }
      ending = true;
      close().then(
        () => leave(0),
        (error: unknown) => {
          process.stderr.write(`coatcheck: ${error instanceof Error ? error.message : String(error)}\n`);
          leave(FAILED);
        },
      );
    };
    process.on("SIGTERM", end);
    process.on("SIGINT", end);
    sooner?.then(() => {
      if (!ending) end();
    });
  });
}
