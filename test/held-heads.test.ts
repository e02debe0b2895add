/** Response heads that wait for the session, and what may happen meanwhile. */
import { setTimeout as delay } from "node:timers/promises";
import t from "tap";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, cookiePair } from "./support/client.ts";
import { SECRET, startApp, startGateway, startTcp, type Teardown } from "./support/servers.ts";
import { type StepName, SteppedStore } from "./support/stepped-store.ts";

/** A custom store whose steps a test can hold up. */
class SlowStore extends SteppedStore {
  override readonly kind: string = "slow";
}

const SET = '{"cart":1}';
const session = { cookie: { name: "session", secure: false, secrets: [SECRET] } };

async function setUp(t: Teardown, upstream: string, step: (name: StepName) => Promise<unknown>) {
  let now = Date.now();
  const store = new SlowStore(new MemoryStore(() => now), step);
  const gateway = await startGateway(t, { upstream, session }, { store, now: () => now });
  const advance = (ms: number) => {
    now += ms;
  };
  return { ...gateway, advance };
}

t.test("an application that closes the connection while a head waits: the response has ended before", async (t) => {
  const heads: Record<string, string> = {
    "/start": 'HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\nX-Session-Start: {"user":{"id":"1"}}\r\n\r\n',
    "/204": `HTTP/1.1 204 No Content\r\nX-Session-Set: ${SET}\r\n\r\n`,
    "/304": `HTTP/1.1 304 Not Modified\r\nX-Session-Set: ${SET}\r\n\r\n`,
    "/0": `HTTP/1.1 200 OK\r\ncontent-length: 0\r\nX-Session-Set: ${SET}\r\n\r\n`,
    "/content": `HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Session-Set: ${SET}\r\n\r\nhello`,
    "/close": `HTTP/1.1 200 OK\r\nconnection: close\r\nX-Session-Set: ${SET}\r\n\r\nhello`,
  };
  const app = await startTcp(t, (socket) =>
    socket.on("data", (request) => socket.end(heads[String(request).split(" ")[1] ?? ""] ?? "")),
  );
  const { url } = await setUp(t, app.url, () => delay(20));
  const login = await ask(`${url}/start`);
  t.equal(login.status, 302);
  const cookie = cookiePair(login.setCookie[0]);
  const statuses = [];
  for (const path of ["/204", "/304", "/0", "/content", "/close"])
    for (const method of ["GET", "HEAD"])
      statuses.push((await ask(url + path, { method, headers: { cookie } })).status);
  t.same(statuses, [204, 204, 304, 304, 200, 200, 200, 200, 200, 200]);
});

t.test("a response does not wait for a store that hangs only to have its cookie renewed", async (t) => {
  const app = await startApp(t);
  let looked = 0;
  const { url, advance } = await setUp(t, app.url, async (name) => {
    if (name === "find" && ++looked === 2) await new Promise(() => {});
  });
  const login = await ask(`${url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const headers = { cookie: cookiePair(login.setCookie[0]) };
  advance(61_000);
  const startedMs = performance.now();
  const reply = await ask(url, { headers });
  t.ok(performance.now() - startedMs < 1_000);
  t.equal(looked, 2, "it was looked up");
  t.equal(reply.status, 200);
  t.same(reply.setCookie, [], "nobody knows whether it has been replaced");
  advance(61_000);
  t.equal((await ask(url, { headers })).setCookie.length, 1, "the next time");
});
