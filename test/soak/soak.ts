/**
 * A thousand connections to two gateways with one Redis, each a process of its own, and an application that dies and comes
 * back. Clients do what clients do: they leave in the middle, reset, close one half, are revoked. In the end nothing may
 * have failed that was not made to fail, every request must have been counted once, and everything must be given back.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import {
  Agent,
  type ClientRequest,
  type IncomingMessage,
  type RequestOptions,
  request as requestPlain,
} from "node:http";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { request as requestTls, Agent as TlsAgent } from "node:https";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { fileURLToPath } from "node:url";
import { WebSocket } from "ws";
import { makeCertificate } from "../support/certificates.ts";
import { ask, cookiePair } from "../support/client.ts";
import { accepts } from "../support/redis.ts";
import { end, eventually, freePort, isRunning, type Teardown, temporaryFolder } from "../support/resources.ts";
import { SECRET, startRedis } from "../support/servers.ts";
import type { Held } from "./measured.ts";

export interface SoakOptions {
  readonly seconds: number;
  readonly connections: number;
}

/** What one gateway holds, at one moment. */
interface Moment extends Held {
  readonly descriptors: number;
  readonly residentBytes: number;
}

export interface SoakResult {
  readonly seconds: number;
  /** What was done, by kind. */
  readonly done: Readonly<Record<string, number>>;
  /** What failed although nothing was made to fail: there must be none. */
  readonly unexpected: readonly string[];
  /** What failed while the application was away. */
  readonly duringOutages: number;
  readonly outages: number;
  /** Requests that a gateway has answered, or has begun to. */
  readonly sent: number;
  /** Requests during outages that got no answer, so that nobody knows whether they were read. */
  readonly unanswered: number;
  /** Requests by the metrics of both gateways. */
  readonly counted: number;
  readonly webSocketsOpened: number;
  readonly webSocketsClosed: number;
  readonly webSocketsOpen: number;
  readonly activeRequests: number;
  readonly mostConnections: number;
  readonly gateways: readonly { readonly name: string; readonly before: Moment; readonly after: Moment }[];
}

interface GatewayProcess {
  readonly name: string;
  readonly child: ChildProcess;
  readonly port: number;
  readonly adminUrl: string;
  readonly tls: boolean;
}

const file = (name: string) => fileURLToPath(new URL(name, import.meta.url));

/** Failures within this time after the application is back are still its own: it takes up what was cut. */
const RECOVERY_MS = 3_000;
const OUTAGE_MS = 1_500;
const OUTAGE_EVERY_MS = 12_000;
/** The application closes idle connections after two seconds. */
const SETTLE_MS = 30_000;
/** What a client does takes a few seconds, on a machine that is free. */
const HUNG_MS = 60_000;
/** Until a revocation has arrived; milliseconds, where nothing else keeps the machine busy. */
const REVOKED_MS = 10_000;
const USERS = 50;
const PATIENT = "?connectTimeout=20s&commandTimeout=20s&totalTimeout=20s";
/** On a machine that is busy with something else. */
const START_MS = 60_000;
const LARGE_BYTES = 512 * 1024;

export async function soak(t: Teardown, { seconds, connections }: SoakOptions): Promise<SoakResult> {
  const folder = await temporaryFolder(t);
  const redis = await startRedis(t);
  const certificate = makeCertificate(folder, "soak");
  const ca = readFileSync(certificate.cert);
  const application = await startApplication(t);
  const gateways = await Promise.all(
    [false, true].map(async (tls): Promise<GatewayProcess> => {
      const [port, adminPort] = [await freePort(), await freePort()];
      const name = tls ? "tls" : "plain";
      const config = join(folder, `${name}.yaml`);
      const to = { upstream: application.url, session: "required" };
      writeFileSync(
        config,
        JSON.stringify({
          listen: { host: "127.0.0.1", port, ...(tls && { tls: certificate }) },
          admin: { port: adminPort },
          // A machine that is busy is no outage of the store.
          store: `${redis.url}${PATIENT}`,
          session: { cookie: { name: "session", secure: false, secrets: [SECRET] } },
          routes: [
            { match: { path: "/" }, ...to },
            { match: { path: "/login" }, upstream: application.url, session: "optional", write: ["user"] },
          ],
        }),
      );
      const log = openSync(join(folder, `${name}.log`), "w");
      const args = [
        "--expose-gc",
        "--import",
        file("measured.ts"),
        file("../../src/main.ts"),
        "serve",
        "--config",
        config,
      ];
      const child = spawn(process.execPath, args, {
        stdio: ["ignore", log, log, "ipc"],
        env: { PATH: process.env.PATH },
      });
      t.teardown(() => end(child, "SIGKILL"));
      const adminUrl = `http://127.0.0.1:${adminPort}`;
      await eventually(
        `${name} is ready`,
        () =>
          fetch(`${adminUrl}/readyz`).then(
            (res) => res.ok,
            () => false,
          ),
        START_MS,
      );
      return { name, child, port, adminUrl, tls };
    }),
  );
  const traffic = new Traffic(gateways, ca, application);
  // What is made once and kept (code, caches, rings of the recorder) has to be there before it is measured.
  await traffic.run(Math.min(10, seconds / 4), connections, 0);
  const before = await Promise.all(gateways.map((gateway) => settled(gateway)));
  const began = performance.now();
  await traffic.run(seconds, connections, OUTAGE_EVERY_MS);
  const took = (performance.now() - began) / 1000;
  const after = await Promise.all(gateways.map((gateway, i) => settled(gateway, before[i])));
  const metrics = (await Promise.all(gateways.map(({ adminUrl }) => ask(`${adminUrl}/metrics`)))).map(
    ({ body }) => body,
  );
  const total = (pattern: RegExp) => metrics.reduce((sum, text) => sum + sumOf(text, pattern), 0);
  return {
    seconds: took,
    done: traffic.done,
    unexpected: traffic.unexpected,
    duringOutages: traffic.duringOutages,
    outages: traffic.outages,
    sent: traffic.sent,
    unanswered: traffic.unanswered,
    counted: total(/^http_server_request_duration_seconds_count\{.*\} (\d+)/gm),
    webSocketsOpened: traffic.opened,
    webSocketsClosed: total(/^coatcheck_websockets_closed_total\{.*\} (\d+)/gm),
    webSocketsOpen: total(/^coatcheck_websockets_open (\d+)/gm),
    activeRequests: total(/^http_server_active_requests\{.*\} (\d+)/gm),
    mostConnections: traffic.mostConnections,
    gateways: gateways.map(({ name }, i) => ({ name, before: before[i] as Moment, after: after[i] as Moment })),
  };
}

function sumOf(text: string, pattern: RegExp): number {
  return [...text.matchAll(pattern)].reduce((sum, [, value]) => sum + Number(value), 0);
}

function descriptors({ child }: GatewayProcess): number {
  return readdirSync(`/proc/${child.pid}/fd`).length;
}

/** What it holds when its connections have gone; with `goal`, when that has been reached, or after half a minute. */
async function settled(gateway: GatewayProcess, goal?: Moment): Promise<Moment> {
  const deadline = performance.now() + SETTLE_MS;
  let last = -1;
  for (;;) {
    const now = descriptors(gateway);
    const isThere = goal === undefined ? now === last : now <= goal.descriptors;
    if (isThere || performance.now() > deadline) break;
    last = now;
    await sleep(goal === undefined ? 3_000 : 500);
  }
  gateway.child.send("measure");
  const [held] = (await once(gateway.child, "message")) as [Held];
  const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${gateway.child.pid}/status`, "latin1"));
  return { ...held, descriptors: descriptors(gateway), residentBytes: Number(resident?.[1]) * 1024 };
}

interface Application {
  readonly url: string;
  kill(): Promise<void>;
  start(): Promise<void>;
}

async function startApplication(t: Teardown): Promise<Application> {
  const port = await freePort();
  let child: ChildProcess | undefined;
  const start = async (): Promise<void> => {
    child = spawn(process.execPath, [file("application.ts"), String(port)], { stdio: "ignore" });
    await eventually("the application is there", () => accepts(port));
  };
  const kill = async (): Promise<void> => {
    if (isRunning(child)) await end(child, "SIGKILL");
  };
  t.teardown(kill);
  await start();
  return { url: `http://127.0.0.1:${port}`, kill, start };
}

class Failure extends Error {}

function must(isTrue: boolean, what: string): void {
  if (!isTrue) throw new Failure(what);
}

interface Answer {
  readonly status: number;
  readonly user: string;
  readonly body: Buffer;
  readonly setCookie: string | undefined;
}

interface Call {
  readonly path: string;
  readonly cookie?: string | undefined;
  readonly body?: Buffer | string;
  readonly agent?: Agent | TlsAgent | undefined;
  /** Called with each piece of the answer. */
  readonly onData?: (req: ClientRequest, bytes: number) => void;
}

/** The clients. */
class Traffic {
  readonly done: Record<string, number> = {};
  readonly unexpected: string[] = [];
  duringOutages = 0;
  outages = 0;
  sent = 0;
  unanswered = 0;
  opened = 0;
  mostConnections = 0;
  readonly #gateways: readonly GatewayProcess[];
  readonly #ca: Buffer;
  readonly #application: Application;
  #cookies: string[] = [];
  readonly #underWay = new Map<string, number>();
  #isAway = false;
  /** When the last outage was over, and everything had come back. */
  #backMs = 0;
  #untilMs = 0;
  #users = 0;

  constructor(gateways: readonly GatewayProcess[], ca: Buffer, application: Application) {
    this.#gateways = gateways;
    this.#ca = ca;
    this.#application = application;
  }

  get #isOver(): boolean {
    return performance.now() >= this.#untilMs;
  }

  /** @param outageEveryMs 0: none. */
  async run(seconds: number, connections: number, outageEveryMs: number): Promise<void> {
    const logins = Array.from({ length: USERS }, (_, i) =>
      this.#login(this.#gateways[i % 2] as GatewayProcess, `user-${i}`),
    );
    this.#cookies = await Promise.all(logins);
    this.#untilMs = performance.now() + seconds * 1000;
    const share = (part: number) => Math.round(connections * part);
    const clients: Promise<void>[] = [];
    const add = (count: number, client: (gateway: GatewayProcess, index: number) => Promise<void>) => {
      for (let i = 0; i < count; i++) clients.push(client(this.#gateways[i % 2] as GatewayProcess, i));
    };
    add(share(0.58), (gateway, i) => this.#keepAlive(gateway, i));
    add(share(0.2), (gateway) => this.#repeat("websocket", () => this.#webSocket(gateway)));
    add(share(0.1), (gateway, i) => this.#repeat("events", () => this.#events(gateway, i)));
    add(share(0.1), (gateway, i) => this.#repeat("odd", () => this.#odd(gateway, i)));
    add(share(0.02), (_gateway, i) => this.#http2(this.#gateways[1] as GatewayProcess, i));
    const watch = setInterval(() => {
      const open = this.#gateways.reduce((sum, gateway) => sum + clientConnections(gateway), 0);
      this.mostConnections = Math.max(this.mostConnections, open);
    }, 1000);
    const outages = outageEveryMs === 0 ? undefined : this.#breakDowns(outageEveryMs);
    const overdue = new AbortController();
    const hung = sleep(seconds * 1000 + HUNG_MS, undefined, { signal: overdue.signal }).then(
      () => {
        throw new Error(`without an end: ${JSON.stringify(Object.fromEntries(this.#underWay))}`);
      },
      () => {},
    );
    await Promise.race([Promise.all(clients), hung]);
    overdue.abort();
    clearInterval(watch);
    await outages;
  }

  async #breakDowns(everyMs: number): Promise<void> {
    while (this.#untilMs - performance.now() > everyMs / 2 + OUTAGE_MS + RECOVERY_MS) {
      await sleep(everyMs / 2);
      this.#isAway = true;
      this.outages++;
      await this.#application.kill();
      await sleep(OUTAGE_MS);
      await this.#application.start();
      await sleep(RECOVERY_MS);
      this.#backMs = performance.now();
      this.#isAway = false;
      await sleep(everyMs / 2 - RECOVERY_MS);
    }
  }

  /** One thing that a client does. What fails while the application is away was made to fail. */
  async #attempt(kind: string, act: () => Promise<void>): Promise<void> {
    const beganMs = performance.now();
    this.#underWay.set(kind, (this.#underWay.get(kind) ?? 0) + 1);
    try {
      await act();
      this.done[kind] = (this.done[kind] ?? 0) + 1;
    } catch (error) {
      const isInjected = this.#isAway || beganMs < this.#backMs;
      if (isInjected) this.duringOutages++;
      else
        this.unexpected.push(`${kind}: ${error instanceof Failure ? error.message : String((error as Error).stack)}`);
      // Nobody hammers at what is broken.
      await sleep(500);
    } finally {
      this.#underWay.set(kind, (this.#underWay.get(kind) ?? 0) - 1);
    }
  }

  /** Waits, and lets it be known what for. */
  async #waitFor<T>(what: string, promise: Promise<T>): Promise<T> {
    this.#underWay.set(what, (this.#underWay.get(what) ?? 0) + 1);
    return promise.finally(() => this.#underWay.set(what, (this.#underWay.get(what) ?? 0) - 1));
  }

  async #repeat(kind: string, act: () => Promise<void>): Promise<void> {
    await sleep(Math.random() * 2000);
    while (!this.#isOver) {
      await this.#attempt(kind, act);
      await sleep(Math.random() * 1000);
    }
  }

  /** One connection, kept alive, for one request after the other. */
  async #keepAlive(gateway: GatewayProcess, index: number): Promise<void> {
    const options = { keepAlive: true, maxSockets: 1, ca: this.#ca };
    const agent = gateway.tls ? new TlsAgent(options) : new Agent(options);
    await sleep(Math.random() * 2000);
    while (!this.#isOver) {
      const cookie = this.#cookies[index % USERS] as string;
      const [kind, act] = this.#pick(gateway, agent, cookie, `user-${index % USERS}`);
      await this.#attempt(kind, act);
      await sleep(Math.random() * 2500);
    }
    agent.destroy();
  }

  #pick(gateway: GatewayProcess, agent: Agent | TlsAgent, cookie: string, user: string): [string, () => Promise<void>] {
    const dice = Math.random();
    if (dice < 0.7)
      return [
        "get",
        async () => {
          const answer = await this.#call(gateway, { path: "/", cookie, agent });
          must(answer.status === 200 && answer.body.length === 1024, `status ${answer.status}`);
          must(answer.user === user, `${answer.user} instead of ${user}`);
        },
      ];
    if (dice < 0.79)
      return [
        "upload",
        async () => {
          const body = randomBytes(1 + Math.floor(Math.random() * 300_000));
          const answer = await this.#call(gateway, { path: "/upload", cookie, agent, body });
          must(answer.status === 200 && String(answer.body) === sha256(body), `status ${answer.status}`);
        },
      ];
    if (dice < 0.88)
      return [
        "download",
        async () => {
          const answer = await this.#call(gateway, { path: "/download", cookie, agent });
          must(
            answer.status === 200 && answer.body.length === LARGE_BYTES,
            `${answer.status}, ${answer.body.length} octets`,
          );
        },
      ];
    if (dice < 0.92) return ["download, aborted", () => this.#abortDownload(gateway, agent, cookie)];
    if (dice < 0.96) return ["upload, aborted", () => this.#abortUpload(gateway, agent, cookie)];
    return ["revoked", () => this.#revoke(gateway, agent)];
  }

  async #abortDownload(gateway: GatewayProcess, agent: Agent | TlsAgent, cookie: string): Promise<void> {
    let isCut = false;
    const cut = (req: ClientRequest) => {
      isCut = true;
      if (Math.random() < 0.5 && !gateway.tls) req.socket?.resetAndDestroy();
      else req.destroy();
    };
    await this.#call(gateway, { path: "/download", cookie, agent, onData: cut }).catch((error) => {
      if (!isCut) throw error;
    });
    must(isCut, "nothing came that could be cut off");
  }

  /** The gateway has told that it wants the content (100), so it has seen the request. */
  #abortUpload(gateway: GatewayProcess, agent: Agent | TlsAgent, cookie: string): Promise<void> {
    const headers = { cookie, expect: "100-continue", "content-length": 1_000_000 };
    const req = this.#request(gateway, { method: "POST", path: "/upload", headers, agent });
    return new Promise((resolve, reject) => {
      let wasAnswered = false;
      let wasCut = false;
      req.once("continue", () => {
        wasAnswered = true;
        this.sent++;
        req.write(randomBytes(200_000), () => {
          wasCut = true;
          if (gateway.tls) req.destroy();
          else req.socket?.resetAndDestroy();
          resolve();
        });
      });
      req.once("response", (res) => {
        if (!wasAnswered) this.sent++;
        wasAnswered = true;
        req.destroy();
        reject(new Failure(`status ${res.statusCode}`));
      });
      req.on("error", (error) => {
        if (!wasAnswered) this.unanswered++;
        if (!wasCut) reject(error);
      });
      req.flushHeaders();
    });
  }

  /** Somebody signs in, is revoked at the other gateway, and is a stranger at this one. */
  async #revoke(gateway: GatewayProcess, agent: Agent | TlsAgent): Promise<void> {
    const user = this.#newUser();
    const cookie = await this.#login(gateway, user, agent);
    const answer = await this.#call(gateway, { path: "/", cookie, agent });
    must(answer.status === 200 && answer.user === user, `status ${answer.status}`);
    await this.#endSessions(gateway, user);
    const deadlineMs = performance.now() + REVOKED_MS;
    for (;;) {
      const { status } = await this.#call(gateway, { path: "/", cookie, agent });
      if (status === 401) return;
      must(status === 200 && performance.now() < deadlineMs, `revoked, and still ${status}`);
      await sleep(20);
    }
  }

  #newUser(): string {
    return `guest-${this.#users++}`;
  }

  async #endSessions(gateway: GatewayProcess, user: string): Promise<void> {
    const other = this.#gateways.find((one) => one !== gateway) as GatewayProcess;
    const { status } = await ask(`${other.adminUrl}/sessions?user=${user}`, { method: "DELETE" });
    must(status < 300, `the revocation was answered with ${status}`);
  }

  async #login(gateway: GatewayProcess, user: string, agent?: Agent | TlsAgent): Promise<string> {
    const body = JSON.stringify({ user: { id: user } });
    const { status, setCookie } = await this.#call(gateway, { path: "/login", body, agent });
    must(status === 200 && setCookie !== undefined, `the login was answered with ${status}`);
    return cookiePair(setCookie);
  }

  async #webSocket(gateway: GatewayProcess): Promise<void> {
    const user = this.#newUser();
    const cookie = await this.#waitFor("websocket, login", this.#login(gateway, user));
    const url = `${gateway.tls ? "wss" : "ws"}://127.0.0.1:${gateway.port}/talk`;
    const perMessageDeflate = Math.random() < 0.3;
    const ws = new WebSocket(url, { headers: { cookie }, ca: this.#ca, perMessageDeflate });
    const closed = new Promise<number>((resolve) => ws.once("close", resolve));
    ws.on("error", () => {});
    let answered = false;
    ws.once("upgrade", () => {
      answered = true;
      this.opened++;
      this.sent++;
    });
    ws.once("unexpected-response", (_req, res) => {
      answered = true;
      this.sent++;
      res.resume();
      ws.terminate();
    });
    await this.#waitFor("websocket, to open", Promise.race([once(ws, "open"), closed]));
    if (!answered) this.unanswered++;
    must(ws.readyState === WebSocket.OPEN, "no WebSocket");
    for (let i = 0; i < 8; i++) {
      const message = randomBytes(1 + Math.floor(Math.random() * (i === 0 ? 200_000 : 2_000)));
      ws.send(message);
      const echoed = await this.#waitFor("websocket, echo", Promise.race([once(ws, "message"), closed]));
      must(Array.isArray(echoed) && message.equals(echoed[0] as Buffer), "the echo was cut off, or another");
      await sleep(Math.random() * 500);
    }
    const dice = Math.random();
    if (dice < 0.3) ws.terminate();
    else if (dice < 0.6) ws.close(1000);
    else {
      await this.#waitFor("websocket, revocation", this.#endSessions(gateway, user));
      const code = await Promise.race([closed, sleep(REVOKED_MS).then(() => 0)]);
      must(code === 1008, `closed with ${code} when its session was revoked`);
      this.done["websocket, revoked"] = (this.done["websocket, revoked"] ?? 0) + 1;
    }
    await this.#waitFor("websocket, to close", closed);
  }

  async #events(gateway: GatewayProcess, index: number): Promise<void> {
    const cookie = this.#cookies[index % USERS];
    let events = 0;
    const count = (req: ClientRequest) => {
      if (++events === 20) req.destroy();
    };
    await this.#call(gateway, { path: "/events", cookie, onData: count }).catch((error) => {
      if (events < 20) throw error;
    });
    must(events >= 20, "the stream ended early");
  }

  /** Half-closed, reset, and half a head. */
  async #odd(gateway: GatewayProcess, index: number): Promise<void> {
    const socket: Socket = gateway.tls
      ? connectTls({ port: gateway.port, host: "127.0.0.1", ca: this.#ca, allowHalfOpen: true } as never)
      : connect({ port: gateway.port, host: "127.0.0.1", allowHalfOpen: true });
    const failed = new Promise<never>((_resolve, reject) => socket.once("error", reject));
    failed.catch(() => {});
    await Promise.race([once(socket, gateway.tls ? "secureConnect" : "connect"), failed]);
    const request = `GET / HTTP/1.1\r\nHost: soak\r\nCookie: ${this.#cookies[index % USERS]}\r\n`;
    const dice = Math.random();
    await sleep(Math.random() * 500);
    if (dice < 0.3) {
      // Whoever goes before a request is there has asked for nothing.
      socket.write(request);
      await sleep(50);
      if (gateway.tls) socket.destroy();
      else socket.resetAndDestroy();
      return;
    }
    // Whoever closes one half has gone, as nginx sees it too: what is whole is begun and cut off, what is not is dropped.
    const isWhole = dice < 0.8;
    if (isWhole) this.sent++;
    socket.end(isWhole ? `${request}\r\n` : request);
    let text = "";
    socket.setEncoding("latin1").on("data", (piece) => {
      text += piece;
    });
    await Promise.race([once(socket, "end"), failed]).finally(() => socket.destroy());
    const isRight = text === "" || (isWhole && text.startsWith("HTTP/1.1 200 "));
    must(isRight, `${gateway.name}, half-closed, was answered with ${text.slice(0, 40)}`);
  }

  /** One connection with several requests at once, some of which are reset; then another. */
  async #http2(gateway: GatewayProcess, index: number): Promise<void> {
    await sleep(Math.random() * 1000);
    while (!this.#isOver) {
      const session = connectHttp2(`https://127.0.0.1:${gateway.port}`, { ca: this.#ca });
      session.on("error", () => {});
      for (let round = 0; round < 10 && !this.#isOver && !session.destroyed; round++) {
        const streams = Array.from({ length: 5 }, (_, i) =>
          this.#attempt("http2", () => this.#stream(session, this.#cookies[(index + i) % USERS] as string)),
        );
        await Promise.all(streams);
        await sleep(Math.random() * 1000);
      }
      session.destroy();
    }
  }

  #stream(session: ClientHttp2Session, cookie: string): Promise<void> {
    const isUpload = Math.random() < 0.3;
    const isReset = !isUpload && Math.random() < 0.2;
    const body = isUpload ? randomBytes(50_000) : undefined;
    const path = isUpload ? "/upload" : isReset ? "/download" : "/";
    return new Promise((resolve, reject) => {
      const stream = session.request({ ":method": isUpload ? "POST" : "GET", ":path": path, cookie });
      let status = 0;
      const pieces: Buffer[] = [];
      stream.on("response", (headers) => {
        this.sent++;
        status = Number(headers[":status"]);
        if (isReset) stream.close(8);
      });
      stream.on("data", (piece: Buffer) => pieces.push(piece));
      stream.on("error", () => {});
      stream.on("close", () => {
        if (status === 0) this.unanswered++;
        const content = Buffer.concat(pieces);
        const isRight = isReset || (body === undefined ? content.length === 1024 : String(content) === sha256(body));
        if (status === 200 && isRight) resolve();
        else reject(new Failure(`status ${status}, ${content.length} octets, code ${stream.rstCode}`));
      });
      stream.end(body);
    });
  }

  #request(gateway: GatewayProcess, options: RequestOptions): ClientRequest {
    const where = { host: "127.0.0.1", port: gateway.port, ca: this.#ca, ...options };
    return gateway.tls ? requestTls(where) : requestPlain(where);
  }

  #call(gateway: GatewayProcess, { path, cookie, body, agent, onData }: Call): Promise<Answer> {
    return new Promise((resolve, reject) => {
      let isAnswered = false;
      const failed = (error: Error) => {
        if (!isAnswered) this.unanswered++;
        isAnswered = true;
        reject(error);
      };
      const headers = {
        ...(cookie && { cookie }),
        ...(body !== undefined && { "content-length": Buffer.byteLength(body) }),
      };
      const method = body === undefined ? "GET" : "POST";
      // A connection of its own, where it is not one that is kept.
      const req = this.#request(gateway, { path, method, headers, agent: agent ?? false });
      req.on("error", failed);
      req.once("response", (res: IncomingMessage) => {
        this.sent++;
        isAnswered = true;
        const pieces: Buffer[] = [];
        res.on("data", (piece: Buffer) => {
          pieces.push(piece);
          onData?.(req, piece.length);
        });
        res.on("error", reject);
        res.on("aborted", () => reject(new Failure(`${path} was cut off`)));
        res.on("end", () =>
          resolve({
            status: res.statusCode ?? 0,
            user: String(res.headers["x-user"] ?? ""),
            body: Buffer.concat(pieces),
            setCookie: res.headers["set-cookie"]?.[0],
          }),
        );
      });
      req.end(body);
    });
  }
}

function sha256(octets: Buffer): string {
  return createHash("sha256").update(octets).digest("hex");
}

/** Connections of clients at the listener, by the kernel's table. */
function clientConnections({ port }: GatewayProcess): number {
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const lines = readFileSync("/proc/net/tcp", "latin1").split("\n");
  return lines.filter((line) => {
    const [, address, , state] = line.trim().split(/\s+/);
    // ESTABLISHED
    return state === "01" && address?.endsWith(local);
  }).length;
}
