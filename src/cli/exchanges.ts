import type { ShownExchange } from "../admin/exchange-schema.ts";
import type { Environment } from "../config/load.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, callAdmin, query } from "./admin.ts";
import { parse, print, shieldValues, UsageError } from "./arguments.ts";
import { grouped, plain, shownMs, table } from "./text.ts";

const USAGE = `coatcheck exchanges: which request was it, and what became of it

Usage:
  coatcheck exchanges [FILTER…]       the last requests, newest first, and what became of them
  coatcheck exchanges --trace ID      one request, step by step

Filters; a request is shown if it is like all that are given:
      --route ID        as logs and metrics have it, such as '*/shop'
      --outcome NAME    of the session: hit, absent, unknown, expired, malformed, unavailable, …
      --logout REASON   why a visitor with a cookie was not recognised: expired, ended, lost,
                        signature, …; surprise: any but the first two
      --decision NAME   of the route's policy: identified, anonymous, denied, login-redirect, outage
      --status STATUS   503, or 5xx
      --error TYPE      such as connection_refused
      --handle HANDLE   of the session
      --slower-than TIME
                        such as 250ms
      --path PATH       how the path begins
      --trace ID        the trace id that error pages, logs and traces have

Options:
      --ring NAME       recent (default); slow or errors, which busy hours do not wash away so soon;
                        or watch
      --limit N         how many at the most (default: 20)
      --steps           each with its steps, and with its header sections, masked, if it was under
                        watch
      --json            what the admin listener answers, for machines
${ADMIN_HELP}

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  route: { type: "string" },
  outcome: { type: "string" },
  logout: { type: "string" },
  decision: { type: "string" },
  status: { type: "string" },
  error: { type: "string" },
  handle: { type: "string" },
  "slower-than": { type: "string" },
  path: { type: "string" },
  trace: { type: "string" },
  ring: { type: "string" },
  limit: { type: "string" },
  steps: { type: "boolean" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

/** Most parameters are called as their options are. */
const PARAMETERS = {
  ...Object.fromEntries(
    ["route", "outcome", "logout", "decision", "status", "error", "handle", "path", "ring", "limit"].map((name) => [
      name,
      `--${name}`,
    ]),
  ),
  slowerThan: "--slower-than",
  traceId: "--trace",
};
const DEFAULT_LIMIT = "20";

/** What `GET /debug/exchanges` answers. */
export interface ExchangeList {
  readonly ring: string;
  readonly kept: number;
  readonly matched: number;
  /** Newest first. */
  readonly exchanges: readonly ShownExchange[];
}

/** `coatcheck exchanges …`. */
export async function runExchanges(args: readonly string[], environment: Environment): Promise<number> {
  const { values, positionals } = parse(shieldValues(args, ["--handle"]), OPTIONS);
  if (values.help) return print(USAGE);
  if (positionals.length > 0) throw new UsageError(`unexpected "${plain(positionals.join(" "))}"`);
  const { route, outcome, logout, decision, status, error, handle, path, trace, ring, limit = DEFAULT_LIMIT } = values;
  const filters = { route, outcome, logout, decision, status, error, handle, path };
  const list = await callAdmin<ExchangeList>(adminOf(values, environment), {
    method: "GET",
    path: `/debug/exchanges${query({ ...filters, slowerThan: values["slower-than"], traceId: trace, ring, limit })}`,
    options: PARAMETERS,
  });
  if (values.json) return print(`${JSON.stringify(list, null, 2)}\n`);
  return print(values.steps || trace !== undefined ? renderSteps(list) : renderList(list, process.stdout.columns));
}

/** @param columns of the terminal; absent: it is none. A table that is wider is replaced by a paragraph for each. */
export function renderList(list: ExchangeList, columns?: number): string {
  const { matched, exchanges } = list;
  if (matched === 0) return renderNothing(list);
  const lines = renderTable(exchanges);
  const fits = columns === undefined || lines.split("\n").every(({ length }) => length <= columns);
  const more = matched > exchanges.length ? `${grouped(matched - exchanges.length)} more; see --limit.\n` : "";
  return (fits ? lines : exchanges.map(renderParagraph).join("")) + more;
}

function renderTable(exchanges: readonly ShownExchange[]): string {
  const heading = ["TIME (UTC)", "STATUS", "TOOK", "REQUEST", "SESSION", "HANDLE", "TRACE", "WHAT BECAME OF IT"];
  const rows = exchanges.map((exchange) => [
    exchange.time.slice(5, 23).replace("T", " "),
    String(exchange.response.status),
    shownMs(exchange.timings.ended),
    plain(requestText(exchange), 60),
    sessionText(exchange),
    exchange.session.handle ?? "-",
    exchange.traceId,
    plain(exchange.reason, 200),
  ]);
  return table([heading, ...rows], [1, 2]);
}

function renderParagraph(exchange: ShownExchange): string {
  const { time, response, timings, session, reason, traceId } = exchange;
  const what = [plain(requestText(exchange), 60), sessionText(exchange), ...(session.handle ? [session.handle] : [])];
  const head = `${time.slice(11, 23)}  ${response.status}  ${shownMs(timings.ended)}  ${what.join(" · ")}`;
  return `${head}\n  ${plain(reason, 200)}\n  trace ${traceId}\n`;
}

function renderSteps(list: ExchangeList): string {
  return list.matched === 0 ? renderNothing(list) : list.exchanges.map(renderStory).join("\n");
}

function renderStory(exchange: ShownExchange): string {
  const { time, traceId, response, reason, steps } = exchange;
  const rows = steps.map(({ step, atMs, tookMs, detail }) => [
    atMs === undefined ? "" : shownMs(atMs),
    step,
    plain(detail, 500) + (tookMs === undefined ? "" : ` [${shownMs(tookMs)}]`),
  ]);
  const heading = `${plain(requestText(exchange), 600)} · ${response.status} · ${time} · trace ${traceId}`;
  const story = table([["AT", "STEP", "WHAT [HOW LONG]"], ...rows], [0]);
  return `${heading}\n${plain(reason, 500)}\n${story}${renderFields(exchange)}`;
}

/** The header sections of a request under watch; what is not shown is `*** (N)`. */
function renderFields({ watch }: ShownExchange): string {
  if (watch === undefined) return "";
  const { query, request, forwarded, upstreamResponse, response } = watch;
  const sections = [
    { title: `from the client${query === undefined ? "" : `, query ${query}`}`, fields: request },
    { title: "to the application", fields: forwarded },
    { title: "from the application", fields: upstreamResponse },
    { title: "to the client", fields: response },
  ];
  return sections
    .filter(({ fields }) => fields !== undefined)
    .map(({ title, fields = [] }) => {
      const lines = fields.map(({ name, value }) => `  ${plain(name, 64)}: ${plain(value, 600)}\n`);
      return `${title}\n${lines.join("")}`;
    })
    .join("");
}

function renderNothing({ ring, kept }: ExchangeList): string {
  return kept === 0
    ? `The ring ${ring} is empty.\n`
    : `None of the ${grouped(kept)} requests in the ring ${ring} is like that${ring === "recent" ? "; --ring errors and --ring slow reach further back" : ""}.\n`;
}

/** `GET shop.example/cart`. */
export function requestText({ request: { method, host, path } }: ShownExchange): string {
  return method === "" ? "(no request)" : `${method} ${host}${path}`;
}

/** `hit (cache)`. */
export function sessionText({ session: { outcome, source } }: ShownExchange): string {
  return source === undefined ? outcome : `${outcome} (${source})`;
}
