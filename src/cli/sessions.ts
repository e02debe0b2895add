import type { Environment } from "../config/load.ts";
import {
  REFERENCE_PATTERN,
  type Revocation,
  type SessionDetails,
  type SessionList,
  type SessionSummary,
} from "../core/administration.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, callAdmin, query } from "./admin.ts";
import { CommandError, parse, print, shieldValues, UsageError } from "./arguments.ts";
import { MIGRATION_OPTIONS, runMigration } from "./migrate.ts";
import { runSweep, SWEEP_OPTIONS } from "./sweep.ts";
import { fromNow, grouped, plain, table } from "./text.ts";

const USAGE = `coatcheck sessions: who is signed in, ending it, and what the store holds

Usage:
  coatcheck sessions list --user ID                    the live sessions of a user, newest first
  coatcheck sessions show HANDLE                       one session: names and sizes, no values
  coatcheck sessions end HANDLE                        ends one session
  coatcheck sessions end --user ID [--except HANDLE]   ends all sessions of a user, or all but one
  coatcheck sessions migrate --from URL --to URL       copies live sessions into another store
  coatcheck sessions sweep --config FILE [--fix]       finds what should not be in the store

A HANDLE is what logs and the list show: the first 12 characters of the session's key.

Options of list, show and end, which talk to the admin listener of a running Coatcheck:
${ADMIN_HELP}
      --user ID         with show HANDLE and end HANDLE: whose it is, which makes the search quick
      --json            what the admin listener answers, for machines

Options of migrate, which opens both stores itself:
      --from URL, --to URL
                        what store: of the configuration may be, but memory:;
                        '\${NAME}' is taken from the environment
  -c, --config FILE     for its session settings; --from and --to say where
      --cursor CURSOR   goes on where an earlier run stopped

Options of sweep, which opens the store itself; status 1 if it leaves anything that it has found:
  -c, --config FILE     its configuration
      --store URL       in its place; sessions that are encrypted need the keys in the configuration
      --fix             repairs what can be repaired; a live session is never ended or shortened

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
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
    const list = await callAdmin<SessionList>(admin, { method: "GET", path: `/sessions${query({ user })}` });
    return print(json ? asJson(list) : renderList(list));
  }
  if (handle === undefined) {
    if (command === "show") throw new UsageError("show needs a HANDLE");
    if (user === undefined) throw new UsageError("say what to end: HANDLE or --user ID");
    const ended = await callAdmin<Revocation>(admin, { method: "DELETE", path: `/sessions${query({ user, except })}` });
    print(json ? asJson(ended) : renderEnded(ended));
    if (!ended.complete) throw new CommandError("new sessions of this user began all the while; ask again");
    return 0;
  }
  const path = `/sessions/${handle}${query({ user })}`;
  if (command === "end") {
    const ended = await callAdmin<Revocation>(admin, { method: "DELETE", path });
    return print(json ? asJson(ended) : renderEnded(ended));
  }
  const details = await callAdmin<SessionDetails>(admin, { method: "GET", path });
  return print(json ? asJson(details) : renderDetails(details));
}

/** A handle may begin with a dash, and so may a cursor. */
function shieldHandles(args: readonly string[]): string[] {
  const shielded = shieldValues(args, ["--except", "--cursor"]);
  const isHandle = (arg: string) => arg.startsWith("-") && REFERENCE_PATTERN.test(arg);
  const handles = shielded.filter(isHandle);
  return handles.length === 0 ? shielded : [...shielded.filter((arg) => !isHandle(arg)), "--", ...handles];
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
