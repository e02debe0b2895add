import { createWriteStream } from "node:fs";
import { access, rename, rm } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { fileProblem } from "../dump-files.ts";
import { CommandError } from "./arguments.ts";
import { plain } from "./text.ts";

/** Files that commands write: for their owner alone, whole or not at all. */

export interface SaveOptions {
  /** Writes over a file that is there. */
  readonly force: boolean;
}

/**
 * Writes a file beside its place and moves it there when it is whole.
 * @throws CommandError when it cannot be written, or when there is one already.
 */
export async function saveFile(
  file: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
  { force }: SaveOptions,
): Promise<void> {
  await refuseToOverwrite(file, { force });
  const unfinished = `${file}.${process.pid}.unfinished`;
  let own = false;
  try {
    const output = createWriteStream(unfinished, { flags: "wx", mode: 0o600 });
    output.once("open", () => {
      own = true;
    });
    await pipeline(content instanceof Uint8Array ? Readable.from([content]) : content, output);
    await rename(unfinished, file);
  } catch (error) {
    if (own) await rm(unfinished, { force: true });
    const reason = fileProblem(error);
    if (reason === undefined) throw error;
    throw new CommandError(`cannot write ${plain(file, 4096)}: ${reason}`);
  }
}

/** Asked before a gateway is made to work for it. @throws CommandError when there is a file and it is not to be replaced. */
export async function refuseToOverwrite(file: string, { force }: SaveOptions): Promise<void> {
  const exists = await access(file).then(
    () => true,
    () => false,
  );
  if (exists && !force) throw new CommandError(`${plain(file, 4096)} is there already; --force writes over it`);
}
