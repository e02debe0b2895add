/**
 * Real processes under load while a worker is killed, or what is behind them fails: the table says what was lost, and
 * whose fault each loss was. No client repeats anything.
 */
import { readdir, readFile, readlink } from "node:fs/promises";
import { join } from "node:path";
import { startDns } from "../support/dns.ts";
import { eventually, temporaryFolder } from "../support/resources.ts";
import type { Teardown } from "../support/servers.ts";
import { type Behaviour, startTargets, TestTarget } from "../support/targets.ts";
import { type Counts, count, logIn, noCounts, type Particulars, type Verdict } from "../support/traffic.ts";
import { type Instance, OBSERVE, startApp, startInstance, USERS, underLoad, versions } from "./scenarios.ts";

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function end(instance: Instance): Promise<number | string> {
  instance.running().child.kill("SIGTERM");
  return instance.running().ended;
}

/** A request that got no good answer. */
interface Lost extends Particulars {
  readonly sentAt: number;
  readonly endedAt: number;
}

/** Collects what was lost. */
function losses() {
  const lost: Lost[] = [];
  const onAnswer = (verdict: Verdict, sentAt: number, tookMs: number, of: Particulars) => {
    if (verdict !== "served") lost.push({ ...of, sentAt, endedAt: sentAt + tookMs });
  };
  return { lost, onAnswer };
}

/**
 * One of two workers is killed every few seconds. The requests on its connections are lost, each connection having one at
 * a time: `injected` counts those among the lost.
 */
export async function workersKilled(t: Teardown, { kills, everyMs }: { kills: number; everyMs: number }) {
  const [version] = versions([await startApp(t), ""]);
  const store = `sqlite:${join(await temporaryFolder(t), "sessions.db")}`;
  const instance = await startInstance(t, { ...version, store, workers: 2, observe: OBSERVE });
  const started = () => instance.events("worker.started");
  await eventually("both workers serve", () => started().length === 2, 30_000);
  const visitors = await logIn(instance.url, USERS);
  const [quick, slow] = [losses(), losses()];
  const killed: { at: number; ports: ReadonlySet<number> }[] = [];
  const act = async () => {
    for (let i = 0; i < kills; i++) {
      await pause(everyMs);
      const { pid } = started().findLast(({ worker }) => worker === 1 + (i % 2)) ?? {};
      // Stopped first, so that nothing comes or goes between the look and the end.
      process.kill(Number(pid), "SIGSTOP");
      const stateOf = () => readFile(`/proc/${pid}/status`, "utf8");
      await eventually("it stands still", async () => /^State:\s+T/m.test(await stateOf()));
      const ports = await clientPortsOf(Number(pid), instance.port);
      killed.push({ at: performance.now(), ports });
      process.kill(Number(pid), "SIGKILL");
      await eventually("another one serves", () => started().length === 3 + i, 60_000);
    }
    await pause(everyMs);
    return kills;
  };
  const outcome = await underLoad(instance.url, visitors, act, { quick, slow });
  // A port may be used again later: a request has to have begun before the client could hear of the end.
  const isInjected = ({ localPort, sentAt, endedAt }: Lost) =>
    killed.some(({ at, ports }) => ports.has(localPort) && sentAt < at + 1_000 && endedAt > at);
  return {
    ...outcome,
    injected: { quick: quick.lost.filter(isInjected).length, slow: slow.lost.filter(isInjected).length },
    connections: killed.map(({ ports }) => ports.size),
    status: await end(instance),
  };
}

/** The other ends of a process' connections to a port of its own on loopback (Linux). */
async function clientPortsOf(pid: number, port: number): Promise<Set<number>> {
  const folder = `/proc/${pid}/fd`;
  const links = await Promise.all((await readdir(folder)).map((fd) => readlink(join(folder, fd)).catch(() => "")));
  const own = new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []));
  const found = new Set<number>();
  // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode; proc_pid_net(5)
  for (const line of (await readFile(`/proc/${pid}/net/tcp`, "utf8")).split("\n").slice(1)) {
    const [, local = "", remote = "", , , , , , , inode = ""] = line.trim().split(/\s+/);
    if (own.has(inode) && portIn(local) === port) found.add(portIn(remote));
  }
  found.delete(0);
  return found;
}

const portIn = (address: string): number => Number.parseInt(address.slice(address.indexOf(":") + 1), 16);

/** What `startApp` does, on a target. @param delayMs until the answer. */
function echo(delayMs: number): Behaviour {
  return async (req, res) => {
    let body = "";
    // Who is killed while it reads has nothing to say.
    try {
      for await (const piece of req.setEncoding("latin1")) body += piece;
    } catch {
      return;
    }
    if (req.url === "/start") res.setHeader("X-Session-Start", body);
    res.setHeader("content-type", "application/json");
    const answer = JSON.stringify({ headers: { "x-user-id": req.headers["x-user-id"] } });
    if (delayMs === 0) res.end(answer);
    else setTimeout(() => res.end(answer), delayMs);
  };
}

const startBefore = (t: Teardown, upstream: object) => {
  const [version] = versions(["", ""]);
  const routes = [{ upstream, session: "optional", write: ["user"] }];
  return startInstance(t, { ...version, store: "memory:", observe: OBSERVE, routes });
};

/** A path for each request, by which a target and a client mean the same. */
function paths(prefix: string): () => string {
  let n = 0;
  return () => `/${prefix}/${n++}`;
}

/** Long enough to be cut in the middle. */
const WORK_MS = 20;

/**
 * One of two targets is cut off and comes back, again and again. `quick` are GETs, `slow` are POSTs: those that were under
 * way to it when it was cut off may not be sent to the other one. They are `injected`.
 */
export async function flappingTarget(t: Teardown, { seconds, everyMs }: { seconds: number; everyMs: number }) {
  const targets = await startTargets(t, 2);
  for (const target of targets) target.behaviour = echo(WORK_MS);
  const [flapping, other] = targets as [TestTarget, TestTarget];
  const instance = await startBefore(t, {
    targets: targets.map(({ url }) => url),
    // Back soon, to be hit the more often.
    ejection: { duration: "500ms", maxDuration: "1s" },
  });
  const visitors = await logIn(instance.url, USERS);
  const posts = losses();
  const killed: number[] = [];
  const act = async () => {
    for (const until = performance.now() + 1_000 * seconds; performance.now() < until; ) {
      const before = flapping.requests.length;
      await eventually("it has requests", () => flapping.requests.length > before + 20, 30_000);
      await pause(everyMs);
      killed.push(performance.now());
      await flapping.kill();
      await pause(everyMs);
      await flapping.start();
    }
    return killed.length;
  };
  const loads = {
    quick: { path: paths("get") },
    slow: { path: paths("post"), method: "POST", onAnswer: posts.onAnswer },
  } as const;
  const outcome = await underLoad(instance.url, visitors, act, loads);
  // On a connection that is being cut a request may be sent until the gateway hears of it. One whose connection was refused
  // was not sent, and what arrived at the other target did so for good.
  const atOther = new Set(other.requests);
  const isInjected = ({ path, proxyStatus, sentAt, endedAt }: Lost) =>
    proxyStatus === "coatcheck; error=connection_terminated" &&
    !atOther.has(`POST ${path}`) &&
    killed.some((at) => sentAt < at + 500 && endedAt > at);
  const arrived = [...flapping.requests, ...other.requests].filter((line) => line.startsWith("POST /post/"));
  return {
    ...outcome,
    injected: { quick: 0, slow: posts.lost.filter(isInjected).length },
    /** POSTs that arrived, and how many of them were others than one that had arrived before. */
    posts: { arrived: arrived.length, different: new Set(arrived).size },
    status: await end(instance),
  };
}

const SLOW_TARGET_MS = 2_000;

/** One of three targets comes to take two seconds over each answer, with `least-requests`. */
export async function slowTarget(t: Teardown, { seconds }: { seconds: number }) {
  const targets = await startTargets(t, 3);
  for (const target of targets) target.behaviour = echo(WORK_MS);
  const [slow] = targets as [TestTarget, ...TestTarget[]];
  const instance = await startBefore(t, { targets: targets.map(({ url }) => url), balance: "least-requests" });
  const visitors = await logIn(instance.url, USERS);
  const sent = () => targets.map(({ requests }) => requests.length);
  const shareSince = (before: readonly number[]) => {
    const counts = sent().map((n, i) => n - (before[i] ?? 0));
    return (counts[0] ?? 0) / counts.reduce((sum, n) => sum + n);
  };
  const answers: { path: string; verdict: Verdict; tookMs: number }[] = [];
  const onAnswer = (verdict: Verdict, _: number, tookMs: number, { path }: Particulars) =>
    void answers.push({ path, verdict, tookMs });
  let [shareBefore, shareAfter] = [0, 0];
  const load = { path: paths("get"), onAnswer };
  let slowFrom = 0;
  await underLoad(
    instance.url,
    visitors,
    async () => {
      let before = sent();
      await pause(1_000);
      shareBefore = shareSince(before);
      slow.behaviour = echo(SLOW_TARGET_MS);
      [before, slowFrom] = [sent(), slow.requests.length];
      await pause(1_000 * seconds);
      shareAfter = shareSince(before);
      return 1;
    },
    { quick: load, slow: load },
  );
  const late = new Set(slow.requests.slice(slowFrom));
  const counts: { slow: Counts; others: Counts } = { slow: noCounts(), others: noCounts() };
  for (const { path, verdict, tookMs } of answers)
    count(late.has(`GET ${path}`) ? counts.slow : counts.others, verdict, tookMs);
  return { ...counts, shareBefore, shareAfter, status: await end(instance) };
}

/** The name of the application changes from one address to another, and back, under load. */
export async function dnsChanges(t: Teardown, { changes, everyMs }: { changes: number; everyMs: number }) {
  const addresses = ["127.0.0.1", "127.0.0.2"] as const;
  const first = await TestTarget.start(t, { address: addresses[0] });
  const second = await TestTarget.start(t, { port: first.port, address: addresses[1] });
  const targets = [first, second] as const;
  for (const target of targets) target.behaviour = echo(WORK_MS);
  const dns = await startDns(t, [addresses[0]]);
  const instance = await startBefore(t, {
    targets: [`http://app.example:${first.port}`],
    resolve: { interval: "1s", servers: [dns.address] },
  });
  const visitors = await logIn(instance.url, USERS);
  /** Requests at the old address after the change was through, and at the new one. */
  let [tooLate, atNew] = [0, 0];
  const act = async () => {
    for (let i = 1; i <= changes; i++) {
      const [from, to] = i % 2 === 1 ? targets : ([second, first] as const);
      const resolved = instance.events("upstream.resolved").length;
      dns.addresses = [addresses[i % 2] ?? ""];
      await eventually("it was noticed", () => instance.events("upstream.resolved").length > resolved);
      // What the gateway had sent before may still be on its way here.
      let last = -1;
      const isQuiet = () => {
        const [before, now] = [last, from.requests.length];
        last = now;
        return before === now;
      };
      await eventually("nothing is on its way to the old address", isQuiet, 15_000, 250);
      const before = [from.requests.length, to.requests.length] as const;
      await pause(everyMs);
      tooLate += from.requests.length - before[0];
      atNew += to.requests.length - before[1];
    }
    return changes;
  };
  const outcome = await underLoad(instance.url, visitors, act, {
    quick: { path: paths("get") },
    slow: { path: paths("post"), method: "POST" },
  });
  return { ...outcome, tooLate, atNew, status: await end(instance) };
}
