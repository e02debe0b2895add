/**
 * The preset for MediaWiki with Debian's MediaWiki, on PHP's own server and SQLite. The extension that the preset is for has no
 * package; `session-provider.php` does what it does, with the same headers. Installing a wiki takes ten seconds and the
 * packages of PHP, so this is not part of `npm test`: `npm run test:mediawiki`.
 */
import { spawnSync } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ask, cookiePair } from "../support/client.ts";
import { ROOT } from "../support/project.ts";
import { end, eventually, spawnServer } from "../support/resources.ts";
import { freePort, startApp, startGateway, temporaryFolder } from "../support/servers.ts";

const MEDIAWIKI = "/usr/share/mediawiki";
if (!existsSync(MEDIAWIKI))
  throw new Error("apt-get install mediawiki php-cli php-sqlite3 php-mbstring php-xml php-intl, and run it again");

const folder = await temporaryFolder(t);
const port = await freePort();
const direct = `http://127.0.0.1:${port}`;
for (const name of ["database", "settings"]) mkdirSync(join(folder, name));
const database = ["--dbtype", "sqlite", "--dbpath", join(folder, "database"), "--dbname", "wiki"];
const place = ["--scriptpath", "", "--server", direct, "--confpath", join(folder, "settings"), "--skins", ""];
const installed = spawnSync(
  "php",
  [
    `${MEDIAWIKI}/maintenance/install.php`,
    ...database,
    ...place,
    "--pass",
    "nobody signs in with this",
    "Wiki",
    "Admin",
  ],
  { encoding: "utf8" },
);
if (installed.status !== 0) throw new Error(installed.stdout + installed.stderr);
const settings = join(folder, "settings/LocalSettings.php");
appendFileSync(settings, `\nrequire '${join(ROOT, "test/mediawiki/session-provider.php")}';\n`);
const php = spawnServer("env", [`MW_CONFIG_FILE=${settings}`, "php", "-S", `127.0.0.1:${port}`, "-t", MEDIAWIKI], {
  cwd: folder,
  logFile: join(folder, "log"),
});
t.teardown(() => end(php, "SIGTERM"));
const ME = "/api.php?action=query&meta=userinfo&uiprop=realname%7Cemail&format=json&formatversion=2";
await eventually(
  "MediaWiki",
  () =>
    fetch(direct + ME).then(
      ({ ok }) => ok,
      () => false,
    ),
  60_000,
);

const login = await startApp(t);
const gateway = await startGateway(t, {
  identity: { preset: "mediawiki" },
  routes: [
    { match: { path: "/start" }, upstream: login.url, session: "optional", write: ["user"] },
    { upstream: direct, session: "optional" },
  ],
});

async function signIn(user: Record<string, unknown>): Promise<string> {
  const body = JSON.stringify({ user }).replace(
    /[^ -~]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return cookiePair((await ask(`${gateway.url}/start`, { method: "POST", body })).setCookie[0]);
}

async function whoAmI(headers: Record<string, string>, base = gateway.url) {
  return JSON.parse((await ask(base + ME, { headers })).body).query.userinfo;
}

t.test("MediaWiki knows who is asking, and makes an account at the first visit", async (t) => {
  t.match(await whoAmI({}), { id: 0, anon: true });
  const ada = await signIn({ id: "ada", name: "Ada Lovelace", email: "ada@example.com" });
  t.match(await whoAmI({ cookie: ada }), { name: "Ada", realname: "Ada Lovelace", email: "ada@example.com" });
  const zoe = await signIn({ id: "Zoë 二", name: "Zoë Ångström" });
  t.match(await whoAmI({ cookie: zoe }), { name: "Zoë 二", realname: "Zoë Ångström" }, "UTF-8 all the way");
});

t.test("nobody is the administrator who says so", async (t) => {
  const ada = await signIn({ id: "ada" });
  for (const name of [
    "X-Remote-User",
    "X_Remote_User",
    "x-remote_user",
    "X_REMOTE_USER",
    "X.Remote.User",
    "Remote-User",
  ]) {
    t.match(await whoAmI({ cookie: ada, [name]: "Admin" }), { name: "Ada" }, name);
    t.match(await whoAmI({ [name]: "Admin" }), { id: 0, anon: true }, `${name}, signed out`);
  }
  // What MediaWiki itself makes of it, without Coatcheck in front.
  t.match(await whoAmI({ X_Remote_User: "Admin" }, direct), { name: "Admin" });
});
