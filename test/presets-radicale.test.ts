/**
 * A preset and the application that it is for: Radicale (Debian's package) takes the word of Coatcheck for who is asking. It
 * is a WSGI application, so that for it `X_Remote_User` and `X-Remote-User` are one header.
 */
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { ask, cookiePair } from "./support/client.ts";
import { ROOT } from "./support/project.ts";
import { end, eventually, spawnServer } from "./support/resources.ts";
import { freePort, startApp, startGateway, temporaryFolder } from "./support/servers.ts";

const PRINCIPAL = `<?xml version="1.0"?><propfind xmlns="DAV:"><prop><current-user-principal/></prop></propfind>`;
const EVENT = [
  "BEGIN:VCALENDAR",
  "VERSION:2.0",
  "PRODID:-//coatcheck//test//EN",
  "BEGIN:VEVENT",
  "UID:1",
  "DTSTAMP:20260501T120000Z",
  "DTSTART:20260501T120000Z",
  "SUMMARY:Lunch",
  "END:VEVENT",
  "END:VCALENDAR",
  "",
].join("\r\n");

const folder = await temporaryFolder(t);
const port = await freePort();
const configuration = join(folder, "radicale.ini");
const example = readFileSync(join(ROOT, "examples/presets/radicale.ini"), "utf8");
await writeFile(configuration, example.replace("5232", String(port)).replace("/var/lib/radicale", folder));
const radicale = spawnServer("radicale", ["--config", configuration], { cwd: folder, logFile: join(folder, "log") });
t.teardown(() => end(radicale, "SIGTERM"));
const direct = `http://127.0.0.1:${port}`;
await eventually("Radicale", () =>
  fetch(`${direct}/.web`).then(
    () => true,
    () => false,
  ),
);

const login = await startApp(t);
const gateway = await startGateway(t, {
  identity: { preset: "radicale" },
  routes: [
    { match: { path: "/start" }, upstream: login.url, session: "optional", write: ["user"] },
    { upstream: direct, session: "required" },
  ],
});

async function signIn(id: string): Promise<string> {
  const body = JSON.stringify({ user: { id } });
  return cookiePair((await ask(`${gateway.url}/start`, { method: "POST", body })).setCookie[0]);
}

const dav = (method: string, path: string, headers: Record<string, string>, body = "") =>
  ask(gateway.url + path, { method, body, headers: { ...headers, "content-length": String(Buffer.byteLength(body)) } });

t.test("Radicale knows who is asking", async (t) => {
  t.equal((await dav("PROPFIND", "/", {}, PRINCIPAL)).status, 401, "nobody, and Radicale is not asked");
  for (const id of ["ada", "bob"]) {
    const reply = await dav("PROPFIND", "/", { cookie: await signIn(id), depth: "0" }, PRINCIPAL);
    t.equal(reply.status, 207);
    t.match(reply.body, new RegExp(`<current-user-principal>\\s*<href>/${id}/</href>`), id);
  }
});

t.test("a calendar is its owner's, whatever others say who they are", async (t) => {
  const ada = { cookie: await signIn("ada") };
  t.equal((await dav("MKCALENDAR", "/ada/lunch/", ada)).status, 201);
  t.equal((await dav("PUT", "/ada/lunch/1.ics", { ...ada, "content-type": "text/calendar" }, EVENT)).status, 201);
  t.match(await dav("GET", "/ada/lunch/1.ics", ada), { status: 200, body: /SUMMARY:Lunch/ });

  const bob = { cookie: await signIn("bob") };
  for (const name of [
    "X-Remote-User",
    "x-remote-user",
    "X_Remote_User",
    "X_REMOTE-USER",
    "X.Remote.User",
    "Remote-User",
  ]) {
    const { status, body } = await dav("GET", "/ada/lunch/1.ics", { ...bob, [name]: "ada" });
    t.equal(status, 403, name);
    t.notMatch(body, /Lunch/);
    const reply = await dav("PROPFIND", "/", { ...bob, depth: "0", [name]: "ada" }, PRINCIPAL);
    t.match(reply.body, /<href>\/bob\/<\/href>/, `${name}: still bob`);
  }
  // It is Coatcheck that keeps them out: Radicale itself believes whoever reaches it.
  t.equal((await ask(`${direct}/ada/lunch/1.ics`, { headers: { X_Remote_User: "ada" } })).status, 200);
});
