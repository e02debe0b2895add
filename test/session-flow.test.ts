/** The main job, end to end, over each store: login, identity, write-back, rotation, expiry, logout. */
import { join } from "node:path";
import t from "tap";
import { ask, cookiePair, type Reply, until } from "./support/client.ts";
import { type RunningGateway, startApp, startGateway, startRedis, temporaryFolder } from "./support/servers.ts";

const ADA = { user: { id: "1", name: "Ada", email: "ada@example.com", roles: ["admin", "staff"] } };

const redis = await startRedis(t);
const stores: Record<string, () => Promise<string> | string> = {
  memory: () => "memory:",
  sqlite: async () => `sqlite:${join(await temporaryFolder(t), "sessions.db")}`,
  redis: () => redis.url,
};

async function touched(gateway: RunningGateway): Promise<number> {
  const line = /^coatcheck_session_operations_total\{operation="touch",status="touched",.*\} (\d+)$/m;
  return Number(line.exec(await gateway.metrics())?.[1] ?? 0);
}

const headersSeen = (reply: Reply): Record<string, string> => JSON.parse(reply.body).headers;

for (const [name, url] of Object.entries(stores)) {
  t.test(`over ${name}`, async (t) => {
    const app = await startApp(t);
    let offset = 0;
    const settings = { upstream: app.url, store: await url() };
    const gateway = await startGateway(t, settings, { now: () => Date.now() + offset });

    const login = async (body: unknown = ADA, cookie?: string) => {
      const headers = cookie === undefined ? {} : { cookie };
      const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify(body), headers });
      t.equal(reply.status, 200);
      t.equal(reply.setCookie.length, 1);
      return cookiePair(reply.setCookie[0]);
    };
    const get = (cookie: string) => ask(`${gateway.url}/`, { headers: { cookie } });
    const whoIs = async (cookie: string) => headersSeen(await get(cookie))["x-user-id"];

    await t.test(
      "login sets one cookie with the configured flags, and no write-back header reaches the browser",
      async (t) => {
        const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify(ADA) });
        t.match(reply.setCookie, [/^session=[\w-]{43}\.[\w-]{43}; Max-Age=1800; Path=\/; HttpOnly; SameSite=Lax$/]);
        t.equal(Object.keys(reply.headers).filter((name) => name.startsWith("x-session")).length, 0);
      },
    );

    await t.test("identity reaches upstream, the session cookie does not, other cookies do", async (t) => {
      const cookie = await login();
      const seen = headersSeen(await get(`a=1; ${cookie}; b=2`));
      t.equal(seen["x-user-id"], "1");
      t.equal(seen["x-user-name"], "Ada");
      t.equal(seen["x-user-email"], "ada@example.com");
      t.equal(seen["x-user-roles"], "admin,staff");
      t.match(seen["x-session-handle"], /^[\w-]{12}$/);
      t.equal(seen.cookie, "a=1; b=2");
      t.equal(headersSeen(await get(cookie)).cookie, undefined);
    });

    await t.test("a visitor without a session gets every identity header, empty", async (t) => {
      const seen = headersSeen(await ask(gateway.url));
      for (const name of ["x-user-id", "x-user-name", "x-user-email", "x-user-roles", "x-session-handle"])
        t.equal(seen[name], "");
    });

    await t.test("attributes are merged, and null removes one", async (t) => {
      const cookie = await login();
      const set = (changes: unknown) =>
        ask(`${gateway.url}/set`, { method: "POST", body: JSON.stringify(changes), headers: { cookie } });
      t.equal((await set({ cart: [1], theme: "dark" })).status, 200);
      t.equal((await set({ theme: null, cart: [1, 2] })).status, 200);
      const [exchange] = await gateway.exchanges();
      t.same(exchange?.writeBack, [{ command: "set", result: "saved" }]);
      t.equal(await whoIs(cookie), "1");
    });

    await t.test("login with a session rotates it: a new id at once, the old one for ten seconds", async (t) => {
      const before = await login();
      const after = await login(ADA, before);
      t.not(before, after);
      t.equal(await whoIs(before), "1", "requests under way go on");
      t.equal(await whoIs(after), "1");
      offset += 10_000;
      t.equal(await whoIs(before), "", "then the old id is over");
      t.equal(await whoIs(after), "1");
    });

    await t.test("an id that the browser brought along is never adopted", async (t) => {
      const invented = `session=${"A".repeat(43)}.${"B".repeat(43)}`;
      t.not(await login(ADA, invented), invented);
      t.equal(await whoIs(invented), "");
    });

    await t.test("logout ends this session and clears the cookie; the old cookie opens nothing", async (t) => {
      const [one, other] = [await login(), await login()];
      const reply = await ask(`${gateway.url}/end`, { method: "POST", body: "this", headers: { cookie: one } });
      t.match(reply.setCookie, ["session=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax"]);
      t.equal(await whoIs(one), "");
      t.equal(await whoIs(other), "1");
    });

    await t.test("logout everywhere ends all sessions of the user and nobody else's", async (t) => {
      const [one, other] = [await login(), await login()];
      const bob = await login({ user: { id: "2", name: "Bob" } });
      await ask(`${gateway.url}/end`, { method: "POST", body: "all", headers: { cookie: one } });
      t.equal(await whoIs(one), "");
      t.equal(await whoIs(other), "");
      t.equal(await whoIs(bob), "2");
    });

    await t.test(
      "a session that nobody uses expires after idleTimeout; one in use lives on to absoluteTimeout",
      async (t) => {
        const [idle, used] = [await login(), await login()];
        for (let minutes = 0; minutes < 36; minutes += 12) {
          offset += 12 * 60_000;
          const touches = await touched(gateway);
          t.equal(await whoIs(used), "1");
          // The touch is off the way of the response.
          await until(async () => (await touched(gateway)) > touches);
        }
        t.equal(await whoIs(idle), "");
        t.equal((await gateway.exchanges())[0]?.session.outcome, "expired");
        offset += 12 * 3_600_000;
        t.equal(await whoIs(used), "");
      },
    );
  });
}
