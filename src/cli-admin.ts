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
  /** How long the answer may take, to its end. */
  readonly timeoutMs?: number;
}

/**
 * Asks, and reads the JSON of the answer.
 * @throws CommandError when there is none, with what to do about it.
 */
export async function callAdmin<T>(admin: Admin, call: AdminCall): Promise<T> {
  const { status, text } = await askAdmin(admin, call);
  const body = parseJson(text);
  if ((status === 200 || call.answers?.includes(status)) && body !== undefined) return body as T;
  throw refusal(admin, { status, text });
}

/** Asks; every status but 401 is an answer. @throws CommandError when there is none. */
export function askAdmin(admin: Admin, call: AdminCall): Promise<{ readonly status: number; readonly text: string }> {
  return receive(admin, call, async (response) => ({ status: response.status, text: await response.text() }));
}

/**
 * Asks for a file. @param keep reads the body to its end.
 * @throws CommandError when there is none, with what to do about it.
 */
export async function downloadAdmin<T>(
  admin: Admin,
  call: AdminCall,
  keep: (response: Response) => Promise<T>,
): Promise<T> {
  const answer = await receive(admin, call, async (response) =>
    response.status === 200 && response.headers.has("content-disposition")
      ? { file: await keep(response) }
      : { status: response.status, text: await response.text() },
  );
  if ("file" in answer) return answer.file;
  throw refusal(admin, answer);
}

function refusal({ url }: Admin, { status, text }: { readonly status: number; readonly text: string }): CommandError {
  const error = parseJson(text)?.error;
  if (typeof error === "string") return new CommandError(plain(error, 1000));
  return new CommandError(`what answers at ${url} is not the admin listener of Coatcheck (status ${status})`);
}

/** @param read what of the response is wanted; it may throw a CommandError of its own. */
async function receive<T>(
  { url, token, tokenSource }: Admin,
  { method, path, body, timeoutMs = ANSWER_TIMEOUT_MS }: AdminCall,
  read: (response: Response) => Promise<T>,
): Promise<T> {
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
    throw new CommandError(`${tokenSource} holds a blank or a character that no request can carry`);
  try {
    const response = await fetch(url + path, {
      method,
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...(body !== undefined && { "content-type": "application/json" }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      redirect: "error",
      signal: AbortSignal.timeout(timeoutMs),
    });
    if (response.status === 401)
      throw new CommandError(
        `${url} refuses the token: ${tokenSource} ${token ? "is not the right one" : "is not set"}`,
      );
    return await read(response);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError(`${unreachable(error, url, timeoutMs)}; say where it is with --config FILE or --admin URL`);
  }
}

function unreachable(error: unknown, url: string, timeoutMs: number): string {
  if (error instanceof Error && error.name === "TimeoutError")
    return `${url} gave no answer within ${timeoutMs / 1000} s`;
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
