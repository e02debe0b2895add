/** Sends one case through one lane, and says what became of it. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { foldName } from "../../src/core/header-names.ts";
import type { Case } from "./case.ts";
import type { Lane } from "./proxies.ts";
import { IDENTITY } from "./proxies.ts";
import { otherReadings, type RequestMessage, type ResponseMessage, readRequests, readResponses } from "./reader.ts";
import { PROBE } from "./recorder.ts";

/** What is wrong with an outcome, whoever the proxy is. */
export const FAULTS = {
  "two readings": "the upstream received octets that servers read differently",
  malformed: "the upstream received octets that no strict server reads",
  smuggled: "the upstream received more requests than there were",
  "let through": "the upstream, or the client, received what the RFC says to refuse",
  refused: "what the RFC says to forward was refused, or changed",
  forged: "the client's word reached the upstream as an identity",
  bypassed: "the closed path reached the upstream in some spelling",
  poisoned: "a later request got another's answer, or none",
  hung: "a whole request got no answer",
  disguised: "a bad answer reached the client as a good one",
} as const;
export type Fault = keyof typeof FAULTS;

export interface Outcome {
  /** What happened, in a few words that compare: `forwarded 200`, `refused 400`, `closed`, `waits`. */
  readonly what: string;
  readonly faults: readonly Fault[];
  /** For a look at what was received; not compared. */
  readonly upstream: readonly string[];
  readonly client: string;
}

/** How long nothing has to happen, once a later request has gone through, until silence is an answer. */
const QUIET_MS = 40;
/** Bound for everything that should happen at once. */
const PATIENCE_MS = 8000;

export async function runCase(lane: Lane, item: Case): Promise<Outcome> {
  const { recorder } = lane;
  await recorder.begin({ answer: item.answer, closes: item.closes });
  const exchange = await Exchange.open(lane);
  const intended = requestsOf(item);
  const methods = methodsOf(item);
  await exchange.send(item.octets);
  const probes: (string | undefined)[] = [];
  // What comes later has been answered: whatever was to happen has happened, but for timers.
  for (let round = 0; round < 4 && !exchange.closed; round++) {
    const answers = readResponses(exchange.received, methods, false).messages.filter(({ status }) => status >= 200);
    if (round > 0 && answers.length >= intended) break;
    await exchange.quiet(() => recorder.activity, QUIET_MS * (round + 1));
    probes.push(await probe(lane));
  }
  await exchange.quiet(() => recorder.activity, QUIET_MS);
  const client = exchange.received;
  const { closed } = exchange;
  exchange.destroy();
  // The next client, and one more: the first may have had a new connection.
  probes.push(await probe(lane), await probe(lane));
  return judge(item, client, closed, recorder.connections, probes);
}

function joined(item: Case): string {
  return typeof item.octets === "string" ? item.octets : item.octets.join("");
}

/** How many answers the client may wait for. */
function requestsOf(item: Case): number {
  return item.requests ?? 1;
}

function methodsOf(item: Case): string[] {
  const { messages } = readRequests(joined(item));
  const methods = messages.map(({ method }) => method);
  return methods.length > 0 ? methods : [joined(item).trimStart().split(/[ \t]/, 1)[0] ?? "GET"];
}

let probesSent = 0;

/** @returns what is wrong with the answer; `undefined` if nothing is. */
async function probe(lane: Lane): Promise<string | undefined> {
  const target = `${PROBE}${++probesSent}`;
  const exchange = await Exchange.open(lane);
  exchange.write(`GET ${target} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n`);
  await exchange.ended();
  const { messages } = readResponses(exchange.received, ["GET"], true);
  exchange.destroy();
  const [answer] = messages;
  if (answer?.status === 200 && answer.body === `GET ${target} 0`) return undefined;
  return answer === undefined ? "no answer" : `${answer.status} ${answer.body.slice(0, 40)}`;
}

/** A connection of a client. */
class Exchange {
  readonly #socket: Socket;
  received = "";
  closed = false;
  #activity = 0;

  static async open({ port }: Lane): Promise<Exchange> {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true });
    socket.on("error", () => {});
    const exchange = new Exchange(socket);
    await once(socket, "connect");
    return exchange;
  }

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding("latin1").on("data", (piece: string) => {
      this.received += piece;
      this.#activity++;
    });
    socket.on("end", () => this.#close());
    socket.on("close", () => this.#close());
  }

  #close(): void {
    this.closed = true;
    this.#activity++;
  }

  write(octets: string): void {
    if (!this.#socket.destroyed) this.#socket.write(octets, "latin1");
  }

  async send(octets: string | readonly string[]): Promise<void> {
    if (typeof octets === "string") {
      this.write(octets);
      return;
    }
    for (const piece of octets) {
      this.write(piece);
      // So that the pieces arrive as pieces.
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Until nothing has happened here or there for so long. */
  async quiet(elsewhere: () => number, ms: number): Promise<void> {
    for (let waited = 0; waited < ms && !this.closed; ) {
      const before = this.#activity + elsewhere();
      await new Promise((resolve) => setTimeout(resolve, 10));
      waited = this.#activity + elsewhere() === before ? waited + 10 : 0;
    }
  }

  async ended(): Promise<void> {
    if (this.closed) return;
    const timer = setTimeout(() => this.#socket.destroy(), PATIENCE_MS);
    await new Promise<void>((resolve) => this.#socket.once("end", resolve).once("close", () => resolve()));
    clearTimeout(timer);
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

interface Seen {
  readonly requests: readonly RequestMessage[];
  /** Octets of a request that is not whole. */
  readonly partial: boolean;
  readonly malformed: boolean;
  readonly readings: boolean;
}

function seenBy(connections: readonly string[]): Seen {
  const requests: RequestMessage[] = [];
  let partial = false;
  let malformed = false;
  let readings = false;
  for (const octets of connections) {
    const reading = readRequests(octets);
    requests.push(...reading.messages.filter(({ target }) => !target.startsWith(PROBE)));
    partial ||= reading.rest !== "" && reading.error === undefined;
    malformed ||= reading.error !== undefined;
    readings ||= otherReadings(octets).length > 0;
  }
  return { requests, partial, malformed, readings };
}

function judge(
  item: Case,
  client: string,
  closed: boolean,
  connections: readonly string[],
  probes: readonly (string | undefined)[],
): Outcome {
  const seen = seenBy(connections);
  const answers = readResponses(client, methodsOf(item), closed);
  const finals = answers.messages.filter(({ status }) => status >= 200);
  const what =
    item.answer === undefined
      ? describe(seen, finals, client, closed)
      : describeAnswer(item, finals, answers.error, client, closed);
  const faults = new Set<Fault>();
  if (seen.readings) faults.add("two readings");
  if (seen.malformed) faults.add("malformed");
  if (seen.requests.length > mostOf(item)) faults.add(mostOf(item) === 0 ? "let through" : "smuggled");
  if (seen.requests.some(isForged)) faults.add("forged");
  if (seen.requests.some(reachesClosedPath)) faults.add("bypassed");
  if (probes.some((problem) => problem !== undefined)) faults.add("poisoned");
  if (item.waits !== true && !closed && finals.length < Math.max(1, requestsOf(item))) faults.add("hung");
  if (item.answer === undefined) {
    if (item.rule === "must-forward" && !wasForwarded(item, seen, finals)) faults.add("refused");
  } else {
    if (item.rule === "must-refuse" && what.startsWith("passed")) faults.add("let through");
    if (item.rule === "must-forward" && !what.startsWith("passed")) faults.add("refused");
    if (answers.error !== undefined || what.startsWith("changed")) faults.add("disguised");
  }
  return { what, faults: [...faults], upstream: connections, client };
}

function mostOf(item: Case): number {
  return item.requests ?? (item.rule === "must-refuse" && item.answer === undefined ? 0 : 1);
}

function wasForwarded(item: Case, { requests }: Seen, finals: readonly ResponseMessage[]): boolean {
  const meant = readRequests(joined(item)).messages.slice(0, requestsOf(item));
  return (
    requests.length === meant.length &&
    meant.every(({ method, target, body }) =>
      requests.some(
        (got) => got.method === method && got.body === body && originForm(got.target) === originForm(target),
      ),
    ) &&
    finals.slice(0, meant.length).every(({ status }) => status === 200)
  );
}

/** The path, also of an absolute form, which a server has to understand (RFC 9112 §3.2.2). */
export function originForm(target: string): string {
  const [, rest] = /^http:\/\/[^/?]*(.*)$/i.exec(target) ?? [];
  if (rest === undefined) return target;
  return rest.startsWith("/") ? rest : `/${rest}`;
}

export function isForged({ fields, trailers }: RequestMessage): boolean {
  const folded = foldName(IDENTITY);
  return (
    fields.some(([name, value]) => foldName(name) === folded && value.includes("evil")) ||
    trailers.some(([name]) => foldName(name) === folded) ||
    fields.filter(([name]) => foldName(name) === folded).length !== 1
  );
}

/**
 * In any reading of the path: decoded as often as it takes, whole or cut at what may begin a query, `\` as `/`, parameters
 * and blanks cut off, slashes merged, any case.
 */
export function reachesClosedPath({ target }: Pick<RequestMessage, "target">): boolean {
  let path = target.replace(/^http:\/\/[^/?]*/i, "").split("?", 1)[0] ?? "";
  for (let layer = 0; layer < 5; layer++)
    path = path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return [path, path.replace(/[?#\0].*$/s, "")].some((reading) => firstSegment(reading) === "admin");
}

function firstSegment(path: string): string | undefined {
  const segments: string[] = [];
  for (const segment of path.toLowerCase().replaceAll("\\", "/").split("/")) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: what is trimmed
    const plain = segment.replace(/;.*$/s, "").replace(/^[\x00-\x20]+|[\x00-\x20]+$/g, "");
    if (plain === "..") segments.pop();
    else if (plain !== "" && plain !== ".") segments.push(plain);
  }
  return segments[0];
}

/** What became of a request. */
function describe(seen: Seen, finals: readonly ResponseMessage[], client: string, closed: boolean): string {
  const statuses = statusList(finals, client, closed);
  if (seen.malformed) return `forwarded malformed ${statuses}`;
  if (seen.requests.length > 1) return `forwarded ×${seen.requests.length} ${statuses}`;
  if (seen.requests.length === 1) return `forwarded ${statuses}`;
  if (seen.partial) return statuses === "waits" ? "begun, waits" : `cut off ${statuses}`;
  if (finals.length > 0) return `${(finals[0]?.status ?? 0) < 400 ? "answered" : "refused"} ${statuses}`;
  return statuses;
}

function statusList(finals: readonly ResponseMessage[], client: string, closed: boolean): string {
  if (finals.length === 0) {
    if (client !== "" && !client.startsWith("HTTP/1.")) return "answered as HTTP/0.9";
    return closed ? "closed" : "waits";
  }
  const list = finals.map(({ status }) => status);
  const same = list.every((status) => status === list[0]);
  return same && list.length > 2 ? `${list[0]} ×${list.length}` : list.join(" ");
}

/** What the client made of an upstream's answer. */
function describeAnswer(
  item: Case,
  finals: readonly ResponseMessage[],
  error: string | undefined,
  client: string,
  closed: boolean,
): string {
  const [answer] = finals;
  if (answer === undefined) {
    if (error !== undefined && client.startsWith("HTTP/1.")) return "passed malformed";
    if (client !== "" && !client.startsWith("HTTP/1.")) return "passed as HTTP/0.9";
    return closed ? "cut" : "waits";
  }
  const meant = readResponses(item.answer ?? "", methodsOf(item), item.closes === true);
  const expected = meant.messages.find(({ status }) => status >= 200);
  const byProxy = answer.status >= 500 && answer.status !== expected?.status;
  if (byProxy) return `refused ${answer.status}`;
  if (expected === undefined) return `passed ${answer.status}`;
  const same = expected.status === answer.status && expected.body === answer.body;
  return `${same ? "passed" : "changed"} ${answer.status}`;
}
