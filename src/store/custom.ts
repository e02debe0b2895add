import { existsSync } from "node:fs";
import { registerHooks } from "node:module";
import { extname, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { BUILT_IN_STORES, MODULE_URL, type SessionStore } from "../core/store.ts";
import { GuardedStore, nameOf, reasonOf, within } from "./guarded.ts";
import type { OpenStoreOptions } from "./open.ts";

/** What the default export of a store module is given. */
export interface CustomStoreOptions extends OpenStoreOptions {
  /** What follows the `?` of the `module:` URL: `name=value`, joined by `&`, as it is written and not decoded. */
  readonly parameters: Readonly<Record<string, string>>;
}

/** The default export of a store module; a class with such a constructor does too. */
export type OpenCustomStore = (options: CustomStoreOptions) => SessionStore | Promise<SessionStore>;

const OPEN_TIMEOUT_MS = 30_000;
const KIND = /^[a-z][a-z0-9_-]{0,31}$/;
const WHAT_TO_EXPORT = "write: export default (options) => new MyStore(options)";

const ATTRIBUTE_OPERATIONS = ["get", "getAll", "size", "set", "setAll", "remove", "clear"] as const;
const OPERATIONS = [
  "find",
  "create",
  "commit",
  "touch",
  "destroy",
  "byUser",
  "scan",
  "check",
  "close",
  ...ATTRIBUTE_OPERATIONS,
] as const satisfies readonly (keyof SessionStore)[];

/**
 * Opens the store of a module: `module:./my-store.js`, relative to the working directory, or the name of a package that
 * is installed there.
 * @throws Error that tells what is wrong with the module; one that the module threw itself is its `cause`.
 */
export async function openCustomStore(url: string, options: OpenStoreOptions): Promise<SessionStore> {
  const [, specifier, query = ""] = MODULE_URL.exec(url) ?? [];
  if (specifier === undefined) {
    throw new TypeError("a module: URL names a path that begins with ./, ../ or /, or a package");
  }
  const problem = (text: string, cause?: unknown) => new Error(`store module ${specifier}: ${text}`, { cause });
  const module = await load(specifier, problem);
  const store = await open(module.default, { ...options, parameters: parametersOf(query) }, problem);
  const fault = faultOf(store);
  if (fault !== undefined) throw problem(fault);
  return new GuardedStore(store as SessionStore);
}

type Problem = (text: string, cause?: unknown) => Error;

async function load(specifier: string, problem: Problem): Promise<{ readonly default?: unknown }> {
  const path = /^[./]/.test(specifier) ? resolve(specifier) : undefined;
  if (path !== undefined && !existsSync(path)) throw problem(`there is no file ${path}`);
  const hooks = registerResolution(specifier);
  try {
    return await import(path === undefined ? specifier : pathToFileURL(path).href);
  } catch (cause) {
    if (path === undefined && isMissing(cause, specifier)) {
      throw problem(`no such package is installed for ${resolve()}; write ./${specifier} if it is a file`, cause);
    }
    throw problem(`it failed while it was loaded: ${nameAndReason(cause)}`, cause);
  } finally {
    hooks.deregister();
  }
}

/**
 * Two names mean something else to a store module than to this file. A package is looked for from the working directory,
 * not from where Coatcheck is installed; and `coatcheck` is this very program, so that a module finds it wherever it
 * lies, with nothing installed beside it.
 */
function registerResolution(wanted: string) {
  const workingDirectory = pathToFileURL(resolve("store.js")).href;
  const coatcheck = new URL(`../index${extname(import.meta.url)}`, import.meta.url).href;
  return registerHooks({
    resolve: (specifier, context, next) => {
      if (specifier === "coatcheck") return { url: coatcheck, shortCircuit: true };
      const parentURL = specifier === wanted ? workingDirectory : context.parentURL;
      return next(specifier, { ...context, parentURL });
    },
  });
}

/** Whether the package itself is missing, and not something that it imports. */
function isMissing(cause: unknown, specifier: string): boolean {
  if (!(cause instanceof Error) || !("code" in cause)) return false;
  const name = specifier.split("/", specifier.startsWith("@") ? 2 : 1).join("/");
  return cause.code === "ERR_MODULE_NOT_FOUND" && cause.message.startsWith(`Cannot find package '${name}'`);
}

async function open(made: unknown, options: CustomStoreOptions, problem: Problem): Promise<unknown> {
  if (made === undefined) throw problem(`it has no default export; ${WHAT_TO_EXPORT}`);
  if (typeof made !== "function") throw problem(`its default export is ${nameOf(made)}; ${WHAT_TO_EXPORT}`);
  try {
    const opening = isClass(made) ? Reflect.construct(made, [options]) : made(options);
    return await within(OPEN_TIMEOUT_MS, "opening", Promise.resolve(opening));
  } catch (cause) {
    throw problem(`it failed while it opened the store: ${nameAndReason(cause)}`, cause);
  }
}

/** Only the `prototype` of a class cannot be replaced. */
function isClass(value: object): boolean {
  return Object.getOwnPropertyDescriptor(value, "prototype")?.writable === false;
}

function parametersOf(query: string): Record<string, string> {
  const pairs = query.split("&").filter((pair) => pair !== "");
  return Object.fromEntries(
    pairs.map((pair) => {
      const [name = "", ...value] = pair.split("=");
      return [name, value.join("=")];
    }),
  );
}

/** @returns what keeps the value from being a store; `undefined` if nothing does. */
function faultOf(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null) {
    return `its default export returned ${nameOf(value)}, not a store; ${WHAT_TO_EXPORT}`;
  }
  const store = value as Partial<SessionStore>;
  const missing = OPERATIONS.filter((operation) => typeof store[operation] !== "function");
  if (missing.length > 0) {
    const inherited = missing.some((operation) => (ATTRIBUTE_OPERATIONS as readonly string[]).includes(operation));
    const advice = inherited ? `; a class that extends AttributesByCommit has ${ATTRIBUTE_OPERATIONS.join(", ")}` : "";
    return `its store has no ${missing.join(", ")}${advice}`;
  }
  if (store.watch !== undefined && typeof store.watch !== "function") {
    return `the watch of its store is ${nameOf(store.watch)}; leave it out, or make it a function`;
  }
  const { kind } = store;
  if (typeof kind !== "string" || !KIND.test(kind)) {
    return "the kind of its store must be a word for metrics: a to z, 0 to 9, - and _, at most 32 characters, a letter first";
  }
  if (BUILT_IN_STORES.includes(kind)) return `the kind of its store is ${kind}, which is one of Coatcheck's own`;
  return undefined;
}

function nameAndReason(cause: unknown): string {
  return cause instanceof Error ? `${cause.name}: ${reasonOf(cause)}` : reasonOf(cause);
}
