import { emitKeypressEvents } from "node:readline";
import type { ReadStream, WriteStream } from "node:tty";
import ansiEscapes from "ansi-escapes";
import { createLogUpdate } from "log-update";
import type { Size } from "./view.ts";

/** A terminal as a screen of lines: its other buffer, so that what stood there before comes back at the end. */
export interface Screen {
  readonly size: Size;
  draw(lines: readonly string[]): void;
  close(): void;
}

export interface ScreenEvents {
  /** @param key `q`, `?`, `left`, `ctrl-c` … */
  readonly onKey: (key: string) => void;
  readonly onResize: () => void;
}

/** @param input keys are read from it when it is a terminal. */
export function openScreen(output: WriteStream, input: ReadStream, { onKey, onResize }: ScreenEvents): Screen {
  // It would hide the cursor of standard error, which may be elsewhere.
  let update = createLogUpdate(output, { showCursor: true });
  const resized = (): void => {
    // What the terminal has made of the old lines is anybody's guess.
    output.write(ansiEscapes.clearViewport);
    update = createLogUpdate(output, { showCursor: true });
    onResize();
  };
  const pressed = (text: string | undefined, key: { name?: string; ctrl?: boolean } | undefined): void => {
    if (key?.ctrl) onKey(`ctrl-${key.name}`);
    else onKey(key?.name !== undefined && key.name.length > 1 ? key.name : (text ?? ""));
  };
  const restore = (): void => {
    output.write(ansiEscapes.cursorShow + ansiEscapes.exitAlternativeScreen);
  };
  // Whatever ends the process: nobody can work on a terminal without a cursor.
  process.once("exit", restore);
  output.write(ansiEscapes.enterAlternativeScreen + ansiEscapes.cursorHide + ansiEscapes.clearViewport);
  output.on("resize", resized);
  const keys = input.isTTY;
  if (keys) {
    emitKeypressEvents(input);
    input.setRawMode(true);
    input.on("keypress", pressed);
    input.resume();
  }
  return {
    get size() {
      // The drawing ends below the last line: one row stays free for the cursor.
      return { columns: output.columns, rows: output.rows - 1 };
    },
    draw: (lines) => update(lines.join("\n")),
    close: () => {
      output.off("resize", resized);
      if (keys) {
        input.off("keypress", pressed);
        input.setRawMode(false);
        input.pause();
      }
      update.done();
      process.off("exit", restore);
      restore();
    },
  };
}
