import { randomBytes } from "node:crypto";
import type { Redis } from "ioredis";
import type { StoreObserver } from "../core/store.ts";
import { redisFailure } from "./redis-failures.ts";
import { keepConnecting } from "./redis-link.ts";

const ECHO_INTERVAL_MS = 1_000;
const ECHO_TIMEOUT_MS = 500;
/** Until the next attempt, while there is no way to make a change. */
const ECHO_RETRY_MS = 100;

/** One of the ways in which Redis tells of changes. */
export interface Ear {
  readonly kind: "tracking" | "messages";
  readonly redis: Redis;
  /** Asks to be told; rejected with the server's reply when it refuses. */
  subscribe(nonce: string): Promise<unknown>;
  /** Makes something happen that this connection has to be told of. */
  shout(echo: Echo): Promise<unknown>;
  /** @returns whether that is what was heard. */
  isEcho(channel: string, message: string, echo: Echo): boolean;
  hear(channel: string, message: string): void;
}

/** A change of our own. Each is another one: a late one, or the end of an earlier key, proves nothing. */
export interface Echo {
  /** Of the connection. */
  readonly nonce: string;
  readonly number: number;
  readonly heard: () => void;
}

/** `away`: the way of the change, which is that of the reads, is closed; what listens may be sound. */
type EchoOutcome = "heard" | "silence" | "away" | "refused";

/**
 * A connection on which Redis tells of changes, and which is believed only while it is heard: once a second the gateway
 * makes a change of its own and waits for it to come back. That notices a connection that is half open, one that leads to
 * another server than the reads, and a user without the right to hear; and it measures the delay.
 */
export class FeedConnection {
  readonly ear: Ear;
  readonly #onState: () => void;
  readonly #onDelay: (ms: number) => void;
  readonly #nonce = randomBytes(9).toString("base64url");
  readonly #end: () => void;
  #state: "lost" | "heard" | "refused" = "lost";
  #subscribed = false;
  #echo: Echo | undefined;
  #echoes = 0;
  /** Counts the beginnings, so that what belongs to an earlier one is not taken for the present. */
  #round = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(ear: Ear, observer: StoreObserver, onState: () => void, onDelay: (ms: number) => void) {
    this.ear = ear;
    this.#onState = onState;
    this.#onDelay = onDelay;
    const { redis, kind } = ear;
    this.#end = keepConnecting(redis);
    redis.on("error", () => {});
    redis.on("ready", () => {
      observer.connection(kind, "ready");
      this.#begin();
    });
    redis.on("close", () => {
      observer.connection(kind, "lost");
      this.#subscribed = false;
      this.#stop("lost");
    });
    redis.on("message", (channel: string, message: string) => {
      if (this.#echo !== undefined && ear.isEcho(channel, message, this.#echo)) this.#echo.heard();
      ear.hear(channel, message);
    });
  }

  get state(): "lost" | "heard" | "refused" {
    return this.#state;
  }

  /** The reads may go elsewhere now: not to be believed until it is heard again. */
  doubt(): void {
    if (this.#subscribed && this.#state !== "refused") this.#begin();
  }

  close(): void {
    this.#stop("lost");
    this.#end();
  }

  async #begin(): Promise<void> {
    this.#stop("lost");
    const round = this.#round;
    try {
      if (!this.#subscribed) await this.ear.subscribe(this.#nonce);
      this.#subscribed = true;
    } catch (error) {
      if (round !== this.#round) return;
      const { reason } = redisFailure(error);
      if (reason === "closed" || reason === "timeout") this.ear.redis.disconnect(true);
      // The server does not know the command, or this user may not use it. The next connection asks again.
      else this.#stop("refused");
      return;
    }
    await this.#listen(round);
  }

  async #listen(round: number): Promise<void> {
    if (round !== this.#round) return;
    const outcome = await this.#makeEcho();
    if (round !== this.#round) return;
    if (outcome === "refused") return this.#stop("refused");
    if (outcome === "silence") {
      this.#stop("lost");
      this.ear.redis.disconnect(true);
      return;
    }
    this.#set(outcome === "heard" ? "heard" : "lost");
    const pauseMs = outcome === "heard" ? ECHO_INTERVAL_MS : ECHO_RETRY_MS;
    this.#timer = setTimeout(() => this.#listen(round), pauseMs).unref();
  }

  async #makeEcho(): Promise<EchoOutcome> {
    const { promise, resolve } = Promise.withResolvers<EchoOutcome>();
    const startedMs = performance.now();
    const heard = (): void => {
      this.#onDelay(performance.now() - startedMs);
      resolve("heard");
    };
    const echo: Echo = { nonce: this.#nonce, number: this.#echoes++, heard };
    this.#echo = echo;
    // Some more turns for what has arrived already: a busy event loop is not a silent server.
    const timer = setTimeout(() => setImmediate(() => setImmediate(resolve, "silence")), ECHO_TIMEOUT_MS);
    try {
      await this.ear.shout(echo);
    } catch (error) {
      resolve(this.#withoutEcho(error));
    }
    const outcome = await promise;
    clearTimeout(timer);
    if (this.#echo === echo) this.#echo = undefined;
    return outcome;
  }

  /** What is known of this connection when the change could not be made. */
  async #withoutEcho(error: unknown): Promise<EchoOutcome> {
    const { reason, readable } = redisFailure(error);
    if (reason === "not-authorized") return "refused";
    if (!readable || reason === "readonly") return "away";
    // A Redis that is full, or whose disk fails, takes no echo, and no session either: that it answers has to do.
    return this.ear.redis.ping().then(
      () => "heard",
      () => "silence",
    );
  }

  #stop(state: "lost" | "refused"): void {
    this.#round++;
    clearTimeout(this.#timer);
    this.#set(state);
  }

  #set(state: "lost" | "heard" | "refused"): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#onState();
  }
}
