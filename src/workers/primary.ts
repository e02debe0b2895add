import cluster from "node:cluster";
import type { Server } from "node:http";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { createAdmin } from "../admin/admin.ts";
import type { TlsMaterial } from "../certificate.ts";
import { renewCertificate } from "../certificate-renewal.ts";
import type { Config } from "../config/compile.ts";
import { change } from "../config/reload.ts";
import type { ReloadCause, ReloadOutcome, ReloadResult } from "../core/reload.ts";
import type { WorkerEnd, WorkerState } from "../core/workers.ts";
import { DumpFiles } from "../dump-files.ts";
import { prettyFor, readFiles, warnOfEphemeralSecret } from "../gateway.ts";
import { Connections, open, urlOf } from "../listening.ts";
import { Departed, type MetricSnapshot, mergeMetrics, renderMetrics, type Sample } from "../observe/merged-metrics.ts";
import { Observer } from "../observe/observer.ts";
import { type ConfigSource, Reloader } from "../reloader.ts";
import { VERSION } from "../version.ts";
import { FanOut } from "./fan-out.ts";
import type { ToPrimary } from "./messages.ts";
import { NoAnswer, WorkerProcess } from "./worker-process.ts";

/** A worker that has served so long has started well: its end is answered with a new one at once. */
const STARTED_WELL_MS = 10_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 30_000;
/** What a worker that is killed had counted since then is lost. */
const COUNT_EVERY_MS = 5_000;
const COUNT_EVERY_MS_WHILE_DRAINING = 1_000;
const COUNT_TIMEOUT_MS = 2_000;
const RELOAD_TIMEOUT_MS = 10_000;
/** What an ending worker may take beyond what the configuration grants it: the last spans, and log lines. */
const END_SLACK_MS = 6_000;
const FLUSH_TIMEOUT_MS = 2_000;

export interface PrimaryOptions {
  /** Where the configuration came from, to read it again; absent: nowhere. */
  readonly source?: ConfigSource;
  /** What the process was started as, for a dump: a command and names of options, no values. */
  readonly command: readonly string[];
}

/** The place of a worker: it is filled again when the worker ends. */
interface Place {
  readonly number: number;
  worker: WorkerProcess | undefined;
  /** Ends in a row that came too soon. */
  failures: number;
  /** Until the next one is started. */
  pause: NodeJS.Timeout | undefined;
  restarts: number;
}

/**
 * The process above the workers. It serves nobody: it starts them, replaces those that end, passes on their log lines,
 * and has the admin listener, where all of them answer as one.
 *
 * The workers share one listening socket (`SCHED_NONE`): a connection that waits for a worker that is killed is taken by
 * another one. docs/architecture.md has what was measured.
 */
export class Primary {
  readonly observer: Observer;
  /** What a worker is started with: what is in effect. */
  #config: Config;
  readonly #command: readonly string[];
  readonly #prettyLog: { readonly colours: boolean } | undefined;
  readonly #places: readonly Place[];
  readonly #departed = new Departed();
  readonly #reloader: Reloader;
  readonly #fanOut: FanOut;
  readonly #admin: Server;
  readonly #adminConnections: Connections;
  readonly #dumpFiles: DumpFiles;
  readonly #stopRenewal: () => void;
  readonly #counting: NodeJS.Timeout;
  #closing: Promise<void> | undefined;
  /** Told when a worker begins to serve, or ends. */
  #onChange = (): void => {};

  static async create(config: Config, options: PrimaryOptions): Promise<Primary> {
    const { tls } = await readFiles(config);
    const prettyLog = prettyFor(config.observe.log.format, true);
    const observer = await Observer.create({
      ...config.observe,
      traceExport: undefined,
      ...(prettyLog && { prettyLog }),
      version: VERSION,
      nodeVersion: process.versions.node,
    });
    return new Primary(config, { observer, prettyLog, tls }, options);
  }

  private constructor(
    config: Config,
    parts: Pick<Primary, "observer"> & {
      readonly prettyLog: { readonly colours: boolean } | undefined;
      readonly tls: TlsMaterial;
    },
    { command, source }: PrimaryOptions,
  ) {
    const { observer, prettyLog, tls } = parts;
    this.observer = observer;
    this.#config = config;
    this.#command = command;
    this.#prettyLog = prettyLog;
    this.#places = Array.from({ length: config.workers }, (_, index) => ({
      number: index + 1,
      worker: undefined,
      failures: 0,
      pause: undefined,
      restarts: 0,
    }));
    this.#reloader = new Reloader({
      source,
      observer,
      isWatched: () => this.#config.reload.watch,
      apply: (read, by) => this.#reload(read, by),
    });
    this.#fanOut = new FanOut({
      observer,
      reload: () => this.reread("operator"),
      isDraining: () => this.#closing !== undefined,
      places: () =>
        this.#places.map(({ number, worker, restarts }) => ({ number, worker, restarts, state: stateOf(worker) })),
      metrics: () => this.#metrics(),
    });
    this.#admin = createAdmin({ api: this.#fanOut, token: config.admin.token, tls: tls.admin });
    this.#adminConnections = new Connections(this.#admin);
    this.#dumpFiles = new DumpFiles({
      take: () => this.#fanOut.takeDump(),
      folder: () => this.#config.observe.dumps.folder,
      log: observer.log,
    });
    const { tls: files } = config.admin;
    this.#stopRenewal =
      tls.admin === undefined || files === undefined
        ? () => {}
        : renewCertificate({ listener: "admin", server: this.#admin, files, pair: tls.admin, observer });
    this.#counting = setInterval(() => void this.#countAll(), COUNT_EVERY_MS).unref();
    cluster.schedulingPolicy = cluster.SCHED_NONE;
    const main = new URL(`../main${extname(import.meta.url)}`, import.meta.url);
    cluster.setupPrimary({
      exec: fileURLToPath(main),
      args: [],
      serialization: "advanced",
      stdio: ["ignore", "pipe", "inherit", "ipc"],
    });
  }

  /**
   * Opens the admin listener and starts the workers: the first one alone, because what is wrong with it is wrong with all
   * of them, and what there is to set up in a store is set up once.
   * @throws Error when a port is taken, or the first worker cannot start; the message is for people.
   */
  async listen(): Promise<void> {
    const { admin, session, workers } = this.#config;
    const { log } = this.observer;
    if (session.ephemeralSecret) warnOfEphemeralSecret(log);
    try {
      await open(this.#admin, admin, "admin");
      this.#admin.on("error", (error) => log.unexpected(error));
      const [first, ...others] = this.#places;
      if (first === undefined) throw new TypeError("no workers");
      const { url, redirectUrl } = await this.#startFirst(first);
      for (const place of others) this.#start(place);
      await this.#settled(others);
      log.event("info", "gateway.started", "ready", {
        version: VERSION,
        url,
        ...(redirectUrl !== undefined && { redirect: redirectUrl }),
        admin: this.adminUrl,
        store: first.worker?.store ?? "",
        workers,
      });
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  get adminUrl(): string {
    return urlOf(this.#admin);
  }

  /** See `Gateway.writeDump`. */
  writeDump(): Promise<void> {
    return this.#dumpFiles.write();
  }

  /** See `Gateway.reread`. */
  reread(by: ReloadCause): Promise<ReloadOutcome> {
    return this.#reloader.reread(by);
  }

  /** Every worker takes it over, and those that come later begin with it. */
  async #reload(read: Config, by: ReloadCause): Promise<ReloadResult> {
    const { config, ...result } = change(this.#config, read);
    // What the workers are going to read: what is wrong with it is found before one of them has changed.
    await readFiles(config);
    if (this.#closing !== undefined) throw new Error("the gateway is about to end");
    this.#config = config;
    this.observer.reconfigure(config.observe);
    await Promise.all(this.#workers().map((worker) => this.#bringConfigUp(worker, by)));
    return result;
  }

  /** One that cannot do as the others do ends, and its successor begins with the new configuration. */
  async #bringConfigUp(worker: WorkerProcess, by: ReloadCause): Promise<void> {
    const config = this.#config;
    worker.config = config;
    try {
      const { status } = await worker.ask({ kind: "reload", config, by }, RELOAD_TIMEOUT_MS);
      if (status === 200) return;
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
    }
    worker.tell({ type: "drain" });
  }

  /** Ends: every worker as a gateway does, then the admin listener. What does not end in time is killed. */
  close(times: Config["shutdown"] = this.#config.shutdown): Promise<void> {
    this.#closing ??= this.#close(times);
    return this.#closing;
  }

  async #close({ delayMs, timeoutMs }: Config["shutdown"]): Promise<void> {
    const { log, metrics } = this.observer;
    metrics.draining();
    const beganMs = performance.now();
    clearInterval(this.#counting);
    for (const { pause } of this.#places) clearTimeout(pause);
    await this.#countAll();
    const counting = setInterval(() => void this.#countAll(), COUNT_EVERY_MS_WHILE_DRAINING);
    if (this.#places.some(({ worker }) => worker !== undefined)) {
      log.event("info", "gateway.draining", "no longer ready; requests in flight go on", {
        delay_s: delayMs / 1000,
        timeout_s: timeoutMs / 1000,
        ...this.#inFlight(),
      });
      for (const { worker } of this.#places) worker?.tell({ type: "drain" });
      const deadline = setTimeout(
        () => {
          for (const { worker } of this.#places) worker?.kill();
        },
        delayMs + timeoutMs + END_SLACK_MS,
      );
      await this.#until(() => this.#places.every(({ worker }) => worker === undefined));
      clearTimeout(deadline);
      log.event("info", "gateway.stopped", "stopped", {
        duration_s: Math.round(performance.now() - beganMs) / 1000,
      });
    }
    clearInterval(counting);
    this.#reloader.end();
    this.#stopRenewal();
    await this.#adminConnections.drain(0);
    await this.observer.close(FLUSH_TIMEOUT_MS);
  }

  /** See `Gateway.abandon`; the numbers are up to a second old. */
  abandon(): { readonly requests: number; readonly websockets: number } {
    const cut = this.#inFlight();
    this.observer.log.event("warn", "gateway.abandoned", "told a second time to end: at once", cut);
    this.observer.log.flush();
    return cut;
  }

  /** As the workers counted it the last time. */
  #inFlight(): { readonly requests: number; readonly websockets: number } {
    const counted = this.#places.flatMap(({ worker }) => worker?.counted ?? []);
    const total = (name: string) =>
      counted.filter((it) => it.name === name).reduce((sum, { values }) => sum + sumOf(values), 0);
    return { requests: total("http_server_active_requests"), websockets: total("coatcheck_websockets_open") };
  }

  /** Those that serve. */
  #workers(): WorkerProcess[] {
    return this.#places.flatMap(({ worker }) => (worker?.isServing ? [worker] : []));
  }

  async #startFirst(place: Place): Promise<ToPrimary & { type: "ready" }> {
    const { promise, resolve, reject } = Promise.withResolvers<ToPrimary & { type: "ready" }>();
    this.#start(place, { onReady: resolve, onFailed: (problem) => reject(new Error(problem)) });
    return promise;
  }

  /** @param first told of what becomes of it; it is not tried again when it fails. */
  #start(
    place: Place,
    first?: { onReady: (ready: ToPrimary & { type: "ready" }) => void; onFailed: (problem: string) => void },
  ): void {
    const startedMs = performance.now();
    const worker = new WorkerProcess({
      number: place.number,
      process: cluster.fork(),
      onOutput: (lines) => this.observer.log.relay(lines),
      onGarbled: (error) => this.observer.log.unexpected(error),
      onMessage: (message) => {
        switch (message.type) {
          case "hello":
            worker.config = this.#config;
            worker.tell({
              type: "configure",
              number: place.number,
              config: this.#config,
              ...(this.#prettyLog && { prettyLog: this.#prettyLog }),
              command: [...this.#command],
            });
            return;
          case "made":
            worker.store = message.store;
            // What operators have changed meanwhile is what the others go by.
            void this.#bringUp(worker);
            return;
          case "ready":
            worker.servesSinceMs = performance.now();
            this.observer.log.event("info", "worker.started", `worker ${place.number} serves`, {
              worker: place.number,
              pid: worker.pid,
              took_s: Math.round(performance.now() - startedMs) / 1000,
            });
            first?.onReady(message);
            this.#changed();
            return;
          case "failed":
            worker.problem = message.message;
            return;
          case "draining":
            worker.isDraining = true;
            this.#changed();
            return;
          case "met":
            this.#fanOut.met(message.watch, message.handle);
            for (const other of this.#workers()) if (other !== worker) other.tell(message);
            return;
          case "ended":
            for (const other of this.#workers()) if (other !== worker) other.tell(message);
        }
      },
      onEnded: (status, signal) => {
        place.worker = undefined;
        this.#departed.add(worker.counted);
        this.observer.metrics.workerGone(place.number);
        if (first !== undefined && worker.servesSinceMs === undefined && this.#closing === undefined)
          first.onFailed(worker.problem ?? `worker 1 ended before it was ready (${signal ?? `status ${status}`})`);
        else this.#ended(place, worker, status, signal);
        this.#changed();
      },
    });
    place.worker = worker;
    place.pause = undefined;
    this.#changed();
  }

  /** Lets a worker serve, when it goes by what the others go by. */
  async #bringUp(worker: WorkerProcess): Promise<void> {
    await this.#fanOut.bringUpToDate(worker);
    if (worker.config !== this.#config) await this.#bringConfigUp(worker, "program");
    worker.tell({ type: "listen" });
  }

  /** Counts and tells that a worker is no more, and starts the next one. */
  #ended(place: Place, worker: WorkerProcess, status: number | null, signal: string | null): void {
    const { number } = place;
    const servedMs = worker.servesSinceMs === undefined ? 0 : performance.now() - worker.servesSinceMs;
    const fields = {
      worker: number,
      pid: worker.pid,
      served_s: Math.round(servedMs) / 1000,
      ...(signal === null ? { status: status ?? 0 } : { signal }),
      ...(worker.problem !== undefined && { problem: worker.problem }),
    };
    if (this.#closing !== undefined) {
      this.observer.log.event("info", "worker.exited", `worker ${number} has ended`, fields);
      return;
    }
    const reason = endOf(worker, status, signal);
    place.failures = servedMs >= STARTED_WELL_MS ? 0 : place.failures + 1;
    const pauseMs = pauseAfter(place.failures);
    place.restarts++;
    this.observer.metrics.workerRestarted(reason);
    const text = `worker ${number} has ended (${reason}); another one is started`;
    this.observer.log.event("error", "worker.exited", text, { ...fields, reason, pause_s: pauseMs / 1000 });
    place.pause = setTimeout(() => this.#start(place), pauseMs);
  }

  /** Waits until each of them serves, or has failed once. */
  #settled(places: readonly Place[]): Promise<void> {
    return this.#until(() => places.every(({ worker, failures }) => worker?.isServing || failures > 0));
  }

  async #until(isSo: () => boolean): Promise<void> {
    while (!isSo()) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const before = this.#onChange;
      this.#onChange = () => {
        before();
        resolve();
      };
      await promise;
    }
  }

  #changed(): void {
    const counts: Partial<Record<WorkerState, number>> = {};
    for (const { worker } of this.#places) {
      const state = stateOf(worker);
      counts[state] = (counts[state] ?? 0) + 1;
    }
    this.observer.metrics.workers(this.#closing !== undefined ? { ...counts, waiting: 0 } : counts);
    const onChange = this.#onChange;
    this.#onChange = () => {};
    onChange();
  }

  async #countAll(): Promise<void> {
    const workers = this.#places.flatMap(({ worker }) => (worker?.servesSinceMs === undefined ? [] : [worker]));
    await Promise.all(
      workers.map(async (worker) => {
        const before = cpuSecondsIn(worker.counted);
        const counted = await worker.count(COUNT_TIMEOUT_MS);
        this.observer.metrics.workerUse(worker.number, cpuSecondsIn(counted) - before, memoryIn(counted));
      }),
    );
  }

  /** All that is and was counted. */
  async #metrics(): Promise<string> {
    await this.#countAll();
    const own = await this.observer.metrics.snapshot();
    const living = this.#places.flatMap(({ worker }) => (worker === undefined ? [] : [worker.counted]));
    return renderMetrics(mergeMetrics(own, [...living, this.#departed.counted]));
  }
}

function stateOf(worker: WorkerProcess | undefined): WorkerState {
  if (worker === undefined) return "waiting";
  if (worker.isDraining) return "draining";
  return worker.servesSinceMs === undefined ? "starting" : "serving";
}

function endOf({ servesSinceMs }: WorkerProcess, status: number | null, signal: string | null): WorkerEnd {
  if (signal !== null) return "killed";
  if (servesSinceMs === undefined) return "not_started";
  return status === 0 ? "exited" : "crashed";
}

/** None after a good start, then a quarter of a second, doubled each time, half a minute at the most. */
export function pauseAfter(failures: number): number {
  return failures === 0 ? 0 : Math.min(FIRST_PAUSE_MS * 2 ** (failures - 1), LONGEST_PAUSE_MS);
}

function sumOf(samples: readonly Sample[]): number {
  return samples.reduce((sum, { value }) => sum + value, 0);
}

function cpuSecondsIn(metrics: readonly MetricSnapshot[]): number {
  return metrics.find(({ name }) => name === "process_cpu_seconds")?.values[0]?.value ?? 0;
}

function memoryIn(metrics: readonly MetricSnapshot[]): number {
  return metrics.find(({ name }) => name === "process_resident_memory_bytes")?.values[0]?.value ?? 0;
}
