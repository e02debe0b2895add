import type { Worker as ClusterWorker } from "node:cluster";
import { Readable } from "node:stream";
import type { Reply } from "../admin/endpoint.ts";
import type { Config } from "../config/compile.ts";
import type { MetricSnapshot } from "../observe/merged-metrics.ts";
import { METRICS, type Task, TO_PRIMARY, type ToPrimary, type ToWorker } from "./messages.ts";

/** How many questions may be under way to one worker: one that does not answer must not gather them for ever. */
const MAX_UNDER_WAY = 1000;
const LINE_FEED = 0x0a;
/** Longer than any line of ours: whatever writes this, it is not held in memory. */
const MAX_LINE_BYTES = 4 * 1024 * 1024;
/** How long the last lines of a worker are waited for, when it has ended and somebody else holds its output open. */
const LAST_LINES_TIMEOUT_MS = 1_000;

/** A worker gave no answer: it has ended, is too slow, or has too much to do. */
export class NoAnswer extends Error {
  override readonly name = "NoAnswer";
}

export interface WorkerProcessOptions {
  readonly number: number;
  readonly process: ClusterWorker;
  readonly onMessage: (message: ToPrimary) => void;
  /** Lines that it writes to standard output, whole ones: nobody else's come between. */
  readonly onOutput: (lines: Buffer) => void;
  /** It said something that is no message; it is ended. */
  readonly onGarbled: (error: unknown) => void;
  readonly onEnded: (status: number | null, signal: string | null) => void;
}

interface UnderWay {
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
  body?: Readable;
}

/** One worker, from its start to its end, as the primary sees it. */
export class WorkerProcess {
  readonly number: number;
  readonly #options: WorkerProcessOptions;
  readonly #underWay = new Map<number, UnderWay>();
  #nextId = 0;
  /** The beginning of a line. When the worker is killed in the middle of one, nobody can read it. */
  #unfinished: Buffer = Buffer.alloc(0);
  /** Serves since then, milliseconds of `performance.now()`; `undefined`: not yet. */
  servesSinceMs: number | undefined;
  isDraining = false;
  /** What it goes by. */
  config: Config | undefined;
  /** Kind of its session store. */
  store = "";
  /** Why it could not start, in words. */
  problem: string | undefined;
  /** What it had counted when it was asked the last time. */
  counted: readonly MetricSnapshot[] = [];

  constructor(options: WorkerProcessOptions) {
    this.#options = options;
    this.number = options.number;
    const { process: worker } = options;
    const { stdout } = worker.process;
    worker.on("message", (message: unknown) => this.#hear(message));
    // A message that can no longer be sent: that it has ended is told in another way.
    worker.on("error", () => {});
    stdout?.on("data", (octets: Buffer) => this.#write(octets));
    const lastLines = new Promise<void>((resolve) => stdout?.once("close", resolve));
    worker.once("exit", (status, signal) => {
      for (const { reject, timer, body } of this.#underWay.values()) {
        clearTimeout(timer);
        const error = new NoAnswer(`worker ${this.number} has ended`);
        body?.destroy(error);
        reject(error);
      }
      this.#underWay.clear();
      const timeout = new Promise<void>((resolve) => setTimeout(resolve, LAST_LINES_TIMEOUT_MS).unref());
      void Promise.race([lastLines, timeout]).then(() => options.onEnded(status, signal));
    });
  }

  #write(octets: Buffer): void {
    const end = octets.lastIndexOf(LINE_FEED) + 1;
    const isTooLong = this.#unfinished.length + octets.length > MAX_LINE_BYTES;
    if (end === 0 && !isTooLong) {
      this.#unfinished = Buffer.concat([this.#unfinished, octets]);
      return;
    }
    const lines = octets.subarray(0, end);
    this.#options.onOutput(this.#unfinished.length === 0 ? lines : Buffer.concat([this.#unfinished, lines]));
    this.#unfinished = octets.subarray(end);
  }

  get pid(): number {
    return this.#options.process.process.pid ?? 0;
  }

  get isServing(): boolean {
    return this.servesSinceMs !== undefined && !this.isDraining && this.#options.process.isConnected();
  }

  tell(message: ToWorker): void {
    const { process: worker } = this.#options;
    if (worker.isConnected()) worker.send(message, () => {});
  }

  kill(): void {
    this.#options.process.process.kill("SIGKILL");
  }

  /**
   * Asks it something.
   * @param timeoutMs until the answer begins.
   * @throws NoAnswer
   */
  ask(task: Task, timeoutMs: number, signal?: AbortSignal): Promise<Reply> {
    if (!this.#options.process.isConnected()) return Promise.reject(new NoAnswer(`worker ${this.number} has ended`));
    if (this.#underWay.size >= MAX_UNDER_WAY)
      return Promise.reject(new NoAnswer(`worker ${this.number} has too much to do`));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const giveUp = (why: string) => () => {
        clearTimeout(timer);
        this.#underWay.delete(id);
        this.tell({ type: "cancel", id });
        reject(new NoAnswer(`worker ${this.number} ${why}`));
      };
      const timer = setTimeout(giveUp("does not answer"), timeoutMs);
      signal?.addEventListener("abort", () => {
        if (this.#underWay.get(id)?.body === undefined && this.#underWay.has(id)) giveUp("is not waited for")();
      });
      this.#underWay.set(id, { resolve, reject, timer });
      this.tell({ type: "ask", id, task });
    });
  }

  /** Asks what it has counted, and keeps it. One that gives no answer has what it had the last time. */
  async count(timeoutMs: number): Promise<readonly MetricSnapshot[]> {
    try {
      const { body } = await this.ask({ kind: "metrics" }, timeoutMs);
      if (body instanceof Uint8Array) this.counted = readMetrics(body);
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
    }
    return this.counted;
  }

  #hear(message: unknown): void {
    const parsed = TO_PRIMARY.safeParse(message);
    if (!parsed.success) {
      this.#options.onGarbled(new TypeError(`worker ${this.number} said something that is no message`));
      this.kill();
      return;
    }
    const { data } = parsed;
    switch (data.type) {
      case "reply":
        this.#reply(data);
        break;
      case "piece":
        this.#piece(data.id, data.piece);
        break;
      case "broken":
        this.#broken(data.id);
        break;
      case "last":
        this.counted = readMetrics(data.metrics);
        break;
      default:
        this.#options.onMessage(data);
    }
  }

  #reply({ id, status, contentType, fields, body }: ToPrimary & { type: "reply" }): void {
    const underWay = this.#underWay.get(id);
    if (underWay === undefined) return;
    clearTimeout(underWay.timer);
    const head = { status, type: contentType, fields };
    if (body !== undefined) {
      this.#underWay.delete(id);
      underWay.resolve({ ...head, body });
      return;
    }
    underWay.body = new Readable({
      read: () => this.tell({ type: "more", id }),
      destroy: (error, callback) => {
        if (this.#underWay.delete(id)) this.tell({ type: "cancel", id });
        callback(error);
      },
    });
    underWay.body.on("error", () => {});
    underWay.resolve({ ...head, body: underWay.body });
  }

  #piece(id: number, piece: Uint8Array | undefined): void {
    const body = this.#underWay.get(id)?.body;
    if (piece === undefined) this.#underWay.delete(id);
    body?.push(piece ?? null);
  }

  #broken(id: number): void {
    const underWay = this.#underWay.get(id);
    if (underWay === undefined) return;
    this.#underWay.delete(id);
    clearTimeout(underWay.timer);
    const error = new NoAnswer(`worker ${this.number} could not answer; the log says why`);
    underWay.body?.destroy(error);
    underWay.reject(error);
  }
}

function readMetrics(octets: Uint8Array): MetricSnapshot[] {
  const metrics = METRICS.parse(JSON.parse(Buffer.from(octets).toString()));
  return metrics.map((metric) => ({
    ...metric,
    // What has not been measured yet is no number.
    values: metric.values.flatMap((sample) => (sample.value === null ? [] : [{ ...sample, value: sample.value }])),
  }));
}
