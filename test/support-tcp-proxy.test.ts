/** Each switch of the proxy does what it says, seen by a plain ioredis client and by bare sockets. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Redis } from "ioredis";
import t from "tap";
import { until } from "./support/client.ts";
import { startRedis } from "./support/redis.ts";
import type { Teardown } from "./support/resources.ts";
import { startTcp } from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";

async function setUp(t: Teardown) {
  const redis = await startRedis(t);
  const proxy = await startProxy(t, redis.port);
  const client = redis.client({ port: proxy.port, retryStrategy: () => 20, maxRetriesPerRequest: 0 });
  await client.ping();
  return { redis, proxy, client };
}

/** An echo behind a proxy, and a connection through it. */
async function setUpEcho(t: Teardown) {
  const heard: Socket[] = [];
  const echo = await startTcp(t, (socket) => {
    heard.push(socket);
    socket.on("data", (data) => socket.write(data));
  });
  const proxy = await startProxy(t, echo.port);
  const socket = connect({ port: proxy.port, host: "127.0.0.1", noDelay: true });
  socket.on("error", () => {});
  t.teardown(() => socket.destroy());
  await once(socket, "connect");
  const server = await until(() => heard[0]);
  return { proxy, socket, server };
}

async function pingMs(client: Redis): Promise<number> {
  const began = performance.now();
  await client.ping();
  return performance.now() - began;
}

t.test("is not noticed without a fault, and counts", async (t) => {
  const { proxy, client } = await setUp(t);
  const before = { ...proxy.bytes };
  const value = "x".repeat(3_000_000);
  await client.set("big", value);
  t.equal(await client.get("big"), value);
  t.ok(proxy.bytes.toServer - before.toServer > value.length);
  t.ok(proxy.bytes.toClient - before.toClient > value.length);
  t.equal(proxy.open, 1);
  t.equal(proxy.accepted, 1);
  client.disconnect();
  await until(() => proxy.open === 0);
});

t.test("delays each way, in order", async (t) => {
  const { proxy, client } = await setUp(t);
  proxy.delay(50);
  const answers: number[] = [];
  const began = performance.now();
  await Promise.all([1, 2, 3].map(async (n) => answers.push(Number(await client.echo(String(n))))));
  // A timer may fire up to a millisecond early, each way.
  t.ok(performance.now() - began >= 95, "there and back");
  t.ok(performance.now() - began < 250, "and not one after the other");
  t.same(answers, [1, 2, 3]);
  proxy.delay(0);
  t.ok((await pingMs(client)) < 50);
});

t.test("drips", async (t) => {
  const { proxy, socket } = await setUpEcho(t);
  const sizes: number[] = [];
  proxy.drip(2, 10);
  socket.write("0123456789");
  await new Promise<void>((resolve) => {
    socket.on("data", (data) => {
      sizes.push(data.length);
      if (sizes.reduce((sum, size) => sum + size) === 10) resolve();
    });
  });
  t.same(sizes, [2, 2, 2, 2, 2]);
  proxy.drip(0, 0);
  socket.write("0123456789");
  const [whole] = await once(socket, "data");
  t.equal(whole.length, 10);
});

t.test("cuts with a reset on both sides", async (t) => {
  const { proxy, socket, server } = await setUpEcho(t);
  const errors = Promise.all([once(socket, "error"), once(server, "error")]);
  proxy.cut();
  t.same(
    (await errors).map(([error]) => error.code),
    ["ECONNRESET", "ECONNRESET"],
  );
  t.equal(proxy.open, 0);
});

t.test("after a cut a client comes back through the same port", async (t) => {
  const { proxy, client } = await setUp(t);
  proxy.cut();
  await heard(client, "ready");
  t.equal(await client.ping(), "PONG");
  t.equal(proxy.accepted, 2);
});

t.test("refuses new connections and keeps the old, then accepts again", async (t) => {
  const { redis, proxy, client } = await setUp(t);
  proxy.refuse();
  t.equal(await client.ping(), "PONG");
  const stranger = redis.client({ port: proxy.port, retryStrategy: () => 20, maxRetriesPerRequest: 0 });
  const [error] = await once(stranger, "error");
  t.equal(error.code, "ECONNREFUSED");
  await proxy.accept();
  await heard(stranger, "ready");
  t.equal(await stranger.ping(), "PONG");
});

t.test("stalls connections old and new, then delivers what it held back", async (t) => {
  const { redis, proxy, client } = await setUp(t);
  proxy.stall();
  const answer = client.set("x", "1");
  const stranger = redis.client({ port: proxy.port });
  await once(stranger, "connect");
  let closed = false;
  client.once("close", () => {
    closed = true;
  });
  await t.rejects(Promise.race([answer, stranger.ping(), later(150)]), /later/);
  t.equal(await redis.call("GET", "x"), null);
  t.equal(closed, false);
  proxy.resume();
  t.equal(await answer, "OK");
  t.equal(await stranger.ping(), "PONG");
});

t.test("a stall hides that the server has gone; the end of it can be a reset", async (t) => {
  const { redis, proxy, client } = await setUp(t);
  proxy.stall();
  const closed = heard(client, "close").then(() => "closed");
  await redis.kill();
  await t.rejects(Promise.race([closed, later(150)]), /later/);
  proxy.resume({ deliver: false });
  t.equal(await closed, "closed");
});

t.test("stalls one direction only: a write that is done and not confirmed", async (t) => {
  const { redis, proxy, client } = await setUp(t);
  proxy.stall("toClient");
  const answer = client.set("x", "1");
  await until(() => redis.call("GET", "x"));
  await t.rejects(Promise.race([answer, later(50)]), /later/);
  proxy.resume();
  t.equal(await answer, "OK");

  proxy.stall("toServer");
  const second = client.set("x", "2");
  await t.rejects(Promise.race([second, later(50)]), /later/);
  t.equal(await redis.call("GET", "x"), "1");
  proxy.resume({ deliver: false });
  await t.rejects(second);
  t.equal(await redis.call("GET", "x"), "1", "what was held back is gone");
});

t.test("hands on the end of either side, after what was said before", async (t) => {
  const { socket, server } = await setUpEcho(t);
  socket.end("last words");
  let heard = "";
  for await (const piece of socket.setEncoding("latin1")) heard += piece;
  t.equal(heard, "last words");
  t.equal(server.readableEnded, true);
});

t.test("hands on a refusal of the server as the end of the connection", async (t) => {
  const { redis, proxy, client } = await setUp(t);
  await Promise.all([heard(client, "close"), redis.kill()]);
  const socket = connect(proxy.port, "127.0.0.1");
  const [error] = await once(socket, "error");
  t.equal(error.code, "ECONNRESET");
});

/** `once` would take an error in between for the answer. */
function heard(client: Redis, event: string): Promise<void> {
  return new Promise((resolve) => client.once(event, () => resolve()));
}

async function later(ms: number): Promise<never> {
  await new Promise((resolve) => setTimeout(resolve, ms));
  throw new Error("later");
}
