/** Routes: most specific host, longest path, and no way round a route's policy by spelling its path differently. */
import t from "tap";
import { NO_ROUTE_LIMITS } from "../src/core/limits.ts";
import { loosestReadings } from "../src/core/request-path.ts";
import { type Route, RouteTable } from "../src/core/routes.ts";
import { ask, cookiePair, raw } from "./support/client.ts";
import { startApp, startGateway, startUpstream } from "./support/servers.ts";

function route(id: string, index: number): Route {
  const slash = id.indexOf("/");
  const host = id.slice(0, slash);
  const prefix = id.slice(slash).replace(/\/$/, "");
  return {
    id,
    host: host === "*" ? undefined : host,
    prefix,
    session: "none",
    loginRedirect: undefined,
    webSockets: undefined,
    limits: NO_ROUTE_LIMITS,
    onOutage: "503",
    write: undefined,
    index,
  };
}

t.test("which route", async (t) => {
  const ids = ["*/", "*/admin", "*/admin/public", "shop.example/", "shop.example/cart"];
  const table = new RouteTable(ids.map(route));
  const cases: [host: string, path: string, id: string | undefined][] = [
    ["any", "/", "*/"],
    ["any", "/administrator", "*/"],
    ["any", "/admin", "*/admin"],
    ["any", "/admin/", "*/admin"],
    ["any", "/admin/x", "*/admin"],
    ["any", "/admin/public/x", "*/admin/public"],
    ["shop.example", "/", "shop.example/"],
    ["shop.example", "/admin", "shop.example/"],
    ["shop.example", "/cart/1", "shop.example/cart"],
    ["x.shop.example", "/cart", "*/"],
  ];
  for (const [host, path, id] of cases) t.equal(table.match(host, path)?.id, id, `${host} ${path}`);
  t.equal(new RouteTable([route("a/", 0)]).match("b", "/"), undefined);
});

const roundabouts = [
  "/public/../admin",
  "/public/..%2fadmin",
  "/public/%2e%2e/admin",
  "/public/%252e%252e/admin",
  "/public/..;/admin",
  "/public/..;x=1/admin",
  "//admin",
  "/./admin",
  "/%61dmin",
  "/%2561dmin",
  "/admin%2f..%2f..%2fpublic",
  "/admin;x=1",
  "/public%2f..%2fadmin",
  "/public/..%5cadmin",
  "/public/.%2e/admin",
  "/%2e/admin",
  "/a/..//admin",
  "/./admin//../x",
  "/./admin/..;",
  "/%2e/admin/..%2f",
  "//x/admin",
  "/\\x/admin".replace("\\", "%5c"),
  "http://a//x/admin",
  "/;%2fa/admin/x",
  "/;%5ca/admin",
  "/;%252fa/admin",
  "/admin%3f",
  "/admin%23x",
  "/admin%253Fx",
  "/admin%2500",
  "/x%0a",
  "/Admin",
  "/ADMIN/x",
  "/admin%20",
  "/admin%20/x",
  "/%20admin",
  "/x/..%20/admin",
  "/x/%20../admin",
  "/admin.",
  "/admin./x",
  "/admin.%20.",
  "/%41dmin",
  "/%25252541dmin",
  "/public/..",
  "/public/.",
  "/public/%2E%2E;x",
];

t.test("a path that can be read as that of another route is refused", async (t) => {
  const upstream = await startUpstream(t);
  const routes = [
    { match: { path: "/" }, upstream: upstream.url, session: "none" },
    { match: { path: "/admin" }, upstream: upstream.url, session: "required" },
  ];
  const gateway = await startGateway(t, { routes });
  for (const path of roundabouts) {
    const reply = await raw(gateway.port, `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`);
    t.match(reply, /^HTTP\/1.1 (400|401) /, path);
  }
  t.same(upstream.received, []);
});

t.test("no path takes long to read, however it is made", async (t) => {
  const pieces = [
    ".",
    ". ",
    ";",
    ";x",
    "%20",
    "%20.",
    "%2e",
    "%3b",
    ";%",
    "/",
    "//",
    "/;",
    "/.",
    "/%20",
    "%25",
    "%",
    "a/",
  ];
  for (const piece of pieces) {
    for (const around of ["/A", "/A/", "/;"]) {
      const path = `${around}${piece.repeat(32_000 / piece.length)}x`;
      const before = process.cpuUsage();
      loosestReadings(path);
      const { user } = process.cpuUsage(before);
      // Quadratic it would be half a second and more.
      if (user > 200_000) t.fail(`${around}${piece}…: ${user / 1000} ms`);
    }
  }
});

t.test("a path that is odd but belongs to one route goes on as it was sent", async (t) => {
  const upstream = await startUpstream(t);
  const gateway = await startGateway(t, { upstream: upstream.url });
  const paths = [
    "/a%2Fb",
    "/a//b",
    "/a;x=1?y=%zz",
    "/a%zz",
    "/a..b/...",
    "/a?b",
    "/wiki/C%23",
    "/what%3F",
    "/a;v=%20x/b",
    "/a?x=/../y",
    "/A/b",
    "/%E2%82%AC/%d0%90", // UTF-8 has octets that are control characters in Latin-1
    "/a./b%20/c.",
  ];
  for (const path of paths) await raw(gateway.port, `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`);
  t.same(
    upstream.received.map(({ url }) => url),
    paths,
  );
});

t.test("policy: 401 for scripts, a redirect for page navigations, nothing of the inside for either", async (t) => {
  const app = await startApp(t);
  const routes = [
    { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
    { match: { path: "/page" }, upstream: app.url, session: "required", onMissing: { redirect: "/login" } },
    { match: { path: "/api" }, upstream: app.url, session: "required" },
  ];
  const gateway = await startGateway(t, { routes });
  const status = async (path: string, headers = {}, method = "GET") =>
    (await ask(gateway.url + path, { headers, method })).status;
  t.equal(await status("/page", { accept: "text/html,*/*" }), 302);
  t.equal(await status("/page", { "sec-fetch-mode": "navigate" }), 302);
  t.equal(await status("/page", { accept: "text/html", "sec-fetch-mode": "cors" }), 401);
  t.equal(await status("/page", { accept: "application/json" }), 401);
  t.equal(await status("/page", { accept: "text/html" }, "POST"), 401);
  t.equal(await status("/api", { accept: "text/html" }), 401);
  const redirect = await ask(`${gateway.url}/page`, { headers: { accept: "text/html" } });
  t.match(redirect.headers, { location: "/login", "cache-control": "no-store" });
  const denied = await ask(`${gateway.url}/api`);
  t.match(denied.headers, { "www-authenticate": /./, "content-type": "application/problem+json" });
  t.same(app.received, []);

  const anonymous = await ask(`${gateway.url}/start`, { method: "POST", body: '{"data":{}}' });
  const cookie = cookiePair(anonymous.setCookie[0]);
  t.equal(await status("/api", { cookie }), 401, "a session that nobody logged in to is not enough");
  t.equal(await status("/", { cookie }), 200);
});
