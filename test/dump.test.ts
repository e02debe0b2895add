/** The dump: what is in it, what is not in it whatever happens, and the ways to get one. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdir, readdir, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import t from "tap";
import type { Dump } from "../src/admin/dump.ts";
import { openDump } from "../src/cli/dump.ts";
import { VERSION } from "../src/version.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import { command, run } from "./support/command.ts";
import { startServer } from "./support/redis.ts";
import { eventually, type Teardown } from "./support/resources.ts";
import {
  freePort,
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  startUpstream,
  temporaryFolder,
} from "./support/servers.ts";

async function fetchDump({ adminUrl }: Pick<RunningGateway, "adminUrl">): Promise<Dump> {
  const response = await fetch(`${adminUrl}/debug/dump`);
  t.equal(response.status, 200);
  t.equal(response.headers.get("content-type"), "application/gzip");
  t.match(
    response.headers.get("content-disposition"),
    /^attachment; filename="coatcheck-dump-[\dT.-]+Z-\d+\.json\.gz"$/,
  );
  return openDump(new Uint8Array(await response.arrayBuffer()), "the dump");
}

const dumpsIn = async (folder: string) => (await readdir(folder)).filter((name) => name.startsWith("coatcheck-dump-"));

t.test("a dump says what was built, set, seen and logged", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, observe: { log: { level: "fatal" } } });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  await ask(`${gateway.url}/x`, { headers: { cookie: cookiePair(started.setCookie[0]) } });
  gateway.gateway.observer.log.unexpected(new TypeError("a message that may hold anything"));

  const dump = await fetchDump(gateway);
  t.match(dump, {
    format: "coatcheck-dump",
    formatVersion: 1,
    build: {
      version: VERSION,
      node: process.versions.node,
      pid: process.pid,
      draining: false,
      command: [],
      dependencies: { ioredis: /^\d+\.\d+\.\d+/, zod: /^\d+\.\d+\.\d+/ },
    },
    settings: {
      session: { idleTimeout: "30m", cookie: { name: "session", secrets: [`*** (${SECRET.length} characters)`] } },
      routes: [
        {
          match: { path: "/" },
          upstream: { targets: [{ url: app.url, weight: 1 }] },
          session: "optional",
          write: ["user", "cart"],
        },
      ],
    },
    observe: { log: { level: "fatal", access: "all" }, traces: { ratio: 0.01 } },
    store: { kind: "memory", ok: true, warnings: [] },
    cache: null,
    metrics: /^coatcheck_session_events_total\{event="created"\} 1$/m,
  });
  const { memory, machine, handles, eventLoop, cpu, heapSpaces, openFiles } = dump.runtime;
  t.ok(memory.heapUsedBytes > 1e6 && memory.heapUsedBytes < memory.heapLimitBytes && memory.rssBytes > 1e7);
  t.ok(machine.cpus >= 1 && machine.memoryBytes > machine.freeMemoryBytes);
  t.ok(eventLoop.utilization > 0 && eventLoop.utilization <= 1 && eventLoop.delayMaxMs >= eventLoop.delayP50Ms);
  t.ok(cpu.userSeconds > 0 && heapSpaces.some(({ name }) => name === "old_space"));
  t.ok((handles.TCPServerWrap ?? 0) >= 2, JSON.stringify(handles));
  if (process.platform === "linux") t.ok((openFiles ?? 0) > 10);

  t.same(
    dump.events.map(({ event }) => event),
    ["error.unexpected", "session.created", "gateway.started"],
    "whatever the level of the log; no access lines; newest first",
  );
  t.match(dump.events[0], { level: "error", "exception.type": "TypeError", "exception.stacktrace": /dump\.test\.ts/ });
  t.notMatch(JSON.stringify(dump), "may hold anything");

  t.same(Object.keys(dump.exchanges).slice(0, 3), ["recent", "slow", "errors"]);
  t.match(dump.exchanges.recent, [
    { request: { path: "/x" }, session: { outcome: "hit" } },
    { request: { path: "/start" } },
  ]);
  // What the admin API tells in words it makes of the record.
  const told: Record<string, unknown>[] = JSON.parse(JSON.stringify(await gateway.exchanges()));
  t.same(
    dump.exchanges.recent?.slice(0, 2),
    told.slice(0, 2).map(({ reason: _, steps: __, ...record }) => record),
  );
});

t.test("rings are kept whole, and events of requests do not wash those of the gateway away", async (t) => {
  const gateway = await startGateway(t, { observe: { recorder: { exchanges: 1200 } } });
  const { log } = gateway.gateway.observer;
  log.event("warn", "store.resting", "one that matters", { servers: 1 });
  for (let i = 0; i < 1000; i++) log.event("info", "session.created", "session created", { trace_id: String(i) });
  log.event("debug", "store.connection-ready", "not kept");
  const { events } = await fetchDump(gateway);
  t.equal(events.filter(({ event }) => event === "session.created").length, 250);
  t.ok(events.some(({ event }) => event === "store.resting"));
  t.notOk(events.some(({ level }) => level === "debug"));
});

t.test("a store that hangs does not hold the dump, and Redis is looked at", async (t) => {
  const redis = await startRedis(t);
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const cookie = cookiePair(started.setCookie[0]);
  await eventually("the near cache is on", async () => (await fetchDump(gateway)).cache?.feed === "tracking");
  await eventually("a session is cached", async () => {
    await ask(gateway.url, { headers: { cookie } });
    return (await fetchDump(gateway)).cache?.entries === 1;
  });
  const before = await fetchDump(gateway);
  t.match(before.store, { kind: "redis", ok: true, detail: /answered in/ });
  t.ok(before.store.facts.some(({ name, value }) => name === "version" && /^\d/.test(value)));
  t.ok(before.store.facts.some(({ name }) => name === "memory"));
  t.ok((before.cache?.bytes ?? 0) > 100);

  redis.freeze();
  const startedMs = performance.now();
  const during = await fetchDump(gateway);
  t.ok(performance.now() - startedMs < 9_000, `${performance.now() - startedMs} ms`);
  t.match(during.store, { kind: "redis", ok: false });
  await redis.kill();
  const after = await fetchDump(gateway);
  t.match(after.store, { ok: false, warnings: [/ECONNREFUSED/] });
  t.match(after.cache?.feed, "lost");
  t.ok(after.events.some(({ event }) => event === "store.down"));
});

t.test("two who ask at the same time get the same, and a gateway that is being shut down answers too", async (t) => {
  const folder = await temporaryFolder(t);
  const gateway = await startGateway(t, { shutdown: { delay: "2s" }, observe: { dumps: { folder } } });
  const [one, two] = await Promise.all([fetchDump(gateway), fetchDump(gateway)]);
  t.equal(one.takenAt, two.takenAt);
  const closed = gateway.gateway.close();
  const draining = await fetchDump(gateway);
  t.equal(draining.build.draining, true);
  t.equal(draining.events[0]?.event, "gateway.draining");
  await gateway.gateway.writeDump();
  t.equal((await dumpsIn(folder)).length, 1);
  await closed;
});

t.test("a message of Redis that repeats a command is cut before the key", async (t) => {
  const redis = await startServer(t, { config: ["rename-command HMGET ABSENT"] });
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: redis.url });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  const cookie = cookiePair(started.setCookie[0]) || `session=${"A".repeat(43)}.${"B".repeat(43)}`;
  const token = cookie.slice("session=".length).split(".")[0] ?? "";
  await ask(gateway.url, { headers: { cookie } });
  const dump = await fetchDump(gateway);
  const text = JSON.stringify(dump.exchanges) + gateway.logText();
  t.match(text, /unknown command/i, "Redis did refuse");
  t.notMatch(text, "args beginning with");
  t.notMatch(text, createHash("sha256").update(token).digest("base64url"));
});

t.test("what a store of somebody else's says of its failures stays in the log", async (t) => {
  const folder = await temporaryFolder(t);
  const file = join(folder, "store.mjs");
  const refuse = "() => { throw new Error(\"duplicate entry 'ada@planted.example' for key\") }";
  const names = "find create commit touch destroy byUser scan check get getAll size set setAll remove clear".split(" ");
  const methods = names.map((name) => `${name}: ${refuse}`).join(", ");
  await writeFile(file, `export default () => ({ kind: "theirs", ${methods}, close() {} });`);
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: `module:${file}?password=planted-password` });
  const cookie = await signedCookie();
  t.equal((await ask(gateway.url, { headers: { cookie } })).status, 503);
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  t.equal(login.status, 503);
  const dump = await fetchDump(gateway);
  t.match(
    dump.events.filter(({ event }) => event === "write-back.refused"),
    [{ reason: "failed", error_message: "the session store gave no answer; the log says why" }],
  );
  const text = JSON.stringify(dump);
  t.match(text, "the session store gave no answer; the log says why");
  t.notMatch(text, "planted");
  t.match(gateway.logText(), "ada@planted.example");
});

/** A cookie that the gateways of these tests believe. */
async function signedCookie(): Promise<string> {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  return cookiePair(started.setCookie[0]);
}

t.test("SIGUSR2: a file for its owner alone, one at a time, and no more than ten an hour", async (t) => {
  const folder = await temporaryFolder(t);
  const gateway = await startGateway(t, { observe: { dumps: { folder } } });
  const write = () => gateway.gateway.writeDump();
  const lines = (event: string) => gateway.logs.filter((line) => line.event === event);

  await Promise.all([write(), write()]);
  t.match(lines("dump.refused"), [{ level: "warn", msg: /one is being written/ }]);
  const [name = ""] = await dumpsIn(folder);
  const path = join(folder, name);
  const { mode, size } = await stat(path);
  t.equal(mode & 0o777, 0o600);
  t.match(lines("dump.written"), [{ level: "info", path, bytes: size }]);
  t.match(await openDump(await readFile(path), path), { build: { pid: process.pid } });

  for (let i = 1; i < 10; i++) await writeFile(join(folder, name.replace("Z", `${i}Z`)), "");
  await writeFile(join(folder, name.replace(/-\d+\.json/, "-1.json")), "of another process");
  await write();
  t.match(lines("dump.refused").at(-1), {
    msg: /there are 10 of this process from the last hour; move them away/,
    folder,
  });
  t.equal((await dumpsIn(folder)).length, 11);
  const hourAgo = Date.now() / 1000 - 3601;
  await utimes(path, hourAgo, hourAgo);
  await write();
  t.equal((await dumpsIn(folder)).length, 12);
});

t.test("SIGUSR2: a folder that is missing, or is none, is told in the log; the gateway goes on", async (t) => {
  const folder = await temporaryFolder(t);
  await writeFile(join(folder, "file"), "");
  for (const [name, problem] of [
    ["missing", "the folder is not there"],
    ["file", "the folder is a file"],
  ]) {
    const gateway = await startGateway(t, { observe: { dumps: { folder: join(folder, name ?? "") } } });
    await gateway.gateway.writeDump();
    t.match(gateway.logs.at(-1), { level: "error", event: "dump.failed", msg: `no dump: ${problem}` });
    t.equal((await ask(`${gateway.adminUrl}/livez`)).status, 200);
  }
});

const MAIN = fileURLToPath(new URL("../src/main.ts", import.meta.url));

t.test("SIGUSR2: a disk that is full leaves no half of a file", async (t) => {
  const folder = await temporaryFolder(t);
  const config = join(folder, "coatcheck.yaml");
  await mkdir(join(folder, "dumps"));
  await writeFile(
    config,
    `listen: { host: 127.0.0.1, port: 0 }\nadmin: { port: 0 }\nstore: "memory:"\nroutes: [{ upstream: "http://127.0.0.1:9" }]\nobserve: { dumps: { folder: ${folder}/dumps } }\n`,
  );
  // No file may have more than so many blocks: as good as a full disk, and needs no disk. tap would write files too.
  const child = spawn(
    "sh",
    ["-c", 'ulimit -f 2; unset NODE_OPTIONS; exec "$0" "$@"', process.execPath, MAIN, "--config", config],
    {
      stdio: ["ignore", "pipe", "inherit"],
      env: { PATH: process.env.PATH },
    },
  );
  const { logs, end } = follow(t, child);
  await until(() => logs().includes("gateway.started"));
  child.kill("SIGUSR2");
  await until(() => logs().includes("dump.failed"));
  t.match(logs(), /"msg":"no dump: (the disk is full|the file would be larger than the system allows)"/);
  t.same(await readdir(join(folder, "dumps")), []);
  child.kill("SIGTERM");
  t.equal(await end, 0);
});

function follow(t: Teardown, child: ChildProcess) {
  let text = "";
  child.stdout?.setEncoding("utf8").on("data", (piece) => {
    text += piece;
  });
  const end = once(child, "close").then(([code, signal]) => code ?? signal);
  t.teardown(async () => {
    child.kill("SIGKILL");
    await end;
  });
  return { logs: () => text, end };
}

/**
 * Everything that must not be in a dump has this in it, and a word that says what it is; it has 32 characters and more, as
 * secrets must.
 */
const planted = (what: string) => `Planted.${what}.Planted.${what}.Planted.~1`;
const PLANTED = {
  cookieSecret: planted("cookie-secret"),
  oldCookieSecret: planted("old-cookie-secret"),
  adminToken: planted("admin-token"),
  encryptionKey: planted("encryption-key"),
  redisPassword: planted("redis-password"),
  collectorHeader: planted("collector-header"),
  environment: planted("environment"),
  fileName: planted("file-name"),
  otherCookie: planted("other-cookie"),
  badCookie: planted("bad-cookie"),
  authorization: planted("authorization"),
  query: planted("query"),
  header: planted("header"),
  forgedIdentity: planted("forged-identity"),
  requestBody: planted("request-body"),
  responseBody: planted("response-body"),
  responseHeader: planted("response-header"),
  responseCookie: planted("response-cookie"),
  malformedCommand: planted("malformed-command"),
  userId: planted("user-id"),
  userName: planted("user-name"),
  userEmail: `${planted("user-email")}@example.org`,
  role: planted("role"),
  attribute: planted("attribute"),
};

/** The value as it might have been written down: as it is, percent-encoded, and in base64 wherever it begins there. */
function spellings(value: string): string[] {
  const octets = Buffer.from(value);
  const hexadecimal = [...octets].map((octet) => octet.toString(16).padStart(2, "0"));
  const shifted = [0, 1, 2].flatMap((shift) => {
    // What is shared with neighbours at either end is cut away.
    const text = Buffer.concat([Buffer.alloc(shift), octets])
      .toString("base64")
      .replaceAll("=", "");
    const own = text.slice(shift === 0 ? 0 : shift + 1, -2);
    return [own, own.replaceAll("+", "-").replaceAll("/", "_")];
  });
  return [
    value,
    encodeURIComponent(value),
    hexadecimal.map((pair) => `%${pair}`).join(""),
    hexadecimal.map((pair) => `%${pair.toUpperCase()}`).join(""),
    hexadecimal.join(""),
    ...shifted,
  ];
}

function leaks(text: string, secrets: Readonly<Record<string, string>>): string[] {
  const lower = text.toLowerCase();
  return Object.entries(secrets)
    .filter(([, value]) => spellings(value).some((spelling) => lower.includes(spelling.toLowerCase())))
    .map(([what]) => what);
}

t.test("nothing that was planted anywhere is in a dump or a profile, by whichever way it is taken", async (t) => {
  const p = PLANTED;
  t.same(
    leaks(`x${Buffer.from(`ab${p.header}c`).toString("base64")}`, p),
    ["header"],
    "the search finds what is there",
  );
  const redis = await startRedis(t, { password: p.redisPassword });
  const folder = await temporaryFolder(t);
  const collectorPort = await freePort();
  const held: (() => void)[] = [];
  const upstream = await startUpstream(t, (received, _req, res) => {
    res.setHeader("x-their-secret", p.responseHeader);
    res.setHeader("set-cookie", `theirs=${p.responseCookie}`);
    const [path = ""] = received.url.split("?");
    if (path === "/start")
      res.setHeader(
        "x-session-start",
        JSON.stringify({
          user: { id: p.userId, name: p.userName, email: p.userEmail, roles: [p.role] },
          data: { cart: p.attribute },
        }),
      );
    if (path === "/malformed") res.setHeader("x-session-set", `not JSON: ${p.malformedCommand}`);
    if (path === "/broken") return void res.destroy();
    if (path === "/hold") return void held.push(() => res.end());
    res.end(p.responseBody);
  });
  const [port, adminPort] = [await freePort(), await freePort()];
  const config = join(folder, `${p.fileName}.yaml`);
  await writeFile(
    config,
    JSON.stringify({
      listen: { host: "127.0.0.1", port },
      admin: { port: adminPort, token: p.adminToken },
      store: redis.url,
      session: {
        cookie: { name: "session", secure: false, secrets: [p.cookieSecret, p.oldCookieSecret] },
        encryptionKeys: [p.encryptionKey, "plaintext"],
      },
      routes: [{ upstream: upstream.url, session: "optional", write: ["user", "cart"] }],
      observe: { dumps: { folder }, traces: { ratio: 1 }, log: { level: "debug" } },
    }),
  );
  const environment = {
    SOME_PASSWORD: p.environment,
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collectorPort}`,
    OTEL_EXPORTER_OTLP_HEADERS: `authorization=${p.collectorHeader}`,
    OTEL_RESOURCE_ATTRIBUTES: `deployment.key=${p.environment}`,
  };
  const gateway = command(t, ["serve", `--config=${config}`], environment);
  await eventually("the gateway is ready", () => gateway.stdout().includes("gateway.started"));
  const [url, adminUrl] = [`http://127.0.0.1:${port}`, `http://127.0.0.1:${adminPort}`];
  const headersWith = (cookie: string) => ({
    cookie: `other=${p.otherCookie}; ${cookie}`,
    authorization: `Bearer ${p.authorization}`,
    "x-header": p.header,
    "x-user-id": p.forgedIdentity,
    X_User_Id: p.forgedIdentity,
  });
  const send = (path: string, cookie: string, method = "POST") =>
    ask(`${url}${path}?q=${encodeURIComponent(p.query)}`, {
      method,
      headers: headersWith(cookie),
      ...(method === "POST" && { body: p.requestBody }),
    });
  const started = await send("/start", `session=${p.badCookie}`);
  const cookie = cookiePair(started.setCookie.find((field) => field.startsWith("session=")));
  const [token = "", signature = ""] = cookie.slice("session=".length).split(".");
  t.equal(token.length, 43);
  const secrets = { ...p, token, signature, key: createHash("sha256").update(token).digest("base64url") };

  const everyKind = async (cookie: string) => {
    for (const path of ["/x", "/malformed", "/broken", "/start"]) await send(path, cookie).catch(() => {});
    // Two cookies, one of them bad; a request that is refused; one that nobody can parse.
    await send("/x", `${cookie}; session=${p.badCookie}`);
    await send("/%2e%2e/x", cookie, "GET");
    await send("//x", cookie, "GET");
  };
  const hold = () => {
    const req = request(`${url}/hold?q=${p.query}`, { method: "POST", headers: headersWith(cookie), agent: false });
    req.on("error", () => {});
    req.end(p.requestBody);
    t.teardown(() => req.destroy());
  };

  const ways = {
    "admin API": async () => {
      const response = await fetch(`${adminUrl}/debug/dump`, { headers: { authorization: `Bearer ${p.adminToken}` } });
      return Buffer.from(await response.arrayBuffer());
    },
    SIGUSR2: async () => {
      const before = await dumpsIn(folder);
      gateway.child.kill("SIGUSR2");
      const count = () => gateway.stdout().split('"dump.written"').length;
      const told = count();
      await eventually("the dump is written", () => count() > told);
      const name = (await dumpsIn(folder)).find((it) => !before.includes(it)) ?? "";
      return readFile(join(folder, name));
    },
    "command line": async () => {
      const out = join(folder, `taken-${performance.now()}.json.gz`);
      const taken = await run(t, ["dump", "--admin", adminUrl, "--out", out], { COATCHECK_ADMIN_TOKEN: p.adminToken });
      t.match(taken, { status: 0, stderr: "" });
      const opened = await run(t, ["dump", "--open", out]);
      t.equal(opened.status, 0);
      t.same(leaks(taken.stdout + opened.stdout, secrets), []);
      return readFile(out);
    },
  };
  const inspect = async (when: string, outcome: string) => {
    for (const [way, take] of Object.entries(ways)) {
      const content = await take();
      const text = gunzipSync(content).toString();
      const dump = await openDump(content, way);
      t.equal(dump.exchanges.recent?.[0]?.session.outcome, outcome, `${when}: the requests are in it`);
      t.same(leaks(text, secrets), [], `${when}, by ${way}`);
      t.same(dump.build.command, ["serve", "--config"]);
    }
  };

  await everyKind(cookie);
  hold();
  await until(() => held.length === 1);
  await send("/last", cookie);
  await inspect("store up, requests in flight", "hit");

  for (const [path, body] of [
    ["profile", { seconds: 1 }],
    ["heap", { seconds: 1 }],
  ] as const) {
    const response = fetch(`${adminUrl}/debug/${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${p.adminToken}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    await everyKind(cookie);
    const text = await (await response).text();
    t.match(text, "callFrame");
    t.same(leaks(text, secrets), [], path);
  }

  await redis.kill();
  await eventually("the outage is felt", async () => (await send("/last", cookie)).status === 503);
  await everyKind(cookie);
  await send("/last", cookie);
  await inspect("store down", "unavailable");
  for (const release of held) release();
});
