/**
 * Requests: mutated messages of the differential test, over real sockets, in pieces, to a real gateway. What the upstream
 * receives is zero or more unambiguous requests, each of which was sent, with an identity that is only ours.
 */
import { connect, type Socket } from "node:net";
import { CASES } from "../differential/cases/index.ts";
import type { Lane } from "../differential/proxies.ts";
import { otherReadings, type RequestMessage, readRequests, readResponses } from "../differential/reader.ts";
import { PROBE } from "../differential/recorder.ts";
import { isForged, originForm, reachesClosedPath } from "../differential/run-case.ts";
import { startFuzzedLanes, type Watch } from "./lanes.ts";
import { fragment, HTTP_WORDS, mutate } from "./mutate.ts";
import type { Random } from "./random.ts";
import { must, type Target } from "./target.ts";

interface Input {
  readonly pieces: readonly string[];
  /** How the client ends: it says that nothing more comes, or it resets the connection. */
  readonly ending: "end" | "reset";
}

const SEEDS = CASES.filter(({ answer }) => answer === undefined)
  .map(({ octets }) => (typeof octets === "string" ? octets : octets.join("")))
  .filter((octets) => octets.length < 50_000);

const LANES = 16;
/** Answer or close within this time, on a busy machine. */
const PATIENCE_MS = 10_000;
const QUIET_MS = 15;
const QUIET_TURNS = 12;

export const requests: Target = {
  name: "requests",
  async start(t) {
    const { lanes, watch } = await startFuzzedLanes(t, LANES);
    return {
      lanes: LANES,
      generate(random: Random): Input {
        const octets = mutate(random, random.pick(SEEDS), HTTP_WORDS, SEEDS);
        return { pieces: fragment(random, octets), ending: random.chance(0.9) ? "end" : "reset" };
      },
      check: (input, lane) => checkRequest(lanes[lane] as Lane, input as Input),
      finish: () => finish(lanes, watch),
    };
  },
};

async function finish(lanes: readonly Lane[], watch: Watch): Promise<void> {
  for (const lane of lanes) await probe(lane);
  await watch.settled();
}

export async function checkRequest(lane: Lane, { pieces, ending }: Input): Promise<void> {
  const { recorder } = lane;
  recorder.forget();
  const sent = readRequests(pieces.join(""), AS_WE_READ);
  const methods = sent.messages.map(({ method }) => method);
  // Node does not hand over what comes in one packet with an upgrade that is not granted (docs/http.md).
  const mayBeLost = /\nupgrade:/i.test(pieces.join(""));
  const whole = !mayBeLost && sent.error === undefined && sent.rest === "" && sent.messages.length > 0;
  const countAnswers = (text: string) =>
    readResponses(text, methods, false).messages.filter(({ status }) => status >= 200).length;
  const enough = whole ? (text: string) => countAnswers(text) >= methods.length : untilQuiet(lane);
  const received = await send(lane, { pieces, ending }, enough);
  must(received !== undefined, "neither an answer nor a close");
  // Of a client that has gone, something may be on its way still.
  if (!whole || ending === "reset") {
    const quiet = untilQuiet(lane);
    while (!quiet(received)) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await recorder.atRest(PATIENCE_MS);
  const forwarded: RequestMessage[] = [];
  for (const octets of recorder.connections) {
    const reading = readRequests(octets);
    must(reading.error === undefined, `the upstream received what is malformed: ${reading.error}`);
    must(otherReadings(octets).length === 0, `the upstream received two readings: ${otherReadings(octets)}`);
    forwarded.push(...reading.messages);
  }
  for (const request of forwarded) {
    must(!isForged(request), "a forged identity");
    must(!reachesClosedPath(request), "the closed path was reached");
    must(
      sent.messages.some(
        ({ method, target, body }) =>
          method === request.method && originForm(target) === request.target && body === request.body,
      ),
      `nobody sent this request: ${request.method} ${request.target.slice(0, 100)} with ${request.body.length} octets`,
    );
  }
  must(forwarded.length <= sent.messages.length, "more requests than were sent");
  if (ending === "reset") return;
  // What is malformed has no method: the refusal of what looks like a HEAD may have content, and the connection ends.
  const last = sent.rest.trimStart().split(/[ \t]/, 1)[0] ?? "";
  const readings = [last, "GET"].map((method) => readResponses(received, [...methods, method], true));
  const answers = readings.find(({ error }) => error === undefined) ?? (readings[0] as (typeof readings)[number]);
  must(answers.error === undefined, `the client received what is malformed: ${answers.error}`);
}

/** What llhttp takes, where RFC 9112 leaves it to the recipient. */
const AS_WE_READ = { emptyLines: true, spaces: true };

/**
 * Sends the pieces, waits for so many answers (or, where nobody can say how many there will be, until nothing happens any
 * more), and ends the connection.
 * @returns what came back; `undefined` if neither enough of it nor the end of the connection came in time.
 */
async function send(
  lane: Lane,
  { pieces, ending }: Input,
  enough: (received: string) => boolean,
): Promise<string | undefined> {
  const client = new Client(lane);
  await client.connected;
  for (const [i, piece] of pieces.entries()) {
    client.write(piece);
    if (i < pieces.length - 1) await new Promise((resolve) => setImmediate(resolve));
  }
  if (ending === "end" && !(await client.until(() => enough(client.received)))) {
    client.reset();
    return undefined;
  }
  if (ending === "end") client.end();
  else client.reset();
  const closed = await client.until(() => false);
  client.reset();
  return closed ? client.received : undefined;
}

/**
 * Until nothing has happened for a while, here or at the upstream: a time, and turns of the loop that everything runs in,
 * because on a busy machine one turn may take that long.
 */
function untilQuiet(lane: Lane): (received: string) => boolean {
  let before = -1;
  let since = 0;
  let turns = 0;
  return (received) => {
    const now = received.length + lane.recorder.activity;
    if (now !== before) {
      since = performance.now();
      turns = 0;
    }
    before = now;
    return ++turns > QUIET_TURNS && performance.now() - since > QUIET_MS;
  };
}

/** A connection to a gateway. */
export class Client {
  readonly #socket: Socket;
  readonly connected: Promise<void>;
  received = "";
  closed = false;

  constructor({ port }: Lane) {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true });
    this.#socket = socket;
    this.connected = new Promise((resolve) => socket.once("connect", resolve).once("close", () => resolve()));
    socket.on("error", () => {});
    socket.on("close", () => {
      this.closed = true;
    });
    socket.setEncoding("latin1").on("data", (piece: string) => {
      this.received += piece;
    });
  }

  write(octets: string): void {
    if (!this.#socket.destroyed) this.#socket.write(octets, "latin1");
  }

  end(): void {
    this.#socket.end();
  }

  reset(): void {
    if (!this.#socket.destroyed) this.#socket.resetAndDestroy();
  }

  /** @returns whether the connection was closed, or the condition came true, in time. */
  async until(condition: () => boolean): Promise<boolean> {
    const deadline = performance.now() + PATIENCE_MS;
    while (!this.closed && !condition()) {
      if (performance.now() > deadline) return false;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return true;
  }
}

/** A plain request gets its own answer. */
export async function probe(lane: Lane): Promise<void> {
  const target = `${PROBE}fuzz`;
  const pieces = [`GET ${target} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n`];
  const received = await send(lane, { pieces, ending: "end" }, () => false);
  const [answer] = readResponses(received ?? "", ["GET"], true).messages;
  must(
    answer?.status === 200 && answer.body === `GET ${target} 0`,
    `a later request gets ${answer?.status ?? "no answer"}`,
  );
}
