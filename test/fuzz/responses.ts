/**
 * Answers of an upstream: mutated, in pieces. The client receives a valid response or sees that it is cut, and a later
 * request gets its own answer.
 */
import { CASES } from "../differential/cases/index.ts";
import type { Lane } from "../differential/proxies.ts";
import { readResponses } from "../differential/reader.ts";
import { startFuzzedLanes } from "./lanes.ts";
import { fragment, mutate } from "./mutate.ts";
import type { Random } from "./random.ts";
import { Client, probe } from "./requests.ts";
import { must, type Target } from "./target.ts";

interface Input {
  readonly method: "GET" | "HEAD" | "POST";
  readonly pieces: readonly string[];
  readonly closes: boolean;
}

const SEEDS = CASES.flatMap(({ answer }) => (answer === undefined || answer.length > 50_000 ? [] : [answer]));
const WORDS = [
  "\r\n",
  "\n",
  "\r",
  "\r\n\r\n",
  "\0",
  "\t",
  " ",
  ":",
  ";",
  ",",
  "\x7f",
  "\xff",
  "0",
  "0\r\n\r\n",
  "-1",
  "+1",
  "0x1",
  "HTTP/1.1 200 OK\r\n",
  "HTTP/1.1 100 Continue\r\n\r\n",
  "HTTP/1.1 103 Early Hints\r\n\r\n",
  "HTTP/1.1 101 Switching Protocols\r\n\r\n",
  "HTTP/1.0",
  "HTTP/1.1 204 No Content\r\n\r\n",
  "HTTP/1.1 304 Not Modified\r\n\r\n",
  "Content-Length: 0\r\n",
  "Content-Length: 2\r\n",
  "Transfer-Encoding: chunked\r\n",
  "Connection: close\r\n",
  "Connection: keep-alive\r\n",
  "Connection: upgrade\r\nUpgrade: websocket\r\n",
  "Keep-Alive: timeout=1\r\n",
  "Trailer: X\r\n",
  "Set-Cookie: session=evil\r\n",
  "X-Session-Start: {}\r\n",
  "X-Session-End: all\r\n",
  "Via: 1.1 x\r\n",
  "5\r\nhello\r\n",
  "ffffffffffffffff\r\n",
];

/** What undici takes: the reason is nobody's to read, and the version makes no difference. */
const AS_WE_READ = { emptyLines: true, statusLines: true };

const LANES = 16;

export const responses: Target = {
  name: "responses",
  async start(t) {
    const { lanes, watch } = await startFuzzedLanes(t, LANES, { firstByte: "150ms", idle: "150ms" });
    return {
      lanes: LANES,
      generate(random: Random): Input {
        return {
          method: random.pick(["GET", "GET", "GET", "HEAD", "POST"] as const),
          pieces: fragment(random, mutate(random, random.pick(SEEDS), WORDS, SEEDS)),
          closes: random.chance(0.8),
        };
      },
      check: (input, lane) => checkResponse(lanes[lane] as Lane, input as Input),
      finish: () => watch.settled(),
    };
  },
};

async function checkResponse(lane: Lane, { method, pieces, closes }: Input): Promise<void> {
  const { recorder } = lane;
  recorder.forget();
  recorder.script = { answer: pieces, closes };
  const client = new Client(lane);
  await client.connected;
  const content = method === "POST" ? "Content-Length: 2\r\n\r\nok" : "\r\n";
  client.write(`${method} /answer HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n${content}`);
  const closed = await client.until(() => false);
  client.reset();
  must(closed, "neither an answer nor a close");
  const { received } = client;
  const answers = readResponses(received, [method], true);
  must(answers.error === undefined, `the client received what is malformed: ${answers.error}`);
  const finals = answers.messages.filter(({ status }) => status >= 200);
  must(finals.length <= 1, "two answers to one request");
  const [answer] = finals;
  must(answers.rest === "" || answer === undefined, "octets after the answer");
  for (const [name, value] of answer?.fields ?? []) {
    must(
      !/^x-session-|^x-coatcheck-|^upgrade$|^keep-alive$/i.test(name) || /^timeout=75$/.test(value),
      `the client received ${name}`,
    );
    must(!/^set-cookie$/i.test(name) || !/^\s*session\s*=/.test(value), "the application has set the session cookie");
  }
  // undici's parser takes CRs at the end of a status line for the end of the head: there is nothing in such an answer.
  const endsEarly = /^[^\n]*\r\r/.test(pieces.join("")) && answer?.body === "";
  if (answer !== undefined && !endsEarly)
    sameAsMeant(answer, readResponses(pieces.join(""), [method], closes, AS_WE_READ));
  // Who sends more after a request is on its way answers that request, as far as anybody can see.
  await recorder.sent();
  // The next two: the first may get a new connection.
  await probe(lane);
  await probe(lane);
}

type Answers = ReturnType<typeof readResponses>;

/** What the client takes for whole is what the upstream has sent, or it is an error of ours. */
function sameAsMeant(answer: Answers["messages"][number], meant: Answers): void {
  const expected = meant.messages.find(({ status }) => status >= 200);
  if (answer.status === 502 || answer.status === 504) return;
  must(expected !== undefined, `a whole ${answer.status} out of ${meant.error ?? "less than an answer"}`);
  must(expected.status === answer.status && expected.body === answer.body, "another answer than was sent");
}
