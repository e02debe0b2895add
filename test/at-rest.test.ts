/** How sessions are stored may change with every restart: nobody is logged out by it, and what is encrypted stays so. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import t from "tap";
import { ask, cookiePair } from "./support/client.ts";
import { SECRET, startApp, startGateway, startRedis, temporaryFolder } from "./support/servers.ts";

const OLD = "the old secret for sessions at rest";
const NEW = "the new secret for sessions at rest";
const NAME = "Ada Lovelace";

const redis = await startRedis(t);
const client = new Redis(redis.url);
t.teardown(() => client.disconnect());
const folder = await temporaryFolder(t);
const file = join(folder, "sessions.db");

/** The store, and everything that somebody reads who reads it. */
const stores: Record<string, { url: string; contents: () => Promise<Buffer> }> = {
  sqlite: {
    url: `sqlite:${file}`,
    contents: async () =>
      Buffer.concat(
        await Promise.all([file, `${file}-wal`].map((path) => readFile(path).catch(() => Buffer.alloc(0)))),
      ),
  },
  redis: {
    url: redis.url,
    contents: async () => {
      const keys = await client.keys("coatcheck:session:*");
      const hashes = await Promise.all(keys.map((key) => client.hgetallBuffer(key)));
      return Buffer.concat(hashes.flatMap((hash) => Object.values(hash)));
    },
  },
};

for (const [name, { url, contents }] of Object.entries(stores)) {
  t.test(`over ${name}, codec and keys change and nobody is logged out`, async (t) => {
    const app = await startApp(t);
    const start = (stored: { codec?: string; encryptionKeys?: readonly string[] }) =>
      startGateway(t, {
        upstream: app.url,
        store: url,
        session: { cookie: { name: "session", secure: false, secrets: [SECRET] }, ...stored },
      });
    const first = await start({});
    const login = { method: "POST", body: JSON.stringify({ user: { id: "1", name: NAME }, data: { cart: [0] } }) };
    const cookie = cookiePair((await ask(`${first.url}/start`, login)).setCookie[0]);
    t.ok((await contents()).includes(NAME));
    await first.gateway.close();

    const steps = [
      { codec: "msgpack" },
      { codec: "json" },
      { codec: "msgpack", encryptionKeys: [OLD, "plaintext"] },
      { codec: "json", encryptionKeys: [OLD] },
      { codec: "msgpack", encryptionKeys: [OLD, NEW] },
      { codec: "msgpack", encryptionKeys: [NEW, OLD] },
      { codec: "json", encryptionKeys: [NEW] },
      { codec: "json", encryptionKeys: ["plaintext", NEW] },
      { codec: "msgpack" },
    ];
    for (const [index, step] of steps.entries()) {
      const running = await start(step);
      const headers = { cookie };
      const seen = JSON.parse((await ask(running.url, { headers })).body).headers;
      t.equal(seen["x-user-name"], NAME, JSON.stringify(step));
      const set = { method: "POST", body: JSON.stringify({ cart: [index] }), headers };
      t.equal((await ask(`${running.url}/set`, set)).status, 200);
      const log = running.logText();
      await running.gateway.close();
      t.notOk(log.includes(OLD) || log.includes(NEW));
    }
  });

  t.test(`over ${name}, what is encrypted cannot be read, and what is not is refused`, async (t) => {
    const app = await startApp(t);
    const start = (encryptionKeys: readonly string[]) =>
      startGateway(t, {
        upstream: app.url,
        store: url,
        session: { cookie: { name: "session", secure: false, secrets: [SECRET] }, encryptionKeys },
      });
    const hidden = "Grace Hopper";
    const login = { method: "POST", body: JSON.stringify({ user: { id: "2", name: hidden } }) };
    const encrypting = await start([OLD]);
    await ask(`${encrypting.url}/start`, login);
    t.notOk((await contents()).includes(hidden));
    const open = await start([]);
    const cookie = cookiePair((await ask(`${open.url}/start`, login)).setCookie[0]);
    t.ok((await contents()).includes(hidden));
    const seen = JSON.parse((await ask(encrypting.url, { headers: { cookie } })).body).headers;
    t.equal(seen["x-user-id"], "");
    t.match(await encrypting.metrics(), /operation="find",status="malformed"/);
  });
}
