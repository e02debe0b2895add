/** A project of somebody who uses Coatcheck, made of the files that a document shows. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Teardown, temporaryFolder } from "./servers.ts";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** The code blocks of a Markdown file that have a comment with a file name as their first line, by that name. */
export function filesIn(document: string): Record<string, string> {
  const text = readFileSync(join(ROOT, document), "utf8");
  const blocks = [...text.matchAll(/```\w+\n(?:\/\/|#) ([\w.-]+)\n([\s\S]*?)```/g)];
  return Object.fromEntries(blocks.map(([, name = "", content = ""]) => [name, content]));
}

/** A folder with these files, and the package `coatcheck`, which is this checkout. */
export async function projectFolder(t: Teardown, files: Readonly<Record<string, string>>): Promise<string> {
  const folder = await temporaryFolder(t);
  const coatcheck = join(folder, "node_modules/coatcheck");
  mkdirSync(coatcheck, { recursive: true });
  symlinkSync(join(ROOT, "src"), join(coatcheck, "src"));
  const exports = { ".": "./src/index.ts", "./store-contract": "./src/store/contract.ts" };
  writeFileSync(join(coatcheck, "package.json"), JSON.stringify({ name: "coatcheck", type: "module", exports }));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}

/** Runs a test file with Node's own runner, without tap's hooks. @returns its report; throws when a test fails. */
export function runNodeTests(folder: string, file: string, environment: Readonly<Record<string, string>> = {}): string {
  const { NODE_OPTIONS: _, NODE_TEST_CONTEXT: __, ...inherited } = process.env;
  const args = ["--test", "--test-reporter=tap", file];
  return execFileSync(process.execPath, args, {
    cwd: folder,
    encoding: "utf8",
    env: { ...inherited, ...environment },
  });
}
