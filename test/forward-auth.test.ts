/**
 * Other proxies ask, each in its own way; the real nginx and Caddy do in forward-auth-proxies.test.ts. Here are the messages
 * that all four send, and those that somebody else sends in their place: spoofed `X-Forwarded-Uri` (CVE-2026-40575), trusted
 * peers by default (GHSA-vhr5-ggp3-qq85), identity headers and their aliases that the asking proxy would pass on
 * (CVE-2026-30851, CVE-2026-39858, CVE-2026-52845, CVE-2026-88011), paths with two readings (GHSA-p224-6x5r-fjpm).
 */
import fc from "fast-check";
import t from "tap";
import { loadConfig } from "../src/config/load.ts";
import { ProxyError } from "../src/core/errors.ts";
import { Exchange } from "../src/core/exchange.ts";
import { type AskedAbout, isVerification, readVerification } from "../src/core/forward-auth.ts";
import { readRequestTarget } from "../src/core/request-target.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { ask, cookiePair, type Reply, raw, until } from "./support/client.ts";
import { explain } from "./support/explain.ts";
import { type RunningGateway, SECRET, startApp, startGateway, startRedis } from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const HOST = "app.example.com";
const IDENTITY = ["x-user-id", "x-user-name", "x-user-email", "x-user-roles", "x-session-handle"];
const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
const forwardAuth = { path: "/verify" };

const app = await startApp(t);
const routes = [
  { match: { host: HOST, path: "/" }, session: "required", onMissing: { redirect: "/login" } },
  { match: { host: HOST, path: "/api" }, session: "required" },
  { match: { host: HOST, path: "/public" }, session: "none" },
  { match: { host: HOST, path: "/shop" }, session: "optional" },
  { match: { host: "direct.example.com" }, upstream: app.url, session: "optional", write: ["user"] },
];
const settings = { listen, forwardAuth, routes };

async function signIn(gateway: RunningGateway): Promise<string> {
  const body = '{"user":{"id":"7","name":"Zo\\u00eb","roles":["admin","staff"]}}';
  const login = await ask(`${gateway.url}/start`, { method: "POST", body, headers: { host: "direct.example.com" } });
  return cookiePair(login.setCookie[0]);
}

/** What a browser asks for. */
interface Wanted {
  readonly method?: string;
  readonly path: string;
  readonly cookie?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** How the four ask about it; `headers` are the browser's own, which they pass on. */
const PROXIES = {
  nginx: (gateway, { method = "GET", path, cookie, headers }) =>
    ask(`${gateway.url}/verify`, {
      headers: {
        host: "127.0.0.1",
        ...headers,
        ...(cookie && { cookie }),
        "x-original-url": `https://${HOST}${path}`,
        "x-original-method": method,
        "x-forwarded-for": "203.0.113.9",
      },
    }),
  traefik: (gateway, wanted) =>
    ask(`${gateway.url}/verify`, { headers: { host: "coatcheck:8080", ...forwarded(wanted) } }),
  caddy: (gateway, wanted) => ask(`${gateway.url}/verify`, { headers: { host: HOST, ...forwarded(wanted) } }),
  envoy: (gateway, { method = "GET", path, cookie, headers }) =>
    ask(gateway.url, {
      path: `/verify${path}`,
      method,
      headers: {
        host: HOST,
        ...headers,
        ...(cookie && { cookie }),
        "content-length": "0",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "203.0.113.9",
      },
    }),
} as const satisfies Record<string, (gateway: RunningGateway, wanted: Wanted) => Promise<Reply>>;

function forwarded({ method = "GET", path, cookie, headers }: Wanted) {
  return {
    ...headers,
    ...(cookie && { cookie }),
    "x-forwarded-method": method,
    "x-forwarded-proto": "https",
    "x-forwarded-host": HOST,
    "x-forwarded-uri": path,
    "x-forwarded-for": "203.0.113.9",
  };
}

const PROTOCOLS = { nginx: "auth-request", traefik: "forward-auth", caddy: "forward-auth", envoy: "ext-authz" };
const page = { accept: "text/html" };

for (const [proxy, verify] of Object.entries(PROXIES)) {
  t.test(`${proxy}: who may go on, and in whose name`, async (t) => {
    const gateway = await startGateway(t, settings);
    const cookie = await signIn(gateway);
    const upstream = app.received.length;

    const known = await verify(gateway, { method: "POST", path: "/account?a=%2F", cookie });
    t.match(known, { status: 200, body: "", headers: { "x-user-id": "7", "x-user-name": "Zo%C3%AB" } });
    t.equal(known.headers["x-user-roles"], "admin,staff");
    t.equal(known.headers["x-user-email"], "", "without a value it is there, and empty");
    t.equal(known.headers["cache-control"], "no-store");
    const [record] = await gateway.exchanges();
    t.match(record, {
      verification: { protocol: PROTOCOLS[proxy as keyof typeof PROTOCOLS], method: "POST" },
      request: { host: HOST, path: "/account", client: "203.0.113.9" },
      route: `${HOST}/`,
      session: { decision: "identified" },
      headers: { stripped: {}, identity: ["X-User-Id", "X-User-Name", "X-User-Roles", "X-Session-Handle"] },
      reason: "allowed, with the identity of the session",
    });

    for (const path of ["/public/x", "/shop"]) {
      const anonymous = await verify(gateway, { path });
      t.equal(anonymous.status, 200, path);
      for (const name of IDENTITY) t.equal(anonymous.headers[name], "", `${name} for ${path}`);
    }
    t.equal((await verify(gateway, { path: "/api", headers: page })).status, 401);
    t.equal((await verify(gateway, { path: "/", method: "POST", headers: page })).status, 401, "no page that is read");
    const visitor = await verify(gateway, { path: "/account", headers: page });
    t.equal(visitor.status, proxy === "nginx" ? 401 : 302);
    t.equal(visitor.headers.location, `https://${HOST}/login`, "of the site, not of the gateway");
    t.equal((await verify(gateway, { path: "/account", cookie: `${cookie.slice(0, -4)}AAAA` })).status, 401);
    t.equal(app.received.length, upstream, "nothing was forwarded");
  });

  t.test(`${proxy}: a path trick reaches no other route, and is a plain refusal`, async (t) => {
    const gateway = await startGateway(t, settings);
    for (const path of [
      "/public/../account",
      "/public/%2e%2e/account",
      "/public/..%2faccount",
      "/public%2f..%2faccount",
      "//public/x",
      "/%70ublic/x",
      "/PUBLIC",
      "/public;x/..",
      "/public/%00",
      "/a/%2e%2e/public",
    ]) {
      const { status, headers } = await verify(gateway, { path });
      // Where the path is Envoy's own request's, that one is refused, as any other.
      const refusals = path === "/public/%00" ? [400, 403] : [403];
      t.ok(refusals.includes(status), `${path}: ${status}`);
      for (const name of IDENTITY) t.equal(headers[name], undefined);
    }
    t.equal((await verify(gateway, { path: "/public", method: "TRACE" }).catch(() => ({ status: 403 }))).status, 403);
  });

  t.test(`${proxy}: an identity header of the browser's is refused, in every spelling`, async (t) => {
    const gateway = await startGateway(t, settings);
    const cookie = await signIn(gateway);
    const internal = ["X-Coatcheck-Session", "x_coatcheck_session", "X-Session-Start"];
    const names = ["X-User-Id", "x-user-id", "X_User_Id", "X.User.Id", "X-User_Roles", "x!session!handle", ...internal];
    for (const name of names) {
      const { status, headers } = await verify(gateway, { path: "/account", cookie, headers: { [name]: "root" } });
      t.equal(status, 403, name);
      t.equal(headers["x-user-id"], undefined);
    }
    const kinds = await verify(gateway, { path: "/shop", headers: { any_thing: "1", "X-Real-IP": "1.2.3.4" } });
    t.equal(kinds.status, 200, "what has nothing to do with identity does no harm");
    t.equal(gateway.logs.filter(({ event }) => event === "security.spoof-attempt").length, 1);
    t.match(
      gateway.logs.find(({ event }) => event === "verification.refused"),
      { "coatcheck.verification.protocol": "unknown", reason: /identity header/, "client.address": "203.0.113.9" },
    );
  });

  t.test(`${proxy}: an outage is 503, and leaves the cookie alone`, async (t) => {
    const store = new SteppedStore(new MemoryStore(), () => Promise.reject(new Error("it is down")));
    const gateway = await startGateway(t, settings, { store });
    const token = `session=${"A".repeat(43)}.${"A".repeat(43)}`;
    t.equal((await verify(gateway, { path: "/account", cookie: token })).status, 401, "no secret verifies it");
    const memory = new MemoryStore();
    let isDown = false;
    const failing = new SteppedStore(memory, () => (isDown ? Promise.reject(new Error("down")) : Promise.resolve()));
    const other = await startGateway(t, settings, { store: failing });
    const cookie = await signIn(other);
    isDown = true;
    const { status, setCookie, headers } = await verify(other, { path: "/account", cookie });
    t.match({ status, setCookie }, { status: 503, setCookie: [] });
    t.equal(headers["proxy-status"], "coatcheck; error=session_store_unavailable");
    t.ok(headers["retry-after"]);
    t.match((await other.exchanges())[0], { session: { decision: "outage" } });
  });
}

t.test("what disagrees is refused: a browser's own headers beside those of the proxy", async (t) => {
  const gateway = await startGateway(t, settings);
  const cookie = await signIn(gateway);
  const secret = { path: "/account", cookie: "" };
  const cases: [proxy: keyof typeof PROXIES, headers: Record<string, string>][] = [
    ["nginx", { "x-forwarded-uri": "/public" }],
    ["nginx", { "x-original-uri": "/public" }],
    ["nginx", { "x-forwarded-host": "direct.example.com" }],
    ["nginx", { "x-forwarded-proto": "http" }],
    ["nginx", { "x-forwarded-method": "POST" }],
    ["nginx", { "x-forwarded-host": `${HOST}, direct.example.com` }],
    ["traefik", { "x-original-url": `https://${HOST}/public` }],
    ["traefik", { "x-original-uri": "/public" }],
    ["traefik", { "x-original-url": "/public" }],
    ["traefik", { "x-original-method": "POST" }],
    ["traefik", { "x-original-url": "https://direct.example.com/account" }],
    ["envoy", { "x-forwarded-uri": "/public" }],
    ["envoy", { "x-original-url": `https://${HOST}/public` }],
    ["envoy", { "x-forwarded-host": "direct.example.com" }],
    ["envoy", { "x-forwarded-method": "POST" }],
  ];
  for (const [proxy, headers] of cases) {
    const { status } = await PROXIES[proxy](gateway, { ...secret, headers });
    t.equal(status, 403, `${proxy} ${JSON.stringify(headers)}`);
  }
  // The same said twice is the same.
  const agreeing = {
    "x-forwarded-host": HOST,
    "x-original-url": `https://${HOST}/account`,
    "x-forwarded-uri": "/account",
  };
  t.equal((await PROXIES.traefik(gateway, { path: "/account", cookie, headers: agreeing })).status, 200);
  // Spellings that only a CGI application takes for the real ones are no word of anybody's.
  const odd = { x_forwarded_uri: "/public", "x.original.url": "/public", X_Forwarded_Method: "POST" };
  t.equal((await PROXIES.caddy(gateway, { ...secret, headers: odd })).status, 401);
  const twice = [
    "Host: x",
    "X-Forwarded-Host: app.example.com",
    "X-Forwarded-Uri: /account",
    "X-Forwarded-Uri: /public",
  ];
  const reply = await raw(gateway.port, ["GET /verify HTTP/1.1", ...twice, "Connection: close", "", ""].join("\r\n"));
  t.match(reply, /^HTTP\/1\.1 403 /);
});

t.test("whatever is said, in whatever combination: what is believed is all that was said", (t) => {
  const uri = fc.constantFrom(
    "/public",
    "/account",
    "/account?a=1",
    "http://app/account",
    "https://app/public",
    "*",
    "",
  );
  const told = fc.record(
    {
      "X-Original-URL": uri,
      "X-Original-URI": uri,
      "X-Forwarded-Uri": uri,
      "X-Forwarded-Host": fc.constantFrom("app", "APP:80", "direct", "a, b", ""),
      "X-Forwarded-Proto": fc.constantFrom("http", "https", "wss", "HTTPS", "ftp"),
      "X-Forwarded-Method": fc.constantFrom("GET", "POST", "TRACE", "g t"),
      "X-Original-Method": fc.constantFrom("GET", "POST"),
    },
    { requiredKeys: [] },
  );
  const wire = fc.constantFrom("/verify", "/verify?x=1", "/verify/account", "/verify/public", "/verify*");
  let believed = 0;
  fc.assert(
    fc.property(told, wire, fc.constantFrom("GET", "POST"), (told, url, method) => {
      const ids = { traceId: "", spanId: "" };
      const exchange = new Exchange({ method, methodLabel: "GET", httpVersion: "1.1", ...ids });
      const question = readRequestTarget(method, url, "app", "1.1", "http");
      if (!isVerification("/verify", question.path)) return;
      const raw = Object.entries(told).flat();
      let asked: AskedAbout;
      try {
        asked = readVerification("/verify", question, raw, exchange);
      } catch (error) {
        if (error instanceof ProxyError) return;
        throw error;
      }
      believed++;
      // As naive as can be: what each header says for itself.
      const below = url.slice("/verify".length);
      const uris = [told["X-Original-URL"], told["X-Original-URI"], told["X-Forwarded-Uri"], below].filter(
        (text): text is string => text !== undefined && text !== "" && !text.startsWith("?"),
      );
      for (const text of uris) {
        const { host, pathname, search, protocol } = new URL(text, "none://none");
        if (pathname + search !== asked.target.pathAndQuery) throw new Error(`${text}: another path`);
        if (host !== "none" && host !== asked.target.hostname) throw new Error(`${text}: another host`);
        if (protocol !== "none:" && protocol !== `${asked.scheme}:`) throw new Error(`${text}: another scheme`);
      }
      if (uris.length === 0) throw new Error("believed out of nothing");
      const host = told["X-Forwarded-Host"] || undefined;
      if (host !== undefined && host.toLowerCase().replace(/:.*/, "") !== asked.target.hostname)
        throw new Error(`${host}: another host`);
      for (const said of [told["X-Forwarded-Method"], told["X-Original-Method"]])
        if (said !== undefined && said !== asked.method) throw new Error(`${said}: another method`);
      const proto = told["X-Forwarded-Proto"]?.replace("wss", "https");
      if (proto !== undefined && proto !== asked.scheme) throw new Error(`${proto}: another scheme`);
    }),
    { numRuns: 20_000 },
  );
  t.ok(believed > 50, `${believed} were believed`);
  t.end();
});

t.test("whoever asks too often is told so, by what the asking proxy understands", async (t) => {
  const limits = { requests: { perAddress: { rate: "1/h", burst: 1 } } };
  for (const [proxy, verify] of Object.entries(PROXIES)) {
    const gateway = await startGateway(t, { ...settings, limits });
    t.equal((await verify(gateway, { path: "/public" })).status, 200);
    const { status, headers } = await verify(gateway, { path: "/public" });
    t.equal(status, proxy === "nginx" ? 403 : 429, proxy);
    t.ok(headers["retry-after"]);
  }
});

t.test("what is not said is not guessed", async (t) => {
  const gateway = await startGateway(t, settings);
  const cases: [headers: Record<string, string>, reason: RegExp][] = [
    [{}, /names no path.*X-Original-URL.*X-Forwarded-Uri/],
    [{ "x-forwarded-uri": "/public" }, /names no host/],
    [{ "x-forwarded-host": HOST }, /names no path/],
    [{ "x-forwarded-host": HOST, "x-forwarded-uri": "public" }, /neither a path nor a URL/],
    [{ "x-forwarded-host": HOST, "x-forwarded-uri": "/public#x" }, /forbidden character/],
    [{ "x-forwarded-host": "a/b", "x-forwarded-uri": "/public" }, /Host/],
    [{ "x-forwarded-host": HOST, "x-forwarded-uri": "/public", "x-forwarded-proto": "ftp" }, /scheme/],
    [{ "x-forwarded-host": HOST, "x-forwarded-uri": "/public", "x-forwarded-method": "G T" }, /method/],
    [{ "x-forwarded-host": HOST, "x-forwarded-uri": "/public", "x-forwarded-method": "CONNECT" }, /CONNECT/],
    [{ "x-forwarded-host": "other.example.com", "x-forwarded-uri": "/public" }, /no route/],
  ];
  for (const [headers, reason] of cases) {
    t.equal((await ask(`${gateway.url}/verify`, { headers })).status, 403, JSON.stringify(headers));
    t.match((await gateway.exchanges())[0]?.error?.message, reason);
  }
  // What Envoy does with OPTIONS *, and with what a gateway would answer itself.
  t.match(
    await raw(gateway.port, `OPTIONS /verify* HTTP/1.1\r\nHost: ${HOST}\r\nConnection: close\r\n\r\n`),
    /^HTTP\/1\.1 403/,
  );
  const options = { host: HOST, "max-forwards": "0" };
  t.equal((await ask(`${gateway.url}/verify/account`, { method: "OPTIONS", headers: options })).status, 401);
  t.equal((await ask(`${gateway.url}/verify/public`, { method: "OPTIONS", headers: options })).status, 200);
  t.equal((await ask(`${gateway.url}/verify/`, { headers: { host: HOST } })).status, 401, "the path /");
});

t.test("nobody may ask but trusted proxies, and the log says what to configure", async (t) => {
  const gateway = await startGateway(t, { ...settings, listen: { ...listen, trustedProxies: ["10.0.0.0/8"] } });
  const cookie = await signIn(gateway);
  for (const verify of Object.values(PROXIES))
    t.equal((await verify(gateway, { path: "/public", cookie })).status, 403);
  const told = () => gateway.logs.filter(({ event }) => event === "verification.refused");
  t.equal(told().length, 1, "at most one line a minute");
  t.match(told()[0], {
    level: "warn",
    reason: "127.0.0.1 asks for a verification, and is not in listen.trustedProxies",
    "client.address": "127.0.0.1",
  });
  t.match(await gateway.metrics(), /^coatcheck_verifications_total\{protocol="unknown",decision="undecided"\} 4$/m);
});

t.test("without forwardAuth the path is one like any other", async (t) => {
  const gateway = await startGateway(t, { listen, upstream: app.url });
  const before = app.received.length;
  t.equal((await ask(`${gateway.url}/verify`, { headers: { "x-forwarded-uri": "/public" } })).status, 200);
  t.equal(app.received.length, before + 1);
  t.equal(app.received.at(-1)?.headers["x-forwarded-uri"], undefined);
});

t.test(
  "a route without an upstream forwards nothing, and paths beside the one of forwardAuth are not it",
  async (t) => {
    const gateway = await startGateway(t, settings);
    const cookie = await signIn(gateway);
    for (const path of ["/account", "/public", "/verification", "/VERIFY", "/%76erify"])
      t.ok([400, 404].includes((await ask(gateway.url + path, { headers: { host: HOST, cookie } })).status), path);
    const before = app.received.length;
    await ask(`${gateway.url}/verification`, { headers: { host: "direct.example.com" } });
    t.equal(app.received.length, before + 1);
  },
);

t.test(
  "a session that is used slides: the renewed cookie is on the answer; one that ends is known at once",
  async (t) => {
    const redis = await startRedis(t);
    let aheadMs = 0;
    const session = { idleTimeout: "10m", cookie: { name: "session", secure: false, secrets: [SECRET] } };
    const options = { now: () => Date.now() + aheadMs };
    const gateway = await startGateway(t, { ...settings, session, store: redis.url }, options);
    let cookie = "";
    for (const [proxy, verify] of Object.entries(PROXIES)) {
      cookie = await signIn(gateway);
      aheadMs += 61_000;
      const { status, setCookie } = await verify(gateway, { path: "/account", cookie });
      t.equal(status, 200);
      t.match(setCookie, [/^session=[\w-]{43}\.[\w-]{43}; Max-Age=600; /], proxy);
      t.same((await verify(gateway, { path: "/account", cookie })).setCookie, [], "once is enough");
    }
    t.equal((await ask(`${gateway.adminUrl}/sessions?user=7`, { method: "DELETE" })).status, 200);
    await until(async () => (await PROXIES.nginx(gateway, { path: "/account", cookie })).status === 401);
    t.match((await gateway.exchanges())[0], { session: { logout: "ended", decision: "denied" } });
  },
);

t.test("records, metrics, the access line and explain tell of it", async (t) => {
  const gateway = await startGateway(t, settings);
  const cookie = await signIn(gateway);
  await PROXIES.nginx(gateway, { method: "PUT", path: "/account?token=hunter2", cookie });
  const [record] = await gateway.exchanges();
  t.match(record?.request, { method: "GET", path: "/account" });
  const steps = (record as unknown as { steps: { step: string; detail: string }[] }).steps;
  t.match(
    steps.find(({ step }) => step === "verification"),
    { detail: "another proxy asks about a PUT, by auth-request" },
  );
  t.match(
    steps.map(({ step }) => step),
    ["received", "verification", "route", "cookie", "session", "policy", "injected", "ended"],
  );
  const line = gateway.logs.findLast(({ event }) => event === "http.access");
  t.match(line, {
    "coatcheck.verification.protocol": "auth-request",
    "http.route": `${HOST}/`,
    "url.path": "/account",
  });
  t.match(
    await gateway.metrics(),
    /^coatcheck_verifications_total\{protocol="auth-request",decision="identified"\} 1$/m,
  );
  t.notMatch(gateway.logText(), /hunter2/);

  const about = (path: string, headers: string[]) =>
    explain(gateway, {
      url: "/verify",
      headers: ["Host: gateway", `X-Original-URL: https://${HOST}${path}`, ...headers],
    });
  t.match(await about("/account", [`Cookie: ${cookie}`]), {
    wouldAnswer: { status: 200 },
    conclusion: /the proxy that asks may let the request go on as user 7/,
  });
  t.match(await about("/account", ["Accept: text/html"]), {
    wouldAnswer: { status: 401, location: `https://${HOST}/login` },
  });
  t.match(await about("/public/../account", []), { wouldAnswer: { status: 403, error: "http_request_error" } });
  t.match(await about("/account", [`Cookie: ${cookie}`, "X_User_Id: 1"]), {
    wouldAnswer: { status: 403, error: "http_request_denied" },
  });
  const stranger = { url: "/verify", headers: ["Host: gateway"], client: "203.0.113.9" };
  t.match(await explain(gateway, stranger), { wouldAnswer: { status: 403 }, advice: /listen\.trustedProxies/ });
  t.match(await explain(gateway, { url: `https://${HOST}/account`, headers: [] }), {
    wouldAnswer: { status: 404 },
    advice: /explain what the other proxy asks: \/verify/,
  });
});

t.test("the configuration says what is missing", (t) => {
  const problems = (settings: Record<string, unknown>): string => {
    try {
      loadConfig({ store: "memory:", ...settings }, {});
      return "";
    } catch (error) {
      return String(error);
    }
  };
  const trusted = { listen: { trustedProxies: ["127.0.0.1"] } };
  t.equal(problems({ ...trusted, forwardAuth: {}, routes: [{ session: "required" }] }), "");
  t.match(
    problems({ forwardAuth: {}, routes: [{}] }),
    /listen\.trustedProxies: forwardAuth needs the addresses of the proxies that ask/,
  );
  t.match(problems({ routes: [{}] }), /routes\[0\]\.upstream: is required/);
  t.match(
    problems({ ...trusted, forwardAuth: {}, routes: [{ write: ["user"] }] }),
    /routes\[0\]\.write: needs an upstream/,
  );
  const hidden = { match: { path: "/verify/x" }, upstream: "http://127.0.0.1:1" };
  t.match(
    problems({ ...trusted, forwardAuth: {}, routes: [hidden] }),
    /never reached: forwardAuth answers at \/verify/,
  );
  t.equal(problems({ ...trusted, forwardAuth: {}, routes: [{ match: { path: "/verify" } }] }), "", "of another site");
  for (const path of ["/", "/verify/", "verify", "/a/../b", "/a?b", "/a%2fb"])
    t.match(problems({ ...trusted, forwardAuth: { path }, routes: [{}] }), /forwardAuth\.path/, path);
  t.end();
});
