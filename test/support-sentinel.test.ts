/** The Sentinels that other tests stand on really watch, and really choose another master. */
import { Redis } from "ioredis";
import t from "tap";
import { type SentinelGroup, startSentinel } from "./support/redis-sentinel.ts";
import type { Teardown } from "./support/resources.ts";

function connect(t: Teardown, group: SentinelGroup, password?: string): Redis {
  const client = new Redis({
    sentinels: group.sentinels.map(({ port }) => ({ host: "127.0.0.1", port })),
    name: group.name,
    sentinelRetryStrategy: () => 50,
    ...(password && { password }),
  });
  client.on("error", () => {});
  t.teardown(() => client.disconnect());
  return client;
}

t.test("a master, two replicas and three Sentinels", async (t) => {
  const began = performance.now();
  const group = await startSentinel(t);
  t.comment(`formed in ${Math.round(performance.now() - began)} ms`);
  t.match(group.url, /^redis\+sentinel:\/\/(127\.0\.0\.1:\d+,){2}127\.0\.0\.1:\d+\/mymaster$/);
  const first = await group.master();
  t.equal(first, group.servers[0]);
  const client = connect(t, group);
  await client.set("x", "kept");
  t.equal(await client.wait(2, 1000), 2);

  await t.test("fails over when told", async (t) => {
    const began = performance.now();
    const second = await group.failover();
    t.comment(`failed over in ${Math.round(performance.now() - began)} ms`);
    t.not(second, first);
    t.equal(await group.master(), second);
    t.equal(await second.call("SET", "y", "1"), "OK");
    await group.healthy();
    await t.rejects(first.call("SET", "y", "1"), /READONLY/, "the old master has become a replica");
    t.equal(await connect(t, group).get("x"), "kept");
  });

  await t.test("fails over when the master dies, and takes it back as a replica", async (t) => {
    const began = performance.now();
    const dead = await group.killMaster();
    t.equal(dead.running, false);
    const next = await group.master();
    t.comment(`another master after ${Math.round(performance.now() - began)} ms`);
    t.not(next, dead);
    t.equal(await next.call("GET", "x"), "kept");
    await dead.start();
    await group.healthy();
    // On a busy machine the Sentinels may have chosen once more.
    t.not(await group.master(), dead);
    await t.rejects(dead.call("SET", "y", "1"), /READONLY/);
  });

  await t.test("fails over when the master freezes", async (t) => {
    const frozen = await group.master();
    frozen.freeze();
    t.not(await group.master(), frozen);
    frozen.thaw();
    await group.healthy();
    await t.rejects(frozen.call("SET", "y", "1"), /READONLY/);
  });

  await t.test("a Sentinel may go and come back", async (t) => {
    const [sentinel] = group.sentinels;
    await sentinel?.kill();
    t.ok((await group.master()).running);
    await sentinel?.start();
    await group.healthy();
    t.pass("known to the others again");
  });
});

t.test("data servers with a password", async (t) => {
  const password = "a secret of the servers";
  const group = await startSentinel(t, { password, replicas: 1 });
  await t.rejects(connect(t, group).get("x"), /NOAUTH/);
  const client = connect(t, group, password);
  await client.set("x", "kept");
  await client.wait(1, 1000);
  await group.killMaster();
  t.equal(await (await group.master()).call("GET", "x"), "kept");
});
