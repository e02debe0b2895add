import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { ErrorCode } from "./core/errors.ts";

/** What a person sees when Coatcheck itself answers a navigation with an error: our own page, or the operator's. */

/** A text for people: nothing of a request, of the inside or of a failure is in it. */
interface Words {
  readonly title: string;
  readonly message: string;
}

const NOT_UNDERSTOOD: Words = {
  title: "The request was not understood",
  message: "Something in it is not as it should be. Please check the address, or go back and try again.",
};
const NOT_POSSIBLE: Words = { title: "Not possible here", message: "This cannot be done with this address." };

/** The store is down is never "you are signed out": this is where people read it. */
const STORE_DOWN: Words = {
  title: "Back in a moment",
  message:
    "The service that remembers who is signed in does not answer. You are still signed in, as far as we know. Please try again in a moment.",
};

const WORDS: Readonly<Record<number, Words>> = {
  401: { title: "Please sign in", message: "This page is only for people who are signed in." },
  403: { title: "Not allowed", message: "You may not see this page." },
  404: { title: "Nothing here", message: "There is nothing at this address. Please check how it is spelled." },
  405: NOT_POSSIBLE,
  408: { title: "That took too long", message: "The request did not arrive in time. Please try again." },
  409: {
    title: "Somebody was faster",
    message:
      "The same thing was changed at the same moment. Please look at it again, and repeat your change if it is missing.",
  },
  413: { title: "Too large", message: "What was sent is larger than this site accepts." },
  414: { title: "The address is too long", message: "This site does not accept addresses of that length." },
  429: { title: "Too many requests", message: "Please wait a moment before you try again." },
  431: {
    title: "Too many cookies",
    message:
      "The request brought more cookies or other header fields than this site accepts. Please clear the cookies of this site in your browser and try again; you may have to sign in anew.",
  },
  500: { title: "Something went wrong", message: "This is not your fault. Please try again in a moment." },
  501: NOT_POSSIBLE,
  502: {
    title: "The application does not answer",
    message: "It may be starting again just now. Please try again in a moment.",
  },
  503: { title: "Back in a moment", message: "This site cannot answer just now. Please try again in a moment." },
  504: {
    title: "The application takes too long",
    message:
      "Please try again in a moment. If you have sent something, look whether it has arrived before you send it again.",
  },
  505: NOT_UNDERSTOOD,
};

/** @param status 400 to 599. */
export function wordsFor(status: number, error: ErrorCode | undefined): Words {
  if (error === "session_store_unavailable") return STORE_DOWN;
  return WORDS[status] ?? (status < 500 ? NOT_UNDERSTOOD : (WORDS[500] as Words));
}

const PLACEHOLDERS = ["status", "title", "message", "requestId"] as const;
type Placeholder = (typeof PLACEHOLDERS)[number];

/** Texts and placeholders by turns, beginning with a text. */
type Template = readonly string[];

const STYLE =
  ":root{color-scheme:light dark;--ink:#1c1d1f;--paper:#fbfaf7;--quiet:#5c5f66;--line:#d9d6cf}" +
  "@media(prefers-color-scheme:dark){:root{--ink:#eceae4;--paper:#17181a;--quiet:#a6a9b0;--line:#37393e}}" +
  "*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;" +
  "background:var(--paper);color:var(--ink);font:1.0625rem/1.55 system-ui,sans-serif}main{max-width:34rem}" +
  "h1{font-size:1.75rem;line-height:1.2;margin:0 0 .75rem}p{margin:0 0 1rem}" +
  ".id{margin-top:2rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--quiet);font-size:.875rem}" +
  "code{font:inherit;font-family:ui-monospace,monospace;overflow-wrap:anywhere;user-select:all}";

const OWN_PAGE = parse(
  `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{{title}}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<h1>{{title}}</h1>
<p>{{message}}</p>
<p class="id">If it stays like this, tell the people who run this site: error {{status}}, request <code>{{requestId}}</code></p>
</main>
</body>
</html>
`,
);

/** Names and values in turn. Nobody is told the address that failed, by whatever an operator's page loads. */
const PAGE_FIELDS: readonly string[] = ["content-type", "text/html; charset=utf-8", "referrer-policy", "no-referrer"];

/** Nothing is loaded, run or sent from our page; of an operator's it is theirs to say, in a `meta` element. */
const OWN_PAGE_FIELDS: readonly string[] = [
  ...PAGE_FIELDS,
  "content-security-policy",
  `default-src 'none'; style-src 'sha256-${createHash("sha256").update(STYLE).digest("base64")}'; base-uri 'none'; form-action 'none'`,
];

export interface ErrorPage {
  /** Names and values in turn. */
  readonly fields: readonly string[];
  readonly body: string;
}

/** The greatest size of an operator's page, octets: each error sends it. */
const MAX_PAGE_BYTES = 256 * 1024;
const FILE_NAME = /^(error|[45]xx|[45]\d\d)\.html$/;

export class ErrorPages {
  /** By `404`, `4xx` and `error`. */
  readonly #operators: ReadonlyMap<string, Template>;

  constructor(operators: ReadonlyMap<string, Template> = new Map()) {
    this.#operators = operators;
  }

  /**
   * Reads an operator's pages, once: `503.html`, `5xx.html`, `error.html`, of which the most specific one is taken.
   * @throws Error that begins with `errors.pages` and names every file that cannot be used, and why.
   */
  static async read(folder: string): Promise<ErrorPages> {
    const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
      throw new Error(`errors.pages: ${folder} cannot be read (${error.code})`, { cause: error });
    });
    const pages = new Map<string, Template>();
    const problems: string[] = [];
    // Names that begin with a dot are a mount's own (`..data` of a ConfigMap) or an editor's.
    for (const name of names.filter((name) => !name.startsWith(".")).sort()) {
      try {
        pages.set(name.slice(0, -".html".length), await readPage(folder, name));
      } catch (error) {
        problems.push(`errors.pages: ${join(folder, name)} ${(error as Error).message}`);
      }
    }
    if (problems.length === 0 && pages.size === 0)
      problems.push(`errors.pages: ${folder} has none of 404.html (or another status), 4xx.html, 5xx.html, error.html`);
    if (problems.length > 0) throw new Error(problems.join("\n"));
    return new ErrorPages(pages);
  }

  /** @param requestId by which operators find the request: the trace id. */
  page(status: number, error: ErrorCode | undefined, requestId: string): ErrorPage {
    const name = String(status);
    const pages = this.#operators;
    const template = pages.get(name) ?? pages.get(`${name[0]}xx`) ?? pages.get("error");
    const values = { ...wordsFor(status, error), status: name, requestId };
    const fields = template === undefined ? OWN_PAGE_FIELDS : PAGE_FIELDS;
    return { fields, body: fill(template ?? OWN_PAGE, values) };
  }
}

async function readPage(folder: string, name: string): Promise<Template> {
  if (!FILE_NAME.test(name))
    throw new Error("is not named after a status (404.html), a class of them (4xx.html, 5xx.html) or error.html");
  const file = join(folder, name);
  const about = await stat(file).catch(unreadable);
  if (!about.isFile()) throw new Error("is not a file");
  if (about.size > MAX_PAGE_BYTES) throw new Error(`is larger than ${MAX_PAGE_BYTES / 1024} KiB`);
  const octets = await readFile(file).catch(unreadable);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(octets);
  } catch {
    throw new Error("is not UTF-8");
  }
  return parse(text);
}

function unreadable({ code }: NodeJS.ErrnoException): never {
  throw new Error(`cannot be read (${code})`);
}

/** @throws Error for a placeholder that does not exist. */
function parse(text: string): Template {
  const pieces = text.split(/\{\{\s*([^{}]*?)\s*\}\}/);
  for (let i = 1; i < pieces.length; i += 2) {
    if (!(PLACEHOLDERS as readonly string[]).includes(pieces[i] as string))
      throw new Error(`has {{${pieces[i]}}}; there are only ${PLACEHOLDERS.map((it) => `{{${it}}}`).join(", ")}`);
  }
  return pieces;
}

function fill(template: Template, values: Readonly<Record<Placeholder, string>>): string {
  let page = "";
  // All values are words of ours and hexadecimal digits; they are escaped all the same.
  for (let i = 0; i < template.length; i++)
    page += i % 2 === 0 ? template[i] : escaped(values[template[i] as Placeholder]);
  return page;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
