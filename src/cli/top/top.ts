import type { ReadStream, WriteStream } from "node:tty";
import type { Admin } from "../admin.ts";
import { CommandError } from "../arguments.ts";
import { type Figures, figuresOf, type Reading } from "./figures.ts";
import { ORDERS, PANELS, type Panel } from "./panels.ts";
import { read } from "./read.ts";
import { openScreen } from "./screen.ts";
import type { Ability } from "./text.ts";
import { firstView, overflowOf, render, type View } from "./view.ts";

export interface TopOptions {
  readonly admin: Admin;
  readonly intervalMs: number;
  readonly ability: Ability;
  readonly output: WriteStream;
  readonly input: ReadStream;
}

/** Rates that the sparkline has room for, and a few more. */
const HISTORY = 60;

/**
 * Shows what the gateway says of itself, again and again, until a key ends it. A gateway that gives no answer is asked
 * again; only the first answer has to be there.
 * @throws CommandError when it is not.
 */
export async function top({ admin, intervalMs, ability, output, input }: TopOptions): Promise<void> {
  let last = await read(admin);
  let view = firstView(admin.url, intervalMs, figuresOf(last, undefined));
  const ended = Promise.withResolvers<void>();
  let timer: NodeJS.Timeout | undefined;

  const show = (change: Partial<View>): void => {
    view = { ...view, ...change, now: Date.now() };
    view = { ...view, offset: Math.min(view.offset, overflowOf(view, screen.size)) };
    screen.draw(render(view, screen.size, ability));
  };
  const look = async (): Promise<void> => {
    if (!view.paused) show(await next(admin, last, view));
    timer = setTimeout(again, intervalMs);
  };
  const next = async (from: Admin, before: Reading, { history }: View): Promise<Partial<View>> => {
    try {
      last = await read(from);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      return { trouble: `asking again: ${error.message.split(";", 1)[0]}` };
    }
    const figures: Figures = figuresOf(last, before);
    return {
      figures,
      trouble: undefined,
      history: [...history, figures.requests.rate].slice(-HISTORY),
      ...(figures.restarted && { restartedAt: last.at }),
    };
  };
  const again = (): void => {
    look().catch(ended.reject);
  };
  const press = (key: string): void => {
    if (key === "q" || key === "ctrl-c") ended.resolve();
    else show(pressed(key, view));
  };
  const screen = openScreen(output, input, { onKey: press, onResize: () => show({}) });
  const quit = (): void => ended.resolve();
  process.once("SIGTERM", quit).once("SIGINT", quit).once("SIGHUP", quit);
  try {
    show({});
    timer = setTimeout(again, Math.min(intervalMs, 1_000));
    await ended.promise;
  } finally {
    clearTimeout(timer);
    screen.close();
    process.off("SIGTERM", quit).off("SIGINT", quit).off("SIGHUP", quit);
  }
}

/** What a key changes. */
export function pressed(key: string, view: View): Partial<View> {
  const { panel, order, paused, help, offset } = view;
  const turn = (by: number): Partial<View> => ({ panel: neighbour(PANELS, panel, by), offset: 0, help: false });
  switch (key) {
    case "1":
    case "2":
    case "3":
    case "4":
      return { panel: PANELS[Number(key) - 1] as Panel, offset: 0, help: false };
    case "tab":
    case "right":
      return turn(1);
    case "left":
      return turn(-1);
    case "down":
      return { offset: offset + 1 };
    case "up":
      return { offset: Math.max(0, offset - 1) };
    case "s":
      return { order: neighbour(ORDERS, order, 1) };
    case "p":
    case "space":
      return { paused: !paused };
    case "?":
    case "h":
      return { help: !help };
    default:
      return { help: false };
  }
}

function neighbour<T>(list: readonly T[], from: T, by: number): T {
  return list[(list.indexOf(from) + by + list.length) % list.length] as T;
}
