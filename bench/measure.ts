import { equal, ok } from "node:assert/strict";
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import { ITEM_BODY, ITEM_PATH } from "./answers.ts";
import { ask, knock } from "./ask.ts";
import { type Child, endChild, freePort, type Pins, startChild, untilReady } from "./children.ts";
import type { LoadResult } from "./load.ts";
import type { Options } from "./options.ts";
import type { Peer } from "./peers.ts";
import { cpuSeconds, residentMiB } from "./process-stats.ts";
import { BROWSER_HEADERS, logIn, type Visitor } from "./sessions.ts";
import type { Support } from "./surroundings.ts";
import { validate } from "./validate.ts";

/** One peer in one round. */
export interface Sample extends LoadResult {
  /** User and system time of the proxy process, all threads, by completed request. */
  readonly cpuMicros: number;
  readonly rps: number;
  /** How much of one core the proxy used: near 1, it was the bottleneck. */
  readonly busy: number;
  readonly rssMiB: number;
  /** Commands that Redis carried out, by completed request; `undefined` without Redis. */
  readonly redisCommands: number | undefined;
}

export interface Bench {
  readonly options: Options;
  readonly pins: Pins | undefined;
  readonly support: Support;
  readonly folder: string;
}

/** Starts the peer, checks it, warms it up, measures it and ends it: no other peer is there meanwhile. */
export async function measure(bench: Bench, peer: Peer): Promise<Sample> {
  const { options, support } = bench;
  const { child, adminPort, visitors, fire } = await start(bench, peer);
  const collectedBefore = await support.collectedBytes();
  const warmUp = await fire(options.warmUpSeconds);
  const commandsBefore = peer.needsRedis ? await redisCommands(support) : undefined;
  const cpuBefore = cpuSeconds(child.pid);
  const result = await fire(options.seconds);
  const cpu = cpuSeconds(child.pid) - cpuBefore;
  const rssMiB = residentMiB(child.pid);
  const commands = commandsBefore === undefined ? undefined : (await redisCommands(support)) - commandsBefore;

  if (peer.gateway) await agrees(`http://127.0.0.1:${adminPort}`, warmUp.completed + result.completed, visitors.length);
  await endChild(child);
  // Ending flushes the spans, so whatever was sampled has arrived now.
  if (peer.traced) ok((await support.collectedBytes()) > collectedBefore, "spans reached the collector");
  return {
    ...result,
    cpuMicros: (cpu / result.completed) * 1e6,
    rps: result.completed / result.seconds,
    busy: cpu / result.seconds,
    rssMiB,
    redisCommands: commands === undefined ? undefined : commands / result.completed,
  };
}

/** A peer that answers as it should, and its visitors. */
export interface Started {
  readonly child: Child;
  readonly adminPort: number;
  /** Where its files are. */
  readonly folder: string;
  readonly visitors: readonly Visitor[];
  readonly fire: (seconds: number) => Promise<LoadResult>;
}

export async function start(bench: Bench, peer: Peer): Promise<Started> {
  const { options, pins, support } = bench;
  const { upstream, collector, redis } = support;
  const port = await freePort();
  const adminPort = await freePort();
  const folder = await mkdtemp(join(bench.folder, `${peer.name}-`));
  const { args, env } = peer.launch({ folder, port, adminPort, upstream, collector, redis });
  const command = [process.execPath, ...profiling(options, peer), ...args];
  const child = startChild(peer.name, command, { cpus: pins?.proxy, env });
  const url = `http://127.0.0.1:${port}`;
  await untilReady(child, () => knock(port));
  const visitors = await logIn(url, options.sessions, peer.gateway);
  await validate(peer, url, visitors);
  const fire = (seconds: number) => Promise.race([support.load(order(url, options, visitors, seconds)), child.died]);
  return { child, adminPort, folder, visitors, fire };
}

/** All that this Redis has carried out, each command within a script as well. */
async function redisCommands({ redis = "" }: Support): Promise<number> {
  const client = new Redis(redis);
  try {
    return sum(await client.info("commandstats"), /^cmdstat_[^:]+:calls=(\d+)/gm);
  } finally {
    client.disconnect();
  }
}

function profiling({ profile }: Options, { name }: Peer): string[] {
  if (profile === undefined) return [];
  return ["--cpu-prof", "--cpu-prof-interval=250", `--cpu-prof-dir=${profile}`, `--cpu-prof-name=${name}.cpuprofile`];
}

function order(url: string, { connections }: Options, visitors: readonly Visitor[], seconds: number) {
  const cookies = visitors.map((visitor) => visitor.cookie);
  return { url: url + ITEM_PATH, connections, seconds, headers: BROWSER_HEADERS, cookies, expectBody: ITEM_BODY };
}

/** The gateway counted what the load generator did: its metrics were on, and every request had its session. */
async function agrees(adminUrl: string, completed: number, logins: number): Promise<void> {
  const { status, body } = await ask(`${adminUrl}/metrics`);
  equal(status, 200, "the metrics are there");
  const hits = sum(body, /^coatcheck_session_resolutions_total\{outcome="hit",source="\w+"\} (\d+)/gm);
  const requests = sum(body, /^http_server_request_duration_seconds_count\{.*\} (\d+)/gm);
  ok(hits >= completed, `${hits} sessions were found for ${completed} requests`);
  ok(requests >= completed + logins, `${requests} requests were counted, ${completed} made`);
}

function sum(text: string, pattern: RegExp): number {
  return [...text.matchAll(pattern)].reduce((total, [, count]) => total + Number(count), 0);
}
