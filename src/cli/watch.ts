import { setTimeout as sleep } from "node:timers/promises";
import { styleText } from "node:util";
import type { ShownExchange } from "../admin/exchange-schema.ts";
import type { Environment } from "../config/load.ts";
import { REFERENCE_PATTERN } from "../core/administration.ts";
import { DEFAULT_WATCH, type WatchList, type WatchSummary } from "../core/watching.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, type Admin, adminOf, askAdmin, callAdmin, query } from "./admin.ts";
import { parse, print, shieldValues, UsageError } from "./arguments.ts";
import { type ExchangeList, requestText, sessionText } from "./exchanges.ts";
import { untilInterrupted } from "./progress.ts";
import { fromNow, grouped, plain, shownMs, table } from "./text.ts";

const USAGE = `coatcheck watch: what does this user do that nobody else does?

Usage:
  coatcheck watch --user ID|--handle HANDLE [--for TIME]   puts a user or a session under watch
  coatcheck watch --list                                   the watches there are
  coatcheck watch --end --user ID|--handle HANDLE          ends one

While it lasts, each of their requests is traced, and recorded with its header sections, values
masked; see coatcheck exchanges --ring watch --steps. A session is followed through logins. A watch
ends by itself; one that is begun again goes on.

Options:
      --for TIME        how long: 1s to 24h (default: ${DEFAULT_WATCH})
      --follow          shows each request as it comes, until Ctrl-C, which ends the watch: the
                        default in a terminal
      --no-follow       only begins it
      --json            what the admin listener answers; with --follow one line a request
${ADMIN_HELP}

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  user: { type: "string" },
  handle: { type: "string" },
  for: { type: "string" },
  follow: { type: "boolean" },
  "no-follow": { type: "boolean" },
  list: { type: "boolean" },
  end: { type: "boolean" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

const POLL_MS = 1_000;
/** What the gateway keeps at the most: with so many new ones, there may have been more. */
const KEPT = 500;
const PATH = "/debug/watch";
const PARAMETERS = { for: "--for" };

type Options = ReturnType<typeof parse<typeof OPTIONS>>["values"];

/** `coatcheck watch …`. */
export async function runWatch(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(shieldValues(args, ["--handle"]), OPTIONS);
  if (values.help || args.length === 0) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${plain(positionals.join(" "))}"`);
  requireSense(values);
  const { user, handle, list, end, json = false } = values;
  const admin = adminOf(values, environment);
  if (list) {
    const watches = await callAdmin<WatchList>(admin, { method: "GET", path: PATH });
    return print(json ? asJson(watches) : renderList(watches));
  }
  if (end) {
    const ended = await callAdmin<WatchSummary>(admin, { method: "DELETE", path: PATH + query({ user, handle }) });
    return print(json ? asJson(ended) : `Ended. ${renderGathered(ended)}\n`);
  }
  const body = { user, handle, for: values.for };
  const follows = values.follow ?? (process.stdout.isTTY === true && values["no-follow"] !== true);
  if (follows) return untilInterrupted((signal) => follow(admin, body, { json, signal }));
  const begun = await callAdmin<WatchSummary>(admin, { method: "POST", path: PATH, body, options: PARAMETERS });
  return print(json ? asJson(begun) : `${renderBegun(begun)}\n`);
}

/** @throws UsageError for options that do not go together. */
function requireSense(values: Options): void {
  const { user, handle, list, end, follow, "no-follow": noFollow } = values;
  if (list && end) throw new UsageError("--list and --end do not go together");
  if (follow && noFollow) throw new UsageError("--follow and --no-follow do not go together");
  for (const name of ["for", "follow", "no-follow"] as const)
    if ((list || end) && values[name] !== undefined) throw new UsageError(`--${name} goes with a watch that begins`);
  if (list && (user !== undefined || handle !== undefined))
    throw new UsageError("--list shows all watches; leave --user and --handle out");
  if (!list && (user === undefined) === (handle === undefined))
    throw new UsageError("say whom: --user ID or --handle HANDLE, one of them");
  if (handle !== undefined && !REFERENCE_PATTERN.test(handle))
    throw new UsageError(`"${plain(handle, 50)}" is no handle: a handle has 12 characters of A-Z a-z 0-9 - _`);
}

/** Begins a watch, and shows what it gathers until it ends, or until it is ended here. */
async function follow(
  admin: Admin,
  body: object,
  { json, signal }: { readonly json: boolean; readonly signal: AbortSignal },
): Promise<number> {
  // What was gathered before is not shown.
  let after = (await gathered(admin, { limit: "1" })).exchanges[0]?.spanId;
  const begun = await callAdmin<WatchSummary>(admin, { method: "POST", path: PATH, body, options: PARAMETERS });
  const say = (line: string) => (json ? process.stderr : process.stdout).write(`${line}\n`);
  say(`${renderBegun(begun)} Ctrl-C ends it.`);
  let shown = 0;
  for (let running = true; running && !signal.aborted; ) {
    await pause(signal);
    // In this order, so that what came before the end is shown.
    const { watches } = await callAdmin<WatchList>(admin, { method: "GET", path: PATH });
    running = watches.some(({ id }) => id === begun.id);
    const { kept, exchanges } = await gathered(admin, { after, limit: String(KEPT) });
    if (kept >= KEPT) say("… more came than is kept: some are not shown");
    const own = exchanges.filter(({ watch }) => watch?.ids.includes(begun.id));
    for (const exchange of own.toReversed()) print(`${json ? JSON.stringify(exchange) : renderLine(exchange)}\n`);
    after = exchanges[0]?.spanId ?? after;
    shown += own.length;
    if (!running) say(`The watch has ended. ${requestCount(shown)} shown.`);
  }
  if (signal.aborted) await endHere(admin, begun, say);
  return 0;
}

async function endHere(admin: Admin, { user, handle }: WatchSummary, say: (line: string) => void): Promise<void> {
  const path = PATH + query({ user: user ?? undefined, handle: handle ?? undefined });
  const { status, text } = await askAdmin(admin, { method: "DELETE", path });
  // 404: it has ended in this very moment.
  if (status === 200) say(`Ended. ${renderGathered(JSON.parse(text))}`);
}

function gathered(admin: Admin, parameters: Record<string, string | undefined>): Promise<ExchangeList> {
  const path = `/debug/exchanges${query({ ring: "watch", ...parameters })}`;
  return callAdmin<ExchangeList>(admin, { method: "GET", path });
}

/** Waits for the next look, or for the end. */
async function pause(signal: AbortSignal): Promise<void> {
  try {
    await sleep(POLL_MS, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** `02:13:07.123  401    1.1 ms  GET shop.example/cart · unknown (store) · turned away: … · trace 4bf9…`. */
function renderLine(exchange: ShownExchange): string {
  const { time, response, timings, reason, traceId } = exchange;
  const status = coloured(String(response.status), exchange);
  const what = [plain(requestText(exchange), 100), sessionText(exchange), plain(reason, 300), `trace ${traceId}`];
  return `${time.slice(11, 23)}  ${status}  ${shownMs(timings.ended).padStart(8)}  ${what.join(" · ")}`;
}

/** In a terminal that wants colours. */
function coloured(text: string, { response: { status }, error }: ShownExchange): string {
  const colour = status >= 500 || error !== undefined ? "red" : status >= 400 ? "yellow" : "green";
  return styleText(colour, text, { stream: process.stdout });
}

function whom({ user, handle }: WatchSummary): string {
  return user === null ? `session ${handle}` : `user ${plain(user, 256)}`;
}

function renderBegun(watch: WatchSummary): string {
  return `Watching ${whom(watch)} until ${watch.endsAt.slice(11, 19)} UTC (${fromNow(watch.endsAt, Date.now())}).`;
}

/** `12 requests: 11 hit, 1 unknown; 1 failed.` */
function renderGathered({ requests, failed, outcomes }: WatchSummary): string {
  if (requests === 0) return "No requests.";
  const kinds = Object.entries(outcomes).map(([outcome, count]) => `${grouped(count)} ${outcome}`);
  const ends = failed === 0 ? "" : `; ${grouped(failed)} failed`;
  return `${requestCount(requests)}: ${kinds.join(", ")}${ends}.`;
}

function requestCount(count: number): string {
  return count === 1 ? "1 request" : `${grouped(count)} requests`;
}

function renderList({ watches, kept, keptUntil }: WatchList): string {
  const now = Date.now();
  const rest =
    kept === 0
      ? ""
      : `${grouped(kept)} requests are kept${keptUntil === null ? "" : ` until ${keptUntil.slice(11, 19)} UTC`}: coatcheck exchanges --ring watch\n`;
  if (watches.length === 0) return `Nobody is under watch.\n${rest}`;
  const rows = watches.map((watch) => [whom(watch), fromNow(watch.endsAt, now), renderGathered(watch)]);
  return table([["WHO", "ENDS", "GATHERED"], ...rows]) + rest;
}

function asJson(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}
