/** What is wrong with a store, and what to do about it, in plain words. */
export interface Explanation {
  readonly problem: string;
  readonly advice: string;
}

/** By what Redis replies with (its first word is a code), by node's error codes, and by SQLite's result codes. */
const ADVICE: Readonly<Record<string, string>> = {
  NOPERM: "the Redis user may not do this: give it what it lacks with ACL SETUSER; docs/redis.md has the whole line",
  WRONGPASS: "the user name or the password in the store URL is not the one that Redis knows",
  NOAUTH: "Redis asks for a password: put it into the store URL, redis://user:password@host",
  OOM: "Redis is full and may not evict: give it more memory (maxmemory), or find out what else fills it; with an evicting policy it would drop live sessions instead",
  READONLY: "this Redis is a replica: the store URL must lead to the master",
  LOADING: "Redis has just started and is reading its data: wait a moment",
  MISCONF: "Redis cannot write its snapshot and therefore refuses writes: look at its disk and at its log",
  MASTERDOWN: "this replica has lost its master: bring the master back or fail over",
  CLUSTERDOWN: "the Redis cluster does not cover all slots: look at CLUSTER INFO",
  MOVED: "this Redis is one node of a cluster, and the store URL names it as a single server",
  NOSCRIPT: "Redis has forgotten the scripts, and they could not be sent again",
  ECONNREFUSED: "nothing listens there: start the server, or correct host and port in the store URL",
  ECONNRESET:
    "the connection was cut: something between here and the server, or TLS where there is none or the reverse",
  ENOTFOUND: "the host name of the store URL does not resolve: correct it, or look at the name server",
  EAI_AGAIN: "the name server does not answer",
  ETIMEDOUT: "the server does not answer: look at the network, a firewall, or a server that hangs",
  EHOSTUNREACH: "there is no way to that host: look at the network",
  SQLITE_READONLY:
    "the file or its folder is read-only for this user: SQLite writes the file and, beside it, the files -wal and -shm",
  SQLITE_FULL: "the disk is full",
  SQLITE_BUSY: "another process holds the file locked: SQLite is for the gateways of one machine, and for nothing else",
  SQLITE_IOERR: "the disk fails to read or write: look at it, and at the log of the system",
  SQLITE_CORRUPT: "the file is damaged: restore it, or move it away, which ends its sessions",
  SQLITE_CANTOPEN: "the file or its folder is not there, or is closed to this user",
  SQLITE_NOTADB: "the file is no SQLite database: correct the store URL",
};

const SQLITE_CODES: Readonly<Record<number, string>> = {
  5: "SQLITE_BUSY",
  8: "SQLITE_READONLY",
  10: "SQLITE_IOERR",
  11: "SQLITE_CORRUPT",
  13: "SQLITE_FULL",
  14: "SQLITE_CANTOPEN",
  26: "SQLITE_NOTADB",
};

const UNKNOWN_ADVICE =
  "is the server running, can it be reached from here (host, port, user, password, TLS, firewall), and what does its log say?";

export function explain(error: unknown): Explanation {
  const problem = error instanceof Error ? error.message : String(error);
  for (let each: unknown = error; each instanceof Error; each = each.cause) {
    for (const code of codesOf(each)) {
      const advice = ADVICE[code];
      if (advice !== undefined) return { problem, advice };
    }
  }
  return { problem, advice: UNKNOWN_ADVICE };
}

/** What of Redis, node or SQLite is in an error, as one of the words that `explain` knows. */
export function codesOf(error: Error & { code?: unknown; errcode?: unknown }): string[] {
  const codes: string[] = [];
  if (typeof error.code === "string") codes.push(error.code);
  // The low octet is the result code; the others refine it.
  if (typeof error.errcode === "number") codes.push(SQLITE_CODES[error.errcode & 0xff] ?? "");
  // What ioredis says, which has no code.
  if (error.message === "Command timed out") codes.push("ETIMEDOUT");
  const [replyCode] = /^[A-Z]{3,}(?= )/.exec(error.message) ?? [];
  // Inside a script, Redis 7.0 and 7.2 say in words of their own what is NOPERM outside.
  if (/^ERR (The user executing the script can't |ACL failure in script)/.test(error.message)) codes.push("NOPERM");
  else if (replyCode !== undefined) codes.push(replyCode);
  return codes;
}
