import { Readable } from "node:stream";
import type { Reply } from "../admin/endpoint.ts";
import type { Handle, SessionKey } from "../core/session.ts";
import { Gateway } from "../gateway.ts";
import {
  MAX_CHUNK_BYTES,
  MAX_KEYS,
  MAX_REPLY_BYTES,
  type Task,
  TO_WORKER,
  type ToPrimary,
  type ToWorker,
} from "./messages.ts";

/** What a process does for a gateway that is started in it, and how it ends. */
export interface WorkerEdge {
  readonly attend: (gateway: Gateway) => void;
  /** @returns the exit status, when it has served. */
  readonly untilSignal: (close: () => Promise<void>, sooner?: Promise<unknown>) => Promise<number>;
}

/**
 * Serves as one of several, until the primary says that it is over, or a signal does. Node ends the process when the
 * primary is gone: nobody would replace it, and the next primary needs the port.
 * @returns the exit status.
 */
export function runWorker(edge: WorkerEdge): Promise<number> {
  return new Worker().run(edge);
}

class Worker {
  readonly #drained = Promise.withResolvers<void>();
  readonly #configured = Promise.withResolvers<ToWorker & { type: "configure" }>();
  readonly #toListen = Promise.withResolvers<void>();
  /** What is being done for the primary, and can be given up. */
  readonly #underWay = new Map<number, { readonly gone: AbortController; onTaken?: () => void }>();
  #gateway: Gateway | undefined;
  #endedKeys: SessionKey[] = [];

  async run({ attend, untilSignal }: WorkerEdge): Promise<number> {
    process.on("message", (message) => this.#hear(TO_WORKER.parse(message)));
    process.on("disconnect", () => this.#gateway?.observer.log.flush());
    tell({ type: "hello" });
    const { number, config, prettyLog, command } = await this.#configured.promise;
    process.title = `coatcheck worker ${number}`;
    try {
      const worker = {
        number,
        prettyLog,
        onEnded: (key: SessionKey) => this.#endedHere(key),
        onMet: (watch: string, handle: Handle) => tell({ type: "met", watch, handle }),
      };
      const gateway = await Gateway.create(config, { command, worker });
      this.#gateway = gateway;
      attend(gateway);
      tell({ type: "made", store: gateway.storeKind });
      await this.#toListen.promise;
      await gateway.listen();
      tell({ type: "ready", url: gateway.url, ...(gateway.redirectUrl && { redirectUrl: gateway.redirectUrl }) });
      return await untilSignal(() => this.#close(gateway), this.#drained.promise);
    } catch (error) {
      await told({ type: "failed", message: String(error instanceof Error ? error.message : error).slice(0, 10_000) });
      // The channel to the primary would keep the process.
      process.exit(1);
    }
  }

  async #close(gateway: Gateway): Promise<void> {
    tell({ type: "draining" });
    await gateway.close();
    await told({ type: "last", metrics: await countedBy(gateway) });
  }

  #hear(message: ToWorker): void {
    switch (message.type) {
      case "configure":
        this.#configured.resolve(message);
        break;
      case "listen":
        this.#toListen.resolve();
        break;
      case "drain":
        this.#drained.resolve();
        break;
      case "cancel":
        this.#underWay.get(message.id)?.gone.abort();
        break;
      case "more":
        this.#underWay.get(message.id)?.onTaken?.();
        break;
      case "ended":
        for (const key of message.keys) this.#gateway?.endedElsewhere(key as SessionKey);
        break;
      case "met":
        this.#gateway?.observer.watches.met(message.watch, message.handle as Handle);
        break;
      case "ask":
        void this.#answer(message.id, message.task);
    }
  }

  async #answer(id: number, task: Task): Promise<void> {
    const gone = new AbortController();
    this.#underWay.set(id, { gone });
    try {
      const { status, type, body, fields = {} } = await this.#perform(task, gone.signal);
      const head = { type: "reply", id, status, contentType: type, fields } as const;
      if (body instanceof Readable) {
        tell(head);
        await this.#stream(id, body, gone.signal);
      } else {
        const octets = typeof body === "string" ? Buffer.from(body) : body;
        if (octets.length > MAX_REPLY_BYTES) throw new RangeError("the answer is too long");
        tell({ ...head, body: octets });
      }
    } catch (error) {
      if (!gone.signal.aborted) this.#gateway?.observer.log.unexpected(error);
      tell({ type: "broken", id });
    } finally {
      this.#underWay.delete(id);
    }
  }

  async #perform(task: Task, signal: AbortSignal): Promise<Reply> {
    const gateway = this.#gateway;
    if (gateway === undefined) throw new TypeError("asked before there is a gateway");
    switch (task.kind) {
      case "admin":
        return gateway.api.perform({ ...task, body: () => task.body, signal });
      case "metrics":
        return { status: 200, type: "application/json", body: await countedBy(gateway) };
      case "reload": {
        const result = await gateway.reload(task.config, task.by);
        return { status: 200, type: "application/json", body: JSON.stringify(result) };
      }
    }
  }

  /** Piece by piece, each when the one before has been taken. */
  async #stream(id: number, body: Readable, signal: AbortSignal): Promise<void> {
    const underWay = this.#underWay.get(id);
    signal.addEventListener("abort", () => {
      body.destroy();
      underWay?.onTaken?.();
    });
    for await (const octets of body as AsyncIterable<string | Uint8Array>) {
      const whole = Buffer.from(octets as Uint8Array);
      for (let at = 0; at < whole.length; at += MAX_CHUNK_BYTES) {
        const { promise, resolve } = Promise.withResolvers<void>();
        if (underWay !== undefined) underWay.onTaken = resolve;
        tell({ type: "piece", id, piece: whole.subarray(at, at + MAX_CHUNK_BYTES) });
        await promise;
        signal.throwIfAborted();
      }
    }
    tell({ type: "piece", id });
  }

  #endedHere(key: SessionKey): void {
    if (this.#endedKeys.length === 0) setImmediate(() => this.#tellEnded());
    this.#endedKeys.push(key);
  }

  #tellEnded(): void {
    const keys = this.#endedKeys;
    this.#endedKeys = [];
    for (let at = 0; at < keys.length; at += MAX_KEYS) tell({ type: "ended", keys: keys.slice(at, at + MAX_KEYS) });
  }
}

async function countedBy({ observer }: Gateway): Promise<Uint8Array> {
  return Buffer.from(JSON.stringify(await observer.metrics.snapshot()));
}

function tell(message: ToPrimary): void {
  if (process.connected) process.send?.(message, () => {});
}

/** Waits until it is on its way. */
function told(message: ToPrimary): Promise<void> {
  return new Promise((resolve) => {
    if (!process.connected || process.send === undefined) resolve();
    else process.send(message, () => resolve());
  });
}
