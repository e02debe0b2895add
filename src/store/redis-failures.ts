import type { StoreFailure } from "../core/store.ts";

/** What an error of ioredis means for the operation that met it. */
export interface RedisFailure {
  readonly reason: StoreFailure;
  /** The server said that it did not carry out the command, and will soon: it may be sent again. */
  readonly again: boolean;
  /** For operators; replies of the server that are hard to understand are explained. */
  readonly message: string;
}

/** By the first word of the server's reply. */
const REPLIES: Readonly<Record<string, Pick<RedisFailure, "reason" | "again"> & { readonly explanation?: string }>> = {
  LOADING: { reason: "loading", again: true },
  READONLY: { reason: "readonly", again: true, explanation: "this server is a replica; a failover may be under way" },
  MASTERDOWN: { reason: "master-down", again: true },
  MOVED: {
    reason: "moved",
    again: true,
    explanation: "the key is on another node; for a cluster write redis+cluster://",
  },
  ASK: { reason: "moved", again: true },
  TRYAGAIN: { reason: "moved", again: true },
  CROSSSLOT: { reason: "moved", again: false },
  CLUSTERDOWN: { reason: "cluster-down", again: true },
  BUSY: { reason: "busy", again: true },
  NOAUTH: { reason: "not-authorized", again: false, explanation: "the store's URL needs a password" },
  WRONGPASS: {
    reason: "not-authorized",
    again: false,
    explanation: "the user or password in the store's URL is wrong",
  },
  NOPERM: {
    reason: "not-authorized",
    again: false,
    explanation: "the Redis user needs more rights: see docs/redis.md",
  },
  OOM: {
    reason: "out-of-memory",
    again: false,
    explanation: "Redis is at its maxmemory: raise it, or let it evict other keys",
  },
};

/** Names the failure behind an error, so that it can be counted, and tried again where that is safe. */
export function redisFailure(error: unknown): RedisFailure {
  const message = error instanceof Error ? error.message : String(error);
  // Scripts and pipelines put words of their own before the server's.
  const word = /^(?:ReplyError: )?([A-Z]+)\b/.exec(message)?.[1];
  const reply = word === undefined ? undefined : REPLIES[word];
  if (reply !== undefined) {
    const { reason, again, explanation } = reply;
    return { reason, again, message: explanation === undefined ? message : `${message} (${explanation})` };
  }
  if (/timed? ?out/i.test(message)) return { reason: "timeout", again: false, message };
  if (
    /closed|isn't writeable|isn't ready|ECONN|EPIPE|max retries|redirections|ended|destroyed|Cannot read prop/i.test(
      message,
    )
  )
    return { reason: "closed", again: false, message };
  return { reason: "other", again: false, message };
}
