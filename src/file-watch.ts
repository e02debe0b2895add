import { type Stats, statSync } from "node:fs";
import { stat } from "node:fs/promises";

/**
 * Files that others change. They are looked at again and again: notifications of the file system do not come from every
 * network file system, are bound to a file that an editor replaces by another, and can run out. A look is by the name, and
 * so follows what a name stands for: an editor that renames, a symbolic link that a Kubernetes volume swaps.
 */

export interface FileWatch {
  readonly files: readonly string[];
  /** Of the files as they are in use: `stampOf` before they were read. */
  readonly stamp: string;
  /** They have changed, and have been the same for two looks. Until it is done, nobody looks. */
  readonly onChanged: () => void | Promise<void>;
  readonly pollMs: number;
}

export interface WatchedFiles {
  end(): void;
  /** They were read for another reason. @param stamp `stampOf` before that. */
  taken(stamp: string): void;
}

export function watchFiles({ files, stamp, onChanged, pollMs }: FileWatch): WatchedFiles {
  let used = stamp;
  let seen: string | undefined;
  let looking = false;
  let over = false;
  const look = async (): Promise<void> => {
    const now = await stampOf(files);
    // A change that is still going on, such as a certificate whose key comes next, is left for the next time.
    const isSettled = now === seen;
    seen = now;
    if (now === used || !isSettled || over) return;
    used = now;
    await onChanged();
  };
  const begin = (): void => {
    if (looking) return;
    looking = true;
    look().finally(() => {
      looking = false;
    });
  };
  const timer = setInterval(begin, pollMs).unref();
  return {
    end: () => {
      over = true;
      clearInterval(timer);
    },
    taken: (stamp) => {
      used = stamp;
    },
  };
}

/** Changes when one of the files does; what is not there has a stamp too. */
export async function stampOf(files: readonly string[]): Promise<string> {
  return (await Promise.all(files.map((file) => stat(file).then(stampOfOne, () => MISSING)))).join(", ");
}

export function stampOfSync(file: string): string {
  try {
    return stampOfOne(statSync(file));
  } catch {
    return MISSING;
  }
}

const MISSING = "none";

function stampOfOne({ dev, ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${dev} ${ino} ${size} ${mtimeMs} ${ctimeMs}`;
}
