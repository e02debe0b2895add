/** What a reload changes is in effect with the next request, and requests that have begun go on by what they began with. */
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdir, open as openFile, readFile, rename, writeFile } from "node:fs/promises";
import { Agent, type IncomingMessage, request, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import t from "tap";
import { WebSocket } from "ws";
import { NEEDS_RESTART } from "../src/config/reload.ts";
import { settingsSchema } from "../src/config/schema.ts";
import { makeCertificate } from "./support/certificates.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { startDns } from "./support/dns.ts";
import {
  SECRET,
  startApp,
  startGateway,
  startUpstream,
  type Teardown,
  temporaryFolder,
  testConfig,
} from "./support/servers.ts";
import { startWebSocketApp } from "./support/websockets.ts";

const OTHER_SECRET = "another secret that has 36 characters";

function cookieWith(...secrets: string[]) {
  return { session: { cookie: { name: "session", secure: false, secrets } } };
}

/** An application that answers when it is told to, and tells of its connections. */
async function startSlowApp(t: Teardown) {
  const held: ServerResponse[] = [];
  const connections = new Set<Socket>();
  const app = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/slow") held.push(res);
    else res.end(JSON.stringify(received));
  });
  app.server.on("connection", (socket) => {
    connections.add(socket);
    socket.once("close", () => connections.delete(socket));
  });
  return { ...app, held, connections };
}

t.test(
  "a request in flight finishes where it began, the next goes elsewhere, and then nothing of the old is left",
  async (t) => {
    const [before, after] = [await startSlowApp(t), await startSlowApp(t)];
    const gateway = await startGateway(t, { upstream: before.url });
    const inUse = async () => /^coatcheck_configs_in_use (\d+)$/m.exec(await gateway.metrics())?.[1];
    const slow = ask(`${gateway.url}/slow`);
    await until(() => before.held.length === 1);
    const result = await gateway.gateway.reload(testConfig({ upstream: after.url }));
    t.same(result, { applied: ["routes[0].upstream.targets[0].url"], needsRestart: [] });
    t.equal((await ask(gateway.url)).status, 200);
    t.equal(after.received.length, 1);
    t.equal(await inUse(), "2");
    before.held[0]?.end("the old answer");
    t.equal((await slow).body, "the old answer");
    await until(async () => (await inUse()) === "1");
    await until(() => before.connections.size === 0);
    t.equal(before.received.length, 1);
  },
);

t.test(
  "an upstream that stays keeps its connections, through several reloads, also for what began before them",
  async (t) => {
    const app = await startSlowApp(t);
    const gateway = await startGateway(t, { upstream: app.url });
    await ask(gateway.url);
    const [connection] = app.connections;
    for (const name of ["X-One", "X-Two", "X-Three"]) {
      const slow = ask(`${gateway.url}/slow`);
      await until(() => app.held.length === 1);
      const elsewhere = { match: { path: "/other" }, upstream: "http://127.0.0.1:9" };
      const routes = [{ upstream: app.url, session: "none" }, elsewhere];
      await gateway.gateway.reload(testConfig({ routes, identity: { headers: { [name]: "/user/id" } } }));
      await gateway.gateway.reload(testConfig({ upstream: app.url, identity: { headers: { [name]: "/user/id" } } }));
      app.held.pop()?.end("done");
      t.equal((await slow).body, "done");
    }
    t.same([...app.connections], [connection]);
  },
);

t.test("what a reload takes away while the session is looked up is there yet for whoever began before", async (t) => {
  const [before, after] = [await startApp(t), await startApp(t)];
  const gateway = await startGateway(t, { upstream: before.url });
  const load = Array.from({ length: 20 }, async () => {
    for (let i = 0; i < 20; i++) t.equal((await ask(gateway.url)).status, 200);
  });
  for (let i = 0; i < 10; i++) {
    await gateway.gateway.reload(testConfig({ upstream: i % 2 === 0 ? after.url : before.url }));
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await Promise.all(load);
});

t.test("identity headers, and what a client may not send", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const { setCookie } = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"42"}}' });
  const headers = { cookie: cookiePair(setCookie[0]), "x-person": "forged" };
  await ask(gateway.url, { headers });
  t.match(app.received.at(-1)?.headers, { "x-user-id": "42", "x-person": "forged" });
  await gateway.gateway.reload(testConfig({ upstream: app.url, identity: { headers: { "X-Person": "/user/id" } } }));
  await ask(gateway.url, { headers });
  t.match(app.received.at(-1)?.headers, { "x-person": "42" });
  t.notOk("x-user-id" in (app.received.at(-1)?.headers ?? {}));
});

t.test("cookie secrets rotate without a logout; one that is taken out is not believed any more", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, ...cookieWith(SECRET) });
  const { setCookie } = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"42"}}' });
  const cookie = cookiePair(setCookie[0]);
  const userSeen = async () => {
    await ask(gateway.url, { headers: { cookie } });
    return app.received.at(-1)?.headers["x-user-id"];
  };
  await gateway.gateway.reload(testConfig({ upstream: app.url, ...cookieWith(OTHER_SECRET, SECRET) }));
  t.equal(await userSeen(), "42");
  await gateway.gateway.reload(testConfig({ upstream: app.url, ...cookieWith(OTHER_SECRET) }));
  t.equal(await userSeen(), "");
  const explained = await ask(`${gateway.adminUrl}/debug/explain`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ url: "http://a/", headers: { cookie } }),
  });
  t.match(explained.body, /signature/, "explain goes by what is in effect");
  t.notMatch(gateway.logText(), OTHER_SECRET);
});

t.test("a secret that was made up at the start stays for as long as none is configured", async (t) => {
  const app = await startApp(t);
  const session = { cookie: { name: "session", secure: false } };
  const gateway = await startGateway(t, { upstream: app.url, session });
  const { setCookie } = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"42"}}' });
  await gateway.gateway.reload(testConfig({ upstream: app.url, session: { ...session, idleTimeout: "5m" } }));
  await ask(gateway.url, { headers: { cookie: cookiePair(setCookie[0]) } });
  t.equal(app.received.at(-1)?.headers["x-user-id"], "42");
});

t.test("trusted proxies and the timeouts of sessions, also on connections that are open", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => agent.destroy());
  const addressSeen = async () => {
    const req = request(gateway.url, { agent, headers: { "x-forwarded-for": "192.0.2.7" } }).end();
    const [res] = (await once(req, "response")) as [IncomingMessage];
    res.resume();
    await once(res, "end");
    return { reused: req.reusedSocket, address: app.received.at(-1)?.headers["x-forwarded-for"] };
  };
  t.same(await addressSeen(), { reused: false, address: "127.0.0.1" });
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  await gateway.gateway.reload(testConfig({ upstream: app.url, listen }));
  t.same(await addressSeen(), { reused: true, address: "192.0.2.7, 127.0.0.1" });
  await gateway.gateway.reload(testConfig({ upstream: app.url }));
  t.same(await addressSeen(), { reused: true, address: "127.0.0.1" });

  const { cookie } = cookieWith(SECRET).session;
  await gateway.gateway.reload(testConfig({ upstream: app.url, session: { cookie, idleTimeout: "90s" } }));
  const { setCookie } = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  t.match(setCookie[0], /Max-Age=90/);
});

t.test("error pages; a folder that has none is refused, and the pages before stay", async (t) => {
  const folder = await temporaryFolder(t);
  const [pages, empty] = [join(folder, "pages"), join(folder, "empty")];
  await mkdir(pages);
  await mkdir(empty);
  await writeFile(join(pages, "error.html"), "<p>first</p>");
  const source = { read: () => testConfig(files.shift() ?? {}) };
  const files = [{ errors: { pages } }, { errors: { pages } }, { errors: { pages: empty } }];
  const gateway = await startGateway(t, {}, { source });
  const page = async () => (await ask(gateway.url, { headers: { accept: "text/html" } })).body;
  await gateway.gateway.reread("signal");
  t.match(await page(), "<p>first</p>");
  await writeFile(join(pages, "error.html"), "<p>second</p>");
  await gateway.gateway.reread("signal");
  t.match(await page(), "<p>second</p>");
  t.match(await gateway.gateway.reread("signal"), { result: "refused", problems: [/^errors\.pages: /] });
  t.match(await page(), "<p>second</p>");
  t.match(await gateway.metrics(), /^coatcheck_config_reloads_total\{result="refused"\} 1$/m);
});

t.test("certificate, TLS version and HSTS; TLS itself needs a restart", async (t) => {
  const folder = await temporaryFolder(t);
  const [one, two] = [makeCertificate(folder, "one"), makeCertificate(folder, "two")];
  const app = await startApp(t);
  const secure = (tls: object) => ({ upstream: app.url, listen: { host: "127.0.0.1", port: 0, tls } });
  const gateway = await startGateway(t, secure(one));
  const seen = async (maxVersion?: "TLSv1.2") => {
    const socket = connectTls({
      port: gateway.port,
      host: "127.0.0.1",
      rejectUnauthorized: false,
      ...(maxVersion && { maxVersion }),
    });
    await once(socket, "secureConnect");
    socket.write("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    const [head] = await once(socket.setEncoding("latin1"), "data");
    const name = socket.getPeerCertificate().subject.CN;
    socket.destroy();
    return { name, hsts: /strict-transport-security: (.*)\r/i.exec(head)?.[1] };
  };
  t.same(await seen(), { name: "one", hsts: undefined });
  const result = await gateway.gateway.reload(
    testConfig(secure({ ...two, minVersion: "1.3", hsts: { maxAge: "1d" }, http2: false })),
  );
  t.same(result.needsRestart, ["listen.tls.http2"]);
  t.same(await seen(), { name: "two", hsts: "max-age=86400" });
  await t.rejects(seen("TLSv1.2"));
  const key = { ...two, key: one.key };
  await t.rejects(gateway.gateway.reload(testConfig(secure(key))), {
    message: /^listen\.tls: .*is not the private key/,
  });
  t.same((await gateway.gateway.reload(testConfig({ upstream: app.url }))).needsRestart, ["listen.tls"]);
  t.match(await seen(), { name: "two" });
});

t.test("a certificate that was being read when another was configured does not come back", async (t) => {
  const folder = await temporaryFolder(t);
  const [one, two] = [makeCertificate(folder, "one"), makeCertificate(folder, "two")];
  const secure = (tls: object) => ({ listen: { host: "127.0.0.1", port: 0, tls } });
  const gateway = await startGateway(t, secure(one), { certificatePollMs: 20 });
  // Whoever reads a pipe waits for whoever writes.
  const pipe = join(folder, "pipe");
  t.equal(spawnSync("mkfifo", [pipe]).status, 0);
  const key = await readFile(one.key);
  await rename(pipe, one.key);
  const writer = await openFile(one.key, "w");
  await gateway.gateway.reload(testConfig(secure(two)));
  await writer.writeFile(key);
  await writer.close();
  const nameNow = async () => {
    const socket = connectTls({ port: gateway.port, host: "127.0.0.1", rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const name = socket.getPeerCertificate().subject.CN;
    socket.destroy();
    return name;
  };
  for (let i = 0; i < 20; i++) {
    t.equal(await nameNow(), "two");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
});

t.test("a WebSocket stays if it would be opened again, and is told to go if not", async (t) => {
  const [app, other] = [await startWebSocketApp(t), await startWebSocketApp(t)];
  const route = (path: string, more: object = {}) => ({
    match: { path },
    upstream: app.url,
    session: "optional",
    ...more,
  });
  const gateway = await startGateway(t, {
    routes: ["/stays", "/gone", "/moved", "/closed", "/guarded"].map((path) => route(path)),
  });
  const open = async (path: string) => {
    const client = new WebSocket(`${gateway.url}${path}`);
    const closed = once(client, "close");
    await once(client, "message");
    return { client, closed };
  };
  const stays = await open("/stays/here");
  const leaves = await Promise.all(["/gone", "/moved", "/closed", "/guarded", "/stays/but"].map(open));
  const changed = testConfig({
    routes: [
      // Other connections to the same place: this one is not among those that go.
      route("/stays", {
        upstream: { targets: [app.url], timeouts: { idle: "30s" } },
        websockets: { idleTimeout: "5m" },
      }),
      route("/stays/but", { session: "required" }),
      route("/moved", { upstream: other.url }),
      route("/closed", { websockets: false }),
      route("/guarded", { session: "required" }),
    ],
    identity: { headers: { "X-Person": "/user/id" } },
  });
  await gateway.gateway.reload(changed);
  for (const { closed } of leaves) {
    const [code, reason] = await closed;
    t.same([code, String(reason)], [1001, "route changed"]);
  }
  await until(async () => /^coatcheck_configs_in_use 1$/m.test(await gateway.metrics()));
  stays.client.send("still there?");
  t.equal(String((await once(stays.client, "message"))[0]), "still there?");
  await until(async () =>
    (await gateway.metrics()).includes('coatcheck_websockets_closed_total{reason="route-changed"} 5'),
  );
  stays.client.close();
  await stays.closed;
});

t.test("of targets that are long gone, nothing is left in the metrics", async (t) => {
  const gateway = await startGateway(t, { upstream: "http://127.0.0.1:1" });
  const counted = async () =>
    new Set(Array.from((await gateway.metrics()).matchAll(/server_port="(\d+)"/g), ([, port]) => Number(port)));
  for (let port = 1; port <= 15; port++) {
    const targets = [`http://127.0.0.1:${port}`, "http://127.0.0.1:99"];
    const upstream = { targets, health: { path: "/", interval: "10s" }, ejection: { failures: 1 } };
    await gateway.gateway.reload(testConfig({ routes: [{ upstream, session: "none" }] }));
    t.equal((await ask(gateway.url)).status, 502);
    await until(async () => (await counted()).has(port));
  }
  const left = await counted();
  for (const port of [1, 2, 3, 4]) t.notOk(left.has(port), `${port}`);
  for (const port of [10, 14, 15, 99]) t.ok(left.has(port), `${port}`);
});

t.test("of reloads at the same time, the last one counts", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const names = ["X-One", "X-Two", "X-Three"];
  const configs = names.map((name) => testConfig({ upstream: app.url, identity: { headers: { [name]: "/user/id" } } }));
  await Promise.all(configs.map((config) => gateway.gateway.reload(config)));
  await ask(gateway.url);
  t.ok("x-three" in (app.received.at(-1)?.headers ?? {}));
});

t.test("an upstream that comes back is kept, though its last request from before ends during the reload", async (t) => {
  const [app, other] = [await startSlowApp(t), await startSlowApp(t)];
  const dns = await startDns(t, []);
  dns.addresses = "silent";
  const gateway = await startGateway(t, { upstream: app.url });
  const slow = ask(`${gateway.url}/slow`);
  await until(() => app.held.length === 1);
  await gateway.gateway.reload(testConfig({ upstream: other.url }));
  const named = { targets: ["http://app.example:80"], resolve: { servers: [dns.address] } };
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional" },
    { match: { path: "/named" }, upstream: named, session: "optional" },
  ];
  const reload = gateway.gateway.reload(testConfig({ routes }));
  await until(() => dns.questions > 0);
  app.held[0]?.end();
  t.equal((await slow).status, 200);
  await until(async () => /^coatcheck_configs_in_use 1$/m.test(await gateway.metrics()));
  dns.addresses = ["127.0.0.1"];
  await reload;
  t.equal((await ask(gateway.url)).status, 200);
  await gateway.gateway.reload(testConfig({ upstream: other.url }));
  await until(() => app.connections.size === 0);
});

t.test("a gateway that is about to end does not change any more", async (t) => {
  const gateway = await startGateway(t, { shutdown: { delay: "10m" } }, { source: { read: () => testConfig({}) } });
  const closed = gateway.gateway.close({ delayMs: 500, timeoutMs: 1_000 });
  t.match(await gateway.gateway.reread("signal"), { result: "refused", problems: [/about to end/] });
  await closed;
});

t.test("what needs a restart are keys that there are, each kept as it was", async (t) => {
  const tls = { cert: "c", key: "k", http2: true, redirectFrom: 81 };
  const settings = settingsSchema.parse({ routes: [{ upstream: "http://127.0.0.1:9" }], listen: { tls } });
  for (const path of NEEDS_RESTART) {
    let at: unknown = settings;
    for (const name of path.split(".")) at = (at as Record<string, unknown> | undefined)?.[name];
    t.not(at, undefined, path);
  }
  const gateway = await startGateway(t, {});
  const different = testConfig({
    listen: { host: "0.0.0.0", port: 1, trustedProxies: ["10.0.0.0/8"] },
    admin: { port: 1, token: "a-token-that-is-long-enough-to-be-one" },
    store: "sqlite:./other.db",
    cache: { maxAge: "1s" },
    session: {
      absoluteTimeout: "24h",
      codec: "msgpack",
      encryptionKeys: ["a key that has at least 32 characters"],
      layout: "fields",
      idleTimeout: "1m",
      cookie: { name: "session", secure: false, secrets: [SECRET] },
    },
    observe: { log: { format: "pretty", level: "debug" } },
  });
  const result = await gateway.gateway.reload(different);
  t.same([...result.needsRestart].sort(), [
    "admin.port",
    "admin.token",
    "cache.maxAge",
    "listen.host",
    "listen.port",
    "observe.log.format",
    "session.absoluteTimeout",
    "session.codec",
    "session.encryptionKeys",
    "session.layout",
    "store",
  ]);
  t.same([...result.applied].sort(), ["listen.trustedProxies", "observe.log.level", "session.idleTimeout"]);
  t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 200);
});
