import { readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { DUMP_FORMAT, type TakenDump } from "./admin/dump.ts";
import type { Log } from "./observe/logging.ts";

/** So many files of one process within an hour; a signal too many must not fill the disk. */
const MAX_FILES_AN_HOUR = 10;
const HOUR_MS = 3_600_000;

export interface DumpFilesOptions {
  readonly take: () => Promise<TakenDump>;
  /** Absent: the system's folder for temporary files. */
  readonly folder: () => string | undefined;
  readonly log: Log;
}

/** Dumps as files: what SIGUSR2 asks for. What became of it is in the log; there is nobody else to tell. */
export class DumpFiles {
  readonly #options: DumpFilesOptions;
  #writing = false;

  constructor(options: DumpFilesOptions) {
    this.#options = options;
  }

  /** Writes one, unless one is being written or there are too many; does not throw. */
  async write(): Promise<void> {
    const { take, log } = this.#options;
    if (this.#writing) return log.event("warn", "dump.refused", "no dump: one is being written");
    this.#writing = true;
    const folder = resolve(this.#options.folder() ?? tmpdir());
    try {
      const count = await this.#recentFiles(folder);
      if (count >= MAX_FILES_AN_HOUR) {
        const text = `no dump: there are ${count} of this process from the last hour; move them away`;
        return log.event("warn", "dump.refused", text, { folder });
      }
      const { fileName, content } = await take();
      const path = join(folder, fileName);
      await writeNewFile(path, content);
      log.event("info", "dump.written", "dump written", { path, bytes: content.length });
    } catch (error) {
      const reason = fileProblem(error);
      if (reason === undefined) log.unexpected(error);
      log.event("error", "dump.failed", `no dump: ${reason ?? "something went wrong"}`, { folder });
    } finally {
      this.#writing = false;
    }
  }

  async #recentFiles(folder: string): Promise<number> {
    const own = (await readdir(folder)).filter(
      (name) => name.startsWith(`${DUMP_FORMAT}-`) && name.endsWith(`-${process.pid}.json.gz`),
    );
    const ages = await Promise.all(
      own.map(async (name) => {
        const { mtimeMs } = await stat(join(folder, name)).catch(() => ({ mtimeMs: 0 }));
        return Date.now() - mtimeMs;
      }),
    );
    return ages.filter((ageMs) => ageMs < HOUR_MS).length;
  }
}

/**
 * Writes a file that only its owner may read, and that was not there: nobody has put a link in its place. What could not
 * be written to the end is taken away.
 */
export async function writeNewFile(path: string, content: Uint8Array): Promise<void> {
  try {
    await writeFile(path, content, { flag: "wx", mode: 0o600 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") await rm(path, { force: true }).catch(() => {});
    throw error;
  }
}

const FILE_PROBLEMS: Readonly<Record<string, string>> = {
  ENOENT: "the folder is not there",
  ENOTDIR: "the folder is a file",
  EISDIR: "this is a folder",
  EACCES: "this user may not write there",
  EPERM: "this user may not write there",
  EROFS: "the file system is read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EEXIST: "there is a file of that name",
  EMFILE: "no file descriptor is left",
  EFBIG: "the file would be larger than the system allows",
};

/** Why a file could not be written, in plain words; absent for what is not the file system's fault. */
export function fileProblem(error: unknown): string | undefined {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return FILE_PROBLEMS[code];
}
