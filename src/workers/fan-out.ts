import { type AdminApi, type AdminRequest, failure, localApi } from "../admin/api.ts";
import { type Dump, dumpFileName, type TakenDump } from "../admin/dump.ts";
import { json, type Reply } from "../admin/endpoint.ts";
import { EXCHANGES } from "../admin/exchanges.ts";
import { observeEndpoint } from "../admin/observe.ts";
import { reloadEndpoint } from "../admin/reload.ts";
import { UPSTREAMS } from "../admin/upstreams.ts";
import { WATCH, WATCHES } from "../admin/watch.ts";
import { WEBSOCKETS } from "../admin/websockets.ts";
import type { ReloadOutcome } from "../core/reload.ts";
import { newSpanId } from "../core/trace-context.ts";
import type { WorkerState } from "../core/workers.ts";
import { packDump, unpackDump } from "../dump.ts";
import type { Observer } from "../observe/observer.ts";
import { mergeDumps } from "./merged-dump.ts";
import { mergeWatch, mergeWatches, mergeWebSockets, Positions, type Said } from "./merged-lists.ts";
import { type Plan, planFor } from "./plans.ts";
import { NoAnswer, type WorkerProcess } from "./worker-process.ts";

/** Until an answer begins. */
const TIMEOUT_MS = 5_000;
const PROBE_TIMEOUT_MS = 1_000;
const DUMP_TIMEOUT_MS = 20_000;
/** A profile takes as long as it is asked to, up to a minute. */
const PROFILE_TIMEOUT_MS = 75_000;

/** Where there is, or was, or will be a worker. */
export interface PlaceReport {
  readonly number: number;
  readonly state: WorkerState;
  readonly restarts: number;
  readonly worker: WorkerProcess | undefined;
}

export interface FanOutOptions {
  readonly observer: Observer;
  /** Reads the configuration again. */
  readonly reload: () => Promise<ReloadOutcome>;
  readonly isDraining: () => boolean;
  readonly places: () => readonly PlaceReport[];
  /** The scrape of all of them. */
  readonly metrics: () => Promise<string>;
}

interface Answer {
  readonly worker: WorkerProcess;
  readonly reply: Reply;
}

interface RunningWatch {
  readonly body: object;
  /** Milliseconds since the epoch. */
  readonly endsAt: number;
  /** Of the sessions that were met. */
  readonly handles: Set<string>;
}

/** Of one watch; as many as a worker remembers. */
const MAX_HANDLES = 64;

/** The admin API of several workers, which answer as one. */
export class FanOut implements AdminApi {
  readonly #options: FanOutOptions;
  /** What the primary answers itself: its settings are those of all. */
  readonly #own: AdminApi;
  readonly #positions = new Positions();
  /** What is watched, for workers that come later: by the id of the watch, the question that began it. */
  readonly #watches = new Map<string, RunningWatch>();

  constructor(options: FanOutOptions) {
    const { observer, reload } = options;
    this.#options = options;
    const own = [observeEndpoint(observer.settings), reloadEndpoint(reload)];
    this.#own = localApi(new Map(own), (error) => observer.log.unexpected(error));
  }

  isOpen(path: string): boolean {
    return path === "/livez" || path === "/readyz";
  }

  async perform(request: AdminRequest): Promise<Reply> {
    try {
      return await this.#perform(request, planFor(request.method, request.path));
    } catch (error) {
      if (error instanceof NoAnswer) return json(503, { error: error.message });
      return failure(error, request, (unexpected) => this.#options.observer.log.unexpected(unexpected));
    }
  }

  #perform(request: AdminRequest, plan: Plan): Reply | Promise<Reply> {
    switch (plan) {
      case "alive":
        return json(200, { status: "ok" });
      case "readiness":
        return this.#readiness();
      case "metrics":
        return this.#metrics();
      case "one":
        return this.#one(request);
      case "first":
        return this.#first(request);
      case "chosen":
        return this.#chosen(request);
      case "exchanges":
        return this.#exchanges(request);
      case "websockets":
        return this.#together(request, (answers) => mergeWebSockets(read(answers, WEBSOCKETS)));
      case "upstreams":
        return this.#together(request, (answers) => ({
          upstreams: read(answers, UPSTREAMS).flatMap(({ worker, value }) =>
            value.upstreams.map((upstream) => ({ worker, ...upstream })),
          ),
        }));
      case "watches":
        return this.#together(request, (answers) => mergeWatches(read(answers, WATCHES)));
      case "watch":
        return this.#watch(request);
      case "unwatch":
        return this.#unwatch(request);
      case "settings":
      case "reload":
        return this.#own.perform(request);
      case "adjust":
        return this.#adjust(request);
      case "dump":
        return this.#dump();
    }
  }

  /** What the others go by, for a worker that does not serve yet. */
  async bringUpToDate(worker: WorkerProcess): Promise<void> {
    const { log, traces, temporary } = this.#options.observer.settings.report();
    const lasting = temporary?.afterwards ?? { log, traces };
    const questions: [path: string, body: object, id?: string][] = [["/observe", lasting]];
    if (temporary !== undefined)
      questions.push(["/observe", { log, traces, for: secondsUntil(Date.parse(temporary.until)) }]);
    for (const [id, { body, endsAt }] of this.#watches) {
      if (endsAt > Date.now()) questions.push(["/debug/watch", { ...body, for: secondsUntil(endsAt) }, id]);
      else this.#watches.delete(id);
    }
    for (const [path, body, id] of questions)
      await ask(worker, question({ method: "POST", path, body: JSON.stringify(body), id }), TIMEOUT_MS).catch(() => {});
    for (const [watch, { handles }] of this.#watches)
      for (const handle of handles) worker.tell({ type: "met", watch, handle });
  }

  /** A worker has met a session of somebody under watch. */
  met(watch: string, handle: string): void {
    const handles = this.#watches.get(watch)?.handles;
    if (handles === undefined || handles.size >= MAX_HANDLES) return;
    handles.add(handle);
  }

  async takeDump(): Promise<TakenDump> {
    const { observer, places, metrics } = this.#options;
    const answers = await this.#all(question({ path: "/debug/dump" }), DUMP_TIMEOUT_MS);
    if (answers.length === 0) throw new NoAnswer(NOBODY);
    const dumps = new Map<number, Dump>();
    for (const { worker, reply } of answers) {
      if (reply.status === 200 && reply.body instanceof Uint8Array)
        dumps.set(worker.number, await unpackDump(reply.body));
    }
    const dump = mergeDumps(dumps, {
      places: places(),
      events: observer.log.events(),
      metrics: await metrics(),
      isDraining: this.#options.isDraining(),
    });
    return { fileName: dumpFileName(dump), content: await packDump(dump) };
  }

  get #serving(): WorkerProcess[] {
    return this.#options.places().flatMap(({ worker }) => (worker?.isServing ? [worker] : []));
  }

  /** Ready is who can serve: one worker is enough. */
  async #readiness(): Promise<Reply> {
    const configured = this.#options.places().length;
    if (this.#options.isDraining()) return json(503, { status: "draining" });
    const answers = await this.#all(question({ path: "/readyz" }), PROBE_TIMEOUT_MS);
    const ready = answers.filter(({ reply }) => reply.status === 200).length;
    const workers = { ready, configured };
    if (ready > 0) return json(200, { status: "ok", workers });
    const [first] = answers;
    const status = first === undefined ? NOBODY : (JSON.parse(textOf(first.reply)) as { status: string }).status;
    return json(503, { status, workers });
  }

  async #metrics(): Promise<Reply> {
    const { metrics, observer } = this.#options;
    return { status: 200, type: observer.metrics.contentType, body: await metrics() };
  }

  /** Of any worker; when the one that is asked ends, another one is, if nothing is lost by asking twice. */
  async #one(request: AdminRequest): Promise<Reply> {
    const asked = await questionOf(request);
    const [first, ...others] = this.#serving;
    if (first === undefined) throw new NoAnswer(NOBODY);
    try {
      return await ask(first, asked, TIMEOUT_MS, request.signal);
    } catch (error) {
      const [second] = others;
      if (!(error instanceof NoAnswer) || second === undefined || asked.method !== "GET") throw error;
      return ask(second, asked, TIMEOUT_MS, request.signal);
    }
  }

  async #first(request: AdminRequest): Promise<Reply> {
    const asked = await questionOf(request);
    // What becomes of a request is the same everywhere; what became of one is known to the worker that served it.
    if (!/"trace"/.test(asked.body)) return this.#one({ ...request, body: () => asked.body });
    const answers = await this.#all(asked, TIMEOUT_MS, request.signal);
    const found = answers.find(({ reply }) => reply.status === 200) ?? answers[0];
    if (found === undefined) throw new NoAnswer(NOBODY);
    return found.reply;
  }

  async #chosen(request: AdminRequest): Promise<Reply> {
    const asked = await questionOf(request);
    const wanted = new URLSearchParams(request.query).get("worker");
    const worker = this.#serving.find(({ number }) => wanted === null || String(number) === wanted);
    if (worker === undefined)
      return json(404, { error: wanted === null ? NOBODY : "no such worker serves; /debug/dump lists them" });
    const reply = await ask(worker, asked, PROFILE_TIMEOUT_MS, request.signal);
    return { ...reply, fields: { ...reply.fields, "x-coatcheck-worker": String(worker.number) } };
  }

  async #exchanges(request: AdminRequest): Promise<Reply> {
    const parameters = new URLSearchParams(request.query);
    const after = parameters.get("after");
    const limit = Number(parameters.get("limit") ?? 50);
    const positions = after === null ? undefined : this.#positions.of(after);
    const answers = await this.#all(await questionOf(request), TIMEOUT_MS, request.signal, (worker, asked) => {
      if (positions === undefined) return asked;
      const own = new URLSearchParams(parameters);
      const position = positions.get(worker.number);
      // What has been shown of this worker so far: nothing.
      if (position === undefined) own.delete("after");
      else own.set("after", position);
      return { ...asked, query: own.toString() };
    });
    return together(answers, (good) => this.#positions.merge(read(good, EXCHANGES), { limit, after, positions }));
  }

  async #watch(request: AdminRequest): Promise<Reply> {
    const asked = { ...(await questionOf(request)), id: newSpanId() };
    const answers = await this.#all(asked, TIMEOUT_MS, request.signal);
    return together(answers, (good) => {
      const watch = mergeWatch(read(good, WATCH).map(({ value }) => value));
      const body = watch.user === null ? { handle: watch.handle } : { user: watch.user };
      const handles = this.#watches.get(watch.id)?.handles ?? new Set<string>();
      this.#watches.set(watch.id, { body, endsAt: Date.parse(watch.endsAt), handles });
      return watch;
    });
  }

  async #unwatch(request: AdminRequest): Promise<Reply> {
    const asked = await questionOf(request);
    const answers = await this.#all(asked, TIMEOUT_MS, request.signal);
    const ended = read(answers.filter(isGood), WATCH).map(({ value }) => value);
    const [first] = ended;
    if (first !== undefined) {
      this.#watches.delete(first.id);
      // Named by a handle that only one worker has met: to the others it is known by the one that it began with.
      const name = first.user === null ? { handle: first.handle ?? "" } : { user: first.user };
      const again = { ...asked, query: new URLSearchParams(name).toString() };
      const rest = answers.filter(({ reply }) => reply.status === 404).map(({ worker }) => worker);
      await Promise.all(rest.map((worker) => ask(worker, again, TIMEOUT_MS).catch(() => {})));
    }
    return together(answers, () => mergeWatch(ended));
  }

  async #adjust(request: AdminRequest): Promise<Reply> {
    const asked = await questionOf(request);
    const reply = await this.#own.perform({ ...request, body: () => asked.body });
    if (reply.status === 200) await this.#all(asked, TIMEOUT_MS, request.signal);
    return reply;
  }

  async #dump(): Promise<Reply> {
    const { fileName, content } = await this.takeDump();
    const fields = { "content-disposition": `attachment; filename="${fileName}"` };
    return { status: 200, type: "application/gzip", body: content, fields };
  }

  async #together(request: AdminRequest, merge: (good: readonly Answer[]) => unknown): Promise<Reply> {
    return together(await this.#all(await questionOf(request), TIMEOUT_MS, request.signal), merge);
  }

  /** @returns the answers of those that gave one. */
  async #all(
    asked: Question,
    timeoutMs: number,
    signal?: AbortSignal,
    forWorker: (worker: WorkerProcess, asked: Question) => Question = (_, same) => same,
  ): Promise<Answer[]> {
    const answers = await Promise.all(
      this.#serving.map(async (worker): Promise<Answer[]> => {
        try {
          return [{ worker, reply: await ask(worker, forWorker(worker, asked), timeoutMs, signal) }];
        } catch (error) {
          if (error instanceof NoAnswer) return [];
          throw error;
        }
      }),
    );
    return answers.flat();
  }
}

const NOBODY = "no worker serves";

interface Question {
  readonly kind: "admin";
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly body: string;
  readonly client: string;
  readonly wantsPage: boolean;
  readonly id: string;
}

function question(init: { method?: string; path: string; body?: string; id?: string | undefined }): Question {
  const { method = "GET", path, body = "", id = newSpanId() } = init;
  return { kind: "admin", method, path, query: "", body, client: "", wantsPage: false, id };
}

async function questionOf({ method, path, query, client, wantsPage, body }: AdminRequest): Promise<Question> {
  // Of what takes no body, none is read: a worker says what is wrong with it.
  const text = method === "POST" && path !== "/store/check" ? await body() : "";
  return {
    kind: "admin",
    method: method === "HEAD" ? "GET" : method,
    path,
    query,
    body: text,
    client,
    wantsPage,
    id: newSpanId(),
  };
}

function ask(worker: WorkerProcess, asked: Question, timeoutMs: number, signal?: AbortSignal): Promise<Reply> {
  return worker.ask(asked, timeoutMs, signal);
}

function isGood({ reply }: Answer): boolean {
  return reply.status === 200;
}

/** One answer of those that are good; when there is none, what one of them says. */
function together(answers: readonly Answer[], merge: (good: readonly Answer[]) => unknown): Reply {
  const good = answers.filter(isGood);
  const [first] = answers;
  if (first === undefined) throw new NoAnswer(NOBODY);
  return good.length === 0 ? first.reply : json(200, merge(good));
}

interface Schema<T> {
  readonly parse: (value: unknown) => T;
}

function read<T>(answers: readonly Answer[], schema: Schema<T>): Said<T>[] {
  return answers.map(({ worker, reply }) => ({
    worker: worker.number,
    value: schema.parse(JSON.parse(textOf(reply))),
  }));
}

function textOf({ body }: Reply): string {
  if (typeof body === "string") return body;
  return body instanceof Uint8Array ? Buffer.from(body).toString() : "";
}

function secondsUntil(ms: number): string {
  return `${Math.max(1, Math.ceil((ms - Date.now()) / 1000))}s`;
}
