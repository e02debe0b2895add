/** A change of the configuration file is noticed, however it is made, and read when it is whole. */
import { mkdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import t from "tap";
import { sourceOf } from "../src/cli/reload.ts";
import { until } from "./support/client.ts";
import { startGateway, type Teardown, temporaryFolder } from "./support/servers.ts";

const ROUTES = [{ upstream: "http://127.0.0.1:9" }];
const POLL_MS = 200;

/** YAML, too. */
function textWith(ratio: number, watch = true): string {
  return JSON.stringify({ routes: ROUTES, observe: { traces: { ratio } }, reload: { watch } });
}

type Place = (file: string, text: string) => Promise<void>;

async function startWatching(t: Teardown, place: Place = writeFile) {
  const file = join(await temporaryFolder(t), "coatcheck.yaml");
  await place(file, textWith(0.5));
  const source = { ...sourceOf(file, {}), pollMs: POLL_MS };
  const settings = { routes: ROUTES, observe: { traces: { ratio: 0.5 } } };
  const gateway = await startGateway(t, settings, { source });
  const events = (name: string) => gateway.logs.filter(({ event }) => event === name);
  return { gateway: gateway.gateway, file, events };
}

/** Each way in which files come to be others. */
const WAYS: Readonly<Record<string, { place?: Place; replace: Place }>> = {
  "written in place": { replace: writeFile },
  "emptied first, and written in pieces": {
    replace: async (file, text) => {
      const half = Math.floor(text.length / 2);
      await writeFile(file, "");
      await writeFile(file, text.slice(0, half), { flag: "a" });
      await writeFile(file, text.slice(half), { flag: "a" });
    },
  },
  "replaced by another, as editors do": {
    replace: async (file, text) => {
      await writeFile(`${file}~`, text);
      await rename(`${file}~`, file);
    },
  },
  "behind symbolic links that are swapped, as Kubernetes does": {
    place: (file, text) => publish(file, text, "..1"),
    replace: (file, text) => publish(file, text, "..2"),
  },
};

/** A ConfigMap as a volume: the file leads to `..data`, which leads to the folder of the version. */
async function publish(file: string, text: string, version: string): Promise<void> {
  const folder = dirname(file);
  await mkdir(join(folder, version));
  await writeFile(join(folder, version, basename(file)), text);
  await symlink(version, join(folder, "..data_tmp"));
  await rename(join(folder, "..data_tmp"), join(folder, "..data"));
  if (version === "..1") await symlink(join("..data", basename(file)), file);
}

for (const [way, { place, replace }] of Object.entries(WAYS)) {
  t.test(way, async (t) => {
    const { file, events } = await startWatching(t, place);
    await replace(file, textWith(0.75));
    const line = await until(() => events("config.reloaded")[0]);
    t.match(line, { by: "file" });
    t.ok((line.applied as string[]).includes("observe.traces.ratio"));
    t.same(events("config.reload-refused"), [], "nothing was read that was half written");
  });
}

t.test("a bad file is refused once, and so is one that has gone; the next change is noticed", async (t) => {
  const { file, events } = await startWatching(t);
  await writeFile(file, "rutes: []");
  await until(() => events("config.reload-refused").length > 0);
  t.match(events("config.reload-refused")[0], { by: "file", problems: [/^routes: /, /^rutes: unknown key/] });
  await rm(file);
  await until(() => events("config.reload-refused").length > 1);
  t.match(events("config.reload-refused")[1], { by: "file", problems: [/^the file is not there$/] });
  await writeFile(file, textWith(0.75));
  await until(() => events("config.reloaded").length > 0);
  t.equal(events("config.reload-refused").length, 2, "each once");
});

t.test("what a signal has had read is not read again, and reload.watch: false ends the looking", async (t) => {
  const { gateway, file, events } = await startWatching(t);
  const causes = () => events("config.reloaded").map(({ by }) => by);
  await writeFile(file, textWith(0.75));
  await gateway.reread("signal");
  await writeFile(file, textWith(1));
  await until(() => causes().length > 1);
  t.same(causes(), ["signal", "file"]);
  await writeFile(file, textWith(0.25, false));
  await until(() => causes().length > 2);
  await writeFile(file, "rutes: []");
  // Long enough for three looks, had there been any.
  await new Promise((resolve) => setTimeout(resolve, 5 * POLL_MS));
  t.same(events("config.reload-refused"), []);
  t.match(await gateway.reread("signal"), { result: "refused" }, "asked to, it reads");
});
