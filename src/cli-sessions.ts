import { CommandError, parse, print, UsageError } from "./cli-arguments.ts";
import { MIGRATION_OPTIONS, runMigration } from "./cli-migrate.ts";
import { runSweep, SWEEP_OPTIONS } from "./cli-sweep.ts";
import { fromNow, grouped, plain, table } from "./cli-text.ts";
import { type Environment, loadConfigFile } from "./config/load.ts";
import {
  REFERENCE_PATTERN,
  type Revocation,
  type SessionDetails,
  type SessionList,
  type SessionSummary,
} from "./core/administration.ts";

const USAGE = `Usage:
  coatcheck sessions list --user ID                    the live sessions of a user, newest first
  coatcheck sessions show HANDLE                       one session: names and sizes, no values
  coatcheck sessions end HANDLE                        ends one session
  coatcheck sessions end --user ID [--except HANDLE]   ends all sessions of a user, or all but one
  coatcheck sessions migrate --from URL --to URL       copies live sessions into another store
  coatcheck sessions sweep --config FILE [--fix]       finds what should not be in the store

A HANDLE is what logs and the list show: the first 12 characters of the session's key.

Options of list, show and end, which talk to the admin listener of a running Coatcheck:
  -c, --config FILE     its configuration, for address and token
      --admin URL       its address (default: http://127.0.0.1:9090); the token is COATCHECK_ADMIN_TOKEN
      --user ID         with show HANDLE and end HANDLE: whose it is, which makes the search quick
      --json            what the admin listener answers, for machines

Options of migrate, which opens both stores itself:
      --from URL, --to URL   what store: of the configuration may be, but memory:; '\${NAME}' is taken from the environment
  -c, --config FILE          for its session settings; --from and --to say where
      --cursor CURSOR        goes on where an earlier run stopped

Options of sweep, which opens the store itself, and exits with 1 if it leaves anything that it has found:
  -c, --config FILE     its configuration
      --store URL       in its place; sessions that are encrypted need the keys in the configuration
      --fix             repairs what can be repaired; a live session is never ended or shortened

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const DEFAULT_ADMIN = "http://127.0.0.1:9090";
/** A search by handle goes through the whole store, and so does the end of many sessions. */
const ANSWER_TIMEOUT_MS = 120_000;

const OPTIONS = {
  config: { type: "string", short: "c" },
  admin: { type: "string" },
  user: { type: "string" },
  except: { type: "string" },
  json: { type: "boolean" },
} as const;

/** `coatcheck sessions …`. */
export async function runSessions(args: readonly string[], environment: Environment): Promise<number> {
  if (args.length === 0 || args.includes("--help") || args.includes("-h")) return print(USAGE);
  const [command, ...rest] = args;
  const shielded = shieldHandles(rest);
  if (command === "migrate") return runMigration(parse(shielded, MIGRATION_OPTIONS), environment);
  if (command === "sweep") return runSweep(parse(shielded, SWEEP_OPTIONS), environment);
  if (command !== "list" && command !== "show" && command !== "end")
    throw new UsageError(`unknown command "sessions ${command}"; known: list, show, end, migrate, sweep`);
  const { values, positionals } = parse(shielded, OPTIONS);
  const { user, except, json } = values;
  const [handle, ...more] = positionals;
  if (more.length > 0) throw new UsageError(`unexpected "${more.join(" ")}"`);
  for (const reference of [handle, except])
    if (reference !== undefined && !REFERENCE_PATTERN.test(reference))
      throw new UsageError(`"${plain(reference, 50)}" is no handle: a handle has 12 characters of A-Z a-z 0-9 - _`);
  if (except !== undefined && (command !== "end" || handle !== undefined || user === undefined))
    throw new UsageError("--except goes with: end --user ID");
  const admin = adminOf(values, environment);
  if (command === "list") {
    if (handle !== undefined) throw new UsageError(`unexpected "${handle}"; to see one session: show HANDLE`);
    if (user === undefined) throw new UsageError("list needs --user ID");
    const list = await callAdmin<SessionList>(admin, "GET", `/sessions${query({ user })}`);
    return print(json ? asJson(list) : renderList(list));
  }
  if (handle === undefined) {
    if (command === "show") throw new UsageError("show needs a HANDLE");
    if (user === undefined) throw new UsageError("say what to end: HANDLE or --user ID");
    const ended = await callAdmin<Revocation>(admin, "DELETE", `/sessions${query({ user, except })}`);
    print(json ? asJson(ended) : renderEnded(ended));
    if (!ended.complete) throw new CommandError("new sessions of this user began all the while; ask again");
    return 0;
  }
  const path = `/sessions/${handle}${query({ user })}`;
  if (command === "end") {
    const ended = await callAdmin<Revocation>(admin, "DELETE", path);
    return print(json ? asJson(ended) : renderEnded(ended));
  }
  const details = await callAdmin<SessionDetails>(admin, "GET", path);
  return print(json ? asJson(details) : renderDetails(details));
}

/** A handle or a cursor may begin with a dash, which would make it an option. */
function shieldHandles(args: readonly string[]): string[] {
  const shielded: string[] = [];
  const handles: string[] = [];
  for (const arg of args) {
    const before = shielded.at(-1) ?? "";
    if (!arg.startsWith("-") || !REFERENCE_PATTERN.test(arg)) shielded.push(arg);
    else if (before === "--except" || before === "--cursor") shielded.splice(-1, 1, `${before}=${arg}`);
    else handles.push(arg);
  }
  return handles.length === 0 ? shielded : [...shielded, "--", ...handles];
}

interface Admin {
  /** Without a slash at the end. */
  readonly url: string;
  readonly token: string | undefined;
  /** Where a person would correct the token. */
  readonly tokenSource: string;
}

function adminOf(values: { config?: string | undefined; admin?: string | undefined }, environment: Environment): Admin {
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

async function callAdmin<T>({ url, token, tokenSource }: Admin, method: "GET" | "DELETE", path: string): Promise<T> {
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
    throw new CommandError(`${tokenSource} holds a blank or a character that no request can carry`);
  let status: number;
  let text: string;
  try {
    const response = await fetch(url + path, {
      method,
      headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
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
  const body = parseJson(text);
  if (status === 200 && body !== undefined) return body as T;
  if (typeof body?.error === "string") throw new CommandError(plain(body.error, 1000));
  throw new CommandError(`what answers at ${url} is not the admin listener of Coatcheck (status ${status})`);
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

function query(parameters: Readonly<Record<string, string | undefined>>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined) search.set(name, value);
  return search.size === 0 ? "" : `?${search}`;
}

function asJson(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function renderList({ count, truncated, sessions }: SessionList): string {
  if (count === 0) return "No live session.\n";
  const now = Date.now();
  const rows = sessions.map((session) => [
    session.handle,
    shownTime(session.createdAt),
    fromNow(session.usedAt, now),
    shownEnd(session, now),
    plain(session.client?.address || "-", 45),
    plain(session.client?.userAgent || "-", 60),
  ]);
  const more = truncated ? `These are the newest ${grouped(count)}; there may be more.\n` : "";
  return table([["HANDLE", "CREATED (UTC)", "LAST USE", "EXPIRES", "ADDRESS", "USER AGENT"], ...rows]) + more;
}

function renderDetails(session: SessionDetails): string {
  const now = Date.now();
  const { user, client, siblings, attributes } = session;
  const facts = [
    ["handle", session.handle],
    ["user", user === null ? "nobody" : plain(user.id)],
    ["claims", user === null ? "-" : plain(user.claims.join(", ") || "-", 1000)],
    ["created", `${shownTime(session.createdAt)} UTC`],
    ["last use", `${shownTime(session.usedAt)} UTC, ${fromNow(session.usedAt, now)}`],
    ["expires", `${shownTime(session.expiresAt)} UTC, ${shownEnd(session, now)}`],
    ["address", plain(client?.address || "-")],
    ["user agent", plain(client?.userAgent || "-", 256)],
    ["siblings", siblings.join(", ") || "-"],
    ["version", String(session.version)],
  ];
  if (attributes.length === 0) return `${table(facts)}\nNo attributes.\n`;
  const sizes = attributes.map(({ name, bytes }) => [plain(name, 128), grouped(bytes)]);
  return `${table(facts)}\n${table([["ATTRIBUTE", "BYTES"], ...sizes], [1])}`;
}

function renderEnded({ count, ended }: Revocation): string {
  const lines = ended.map((handle) => `${handle}\n`).join("");
  return `${lines}${count === 1 ? "1 session" : `${grouped(count)} sessions`} ended.\n`;
}

/** `2026-05-01 12:00:00` */
function shownTime(iso: string): string {
  return iso.slice(0, 19).replace("T", " ");
}

function shownEnd({ expiresAt, retiresAt }: SessionSummary, now: number): string {
  return retiresAt === null ? fromNow(expiresAt, now) : `${fromNow(retiresAt, now)}, replaced`;
}
