/**
 * More than 600 messages, octet by octet, through Coatcheck, nginx and HAProxy, in front of an upstream that keeps what it
 * receives: docs/http-comparison.md is what this test sees. `npm run test:differential -- --only ID` shows the octets.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Case } from "./differential/case.ts";
import { CASES } from "./differential/cases/index.ts";
import { compare } from "./differential/compare.ts";
import { EXPLANATIONS, explanationOf, LIMITS, matches } from "./differential/explanations.ts";
import { startNaive } from "./differential/naive.ts";
import { LENIENT, otherReadings, readRequests, readResponses } from "./differential/reader.ts";
import { type Fault, runCase } from "./differential/run-case.ts";
import { COMPARISON, cell, differsFromNginx } from "./differential/table.ts";
import { ROOT } from "./support/project.ts";

t.test("the reference reader is strict, and sees what lenient servers would read otherwise", async (t) => {
  const head = (...fields: string[]) => `POST / HTTP/1.1\r\nHost: a\r\n${fields.join("")}\r\n`;
  const whole = `${head("Content-Length: 2\r\n")}ok`;
  t.match(readRequests(whole + whole), { messages: [{ body: "ok" }, { body: "ok" }], rest: "", error: undefined });
  t.match(readRequests(whole.slice(0, -1)), { messages: [], error: undefined, headSeen: true });
  const chunks = `${head("Transfer-Encoding: chunked\r\n")}2;a=b\r\nok\r\n0\r\nX: 1\r\n\r\n`;
  t.match(readRequests(chunks), { messages: [{ body: "ok", trailers: [["X", "1"]] }], rest: "" });
  t.same(otherReadings(whole + chunks), []);
  const ambiguous: Record<string, string> = {
    "a length and a coding": `${head("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n")}0\r\n\r\n`,
    "a bare LF in the head": head("X: 1\nContent-Length: 0\r\n"),
    "a bare LF after a size": `${head("Transfer-Encoding: chunked\r\n")}2\nok\r\n0\r\n\r\n`,
    "a bad length": `${head("Content-Length: +2\r\n")}ok`,
    "two lengths": `${head("Content-Length: 2\r\n", "Content-Length: 1\r\n")}ok`,
    "another coding": `${head("Transfer-Encoding: xchunked\r\n")}0\r\n\r\n`,
    "a folded line": head("X: 1\r\n", " 2\r\n"),
    "a space before the colon": `${head("Content-Length : 2\r\n")}ok`,
  };
  for (const [what, octets] of Object.entries(ambiguous)) {
    t.type(readRequests(octets).error, "string", what);
    t.not(otherReadings(octets).length, 0, what);
  }
  t.same(otherReadings(`${head("Content_Length: 23\r\n")}GET / HTTP/1.1\r\nHost:\r\n\r\n`), [
    "bare LF",
    "length first",
    "bare CR",
  ]);
  const hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
  const deleting = (close: string) =>
    `DELETE / HTTP/1.1\r\nHost: a\r\n${close}Content-Length: ${hidden.length}\r\n\r\n${hidden}`;
  t.same(otherReadings(deleting("")), ["ignored content"]);
  t.same(otherReadings(deleting("Connection: close\r\n")), []);
  t.equal(Object.keys(LENIENT).length, 4);
  t.equal(
    readResponses("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", ["GET"], true).messages.length,
    0,
    "cut short",
  );
  t.equal(readResponses("HTTP/1.1 200 OK\r\n\r\nok", ["GET"], true).messages[0]?.body, "ok");
  t.equal(readResponses("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", ["HEAD"], false).messages.length, 1);
});

t.test("a proxy that does nothing has every fault", async (t) => {
  const lane = await startNaive(t);
  const expected: Record<string, Fault> = {
    "both/cl-te": "two readings",
    "field/space-before-colon": "malformed",
    "pipeline/close-then": "smuggled",
    "closed-path/plain": "let through",
    "trailer/identity": "forged",
    "closed-path/escaped-letter": "bypassed",
    "length/short": "poisoned",
    "bad-head/status-99": "disguised",
    "host/twice-other": "malformed",
  };
  for (const [id, fault] of Object.entries(expected)) {
    const item = CASES.find((candidate) => candidate.id === id) as Case;
    const outcome = await runCase(lane, item);
    t.ok(outcome.faults.includes(fault), `${id}: ${fault}`, { outcome });
  }
});

t.test("Coatcheck forwards nothing that is to be refused, and nothing with two readings", async (t) => {
  t.equal(new Set(CASES.map(({ id }) => id)).size, CASES.length, "ids are unique");
  t.ok(CASES.length > 600, `${CASES.length} messages`);
  const outcomes = await compare(t, CASES);

  for (const [id, { coatcheck }] of outcomes) {
    const { faults, upstream, client } = coatcheck;
    if (faults.length > 0 && !(id in LIMITS)) t.fail(`${id}: ${faults.join(", ")}`, { coatcheck, upstream, client });
  }

  // A peer that cannot be told from another would make the comparison worth nothing.
  for (const proxy of ["nginx", "haproxy"] as const) {
    const valid = [...outcomes].filter(([id]) => id.startsWith("valid/"));
    t.same(
      valid.filter(([, row]) => row[proxy].faults.length > 0).map(([id]) => id),
      [],
      `${proxy} forwards what is valid`,
    );
    t.ok([...outcomes.values()].filter((row) => row[proxy].faults.length > 0).length > 20, `${proxy} has faults`);
  }

  const titles = headingsOf("docs/http.md");
  for (const { title, explains } of EXPLANATIONS) {
    t.ok(titles.has(title), `docs/http.md has "${title}"`);
    for (const pattern of explains)
      t.ok(
        CASES.some(({ id }) => matches(pattern, id)),
        `"${pattern}" explains something`,
      );
  }
  for (const [id, row] of outcomes)
    if (differsFromNginx(row) && explanationOf(id) === undefined)
      t.fail(`${id} is not explained`, { coatcheck: cell(row.coatcheck), nginx: cell(row.nginx) });

  const written = writtenColumn();
  for (const [id, { coatcheck }] of outcomes)
    if (written.get(id) !== cell(coatcheck))
      t.fail(`${COMPARISON} is out of date: npm run test:differential -- --write`, {
        id,
        written: written.get(id),
        seen: cell(coatcheck),
      });
  t.equal(written.size, CASES.length, "the table has each case");
});

function headingsOf(document: string): Set<string> {
  const text = readFileSync(join(ROOT, document), "utf8");
  return new Set([...text.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) => title));
}

/** Our own column of the table, by case. */
function writtenColumn(): Map<string, string> {
  const rows = readFileSync(join(ROOT, COMPARISON), "utf8").matchAll(/^\| ([a-z0-9-]+\/[^|]+?) \|(.*)\|$/gm);
  return new Map([...rows].map(([, id = "", rest = ""]) => [id, rest.split(" | ")[2] ?? ""]));
}
