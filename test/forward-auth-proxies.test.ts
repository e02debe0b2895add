/**
 * The examples in examples/forward-auth with the programs that they are for: Debian's nginx and Caddy ask, forward, and pass on
 * what they should. Only addresses are replaced, and Redis by a store in this process.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import t from "tap";
import { parse } from "yaml";
import { loadConfigText } from "../src/config/load.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, cookiePair, type Reply, raw } from "./support/client.ts";
import { ROOT } from "./support/project.ts";
import { end, eventually, spawnServer } from "./support/resources.ts";
import {
  freePort,
  type RunningGateway,
  SECRET,
  startGateway,
  startUpstream,
  type Teardown,
  temporaryFolder,
  type Upstream,
} from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const HOST = "app.example.com";
const EXAMPLES = join(ROOT, "examples/forward-auth");
const read = (file: string) => readFileSync(join(EXAMPLES, file), "utf8");

const PROGRAMS = {
  nginx: {
    file: "nginx/nginx.conf",
    // What a package says in the main section of its own file.
    adapt: (text: string, folder: string) =>
      `daemon off; pid ${folder}/nginx.pid; error_log stderr;\n` +
      text.replace("http {", `http { access_log off; ${temporaryPaths(folder)}`),
    args: (file: string) => ["-p", join(file, ".."), "-c", file, "-e", "stderr"],
  },
  caddy: {
    file: "caddy/Caddyfile",
    adapt: (text: string, folder: string) => text.replace("admin off", `admin off\n\tstorage file_system ${folder}`),
    args: (file: string) => ["run", "--config", file, "--adapter", "caddyfile"],
  },
} as const;

function temporaryPaths(folder: string): string {
  const kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  return kinds.map((kind) => `${kind}_temp_path ${folder}/${kind};`).join(" ");
}

interface Site {
  readonly url: string;
  readonly port: number;
  readonly gateway: RunningGateway;
  readonly app: Upstream;
  /** Makes the store of sessions fail. */
  readonly breakStore: () => void;
  /** Minutes later. */
  readonly later: (minutes: number) => void;
}

/** The example, with the application, Coatcheck and the proxy on free ports. */
async function startSite(t: Teardown, proxy: keyof typeof PROGRAMS): Promise<Site> {
  const app = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/login" && received.method === "POST")
      res.setHeader("X-Session-Start", '{"user":{"id":"7","name":"Ada","roles":["admin","staff"]}}');
    res.setHeader("Set-Cookie", "own=1");
    res.end(JSON.stringify(received));
  });
  const { settings } = loadConfigText(read("coatcheck.yaml"), { COATCHECK_SECRET: SECRET }, "coatcheck.yaml");
  const parsed = parse(
    read("coatcheck.yaml")
      .replace(/\$\{COATCHECK_SECRET\}/, SECRET)
      .replaceAll("127.0.0.1:3000", `127.0.0.1:${app.port}`),
  );
  let isBroken = false;
  let aheadMs = 0;
  const store = new SteppedStore(new MemoryStore(), () =>
    isBroken ? Promise.reject(new Error("it is down")) : Promise.resolve(),
  );
  const gateway = await startGateway(
    t,
    { ...parsed, store: "memory:", listen: { ...parsed.listen, port: 0 } },
    { store, now: () => Date.now() + aheadMs },
  );
  const port = await freePort();
  const addresses = new Map([
    [`127.0.0.1:${settings.listen.port}`, `127.0.0.1:${gateway.port}`],
    ["127.0.0.1:3000", `127.0.0.1:${app.port}`],
    ["127.0.0.1:8000", `127.0.0.1:${port}`],
    [`${HOST}:8000`, `${HOST}:${port}`],
  ]);
  const folder = await temporaryFolder(t);
  const { file, adapt, args } = PROGRAMS[proxy];
  let text = read(file);
  for (const [before, after] of addresses) text = text.replaceAll(before, after);
  const configuration = join(folder, "configuration");
  await mkdir(join(folder, "logs"));
  await writeFile(configuration, adapt(text, folder));
  const logFile = join(folder, "log");
  const child = spawnServer(proxy, args(configuration), { cwd: folder, logFile });
  t.teardown(() => end(child, "SIGTERM"));
  await eventually(
    `${proxy} on its port; it says: ${readFileSync(logFile, "utf8").slice(-500)}`,
    () =>
      new Promise((resolve) => {
        const socket = createConnection(port, "127.0.0.1", () => resolve(socket.destroy() !== undefined));
        socket.on("error", () => resolve(false));
      }),
  );
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    gateway,
    app,
    breakStore: () => {
      isBroken = true;
    },
    later: (minutes) => {
      aheadMs += minutes * 60_000;
    },
  };
}

const page = { accept: "text/html,*/*" };
const get = ({ url }: Site, path: string, headers: Record<string, string> = {}): Promise<Reply> =>
  ask(url, { path, headers: { host: HOST, ...headers } });

async function signIn(site: Site): Promise<string> {
  const login = await ask(`${site.url}/login`, { method: "POST", headers: { host: HOST }, body: "name=ada" });
  const cookie = login.setCookie.find((field) => field.startsWith("__Host-session="));
  return cookiePair(cookie);
}

for (const proxy of Object.keys(PROGRAMS) as (keyof typeof PROGRAMS)[]) {
  t.test(`${proxy}: signing in, being known, and signed out`, async (t) => {
    const site = await startSite(t, proxy);
    t.equal((await get(site, "/public/logo")).status, 200);
    t.equal((await get(site, "/account")).status, 401, "a script");
    const visitor = await get(site, "/account", page);
    t.match(visitor, { status: 302, headers: { location: `http://${HOST}/login` } });
    t.equal(site.app.received.length, 1);

    const cookie = await signIn(site);
    t.match(cookie, /^__Host-session=[\w-]{43}\.[\w-]{43}$/);
    const known = await get(site, "/account?x=1", { cookie: `theme=dark; ${cookie}; lang=en` });
    t.equal(known.status, 200);
    const { headers, url } = JSON.parse(known.body);
    t.equal(url, "/account?x=1");
    t.match(headers, { "x-user-id": "7", "x-user-name": "Ada", "x-user-roles": "admin,staff", host: HOST });
    t.notOk(headers["x-user-email"], "empty");
    t.match(headers["x-session-handle"], /^[\w-]{12}$/);
    t.equal(headers.cookie, "theme=dark; lang=en", "without the session");
    for (const [sent, received] of [
      [cookie, ""],
      [`${cookie}; a=1`, "a=1"],
      [`a=1; ${cookie}`, "a=1"],
      ["a=1; b=2", undefined],
    ] as const) {
      const { status, body } = await get(site, "/account", { cookie: sent });
      if (received === undefined) t.equal(status, 401);
      else t.equal(JSON.parse(body).headers.cookie ?? "", received, sent);
    }
    t.match((await site.gateway.exchanges())[0], {
      verification: { protocol: proxy === "nginx" ? "auth-request" : "forward-auth", method: "GET" },
      request: { host: HOST, path: "/account", client: "127.0.0.1" },
      headers: { stripped: {} },
    });

    const posted = await ask(`${site.url}/account`, {
      method: "POST",
      body: "content",
      headers: { host: HOST, cookie },
    });
    t.match(JSON.parse(posted.body), { method: "POST", body: "content" }, "the content is the application's");
    t.match((await site.gateway.exchanges())[0]?.verification, { method: "POST" });
    t.equal((await ask(site.url, { method: "HEAD", headers: { host: HOST, cookie } })).status, 200);
    const upgrade = { cookie, connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13" };
    t.equal((await get(site, "/account", upgrade)).status, 200, "the question about an upgrade is no upgrade");

    await ask(`${site.gateway.adminUrl}/sessions?user=7`, { method: "DELETE" });
    t.equal((await get(site, "/account", { cookie })).status, 401);
  });

  t.test(`${proxy}: nobody is somebody else`, async (t) => {
    const site = await startSite(t, proxy);
    const cookie = await signIn(site);
    for (const name of ["X-User-Id", "x-user-roles", "X-Session-Handle"])
      t.equal((await get(site, "/account", { cookie, [name]: "root" })).status, 403, name);
    for (const name of ["X_User_Id", "X.User.Id", "X-User_Id", "X!User-Id"]) {
      const { status, body } = await get(site, "/account", { cookie, [name]: "root" });
      // nginx drops names that are no letters, digits and dashes itself.
      if (status === 403) continue;
      t.equal(status, 200);
      const { rawHeaders } = JSON.parse(body) as { rawHeaders: string[] };
      t.notOk(rawHeaders.includes("root"), `${name}: ${rawHeaders.join(" ")}`);
    }
    for (const name of ["X-User-Id", "X_User_Id"])
      t.equal(
        (await get(site, "/public/", { [name]: "root" })).status === 403,
        !(proxy === "nginx" && name.includes("_")),
      );
  });

  t.test(`${proxy}: what a client says of its request is not believed`, async (t) => {
    const site = await startSite(t, proxy);
    const lies = {
      "X-Forwarded-Uri": "/public",
      "X-Original-URL": `http://${HOST}/public`,
      "X-Original-URI": "/public",
      "X-Forwarded-Host": "other.example.com",
      "X-Forwarded-Method": "OPTIONS",
      "X-Rewrite-Url": "/public",
    };
    for (const [name, value] of Object.entries({ ...lies, X_Forwarded_Uri: "/public" }))
      t.ok([401, 403].includes((await get(site, "/account", { [name]: value })).status), name);
    t.ok([401, 403].includes((await get(site, "/account", lies)).status));
    for (const path of [
      "/public/../account",
      "/public/%2e%2e/account",
      "/public/..%2faccount",
      "/public%2f..%2faccount",
      "//public/../account",
      "/public/./../account",
      "/PUBLIC",
      "/%70ublic",
      "/account/..;/public",
      "/public\\..\\account",
      "/verify",
      "/verify/public",
      "/_verify",
    ]) {
      const { status } = await get(site, path);
      t.ok(status >= 400 && status < 500, `${path}: ${status}`);
    }
    const head = [`Host: ${HOST}`, "Connection: close", "", ""].join("\r\n");
    // Caddy answers these itself, with nothing.
    await raw(site.port, `GET http://other.example.com/account HTTP/1.1\r\n${head}`);
    await raw(site.port, `OPTIONS * HTTP/1.1\r\n${head}`);
    t.equal(site.app.received.length, 0);
  });

  t.test(`${proxy}: a session that is used slides, and the browser is told`, async (t) => {
    const site = await startSite(t, proxy);
    const cookie = await signIn(site);
    site.later(5);
    const { setCookie } = await get(site, "/account", { cookie });
    t.match(
      setCookie.toSorted().map((field) => field.replace(/=.*; Max-Age=(\d+).*/, " $1")),
      ["__Host-session 1800", "own=1"],
    );
    t.same((await get(site, "/account", { cookie })).setCookie, ["own=1"], "nothing where there is nothing to tell");
  });

  t.test(`${proxy}: an outage is 503, and no sign-out`, async (t) => {
    const site = await startSite(t, proxy);
    const cookie = await signIn(site);
    site.breakStore();
    const { status, headers, setCookie } = await get(site, "/account", { cookie, ...page });
    t.match({ status, setCookie }, { status: 503, setCookie: [] });
    t.ok(headers["retry-after"]);
  });
}

t.test("the other examples are YAML, and ask where Coatcheck answers", (t) => {
  const { settings } = loadConfigText(read("coatcheck.yaml"), { COATCHECK_SECRET: SECRET }, "coatcheck.yaml");
  const address = `http://127.0.0.1:${settings.listen.port}`;
  const traefik = parse(read("traefik/dynamic.yaml")).http;
  t.equal(traefik.middlewares.coatcheck.forwardAuth.address, `${address}${settings.forwardAuth?.path}`);
  const names = Object.keys(settings.identity.headers);
  t.same(traefik.middlewares.coatcheck.forwardAuth.authResponseHeaders, names);
  t.same(traefik.middlewares.coatcheck.forwardAuth.addAuthCookiesToResponse, [settings.session.cookie.name]);
  const envoy = parse(read("envoy/envoy.yaml"));
  const [{ typed_config: filter }] =
    envoy.static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters;
  t.equal(filter.http_service.server_uri.uri, address);
  t.equal(filter.http_service.path_prefix, settings.forwardAuth?.path);
  const { allowed_upstream_headers: allowed } = filter.http_service.authorization_response;
  t.same(
    allowed.patterns.map(({ exact }: { exact: string }) => exact),
    names.map((name) => name.toLowerCase()),
  );
  for (const file of ["nginx/nginx.conf", "caddy/Caddyfile"])
    for (const name of names) t.match(read(file), new RegExp(`\\b${name}\\b`), `${file} has ${name}`);
  t.end();
});

t.test("Caddy takes the example for well formatted", (t) => {
  t.equal(
    spawnSync("caddy", ["fmt", join(EXAMPLES, "caddy/Caddyfile")], { encoding: "utf8" }).stdout,
    read("caddy/Caddyfile"),
  );
  t.end();
});
