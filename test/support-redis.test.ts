/** The Redis servers that other tests stand on do what they say. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { Redis } from "ioredis";
import t from "tap";
import { accepts, startRedis } from "./support/redis.ts";
import { eventually, temporaryFolder } from "./support/resources.ts";

t.test("takes further arguments", async (t) => {
  const redis = await startRedis(t, { args: ["--maxmemory", "2mb"] });
  t.same(await redis.call("CONFIG", "GET", "maxmemory"), ["maxmemory", "2097152"]);
});

t.test("asks for a password, which is in the URL", async (t) => {
  const redis = await startRedis(t, { password: 'quotes " and @ signs' });
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  t.equal(await client.ping(), "PONG");
  const stranger = redis.client({ password: "" });
  await t.rejects(stranger.ping(), /NOAUTH/);
});

t.test("knows users with rules", async (t) => {
  const redis = await startRedis(t, { users: { reader: "on >secret ~coatcheck:* +@read +ping +info +client" } });
  const url = new URL(redis.url);
  url.username = "reader";
  url.password = "secret";
  const reader = new Redis(url.href);
  t.teardown(() => reader.disconnect());
  t.equal(await reader.get("coatcheck:x"), null);
  await t.rejects(reader.set("coatcheck:x", "1"), /NOPERM/);
  await t.rejects(reader.get("other"), /NOPERM/);
});

t.test("speaks TLS, and nothing else", async (t) => {
  const redis = await startRedis(t, { tls: true });
  t.match(redis.url, /^rediss:/);
  const ca = await readFile(new URL(redis.url).searchParams.get("ca") ?? "");
  const client = redis.client({ tls: { ca } });
  t.equal(await client.ping(), "PONG");
  const distrustful = redis.client({ tls: {}, maxRetriesPerRequest: 0 });
  const [error] = await once(distrustful, "error");
  t.equal(error.code, "DEPTH_ZERO_SELF_SIGNED_CERT");
});

t.test("loses nothing when it saves, and everything when it does not", async (t) => {
  for (const [save, kept] of [
    [true, "kept"],
    [false, null],
  ] as const) {
    const redis = await startRedis(t, { save });
    await redis.call("SET", "x", "kept");
    await redis.kill();
    t.equal(redis.running, false);
    await redis.start();
    t.equal(await redis.call("GET", "x"), kept);
  }
});

t.test("stops in an orderly way", async (t) => {
  const redis = await startRedis(t);
  const closed = once(redis.client(), "close");
  await redis.stop();
  await closed;
  t.match(await redis.log(), /Redis is now ready to exit/);
});

t.test("freezes and thaws", async (t) => {
  const redis = await startRedis(t);
  const client = redis.client({ commandTimeout: 200 });
  await client.ping();
  redis.freeze();
  t.equal(redis.running, false);
  await t.rejects(client.ping(), /timed out/);
  redis.thaw();
  t.equal(redis.running, true);
  t.equal(await redis.client().ping(), "PONG");
});

t.test("says why a server did not start", async (t) => {
  await t.rejects(startRedis(t, { args: ["--port", "not a port"] }), /not a port/);
});

/** What tap does to a test that takes too long, and what the kernel does when memory is short. */
t.test("leaves no process behind, whatever ends the test", async (t) => {
  const module = fileURLToPath(new URL("./support/redis.ts", import.meta.url));
  const script = `
    import { startRedis } from ${JSON.stringify(module)};
    const { port } = await startRedis({ teardown: () => {} });
    console.log(port);
    setInterval(() => {}, 1000);
    if (process.argv[1] === "throw") setTimeout(() => { throw new Error("thrown"); }, 100);`;
  for (const way of ["SIGTERM", "SIGKILL", "throw"] as const) {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script, way], {
      stdio: ["ignore", "pipe", "ignore"],
      env: { ...process.env, TMPDIR: await temporaryFolder(t) },
    });
    const [line] = await once(child.stdout.setEncoding("utf8"), "data");
    t.equal(await accepts(Number(line)), true);
    if (way !== "throw") child.kill(way);
    await eventually(`the server is gone after ${way}`, async () => !(await accepts(Number(line))));
  }
});
