import { METHODS } from "node:http";

/** A request as people have it at hand: raw header lines, what `curl -v` prints, and "copy as cURL" of a browser. */
export interface RequestText {
  readonly method?: string;
  readonly url?: string;
  /** `Name: value` */
  readonly headers: readonly string[];
}

/** @returns `undefined` when a line is neither a header nor anything that comes with them. */
export function readRequestText(text: string): RequestText | undefined {
  return /^\s*curl\s/.test(text) ? readCurl(text) : readHeaderLines(text);
}

/**
 * Header lines, perhaps below a request line, perhaps with the `> ` of `curl -v`, or with the pseudo-headers of HTTP/2 by
 * which browsers show the request line.
 */
function readHeaderLines(text: string): RequestText | undefined {
  const headers: string[] = [];
  const pseudo = new Map<string, string>();
  let [method, path]: (string | undefined)[] = [];
  for (const raw of text.split(/\r?\n/)) {
    if (/^\s*$|^[*<{}]/.test(raw)) continue;
    const line = raw.replace(/^> ?/, "").trim();
    const requestLine = /^([A-Z]+) (\S+) HTTP\/[\d.]+$/.exec(line);
    const [, name = "", value = ""] = /^(:?[^\s:]+):\s*(.*)$/.exec(line) ?? [];
    if (requestLine !== null) [, method, path] = requestLine;
    else if (line === "") continue;
    else if (name === "") return undefined;
    else if (name.startsWith(":")) pseudo.set(name, value);
    else headers.push(`${name}: ${value}`);
  }
  method ??= pseudo.get(":method");
  path ??= pseudo.get(":path");
  const authority = pseudo.get(":authority");
  if (authority !== undefined && !headers.some((line) => /^host:/i.test(line))) headers.unshift(`Host: ${authority}`);
  const hasHost = headers.some((line) => /^host:/i.test(line));
  const url = path !== undefined && (hasHost || !path.startsWith("/")) ? path : undefined;
  return { headers, ...(method !== undefined && METHODS.includes(method) && { method }), ...(url && { url }) };
}

/** Options of curl that take a value, and have none of their own to say here. */
const WITH_VALUE = new Set([
  "-o",
  "-m",
  "--max-time",
  "--connect-timeout",
  "--cacert",
  "--cert",
  "--key",
  "-x",
  "--proxy",
  "--output",
  "--resolve",
]);
const WITH_BODY = new Set([
  "-d",
  "--data",
  "--data-raw",
  "--data-binary",
  "--data-urlencode",
  "--data-ascii",
  "--json",
  "-F",
  "--form",
]);

function readCurl(text: string): RequestText | undefined {
  const words = shellWords(text)?.slice(1);
  if (words === undefined) return undefined;
  const headers: string[] = [];
  let [method, url, implied]: (string | undefined)[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? "";
    const value = () => words[++i] ?? "";
    if (word === "-H" || word === "--header") headers.push(value());
    else if (word === "-b" || word === "--cookie") headers.push(`Cookie: ${value()}`);
    else if (word === "-A" || word === "--user-agent") headers.push(`User-Agent: ${value()}`);
    else if (word === "-e" || word === "--referer") headers.push(`Referer: ${value()}`);
    else if (word === "-X" || word === "--request") method = value();
    else if (word === "--url") url = value();
    else if (word === "-I" || word === "--head") implied = "HEAD";
    else if (WITH_BODY.has(word)) {
      implied ??= "POST";
      i++;
    } else if (WITH_VALUE.has(word)) i++;
    else if (!word.startsWith("-")) url ??= word;
  }
  method ??= implied;
  return { headers, ...(method !== undefined && { method }), ...(url !== undefined && { url }) };
}

/** The words of a POSIX shell command without expansions. @returns `undefined` when a quote is not closed. */
function shellWords(text: string): string[] | undefined {
  const words: string[] = [];
  let word: string | undefined;
  // A line that goes on, blanks, $'…', '…', "…", \x, anything else.
  const piece = /\\\r?\n|(\s+)|\$'((?:\\.|[^'\\])*)'|'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^\s'"\\$]+|\$)/gsy;
  while (piece.lastIndex < text.length) {
    const match = piece.exec(text);
    if (match === null) return undefined;
    const [, blank, ansi, single, double, escaped, plain] = match;
    if (blank !== undefined) {
      if (word !== undefined) words.push(word);
      word = undefined;
      continue;
    }
    const next =
      ansi !== undefined ? unescapeAnsi(ansi) : (single ?? double?.replace(/\\([$`"\\])/g, "$1") ?? escaped ?? plain);
    if (next !== undefined) word = (word ?? "") + next;
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** What browsers write into `$'…'`. */
function unescapeAnsi(text: string): string {
  return text.replace(/\\(?:u([0-9a-f]{4})|x([0-9a-f]{2})|(.))/gis, (_, wide, narrow, other: string) => {
    const code: string | undefined = wide ?? narrow;
    if (code !== undefined) return String.fromCharCode(Number.parseInt(code, 16));
    return { n: "\n", r: "\r", t: "\t" }[other] ?? other;
  });
}
