/** TLS to the application: always verified, by the name in the configuration, and each failure by its own name. */
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { TLSSocket, TlsOptions } from "node:tls";
import t, { type Test } from "tap";
import { type Certificate, makeCertificate } from "./support/certificates.ts";
import { ask, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { startDns } from "./support/dns.ts";
import { freePort, startGateway, startUpstream, temporaryFolder } from "./support/servers.ts";
import { shown } from "./support/targets.ts";

interface SecureUpstream {
  readonly port: number;
  /** The name that was asked for, a connection each; false for none. */
  readonly names: (string | false | null)[];
}

async function startSecure(t: Test, certificate: Certificate, options: TlsOptions = {}): Promise<SecureUpstream> {
  const names: SecureUpstream["names"] = [];
  const server = createServer(
    { cert: readFileSync(certificate.cert), key: readFileSync(certificate.key), ...options },
    (_req, res) => res.end("behind TLS"),
  );
  server.on("secureConnection", (socket: TLSSocket & { servername?: string | false | null }) =>
    names.push(socket.servername ?? false),
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, names };
}

/** A gateway in front of it, and what becomes of a request. */
async function through(t: Test, target: string, tls: object | undefined, host = "app.example") {
  const upstream = { targets: [target], ...(tls && { tls }) };
  const gateway = await startGateway(t, { routes: [{ upstream, session: "none" }] });
  const get = async (name = host) => {
    const reply = await ask(gateway.url, { headers: { host: name } });
    const error = /error=(\w+)/.exec(String(reply.headers["proxy-status"]))?.[1];
    return { status: reply.status, body: reply.body, error };
  };
  return { gateway, get };
}

t.test(
  "a name that Coatcheck resolves stays the name: what is asked for, and what the certificate is for",
  async (t) => {
    const folder = await temporaryFolder(t);
    const ca = makeCertificate(folder, "authority");
    const certificate = makeCertificate(folder, "own", { names: ["DNS:app.example"], signedBy: ca });
    const { port, names } = await startSecure(t, certificate);
    const dns = await startDns(t, ["127.0.0.1"]);
    const statusOf = async (host: string) => {
      const targets = [`https://${host}:${port}`];
      const upstream = { targets, tls: { ca: ca.cert }, resolve: { servers: [dns.address] }, health: { path: "/" } };
      const gateway = await startGateway(t, { routes: [{ upstream, session: "none" }] });
      await until(async () => (await shown(gateway)).targets[0]?.endpoints[0]?.lastCheck);
      const { ok, detail } = (await shown(gateway)).targets[0]?.endpoints[0]?.lastCheck ?? {};
      return [(await ask(gateway.url, { headers: { host: "app.example" } })).status, ok, detail];
    };
    t.same(await statusOf("app.example"), [200, true, "status 200"]);
    t.same([...new Set(names)], ["app.example"]);
    t.same(await statusOf("other.example"), [502, false, "tls_certificate_error"]);
  },
);

t.test("an authority of one's own, by name and by address", async (t) => {
  const folder = await temporaryFolder(t);
  const ca = makeCertificate(folder, "authority");
  const { port, names } = await startSecure(t, makeCertificate(folder, "own", { signedBy: ca }));
  const byName = await through(t, `https://localhost:${port}`, { ca: ca.cert });
  t.match(await byName.get(), { status: 200, body: "behind TLS" });
  const byAddress = await through(t, `https://127.0.0.1:${port}`, { ca: ca.cert });
  t.match(await byAddress.get(), { status: 200, body: "behind TLS" });
  t.same(names, ["localhost", false], "an address is no name");
  const [record] = await byName.gateway.exchanges();
  t.match(record, { upstream: { address: `localhost:${port}`, status: 200 } });
});

t.test("the name is the configuration's, whatever Host the client sends, and connections are kept", async (t) => {
  const folder = await temporaryFolder(t);
  const ca = makeCertificate(folder, "authority");
  const own = makeCertificate(folder, "own", { signedBy: ca, names: ["DNS:inside.test"] });
  const { port, names } = await startSecure(t, own);
  const { get } = await through(t, `https://127.0.0.1:${port}`, { ca: ca.cert, serverName: "inside.test" });
  for (const host of ["a.example", "b.example", "localhost", "inside.test"]) t.match(await get(host), { status: 200 });
  t.same(names, ["inside.test"], "one connection for all");
});

t.test("what cannot be verified is tls_certificate_error, whatever the environment says", async (t) => {
  const folder = await temporaryFolder(t);
  const ca = makeCertificate(folder, "authority");
  const other = makeCertificate(folder, "other");
  const good = makeCertificate(folder, "good", { signedBy: ca });
  const expired = makeCertificate(folder, "expired", { signedBy: ca, days: -1 });
  const named = makeCertificate(folder, "named", { signedBy: ca, names: ["DNS:inside.test"] });
  const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
  t.teardown(() => {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
  });
  const cases: [string, Certificate, object | undefined][] = [
    ["signed by another authority", good, { ca: other.cert }],
    ["signed by nobody that is known", good, undefined],
    ["signed by itself", other, { ca: ca.cert }],
    ["expired", expired, { ca: ca.cert }],
    ["of another name", named, { ca: ca.cert }],
    ["of another name than serverName", good, { ca: ca.cert, serverName: "inside.test" }],
  ];
  for (const [what, certificate, tls] of cases) {
    const { port } = await startSecure(t, certificate);
    const { get, gateway } = await through(t, `https://localhost:${port}`, tls);
    // A Host that the certificate does have changes nothing.
    for (const host of ["app.example", "inside.test", "localhost"])
      t.match(await get(host), { status: 502, error: "tls_certificate_error" }, `${what}, for ${host}`);
    t.match((await gateway.exchanges("errors"))[0], { upstream: { error: "tls_certificate_error" } }, what);
  }
});

t.test("a certificate of our own, where the application asks for one", async (t) => {
  const folder = await temporaryFolder(t);
  const ca = makeCertificate(folder, "authority");
  const own = makeCertificate(folder, "own", { signedBy: ca });
  const client = makeCertificate(folder, "client", { signedBy: ca, names: ["DNS:gateway.test"] });
  // In TLS 1.3 the refusal comes after the handshake, and undici sees the end of the connection before it.
  for (const [version, error] of [
    ["-tls1_2", "tls_alert_received"],
    ["-tls1_3", /tls_alert_received|connection_terminated/],
  ] as const) {
    const bare = await through(t, `https://localhost:${await startDemanding(t, own, ca, version)}`, { ca: ca.cert });
    t.match(await bare.get(), { status: 502, error });
  }
  const target = `https://localhost:${await startDemanding(t, own, ca, "-tls1_3")}`;
  const named = await through(t, target, { ca: ca.cert, cert: client.cert, key: client.key });
  t.match(await named.get(), { status: 200, body: /Client certificate/ });
});

/** OpenSSL's own server: node's closes the connection of a client without a certificate, and says nothing. */
async function startDemanding(t: Test, own: Certificate, ca: Certificate, version: string): Promise<number> {
  const port = await freePort();
  const demands = ["-Verify", "1", "-verify_return_error", "-CAfile", ca.cert, version];
  const server = spawn("openssl", [
    "s_server",
    "-accept",
    `127.0.0.1:${port}`,
    "-cert",
    own.cert,
    "-key",
    own.key,
    "-www",
    ...demands,
  ]);
  t.teardown(() => server.kill("SIGKILL"));
  for await (const piece of server.stdout) if (/ACCEPT/.test(String(piece))) break;
  server.stdout.resume();
  return port;
}

t.test("what is no TLS, or one that is too old, is tls_protocol_error or the alert of it", async (t) => {
  const folder = await temporaryFolder(t);
  const ca = makeCertificate(folder, "authority");
  const plain = await startUpstream(t);
  const toPlain = await through(t, `https://localhost:${plain.port}`, { ca: ca.cert });
  t.match(await toPlain.get(), { status: 502, error: "tls_protocol_error" });
  const old = await startSecure(t, makeCertificate(folder, "old", { signedBy: ca }), {
    minVersion: "TLSv1",
    maxVersion: "TLSv1.1",
    ciphers: "DEFAULT@SECLEVEL=0",
  });
  const toOld = await through(t, `https://localhost:${old.port}`, { ca: ca.cert });
  const { status, error } = await toOld.get();
  t.equal(status, 502);
  t.match(error, /^tls_(protocol_error|alert_received)$/);
});

t.test("files that cannot be used end the start, and the check, with setting and file", async (t) => {
  const folder = await temporaryFolder(t);
  const [one, two] = [makeCertificate(folder, "one"), makeCertificate(folder, "two")];
  const start = (tls: object) => through(t, "https://localhost:1", tls);
  const setting = /^routes\[0\]\.upstream\.tls/;
  await t.rejects(start({ ca: join(folder, "none") }), {
    message: /^routes\[0\]\.upstream\.tls\.ca: .*none is not there/,
  });
  await t.rejects(start({ ca: one.key }), { message: /one\.key is not a certificate in PEM/ });
  await t.rejects(start({ cert: one.cert, key: two.key }), {
    message: /two\.key is not the private key of .*one\.pem/,
  });
  await t.rejects(start({ cert: one.cert, key: two.key }), { message: setting });
  await t.rejects(start({ cert: one.cert }), {
    message: /upstream\.tls\.key.*is missing: cert is of no use without it/,
  });
  await t.rejects(through(t, "http://localhost:1", { ca: one.cert }), { message: /no meaning for a target with http/ });
  const checked = await run(t, ["check", "--config", writeConfig(folder, { ca: join(folder, "none") })]);
  t.match(checked, { status: 1, stderr: /routes\[0\]\.upstream\.tls\.ca: .*none is not there/ });
});

function writeConfig(folder: string, tls: object): string {
  const file = join(folder, "coatcheck.yaml");
  writeFileSync(file, JSON.stringify({ store: "memory:", routes: [{ upstream: { targets: ["https://a"], tls } }] }));
  return file;
}
