import { readFileSync } from "node:fs";
import { type Document, parseDocument, type YAMLParseError } from "yaml";
import { readProblem } from "../core/file-problems.ts";
import { type Config, compile } from "./compile.ts";
import { ConfigError, describeIssues, formatPath, type Path } from "./problems.ts";
import { type Settings, settingsSchema } from "./schema.ts";
import { readTraceExport } from "./trace-export.ts";

/** A configuration file is read up to this size. */
const MAX_FILE_BYTES = 1024 * 1024;

export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Reads a configuration file.
 * @throws ConfigError with every problem: YAML, environment variables and schema alike.
 */
export function loadConfigFile(file: string, environment: Environment): { settings: Settings; config: Config } {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError(file, [`the file ${readProblem(error)}`]);
  }
  if (Buffer.byteLength(text) > MAX_FILE_BYTES) throw new ConfigError(file, [`is larger than ${MAX_FILE_BYTES} bytes`]);
  return loadConfigText(text, environment, file);
}

export function loadConfigText(text: string, environment: Environment, source = "configuration") {
  const document = parseDocument(text, { logLevel: "error" }); // its warnings would repeat what stands there
  if (document.errors.length > 0) {
    throw new ConfigError(source, document.errors.map(syntaxProblem));
  }
  return loadConfig(plainValueOf(document, source) ?? {}, environment, source);
}

/** Errors of which the parser quotes what stands there, a secret perhaps; and those that it says in words of its own trade. */
const OWN_WORDS: Readonly<Partial<Record<YAMLParseError["code"], string>>> = {
  BLOCK_AS_IMPLICIT_KEY: 'a second colon in one line; put a text that ends with one in quotes, such as "memory:"',
  UNEXPECTED_TOKEN: "here is something that YAML has no place for",
  BAD_DQ_ESCAPE: 'an escape that YAML does not know; write \\\\ for a backslash between "',
  BAD_DIRECTIVE: "a directive (%…) that YAML does not know",
  TAG_RESOLVE_FAILED: "a tag (!…) that does not go with what follows; put a text that begins with ! in quotes",
};

function syntaxProblem({ code, message, linePos }: YAMLParseError): string {
  const inOwnWords = OWN_WORDS[code];
  // The lines below the first, which a colon announces, show the place in the file.
  if (inOwnWords === undefined) return (message.split("\n")[0] ?? "not YAML").replace(/:$/, "");
  const [at] = linePos ?? [];
  return at === undefined ? inOwnWords : `${inOwnWords} at line ${at.line}, column ${at.col}`;
}

function plainValueOf(document: Document.Parsed, source: string): unknown {
  try {
    const value = document.toJS({ maxAliasCount: 100 });
    // Throws when a value holds itself.
    JSON.stringify(value);
    return value;
  } catch {
    // The message would repeat what was taken for an alias, a secret perhaps.
    throw new ConfigError(source, [
      "an alias (*name) leads nowhere or to itself; put a text that begins with * in quotes",
    ]);
  }
}

/** Checks a configuration given as a value, fills in `${NAME}` and the defaults, and compiles it. */
export function loadConfig(
  raw: unknown,
  environment: Environment,
  source = "configuration",
): { settings: Settings; config: Config } {
  const problems: string[] = [];
  const value = interpolate(raw, [], environment, problems);
  const parsed = settingsSchema.safeParse(value);
  // A value with an unset variable is reported once, as that.
  const unset = new Set(problems.map((problem) => problem.split(": ")[0]));
  if (!parsed.success)
    problems.push(...describeIssues(parsed.error.issues).filter((line) => !unset.has(line.split(": ")[0])));
  const traceExport = readTraceExport(environment, problems);
  if (!parsed.success || problems.length > 0) throw new ConfigError(source, problems);
  return { settings: parsed.data, config: compile(parsed.data, traceExport) };
}

/** Puts environment variables in place of `${NAME}`; an unset one is a problem. */
function interpolate(value: unknown, path: Path, environment: Environment, problems: string[]): unknown {
  if (typeof value === "string") {
    return value.replace(/\$\{([A-Za-z_][A-Za-z0-9_]*)\}/g, (_, name: string) => {
      const found = environment[name];
      if (found === undefined || found === "")
        problems.push(`${formatPath(path)}: the environment variable ${name} is not set`);
      return found ?? "";
    });
  }
  if (Array.isArray(value))
    return value.map((item, index) => interpolate(item, [...path, index], environment, problems));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, interpolate(item, [...path, name], environment, problems)]),
  );
}
