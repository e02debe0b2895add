/** One SQLite file and several gateways of one machine. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import t from "tap";
import { SqliteStore } from "../src/store/sqlite.ts";
import { temporaryFolder } from "./support/servers.ts";

/** Holds the file as a gateway does that sets it up, for longer than SQLite waits by itself. */
const HOLDER = `
  const { DatabaseSync } = await import("node:sqlite");
  const database = new DatabaseSync(process.argv[1]);
  database.exec("BEGIN EXCLUSIVE; CREATE TABLE held (name)");
  process.stdout.write("held");
  setTimeout(() => database.exec("COMMIT"), 500);`;

t.test("a gateway that starts while another one sets up the file waits for it", async (t) => {
  const file = join(await temporaryFolder(t), "sessions.db");
  const holder = spawn(process.execPath, ["--input-type=module", "-e", HOLDER, file], {
    env: { PATH: process.env.PATH },
  });
  t.teardown(() => holder.kill("SIGKILL"));
  await once(holder.stdout, "data");
  const store = new SqliteStore(file);
  t.teardown(() => store.close());
  t.match(store.inspect().facts, [{}, {}, {}, {}, { name: "journal mode", value: "wal" }]);
});
