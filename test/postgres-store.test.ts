/** The example store keeps the contract on a real PostgreSQL server, and tells the truth when that server is gone. */
import { readFile, symlink } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import pg from "pg";
import t from "tap";
import { ProxyError } from "../src/core/errors.ts";
import type { Session } from "../src/core/session.ts";
import type { ChangeListener, SessionStore } from "../src/core/store.ts";
import { PLAIN_JSON, SessionCodec } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { openStore } from "../src/store/open.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { startPostgres } from "./support/postgres.ts";
import { filesIn, projectFolder, ROOT, runNodeTests } from "./support/project.ts";
import { startApp, startGateway, startTcp, type Teardown } from "./support/servers.ts";

const EXAMPLE = join(ROOT, "examples/postgres-store/postgres-store.ts");
const HOUR_MS = 3_600_000;
/** What a request may take when the store does not answer: its own timeout, and the time to notice on a busy machine. */
const OUTAGE_MS = 4_500;

const storeUrl = (databaseUrl: string) => `module:${EXAMPLE}?url=${databaseUrl}`;

const KEY = "a key that has 32 characters at least";
const encrypting = (...encryptionKeys: readonly string[]) => new SessionCodec({ codec: "msgpack", encryptionKeys });

async function openPostgresStore(
  t: Teardown,
  databaseUrl: string,
  { now = Date.now, codec = PLAIN_JSON }: { now?: () => number; codec?: SessionCodec } = {},
): Promise<SessionStore> {
  const store = await openStore(storeUrl(databaseUrl), { now, absoluteTimeoutMs: 12 * HOUR_MS, codec });
  t.teardown(() => store.close());
  return store;
}

const postgres = await startPostgres(t);

/** Runs statements as an administrator. */
async function sql(...statements: readonly string[]): Promise<pg.QueryResult[]> {
  const client = new pg.Client({ connectionString: postgres.url });
  await client.connect();
  const results: pg.QueryResult[] = [];
  for (const statement of statements) results.push(await client.query(statement));
  await client.end();
  return results;
}

let made = 0;
const newKey = () => `${++made}`.padEnd(43, "x");

function newSession(changes: Partial<Session> = {}): Session {
  const now = Date.now();
  const times = { createdAt: now, usedAt: now, expiresAt: now + HOUR_MS };
  return { user: { id: "1" }, data: {}, version: 1, ...times, ...changes };
}

/** A way to the server that can go dead without a word, as when a cable is pulled. */
async function startWire(t: Teardown) {
  const sockets = new Set<Socket>();
  let dead = false;
  const wire = await startTcp(t, (client) => {
    const server = connect(postgres.port, "127.0.0.1");
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      sockets.add(from);
      from.on("error", () => {});
      from.on("close", () => to.destroy());
      from.on("data", (piece) => dead || to.write(piece));
    }
  });
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
  });
  return {
    url: postgres.url.replace(String(postgres.port), String(wire.port)),
    die: () => {
      dead = true;
    },
    revive: () => {
      dead = false;
    },
  };
}

/** Everything that a store tells, a line each; what takes a time has it replaced. */
function watch(store: SessionStore): string[] {
  const told: string[] = [];
  const listener: ChangeListener = {
    changed: (key) => told.push(`changed ${key}`),
    ended: (key, endedAt) => told.push(`ended ${key} ${Math.abs(Date.now() - endedAt) < 60_000 ? "now" : endedAt}`),
    changedAll: () => told.push("changed all"),
    feed: (state) => told.push(state),
    delayed: (by, ms) => told.push(`delayed ${by} ${ms >= 0 && ms < 60_000 ? "a little" : ms}`),
  };
  store.watch?.(listener);
  return told;
}

t.test("gateways that start at once on an empty database make its table together", async (t) => {
  const stores = await Promise.all(Array.from({ length: 6 }, () => openPostgresStore(t, postgres.url)));
  const checks = await Promise.all(stores.map((store) => store.check()));
  for (const check of checks) t.match(check, { ok: true, detail: /^PostgreSQL \d/ });
});

for (const [what, codec] of Object.entries({ "as JSON": PLAIN_JSON, encrypted: encrypting(KEY) })) {
  t.test(`it keeps the store contract, ${what}`, async (t) => {
    for (const { name, run } of storeContract) {
      t.test(name, async (t) => {
        let now = Date.now();
        const store = await openPostgresStore(t, postgres.url, { now: () => now, codec });
        const advance = (ms: number) => {
          now += ms;
        };
        await run({ store, now: () => now, advance });
      });
    }
  });
}

t.test("with encryption keys nothing of a session is in the clear but its user's id and its times", async (t) => {
  const store = await openPostgresStore(t, postgres.url, { codec: encrypting(KEY) });
  const key = newKey();
  const session = newSession({ user: { id: "user-7", name: "Ada Lovelace" }, data: { cart: ["a secret thing"] } });
  await store.create(key, session);
  await store.set(key, "note", "another secret");
  const [rows] = await sql(`SELECT * FROM coatcheck_sessions WHERE key = '${key}'`);
  const [row] = rows?.rows ?? [];
  t.equal(row.payload[0], 3, "an envelope");
  t.notMatch(row.payload.toString("latin1"), /Lovelace|secret|user-7|cart/);
  t.match(row, { user_id: "user-7", expires_at: String(session.expiresAt) });

  const stranger = await openPostgresStore(t, postgres.url, {
    codec: encrypting("another key that has 32 characters"),
  });
  t.same(await stranger.find(key), { outcome: "malformed" });
  const plain = await openPostgresStore(t, postgres.url);
  t.same(await plain.find(key), { outcome: "malformed" });
  const rotated = await openPostgresStore(t, postgres.url, {
    codec: encrypting("another key that has 32 characters", KEY),
  });
  t.match(await rotated.find(key), { outcome: "hit", session: { user: { name: "Ada Lovelace" } } });
  const other = newKey();
  await store.create(other, session);
  await sql(`UPDATE coatcheck_sessions SET payload = (SELECT payload FROM coatcheck_sessions WHERE key = '${key}')
    WHERE key = '${other}'`);
  t.same(await store.find(other), { outcome: "malformed" }, "a payload opens at its own key alone");
});

t.test("the gateway hands the store its encryption keys", async (t) => {
  const app = await startApp(t);
  const session = { cookie: { name: "session", secure: false, secrets: [KEY] }, encryptionKeys: [KEY] };
  const gateway = await startGateway(t, { upstream: app.url, store: storeUrl(postgres.url), session });
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"sealed","name":"Ada"}}' });
  const visit = await ask(gateway.url, { headers: { cookie: cookiePair(reply.setCookie[0]) } });
  t.equal(JSON.parse(visit.body).headers["x-user-name"], "Ada");
  const [rows] = await sql("SELECT payload FROM coatcheck_sessions WHERE user_id = 'sealed'");
  t.equal(rows?.rows[0].payload[0], 3);
});

t.test("what a later version has written is newer, and nobody writes over it", async (t) => {
  const store = await openPostgresStore(t, postgres.url);
  const key = newKey();
  const session = newSession();
  await store.create(key, session);
  await sql(`UPDATE coatcheck_sessions SET payload = '\\x0901' WHERE key = '${key}'`);
  t.same(await store.find(key), { outcome: "newer" });
  t.equal(await store.commit(key, { ...session, version: 2 }), "unknown");
  t.equal(await store.touch(key, session.expiresAt + 1), "unknown");
  t.equal((await store.set(key, "a", 1)).outcome, "unknown");
  t.notOk((await store.byUser("1")).some((entry) => entry.key === key));
  const [rows] = await sql(`SELECT payload, version FROM coatcheck_sessions WHERE key = '${key}'`);
  t.equal(rows?.rows[0].payload.toString("hex"), "0901");
});

t.test("the test file of the example's README works as it is", async (t) => {
  const files = filesIn("examples/postgres-store/README.md");
  const folder = await projectFolder(t, { ...files, "postgres-store.ts": await readFile(EXAMPLE, "utf8") });
  await symlink(join(ROOT, "node_modules/pg"), join(folder, "node_modules/pg"));
  const report = runNodeTests(folder, "postgres-store.test.js", { DATABASE_URL: postgres.url });
  t.match(report, `# pass ${2 * storeContract.length}\n# fail 0\n`);
});

t.test("a role that may only read and write rows is enough once the table is there", async (t) => {
  await sql(
    "CREATE ROLE gateway LOGIN",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON coatcheck_sessions TO gateway",
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
  );
  const store = await openPostgresStore(t, postgres.url.replace("postgres@", "gateway@"));
  const key = newKey();
  t.equal(await store.create(key, newSession()), "created");
  t.match(await store.find(key), { outcome: "hit" });
  t.equal(await store.destroy(key), "destroyed");
});

t.test("a row that holds no session is malformed", async (t) => {
  const store = await openPostgresStore(t, postgres.url);
  for (const payload of ["{", "1", "1null", "1[]", '1{"user":null}', '1{"user":"1","data":{},"createdAt":1}']) {
    const key = newKey();
    await store.create(key, newSession());
    const hex = Buffer.from(payload.replace(/^1/, "\u0001")).toString("hex");
    await sql(`UPDATE coatcheck_sessions SET payload = '\\x${hex}' WHERE key = '${key}'`);
    t.same(await store.find(key), { outcome: "malformed" }, payload);
  }
});

t.test("expired sessions go in small steps, the others stay", async (t) => {
  const writer = await openPostgresStore(t, postgres.url);
  const key = newKey();
  await writer.create(key, newSession());
  await sql(
    `DELETE FROM coatcheck_sessions WHERE key <> '${key}'`,
    `INSERT INTO coatcheck_sessions SELECT 'old' || n, 1, 1000, NULL, 0, 0, NULL, '' FROM generate_series(1, 1200) n`,
  );
  await openPostgresStore(t, postgres.url);
  const keys = () => sql("SELECT key FROM coatcheck_sessions");
  await until(async () => (await keys())[0]?.rowCount === 1);
  t.match((await keys())[0]?.rows, [{ key }]);
});

t.test("changes that one store makes are told to the others, and to itself", async (t) => {
  const [one, other] = [await openPostgresStore(t, postgres.url), await openPostgresStore(t, postgres.url)];
  const [own, heard] = [watch(one), watch(other)];
  await until(() => own.length === 1 && heard.length === 1);
  const key = newKey();
  const session = newSession();
  await one.create(key, session);
  await one.commit(key, { ...session, version: 2 });
  await one.commit(key, { ...session, version: 2 });
  await one.touch(key, session.expiresAt + 1);
  await one.set(key, "cart", [1]);
  await one.destroy(key);
  await one.destroy(key);
  await one.touch(key, session.expiresAt);
  await until(() => heard.at(-1) === `changed ${key}` && heard.includes(`ended ${key} now`));
  const changed = `changed ${key}`;
  t.same(
    heard,
    ["messages", changed, changed, changed, `ended ${key} now`, changed],
    "what changed nothing is not told",
  );
  await until(() => own.length === 10);
  t.equal(own.filter((line) => line === "delayed messages a little").length, 4, "the way back is measured");
});

t.test(
  "a listening connection that breaks, or goes dead without a word, is lost until a new one listens",
  async (t) => {
    const wire = await startWire(t);
    const store = await openPostgresStore(t, wire.url);
    const writer = await openPostgresStore(t, postgres.url);
    const told = watch(store);
    await until(() => told.at(-1) === "messages");

    await postgres.kill();
    await until(() => told.at(-1) === "lost");
    await postgres.start();
    await until(() => told.at(-1) === "messages");

    const startedMs = performance.now();
    wire.die();
    await until(() => told.at(-1) === "lost");
    t.ok(performance.now() - startedMs < OUTAGE_MS, "noticed by its heartbeat");
    wire.revive();
    await until(() => told.at(-1) === "messages");
    t.same(told, ["messages", "lost", "messages", "lost", "messages"]);

    const key = newKey();
    await writer.create(key, newSession());
    await writer.destroy(key);
    await until(() => told.includes(`ended ${key} now`));
  },
);

t.test("a server that does not answer, or a row that somebody locked, costs a bounded time", async (t) => {
  const wire = await startWire(t);
  const store = await openPostgresStore(t, wire.url);
  const key = newKey();
  await store.create(key, newSession());
  const outage = async (what: string) => {
    const startedMs = performance.now();
    const error = await Promise.try(() => store.touch(key, Date.now() + HOUR_MS)).catch((error: unknown) => error);
    t.match(error, { code: "session_store_unavailable" }, what);
    t.ok(error instanceof ProxyError && performance.now() - startedMs < OUTAGE_MS, what);
  };
  const client = new pg.Client({ connectionString: postgres.url });
  await client.connect();
  await client.query("BEGIN");
  await client.query("SELECT FROM coatcheck_sessions WHERE key = $1 FOR UPDATE", [key]);
  await outage("locked");
  await client.query("ROLLBACK");
  await client.end();
  t.equal(await store.touch(key, Date.now() + HOUR_MS), "touched");

  wire.die();
  await Promise.all(Array.from({ length: 20 }, () => outage("dead")));
  t.match(await store.check(), { ok: false, detail: /./ });
  wire.revive();
  t.equal(await store.touch(key, Date.now() + HOUR_MS), "touched");
});

t.test(
  "kill -9 and restart under requests: 503 in between, nobody is logged out, every session is still there",
  async (t) => {
    const app = await startApp(t);
    const routes = [
      { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user", "cart"] },
      { match: { path: "/required" }, upstream: app.url, session: "required" },
    ];
    const gateway = await startGateway(t, { routes, store: storeUrl(postgres.url) });
    const cookies: string[] = [];
    for (let id = 0; id < 8; id++) {
      const reply = await ask(`${gateway.url}/start`, { method: "POST", body: `{"user":{"id":"user-${id}"}}` });
      cookies.push(cookiePair(reply.setCookie[0]));
    }
    const counts = { served: 0, unavailable: 0, wrong: 0, longestMs: 0 };
    let over = false;
    const visit = async (cookie: string, id: number) => {
      while (!over) {
        const startedMs = performance.now();
        const { status, body, setCookie } = await ask(`${gateway.url}/required`, { headers: { cookie } });
        counts.longestMs = Math.max(counts.longestMs, Math.round(performance.now() - startedMs));
        if (status === 200 && JSON.parse(body).headers["x-user-id"] === `user-${id}`) counts.served++;
        else if (status === 503 && setCookie.length === 0) counts.unavailable++;
        else counts.wrong++;
      }
    };
    const visits = cookies.map(visit);
    await until(() => counts.served > 50);
    await postgres.kill();
    await until(() => counts.unavailable > 50);
    const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
    t.match(login, { status: 503, setCookie: [] }, "a login fails loudly");
    t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 503);
    await postgres.start();
    const before = counts.served;
    await until(() => counts.served > before + 50);
    over = true;
    await Promise.all(visits);
    t.comment(counts);
    t.equal(counts.wrong, 0);
    t.ok(counts.longestMs < OUTAGE_MS);
    for (const cookie of cookies) {
      t.equal(
        (await ask(`${gateway.url}/required`, { headers: { cookie } })).status,
        200,
        "the session is still there",
      );
    }
    t.match(await gateway.metrics(), /^coatcheck_session_store_up\{store="postgres"\} 1$/m);
    t.ok(gateway.logs.some((line) => line.event === "store.down"));
  },
);

t.test("down at the start: the gateway starts, says so, and makes the table when the server comes", async (t) => {
  await sql("DROP TABLE coatcheck_sessions");
  await postgres.kill();
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: storeUrl(postgres.url) });
  t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 503);
  await postgres.start();
  await until(async () => (await fetch(`${gateway.adminUrl}/readyz`)).status === 200);
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  t.match(cookiePair(reply.setCookie[0]), /^session=/);
});

t.test("a URL that would be cut short is refused, and its password not shown", async (t) => {
  const url = "postgres://user:hunter2@db/sessions?sslmode=require&application_name=x";
  const opening = openPostgresStore(t, url);
  await t.rejects(opening, { message: /unknown parameter application_name; there is only url/ });
  await t.rejects(opening, { message: /^(?!.*hunter2)/s });
});
