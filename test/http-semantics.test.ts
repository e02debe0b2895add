import { once } from "node:events";
import { connect, type Socket } from "node:net";
import t from "tap";
import { raw, until } from "./support/client.ts";
import { freePort, startGateway, startHttp, startTcp, type Teardown } from "./support/servers.ts";

/** An upstream that reads a request head and answers with these octets. */
async function answering(t: Teardown, octets: string) {
  const heads: string[] = [];
  const { url } = await startTcp(t, (socket) => {
    let text = "";
    socket.setEncoding("latin1").on("data", (piece) => {
      text += piece;
      if (!text.endsWith("\r\n\r\n")) return;
      heads.push(text);
      text = "";
      socket.write(octets, "latin1");
    });
  });
  return { gateway: await startGateway(t, { upstream: url }), heads };
}

const GET = (fields = "", version = "1.1") => `GET / HTTP/${version}\r\nHost: a\r\n${fields}\r\n`;
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const EARLY = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n";

t.test("early hints reach the client before the head, cleaned", async (t) => {
  const hostile =
    "X-Session-End: all\r\nSet-Cookie: session=x\r\nKeep-Alive: timeout=9\r\nX-Coatcheck-A: 1\r\nX-Odd: caf\xe9\r\nConnection: x-listed\r\nX-Listed: 1\r\n";
  const { gateway } = await answering(t, `${EARLY}${hostile}\r\nHTTP/1.1 199 Odd\r\nX-A: 1\r\n\r\n${OK}`);
  const reply = await raw(gateway.port, GET(), (text) => text.endsWith("ok"));
  t.ok(
    reply.startsWith(
      "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n\r\nHTTP/1.1 199 unknown\r\nX-A: 1\r\n\r\nHTTP/1.1 200 OK\r\n",
    ),
    reply,
  );
  const [record] = await gateway.exchanges();
  t.match(record, { upstream: { status: 200, interimHeads: 2 }, response: { status: 200 } });
  t.match(
    (record as unknown as { steps: { step: string }[] }).steps.find(({ step }) => step === "upstream-head"),
    { detail: "status 200, after 2 interim responses" },
  );
});

t.test("HTTP/1.0 gets none, and an upstream cannot send them for ever", async (t) => {
  const { gateway } = await answering(t, `${EARLY}\r\n${OK}`);
  const old = await raw(gateway.port, GET("", "1.0"));
  t.ok(old.startsWith("HTTP/1.1 200 OK\r\n") && old.endsWith("ok"), old);
  const flood = await answering(t, `${EARLY}\r\n`.repeat(17) + OK);
  const reply = await raw(flood.gateway.port, GET(), (text) => text.includes("http_protocol_error"));
  t.match(reply, /HTTP\/1.1 502 Bad Gateway/);
  t.equal(reply.split("103 Early Hints").length - 1, 16);
});

t.test("a client that leaves between early hints and the head harms nobody", async (t) => {
  const waiting: Socket[] = [];
  const { url } = await startTcp(t, (socket) => {
    socket.once("data", () => {
      socket.write(`${EARLY}\r\n`);
      waiting.push(socket);
    });
  });
  const gateway = await startGateway(t, { upstream: url });
  await raw(gateway.port, GET(), (text) => text.includes("rel=preload"));
  await until(() => waiting.length === 1);
  waiting[0]?.write(`${EARLY}\r\n${OK}`);
  await until(async () => (await gateway.exchanges()).length === 1);
  t.match(await gateway.exchanges(), [{ response: { status: 499, clientGone: true } }]);
});

const TRAILED =
  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 12\r\nX-Session-End: all\r\nSet-Cookie: session=x\r\nCache-Control: public\r\nX-Sum: 34\r\n\r\n";

t.test("trailers reach those who read them, and say no more than they may", async (t) => {
  const { gateway, heads } = await answering(t, TRAILED);
  const end = (text: string) => /\r\n0\r\n(.*\r\n)*\r\n$/.test(text);
  const reply = await raw(gateway.port, GET("TE: deflate;q=0.5, trailers\r\nConnection: TE\r\n"), end);
  t.ok(reply.endsWith("\r\n0\r\nX-Sum: 12\r\nX-Sum: 34\r\n\r\n"), reply);
  t.notMatch(reply, /session/i);
  for (const fields of ["", "TE: gzip\r\n", "TE: trailersx\r\n"]) {
    const without = await raw(gateway.port, GET(fields), end);
    t.ok(without.endsWith("\r\n2\r\nok\r\n0\r\n\r\n"), without);
  }
  const old = await raw(gateway.port, GET("TE: trailers\r\n", "1.0"));
  t.ok(old.endsWith("\r\n\r\nok"), "until the end of the connection in HTTP/1.0");
  for (const head of heads) t.notMatch(head, /^te:/im);
});

t.test("trailers that say how the message is read are not passed on", async (t) => {
  for (const field of ["Content-Length: 9", "Transfer-Encoding: chunked"]) {
    const { gateway } = await answering(t, TRAILED.replace("Cache-Control: public", field));
    // The whole answer without the field, or one that is cut.
    const reply = await raw(gateway.port, GET("TE: trailers\r\n"), (text) => /\r\n0\r\n(.*\r\n)*\r\n$/.test(text));
    const [, afterHead = ""] = reply.split("\r\n\r\n2\r\n");
    t.ok(afterHead.startsWith("ok"), reply);
    t.notOk(afterHead.includes(field), afterHead);
  }
});

t.test("trailers of a request go nowhere, and never into the head", async (t) => {
  const seen: string[] = [];
  const { url } = await startTcp(t, (socket) => {
    let text = "";
    socket.setEncoding("latin1").on("data", (piece) => {
      text += piece;
      if (!/hi(\r\n0\r\n\r\n)?$/.test(text)) return;
      seen.push(text);
      text = "";
      socket.write(OK);
    });
  });
  const gateway = await startGateway(t, { upstream: url });
  const trailers = "X-User-Id: 1\r\nCookie: session=x\r\nX-Sum: 1\r\n";
  const request = `POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\n${trailers}\r\n`;
  t.match(await raw(gateway.port, request, (text) => text.endsWith("ok")), /^HTTP\/1.1 200/);
  t.match(seen[0], /\r\n\r\n(2\r\n)?hi(\r\n0\r\n\r\n)?$/);
  t.notMatch(seen[0], /x-sum|session=/i);
  t.match(seen[0], /x-user-id: \r\n/i, "ours, and empty");
});

t.test("a route that leads back here is a loop", async (t) => {
  const hops: string[] = [];
  const { server, port } = await startHttp(t, (req, res) => {
    // What a wrong entry in somebody's DNS does.
    hops.push(req.headers.via ?? "");
    const again = connect(gateway.port, "127.0.0.1");
    again.on("error", () => res.destroy());
    again.write(`GET / HTTP/1.1\r\nHost: a\r\nVia: ${req.headers.via}\r\nConnection: close\r\n\r\n`);
    again.pipe(res.socket as Socket);
  });
  t.ok(server.listening);
  const gateway = await startGateway(t, { upstream: `http://127.0.0.1:${port}` });
  const reply = await raw(gateway.port, GET("Connection: close\r\n"));
  t.match(reply, /^HTTP\/1.1 502 .*proxy-status: coatcheck; error=proxy_loop_detected/is);
  t.equal(hops.length, 8);
  const two = await answering(t, OK);
  t.match(
    await raw(two.gateway.port, GET("Via: 1.1 coatcheck, 1.1 b\r\n"), (text) => text.endsWith("ok")),
    /^HTTP\/1.1 200/,
  );
});

t.test("nothing waits for more: an event stream, and an answer before the end of its request", async (t) => {
  const { port, server } = await startHttp(t, (req, res) => {
    if (req.url === "/events") {
      res.writeHead(200, { "content-type": "text/event-stream" });
      res.write("data: 1\n\n");
      server.once("next", () => res.write("data: 2\n\n"));
    } else {
      res.writeHead(413, { connection: "close" });
      res.end("too large");
    }
  });
  const gateway = await startGateway(t, { upstream: `http://127.0.0.1:${port}` });
  const socket = connect(gateway.port, "127.0.0.1");
  await once(socket, "connect");
  let text = "";
  socket.setEncoding("latin1").on("data", (piece) => {
    text += piece;
  });
  socket.write("GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
  await until(() => text.includes("data: 1"));
  server.emit("next");
  await until(() => text.includes("data: 2"));
  socket.destroy();
  const reply = await raw(
    gateway.port,
    `POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n${"x".repeat(1000)}`,
    (it) => it.includes("too large"),
  );
  t.match(reply, /^HTTP\/1.1 413 .*connection: close/is);
});

/** Answers the first request on each connection, and does something else with the second one. */
async function closingUnderTheSecond(t: Teardown, onSecond: (socket: Socket) => void) {
  const requests: string[] = [];
  const { url } = await startTcp(t, (socket) => {
    let count = 0;
    socket.setEncoding("latin1").on("data", (text: string) => {
      requests.push(text.split(" HTTP/", 1)[0] ?? "");
      if (++count === 1) socket.write(OK);
      else onSecond(socket);
    });
  });
  return { gateway: await startGateway(t, { routes: [{ upstream: url, session: "none" }] }), requests };
}

const RETRIED = /^coatcheck_upstream_retries_total\{.*\} (\d+)$/m;

t.test("an idle connection that is closed at the moment of its next use costs nobody an answer", async (t) => {
  const ends = [(socket: Socket) => socket.resetAndDestroy(), (socket: Socket) => socket.end()];
  for (const end of ends) {
    const { gateway, requests } = await closingUnderTheSecond(t, end);
    for (const method of ["GET", "GET", "OPTIONS"]) {
      const reply = await raw(gateway.port, GET().replace("GET", method), (text) => text.endsWith("ok"));
      t.match(reply, /^HTTP\/1.1 200 /, method);
    }
    t.same(requests, ["GET /", "GET /", "GET /", "OPTIONS /", "OPTIONS /"]);
    const [third, second, first] = await until(async () => {
      const all = await gateway.exchanges();
      return all.length === 3 ? all : undefined;
    });
    t.same([first?.upstream?.retries, second?.upstream?.retries, third?.upstream?.retries], [0, 1, 1]);
    t.match(
      (third as unknown as { steps: { step: string }[] }).steps.find(({ step }) => step === "attempt"),
      {
        detail: /connection_terminated, a connection from before that was closed at that moment; so it was sent again$/,
      },
    );
    t.equal((await gateway.metrics()).match(RETRIED)?.[1], "2");
  }
});

t.test(
  "what may not be sent again is not: content, methods that change something, an answer that has begun",
  async (t) => {
    const cases: [name: string, request: string, onSecond: (socket: Socket) => void][] = [
      ["POST", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", (socket) => socket.resetAndDestroy()],
      ["DELETE", GET().replace("GET", "DELETE"), (socket) => socket.resetAndDestroy()],
      ["PUT", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", (socket) => socket.resetAndDestroy()],
      ["begun", GET(), (socket) => socket.end("HTTP/1.1 2")],
      ["after an interim answer", GET(), (socket) => socket.end(`${EARLY}\r\n`)],
    ];
    for (const [name, request, onSecond] of cases) {
      const { gateway, requests } = await closingUnderTheSecond(t, onSecond);
      t.match(await raw(gateway.port, GET(), (text) => text.endsWith("ok")), /^HTTP\/1.1 200 /);
      t.match(await raw(gateway.port, request, (text) => text.includes('"traceId"')), /HTTP\/1.1 502 /, name);
      t.equal(requests.length, 2, name);
      t.notOk(Number((await gateway.metrics()).match(RETRIED)?.[1] ?? 0), name);
    }
    // On a connection of its own, the request may be what broke it.
    let asked = 0;
    const { url } = await startTcp(t, (socket) => socket.once("data", () => asked++ < 9 && socket.resetAndDestroy()));
    const gateway = await startGateway(t, { upstream: url });
    t.match(await raw(gateway.port, GET(), (text) => text.includes('"traceId"')), /^HTTP\/1.1 502 /);
    t.equal(asked, 1);
  },
);

t.test("100 (Continue) waits for a connection to the application", async (t) => {
  const refusing = await startGateway(t, { upstream: `http://127.0.0.1:${await freePort()}` });
  const post = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
  const reply = await raw(refusing.port, post, (text) => text.includes('"traceId"'));
  t.match(reply, /^HTTP\/1.1 502 .*connection: close/is, "no 100 in front");
});
