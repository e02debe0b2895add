import { Capture, type WatchedRequest } from "../core/capture.ts";
import type { Exchange, SessionOutcome } from "../core/exchange.ts";
import { type Handle, handleOf, type Session, type SessionKey } from "../core/session.ts";
import { newSpanId } from "../core/trace-context.ts";
import type { WatchList, WatchSummary, WatchTarget } from "../core/watching.ts";
import { renderWatched, type WatchedRecord } from "./record.ts";
import { Ring } from "./recorder.ts";

export const MAX_WATCHES = 100;
/** Places in the ring of watched requests. */
const KEPT = 500;
/** How long what was gathered stays when the last watch has ended, milliseconds. */
const GRACE_MS = 600_000;
/** Sessions that one watch remembers; the first one met is forgotten first. */
const MAX_HANDLES = 64;

export interface WatchesOptions {
  readonly onBegan: (watch: Watch) => void;
  readonly onEnded: (watch: Watch, by: "time" | "operator") => void;
  /** Of somebody under watch another session was met. */
  readonly onMet?: (id: string, handle: Handle) => void;
}

/** One user or one visitor under watch. */
export interface Watch {
  readonly id: string;
  readonly target: WatchTarget;
  /** Milliseconds since the epoch. */
  readonly beganAt: number;
  readonly endsAt: number;
  readonly requests: number;
}

interface RunningWatch extends Watch {
  endsAt: number;
  requests: number;
  failed: number;
  lastRequestAt: number | undefined;
  readonly outcomes: Partial<Record<SessionOutcome, number>>;
  /** Of a user too: the request that shows that a session was lost no longer knows whose it was. */
  readonly handles: Set<Handle>;
  timer: NodeJS.Timeout;
}

/** What a request is told apart by: the keys of its verified cookies, and the session that was found, if any. */
export interface WatchSubject {
  readonly keys: readonly SessionKey[];
  readonly session?: Pick<Session, "user" | "siblings"> | undefined;
}

/** Users and sessions under watch: each request of theirs is traced, and recorded with its header sections. */
export class Watches {
  readonly #options: WatchesOptions;
  readonly #watches = new Map<string, RunningWatch>();
  #ring: Ring<WatchedRecord> | undefined;
  #grace: { readonly timer: NodeJS.Timeout; readonly endsAt: number } | undefined;

  constructor(options: WatchesOptions) {
    this.#options = options;
  }

  /** How many there are: what the way of a request asks, and for nearly every request the only thing. */
  get size(): number {
    return this.#watches.size;
  }

  /**
   * Begins a watch; one for the same target goes on, with a new end.
   * @param newId for one that begins, where several processes are to call it the same.
   * @returns `undefined` when there are too many.
   */
  begin(target: WatchTarget, forMs: number, newId = newSpanId()): WatchSummary | undefined {
    const before = this.#find(target);
    if (before === undefined && this.#watches.size >= MAX_WATCHES) return undefined;
    const now = Date.now();
    const id = before?.id ?? newId;
    clearTimeout(before?.timer);
    const watch: RunningWatch = {
      id,
      target,
      beganAt: now,
      requests: 0,
      failed: 0,
      lastRequestAt: undefined,
      outcomes: {},
      handles: new Set("handle" in target ? [target.handle] : []),
      ...before,
      endsAt: now + forMs,
      timer: later(forMs, () => this.#end(id, "time")),
    };
    this.#watches.set(id, watch);
    clearTimeout(this.#grace?.timer);
    this.#grace = undefined;
    this.#ring ??= new Ring(KEPT);
    this.#options.onBegan(watch);
    return summarize(watch);
  }

  /** @returns the watch as it was; `undefined` when there was none. */
  end(target: WatchTarget): WatchSummary | undefined {
    const watch = this.#find(target);
    if (watch === undefined) return undefined;
    this.#end(watch.id, "operator");
    return summarize(watch);
  }

  list(): WatchList {
    return {
      watches: [...this.#watches.values()].map(summarize),
      kept: this.#ring?.count ?? 0,
      keptUntil: this.#grace === undefined ? null : isoTime(this.#grace.endsAt),
    };
  }

  /** What was gathered, newest first. */
  records(): readonly WatchedRecord[] {
    return this.#ring?.newestFirst(Infinity) ?? [];
  }

  /** Puts a request under watch, if it is one of those that are meant. Called only while there is a watch. */
  look(request: WatchedRequest, subject: WatchSubject, exchange: Exchange): void {
    const handles = subject.keys.map(handleOf);
    exchange.capture?.followers.clear();
    for (const { id, target, handles: known } of this.#watches.values()) {
      if (!isMeant(target, known, handles, subject.session)) continue;
      exchange.watched = true;
      // Upstream is told that the trace is kept, if it has not been asked yet.
      exchange.sampled = true;
      exchange.capture ??= new Capture(request);
      exchange.capture.watches.add(id);
      if ("handle" in target || subject.session?.user?.id === target.user) exchange.capture.followers.add(id);
    }
  }

  /** Keeps a watched exchange that has ended, and takes its capture away from it: other rings keep it longer. */
  keep(exchange: Exchange): void {
    const { capture } = exchange;
    exchange.capture = undefined;
    // Nobody watches any more, and what was gathered is forgotten: it took very long.
    if (capture === undefined || this.#ring === undefined) return;
    for (const id of capture.watches) {
      const watch = this.#watches.get(id);
      if (watch === undefined) continue;
      count(watch, exchange);
      const { handle } = exchange;
      if (handle === undefined || !capture.followers.has(id) || watch.handles.has(handle)) continue;
      remember(watch.handles, handle);
      this.#options.onMet?.(id, handle);
    }
    this.#ring.push(renderWatched(exchange, capture));
  }

  /** Another process has met a session of somebody under watch: requests with its cookie are meant here, too. */
  met(id: string, handle: Handle): void {
    const watch = this.#watches.get(id);
    if (watch !== undefined && !watch.handles.has(handle)) remember(watch.handles, handle);
  }

  /** Lets go of the timers. */
  close(): void {
    for (const { timer } of this.#watches.values()) clearTimeout(timer);
    clearTimeout(this.#grace?.timer);
  }

  #find(target: WatchTarget): RunningWatch | undefined {
    for (const watch of this.#watches.values()) {
      if ("user" in target && "user" in watch.target && watch.target.user === target.user) return watch;
      if ("handle" in target && "handle" in watch.target && isNamed(watch, target.handle)) return watch;
    }
    return undefined;
  }

  #end(id: string, by: "time" | "operator"): void {
    const watch = this.#watches.get(id);
    if (watch === undefined) return;
    clearTimeout(watch.timer);
    this.#watches.delete(id);
    if (this.#watches.size === 0) {
      const timer = later(GRACE_MS, () => {
        this.#ring = undefined;
        this.#grace = undefined;
      });
      this.#grace = { timer, endsAt: Date.now() + GRACE_MS };
    }
    this.#options.onEnded(watch, by);
  }
}

/**
 * A visitor is followed through logins, on whichever instance: a session that replaced another one names it. A user is
 * not: somebody else may have signed in on the same machine.
 */
function isMeant(
  target: WatchTarget,
  known: ReadonlySet<Handle>,
  handles: readonly Handle[],
  session: WatchSubject["session"],
): boolean {
  if (handles.some((handle) => known.has(handle))) return true;
  if ("user" in target) return session?.user?.id === target.user;
  return session?.siblings?.some((key) => known.has(handleOf(key))) ?? false;
}

/** By the handle that it began with, or by a later one of the same visitor. */
function isNamed({ target, handles }: RunningWatch, handle: Handle): boolean {
  return handles.has(handle) || ("handle" in target && target.handle === handle);
}

function remember(known: Set<Handle>, handle: Handle): void {
  known.add(handle);
  const [oldest] = known;
  if (known.size > MAX_HANDLES && oldest !== undefined) known.delete(oldest);
}

/** Does something in so many milliseconds, if the process still runs then. */
function later(ms: number, work: () => void): NodeJS.Timeout {
  const timer = setTimeout(work, ms);
  timer.unref();
  return timer;
}

function count(watch: RunningWatch, exchange: Exchange): void {
  const { session, error, status, startedAt } = exchange;
  watch.requests++;
  watch.lastRequestAt = startedAt;
  watch.outcomes[session] = (watch.outcomes[session] ?? 0) + 1;
  if (error !== undefined || status >= 500) watch.failed++;
}

function summarize(watch: RunningWatch): WatchSummary {
  const { id, target, beganAt, endsAt, requests, failed, outcomes, lastRequestAt, handles } = watch;
  return {
    id,
    user: "user" in target ? target.user : null,
    handle: "handle" in target ? target.handle : null,
    beganAt: isoTime(beganAt),
    endsAt: isoTime(endsAt),
    requests,
    failed,
    outcomes: { ...outcomes },
    lastRequestAt: lastRequestAt === undefined ? null : isoTime(lastRequestAt),
    handles: [...handles],
  };
}

function isoTime(ms: number): string {
  return new Date(ms).toISOString();
}
