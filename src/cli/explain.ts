import { readFile } from "node:fs/promises";
import { text as textOf } from "node:stream/consumers";
import { styleText } from "node:util";
import type { Environment } from "../config/load.ts";
import type { AnswerForm, AskedRequest, Explanation } from "../core/explanation.ts";
import { readProblem } from "../core/file-problems.ts";
import { ADMIN_HELP, ADMIN_OPTIONS, adminOf, callAdmin } from "./admin.ts";
import { CommandError, parse, print, UsageError } from "./arguments.ts";
import { type RequestText, readRequestText } from "./request-text.ts";
import { plain } from "./text.ts";

const USAGE = `coatcheck explain: why is this request treated like that?

Usage:
  coatcheck explain --headers-file FILE [--url URL]    what would become of this request, and why
  coatcheck explain --url URL [--header 'Name: value' …]
  coatcheck explain --trace ID                         what became of a recorded request

Asks a running Coatcheck, which goes through the request without forwarding it and without changing
anything.

The request:
      --headers-file FILE
                        its head, - for standard input: raw header lines as a browser's developer
                        tools show them, what curl -v prints, or a whole "copy as cURL". A cookie
                        belongs here: on the command line others on this machine see it, and the
                        shell's history keeps it.
      --url URL         with host and path, spelled as the client sends it; not needed where the
                        file has it
  -H, --header 'N: V'   one more header, as often as it takes
  -X, --method NAME     default: GET, or what the file says
      --client ADDRESS  where its connection comes from: for session.bind and listen.trustedProxies
      --trace ID        the trace id of a log line or an error page, in place of all of these

Options:
${ADMIN_HELP}
      --json            what the admin listener answers, for machines

Exit status: 0 done, 1 failed, 2 wrong usage.
`;

const OPTIONS = {
  ...ADMIN_OPTIONS,
  url: { type: "string" },
  header: { type: "string", multiple: true, short: "H" },
  "headers-file": { type: "string" },
  method: { type: "string", short: "X" },
  client: { type: "string" },
  trace: { type: "string" },
  json: { type: "boolean" },
} as const;

type Values = ReturnType<typeof parse<typeof OPTIONS>>["values"];

const PARAMETERS = { url: "--url", method: "--method", client: "--client" };

/** `coatcheck explain`. */
export async function runExplain(args: readonly string[], environment: Environment): Promise<number> {
  if (args.length === 0 || args.includes("--help") || args.includes("-h")) return print(USAGE);
  const { values, positionals } = parse(args, OPTIONS);
  // It is not repeated: it may be a cookie.
  if (positionals.length > 0) throw new UsageError("explain takes options only");
  const body = values.trace === undefined ? await asked(values) : recorded(values);
  const admin = adminOf(values, environment);
  const explanation = await callAdmin<Explanation>(admin, {
    method: "POST",
    path: "/debug/explain",
    body,
    options: PARAMETERS,
  });
  return print(values.json ? `${JSON.stringify(explanation, null, 2)}\n` : renderExplanation(explanation));
}

function recorded({ trace, ...values }: Values): { trace: string | undefined } {
  for (const name of ["url", "header", "headers-file", "method", "client"] as const)
    if (values[name] !== undefined)
      throw new UsageError(`--${name} does not go with --trace, which names a recorded request`);
  if (!/^[0-9a-f]{32}$/.test(trace ?? "")) throw new UsageError("--trace needs a trace id: 32 digits of 0-9 a-f");
  return { trace };
}

async function asked(values: Values): Promise<AskedRequest> {
  const file = values["headers-file"];
  const text: RequestText = file === undefined ? { headers: [] } : await requestIn(file);
  const url = values.url ?? text.url;
  if (url === undefined) throw new UsageError("say which request: --url URL");
  const method = values.method ?? text.method;
  // The host of a URL that was given counts, not that of a file.
  const headers = values.url?.startsWith("http") ? text.headers.filter((line) => !/^host:/i.test(line)) : text.headers;
  return {
    url,
    headers: [...headers, ...(values.header ?? [])],
    ...(method !== undefined && { method }),
    ...(values.client !== undefined && { client: values.client }),
  };
}

async function requestIn(file: string): Promise<RequestText> {
  let content: string;
  try {
    content = file === "-" ? await textOf(process.stdin) : await readFile(file, "utf8");
  } catch (error) {
    throw new CommandError(`--headers-file: ${plain(file, 4096)} ${readProblem(error)}`);
  }
  const text = readRequestText(content);
  if (text === undefined)
    throw new CommandError(
      `--headers-file ${file}: there is a line that is no header; write each as Name: value, or give a whole curl command`,
    );
  return text;
}

const MAX_LINE_LENGTH = 400;

const FORM_WORDS: Readonly<Record<AnswerForm, string>> = {
  page: "a page, for somebody who waits for one",
  "problem-details": "problem details, because the request does not ask for a page",
};

/** Aligned, with a mark for each step; in colours where standard output is a terminal and NO_COLOR is not set. */
export function renderExplanation({ steps, conclusion, advice, wouldAnswer }: Explanation): string {
  const width = Math.max(...steps.map(({ step }) => step.length));
  const indent = " ".repeat(width + 4);
  const lines = steps.flatMap(({ step, finding, detail = [], ok }) => [
    `${ok ? styled("green", "✓") : styled("red", "✗")} ${step.padEnd(width)}  ${plain(finding, MAX_LINE_LENGTH)}`,
    ...detail.map((line) => indent + styled("dim", plain(line, MAX_LINE_LENGTH))),
  ]);
  const parts = [...lines, "", styled("bold", plain(conclusion, 1000))];
  if (wouldAnswer?.form !== undefined) parts.push(`It would be sent as ${FORM_WORDS[wouldAnswer.form]}.`);
  if (advice !== undefined) parts.push(`If that is not what was wanted: ${plain(advice, 1000)}.`);
  return `${parts.join("\n")}\n`;
}

/** `styleText` knows what standard output is, and NO_COLOR. */
function styled(format: "green" | "red" | "dim" | "bold", text: string): string {
  return styleText(format, text, { stream: process.stdout });
}
