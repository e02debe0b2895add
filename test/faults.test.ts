/**
 * Gateways under load while Redis is killed, frozen, cut off, full, locked, failed over and resharded. Whatever happens:
 * nobody is somebody else, nobody is logged out whose session Redis still has, nobody waits for ever, and it all passes
 * without a restart. FAULTS_SECONDS (60) makes the faults longer.
 */
import { createHash } from "node:crypto";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setTimeout as delay } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import t from "tap";
import { ask } from "./support/client.ts";
import type { RedisServer } from "./support/redis.ts";
import { startRedis } from "./support/redis.ts";
import { type ClusterNode, slotOf, startCluster } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { eventually, type Teardown } from "./support/resources.ts";
import { type RunningGateway, startGateway } from "./support/servers.ts";
import { startProxy } from "./support/tcp-proxy.ts";
import { logIn, startIdentityApp, type TrafficReport, traffic, type Verdict, type Visitor } from "./support/traffic.ts";

const SCALE = Number(process.env.FAULTS_SECONDS ?? 60) / 60;
const SESSIONS = 120;
/** Of one operation in the store; beyond that comes what a busy machine adds, to this bound and to all below. */
const TOTAL_TIMEOUT_MS = 1_000;
const NOISE_MS = 700;
/** A turn of the event loop that takes longer says that the machine is overloaded. */
const BUSY_MS = 100;
/** A refusal without asking: half of them at least. */
const AT_ONCE_MS = 100;
/** After the end of a fault; a cluster's master that comes back waits for two seconds of these. */
const RECOVERED_WITHIN_MS = 3_000;
const QUIET_MS = 500;
/** The load goes on until so many have been served (as nobody, where the sessions are lost), however slow the machine is. */
const SERVED_AT_LEAST = 100;
const SEEN_WITHIN_MS = 50;
/** Of all groups together. */
const MAX_GROWTH_BYTES = 100 * 1024 * 1024;

t.setTimeout(120_000 + SCALE * 120_000);
// Each group has servers of its own, and waits for them most of the time.
t.jobs = 3;

interface Rig {
  /** One with the near cache and one that asks Redis for every request. */
  readonly gateways: readonly [cached: RunningGateway, plain: RunningGateway];
  readonly visitors: readonly Visitor[];
  readonly servers: readonly RedisServer[];
  /** Ends a session behind the gateways' back. */
  readonly remove: (name: string) => Promise<unknown>;
}

async function startRig(
  t: Teardown,
  store: string,
  servers: readonly RedisServer[],
  remove: Rig["remove"] = async (name) => servers[0]?.call("UNLINK", name),
): Promise<Rig> {
  const app = await startIdentityApp(t);
  const start = (settings = {}) =>
    startGateway(t, { upstream: app.url, store, observe: { log: { access: "none" } }, ...settings });
  const gateways = [await start(), await start({ cache: { maxBytes: "0B" } })] as const;
  const visitors = await patientLogIn(gateways[1], SESSIONS);
  return { gateways, visitors, servers, remove };
}

/** Between two faults, or before the first: a busy machine may make Redis late all the same. */
function patientLogIn(gateway: RunningGateway, users: number): Promise<Visitor[]> {
  return eventually("all are logged in", () => logIn(gateway.url, users).catch(() => undefined));
}

const nameOf = ({ cookie }: Visitor) => {
  const token = cookie.slice(cookie.indexOf("=") + 1).split(".", 1)[0] ?? "";
  return `coatcheck:session:${createHash("sha256").update(token).digest("base64url")}`;
};

async function feedOf(gateway: RunningGateway): Promise<string | undefined> {
  return /^coatcheck_session_feed\{state="(\w+)"\} 1$/m.exec(await gateway.metrics())?.[1];
}

async function seenUser(gateway: RunningGateway, { cookie }: Visitor): Promise<string | undefined> {
  const { status, body } = await ask(gateway.url, { headers: { cookie } });
  return status === 200 ? JSON.parse(body).headers["x-user-id"] : undefined;
}

/** Connections of the gateways, as the servers see them. */
async function connections({ servers }: Rig): Promise<number> {
  const lists = await Promise.all(
    servers.filter(({ running }) => running).map((server) => server.call("CLIENT", "LIST")),
  );
  return lists.join("").match(/ name=coatcheck /g)?.length ?? 0;
}

const sockets = () => process.getActiveResourcesInfo().filter((kind) => kind === "TCPSocketWrap").length;

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;
function heapBytes(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed;
}

interface Row {
  readonly fault: string;
  readonly report: TrafficReport;
  /** Of the refusals: how long half of them took at most. */
  readonly median503Ms: number;
  readonly recoveryMs: number;
  readonly seenMs: number;
}
const rows: Row[] = [];

interface Expected {
  /** The sessions are lost with the server: that is `unknown`, and no outage. */
  readonly lost?: boolean;
  /** Nobody is refused. */
  readonly unnoticed?: boolean;
  /** A master became a replica: the connection to it stays, and the one to its successor is new. */
  readonly swapped?: boolean;
}

/** @param fault done when the fault has ended. */
async function endure(t: Tap, rig: Rig, fault: string, act: () => Promise<unknown>, expected: Expected = {}) {
  const [cached] = rig.gateways;
  await eventually(`the feed of ${fault}`, async () => (await feedOf(cached)) === "tracking");
  const connectionsBefore = await connections(rig);

  const ending = new AbortController();
  let [lastOutageAt, lastAnswerAt, served] = [0, 0, 0];
  const refusals: number[] = [];
  const onAnswer = (verdict: Verdict, sentAt: number, tookMs: number) => {
    lastAnswerAt = performance.now();
    if (verdict === "served" || (expected.lost && verdict === "loggedOut")) served++;
    if (verdict !== "outages") return;
    lastOutageAt = Math.max(lastOutageAt, sentAt);
    refusals.push(tookMs);
  };
  const load = rig.gateways.map((gateway) =>
    traffic(gateway.url, {
      cookies: rig.visitors,
      connections: 5,
      pauseMs: 20,
      forMs: 60_000 * Math.max(1, SCALE),
      signal: ending.signal,
      onAnswer,
    }),
  );
  const lag = monitorEventLoopDelay();
  lag.enable();
  let endedAt = 0;
  try {
    await delay(200);
    await act();
    endedAt = performance.now();
    await eventually(`${fault} is over`, async () => {
      const now = performance.now();
      const isQuiet = now - Math.max(lastOutageAt, endedAt) > QUIET_MS && now - lastAnswerAt < QUIET_MS;
      return isQuiet && served > SERVED_AT_LEAST;
    });
    await eventually(`the feed after ${fault}`, async () => (await feedOf(cached)) === "tracking");
  } finally {
    ending.abort();
  }
  const report = sum(await Promise.all(load));
  lag.disable();
  const busyMs = lag.max / 1e6;
  const recoveryMs = Math.max(0, lastOutageAt - endedAt);
  const median503Ms = refusals.sort((a, b) => a - b)[refusals.length >> 1] ?? 0;
  t.match(report, { wrong: 0, hung: 0, failed: 0, cookiesCleared: 0 }, `${fault}: nobody is wronged`);
  if (!expected.lost) t.equal(report.loggedOut, 0, `${fault}: nobody is logged out`);
  // A server that the machine keeps waiting is late for everybody: then it may be a few.
  const tolerated = busyMs > BUSY_MS ? report.requests / 20 : 0;
  if (expected.unnoticed) t.ok(report.outages <= tolerated, `${fault}: nobody is refused (${report.outages})`);
  const within = (tookMs: number, limitMs: number, what: string) =>
    t.ok(tookMs < limitMs + busyMs, `${fault}: ${what} (${tookMs} ms, a turn took up to ${busyMs} ms)`);
  within(report.longestMs, TOTAL_TIMEOUT_MS + NOISE_MS, "nobody waited longer");
  if (refusals.length > 50) within(median503Ms, AT_ONCE_MS, "refused at once");
  within(recoveryMs, RECOVERED_WITHIN_MS, "recovered");
  const seenMs = await staleness(rig);
  rows.push({ fault, report, median503Ms, recoveryMs, seenMs });
  within(seenMs, SEEN_WITHIN_MS + NOISE_MS, "a change is seen soon afterwards");
  const swapped = expected.swapped ? rig.gateways.length : 0;
  await eventually(
    `as many connections as before ${fault}`,
    async () => (await connections(rig)) <= connectionsBefore + swapped,
  );
}

type Tap = Pick<typeof t, "ok" | "equal" | "match" | "same" | "teardown">;

function sum(reports: readonly TrafficReport[]): TrafficReport {
  const total = { ...(reports[0] as TrafficReport) } as {
    -readonly [name in keyof TrafficReport]: TrafficReport[name];
  };
  for (const report of reports.slice(1)) {
    for (const name of ["requests", "served", "outages", "wrong", "loggedOut", "hung", "failed"] as const)
      total[name] += report[name];
    total.cookiesCleared += report.cookiesCleared;
    total.longestMs = Math.max(total.longestMs, report.longestMs);
  }
  return total;
}

/** How long a session that is in the cache goes on there when somebody removes it from Redis: the longest of some. */
async function staleness({ gateways: [cached, plain], remove }: Rig): Promise<number> {
  let longestMs = 0;
  for (const canary of await patientLogIn(plain, 5)) {
    // A reading may find that slots have moved: then the cache is bypassed for a moment.
    await eventually("the canary is in the cache", async () => {
      const user = await seenUser(cached, canary);
      if (user === undefined) return false;
      if (user !== canary.userId) throw new Error("the canary is not logged in");
      return (await cached.exchanges())[0]?.session.source === "cache";
    });
    await remove(nameOf(canary));
    const removedAt = performance.now();
    await eventually("the canary is gone", async () => (await seenUser(cached, canary)) === "");
    longestMs = Math.max(longestMs, performance.now() - removedAt);
  }
  return longestMs;
}

function table(): string {
  const cells = rows.map(({ fault, report, median503Ms, recoveryMs, seenMs }) => [
    fault,
    ...[report.requests, report.served, report.outages, report.wrong + report.hung + report.failed],
    ...[report.loggedOut, report.longestMs, median503Ms, recoveryMs, seenMs].map(Math.round),
  ]);
  const titles = ["fault", "requests", "served", "503", "wrong", "logged out", "longest ms", "503 ms", "recovery ms"];
  const lines = [[...titles, "seen ms"], ...cells].map((line) => line.map(String));
  const widths = titles.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  const pad = (cell: string, column: number) =>
    column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 7);
  return lines.map((line) => line.map(pad).join("  ")).join("\n");
}

t.teardown(() => t.comment(`\n${table()}`));

const before = { sockets: sockets(), heap: heapBytes() };
const only = process.env.FAULTS_ONLY;
function group(name: string, run: (t: Tap) => Promise<void>) {
  if (only === undefined || name.includes(only)) t.test(name, run);
}

group("one server", async (t) => {
  const redis = await startRedis(t, {
    save: true,
    args: ["--enable-debug-command", "yes"],
    users: { gateway: "on >secret ~* &* +@all" },
  });
  const rig = await startRig(t, redis.url.replace("//", "//gateway:secret@"), [redis]);
  await endure(t, rig, "killed, back with its data", async () => {
    await redis.kill();
    await delay(SCALE * 700);
    await redis.start();
  });
  await endure(t, rig, "stopped for 3 s", async () => {
    redis.freeze();
    await delay(SCALE * 3_000);
    redis.thaw();
  });
  await endure(t, rig, "DEBUG SLEEP 2", () => redis.call("DEBUG", "SLEEP", SCALE * 2));
  await endure(t, rig, "CLIENT KILL, all normal connections", () => redis.call("CLIENT", "KILL", "TYPE", "normal"), {
    unnoticed: true,
  });
  await endure(t, rig, "CLIENT KILL, all that listen", () => redis.call("CLIENT", "KILL", "TYPE", "pubsub"), {
    unnoticed: true,
  });
  await endure(t, rig, "another password for the user", async () => {
    await redis.call("ACL", "SETUSER", "gateway", "resetpass", ">another");
    await redis.call("CLIENT", "KILL", "USER", "gateway");
    await delay(SCALE * 600);
    await redis.call("ACL", "SETUSER", "gateway", "resetpass", ">secret");
  });
  const [cached, plain] = rig.gateways;
  await endure(
    t,
    rig,
    "full, and evicts nothing",
    async () => {
      const leaving = (await patientLogIn(plain, 1))[0] as Visitor;
      await redis.call("CONFIG", "SET", "maxmemory", "1mb");
      try {
        for (const gateway of [cached, plain]) {
          const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"late"}}' });
          t.equal(login.status, 503, "a login fails loudly");
          t.same(login.setCookie, []);
        }
        await delay(SCALE * 700);
        t.equal(await seenUser(cached, leaving), leaving.userId);
        const [, ended] = await Promise.all([
          delay(1),
          fetch(`${cached.adminUrl}/sessions/${nameOf(leaving).slice("coatcheck:session:".length)}`, {
            method: "DELETE",
          }),
        ]);
        t.equal(ended.status, 200, "a logout works");
        t.equal(await seenUser(plain, leaving), "");
      } finally {
        await redis.call("CONFIG", "SET", "maxmemory", "0");
      }
    },
    { unnoticed: true },
  );
});

group("one server without a disk", async (t) => {
  const redis = await startRedis(t, { password: "secret" });
  const rig = await startRig(t, redis.url, [redis]);
  await endure(t, rig, "another password for everybody", async () => {
    await redis.call("CONFIG", "SET", "requirepass", "another");
    await redis.call("CLIENT", "KILL", "TYPE", "normal");
    await redis.call("CLIENT", "KILL", "TYPE", "pubsub");
    await delay(SCALE * 600);
    await redis.call("CONFIG", "SET", "requirepass", "secret");
  });
  const lost = async () => {
    await redis.kill();
    await delay(SCALE * 300);
    await redis.start();
  };
  await endure(t, rig, "killed, back with nothing", lost, { lost: true });
});

group("behind a network", async (t) => {
  const redis = await startRedis(t);
  const proxy = await startProxy(t, redis.port);
  const rig = await startRig(t, `redis://127.0.0.1:${proxy.port}/0`, [redis]);
  const weathers: Record<string, readonly [begin: () => unknown, end: () => unknown, Expected?]> = {
    "50 ms each way": [() => proxy.delay(50), () => proxy.delay(0), { unnoticed: true }],
    "a drip of bytes": [() => proxy.drip(16, 5), () => proxy.drip(0, 0)],
    "all connections cut": [() => proxy.cut(), () => {}, { unnoticed: true }],
    "answers that do not arrive": [() => proxy.stall("toClient"), () => proxy.resume()],
    "questions that do not arrive": [() => proxy.stall("toServer"), () => proxy.resume()],
    "half-open": [() => proxy.stall(), () => proxy.resume({ deliver: false })],
    "refuses new connections": [
      () => {
        proxy.refuse();
        proxy.cut();
      },
      () => proxy.accept(),
    ],
  };
  for (const [name, [begin, end, expected]] of Object.entries(weathers)) {
    const act = async () => {
      await begin();
      await delay(SCALE * 1_200);
      await end();
    };
    await endure(t, rig, name, act, expected);
  }
});

group("sentinels", async (t) => {
  const group = await startSentinel(t);
  const remove = async (name: string) => (await group.master()).call("UNLINK", name);
  const rig = await startRig(t, group.url, group.servers, remove);
  await endure(t, rig, "failover by command", () => group.failover());
  await group.healthy();
  await endure(t, rig, "master killed", async () => {
    const old = await group.killMaster();
    await group.master();
    await old.start();
    await group.healthy();
  });
  await endure(t, rig, "master stopped, and back as a second master", async () => {
    const old = await group.master();
    await old.call("WAIT", 2, 1_000);
    old.freeze();
    await group.master();
    old.thaw();
    // Until then it takes writes, which are lost.
    await group.healthy();
  });
  await endure(t, rig, "master killed, a Sentinel stopped", async () => {
    const old = await group.master();
    const [sentinel] = group.sentinels as readonly [RedisServer];
    sentinel.freeze();
    await old.kill();
    const { port } = await group.master();
    await delay(500);
    sentinel.thaw();
    // Who asked it earlier would be led to the old master, which comes back empty.
    await eventually("the Sentinel knows the new master", async () => {
      const address = await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", group.name);
      return (address as string[])[1] === String(port);
    });
    await old.start();
    await group.healthy();
  });
});

group("cluster", async (t) => {
  // Twice the usual: on a busy machine, a node that is only late is not to be taken for failed.
  const cluster = await startCluster(t, { replicas: 1, nodeTimeoutMs: 1_000 });
  const remove = async (name: string) => (await cluster.ownerOf(name)).call("UNLINK", name);
  const rig = await startRig(t, cluster.url, cluster.nodes, remove);
  // All of them the same way, as in a resharding: at a crossing of slots and heartbeats nodes may come to disagree for good.
  const [from, to] = cluster.masters as readonly [ClusterNode, ClusterNode];
  const used = rig.visitors.map((visitor) => slotOf(nameOf(visitor)));
  const [first = 0, last = 0] = from.slots ?? [];
  const moving = [...new Set(used.filter((slot) => slot >= first && slot <= last))];
  await endure(
    t,
    rig,
    "slots move",
    async () => {
      for (const slot of moving.slice(0, 12)) await cluster.migrateSlot(slot, from, to);
    },
    { unnoticed: true },
  );
  await endure(
    t,
    rig,
    "slots on their way for a while",
    async () => {
      const migrations = [];
      for (const slot of moving.slice(12)) {
        const migration = await cluster.beginMigration(slot, from, to);
        await migration.move(1);
        migrations.push(migration);
      }
      await delay(SCALE * 1_500);
      for (const migration of migrations) await migration.finish();
    },
    { unnoticed: true },
  );
  await endure(t, rig, "CLUSTER FAILOVER", () => cluster.failover(cluster.replicas[0] as ClusterNode), {
    swapped: true,
    unnoticed: true,
  });
  await cluster.healthy();
  await endure(
    t,
    rig,
    "a master with a replica killed",
    async () => {
      const name = nameOf(rig.visitors[0] as Visitor);
      const old = await cluster.ownerOf(name);
      await old.call("WAIT", 1, 1_000);
      await old.kill();
      await cluster.ownerOf(name);
      await old.start();
    },
    { swapped: true },
  );
});

group("cluster without replicas", async (t) => {
  const cluster = await startCluster(t, { save: true, args: ["--cluster-require-full-coverage", "no"] });
  const remove = async (name: string) => (await cluster.ownerOf(name)).call("UNLINK", name);
  const rig = await startRig(t, cluster.url, cluster.nodes, remove);
  const lost = cluster.masters[0] as ClusterNode;
  const [first = 0, last = 0] = lost.slots ?? [];
  const others = rig.visitors.filter((visitor) => {
    const slot = slotOf(nameOf(visitor));
    return slot < first || slot > last;
  });
  await endure(t, rig, "a master without a replica killed", async () => {
    await lost.kill();
    await delay(200);
    const lag = monitorEventLoopDelay();
    lag.enable();
    const reports = await Promise.all(
      rig.gateways.map(({ url }) =>
        traffic(url, { cookies: others, connections: 5, pauseMs: 20, forMs: SCALE * 1_500 }),
      ),
    );
    const report = sum(reports);
    t.equal(report.served, report.requests, "the slots of the other masters go on");
    const busyMs = lag.max / 1e6;
    t.ok(
      report.longestMs < 500 + 3 * busyMs,
      `and are not slowed down (${report.longestMs} ms, a turn took ${busyMs})`,
    );
    rows.push({ fault: "… and of the others", report, median503Ms: 0, recoveryMs: 0, seenMs: 0 });
    await lost.start();
  });
});

t.test("nothing is kept", { buffered: false }, async (t) => {
  // What `fetch` keeps goes a little later.
  await eventually("no socket is left", () => sockets() <= before.sockets);
  const grownBytes = heapBytes() - before.heap;
  t.ok(grownBytes < MAX_GROWTH_BYTES, `${grownBytes} bytes`);
});
