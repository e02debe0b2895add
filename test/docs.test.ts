/** The documents: their links lead somewhere, and the commands that they show exist as they are shown. */

import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import t from "tap";
import { run } from "./support/command.ts";
import { ROOT } from "./support/project.ts";

const DOCUMENTS = globSync(["*.md", "docs/*.md", "bench/**/*.md", "examples/**/*.md"], {
  cwd: ROOT,
  exclude: ["**/node_modules/**"],
});

const read = (file: string) => readFileSync(join(ROOT, file), "utf8");
const withoutBlocks = (text: string) => text.replace(/^```[\s\S]*?^```/gm, "");

/** What GitHub makes of the headings of a document. */
function anchorsOf(text: string): Set<string> {
  const headings = [...withoutBlocks(text).matchAll(/^#{1,6} (.*)$/gm)].map(([, heading = ""]) => heading);
  return new Set(
    headings.map((heading) =>
      heading
        .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
        .toLowerCase()
        .replace(/[^\p{L}\p{N}\p{M} _-]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
}

t.test("every link within the project leads to a file, and every anchor to a heading", (t) => {
  let links = 0;
  for (const document of DOCUMENTS) {
    const text = withoutBlocks(read(document)).replace(/`[^`\n]*`/g, "");
    for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      links++;
      const [path = "", anchor] = target.split("#");
      const file = path === "" ? document : join(dirname(document), path);
      if (!existsSync(join(ROOT, file))) t.fail(`${document}: ${target} is not there`);
      else if (anchor !== undefined && !anchorsOf(read(file)).has(anchor))
        t.fail(`${document}: ${target} has no such heading`);
    }
  }
  t.ok(links > 50, `${links} links were looked at`);
  t.end();
});

t.test("every command and option that a document shows is in the help", async (t) => {
  const names = ["top", "exchanges", "watch", "explain", "observe", "sessions", "dump", "profile", "demo", "check"];
  const helps = new Map(
    await Promise.all(names.map(async (name) => [name, (await run(t, [name, "--help"])).stdout] as const)),
  );
  const shown = new Set<string>();
  for (const document of DOCUMENTS) {
    // A command may go on in the next line, of a block after a backslash, of a paragraph anywhere.
    const text = read(document)
      .replace(/\\\n\s*/g, " ")
      .replace(/npm run demo(?: --)?/g, "coatcheck demo");
    const inline = withoutBlocks(text).matchAll(/`([^`]+)`/g);
    const pieces = [...inline, ...text.matchAll(/^(.*\bcoatcheck .*)$/gm)].map(([, piece]) => piece);
    for (const piece of pieces) {
      const call = /\bcoatcheck (?:-- )?([a-z]+)\b([^#|;`]*)/.exec(piece ?? "");
      const [, name = "", rest = ""] = call ?? [];
      const help = helps.get(name);
      if (help === undefined) continue;
      shown.add(name);
      for (const [option] of rest.matchAll(/(?<=\s)--[a-z][a-z-]*/g))
        if (option !== "--help" && !help.includes(option)) t.fail(`${document}: coatcheck ${name} has no ${option}`);
    }
  }
  t.same([...shown].sort(), names.sort(), "each command is in a document");
});
