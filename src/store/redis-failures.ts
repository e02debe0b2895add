import { ReplyError } from "ioredis";
import { withoutContents } from "../core/errors.ts";
import type { StoreFailure } from "../core/store.ts";

/** What an error of ioredis means for the operation that met it. */
export interface RedisFailure {
  readonly reason: StoreFailure;
  /** The server did not carry out the command: it said so, and will soon, or the command never left. */
  readonly again: boolean;
  /** The server can be read, though it refuses this. */
  readonly readable: boolean;
  /** The first word of the server's reply, such as `READONLY`; absent when it was not the server that said it. */
  readonly code?: string;
  /** For operators; replies of the server that are hard to understand are explained. */
  readonly message: string;
}

/** Longer words are no codes; the longest that Redis has is half of that. */
const MAX_CODE_LENGTH = 32;

/** Nothing was sent. */
export const NO_CONNECTION = "there is no connection";

interface Reply {
  readonly reason: StoreFailure;
  readonly again?: true;
  readonly unreadable?: true;
  readonly explanation?: string;
}

/** By the first word of the server's reply. */
const REPLIES: Readonly<Record<string, Reply>> = {
  LOADING: { reason: "loading", again: true, unreadable: true },
  READONLY: { reason: "readonly", again: true, explanation: "this server is a replica; a failover may be under way" },
  MASTERDOWN: { reason: "master-down", again: true, unreadable: true },
  MOVED: {
    reason: "moved",
    again: true,
    unreadable: true,
    explanation: "the key is on another node: slots move, or this is a cluster and the URL needs redis+cluster://",
  },
  ASK: { reason: "moved", again: true, unreadable: true },
  TRYAGAIN: { reason: "moved", again: true, unreadable: true },
  CROSSSLOT: { reason: "moved" },
  CLUSTERDOWN: { reason: "cluster-down", again: true, unreadable: true },
  BUSY: { reason: "busy", again: true, unreadable: true },
  NOAUTH: { reason: "not-authorized", explanation: "the store's URL needs a password" },
  WRONGPASS: { reason: "not-authorized", explanation: "the user or password in the store's URL is wrong" },
  NOPERM: { reason: "not-authorized", explanation: "the Redis user needs more rights: see docs/redis.md" },
  OOM: { reason: "out-of-memory", explanation: "Redis is at its maxmemory: raise it, or let it evict other keys" },
};

/** Names the failure behind an error, so that it can be counted, and tried again where that is safe. */
export function redisFailure(error: unknown): RedisFailure {
  const message = withoutContents(error instanceof Error ? error.message : String(error));
  // Scripts, pipelines and ioredis itself put words of their own before the server's.
  const word = /^(?:Too many Cluster redirections. Last error: )?(?:ReplyError: )?([A-Z]+)\b/.exec(message)?.[1];
  const reply = word === undefined ? undefined : REPLIES[word];
  const code = word?.slice(0, MAX_CODE_LENGTH);
  if (reply !== undefined) {
    const { reason, again = false, unreadable = false, explanation } = reply;
    const explained = explanation === undefined ? message : `${message} (${explanation})`;
    return { reason, again, readable: !unreadable, ...(code && { code }), message: explained };
  }
  // MISCONF, NOREPLICAS, an error in a script: whatever it is, it was the server that said it.
  if (error instanceof ReplyError)
    return { reason: "other", again: false, readable: true, ...(code && { code }), message };
  if (/timed? ?out/i.test(message)) return { reason: "timeout", again: false, readable: false, message };
  if (message === NO_CONNECTION || /enableOfflineQueue/.test(message)) {
    return { reason: "closed", again: true, readable: false, message: NO_CONNECTION };
  }
  const closed =
    /connection close|closed|isn't ready|ECONN|EPIPE|max retries|redirections|ended|destroyed|None of startup nodes/i;
  return { reason: closed.test(message) ? "closed" : "other", again: false, readable: false, message };
}
