/** The Redis Cluster that other tests stand on: real slots that really move, real masters that really fail. */
import { Cluster } from "ioredis";
import t from "tap";
import { type RedisCluster, slotOf, startCluster } from "./support/redis-cluster.ts";
import type { Teardown } from "./support/resources.ts";

function connect(t: Teardown, cluster: RedisCluster, password?: string): Cluster {
  const client = new Cluster(
    cluster.nodes.map(({ port }) => ({ host: "127.0.0.1", port })),
    { redisOptions: { ...(password && { password }) } },
  );
  client.on("error", () => {});
  t.teardown(() => client.disconnect());
  return client;
}

t.test("three masters share the slots", async (t) => {
  const began = performance.now();
  const cluster = await startCluster(t);
  t.comment(`formed in ${Math.round(performance.now() - began)} ms`);
  t.match(cluster.url, /^redis\+cluster:\/\/127\.0\.0\.1:\d+,127\.0\.0\.1:\d+,127\.0\.0\.1:\d+$/);
  t.same(
    cluster.masters.map(({ slots }) => slots),
    [
      [0, 5460],
      [5461, 10921],
      [10922, 16383],
    ],
  );
  const client = connect(t, cluster);

  await t.test("each key is with its owner", async (t) => {
    for (const key of ["a", "b", "c", "d"]) {
      await client.set(key, "1");
      const owner = await cluster.ownerOf(key);
      t.equal(await owner.call("GET", key), "1");
    }
    await cluster.flush();
    for (const node of cluster.masters) t.equal(await node.call("DBSIZE"), 0);
  });

  await t.test("a slot in the middle of its way answers with ASK and TRYAGAIN, then with MOVED", async (t) => {
    const keys = ["{way}1", "{way}2", "{way}3"];
    for (const key of keys) await client.set(key, key);
    const from = await cluster.ownerOf("{way}");
    const to = cluster.masters.find((node) => node !== from) ?? from;
    const slot = slotOf("{way}");
    const migration = await cluster.beginMigration(slot, from, to);
    t.equal(await migration.move(1), 1);

    const answers = await Promise.all(keys.map((key) => from.call("GET", key).catch((error) => error.message)));
    t.equal(answers.filter((answer) => answer === `ASK ${slot} 127.0.0.1:${to.port}`).length, 1);
    const asking = to.client();
    await asking.asking();
    await t.rejects(asking.mget(...keys), /TRYAGAIN/);
    t.equal(await cluster.ownerOf("{way}"), from, "it belongs to the old owner until the end");
    for (const key of keys) t.equal(await client.get(key), key, "a client that follows ASK finds everything");

    await migration.finish();
    t.equal(await cluster.ownerOf("{way}"), to);
    await t.rejects(from.call("GET", keys[0] ?? ""), new RegExp(`^MOVED ${slot} 127\\.0\\.0\\.1:${to.port}$`));
    for (const key of keys) t.equal(await to.call("GET", key), key);
    await cluster.healthy();
    await cluster.migrateSlot(slot, to, from);
    t.equal(await cluster.ownerOf("{way}"), from);
    for (const key of keys) t.equal(await from.call("GET", key), key);
  });

  await t.test("without a master its slots are down, and with it again they are back", async (t) => {
    const owner = await cluster.ownerOf("x");
    await owner.kill();
    const [other = owner] = cluster.masters.filter((node) => node !== owner);
    while (String(await other.call("CLUSTER", "INFO")).includes("cluster_state:ok"));
    await t.rejects(other.call("GET", "y"), /CLUSTERDOWN|MOVED/);
    await owner.start();
    await cluster.healthy();
    t.equal(await cluster.ownerOf("x"), owner);
  });
});

t.test("replicas take over, when told and when their master dies", async (t) => {
  const began = performance.now();
  const password = "a secret of the cluster";
  const cluster = await startCluster(t, { replicas: 1, password });
  t.comment(`formed in ${Math.round(performance.now() - began)} ms`);
  const client = connect(t, cluster, password);
  await client.set("x", "kept");
  const master = await cluster.ownerOf("x");
  const replica = cluster.replicas[cluster.masters.indexOf(master)] ?? master;
  await client.wait(1, 1000);

  await cluster.failover(replica);
  t.equal(await cluster.ownerOf("x"), replica);
  t.equal(await client.get("x"), "kept");
  await cluster.healthy();

  const killed = performance.now();
  await replica.kill();
  t.equal(await cluster.ownerOf("x"), master);
  t.comment(`taken over after ${Math.round(performance.now() - killed)} ms`);
  t.equal(await client.get("x"), "kept");

  await replica.start();
  await cluster.healthy();
  t.equal(await cluster.ownerOf("x"), master, "who comes back is a replica");
  master.freeze();
  t.equal(await cluster.ownerOf("x"), replica, "silence is as good as death");
  master.thaw();
  await cluster.failover(master);
  await cluster.healthy();
  const slot = slotOf("x");
  const [to = master] = cluster.masters.filter((node) => node !== master);
  await cluster.migrateSlot(slot, master, to);
  t.equal(await to.call("GET", "x"), "kept", "moves keys with a password too");
});
