import { randomBytes } from "node:crypto";
import type { Redis } from "ioredis";
import type { RedisAddress } from "../core/redis-url.ts";
import { codesOf } from "./failures.ts";
import { CHANGES_CHANNEL, ECHO_PREFIX, INVALIDATIONS_CHANNEL } from "./redis-feed.ts";
import { SESSION_PREFIX, USER_PREFIX } from "./redis-scripts.ts";

export interface RightsOptions {
  readonly topology: RedisAddress["topology"];
  /** Whose rights these are: the user of the connection. */
  readonly username: string;
  /** A key, which nobody has, in a slot of the server that is asked. */
  keyLike(prefix: string): string;
}

/**
 * Each command as the scripts use it, on a key that is not there, in an order that leaves nothing behind: what is written
 * has expired already, and nothing is written before it is known that it can be made to expire.
 */
const SCRIPTED = `
  local refused = {}
  local function may(...)
    local reply = redis.pcall(...)
    if type(reply) ~= 'table' or not reply.err then return true end
    table.insert(refused, (select(1, ...)))
    table.insert(refused, reply.err)
  end
  may('EXISTS', KEYS[1])
  may('HGET', KEYS[1], 'f')
  may('HMGET', KEYS[1], 'f')
  may('HKEYS', KEYS[1])
  may('HDEL', KEYS[1], 'f')
  may('ZREMRANGEBYSCORE', KEYS[1], 0, 0)
  may('UNLINK', KEYS[1])
  may('PEXPIRETIME', KEYS[1])
  local ends = may('PEXPIREAT', KEYS[1], 1)
  if ends and may('HSET', KEYS[1], 'f', '') then redis.call('PEXPIREAT', KEYS[1], 1) end
  if ends and may('ZADD', KEYS[1], 0, 'm') then redis.call('PEXPIREAT', KEYS[1], 1) end
  may('PUBLISH', '${CHANGES_CHANNEL}', '')
  return refused`;

/** A SHA-1 that no script has. */
const NO_SCRIPT = "0".repeat(40);

const WITHOUT = {
  reading: "no session can be read, and every request with a cookie gets 503",
  writing: "nobody can log in or out, and no session can be changed",
  users: "the sessions of a user cannot be listed or ended",
  scanning: "sessions cannot be found by handle, migrated or swept",
  messages: "gateways do not tell each other of changes, and where tracking is refused too, nothing is cached",
  tracking: "Redis cannot tell of changes itself, and the near cache depends on the messages of the gateways alone",
  looking: "nothing is known of its version, memory and persistence, and whether it is still reading its data",
  connecting: "gateways do not connect to the cluster, since they cannot see whether it serves",
  redirection: "while slots move from node to node, some sessions cannot be reached",
} as const;

/** Where the names of commands are collected by what does not work without them. */
type Missing = Map<string, Set<string>>;

/**
 * Tries everything that a gateway does, on keys and channels that nobody uses, and tells what is missing, and what does
 * not work because of it. The connection has subscriptions afterwards, and is of no further use.
 * @param redis a connection with RESP2.
 */
export async function rightsWarnings(redis: Redis, options: RightsOptions): Promise<readonly string[]> {
  const [forbidden, unknown]: [Missing, Missing] = [new Map(), new Map()];
  const note: Note = (error, attempt) => {
    const right = rightFor(error, attempt);
    if (right !== undefined) add(forbidden, attempt.without, right);
    else if (isUnknownCommand(error)) add(unknown, attempt.without, callOf(attempt.command).join(" ").toUpperCase());
  };
  const { username, keyLike } = options;
  for (const prefix of [SESSION_PREFIX, USER_PREFIX]) await tryScript(redis, keyLike(prefix), note);
  const id = await redis.client("ID").catch(() => 0);
  for (const attempt of attempts(options, String(id))) {
    const { command, parameters } = attempt;
    await redis.call(...callOf(command), ...parameters).catch((error: unknown) => note(error, attempt));
  }
  return [
    ...[...forbidden].map(([without, rights]) => {
      const list = [...rights].join(" ");
      return `the Redis user ${username} lacks ${list}: ${without}; to change that: ACL SETUSER ${username} ${list}`;
    }),
    ...[...unknown].map(
      ([without, commands]) =>
        `the server does not know ${[...commands].join(", ")}, which somebody may have renamed or disabled: ${without}`,
    ),
  ];
}

type Note = (error: unknown, attempt: Attempt) => void;

async function tryScript(redis: Redis, key: string, note: Note): Promise<void> {
  try {
    const refused = (await redis.eval(SCRIPTED, 1, key)) as string[];
    for (let i = 0; i < refused.length; i += 2) {
      const command = (refused[i] ?? "").toLowerCase();
      const without = command === "publish" ? WITHOUT.messages : WITHOUT.writing;
      note(new Error(refused[i + 1]), { without, command, parameters: [] });
    }
  } catch (error) {
    note(error, { without: WITHOUT.writing, command: "eval", parameters: [] });
  }
}

interface Attempt {
  readonly without: string;
  /** In lower case; a command and its subcommand as in ACL rules, `client|id`. */
  readonly command: string;
  readonly parameters: readonly string[];
}

/** @param id of the connection. */
function attempts({ keyLike, topology }: RightsOptions, id: string): readonly Attempt[] {
  const [session, user, echo] = [keyLike(SESSION_PREFIX), keyLike(USER_PREFIX), keyLike(ECHO_PREFIX)];
  const channel = `${ECHO_PREFIX}${randomBytes(9).toString("base64url")}`;
  const prefixes = ["PREFIX", SESSION_PREFIX, "PREFIX", ECHO_PREFIX];
  const attempt = (without: string, command: string, ...parameters: readonly string[]): Attempt => {
    return { without, command, parameters };
  };
  return [
    attempt(WITHOUT.reading, "exists", session),
    attempt(WITHOUT.reading, "hmget", session, "v"),
    attempt(WITHOUT.reading, "hgetall", session),
    attempt(WITHOUT.writing, "evalsha", NO_SCRIPT, "1", session),
    attempt(WITHOUT.users, "zrange", user, "+inf", "0", "BYSCORE", "REV", "LIMIT", "0", "1"),
    attempt(WITHOUT.users, "zrem", user, "m"),
    attempt(WITHOUT.scanning, "scan", "0", "MATCH", session, "COUNT", "1"),
    ...(topology === "cluster"
      ? [attempt(WITHOUT.connecting, "cluster|info"), attempt(WITHOUT.redirection, "asking")]
      : []),
    attempt(WITHOUT.looking, "info", "server"),
    attempt(WITHOUT.messages, "publish", channel, ""),
    attempt(WITHOUT.tracking, "ping"),
    attempt(WITHOUT.tracking, "set", echo, "", "XX", "PX", "1"),
    attempt(WITHOUT.tracking, "client|id"),
    attempt(WITHOUT.tracking, "client|tracking", "ON", "REDIRECT", id, "BCAST", ...prefixes),
    attempt(WITHOUT.messages, "subscribe", CHANGES_CHANNEL, channel),
    attempt(WITHOUT.tracking, "subscribe", INVALIDATIONS_CHANNEL),
  ];
}

function callOf(command: string): [string, ...string[]] {
  const [name = "", ...subcommand] = command.split("|");
  return [name, ...subcommand];
}

function add(missing: Missing, without: string, name: string): void {
  missing.set(without, (missing.get(without) ?? new Set()).add(name));
}

/** @returns what ACL SETUSER has to be told; `undefined` when it was not for lack of a right. */
function rightFor(error: unknown, { command, parameters }: Attempt): string | undefined {
  if (!(error instanceof Error) || !codesOf(error).includes("NOPERM")) return undefined;
  if (/\bchannels?\b/.test(error.message))
    return parameters.includes(INVALIDATIONS_CHANNEL) ? `&${INVALIDATIONS_CHANNEL}` : "&coatcheck:*";
  return /\bkeys?\b/.test(error.message) ? "~coatcheck:*" : `+${command}`;
}

function isUnknownCommand(error: unknown): boolean {
  return error instanceof Error && /unknown (sub)?command|unknown redis command/i.test(error.message);
}
