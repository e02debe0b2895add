import { parseDuration } from "./units.ts";

/** Where a Redis is and how to get in, as one URL says it. Times are milliseconds. */
export interface RedisAddress {
  readonly topology: "standalone" | "sentinel" | "cluster";
  readonly tls: boolean;
  /** Of the server, the sentinels, or some of the cluster's nodes: at least one. */
  readonly hosts: readonly RedisHost[];
  /** Of a Sentinel: the name under which it watches the servers. */
  readonly master: string | undefined;
  readonly database: number;
  readonly username: string | undefined;
  readonly password: string | undefined;
  /** For the sentinels themselves, where these ask for one. */
  readonly sentinelUsername: string | undefined;
  readonly sentinelPassword: string | undefined;
  /** Files in PEM form: who signs the server's certificate; our own certificate and key. */
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  /** The name in the server's certificate, where it is another than the host. */
  readonly servername: string | undefined;
  readonly connectTimeoutMs: number;
  /** For one answer of the server. */
  readonly commandTimeoutMs: number;
  /** For one operation, with everything that is tried again. */
  readonly totalTimeoutMs: number;
}

export interface RedisHost {
  readonly host: string;
  readonly port: number;
}

export const REDIS_SCHEMES = [
  "redis:",
  "rediss:",
  "redis+sentinel:",
  "rediss+sentinel:",
  "redis+cluster:",
  "rediss+cluster:",
] as const;

export function isRedisUrl(text: string): boolean {
  return REDIS_SCHEMES.some((scheme) => text.startsWith(scheme));
}

const DEFAULT_PORT = { standalone: 6379, sentinel: 26379, cluster: 6379 } as const;
const PARAMETERS = new Set([
  "ca",
  "cert",
  "key",
  "servername",
  "sentinelUsername",
  "sentinelPassword",
  "connectTimeout",
  "commandTimeout",
  "totalTimeout",
]);

const SHAPE =
  /^(redis|rediss)(?:\+(sentinel|cluster))?:\/\/(?:(?<credentials>[^@/?#]*)@)?(?<hosts>[^@/?#]+)(?:\/(?<path>[^@?#]*))?(?:\?(?<query>[^@#]*))?$/;

/**
 * Reads `redis://user:password@host:port/db`, `redis+sentinel://user:password@h1:26379,h2:26379/mymaster/db` or
 * `redis+cluster://user:password@h1:7000,h2:7000`; `rediss` instead of `redis` for TLS. User and password are
 * percent-encoded. Several hosts make it a URL that `URL` does not read.
 * @throws TypeError that says what is wrong, and holds nothing of the credentials.
 */
export function parseRedisUrl(text: string): RedisAddress {
  const match = SHAPE.exec(text);
  if (match === null) {
    throw new TypeError(
      "is not a Redis URL such as redis://user:password@host:6379/0; special characters in a password are percent-encoded",
    );
  }
  const topology = (match[2] ?? "standalone") as RedisAddress["topology"];
  const { credentials, hosts = "", path = "", query = "" } = match.groups ?? {};
  // A plus is a plus, as in base64, and not a blank, as in a form.
  const parameters = new URLSearchParams(query.replaceAll("+", "%2B"));
  // Its name is not repeated: it may be the rest of a password with an unescaped "&" in it.
  if (![...parameters.keys()].every((name) => PARAMETERS.has(name)))
    throw new TypeError(`has an unknown parameter; known: ${[...PARAMETERS].join(", ")}`);
  const steps = path.split("/").filter((step) => step !== "");
  const master = topology === "sentinel" ? steps.shift() : undefined;
  if (topology === "sentinel" && master === undefined) {
    throw new TypeError("needs the name that the sentinels watch, such as redis+sentinel://host:26379/mymaster");
  }
  const database = databaseOf(steps, topology);
  const colon = credentials?.indexOf(":") ?? -1;
  const given = (name: string) => parameters.get(name) || undefined;
  const time = (name: string, fallback: number) => timeOf(parameters, name, fallback);
  return {
    topology,
    tls: match[1] === "rediss",
    hosts: hostsOf(hosts, topology),
    master: master === undefined ? undefined : decode(master),
    database,
    username:
      credentials === undefined
        ? undefined
        : decode(colon === -1 ? credentials : credentials.slice(0, colon)) || undefined,
    password: colon === -1 ? undefined : decode((credentials ?? "").slice(colon + 1)) || undefined,
    sentinelUsername: given("sentinelUsername"),
    sentinelPassword: given("sentinelPassword"),
    ca: given("ca"),
    cert: given("cert"),
    key: given("key"),
    servername: given("servername"),
    connectTimeoutMs: time("connectTimeout", 1_000),
    commandTimeoutMs: time("commandTimeout", 500),
    totalTimeoutMs: time("totalTimeout", 1_000),
  };
}

/** The URL as it can be shown: hosts and database, no credentials and no parameters. */
export function maskRedisUrl(text: string): string {
  const match = SHAPE.exec(text);
  if (match === null) return `${text.slice(0, Math.max(0, text.indexOf("://")))}://***`;
  const { credentials, hosts, path, query } = match.groups ?? {};
  // What has no colon may well be a password alone.
  const user = credentials === undefined ? "" : `${credentials.replace(/^[^:]*$/, "").split(":", 1)[0]}:***@`;
  const scheme = text.slice(0, text.indexOf("://"));
  return `${scheme}://${user}${hosts}${path === undefined ? "" : `/${path}`}${query === undefined ? "" : "?***"}`;
}

function hostsOf(text: string, topology: RedisAddress["topology"]): RedisHost[] {
  const hosts = text.split(",").map((item) => {
    const match = /^(?:\[(?<v6>[0-9a-fA-F:.]+)\]|(?<name>[A-Za-z0-9._-]+))(?::(?<port>\d{1,5}))?$/.exec(item);
    const port = match?.groups?.port === undefined ? DEFAULT_PORT[topology] : Number(match.groups.port);
    if (match === null || port < 1 || port > 65535)
      throw new TypeError("has a host that is not host, host:port or [IPv6]:port");
    return { host: (match.groups?.v6 ?? match.groups?.name) as string, port };
  });
  if (topology === "standalone" && hosts.length > 1) {
    throw new TypeError("names several hosts: write redis+cluster:// for a cluster, redis+sentinel:// for sentinels");
  }
  return hosts;
}

function databaseOf(steps: readonly string[], topology: RedisAddress["topology"]): number {
  const [text = "0", ...rest] = steps;
  if (rest.length > 0 || !/^\d{1,4}$/.test(text)) throw new TypeError("has a path that is not a database number");
  if (topology === "cluster" && text !== "0") throw new TypeError("names a database: a cluster has only database 0");
  return Number(text);
}

function timeOf(parameters: URLSearchParams, name: string, fallback: number): number {
  const text = parameters.get(name);
  if (text === null) return fallback;
  const ms = parseDuration(text);
  if (ms === undefined || ms < 10 || ms > 60_000) {
    throw new TypeError(`has a ${name} that is not a duration between 10ms and 60s`);
  }
  return ms;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new TypeError("has a user or password that is not percent-encoded");
  }
}
