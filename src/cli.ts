import { parseArgs } from "node:util";
import { stringify } from "yaml";
import type { Config } from "./config/compile.ts";
import { MIN_SECRET_LENGTH } from "./config/fields.ts";
import { type Environment, loadConfig, loadConfigFile, maskSettings } from "./config/load.ts";
import { ConfigError } from "./config/problems.ts";
import type { Settings } from "./config/schema.ts";
import { startDemo } from "./demo.ts";
import { Gateway } from "./gateway.ts";
import { ListenError } from "./listening.ts";
import { VERSION } from "./version.ts";

const USAGE = `coatcheck ${VERSION} — session reverse proxy

Usage:
  coatcheck [serve] --config FILE        serve what the file describes
  coatcheck [serve] --upstream URL       serve one application, without a file
  coatcheck check --config FILE          check the file, print the effective configuration
  coatcheck demo                         an example application behind a gateway, to try things out
  coatcheck --help | --version

Options:
  -c, --config FILE     configuration (YAML); see docs/configuration.md
  -u, --upstream URL    the application, for example http://localhost:3000
      --write KEYS      with --upstream: session keys the application may write (default: user)
      --store URL       with --upstream: redis://…, sqlite:FILE or memory: (default: sqlite:./sessions.db)
      --port N          with --upstream and demo: port for browsers (default: 8080)
      --admin-port N    with --upstream and demo: port for operators (default: 9090)

Environment:
  COATCHECK_SECRET      with --upstream: signs the session cookie; at least ${MIN_SECRET_LENGTH} characters.
                        Without it every restart ends all sessions.
  REDIS_URL             with demo: keep sessions in this Redis instead of SQLite
  OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_* variables: where traces go; nowhere by default

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

/** How a command failed: the exit status. */
const FAILED = 1;
const WRONG_USAGE = 2;

class UsageError extends Error {}

/** Runs a command to its end. @returns the exit status. */
export async function run(args: readonly string[], environment: Environment): Promise<number> {
  try {
    return await dispatch(args, environment);
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`coatcheck: ${error.message}\nTry: coatcheck --help\n`);
      return WRONG_USAGE;
    }
    if (error instanceof ConfigError || error instanceof ListenError) {
      process.stderr.write(`coatcheck: ${error.message}\n`);
      return FAILED;
    }
    process.stderr.write(`coatcheck: ${error instanceof Error ? error.message : String(error)}\n`);
    return FAILED;
  }
}

async function dispatch(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(args);
  if (values.help) return print(USAGE);
  if (values.version) return print(`${VERSION}\n`);
  const [command = "serve", ...rest] = positionals;
  if (rest.length > 0) throw new UsageError(`unexpected "${rest.join(" ")}"`);
  switch (command) {
    case "serve": {
      const gateway = await Gateway.create(load(values, environment).config);
      guard(gateway);
      await gateway.listen();
      return untilSignal(() => gateway.close());
    }
    case "check": {
      if (values.config === undefined) throw new UsageError("check needs --config FILE");
      return print(stringify(maskSettings(load(values, environment).settings)));
    }
    case "demo": {
      const demo = await startDemo({
        environment,
        port: values.port ?? "8080",
        adminPort: values["admin-port"] ?? "9090",
      });
      guard(demo.gateway);
      print(demo.tour);
      return untilSignal(() => demo.close());
    }
    default:
      throw new UsageError(`unknown command "${command}"; known: serve, check, demo`);
  }
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        config: { type: "string", short: "c" },
        upstream: { type: "string", short: "u" },
        write: { type: "string" },
        store: { type: "string" },
        port: { type: "string" },
        "admin-port": { type: "string" },
        help: { type: "boolean", short: "h" },
        version: { type: "boolean", short: "v" },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error));
  }
}

type Options = ReturnType<typeof parse>["values"];

function load(options: Options, environment: Environment): { settings: Settings; config: Config } {
  const { config, upstream, write, store, port } = options;
  if (config !== undefined) {
    for (const name of ["upstream", "write", "store", "port", "admin-port"] as const) {
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
    ...(store !== undefined && { store }),
    ...(secret && { session: { cookie: { secrets: [secret] } } }),
    routes: [{ upstream, session: "optional", write: (write ?? "user").split(",").map((key) => key.trim()) }],
  };
  return loadConfig(settings, environment, "command line");
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
    log.close();
    process.exit(FAILED);
  });
}

/** Serves until SIGTERM or SIGINT, then ends in order; a second signal ends at once. */
function untilSignal(close: () => Promise<void>): Promise<number> {
  return new Promise((resolve) => {
    let ending = false;
    const end = (): void => {
      if (ending) process.exit(FAILED);
      ending = true;
      close().then(
        () => resolve(0),
        (error: unknown) => {
          process.stderr.write(`coatcheck: ${error instanceof Error ? error.message : String(error)}\n`);
          resolve(FAILED);
        },
      );
    };
    process.on("SIGTERM", end);
    process.on("SIGINT", end);
  });
}

function print(text: string): number {
  process.stdout.write(text);
  return 0;
}
