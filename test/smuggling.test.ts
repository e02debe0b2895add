/**
 * CVE-2026-29057 (http-proxy): a chunked DELETE or OPTIONS lost its framing on the way, so that its content was read
 * as the next request. Even where the framing is kept, a lenient upstream ignores the content of a bodiless method and
 * reads it as the next request on the connection. So there must not be a next one: the connection ends.
 */
import type { Socket } from "node:net";
import t from "tap";
import { ask, raw } from "./support/client.ts";
import { startGateway, startTcp, startUpstream, type Teardown } from "./support/servers.ts";

const SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: a\r\nX-User-Id: 1\r\n\r\n";

/** Ignores content and skips what is no request line, as old servers do; serves the next request unless it was told to close. */
async function startLenient(t: Teardown): Promise<{ url: string; served: string[] }> {
  const served: string[] = [];
  const onConnection = (socket: Socket): void => {
    let buffered = "";
    socket.setEncoding("latin1").on("data", (piece: string) => {
      buffered += piece;
      for (;;) {
        const start = /(?:^|\n)(GET|POST|DELETE|OPTIONS|HEAD) \S+ HTTP\/1\.1\r\n/.exec(buffered);
        const end = start === null ? -1 : buffered.indexOf("\r\n\r\n", start.index);
        if (start === null || end === -1) return;
        const head = buffered.slice(start.index, end).trimStart();
        buffered = buffered.slice(end + 4);
        served.push(head.split("\r\n", 1)[0] ?? "");
        const close = /\r\nconnection: close/i.test(head);
        socket.write(`HTTP/1.1 200 OK\r\nContent-Length: 2\r\n${close ? "Connection: close\r\n" : ""}\r\nok`);
        if (close) {
          buffered = "";
          socket.end();
          return;
        }
      }
    });
  };
  const { url } = await startTcp(t, onConnection);
  return { url, served };
}

t.test("the lenient upstream would run a smuggled request if one got there", async (t) => {
  const lenient = await startLenient(t);
  const chunk = `${SMUGGLED.length.toString(16)}\r\n${SMUGGLED}\r\n0\r\n\r\n`;
  const octets = `DELETE /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n${chunk}`;
  await raw(Number(new URL(lenient.url).port), octets, (text) => text.split("ok").length === 3);
  t.same(lenient.served, ["DELETE /a HTTP/1.1", "GET /smuggled HTTP/1.1"]);
});

for (const method of ["DELETE", "OPTIONS", "GET", "HEAD"]) {
  for (const framing of ["chunked", "length"]) {
    t.test(`${method} with content (${framing}): the smuggled request never runs`, async (t) => {
      const lenient = await startLenient(t);
      const gateway = await startGateway(t, { routes: [{ upstream: lenient.url, session: "none" }] });
      const octets =
        framing === "chunked"
          ? `${method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n${SMUGGLED.length.toString(16)}\r\n${SMUGGLED}\r\n0\r\n\r\n`
          : `${method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`;
      t.match(await raw(gateway.port, octets), /^HTTP\/1.1 200 /);
      t.match(await raw(gateway.port, "GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), /^HTTP\/1.1 200 /);
      t.same(lenient.served, [`${method} /a HTTP/1.1`, "GET /b HTTP/1.1"]);
    });
  }
}

t.test("an honest upstream gets the content of a chunked DELETE whole", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  await raw(
    gateway.port,
    "DELETE /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
  );
  t.match(upstream.received, [{ method: "DELETE", url: "/a", body: "hello" }]);
});

const refused: Record<string, [octets: string, status: number]> = {
  "length and chunks": [
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    400,
  ],
  "two lengths": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400],
  "the same length twice": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400],
  "a list of lengths": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400],
  "a signed length": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400],
  "a length that no number holds": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\nx", 413],
  "two codings": ["POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501],
  "chunked twice": [
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
  ],
  "an unknown coding": ["POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501],
  "chunks in HTTP/1.0": ["POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400],
  "a space before the colon": ["GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400],
  "a folded line": ["GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400],
  "bare line feeds": ["GET / HTTP/1.1\nHost: a\n\n", 400],
  "a NUL in a value": ["GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400],
  "an odd chunk size": ["POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", 400],
  "no Host": ["GET / HTTP/1.1\r\n\r\n", 400],
  "two Hosts": ["GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400],
  "Host with userinfo": ["GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400],
  "Host with a path": ["GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400],
  "Host with a bad port": ["GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400],
  "Host with an escape": ["GET / HTTP/1.1\r\nHost: %61pp\r\n\r\n", 400],
  "an empty Host": ["GET / HTTP/1.1\r\nHost:\r\n\r\n", 400],
  "a list of Hosts": ["GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400],
  "a fragment": ["GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "a backslash": ["GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "octets beyond ASCII in the target": ["GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "an encoded NUL": ["GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "another scheme": ["GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "star for GET": ["GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400],
  "no version (HTTP/0.9)": ["GET /\r\nHost: a\r\n\r\n", 505],
  "HTTP/2.0 as a line": ["GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505],
  CONNECT: ["CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405],
  TRACE: ["TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405],
  "an unknown method": ["BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501],
  "a head that is too large": [`GET / HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(40_000)}\r\n\r\n`, 431],
  "a target that is too long": [`GET /${"x".repeat(40_000)} HTTP/1.1\r\nHost: a\r\n\r\n`, 414],
  "too many headers": [`GET / HTTP/1.1\r\nHost: a\r\n${"X: 1\r\n".repeat(250)}\r\n`, 431],
};

t.test("what could be read in two ways is refused, and reaches nobody", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  for (const [name, [octets, status]] of Object.entries(refused)) {
    const reply = await raw(gateway.port, octets, (text) => /\r\n\r\n\{.*\}\n$/s.test(text));
    t.match(reply, new RegExp(`^HTTP/1\\.1 ${status} `), name);
    t.match(reply, /proxy-status: coatcheck; error=http_request_error/i, name);
    t.match(reply, /\r\ndate: /i, name);
  }
  t.same(upstream.received, []);
  const errors = await gateway.exchanges("errors");
  t.equal(errors.length, Object.keys(refused).length, "each has a record");
});

t.test("nothing is read behind a request that was refused", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const reply = await raw(gateway.port, "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
  t.match(reply, /^HTTP\/1\.1 400 /);
  t.match(reply, /\r\nconnection: close\r\n/i);
  t.same(upstream.received, []);
});

t.test("pipelined requests are forwarded and answered in order, one at a time", async (t) => {
  let running = 0;
  let most = 0;
  const upstream = await startUpstream(t, (received, _req, res) => {
    most = Math.max(most, ++running);
    setImmediate(() => {
      running--;
      res.end(received.url);
    });
  });
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const octets =
    "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  const reply = await raw(gateway.port, octets);
  t.match(reply, /\/1[\s\S]*\/2[\s\S]*\/3/);
  t.same(
    upstream.received.map(({ url }) => url),
    ["/1", "/2", "/3"],
  );
  t.equal(most, 1);
});

t.test("a malformed message after a good one waits for its answer", async (t) => {
  const upstream = await startUpstream(t, (_received, _req, res) => setTimeout(() => res.end("good"), 50));
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const reply = await raw(gateway.port, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX : 1\r\n\r\n");
  t.match(reply, /^HTTP\/1.1 200 [\s\S]*good[\s\S]*HTTP\/1.1 400 /);
});

t.test("100 (Continue) comes only when the request will be forwarded", async (t) => {
  const upstream = await startUpstream(t);
  const routes = [
    { match: { path: "/" }, upstream: upstream.url, session: "none" },
    { match: { path: "/required" }, upstream: upstream.url, session: "required" },
  ];
  const gateway = await startGateway(t, { routes });
  const head = (path: string) =>
    `POST ${path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n`;
  t.match(await raw(gateway.port, head("/"), (text) => text.includes("\r\n\r\n")), /^HTTP\/1.1 100 /);
  const denied = await raw(gateway.port, head("/required"));
  t.match(denied, /^HTTP\/1.1 401 /);
  t.match(await raw(gateway.port, `${head("/")}hello`), /^HTTP\/1.1 100 [\s\S]*HTTP\/1.1 200 /);
  t.equal(upstream.received.at(-1)?.headers.expect, undefined);
});

t.test("OPTIONS * and Max-Forwards are answered by the gateway", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const options = (target: string, field = "") =>
    raw(gateway.port, `OPTIONS ${target} HTTP/1.1\r\nHost: a\r\n${field}Connection: close\r\n\r\n`);
  t.match(await options("*"), /^HTTP\/1.1 204 [\s\S]*allow: /i);
  t.match(await options("/", "Max-Forwards: 0\r\n"), /^HTTP\/1.1 204 /);
  t.match(await options("/", "Max-Forwards: x\r\n"), /^HTTP\/1.1 400 /);
  t.same(upstream.received, []);
  await options("/", "Max-Forwards: 5\r\n");
  t.equal(upstream.received[0]?.headers["max-forwards"], "4");
});

t.test("an absolute target: its authority is the host, and the path goes on alone", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, {
    routes: [{ match: { host: "shop.example" }, upstream: upstream.url, session: "none" }],
  });
  await raw(gateway.port, "GET http://SHOP.example:8080/a?b=1 HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n");
  t.match(upstream.received, [{ url: "/a?b=1", headers: { host: "SHOP.example:8080" } }]);
  t.match(await raw(gateway.port, "GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"), /^HTTP\/1.1 404 /);
  t.equal((await ask(gateway.url, { headers: { host: "shop.example." } })).status, 200);
});

t.test("a response reaches the client as sent: spelling, order, repeated fields, octets beyond ASCII", async (t) => {
  const fields =
    "ETag: \xe9\xff\r\nX-twice: 1\r\nX-Between: \x80\r\nX-TWICE: 2\r\nset-Cookie: a=1\r\nconstructor: c\r\n" +
    "__proto__: p\r\nContent-Disposition: attachment; filename=\xfc\r\nSet-Cookie: b=\xe4\r\n";
  const content = String.fromCharCode(...Array(256).keys());
  const whole = `HTTP/1.1 200 OK\r\n${fields}Content-Length: 256\r\nConnection: close\r\n\r\n${content}`;
  const upstream = await startTcp(t, (socket) => {
    socket.once("data", (request: Buffer) => {
      const first = request.includes("/whole") ? whole.length : whole.length - 100;
      socket.write(whole.slice(0, first), "latin1");
      setTimeout(() => socket.end(whole.slice(first), "latin1"), 20);
    });
  });
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  for (const path of ["/whole", "/pieces"]) {
    const answer = await raw(gateway.port, `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`);
    t.ok(answer.includes(fields), `${path}: the fields`);
    t.ok(answer.endsWith(`\r\n\r\n${content}`), `${path}: the content`);
  }
});
