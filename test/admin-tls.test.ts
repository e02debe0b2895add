/** The admin listener over TLS: renewed certificates, and the command line that trusts them. */
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, readFileSync, renameSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { connect as connectTcp } from "node:net";
import { join } from "node:path";
import { connect, type TLSSocket } from "node:tls";
import t from "tap";
import { type Certificate, makeCertificate } from "./support/certificates.ts";
import { collect, raw } from "./support/client.ts";
import { run } from "./support/command.ts";
import { eventually } from "./support/resources.ts";
import { freePort, type RunningGateway, startGateway, type Teardown, temporaryFolder } from "./support/servers.ts";

const POLL_MS = 20;
const TOKEN = "t".repeat(40);

function put(from: Certificate, to: Certificate): void {
  for (const file of ["cert", "key"] as const) {
    // As a renewing program does it: nobody sees half a file.
    copyFileSync(from[file], `${to[file]}.new`);
    renameSync(`${to[file]}.new`, to[file]);
  }
}

function startTls(t: Teardown, tls: Certificate, settings: Record<string, unknown> = {}): Promise<RunningGateway> {
  const admin = { port: 0, token: TOKEN, tls, ...settings };
  return startGateway(t, { admin }, { certificatePollMs: POLL_MS });
}

const portOf = (gateway: RunningGateway) => Number(new URL(gateway.adminUrl).port);

async function handshake(gateway: RunningGateway, ca: string): Promise<TLSSocket> {
  const socket = connect({
    port: portOf(gateway),
    host: "127.0.0.1",
    ca: readFileSync(ca),
    ALPNProtocols: ["http/1.1"],
  });
  await once(socket, "secureConnect");
  return socket;
}

/** The certificate that a new connection gets. */
async function presented(gateway: RunningGateway): Promise<string> {
  const socket = connect({ port: portOf(gateway), host: "127.0.0.1", rejectUnauthorized: false });
  await once(socket, "secureConnect");
  const { raw } = socket.getPeerCertificate();
  socket.destroy();
  return new X509Certificate(raw).fingerprint256;
}

const fingerprint = (file: string) => new X509Certificate(readFileSync(file)).fingerprint256;

async function get(gateway: RunningGateway, ca: string, path: string): Promise<string> {
  const socket = await handshake(gateway, ca);
  socket.write(
    `GET ${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${TOKEN}\r\nConnection: close\r\n\r\n`,
  );
  return collect(socket);
}

t.test("HTTPS and nothing else; until when is a metric", async (t) => {
  const folder = await temporaryFolder(t);
  const certificate = makeCertificate(folder, "first");
  const gateway = await startTls(t, certificate);
  t.match(gateway.adminUrl, /^https:\/\/127\.0\.0\.1:\d+$/);
  t.match(await get(gateway, certificate.cert, "/livez"), /^HTTP\/1\.1 200 /);
  const metrics = await get(gateway, certificate.cert, "/metrics");
  const seconds = /^coatcheck_certificate_not_after_timestamp_seconds\{listener="admin"\} (\S+)$/m.exec(metrics)?.[1];
  t.equal(Number(seconds) * 1000, new X509Certificate(readFileSync(certificate.cert)).validToDate.getTime());
  t.notMatch(await raw(portOf(gateway), "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"), /HTTP/, "no plain HTTP");
  const idle = connectTcp(portOf(gateway), "127.0.0.1");
  await once(idle, "connect");
  t.match(await get(gateway, certificate.cert, "/livez"), /^HTTP\/1\.1 200 /, "one that says nothing holds nobody up");
  t.match(
    gateway.logs.find(({ event }) => event === "gateway.started"),
    { admin: gateway.adminUrl },
  );
  await gateway.gateway.close();
  idle.destroy();
});

t.test("what is malformed gets JSON over TLS too", async (t) => {
  const folder = await temporaryFolder(t);
  const certificate = makeCertificate(folder, "first");
  const gateway = await startTls(t, certificate);
  const socket = await handshake(gateway, certificate.cert);
  socket.write("nonsense\r\n\r\n");
  t.match(await collect(socket), /^HTTP\/1\.1 501 Not Implemented\r\ncontent-type: application\/json[\s\S]*"error": "/);
});

t.test("a renewed certificate is taken up; a wrong one is refused, and the one before goes on", async (t) => {
  const folder = await temporaryFolder(t);
  const files = makeCertificate(folder, "used");
  const first = fingerprint(files.cert);
  const gateway = await startTls(t, files);
  const open = await handshake(gateway, files.cert);
  const line = (event: string, n = 0) =>
    eventually(event, () => gateway.logs.filter((each) => each.event === event)[n], 15_000);

  // Renewed.
  const second = makeCertificate(folder, "second", { days: 60 });
  put(second, files);
  t.match(await line("certificate.replaced"), { level: "info", listener: "admin", not_after: /^\d{4}-\d\d-\d\dT/ });
  t.equal(await presented(gateway), fingerprint(second.cert));
  const metrics = await get(gateway, second.cert, "/metrics");
  const [, seconds] = /^coatcheck_certificate_not_after\S*\{listener="admin"\} (\S+)$/m.exec(metrics) ?? [];
  t.equal(Number(seconds) * 1000, new X509Certificate(readFileSync(second.cert)).validToDate.getTime());
  open.write("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  t.match(await collect(open), /^HTTP\/1\.1 200 /, "a connection that was open goes on");
  t.not(first, fingerprint(second.cert));

  // Wrong in every way.
  const other = makeCertificate(folder, "other");
  put({ cert: second.cert, key: other.key }, files);
  t.match(await line("certificate.refused"), { level: "error", listener: "admin", problem: /not the private key of/ });
  writeFileSync(files.cert, "-----BEGIN CERTIFICATE-----\nnonsense\n");
  t.match(await line("certificate.refused", 1), { problem: /is not a certificate in PEM/ });
  put(makeCertificate(folder, "ended", { days: -1 }), files);
  t.match(await line("certificate.refused", 2), { problem: /has ended already/ });
  unlinkSync(files.key);
  t.match(await line("certificate.refused", 3), { problem: /is not there/ });
  t.equal(await presented(gateway), fingerprint(second.cert));
  t.notMatch(gateway.logText(), /PRIVATE KEY/);

  // Right again.
  put(other, files);
  await line("certificate.replaced", 1);
  t.equal(await presented(gateway), fingerprint(other.cert));
});

t.test("a symbolic link that changes its target is a change, as in a Kubernetes volume", async (t) => {
  const folder = await temporaryFolder(t);
  const [first, second] = [makeCertificate(folder, "first"), makeCertificate(folder, "second")];
  const files = { cert: join(folder, "tls.crt"), key: join(folder, "tls.key") };
  const point = (to: Certificate) => {
    for (const file of ["cert", "key"] as const) {
      symlinkSync(to[file], `${files[file]}.new`);
      renameSync(`${files[file]}.new`, files[file]);
    }
  };
  point(first);
  const gateway = await startTls(t, files);
  t.equal(await presented(gateway), fingerprint(first.cert));
  point(second);
  await eventually("the new one", async () => (await presented(gateway)) === fingerprint(second.cert));
});

t.test("a certificate that cannot be used at the start ends it with the reason", async (t) => {
  const folder = await temporaryFolder(t);
  const [one, two] = [makeCertificate(folder, "one"), makeCertificate(folder, "two")];
  const start = (tls: Certificate) => startTls(t, tls);
  await t.rejects(start({ ...one, key: two.key }), { message: /two\.key is not the private key of .*one\.pem/ });
  await t.rejects(start({ ...one, cert: one.key }), { message: /one\.key is not a certificate in PEM/ });
  await t.rejects(start({ ...one, key: join(folder, "none") }), { message: /^admin\.tls: .*none is not there/ });
});

t.test("the command line trusts the certificate of the configuration, whatever its name, and no other", async (t) => {
  const folder = await temporaryFolder(t);
  const authority = makeCertificate(folder, "authority");
  const own = makeCertificate(folder, "own", { names: ["DNS:admin.test"], signedBy: authority });
  const port = await freePort();
  await startTls(t, own, { port });
  const config = join(folder, "coatcheck.yaml");
  const configure = (cert: Certificate) =>
    writeFileSync(
      config,
      JSON.stringify({
        admin: { port, token: TOKEN, tls: cert },
        store: "memory:",
        routes: [{ upstream: "http://a" }],
      }),
    );
  const list = (...args: string[]) =>
    run(t, ["sessions", "list", "--user", "1", ...args], { COATCHECK_ADMIN_TOKEN: TOKEN });

  configure(own);
  t.match(await list("--config", config), { status: 0, stdout: "No live session.\n", stderr: "" });
  configure(makeCertificate(folder, "another", { names: ["DNS:admin.test"], signedBy: authority }));
  t.match(await list("--config", config), { status: 1, stdout: "", stderr: /cannot trust the certificate of https:/ });
  t.match(await run(t, ["check", "--config", config]), { status: 0 });
  configure({ cert: own.key, key: own.key });
  t.match(await run(t, ["check", "--config", config]), { status: 1, stderr: /own\.key is not a certificate in PEM/ });
  t.match(await list("--config", config), { status: 1, stderr: /admin\.tls\.cert: .* is not a certificate in PEM/ });
});

t.test("--admin https://… with --ca FILE", async (t) => {
  const folder = await temporaryFolder(t);
  const authority = makeCertificate(folder, "authority");
  const own = makeCertificate(folder, "own", { signedBy: authority });
  const gateway = await startTls(t, own);
  const list = (...args: string[]) =>
    run(t, ["sessions", "list", "--user", "1", ...args], { COATCHECK_ADMIN_TOKEN: TOKEN });
  const url = gateway.adminUrl;
  t.match(await list("--admin", url, "--ca", authority.cert), { status: 0, stdout: "No live session.\n", stderr: "" });
  t.match(await list("--admin", url, "--ca", own.cert), { status: 0 }, "the certificate itself will do");
  t.match(await list("--admin", url), {
    status: 1,
    stderr: /cannot trust the certificate of https.*UNABLE_TO_GET_ISSUER_CERT_LOCALLY.*--ca FILE/,
  });
  const stranger = makeCertificate(folder, "stranger");
  t.match(await list("--admin", url, "--ca", stranger.cert), { status: 1, stderr: /cannot trust the certificate/ });
  t.match(await list("--admin", url, "--ca", join(folder, "none")), { status: 1, stderr: /--ca: .* is not there/ });
  t.match(await list("--config", "x.yaml", "--ca", own.cert), { status: 2, stderr: /--ca does not go with --config/ });
  const plain = url.replace("https:", "http:");
  t.match(await list("--admin", plain, "--ca", own.cert), { status: 2, stderr: /--ca goes with --admin https/ });
  t.match(await list("--admin", plain), { status: 1, stderr: /if it has admin\.tls, say https:/ });
});
