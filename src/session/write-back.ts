import type { WriteBackCommand } from "../core/exchange.ts";
import { isJsonObject, type Json, type JsonObject } from "../core/json.ts";
import { type AttributeChanges, MAX_USER_ID_LENGTH, type SessionUser } from "../core/session.ts";

/** All write-back headers of one response together, in octets. */
export const MAX_WRITE_BACK_BYTES = 8 * 1024;
const MAX_ROLES = 256;
/** Session attributes in one session; a name is at most this long too. */
const MAX_ATTRIBUTE_NAME_LENGTH = 128;
/** What is told of a name that an application sends in the wrong place. */
const NAME_CHARACTERS_TOLD = 64;

/** What an application's response asks for, checked. */
export interface SessionCommands {
  readonly start?: { readonly user: SessionUser | null; readonly data: AttributeChanges };
  readonly set?: AttributeChanges;
  readonly end?: "this" | "all";
  /** Keys that were left out because the route's `write` does not list them. */
  readonly dropped: readonly string[];
}

/** A write-back header that does not say what design §6 describes; `command` is the one that is wrong. */
export interface MalformedCommand {
  readonly command: WriteBackCommand;
  readonly malformed: string;
}

class Malformed extends Error {}

/**
 * Reads the write-back headers of a response (design §6).
 * @param values the field values by command, as octets in Latin-1; each command may come once.
 * @param allowed session keys that the route may write.
 */
export function parseCommands(
  values: Partial<Record<WriteBackCommand, readonly string[]>>,
  allowed: ReadonlySet<string>,
): SessionCommands | MalformedCommand {
  let command: WriteBackCommand = "start";
  try {
    let bytes = 0;
    for (command of ["start", "set", "end"] as const) {
      for (const value of values[command] ?? []) bytes += value.length;
      if (bytes > MAX_WRITE_BACK_BYTES) throw new Malformed(`more than ${MAX_WRITE_BACK_BYTES} octets`);
      if ((values[command]?.length ?? 0) > 1) throw new Malformed("sent more than once");
    }
    const dropped: string[] = [];
    const permit = (name: string): boolean => {
      if (allowed.has(name)) return true;
      dropped.push(name);
      return false;
    };
    command = "start";
    const start = values.start?.[0] === undefined ? undefined : parseStart(values.start[0], permit);
    command = "set";
    const set = values.set?.[0] === undefined ? undefined : parseSet(values.set[0], permit);
    command = "end";
    const end = values.end?.[0] === undefined ? undefined : parseEnd(values.end[0]);
    if (end !== undefined && start !== undefined) throw new Malformed("sent together with X-Session-Start");
    return { ...(start && { start }), ...(set && { set }), ...(end && { end }), dropped };
  } catch (error) {
    if (error instanceof Malformed) return { command, malformed: error.message };
    throw error;
  }
}

type Permit = (name: string) => boolean;

function parseStart(value: string, permit: Permit): NonNullable<SessionCommands["start"]> {
  const start = parseObject(value);
  for (const name of Object.keys(start)) {
    if (name !== "user" && name !== "data")
      throw new Malformed(`"${name.slice(0, NAME_CHARACTERS_TOLD)}" is neither user nor data`);
  }
  const user = start.user === undefined || start.user === null || !permit("user") ? null : parseUser(start.user);
  if (start.data !== undefined && !isJsonObject(start.data)) throw new Malformed("data is not an object");
  return { user, data: changesOf(start.data ?? {}, permit) };
}

function parseSet(value: string, permit: Permit): AttributeChanges {
  return changesOf(parseObject(value), permit);
}

/** `null` removes the attribute. */
function changesOf(object: JsonObject, permit: Permit): AttributeChanges {
  const changes: Record<string, Json | undefined> = {};
  for (const [name, attribute] of attributes(object, permit)) changes[name] = attribute ?? undefined;
  return changes;
}

function parseEnd(value: string): "this" | "all" {
  if (value !== "this" && value !== "all") throw new Malformed("neither this nor all");
  return value;
}

function* attributes(object: JsonObject, permit: Permit): Generator<[string, Json]> {
  for (const name of Object.keys(object)) {
    if (name === "user") throw new Malformed("user is set by X-Session-Start only");
    if (name.length > MAX_ATTRIBUTE_NAME_LENGTH) throw new Malformed("an attribute name is too long");
    if (permit(name)) yield [name, object[name] as Json];
  }
}

function parseObject(value: string): JsonObject {
  let parsed: unknown;
  try {
    parsed = JSON.parse(decodeUtf8(value));
  } catch {
    throw new Malformed("not JSON");
  }
  if (!isJsonObject(parsed)) throw new Malformed("not a JSON object");
  return parsed;
}

/** Header octets arrive as Latin-1 text; an application that writes JSON means UTF-8. */
function decodeUtf8(latin1: string): string {
  return new TextDecoder("utf-8", { fatal: true }).decode(Buffer.from(latin1, "latin1"));
}

function parseUser(value: Json): SessionUser {
  if (!isJsonObject(value)) throw new Malformed("user is not an object");
  const { id, name, email, roles } = withoutNulls(value);
  if (roles !== undefined && (!Array.isArray(roles) || roles.length > MAX_ROLES))
    throw new Malformed("user.roles is not a list");
  const user: Record<string, Json> = Object.create(null);
  for (const claim of Object.keys(value)) if (value[claim] !== null) user[claim] = value[claim] as Json;
  user.id = identityText("user.id", typeof id === "number" ? String(id) : id, true);
  if (user.id.length > MAX_USER_ID_LENGTH) throw new Malformed("user.id is too long");
  if (name !== undefined) user.name = identityText("user.name", name);
  if (email !== undefined) user.email = identityText("user.email", email);
  if (roles !== undefined) user.roles = roles.map((role) => identityText("user.roles", role, true));
  return user as unknown as SessionUser;
}

/** A claim that is `null` is one that the user does not have. */
function withoutNulls(value: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(value).filter(([, claim]) => claim !== null));
}

/** Text that may become a header value: well-formed, without control characters (CVE-2026-40574, CVE-2024-45808). */
function identityText(path: string, value: Json | undefined, required = false): string {
  if (typeof value !== "string" || (required && value === "")) throw new Malformed(`${path} is not a text`);
  if (/\p{Cc}/u.test(value) || !value.isWellFormed()) throw new Malformed(`${path} holds a control character`);
  return value;
}
