/** HTTPS for browsers: protocols, renewals, failed handshakes, the redirect from HTTP, and HSTS. */
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { connect as connectTcp } from "node:net";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";
import t, { type Test } from "tap";
import { type Certificate, makeCertificate } from "./support/certificates.ts";
import { ask, collect, raw, until } from "./support/client.ts";
import { http2Ask, http2Connect } from "./support/http2-client.ts";
import { type RunningGateway, startGateway, startUpstream, temporaryFolder, type Upstream } from "./support/servers.ts";

interface Secure {
  readonly gateway: RunningGateway;
  readonly app: Upstream;
  readonly ca: Buffer;
  readonly files: Certificate;
  readonly folder: string;
}

async function startSecure(t: Test, tls: object = {}, settings: object = {}): Promise<Secure> {
  const folder = await temporaryFolder(t);
  const files = makeCertificate(folder, "own");
  const app = await startUpstream(t, (received, _req, res) => {
    res.setHeader("Strict-Transport-Security", "max-age=1");
    res.end(JSON.stringify(received));
  });
  const listen = { host: "127.0.0.1", port: 0, tls: { ...files, ...tls } };
  const gateway = await startGateway(t, { upstream: app.url, listen, ...settings }, { certificatePollMs: 20 });
  return { gateway, app, ca: readFileSync(files.cert), files, folder };
}

async function handshake(port: number, options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect({ port, host: "127.0.0.1", ...options });
  await once(socket, "secureConnect");
  return socket;
}

async function http1(socket: TLSSocket, octets = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") {
  socket.write(octets);
  return collect(socket);
}

t.test("HTTP/2 and HTTP/1.1 by what the client offers, on one port", async (t) => {
  const { gateway, app, ca } = await startSecure(t);
  t.match(gateway.url, /^https:/);
  const session = http2Connect(t, gateway.url, ca);
  t.equal((await http2Ask(session)).status, 200);
  for (const ALPNProtocols of [["http/1.1"], ["http/1.1", "h2"], []]) {
    const socket = await handshake(gateway.port, { ca, ALPNProtocols });
    if (socket.alpnProtocol === "h2") socket.destroy();
    else t.match(await http1(socket), /^HTTP\/1\.1 200 /);
  }
  await t.rejects(handshake(gateway.port, { ca, ALPNProtocols: ["spdy/3"] }));
  t.match(app.received[0]?.headers, { "x-forwarded-proto": "https", forwarded: /proto=https/ });
  t.match(app.received[1]?.headers, { "x-forwarded-proto": "https", via: "1.1 coatcheck" });
  const records = await gateway.exchanges();
  t.same(records.map(({ request }) => request.httpVersion).sort(), ["1.1", "1.1", "2"]);
  for (const { request } of records) t.match(request.tls, { version: "1.3", cipher: /^TLS_/ });
  await until(async () => (await gateway.metrics()).includes('reason="application_protocol"} 1'));
});

t.test("listen.tls.http2: false", async (t) => {
  const { gateway, ca } = await startSecure(t, { http2: false });
  const socket = await handshake(gateway.port, { ca, ALPNProtocols: ["h2", "http/1.1"] });
  t.equal(socket.alpnProtocol, "http/1.1");
  t.match(await http1(socket), /^HTTP\/1\.1 200 /);
});

t.test("several requests on one connection, pipelined as well, as without TLS", async (t) => {
  const { gateway, ca, app } = await startSecure(t);
  const socket = await handshake(gateway.port, { ca });
  const text = await http1(
    socket,
    "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none" +
      "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n" +
      "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
  );
  t.equal(text.match(/HTTP\/1\.1 200/g)?.length, 3);
  t.same(
    app.received.map(({ url }) => url),
    ["/1", "/2", "/3"],
  );
  const bad = await handshake(gateway.port, { ca });
  t.match(await http1(bad, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"), /^HTTP\/1\.1 400 /);
});

t.test("a URL as the target has to have the scheme of the connection", async (t) => {
  const { gateway, ca, app } = await startSecure(t);
  const status = async (target: string) => {
    const octets = `GET ${target} HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n`;
    return (await http1(await handshake(gateway.port, { ca }), octets)).slice(9, 12);
  };
  t.equal(await status("https://app.example/a"), "200");
  t.match(app.received[0], { url: "/a", headers: { host: "app.example", "x-forwarded-proto": "https" } });
  t.equal(await status("http://app.example/a"), "400");
  t.equal(app.received.length, 1);
});

t.test("TLS 1.2 with forward secrecy, and nothing older or weaker; 1.3 alone if so configured", async (t) => {
  const { gateway, ca } = await startSecure(t);
  const weak = { ca, ciphers: "DEFAULT@SECLEVEL=0" };
  for (const version of ["TLSv1", "TLSv1.1"] as const)
    await t.rejects(handshake(gateway.port, { ...weak, minVersion: version, maxVersion: version }), version);
  const old = await handshake(gateway.port, { ca, maxVersion: "TLSv1.2" });
  t.match(old.getCipher().name, /^ECDHE-.*(GCM|POLY1305)/);
  t.match(await http1(old), /^HTTP\/1\.1 200 /);
  for (const ciphers of ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "AES128-GCM-SHA256"])
    await t.rejects(handshake(gateway.port, { ca, maxVersion: "TLSv1.2", ciphers }), ciphers);
  await until(async () => {
    const metrics = await gateway.metrics();
    return metrics.includes('reason="version"} 2') && metrics.includes('reason="cipher"} 3');
  });

  const strict = await startSecure(t, { minVersion: 1.3 });
  await t.rejects(handshake(strict.gateway.port, { ca: strict.ca, maxVersion: "TLSv1.2" }));
  t.equal((await handshake(strict.gateway.port, { ca: strict.ca })).getProtocol(), "TLSv1.3");
});

t.test("handshakes that fail are counted by reason, and harm nobody", async (t) => {
  const { gateway, ca } = await startSecure(t);
  const failed = (reason: string) =>
    until(async () =>
      (await gateway.metrics()).includes(`coatcheck_tls_handshake_failures_total{reason="${reason}"} 1`),
    );
  await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await failed("not_tls");
  const scan = connectTcp(gateway.port, "127.0.0.1");
  await once(scan, "connect");
  scan.destroy();
  await failed("closed");
  await t.rejects(handshake(gateway.port, {}), { code: "DEPTH_ZERO_SELF_SIGNED_CERT" });
  // TLS 1.3: the server is through with its part before the client refuses; in 1.2 it is not.
  await t.rejects(handshake(gateway.port, { maxVersion: "TLSv1.2" }), { code: "DEPTH_ZERO_SELF_SIGNED_CERT" });
  t.match(await http1(await handshake(gateway.port, { ca })), /^HTTP\/1\.1 200 /);
  t.equal(gateway.logs.filter(({ level }) => level === "error").length, 0);
});

t.test("a renewed certificate is taken up while it runs, with the same rules for TLS", async (t) => {
  const { gateway, files, folder, ca } = await startSecure(t, { minVersion: "1.3" });
  const presented = async () => {
    const socket = await handshake(gateway.port, { rejectUnauthorized: false });
    const fingerprint = socket.getPeerX509Certificate()?.fingerprint256;
    socket.destroy();
    return fingerprint;
  };
  const fingerprint = () => new X509Certificate(readFileSync(files.cert)).fingerprint256;
  const session = http2Connect(t, gateway.url, ca);
  t.equal((await http2Ask(session)).status, 200);
  t.equal(await presented(), fingerprint());
  makeCertificate(folder, "own", { days: 90 });
  await until(async () => (await presented()) === fingerprint());
  t.equal((await http2Ask(session)).status, 200, "connections that are open go on");
  await t.rejects(handshake(gateway.port, { rejectUnauthorized: false, maxVersion: "TLSv1.2" }), "still 1.3 alone");
  const [, notAfter] =
    /certificate_not_after_timestamp_seconds\{listener="listen"\} (\S+)/.exec(await gateway.metrics()) ?? [];
  t.equal(Number(notAfter), Date.parse(new X509Certificate(readFileSync(files.cert)).validTo) / 1000);
  t.match(
    gateway.logs.find(({ event }) => event === "certificate.replaced"),
    { listener: "listen" },
  );
});

t.test("a certificate that cannot be used ends the start with setting and file", async (t) => {
  const folder = await temporaryFolder(t);
  const [one, two] = [makeCertificate(folder, "one"), makeCertificate(folder, "two")];
  const tls = { cert: one.cert, key: two.key };
  await t.rejects(startGateway(t, { listen: { host: "127.0.0.1", port: 0, tls } }), {
    message: /^listen\.tls: .*two\.key is not the private key of .*one\.pem/,
  });
});

t.test("Strict-Transport-Security is on every response, in place of the application's", async (t) => {
  const hsts = { maxAge: "365d", includeSubDomains: true, preload: true };
  const expected = "max-age=31536000; includeSubDomains; preload";
  const routes = (url: string) => [
    { match: { path: "/" }, upstream: url, session: "none" },
    { match: { path: "/private" }, upstream: url },
    { match: { path: "/away" }, upstream: "http://127.0.0.1:9", session: "none" },
  ];
  const app = await startUpstream(t, (_received, _req, res) => {
    res.writeHead(200, { "strict-transport-security": "max-age=1", "Strict-Transport-security": "max-age=2" });
    res.end();
  });
  const { gateway, ca } = await startSecure(t, { hsts, redirectFrom: 0 }, { routes: routes(app.url) });
  const session = http2Connect(t, gateway.url, ca);
  for (const [path, status] of [
    ["/", 200],
    ["/private", 401],
    ["/away", 502],
    ["/%00", 400],
  ] as const) {
    const reply = await http2Ask(session, { ":path": path });
    t.equal(reply.status, status);
    t.equal(reply.headers["strict-transport-security"], expected, path);
    const text = await http1(
      await handshake(gateway.port, { ca }),
      `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`,
    );
    t.same(text.match(/strict-transport-security: .*/gi), [`strict-transport-security: ${expected}`], path);
  }
  for (const octets of ["GET / HTTP/1.1\r\nHost : a\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"])
    t.match(await http1(await handshake(gateway.port, { ca }), octets), `strict-transport-security: ${expected}`);
  // Browsers are not to believe it over HTTP (RFC 6797 §7.2).
  const redirect = await ask(gateway.gateway.redirectUrl ?? "");
  t.notOk("strict-transport-security" in redirect.headers);

  const none = await startSecure(t);
  const passed = await http2Ask(http2Connect(t, none.gateway.url, none.ca));
  t.equal(passed.headers["strict-transport-security"], "max-age=1", "without the setting, the application's own");
});

t.test("hsts that browsers' lists would refuse is refused at the start", async (t) => {
  await t.rejects(startSecure(t, { hsts: { maxAge: "1d", includeSubDomains: true, preload: true } }), {
    message: /hsts\.preload.*needs includeSubDomains, and a maxAge of at least 365d/,
  });
});

t.test("HTTP is redirected to the same host and path over HTTPS, and nothing else is done", async (t) => {
  const { gateway, app } = await startSecure(t, { redirectFrom: 0 });
  const { redirectUrl = "" } = gateway.gateway;
  const port = Number(new URL(redirectUrl).port);
  const to = async (octets: string) => {
    const text = await raw(port, octets);
    return [Number(text.slice(9, 12)), /^location: (.*)\r$/m.exec(text)?.[1]];
  };
  const get = (target: string, host = "app.example", method = "GET") =>
    to(`${method} ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
  const at = `https://app.example:${gateway.port}`;
  t.same(await get("/a/b?c=d&e"), [308, `${at}/a/b?c=d&e`]);
  t.same(await get("/", "App.Example:80"), [308, `${at}/`], "the port is another");
  t.same(await get("/", "[::1]:8080"), [308, `https://[::1]:${gateway.port}/`]);
  t.same(await get("//evil.example/"), [308, `${at}//evil.example/`]);
  t.same(await get("/%0d%0aset-cookie:a=1"), [308, `${at}/%0d%0aset-cookie:a=1`]);
  t.same(await get("http://other.example/x"), [308, `https://other.example:${gateway.port}/x`]);
  t.same(await to("POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"), [
    308,
    `${at}/`,
  ]);
  const refused = [
    await get("/", "a@evil.example"),
    await get("/", "evil.example/x"),
    await get("/", "evil.example\\x"),
    await get("/", "a, b"),
    await get("/", ""),
    await get("/", "a\r\nHost: b"),
    await get("*", "app.example", "OPTIONS"),
    await get("evil.example"),
    await get("/\\evil.example"),
    await to("GET / HTTP/1.0\r\n\r\n"),
    await to("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
  ];
  for (const reply of refused) t.same(reply, [400, undefined]);
  t.same((await get("/", "a", "TRACE"))[0], 308);
  t.same((await to("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"))[0], 405);
  t.same(app.received, []);
  t.ok((await gateway.exchanges()).some(({ request, response }) => request.path === "/a/b" && response.status === 308));
  t.match(await gateway.metrics(), /http_response_status_code="308"/);
  t.match(
    gateway.logs.find(({ event }) => event === "gateway.started"),
    { redirect: redirectUrl },
  );

  const published = await startSecure(t, { redirectFrom: { port: 0, httpsPort: 443 } });
  const reply = await ask(`${published.gateway.gateway.redirectUrl}/x`, { headers: { host: "app.example:80" } });
  t.equal(reply.headers.location, "https://app.example/x", "by the port that clients reach");
  const { redirectUrl: closed = "" } = published.gateway.gateway;
  await published.gateway.gateway.close();
  await t.rejects(ask(closed), { code: "ECONNREFUSED" });
});

t.test("a session cookie that is for HTTPS only", async (t) => {
  const app = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/login") res.setHeader("X-Session-Start", '{"user":{"id":"7"},"data":{}}');
    res.end(JSON.stringify(received.headers));
  });
  const secret = "an old secret that has 32 characters";
  const settings = {
    session: { cookie: { secrets: [secret] } },
    routes: [{ upstream: app.url, session: "optional", write: ["user"] }],
  };
  const { gateway, ca } = await startSecure(t, {}, settings);
  const session = http2Connect(t, gateway.url, ca);
  const login = await http2Ask(session, { ":path": "/login" });
  const [cookie = ""] = login.headers["set-cookie"] as string[];
  t.match(cookie, /^__Host-session=.*; Secure/);
  const pair = cookie.split(";", 1)[0] as string;
  const known = await http2Ask(session, { ":path": "/", cookie: ["a=1", pair, "b=2"] });
  t.match(JSON.parse(known.body), { "x-user-id": "7", cookie: "a=1; b=2" });
  const over1 = await new Promise<string>((resolve, reject) => {
    request(gateway.url, { ca, headers: { cookie: pair } }, async (res) => {
      let text = "";
      for await (const piece of res.setEncoding("utf8")) text += piece;
      resolve(text);
    })
      .on("error", reject)
      .end();
  });
  t.match(JSON.parse(over1), { "x-user-id": "7" });
});
