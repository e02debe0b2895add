/** What happens at once with a login: writes are not lost, a logout ends both ids, a revocation is not undone. */
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import { startGateway, startRedis, startUpstream, type Teardown } from "./support/servers.ts";

const redis = await startRedis(t);
const IDENTITY = { headers: { "X-User-Id": "/user/id", "X-Cart": "/data/cart", "X-Theme": "/data/theme" } };

/** An application that holds back the answer to `POST /slow-start` and `/slow-set` until it is told to go on. */
async function setUp(test: Teardown, store: string) {
  const go = Promise.withResolvers<void>();
  const upstream = await startUpstream(test, async (received, _req, res) => {
    const command = /(start|set|end)$/.exec(received.url)?.[1];
    if (received.url.startsWith("/slow-")) await go.promise;
    if (command !== undefined) res.setHeader(`X-Session-${command}`, received.body);
    res.end(JSON.stringify(received.headers));
  });
  const gateway = await startGateway(test, { upstream: upstream.url, store, identity: IDENTITY });
  const post = (path: string, body: unknown, cookie = "") =>
    ask(gateway.url + path, {
      method: "POST",
      body: typeof body === "string" ? body : JSON.stringify(body),
      headers: { cookie },
    });
  const start = async (body: unknown, cookie = "") => cookiePair((await post("/start", body, cookie)).setCookie[0]);
  const seen = async (cookie: string) => JSON.parse((await ask(gateway.url, { headers: { cookie } })).body);
  const slow = async (path: "/slow-start" | "/slow-set", body: unknown, cookie: string) => {
    const reply = post(path, body, cookie);
    await until(() => upstream.received.some(({ url }) => url === path));
    return { reply, finish: () => go.resolve() };
  };
  return { gateway, post, start, seen, slow };
}

const ADA = { user: { id: "1" } };

for (const store of ["memory:", redis.url]) {
  const name = store === "memory:" ? "memory" : "redis";

  t.test(`${name}: an attribute that is written while a login is under way is in the new session`, async (t) => {
    const { post, start, seen, slow } = await setUp(t, store);
    const before = await start({ ...ADA, data: { cart: "old" } });
    const login = await slow("/slow-start", ADA, before);
    t.equal((await post("/set", { theme: "dark", cart: null }, before)).status, 200);
    login.finish();
    const after = cookiePair((await login.reply).setCookie[0]);
    t.match(await seen(after), { "x-user-id": "1", "x-theme": "dark", "x-cart": "" });
  });

  t.test(`${name}: a write to the old id after the login reaches the new session`, async (t) => {
    const { post, start, seen } = await setUp(t, store);
    const before = await start(ADA);
    const after = await start(ADA, before);
    t.equal((await post("/set", { theme: "dark" }, before)).status, 200);
    t.match(await seen(after), { "x-theme": "dark" });
  });

  t.test(`${name}: what was ended while a login was under way does not come back with it`, async (t) => {
    const { post, start, seen, slow } = await setUp(t, store);
    const before = await start({ ...ADA, data: { cart: "secret" } });
    const login = await slow("/slow-start", { ...ADA, data: { theme: "new" } }, before);
    t.equal((await post("/end", "all", before)).status, 200);
    login.finish();
    const after = cookiePair((await login.reply).setCookie[0]);
    t.match(await seen(after), { "x-cart": "", "x-theme": "new" });
    t.match(await seen(before), { "x-user-id": "" });
  });

  t.test(`${name}: during the overlap a logout with either id ends both`, async (t) => {
    const { post, start, seen } = await setUp(t, store);
    for (const which of [0, 1]) {
      const before = await start(ADA);
      const after = await start(ADA, before);
      t.match(await seen(before), { "x-user-id": "1" });
      await post("/end", "this", [before, after][which]);
      t.match(await seen(before), { "x-user-id": "" });
      t.match(await seen(after), { "x-user-id": "" });
    }
  });

  t.test(`${name}: what a visitor collected stays at the login, another user's never does, null removes`, async (t) => {
    const { start, seen } = await setUp(t, store);
    const visitor = await start({ data: { cart: "hat", theme: "dark" } });
    const ada = await start({ ...ADA, data: { theme: null } }, visitor);
    t.match(await seen(ada), { "x-user-id": "1", "x-cart": "hat", "x-theme": "" });
    const bob = await start({ user: { id: "2" } }, ada);
    t.match(await seen(bob), { "x-user-id": "2", "x-cart": "" });
  });

  t.test(`${name}: a late write with an old id never changes whose session the new one is`, async (t) => {
    for (const [first, late] of [
      [
        { user: { id: "X" }, data: { cart: "x" } },
        { "x-user-id": "Y", "x-cart": "", "x-theme": "" },
      ],
      [{ data: { cart: "x" } }, { "x-user-id": "Y", "x-cart": "x", "x-theme": "dark" }],
    ] as const) {
      const { post, start, seen, slow } = await setUp(t, store);
      const before = await start(first);
      const write = await slow("/slow-set", { theme: "dark" }, before);
      const after = await start({ user: { id: "Y" } }, before);
      write.finish();
      t.equal((await write.reply).status, 200);
      t.match(await seen(after), late);
      // And once more within the overlap, after the new session was written to.
      await post("/set", { cart: "new" }, after);
      await post("/set", { theme: "light" }, before);
      t.match(await seen(after), { "x-user-id": "Y", "x-cart": "new" });
    }
  });

  t.test(`${name}: two logins at once with one old id: a logout ends all that came of it`, async (t) => {
    const { post, start, seen } = await setUp(t, store);
    const before = await start(ADA);
    const [one, two] = await Promise.all([start(ADA, before), start(ADA, before)]);
    const third = await start(ADA, two);
    await post("/end", "this", third);
    for (const cookie of [before, one, two, third]) t.match(await seen(cookie), { "x-user-id": "" });
  });

  t.test(`${name}: a logout with two live cookies ends both`, async (t) => {
    const { post, start, seen } = await setUp(t, store);
    const [one, two] = [await start(ADA), await start({ user: { id: "2" } })];
    t.equal((await post("/end", "this", `${one}; ${two}`)).status, 200);
    for (const cookie of [one, two]) t.match(await seen(cookie), { "x-user-id": "" });
  });

  t.test(`${name}: a claim that is null is one that the user does not have`, async (t) => {
    const { start, seen } = await setUp(t, store);
    t.match(await seen(await start({ user: { id: "1", name: null, email: null, roles: null } })), { "x-user-id": "1" });
  });
}
