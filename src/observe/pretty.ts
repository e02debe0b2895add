import { plain } from "../core/plain.ts";
import { ATTRIBUTES as A } from "./names.ts";

/**
 * Log lines for a person at a terminal. They are made from the JSON lines, so that both say the same. What clients and
 * applications chose is shown without the characters that command a terminal.
 */

type Line = Readonly<Record<string, unknown>>;
type Paint = (style: keyof typeof STYLES, text: string) => string;

const STYLES = { dim: 2, bold: 1, red: 31, green: 32, yellow: 33, cyan: 36 } as const;

const inColours: Paint = (style, text) => (text === "" ? "" : `\u{1b}[${STYLES[style]}m${text}\u{1b}[0m`);
const inBlackAndWhite: Paint = (_style, text) => text;

const MAX_VALUE_LENGTH = 500;
/** In the front of each line, or in the trace that is only of use to machines. */
const SHOWN_ALREADY: ReadonlySet<string> = new Set(["level", "time", "event", "msg", "span_id", "trace_flags"]);
const STACK = "exception.stacktrace";

/** @param line as JSON, with the line feed at its end. */
export function renderPretty(line: string, colours: boolean): string {
  const paint = colours ? inColours : inBlackAndWhite;
  let fields: Line;
  try {
    fields = JSON.parse(line);
  } catch {
    return `${plain(line.trimEnd(), MAX_VALUE_LENGTH)}\n`;
  }
  const text = fields.event === "http.access" ? access(fields, paint) : event(fields, paint);
  return `${paint("dim", shown(fields.time).slice(11, 23))} ${text}\n`;
}

/** `200 GET shop.example/cart 12.3 ms  app.example/cart → 10.0.0.5:3000  hit cache YXAx7Y_W_jjZ identified  192.0.2.7` */
function access(line: Line, paint: Paint): string {
  const status = Number(line[A.status]);
  const answered = line[A.source] === "proxy" ? "by coatcheck" : "";
  const parts = [
    `${paint(styleOf(status), String(status))} ${paint("bold", shown(line[A.method]))} ${shown(line[A.host])}${shown(line[A.path])} ${milliseconds(line.duration_s)}`,
    [shown(line[A.route]), ...(line.upstream === undefined ? [] : ["→", shown(line.upstream)]), answered],
    [shown(line[A.sessionOutcome]), shown(line[A.sessionSource]), shown(line.handle), shown(line[A.decision])],
    line.logout === undefined ? [] : [paint("yellow", `logged out: ${shown(line.logout)}`)],
    [shown(line[A.client])],
    [paint("red", shown(line[A.errorType])), shown(line.error_message)],
    line.stripped === undefined ? [] : [paint("yellow", `stripped ${value(line.stripped)}`)],
    // What people search by when something went wrong.
    line[A.errorType] === undefined ? [] : [paint("dim", `trace ${shown(line.trace_id)}`)],
  ].map((part) => (typeof part === "string" ? part : part.filter(Boolean).join(" ")));
  return parts.filter(Boolean).join("  ");
}

/** `WARN security.spoof-attempt  what it means  name=value …` */
function event(line: Line, paint: Paint): string {
  const level = shown(line.level);
  const style = level === "error" ? "red" : level === "warn" ? "yellow" : level === "debug" ? "dim" : "green";
  const fields = Object.entries(line)
    .filter(([name]) => !SHOWN_ALREADY.has(name) && name !== STACK)
    .map(([name, field]) => `${paint("dim", `${plain(name)}=`)}${value(field)}`);
  const head = `${paint(style, level.toUpperCase())} ${paint("bold", shown(line.event))}  ${shown(line.msg)}`;
  const stack =
    line[STACK] === undefined
      ? []
      : String(line[STACK])
          .split("\n")
          .map((row) => `\n    ${plain(row)}`);
  return [head, fields.join(" ")].filter(Boolean).join("  ") + stack.join("");
}

function value(field: unknown): string {
  if (typeof field !== "string") return shown(JSON.stringify(field));
  return /^[^\s"=]+$/.test(field) ? shown(field) : shown(JSON.stringify(field));
}

function shown(field: unknown): string {
  return field === undefined ? "" : plain(String(field), MAX_VALUE_LENGTH);
}

function milliseconds(seconds: unknown): string {
  const ms = Number(seconds) * 1000;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

function styleOf(status: number): keyof typeof STYLES {
  return status >= 500 ? "red" : status >= 400 ? "yellow" : status >= 300 ? "cyan" : "green";
}
