/** One SQLite file, several gateways of one machine, and users with many sessions. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import t from "tap";
import type { Session } from "../src/core/session.ts";
import { createSessionAdministration } from "../src/session/administration.ts";
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

t.test("a session is listed, and ended with the others, behind a thousand that have expired", async (t) => {
  let now = Date.now();
  const store = new SqliteStore(":memory:", { now: () => now });
  t.teardown(() => store.close());
  const session = (idleMs: number): Session => ({
    user: { id: "1" },
    data: {},
    createdAt: now,
    expiresAt: now + idleMs,
    usedAt: now,
    version: 1,
  });
  const key = (i: number) => String(i).padStart(43, "k");
  store.create(key(0), session(600_000));
  for (let i = 1; i <= 1_000; i++) {
    now++;
    store.create(key(i), session(1_000));
  }
  now += 2_000;
  t.same(
    store.byUser("1").map((entry) => entry.key),
    [key(0)],
  );
  const administration = createSessionAdministration({ store, onRevoked() {} });
  t.match(await administration.endAll("1"), { count: 1, complete: true });
  t.equal(store.find(key(0)).outcome, "unknown");
});
