import { CommandError, UsageError } from "./cli-arguments.ts";
import { plain } from "./cli-text.ts";
import { type Environment, loadConfigFile } from "./config/load.ts";

/** How commands talk to the admin listener of a running Coatcheck. */

const DEFAULT_ADMIN = "http://127.0.0.1:9090";
/** A search by handle goes through the whole store, and so does the end of many sessions. */
const ANSWER_TIMEOUT_MS = 120_000;

/** Where it is, for `parse`. */
export const ADMIN_OPTIONS = {
  config: { type: "string", short: "c" },
  admin: { type: "string" },
} as const;

/** The same for `--help`. */
export const ADMIN_HELP = `  -c, --config FILE     its configuration, for address and token
      --admin URL       its address (default: ${DEFAULT_ADMIN}); the token is COATCHECK_ADMIN_TOKEN`;

/** The admin listener of a running Coatcheck. */
export interface Admin {
  /** Without a slash at the end. */
  readonly url: string;
  readonly token: string | undefined;
  /** Where a person would correct the token. */
  readonly tokenSource: string;
}

/** @throws UsageError when the options do not say where it is. */
export function adminOf(
  values: { config?: string | undefined; admin?: string | undefined },
  environment: Environment,
): Admin {
  const { config: file, admin } = values;
  if (file === undefined) {
    const url = admin ?? DEFAULT_ADMIN;
    const parsed = URL.canParse(url) ? new URL(url) : undefined;
    if (parsed === undefined || !/^https?:$/.test(parsed.protocol) || parsed.username !== "" || parsed.password !== "")
      throw new UsageError("--admin must be a URL such as http://127.0.0.1:9090, without user and password");
    const token = environment.COATCHECK_ADMIN_TOKEN || undefined;
    return {
      url: `${parsed.origin}${parsed.pathname.replace(/\/$/, "")}`,
      token,
      tokenSource: "COATCHECK_ADMIN_TOKEN",
    };
  }
  if (admin !== undefined) throw new UsageError("--admin does not go with --config, which says where it listens");
  const { host, port, token } = loadConfigFile(file, environment).config.admin;
  if (port === 0) throw new UsageError(`admin.port in ${file} is 0, any free port: say which with --admin URL`);
  const reachable = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host;
  const name = reachable.includes(":") ? `[${reachable}]` : reachable;
  return { url: `http://${name}:${port}`, token, tokenSource: `admin.token in ${file}` };
}

export interface AdminCall {
  readonly method: "GET" | "POST" | "DELETE";
  /** With the query. */
  readonly path: string;
  /** Sent as JSON. */
  readonly body?: unknown;
  /** Other statuses than 200 whose body is an answer too. */
  readonly answers?: readonly number[];
}

/**
 * Asks, and reads the JSON of the answer.
 * @throws CommandError when there is none, with what to do about it.
 */
export async function callAdmin<T>(admin: Admin, call: AdminCall): Promise<T> {
  const { status, text } = await askAdmin(admin, call);
  const body = parseJson(text);
  if ((status === 200 || call.answers?.includes(status)) && body !== undefined) return body as T;
  if (typeof body?.error === "string") throw new CommandError(plain(body.error, 1000));
  throw new CommandError(`what answers at ${admin.url} is not the admin listener of Coatcheck (status ${status})`);
}

/** Asks; every status but 401 is an answer. @throws CommandError when there is none. */
export async function askAdmin(
  { url, token, tokenSource }: Admin,
  { method, path, body }: AdminCall,
): Promise<{ readonly status: number; readonly text: string }> {
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
    throw new CommandError(`${tokenSource} holds a blank or a character that no request can carry`);
  let status: number;
  let text: string;
  try {
    const response = await fetch(url + path, {
      method,
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...(body !== undefined && { "content-type": "application/json" }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      redirect: "error",
      signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
    });
    status = response.status;
    text = await response.text();
  } catch (error) {
    throw new CommandError(`${unreachable(error, url)}; say where it is with --config FILE or --admin URL`);
  }
  if (status === 401)
    throw new CommandError(`${url} refuses the token: ${tokenSource} ${token ? "is not the right one" : "is not set"}`);
  return { status, text };
}

function unreachable(error: unknown, url: string): string {
  if (error instanceof Error && error.name === "TimeoutError")
    return `${url} gave no answer within ${ANSWER_TIMEOUT_MS / 1000} s`;
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  const refused = code === "ECONNREFUSED" ? "nothing listens there, so no Coatcheck is running at" : "cannot ask";
  return `${refused} ${url}${code === "" || code === "ECONNREFUSED" ? "" : ` (${code})`}`;
}

function parseJson(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

export function query(parameters: Readonly<Record<string, string | undefined>>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined) search.set(name, value);
  return search.size === 0 ? "" : `?${search}`;
}
