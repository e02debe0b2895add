import type { z } from "zod";
import { settingsSchema } from "./schema.ts";

/** Everything that is wrong with a configuration, reported at once. */
export class ConfigError extends Error {
  /** One line each: `path: what is wrong`. The message has them all, below one another if there are several. */
  readonly problems: readonly string[];

  constructor(source: string, problems: readonly string[]) {
    const [only] = problems;
    super(
      problems.length === 1
        ? `${source}: ${only}`
        : `${source}: ${problems.length} problems\n${problems.map((problem) => `  ${problem}`).join("\n")}`,
    );
    this.name = "ConfigError";
    this.problems = problems;
  }
}

export type Path = readonly PropertyKey[];

/** `routes[0].match.host`, as people write it. */
export function formatPath(path: Path): string {
  let text = "";
  for (const step of path)
    text += typeof step === "number" ? `[${step}]` : text === "" ? String(step) : `.${String(step)}`;
  return text === "" ? "(top level)" : text;
}

/** Lines for a schema error; an unknown key comes with the nearest known one. */
export function describeIssues(issues: readonly z.core.$ZodIssue[]): string[] {
  return issues.flatMap((issue) => {
    if (issue.code === "invalid_union") {
      // Of the forms that a value may have, the one of its kind knows what is wrong; if there is none, all are named.
      const meant = issue.errors.find((errors) =>
        errors.every(({ code, path }) => path.length > 0 || code === "unrecognized_keys"),
      );
      if (meant !== undefined)
        return describeIssues(meant.map((inner) => ({ ...inner, path: [...issue.path, ...inner.path] })));
    }
    if (issue.code !== "unrecognized_keys") return [`${formatPath(issue.path)}: ${sentence(issue)}`];
    const known = knownKeys(issue.path);
    return issue.keys.map((key) => {
      const path = formatPath([...issue.path, key]);
      return `${path}: unknown key${hint(key, known)}`;
    });
  });
}

/** What the schema says itself, or its library's message in our words. */
function sentence(issue: z.core.$ZodIssue): string {
  const { message } = issue;
  if (issue.code === "invalid_type" && message.startsWith("Invalid input"))
    return message.endsWith("received undefined")
      ? "is required"
      : `must be ${KINDS[issue.expected] ?? issue.expected}, not ${message.split(" ").at(-1)}`;
  if (issue.code === "invalid_value" && message.startsWith("Invalid option"))
    return `must be one of ${issue.values.map(String).join(", ")}`;
  if (issue.code === "too_small" && message.startsWith("Too small: expected number"))
    return `must be at least ${issue.minimum}`;
  if (issue.code === "too_big" && message.startsWith("Too big: expected number"))
    return `must be at most ${issue.maximum}`;
  return message;
}

const KINDS: Readonly<Record<string, string>> = {
  array: "a list",
  object: "a section with keys of its own",
  record: "a section with keys of its own",
  string: "a text",
  boolean: "true or false",
  number: "a number",
};

function hint(key: string, known: readonly string[]): string {
  const nearest = [...known].sort((a, b) => distance(key, a) - distance(key, b))[0];
  if (nearest !== undefined && distance(key, nearest) <= Math.max(2, key.length / 3))
    return `; did you mean "${nearest}"?`;
  return known.length === 0 ? "" : `; known here: ${known.join(", ")}`;
}

interface SchemaDefinition {
  readonly shape?: Record<string, z.core.$ZodType>;
  readonly innerType?: z.core.$ZodType;
  readonly element?: z.core.$ZodType;
  readonly out?: z.core.$ZodType;
  readonly options?: readonly z.core.$ZodType[];
}

/** The keys that the schema knows at a path. */
function knownKeys(path: Path): string[] {
  let schema: z.core.$ZodType | undefined = settingsSchema;
  for (const step of path) {
    const definition: SchemaDefinition = definitionOf(schema);
    schema = definition.shape?.[String(step)] ?? definition.element;
    if (schema === undefined) return [];
  }
  return Object.keys(definitionOf(schema).shape ?? {});
}

/** The definition below defaults, optionals, preprocessing and unions. */
function definitionOf(schema: z.core.$ZodType): SchemaDefinition {
  const definition = schema._zod.def as SchemaDefinition;
  if (definition.shape !== undefined || definition.element !== undefined) return definition;
  const inner =
    definition.innerType ??
    definition.out ??
    definition.options?.find((option) => definitionOf(option).shape !== undefined);
  return inner === undefined ? definition : definitionOf(inner);
}

/** Levenshtein distance, case aside. */
function distance(a: string, b: string): number {
  const [from, to] = [a.toLowerCase(), b.toLowerCase()];
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const substitution = (row[j - 1] as number) + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min((row[j] as number) + 1, (next[j - 1] as number) + 1, substitution));
    }
    row = next;
  }
  return row[to.length] as number;
}
