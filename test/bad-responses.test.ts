/**
 * What an application says wrongly: the client sees an error, or a response that is visibly cut, and whoever comes after it
 * on the same connection gets the answer to their own question.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import t from "tap";
import { raw, until } from "./support/client.ts";
import { startGateway, startTcp, type Teardown } from "./support/servers.ts";

const STOLEN = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nSTOLEN";
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const timeouts = { connect: "2s", firstByte: "1s", idle: "1s" };

/** Answers `/bad` with these octets, and everything else with its own path; as sent by one client after another. */
async function misbehaving(t: Teardown, octets: string, ends: boolean) {
  const { url } = await startTcp(t, (socket) => {
    let text = "";
    socket.setEncoding("latin1").on("data", (piece) => {
      text += piece;
      for (let end = text.indexOf("\r\n\r\n"); end !== -1; end = text.indexOf("\r\n\r\n")) {
        const path = text.split(" ", 2)[1] ?? "";
        text = text.slice(end + 4);
        if (path !== "/bad") socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${path.length}\r\n\r\n${path}`);
        else if (ends) socket.end(octets, "latin1");
        else socket.write(octets, "latin1");
      }
    });
  });
  return startGateway(t, { routes: [{ upstream: { targets: [url], timeouts }, session: "none" }] });
}

/** What stands behind the last head. */
function contentOf(reply: string): string {
  const final = reply.slice(reply.lastIndexOf("HTTP/1.1 "));
  return final.slice(final.indexOf("\r\n\r\n") + 4);
}

/** The data of chunks, or the content itself. */
const dataOf = (content: string) => content.replaceAll(/(^|\r\n)[0-9a-f]+\r\n|\r\n$/g, "");

const get = (path: string, version = "1.1") => `GET ${path} HTTP/${version}\r\nHost: a\r\nConnection: close\r\n\r\n`;

/** What the client must see: an error of ours, this whole response, or a beginning of it without its end. */
type Seen = 502 | 504 | { readonly whole: string } | { readonly cut: string };

const cases: Record<string, [octets: string, seen: Seen, ends?: boolean]> = {
  "two lengths": ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502],
  "the same length twice": ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 502],
  "a list of lengths": ["HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", 502],
  "a negative length": ["HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 502],
  "a length in hex": ["HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nab", 502],
  "length and chunks": [
    `HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${STOLEN}`,
    502,
  ],
  "chunks and length": [
    `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n${STOLEN}`,
    502,
  ],
  "a coding that nobody knows": ["HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 502],
  "obs-fold": ["HTTP/1.1 200 OK\r\nX-A: 1\r\n Content-Length: 2\r\nContent-Length: 6\r\n\r\nSTOLEN", 502],
  "NUL in a value": ["HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok", 502],
  "NUL in a name": ["HTTP/1.1 200 OK\r\nX\0A: a\r\nContent-Length: 2\r\n\r\nok", 502],
  "bare LF in the head": ["HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 502],
  "bare CR in a value": ["HTTP/1.1 200 OK\r\nX-A: a\rSet-Cookie: session=x\r\nContent-Length: 2\r\n\r\nok", 502],
  "a space before the colon": ["HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", 502],
  "no colon": ["HTTP/1.1 200 OK\r\nwhatever\r\nContent-Length: 2\r\n\r\nok", 502],
  "a field without a name": ["HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 2\r\n\r\nok", 502],
  "status 000": ["HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n", 502],
  "status 99": ["HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n", 502],
  "status 600": ["HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n", 502],
  "status 2000": ["HTTP/1.1 2000 Odd\r\nContent-Length: 0\r\n\r\n", 502],
  "a status of letters": ["HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n", 502],
  "an unasked 101": [`HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n${STOLEN}`, 502],
  "an unasked 100": [`HTTP/1.1 100 Continue\r\n\r\n${STOLEN}`, 502],
  "HTTP/0.9": ["<html>hello</html>", 502, true],
  // The parser takes it for HTTP/1.1, and there is one reading of it.
  "HTTP/2.0": ["HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", { whole: "ok" }],
  "HTTP/3.7": ["HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\nok", 502],
  "a request": ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", 502],
  nothing: ["", 504],
  "nothing, and the end": ["", 502, true],
  "half a head": ["HTTP/1.1 200 OK\r\nContent-Le", 502, true],
  "a head that is too large": [`HTTP/1.1 200 OK\r\nX-A: ${"x".repeat(70_000)}\r\nContent-Length: 0\r\n\r\n`, 502],
  "interim answers without an end": ["HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40), 502],
  "bytes after the length": [`${OK}${STOLEN}`, { whole: "ok" }],
  "bytes after the last chunk": [`${CHUNKED}2\r\nok\r\n0\r\n\r\n${STOLEN}`, { whole: "2\r\nok\r\n0\r\n\r\n" }],
  "rubbish after the length": [`${OK}\0\0rubbish`, { whole: "ok" }],
  "content with 204": [`HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n${STOLEN}`, { whole: "" }],
  "content with 304": [`HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n${STOLEN}`, { whole: "" }],
  "chunks in HTTP/1.0": [
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    { whole: "2\r\nok\r\n0\r\n\r\n" },
  ],
  "less than the length": ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", { cut: "hello" }, true],
  "no last chunk": [`${CHUNKED}5\r\nhello\r\n`, { cut: "hello" }, true],
  "a chunk that is cut": [`${CHUNKED}5\r\nhello\r\n5\r\nhe`, { cut: "hellohe" }, true],
  "no end of the trailers": [`${CHUNKED}5\r\nhello\r\n0\r\nX-A: 1\r\n`, { cut: "hello" }, true],
  "a chunk size of letters": [`${CHUNKED}5\r\nhello\r\nzz\r\n`, { cut: "hello" }],
  "a chunk size beyond 2^64": [`${CHUNKED}5\r\nhello\r\n10000000000000005\r\nhello\r\n0\r\n\r\n`, { cut: "hello" }],
  "more than a chunk says": [`${CHUNKED}5\r\nhelloworld\r\n0\r\n\r\n`, { cut: "hello" }],
  "bare LF behind a chunk size": [`${CHUNKED}5\r\nhello\r\n5\nhello\r\n0\r\n\r\n`, { cut: "hello" }],
  "silence within the content": ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", { cut: "hello" }],
};

for (const [name, [octets, seen, ends = false]] of Object.entries(cases)) {
  t.test(name, async (t) => {
    const gateway = await misbehaving(t, octets, ends);
    for (let turn = 0; turn < 2; turn++) {
      const own = `/before-${turn}`;
      t.ok((await raw(gateway.port, get(own))).endsWith(`\r\n\r\n${own}`), "the connection is a used one");
      const reply = await raw(gateway.port, get("/bad"));
      const content = contentOf(reply);
      if (typeof seen === "number") {
        const code = "(http_protocol_error|connection_terminated|http_response_(timeout|header_section_size))";
        t.match(reply, new RegExp(`HTTP/1.1 ${seen} [\\s\\S]*\r\nproxy-status: coatcheck; error=${code}\r\n`));
        t.match(JSON.parse(content), { status: seen });
      } else if ("whole" in seen) t.equal(content, seen.whole);
      // A last chunk, or as much as its length says, would be taken for the whole.
      else
        t.ok(seen.cut.startsWith(dataOf(content)) && !reply.includes("\r\n0\r\n"), `cut: ${JSON.stringify(content)}`);
      t.notMatch(reply, /STOLEN|session=x/);
      const after = await Promise.all([0, 1, 2].map((i) => raw(gateway.port, get(`/after-${turn}-${i}`))));
      after.forEach((text, i) => {
        t.ok(text.startsWith("HTTP/1.1 200 ") && text.endsWith(`\r\n\r\n/after-${turn}-${i}`), text);
      });
    }
    if (typeof seen === "object" && "cut" in seen)
      t.match(await gateway.exchanges("errors"), [
        { error: { type: /^(http_response_incomplete|connection_read_timeout)$/ } },
      ]);
  });
}

t.test("an answer before the question is nobody's", async (t) => {
  const idle: Socket[] = [];
  const { url } = await startTcp(t, (socket) => {
    socket.setEncoding("latin1").on("data", (text: string) => {
      const path = text.split(" ", 2)[1] ?? "";
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${path.length}\r\n\r\n${path}`);
      idle.push(socket);
    });
  });
  const gateway = await startGateway(t, { upstream: url });
  for (let i = 0; i < 5; i++) {
    t.ok((await raw(gateway.port, get(`/own-${i}`))).endsWith(`\r\n\r\n/own-${i}`));
    const closed = once(idle.at(-1) as Socket, "close");
    idle.at(-1)?.write(STOLEN);
    // Whether the gateway has read it by then or not.
    if (i % 2 === 0) await closed;
  }
});

t.test("a client of HTTP/1.0 sees a cut response as cut, though its content ends with the connection", async (t) => {
  const { url } = await startTcp(t, (socket) => {
    socket.once("data", () => {
      socket.write(`${CHUNKED}5\r\nhello\r\n`);
      setTimeout(() => socket.end(), 50);
    });
  });
  const gateway = await startGateway(t, { upstream: url });
  const client = connect(gateway.port, "127.0.0.1");
  client.resume().write("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
  const [error] = await once(client, "error");
  t.match(error, { code: "ECONNRESET" });
  await until(async () => (await gateway.exchanges("errors")).length === 1);
});
