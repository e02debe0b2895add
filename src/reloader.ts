import type { Config } from "./config/compile.ts";
import { ConfigError } from "./config/problems.ts";
import type { ReloadCause, ReloadOutcome, ReloadResult } from "./core/reload.ts";
import { stampOfSync, type WatchedFiles, watchFiles } from "./file-watch.ts";
import type { Observer } from "./observe/observer.ts";

/** Where a configuration comes from. */
export interface ConfigSource {
  /** @throws ConfigError with every problem. */
  readonly read: () => Config;
  /** The file that is looked at; absent: nobody looks. */
  readonly file?: string;
  /** Of the file, before it was read for the configuration that the gateway begins with. */
  readonly stamp?: string;
  /** How often it is looked at, milliseconds; default one second. */
  readonly pollMs?: number;
}

const SOURCE_POLL_MS = 1_000;

export interface ReloaderOptions {
  /** Absent: there is nothing to read again. */
  readonly source: ConfigSource | undefined;
  readonly observer: Observer;
  /** Whether changes of the file are to be noticed: `reload.watch` as it is in effect. */
  readonly isWatched: () => boolean;
  /** @throws Error when it cannot be applied: then nothing has changed. */
  readonly apply: (read: Config, by: ReloadCause) => Promise<ReloadResult>;
}

/** Reads a configuration again, when somebody says so or its file changes, and has it applied. */
export class Reloader {
  readonly #options: ReloaderOptions;
  /** Reloads come one after the other. */
  #reloading: Promise<unknown> = Promise.resolve();
  #watch: WatchedFiles | undefined;
  #stamp: string;

  constructor(options: ReloaderOptions) {
    this.#options = options;
    this.#stamp = options.source?.stamp ?? "";
  }

  /** Of several calls, one waits for the other. @throws Error when it cannot be applied. */
  reload(read: Config, by: ReloadCause): Promise<ReloadResult> {
    const reloaded = this.#reloading.then(async () => {
      const result = await this.#options.apply(read, by);
      this.watch();
      this.#options.observer.reloaded(result, by);
      return result;
    });
    this.#reloading = reloaded.catch(() => {});
    return reloaded;
  }

  /**
   * Reads the configuration anew, from where it came, and applies it. One that makes no sense, or names a file that cannot
   * be used, is refused as a whole: everything goes on as it was. What became of it is logged and counted.
   */
  async reread(by: ReloadCause): Promise<ReloadOutcome> {
    const { source, observer } = this.#options;
    if (source === undefined) {
      observer.nothingToReload(by);
      return { result: "nothing-to-read" };
    }
    if (source.file !== undefined) {
      this.#stamp = stampOfSync(source.file);
      this.#watch?.taken(this.#stamp);
    }
    try {
      return { result: "applied", ...(await this.reload(source.read(), by)) };
    } catch (error) {
      const problems =
        error instanceof ConfigError ? error.problems : [error instanceof Error ? error.message : String(error)];
      observer.reloadRefused(problems, by);
      return { result: "refused", problems };
    }
  }

  /** Looks at the file from now on, or no longer, as the configuration has it. */
  watch(): void {
    const { source, isWatched } = this.#options;
    const { file, pollMs = SOURCE_POLL_MS } = source ?? {};
    if (file === undefined || !isWatched()) {
      this.end();
      return;
    }
    const stamp = this.#stamp;
    const onChanged = async (): Promise<void> => void (await this.reread("file"));
    this.#watch ??= watchFiles({ files: [file], stamp, pollMs, onChanged });
  }

  end(): void {
    this.#watch?.end();
    this.#watch = undefined;
  }
}
