import type { Settings } from "./schema.ts";

/**
 * The keys in which two configurations differ, as the file names them: `session.idleTimeout`, `routes[1].upstream`. Names
 * only: what stands there may be a secret.
 */
export function changedKeys(before: Settings, after: Settings): string[] {
  return compare("", before, after);
}

function compare(path: string, before: unknown, after: unknown): string[] {
  if (JSON.stringify(before) === JSON.stringify(after)) return [];
  if (isObject(before) && isObject(after)) {
    const names = new Set([...Object.keys(before), ...Object.keys(after)]);
    return [...names].flatMap((name) => compare(path === "" ? name : `${path}.${name}`, before[name], after[name]));
  }
  // Of lists that differ in length, nobody can say which element is which.
  if (isListOfObjects(before) && isListOfObjects(after) && before.length === after.length)
    return before.flatMap((item, index) => compare(`${path}[${index}]`, item, after[index]));
  return [path];
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isListOfObjects(value: unknown): value is readonly Readonly<Record<string, unknown>>[] {
  return Array.isArray(value) && value.every(isObject);
}
