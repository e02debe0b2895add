import { readFileSync } from "node:fs";

/** The version of this package, from its package.json: the same place for the sources and for the built files. */
export const VERSION: string = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")).version;
