/** A short run of each fuzz target with a new seed; `npm run fuzz -- --seconds 240` is the long form. */
import { readFileSync } from "node:fs";
import t from "tap";
import { startNaive } from "./differential/naive.ts";
import { fuzz, replay, TARGETS } from "./fuzz/fuzz.ts";
import { fragment, HTTP_WORDS, mutate } from "./fuzz/mutate.ts";
import { Random } from "./fuzz/random.ts";
import { checkRequest } from "./fuzz/requests.ts";
import { must, type Target } from "./fuzz/target.ts";

const SECONDS = Number(process.env.FUZZ_SECONDS ?? 5);
/** What has sockets is slower by far, and gets more of the time. */
const SHARES: Readonly<Record<string, number>> = { requests: 6, responses: 6 };

t.test("what breaks an invariant is found, written down and repeated", async (t) => {
  const broken: Target = {
    name: "cookie",
    start: () => ({
      lanes: 1,
      generate: (random) => `${random.below(10)}`,
      check: (input) => must(input !== "7", "it is seven"),
    }),
  };
  const { inputs, failures } = await fuzz(broken, { seed: 1, seconds: 10 });
  t.ok(inputs > 5, `${inputs} inputs`);
  t.equal(failures.length, 5, "five are enough");
  t.match(failures[0], { target: "cookie", seed: 1, input: "7", problem: /it is seven/ });
  const written = JSON.parse(readFileSync(failures[0]?.file ?? "", "utf8"));
  t.match(written, { input: "7" });
  t.equal(await replay(written), undefined, "the real target has nothing against it");
});

t.test("a seed repeats the input, octet by octet", async (t) => {
  const inputs = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 50 }, () =>
      fragment(random, mutate(random, "GET / HTTP/1.1\r\n\r\n", HTTP_WORDS, ["x"])),
    );
  };
  t.same(inputs(1), inputs(1));
  t.notSame(inputs(1), inputs(2));
});

t.test("a proxy that lets everything through breaks the invariants of requests", async (t) => {
  const lane = await startNaive(t);
  const send = (octets: string) => checkRequest(lane, { pieces: [octets], ending: "end" });
  const head = "POST / HTTP/1.1\r\nHost: a.example\r\n";
  await t.rejects(send(`${head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`), /malformed/);
  await t.rejects(send("GET / HTTP/1.1\r\nHost: a.example\r\nX-User-Id: evil\r\n\r\n"), /forged/);
});

for (const target of TARGETS) {
  t.test(target.name, async (t) => {
    const shares = TARGETS.reduce((sum, { name }) => sum + (SHARES[name] ?? 1), 0);
    const seed = Math.floor(Math.random() * 2 ** 32);
    const { inputs, failures } = await fuzz(target, { seed, seconds: (SECONDS * (SHARES[target.name] ?? 1)) / shares });
    for (const { problem, file } of failures) t.fail(problem.split("\n", 1).join(), { seed, file, problem });
    t.ok(inputs > 0, `${inputs} inputs, seed ${seed}`);
  });
}
