/** What is in the log: lines and fields as listed, sampled and bounded, and nothing that commands a terminal. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, mkdirSync, openSync, readSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import t from "tap";
import { WebSocket } from "ws";
import { loadConfig } from "../src/config/load.ts";
import { Exchange } from "../src/core/exchange.ts";
import { renderAccessLine } from "../src/observe/access-line.ts";
import { BatchedOutput } from "../src/observe/batched-output.ts";
import {
  ACCESS_FIELDS,
  EVENTS,
  type EventDefinition,
  type EventName,
  type Fields,
  LINE_FIELDS,
  REQUEST_FIELDS,
} from "../src/observe/events.ts";
import { renderPretty } from "../src/observe/pretty.ts";
import { Throttle } from "../src/observe/throttle.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { makeCertificate } from "./support/certificates.ts";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import { COMPILE_CACHE, command } from "./support/command.ts";
import { startDns } from "./support/dns.ts";
import { eventually } from "./support/resources.ts";
import {
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  startUpstream,
  type Teardown,
  temporaryFolder,
} from "./support/servers.ts";
import { FAILING, RESETTING, TestTarget, WELL } from "./support/targets.ts";
import { startWebSocketApp } from "./support/websockets.ts";
import { startWorkers } from "./support/workers.ts";

type Line = Readonly<Record<string, unknown>>;

/** What a line has that it should not have, and what it lacks. */
function wrongFields(line: Line, ...lists: readonly Fields[]): string[] {
  const listed = lists.flatMap((list) => Object.keys(list));
  const known = new Set(listed.map((name) => name.replace("?", "")));
  return [
    ...Object.keys(line)
      .filter((name) => !known.has(name))
      .map((name) => `${name} is not listed`),
    ...listed.filter((name) => !name.endsWith("?") && !(name in line)).map((name) => `${name} is not there`),
  ];
}

function wrongIn(line: Line): string[] {
  if (line.event === "http.access") return wrongFields(line, LINE_FIELDS, REQUEST_FIELDS, ACCESS_FIELDS);
  const definition: EventDefinition | undefined = EVENTS[line.event as EventName];
  if (definition === undefined) return [`${line.event} is not listed`];
  const levels = (definition.levels as readonly unknown[]).includes(line.level) ? [] : [`level ${line.level}`];
  const ofRequest = definition.request === "always" || (definition.request === "sometimes" && "trace_id" in line);
  return [...levels, ...wrongFields(line, LINE_FIELDS, definition.fields, ...(ofRequest ? [REQUEST_FIELDS] : []))];
}

const login = (gateway: RunningGateway, cookie = "", user = "1") =>
  ask(`${gateway.url}/start`, { method: "POST", body: `{"user":{"id":"${user}"}}`, headers: cookie ? { cookie } : {} });
const cookieOf = (reply: Awaited<ReturnType<typeof login>>) => cookiePair(reply.setCookie[0]);
const accessLines = (gateway: RunningGateway) => gateway.logs.filter(({ event }) => event === "http.access");
const events = (gateway: RunningGateway, event: EventName) => gateway.logs.filter((line) => line.event === event);

const SESSION = { cookie: { name: "session", secure: false, secrets: [SECRET] } };

/** Events that other tests bring about. */
const ELSEWHERE: readonly EventName[] = ["config.nothing-to-reload", "traces.down", "traces.up", "gateway.abandoned"];

/** Sessions of every kind of end, with a clock that goes on when it is told to. */
async function livesOfSessions(t: Teardown): Promise<Line[]> {
  const app = await startApp(t);
  let aheadMs = 0;
  const now = () => Date.now() + aheadMs;
  const session = { ...SESSION, bind: "user-agent", maxPerUser: 2, idleTimeout: "10m", absoluteTimeout: "15m" };
  const gateway = await startGateway(t, { upstream: app.url, session }, { now });
  const visit = (cookie: string, headers = {}) => ask(gateway.url, { headers: { cookie, ...headers } });
  const end = (cookie: string, scope: string) =>
    ask(`${gateway.url}/end`, { method: "POST", body: scope, headers: { cookie } });

  const before = cookieOf(await login(gateway));
  const after = cookieOf(await login(gateway, before));
  await visit(after, { "user-agent": "another" });
  aheadMs = 11_000;
  await visit(before); // replaced
  await end(after, "this");
  const [first, second] = [cookieOf(await login(gateway)), cookieOf(await login(gateway))];
  await login(gateway); // the first is evicted
  await visit(first);
  await end(second, "all");
  const idle = cookieOf(await login(gateway));
  aheadMs += 10 * 60_000;
  await visit(idle);
  const absolute = cookieOf(await login(gateway));
  aheadMs += 9 * 60_000;
  const touches = async () =>
    /operation="touch",status="touched",store="memory"\} (\d+)/.exec(await gateway.metrics())?.[1];
  const touchesBefore = await touches();
  await visit(absolute);
  await until(async () => (await touches()) !== touchesBefore);
  aheadMs += 7 * 60_000;
  await visit(absolute);
  await login(gateway, "", "2");
  await ask(`${gateway.adminUrl}/sessions?user=2`, { method: "DELETE" });
  return gateway.logs;
}

async function refusedVerifications(t: Teardown): Promise<Line[]> {
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  const gateway = await startGateway(t, { listen, forwardAuth: {}, routes: [{}] });
  for (const uri of ["/", "/../", "/%2e%2e"])
    await ask(`${gateway.url}/verify`, { headers: { "x-forwarded-host": "a", "x-forwarded-uri": uri } });
  return gateway.logs;
}

async function refusedWriteBacks(t: Teardown): Promise<Line[]> {
  const waiting: (() => void)[] = [];
  const fields: Record<string, string[]> = {
    "/start": ["X-Session-Start", '{"user":{"id":"1"},"data":{"cart":[]}}'],
    "/malformed": ["X-Session-Set", "{"],
    "/dropped": ["X-Session-Set", '{"cart":1,"isAdmin":"hunter2"}'],
    "/without": ["X-Session-Start", "{}", "X-Session-End", "this"],
    "/conflict": ["X-Session-Set", '{"cart":[1]}'],
    "/conflict?2": ["X-Session-Set", '{"cart":[2]}'],
  };
  const app = await startUpstream(t, (received, _req, res) => {
    res.writeHead(200, fields[received.url] ?? []);
    if (!received.url.startsWith("/conflict")) return void res.end();
    waiting.push(() => res.end());
    if (waiting.length === 2) for (const finish of waiting.splice(0)) finish();
  });
  class Store extends MemoryStore {
    isDown = false;
    override setAll(...given: Parameters<MemoryStore["setAll"]>) {
      if (this.isDown) throw new Error("away");
      return super.setAll(...given);
    }
  }
  const store = new Store();
  const route = { upstream: app.url, session: "optional" };
  const routes = [
    { ...route, write: ["user", "cart"] },
    { ...route, match: { path: "/without" } },
  ];
  const gateway = await startGateway(t, { routes, session: SESSION }, { store });
  const cookie = cookiePair((await ask(`${gateway.url}/start`)).setCookie[0]);
  const visit = (path: string) => ask(gateway.url + path, { headers: { cookie } });
  for (const path of ["/malformed", "/dropped", "/without"]) await visit(path);
  await Promise.all([visit("/conflict"), visit("/conflict?2")]);
  store.isDown = true;
  await visit("/dropped");
  t.teardown(() => store.close());
  return gateway.logs;
}

async function storeWithTroubles(t: Teardown): Promise<Line[]> {
  const redis = await startRedis(t);
  const observe = { log: { level: "debug" } };
  const gateway = await startGateway(t, {
    store: redis.url,
    session: { cookie: { secure: false, name: "session" } },
    observe,
  });
  await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  const seen = (event: EventName) => eventually(event, () => events(gateway, event).at(0));
  await redis.kill();
  await eventually("resting", async () => {
    await login(gateway);
    await fetch(`${gateway.adminUrl}/readyz`);
    return events(gateway, "store.resting").length > 0;
  });
  await seen("store.down");
  await redis.start();
  await eventually("up again", async () => (await fetch(`${gateway.adminUrl}/readyz`)).status === 200);
  await seen("store.up");
  gateway.gateway.observer.log.unexpected(new TypeError("nobody thought of it"));
  await gateway.gateway.close();
  return gateway.logs;
}

async function renewedCertificates(t: Teardown): Promise<Line[]> {
  const folder = await temporaryFolder(t);
  const tls = makeCertificate(folder, "used");
  const gateway = await startGateway(
    t,
    { admin: { port: 0, tls }, listen: { host: "127.0.0.1", port: 0, tls: { ...tls, redirectFrom: 0 } } },
    { certificatePollMs: 20 },
  );
  makeCertificate(folder, "used");
  await eventually("replaced", () => events(gateway, "certificate.replaced").at(0));
  makeCertificate(folder, "used", { days: -1 });
  await eventually("refused", () => events(gateway, "certificate.refused").at(0));
  return gateway.logs;
}

async function dumps(t: Teardown): Promise<Line[]> {
  const folder = join(await temporaryFolder(t), "dumps");
  mkdirSync(folder);
  const gateway = await startGateway(t, { observe: { dumps: { folder } } });
  for (let i = 0; i < 11; i++) await gateway.gateway.writeDump();
  await rm(folder, { recursive: true });
  await gateway.gateway.writeDump();
  return gateway.logs;
}

async function watches(t: Teardown): Promise<Line[]> {
  const gateway = await startGateway(t, {});
  const watch = (method: string, query: string, body?: string) =>
    ask(`${gateway.adminUrl}/debug/watch${query}`, {
      method,
      ...(body && { body, headers: { "content-type": "application/json" } }),
    });
  await watch("POST", "", '{"handle":"aaaaaaaaaaaa"}');
  await watch("DELETE", "?handle=aaaaaaaaaaaa");
  await watch("POST", "", '{"user":"hunter2","for":"1s"}');
  await eventually("the end of the watch", () => events(gateway, "watch.ended").length === 2);
  return gateway.logs;
}

async function reloads(t: Teardown): Promise<Line[]> {
  const route = { upstream: "http://127.0.0.1:9" };
  const files: unknown[] = [{ routes: [route] }, {}];
  const running = await startGateway(t, {}, { source: { read: () => loadConfig(files.shift(), {}).config } });
  const { gateway } = running;
  gateway.observer.settings.adjust({ log: { level: "debug" } }, 60_000);
  await gateway.reread("signal");
  await gateway.reread("signal");
  return running.logs;
}

/** One is killed, its successor cannot start, and then they are told to end. */
async function livesOfWorkers(t: Teardown): Promise<Line[]> {
  const pages = join(await temporaryFolder(t), "pages");
  mkdirSync(pages);
  writeFileSync(join(pages, "error.html"), "<p>sorry</p>");
  const gateway = await startWorkers(t, { errors: { pages } });
  await rm(pages, { recursive: true });
  process.kill(gateway.pidOf(1), "SIGKILL");
  await until(() => gateway.events("worker.exited").length === 2);
  gateway.running.child.kill("SIGTERM");
  await gateway.running.ended;
  return gateway.logs();
}

/** An application whose addresses fail one after the other, and whose name cannot be resolved any more. */
async function troubledTargets(t: Teardown): Promise<Line[]> {
  const target = await TestTarget.start(t);
  const dns = await startDns(t, ["127.0.0.1", "127.0.0.2"]);
  const upstream = {
    targets: [`http://app.example:${target.port}`],
    resolve: { servers: [dns.address] },
    health: { path: "/healthz", interval: "100ms", unhealthyAfter: 1, healthyAfter: 1 },
    ejection: { failures: 1, duration: "100ms" },
    retries: false,
  };
  const gateway = await startGateway(t, { routes: [{ upstream, session: "none" }] });
  const seen = (event: EventName) => until(() => events(gateway, event).length > 0);
  // Nobody listens at the second address.
  await seen("upstream.ejected");
  target.behaviour = (req, res) => (req.url === "/healthz" ? WELL : RESETTING)(req, res);
  await until(async () => (await ask(gateway.url)) && events(gateway, "upstream.spared").length > 0);
  const second = await TestTarget.start(t, { port: target.port, address: "127.0.0.2" });
  await until(async () => (await ask(gateway.url)) && events(gateway, "upstream.ejected").some((line) => line.for_s));
  target.behaviour = FAILING;
  second.behaviour = FAILING;
  await seen("upstream.panic");
  target.behaviour = WELL;
  await seen("upstream.panic-over");
  dns.addresses = undefined;
  await seen("upstream.resolve-failed");
  return gateway.logs;
}

async function openWebSocket(t: Teardown): Promise<Line[]> {
  const app = await startWebSocketApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const cookie = cookiePair(
    (await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' })).setCookie[0],
  );
  for (const headers of [{}, { cookie }]) {
    const client = new WebSocket(gateway.url, { headers });
    await once(client, "message");
    client.close();
  }
  await until(() => events(gateway, "websocket.closed").length === 2);
  return gateway.logs;
}

async function spoofAttempt(t: Teardown): Promise<Line[]> {
  const app = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: app.url });
  await ask(gateway.url, { headers: { "x-user-id": "1" } });
  await raw(gateway.port, "nonsense\r\n\r\n");
  gateway.gateway.observer.log.unexpected(
    "a text",
    new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "t", spanId: "s" }),
  );
  return gateway.logs;
}

async function tooMany(t: Teardown): Promise<Line[]> {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, {
    store: redis.url,
    limits: { connections: { perAddress: 2 }, requests: { perAddress: { rate: "1000/s" } } },
  });
  const has = (event: string) => gateway.logs.some((line) => line.event === event);
  const sockets = [1, 2, 3].map(() => connect(gateway.port, "127.0.0.1").on("error", () => {}));
  await eventually("a connection is refused", () => has("connections.refused"));
  for (const socket of sockets) socket.destroy();
  // A connection is one too many until the gateway has seen that those have ended.
  const asked = (event: string) =>
    eventually(event, async () => {
      await ask(gateway.url).catch(() => {});
      return has(event);
    });
  await redis.kill();
  await asked("limits.fallback");
  await redis.start();
  await asked("limits.shared");
  return gateway.logs;
}

t.test("every event that is written is listed with its fields, and every listed event is written", async (t) => {
  const lines = (
    await Promise.all([
      livesOfSessions(t),
      refusedVerifications(t),
      refusedWriteBacks(t),
      storeWithTroubles(t),
      renewedCertificates(t),
      spoofAttempt(t),
      dumps(t),
      watches(t),
      reloads(t),
      openWebSocket(t),
      livesOfWorkers(t),
      troubledTargets(t),
      tooMany(t),
    ])
  ).flat();
  for (const line of lines) t.same(wrongIn(line), [], JSON.stringify(line));
  const written = new Set(lines.map(({ event }) => event));
  const missing = Object.keys(EVENTS).filter((event) => !written.has(event));
  t.same(missing, ELSEWHERE);
  t.same(
    Object.entries(EVENTS as Record<string, EventDefinition>)
      .flatMap(([event, { fields }]) => Object.keys(fields).map((field) => `${event} ${field.replace("?", "")}`))
      .filter((each) => !ELSEWHERE.some((event) => each.startsWith(`${event} `)))
      .filter(
        (each) =>
          !lines.some((line) => each.startsWith(`${line.event} `) && each.slice(String(line.event).length + 1) in line),
      ),
    [],
    "every field has been seen",
  );
  t.notMatch(JSON.stringify(lines), /hunter2/);
});

t.test("the life of sessions can be followed from line to line", async (t) => {
  const lines = (await livesOfSessions(t)).filter(({ event }) => String(event).startsWith("session."));
  const [created, rotated, mismatch, replaced, ended] = lines;
  t.match(created, { event: "session.created", level: "info", "client.address": "127.0.0.1", "http.route": "*/" });
  t.match(rotated, { event: "session.rotated", previous_handle: created?.handle });
  t.match(mismatch, { event: "session.mismatch", level: "warn", bind: "user-agent", denied: false });
  t.match(replaced, { event: "session.expired", handle: created?.handle, reason: "replaced" });
  t.match(ended, {
    event: "session.ended",
    handle: rotated?.handle,
    scope: "this",
    count: 1,
    handles: [rotated?.handle],
  });
  const [first, second, third, evicted, endedAll] = lines.slice(5);
  t.match(evicted, { event: "session.evicted", handle: first?.handle, by_handle: third?.handle });
  t.match(endedAll, { event: "session.ended", handle: second?.handle, scope: "all", count: 2 });
  t.same(new Set(endedAll?.handles as string[]), new Set([second?.handle, third?.handle]));
  const reasons = lines.filter(({ event }) => event === "session.expired").map(({ reason }) => reason);
  t.same(reasons, ["replaced", "idle", "absolute"]);
  t.match(lines.at(-1), { event: "session.revoked", scope: "all", "client.address": "127.0.0.1" });
});

t.test("a refused write-back says why, by names only", async (t) => {
  const lines = (await refusedWriteBacks(t)).filter(({ event }) => event === "write-back.refused");
  t.same(
    lines.map(({ command, reason, keys }) => [command, reason, keys]),
    [
      ["set", "malformed", undefined],
      [undefined, "keys-dropped", ["isAdmin"]],
      ["start", "not-allowed", undefined],
      ["end", "not-allowed", undefined],
      ["set", "conflict", undefined],
      ["set", "failed", undefined],
    ],
  );
  for (const line of lines)
    t.match(line, { upstream: /^127\.0\.0\.1:\d+$/, suppressed: 0, trace_id: /^[0-9a-f]{32}$/ });
});

t.test("the access line: every field is listed, those that are not optional are always there", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, observe: { log: { sample: 0.999 } } });
  const cookie = cookieOf(await login(gateway));
  await ask(gateway.url, { headers: { cookie, "x-user-id": "1" } });
  await ask(gateway.url, { headers: { cookie: `${cookie.slice(0, -4)}AAAA` } });
  await raw(gateway.port, "nonsense\r\n\r\n");
  await raw(gateway.port, `GET / HTTP/1.1\r\nHost: a\r\n${"a: b\r\n".repeat(300)}\r\n`);
  const broken = await startGateway(t, { upstream: "http://127.0.0.1:9" });
  await ask(broken.url);
  const verified = (await refusedVerifications(t)).filter(({ event }) => event === "http.access");
  const lines = [...accessLines(gateway), ...accessLines(broken), ...verified];
  for (const line of lines) t.same(wrongIn(line), [], JSON.stringify(line));
  const seen = new Set(lines.flatMap((line) => Object.keys(line)));
  for (const name of Object.keys(ACCESS_FIELDS)) t.ok(seen.has(name.replace("?", "")), `${name} has been seen`);
});

t.test("access lines are sampled; failed, slow and watched ones are not, and metrics count all", async (t) => {
  const upstream = await startUpstream(t, (received, req, res) => {
    if (received.url === "/slow") setTimeout(() => res.end(), 250);
    else if (received.url === "/broken") req.socket.destroy();
    else res.end();
  });
  const observe = { log: { sample: 0.25 }, traces: { slowerThan: "200ms" } };
  const gateway = await startGateway(t, { upstream: upstream.url, observe });
  const count = 400;
  for (let i = 0; i < count; i++) await ask(`${gateway.url}/fast`);
  const fast = accessLines(gateway).filter((line) => Number(line.duration_s) <= 0.2);
  // Six standard deviations on each side.
  t.ok(fast.length > 48 && fast.length < 152, `${fast.length} of ${count}`);
  for (const line of fast) t.equal(line.sample, 0.25);
  t.match(await gateway.metrics(), new RegExp(`^http_server_request_duration_seconds_count\\{.*\\} ${count}$`, "m"));

  const { log } = gateway.gateway.observer;
  log.sample = 0;
  const before = accessLines(gateway).length;
  await ask(`${gateway.url}/fast`);
  t.equal(accessLines(gateway).length, before);
  await ask(`${gateway.url}/slow`);
  await ask(`${gateway.url}/broken`);
  const watched = new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "t", spanId: "s" });
  watched.watched = true;
  log.exchange(watched);
  const always = accessLines(gateway).slice(before);
  t.same(
    always.map((line) => line["url.path"]),
    ["/slow", "/broken", ""],
  );
  for (const line of always) t.notOk("sample" in line);
});

t.test("level and access lines can be changed while it runs", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  const { log } = gateway.gateway.observer;
  const lines = async (path: string) => {
    const before = gateway.logs.length;
    await ask(gateway.url + path);
    return gateway.logs.length - before;
  };
  t.equal(log.level, "info");
  t.equal(await lines("/"), 1);
  log.level = "error";
  t.equal(log.level, "error");
  t.equal(await lines("/"), 0);
  log.level = "info";
  log.access = "errors";
  t.equal(await lines("/"), 0);
  t.equal(await lines("/%00"), 1);
  log.access = "none";
  t.equal(await lines("/%00"), 0);
  log.access = "all";
  t.equal(await lines("/"), 1);
});

t.test("attempts to forge identity headers: one line a minute and client, with names and no values", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  const forged = {
    "X-User-Id": "hunter2",
    x_user_roles: "hunter2",
    "X-Session-Start": "hunter2",
    "X-Forwarded-For": "hunter2",
    Connection: "x-user-id",
  };
  for (let i = 0; i < 50; i++) await ask(gateway.url, { headers: forged });
  await ask(gateway.url, { headers: { "X-Forwarded-For": "1.2.3.4", x_other: "1" } });
  const attempts = () => events(gateway, "security.spoof-attempt");
  t.equal(attempts().length, 1);
  t.match(attempts()[0], {
    level: "warn",
    "client.address": "127.0.0.1",
    "http.route": "*/",
    classes: { managed: 1, alias: 1, connection: 1, internal: 1 },
    suppressed: 0,
  });
  t.same(
    new Set(attempts()[0]?.names as string[]),
    new Set(["X-User-Id", "x_user_roles", "X-Session-Start", "x-user-id"]),
  );
  await gateway.gateway.close();
  t.equal(attempts().length, 2, "what was held back is told at the end");
  t.match(attempts()[1], { suppressed: 48 });
  t.notMatch(gateway.logText(), /hunter2/);
});

t.test("what is held back is counted, told a minute later, and takes little room whoever tries", (t) => {
  const written: [subject: string, suppressed: number][] = [];
  const throttle = new Throttle<string>((subject, suppressed) => written.push([subject, suppressed]));
  throttle.note("a", "a1", 0);
  for (let i = 2; i <= 10; i++) throttle.note("a", `a${i}`, 1_000);
  throttle.note("b", "b1", 2_000);
  throttle.sweep(59_999);
  t.same(written, [
    ["a1", 0],
    ["b1", 0],
  ]);
  throttle.sweep(60_000);
  t.same(written.splice(0), [
    ["a1", 0],
    ["b1", 0],
    ["a10", 8],
  ]);
  throttle.note("a", "a11", 61_000);
  throttle.note("b", "b2", 61_000);
  throttle.sweep(62_000);
  t.same(written.splice(0), [["b2", 0]]);
  throttle.sweep(120_000);
  t.same(written.splice(0), [["a11", 0]]);
  throttle.sweep(300_000);
  throttle.sweep(400_000);
  throttle.note("a", "a12", 400_000);
  t.same(written.splice(0), [["a12", 0]], "who was quiet begins anew");

  for (let i = 0; i < 100_000; i++) throttle.note(`client ${i}`, "x", 400_001);
  t.equal(written.length, 256, "255 more that are told apart, and one line for all others");
  written.length = 0;
  throttle.close();
  t.same(written, [["x", 100_000 - 256 - 1]]);
  t.end();
});

t.test("whatever is thrown can be logged", async (t) => {
  const gateway = await startGateway(t, {});
  for (const thrown of [Object.create(null), { toString: () => "hunter2" }, undefined, "a sentence"])
    gateway.gateway.observer.log.unexpected(thrown);
  t.same(
    events(gateway, "error.unexpected").map((line) => line["exception.message"]),
    ["a thrown object", "a thrown object", "a thrown undefined", "a sentence"],
  );
});

t.test("clients of one IPv6 network share a line", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    upstream: upstream.url,
    listen: { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] },
  });
  const attempt = (address: string) => ask(gateway.url, { headers: { "x-user-id": "1", "x-forwarded-for": address } });
  for (const address of [
    "2001:db8:1:2::1",
    "2001:db8:1:2:ffff::9",
    "2001:db8:1:3::1",
    "2001:0db8:1:3:0::2",
    "192.0.2.1",
    "192.0.2.2",
  ])
    await attempt(address);
  for (const address of ["2001:db8::1:2:3:4:5", "2001:db8::2:2:3:4:5"]) await attempt(address);
  t.same(
    events(gateway, "security.spoof-attempt").map((line) => line["client.address"]),
    ["2001:db8:1:2::1", "2001:db8:1:3::1", "192.0.2.1", "192.0.2.2", "2001:db8::1:2:3:4:5", "2001:db8::2:2:3:4:5"],
  );
});

/** Whatever could move the cursor, change colours, or hide what follows. */
const COMMANDS = /[^\P{Cc}\n]|\p{Cf}|[\u{2028}\u{2029}]/u;

t.test("lines for a person say what the JSON says, and nothing in them commands the terminal", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url, observe: { log: { format: "json" } } });
  await ask(`${gateway.url}/caf%C3%A9?q=1`, { headers: { "x-user-id": "1" } });
  await raw(gateway.port, "GET /\u009b31m\u00e2\u0080\u00ae HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  gateway.gateway.observer.log.unexpected(new TypeError("red \u{1b}[31m\nnext"));
  const lines = gateway
    .logText()
    .split("\n")
    .slice(0, -1)
    .map((line) => renderPretty(`${line}\n`, false));
  for (const line of lines) t.notMatch(line, COMMANDS);
  const find = (part: string) => lines.find((line) => line.includes(part)) ?? "";
  t.match(
    find("GET"),
    /^\d\d:\d\d:\d\d\.\d{3} 200 GET 127\.0\.0\.1\/caf%C3%A9 [\d.]+ ms {2}\*\/ → 127\.0\.0\.1:\d+ {2}absent anonymous {2}127\.0\.0\.1 {2}stripped \{"managed":1\}\n$/,
  );
  t.match(
    find("spoof"),
    / WARN security\.spoof-attempt {2}a request tried .* client\.address=127\.0\.0\.1 .*names=\["x-user-id"\] suppressed=0\n$/,
  );
  t.match(find("http_request_error"), / 400 .*by coatcheck .*http_request_error .* trace [0-9a-f]{32}\n$/);
  t.match(
    find("unexpected"),
    /exception\.type=TypeError exception\.message="red .*\n {4}TypeError: red [\s\S]*\n {4} {4}at /,
  );

  const values = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.jsonValue(),
    fc.constantFrom("\u{1b}]0;x\u{7}", "a\r\nb", "\u{202e}x"),
  );
  const anyLine = fc.dictionary(
    fc.oneof(
      fc.string({ unit: "binary" }),
      fc.constantFrom(...Object.keys(ACCESS_FIELDS), "event", "msg", "level", "time", "exception.stacktrace"),
    ),
    values,
  );
  fc.assert(
    fc.property(anyLine, fc.boolean(), (fields, isAccess) => {
      const pretty = renderPretty(
        `${JSON.stringify({ ...fields, ...(isAccess && { event: "http.access" }) })}\n`,
        false,
      );
      return !COMMANDS.test(pretty) && pretty.endsWith("\n");
    }),
  );
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => !COMMANDS.test(renderPretty(text, false).slice(0, -1))),
  );
  t.end();
});

t.test("format: pretty writes such lines to any destination, without colours", async (t) => {
  let text = "";
  const logDestination = {
    write: (line: string) => {
      text += line;
    },
  };
  const upstream = await startUpstream(t);
  const gateway = await startGateway(
    t,
    { upstream: upstream.url, observe: { log: { format: "pretty" } } },
    { logDestination },
  );
  await ask(`${gateway.url}/x`);
  t.match(text, /^\d\d:\d\d:\d\d\.\d{3} INFO gateway\.started {2}ready {2}version=/);
  t.match(text, /^\d\d:\d\d:\d\d\.\d{3} 200 GET 127\.0\.0\.1\/x /m);
  t.notOk(text.includes(ESCAPE));
});

const ESCAPE = "\u{1b}";
const MAIN = fileURLToPath(new URL("../src/main.ts", import.meta.url));
const SERVE = ["serve", "--upstream", "http://127.0.0.1:9", "--store", "memory:", "--port", "0", "--admin-port", "0"];

/** What `serve` shows on a terminal of its own until it is ready. */
async function onTerminal(t: Teardown, environment: Record<string, string>): Promise<string> {
  const serve = [process.execPath, MAIN, ...SERVE].map((word) => `'${word}'`).join(" ");
  const env = { PATH: process.env.PATH, ...COMPILE_CACHE, TERM: "xterm-256color", SHELL: "/bin/sh", ...environment };
  const child = spawn("script", ["-qefc", `exec ${serve}`, "/dev/null"], { env, stdio: ["ignore", "pipe", "ignore"] });
  const ended = once(child, "exit");
  t.teardown(() => child.kill("SIGKILL"));
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (piece) => {
    text += piece;
  });
  await eventually("ready", () => text.includes("gateway.started"), 30_000);
  child.kill();
  await ended;
  return text;
}

t.test("pretty in a terminal, in colours unless they are not wanted; JSON otherwise", async (t) => {
  const [info, name] = [`${ESCAPE}[32mINFO${ESCAPE}[0m`, `${ESCAPE}[1mgateway.started${ESCAPE}[0m`];
  const piped = command(t, SERVE, { FORCE_COLOR: "1" });
  const [coloured, ...plain] = await Promise.all(
    [{}, { NO_COLOR: "1" }, { TERM: "dumb" }].map((environment) => onTerminal(t, environment)),
  );
  t.ok(coloured?.includes(`${info} ${name}  ready`));
  for (const text of plain) t.match(text, /\d INFO gateway\.started {2}ready/);
  const ready = await eventually(
    "ready",
    () =>
      piped
        .stdout()
        .split("\n")
        .find((line) => line.includes("gateway.started")),
    30_000,
  );
  t.match(JSON.parse(ready), { event: "gateway.started", level: "info" });
});

/** A pipe that is open for writing, and that nobody reads. */
async function blockedPipe(t: Teardown): Promise<{ fd: number; reader: number }> {
  const pipe = join(await temporaryFolder(t), "pipe");
  spawnSync("mkfifo", [pipe]);
  const reader = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK);
  const fd = openSync(pipe, constants.O_WRONLY | constants.O_NONBLOCK);
  return { fd, reader };
}

t.test("lines that a blocked output does not take are counted, and do not hold up the end", async (t) => {
  const { fd, reader } = await blockedPipe(t);
  let dropped = 0;
  const output = new BatchedOutput(fd, (lines) => {
    dropped += lines;
  });
  const line = `${"x".repeat(1023)}\n`;
  const [kept, written] = [16 * 1024, 20 * 1024];
  for (let i = 0; i < written; i++) output.write(line);
  t.ok(dropped >= written - kept - 128 && dropped <= written - kept + 128, `${dropped} of ${written}`);
  const startedMs = performance.now();
  await output.end();
  const tookMs = performance.now() - startedMs;
  t.ok(tookMs < 5_000, `the end took ${tookMs.toFixed(0)} ms`);
  t.equal(dropped, written - 64, "all but what the pipe holds");
  closeSync(reader);
});

t.test("what the output takes slowly comes in order and whole", async (t) => {
  const { fd, reader } = await blockedPipe(t);
  const output = new BatchedOutput(fd);
  const lines = Array.from({ length: 3_000 }, (_, i) => `${i} ${"é".repeat(i % 200)}\n`);
  for (const line of lines) output.write(line);
  const ended = output.end();
  let text = Buffer.alloc(0);
  const buffer = Buffer.alloc(10_000);
  await eventually(
    "all of it",
    () => {
      try {
        text = Buffer.concat([text, buffer.subarray(0, readSync(reader, buffer))]);
      } catch {} // EAGAIN: not yet
      return text.length >= Buffer.byteLength(lines.join(""));
    },
    15_000,
    1,
  );
  await ended;
  t.equal(text.toString(), lines.join(""));
});

t.test("when whoever reads the log has gone, what would be written is counted", async (t) => {
  const { fd, reader } = await blockedPipe(t);
  let dropped = 0;
  const output = new BatchedOutput(fd, (lines) => {
    dropped += lines;
  });
  closeSync(reader);
  await eventually("the loss", () => {
    output.write(`${"x".repeat(60_000)}\n`);
    return dropped > 10;
  });
  t.ok(dropped > 10);
  await output.end();
});

t.test("a full disk does not end the process; what does not fit is counted", async (t) => {
  const fd = openSync("/dev/full", "w");
  let dropped = 0;
  const output = new BatchedOutput(fd, (lines) => {
    dropped += lines;
  });
  await eventually("the loss", () => {
    for (let i = 0; i < 100; i++) output.write(`${"x".repeat(60_000)}\n`);
    return dropped > 0;
  });
  t.ok(dropped > 0);
  await output.end();
});

t.test("lost lines are a metric", async (t) => {
  const gateway = await startGateway(t, {});
  t.match(await gateway.metrics(), /^coatcheck_log_lines_dropped_total 0$/m);
  gateway.gateway.observer.metrics.logLinesDropped(3);
  t.match(await gateway.metrics(), /^coatcheck_log_lines_dropped_total 3$/m);
});

t.test("an access line has no share when all are written", (t) => {
  const exchange = new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", traceId: "t", spanId: "s" });
  t.notOk("sample" in JSON.parse(renderAccessLine(exchange, "info")));
  t.equal(JSON.parse(renderAccessLine(exchange, "info", 0.1)).sample, 0.1);
  t.end();
});
