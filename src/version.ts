import { readFileSync } from "node:fs";

const { version, dependencies } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));

/** The version of this package, from its package.json: the same place for the sources and for the built files. */
export const VERSION: string = version;

/** The names of the packages that this one needs to run. */
export const DEPENDENCIES: readonly string[] = Object.keys(dependencies);
