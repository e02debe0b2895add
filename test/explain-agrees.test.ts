/** What explain says of a request is what becomes of it, whatever the request. */
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import t from "tap";
import type { SessionStore } from "../src/core/store.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { raw, until } from "./support/client.ts";
import { explain, HALF_HOUR_MS, redisStore, sessionOf, type Ticket, ticket, USER_AGENT } from "./support/explain.ts";
import { feedState, type RunningGateway, SECRET, startApp, startGateway, startRedis } from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const RUNS = Number(process.env.EXPLAIN_RUNS ?? 400);
const FIRST_SECRET = "a newer secret that has 32 characters";

const app = await startApp(t);
const routes = [
  { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
  { match: { path: "/admin" }, upstream: app.url, session: "required", onMissing: { redirect: "/login" } },
  { match: { path: "/api" }, upstream: app.url, session: "required" },
  { match: { path: "/shop" }, upstream: app.url, session: "optional", onOutage: "anonymous" },
  { match: { path: "/static" }, upstream: app.url, session: "none" },
  {
    match: { path: "/", host: "app.example.com" },
    upstream: app.url,
    session: "required",
    onMissing: { redirect: "https://id.example.com/" },
  },
  { match: { path: "/API", host: "app.example.com" }, upstream: app.url, session: "none" },
  { match: { path: "/deep", host: "only.example.com" }, upstream: app.url, session: "optional" },
];
const cookie = { name: "session", secure: false, secrets: [FIRST_SECRET, SECRET] };

/** Sessions in every state, and their cookies by name. */
async function fill(store: SessionStore): Promise<Record<string, Ticket>> {
  const now = Date.now();
  const tickets = {
    live: ticket(FIRST_SECRET),
    oldSecret: ticket(SECRET),
    foreignSecret: ticket("a secret of somebody else, 32 characters"),
    nobody: ticket(),
    otherAgent: ticket(),
    otherNetwork: ticket(),
    oldest: ticket(),
    retired: ticket(),
    odd: ticket(),
    unknown: ticket(),
  };
  for (const name of ["live", "oldSecret", "foreignSecret"] as const)
    await store.create(tickets[name].key, sessionOf());
  await store.create(tickets.nobody.key, sessionOf({ user: null }));
  const client = { address: "127.0.0.1", userAgent: USER_AGENT };
  await store.create(tickets.otherAgent.key, sessionOf({ client: { ...client, userAgent: "another" } }));
  await store.create(tickets.otherNetwork.key, sessionOf({ client: { ...client, address: "192.0.2.1" } }));
  await store.create(tickets.oldest.key, sessionOf({ createdAt: now - 2 * HALF_HOUR_MS, expiresAt: now - 1000 }));
  await store.create(tickets.retired.key, sessionOf({ retiresAt: now - 1000 }));
  // Neither a name that needs encoding nor one that is too long for a header changes who it is.
  await store.create(tickets.odd.key, sessionOf({ user: { id: "ä, ö%", name: "x".repeat(5000), roles: ["a", "b"] } }));
  return tickets;
}

/** Mostly the first ones; a request has many parts, and one that is refused shows nothing of the others. */
function mostly<T>(usual: readonly T[], rare: readonly T[]) {
  return fc.oneof(
    { weight: 12, arbitrary: fc.constantFrom(...usual) },
    { weight: 1, arbitrary: fc.constantFrom(...rare) },
  );
}

const path = fc.oneof(
  {
    weight: 3,
    arbitrary: fc
      .tuple(
        fc.constantFrom("", "/admin", "/api", "/shop", "/static", "/deep"),
        fc.constantFrom("/", "/x", "/x?q=secret"),
      )
      .map((parts) => parts.join("")),
  },
  {
    weight: 1,
    arbitrary: fc
      .array(
        fc.constantFrom(
          "/",
          "/admin",
          "/Admin",
          "/%61dmin",
          "/administrator",
          "/API",
          "/static",
          "/x",
          "/..",
          "/%2e",
          "%2f",
          "%2Fadmin",
          ";a=b",
          "\\",
          "%5c",
          "%00",
          "%25",
          "?a=b",
          "*",
          "~",
        ),
        { maxLength: 3 },
      )
      .map((pieces) => `/${pieces.join("")}`),
  },
);
const tameHosts = ["app.example.com", "APP.example.com:8080", "only.example.com", "other", "[::1]:80"];
const host = mostly(tameHosts, ["app.example.com.", "", "bad host", "user@app", "a:b", "a,b"]);

/** Stands for two lines, of which one means nothing without the other. */
const TRACE = "traceparent and tracestate";
const TRACE_LINES = ["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=b"];

const forged = [
  "X-User-Id: 1",
  "x-user-id: 1",
  "X_User_Id: 1",
  "X.User.Id: 1",
  "X-Session-Handle: forged",
  "X-Session-Start: {}",
  "X-Coatcheck-Session: stale",
  "X-Forwarded-For: 203.0.113.9",
  "X-Forwarded-For: 127.0.0.1, 192.0.2.7",
  "X-Forwarded-Proto: https",
  "X-Forwarded-Host: evil.example",
  "X-Forwarded-User: root",
  "Forwarded: for=1.2.3.4",
  "X-Real-IP: 1.2.3.4",
  "X-Original-URL: /admin",
  "Connection: X-User-Id",
  "Connection: close, accept, x-plain",
  "X-Plain: y",
  "some_name: y",
  "TE: trailers",
  "Upgrade: websocket",
  "Keep-Alive: 5",
  "Via: 1.1 other",
  "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  "tracestate: a=b",
  TRACE,
  "baggage: a=b",
  "Accept: */*",
  "Sec-Fetch-Mode: cors",
  "Max-Forwards: 0",
  "Max-Forwards: 3",
  "Expect: 100-continue",
  "Authorization: Basic eDp5",
  "Content-Length: 0",
  "Content-Length: 5",
  "Transfer-Encoding: chunked",
  "X-Odd: \xe4",
  "X-Empty:",
];
const SECOND_HOST = "Host: second.example";
const fatal = [
  "Max-Forwards: x",
  "Expect: something",
  SECOND_HOST,
  "Content-Length: x",
  "Transfer-Encoding: gzip, chunked",
];
const headers = fc
  .array(mostly(forged, fatal), { maxLength: 5 })
  .map((lines) => lines.flatMap((line) => (line === TRACE ? TRACE_LINES : [line])));
const method = mostly(
  ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"],
  ["TRACE", "CONNECT", "FOO"],
);

/** A `Cookie` header out of what there is. */
function cookies(tickets: Record<string, Ticket>) {
  const values = Object.values(tickets).map(({ cookie }) => cookie);
  const live = tickets.live?.cookie ?? "";
  const pair = fc.oneof(
    { weight: 4, arbitrary: fc.constantFrom(live, ...values) },
    {
      weight: 2,
      arbitrary: fc.constantFrom("a=b", "theme=dark", "session2=x", "xsession=y", "Session=z", "", "session"),
    },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        "session=",
        "session=short",
        `session="${live.slice(8)}"`,
        `session=${"A".repeat(43)}.${"B".repeat(43)}`,
      ),
    },
    { weight: 1, arbitrary: fc.constant(live.slice(0, -4)) },
    { weight: 1, arbitrary: fc.constant(`${live.slice(0, -4)}AAAA`) },
  );
  const several = fc.oneof({ weight: 2, arbitrary: pair.map((one) => [one]) }, fc.array(pair, { maxLength: 3 }));
  return several.map((pairs) => (pairs.length === 0 ? [] : [`Cookie: ${pairs.join("; ")}`]));
}

const navigation = fc.constantFrom<string[]>([], ["Accept: text/html"], ["Sec-Fetch-Mode: navigate"]);
const userAgent = fc.constantFrom(
  [`User-Agent: ${USER_AGENT}`],
  [`User-Agent: ${USER_AGENT}`],
  ["User-Agent: another"],
  [],
);

interface Arrived {
  readonly names: string[];
  readonly injected: string[];
  readonly user: string;
}

const IDENTITY = ["X-User-Id", "X-User-Name", "X-User-Email", "X-User-Roles", "X-Session-Handle"];
/** What the client that is used for upstream connections says by itself. */
const FRAMING = new Set(["connection", "content-length", "transfer-encoding"]);

/** What upstream received last. */
function arrived(): Arrived {
  const fields = app.received.at(-1)?.rawHeaders ?? [];
  const names: string[] = [];
  const injected: string[] = [];
  let user = "";
  for (let i = 0; i < fields.length; i += 2) {
    const [name = "", value = ""] = fields.slice(i, i + 2);
    if (!FRAMING.has(name.toLowerCase())) names.push(name.toLowerCase());
    if (IDENTITY.includes(name) && value !== "") injected.push(name);
    if (name === "X-User-Id") user = decodeURIComponent(value);
  }
  return { names: [...new Set(names)].sort(), injected, user };
}

/** Sends a request head as it is, with as much content as it promises, and reads the final status and location. */
async function send(gateway: RunningGateway, head: readonly string[]) {
  const text = head.join("\r\n");
  const content = /^content-length: 5$/im.test(text)
    ? "hello"
    : /^transfer-encoding: .*chunked$/im.test(text)
      ? "0\r\n\r\n"
      : "";
  const reply = await raw(gateway.port, `${text}\r\n\r\n${content}`);
  const final = reply.replace(/^HTTP\/1\.1 100 Continue\r\n\r\n/, "");
  return {
    status: Number(/^HTTP\/1\.1 (\d{3})/.exec(final)?.[1]),
    location: /^location: (.*)\r$/im.exec(final)?.[1],
  };
}

interface Wanted {
  readonly method: string;
  readonly path: string;
  readonly host: string;
}

/** @param asks how another proxy asks about a request, instead of sending it. */
async function holdAgainst(
  gateway: RunningGateway,
  tickets: Record<string, Ticket>,
  asks?: (wanted: Wanted) => Wanted & { readonly lines: readonly string[] },
) {
  const seen = { forwarded: 0, identified: 0, statuses: new Set<number>() };
  const request = fc.record({
    method,
    path,
    host,
    whole: fc.boolean(),
    headers,
    cookie: cookies(tickets),
    navigation,
    userAgent,
  });
  await fc.assert(
    fc.asyncProperty(request, async ({ whole, headers, cookie, navigation, userAgent, ...wanted }) => {
      const { method, path, host, lines: asked } = asks?.(wanted) ?? { ...wanted, lines: [] };
      const lines = ["Connection: close", ...userAgent, ...cookie, ...navigation, ...headers, ...asked];
      const explanation = await explain(gateway, {
        method,
        client: "127.0.0.1",
        ...(whole && tameHosts.includes(host) && !headers.includes(SECOND_HOST)
          ? { url: `https://${host}${path}`, headers: lines }
          : { url: path, headers: [`Host: ${host}`, ...lines] }),
      });
      const before = app.received.length;
      const { status, location } = await send(gateway, [`${method} ${path} HTTP/1.1`, `Host: ${host}`, ...lines]);
      const { wouldAnswer, wouldForward } = explanation;
      const came = app.received.length - before;
      if (wouldAnswer !== undefined) {
        seen.statuses.add(wouldAnswer.status);
        const real = { status, came, location };
        const told = { status: wouldAnswer.status, came: 0, location: wouldAnswer.location };
        if (JSON.stringify(real) !== JSON.stringify(told))
          throw new Error(`${JSON.stringify({ real, told })}\n${explanation.conclusion}`);
      } else if (wouldForward !== undefined) {
        seen.forwarded++;
        if (wouldForward.user !== null) seen.identified++;
        const { names, injected, user } = arrived();
        const real = { came, status, names, injected, user };
        const told = {
          came: 1,
          status: 200,
          names: wouldForward.headers.filter((name) => !FRAMING.has(name)).toSorted(),
          injected: [...wouldForward.injected],
          user: wouldForward.user ?? "",
        };
        if (JSON.stringify(real) !== JSON.stringify(told))
          throw new Error(`${JSON.stringify({ real, told }, null, 1)}\n${explanation.conclusion}`);
        const rebuilt = new Set(["cookie", "x-user-id", "x-session-handle", "x-coatcheck-session", "forwarded"]);
        for (const { name } of wouldForward.removed) {
          const lower = name.toLowerCase();
          const isBack = names.includes(lower) && !rebuilt.has(lower) && !/^x-forwarded-(for|proto|host)$/.test(lower);
          if (isBack) throw new Error(`${name} is said to be removed, and arrived`);
        }
      } else throw new Error("neither an answer nor an upstream is told");
    }),
    { numRuns: RUNS, seed: Number(process.env.EXPLAIN_SEED ?? randomBytes(4).readInt32BE()) },
  );
  return seen;
}

t.test("a store in this process", async (t) => {
  const store = new MemoryStore();
  const tickets = await fill(store);
  const gateway = await startGateway(t, { routes, session: { cookie } }, { store });
  const seen = await holdAgainst(gateway, tickets);
  t.ok(seen.identified > RUNS / 50, `${seen.identified} of ${RUNS} in somebody's name`);
  for (const status of [302, 400, 401]) t.ok(seen.statuses.has(status), `${status} was among the answers`);
});

t.test("sessions that are bound to their client, behind a proxy that is trusted", async (t) => {
  const store = new MemoryStore();
  const tickets = await fill(store);
  const session = { cookie, bind: "both", onMismatch: "deny" };
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  const gateway = await startGateway(t, { routes, session, listen }, { store });
  const seen = await holdAgainst(gateway, tickets);
  t.ok(seen.identified > RUNS / 100, `${seen.identified} of ${RUNS} in somebody's name`);
});

t.test("what another proxy asks", async (t) => {
  const store = new MemoryStore();
  const tickets = await fill(store);
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  const asked = routes.map(({ upstream, write, ...route }, index) =>
    index % 2 === 0 ? route : { ...route, upstream },
  );
  const settings = { routes: asked, session: { cookie }, listen, forwardAuth: {} };
  const gateway = await startGateway(t, settings, { store });
  let turn = 0;
  const seen = await holdAgainst(gateway, tickets, ({ method, path, host }) => {
    const question = { method: "GET", path: "/verify", host: "gateway" };
    switch (turn++ % 4) {
      case 0:
        return { ...question, lines: [`X-Original-URL: https://${host}${path}`, `X-Original-Method: ${method}`] };
      case 1:
        return {
          ...question,
          lines: [`X-Forwarded-Host: ${host}`, `X-Forwarded-Uri: ${path}`, `X-Forwarded-Method: ${method}`],
        };
      case 2:
        return { method, path: `/verify${path}`, host, lines: ["X-Forwarded-Proto: https"] };
      default:
        return { method, path, host, lines: [] };
    }
  });
  for (const status of [200, 302, 401, 403, 404]) t.ok(seen.statuses.has(status), `${status} was among the answers`);
});

t.test("a store that is down", async (t) => {
  const memory = new MemoryStore();
  const tickets = await fill(memory);
  const store = new SteppedStore(memory, () => Promise.reject(new Error("it is down")));
  const gateway = await startGateway(t, { routes, session: { cookie } }, { store });
  const seen = await holdAgainst(gateway, tickets);
  t.ok(seen.statuses.has(503), "503 was among the answers");
  t.equal(seen.identified, 0);
});

t.test("Redis with a near cache", async (t) => {
  const redis = await startRedis(t);
  const store = await redisStore(t, redis.url);
  const tickets = await fill(store);
  const gateway = await startGateway(t, { routes, session: { cookie }, store: redis.url });
  await until(async () => (await feedState(gateway)) === "tracking");
  const seen = await holdAgainst(gateway, tickets);
  t.ok(seen.identified > RUNS / 50, `${seen.identified} of ${RUNS} in somebody's name`);
});

t.test("Redis that went away, bridged by what was read before", async (t) => {
  const redis = await startRedis(t);
  const store = await redisStore(t, redis.url);
  const tickets = await fill(store);
  const cache = { maxAge: "30s", staleOnOutage: "1h" };
  const gateway = await startGateway(t, { routes, session: { cookie }, store: redis.url, cache });
  await until(async () => (await feedState(gateway)) === "tracking");
  for (const name of ["live", "nobody", "odd"]) {
    const head = ["GET /shop HTTP/1.1", "Host: other", `Cookie: ${tickets[name]?.cookie}`, "Connection: close"];
    await send(gateway, head);
  }
  await redis.kill();
  const seen = await holdAgainst(gateway, tickets);
  t.ok(seen.statuses.has(503), "503 was among the answers");
  t.ok(seen.identified > 0, `${seen.identified} of ${RUNS} in somebody's name all the same`);
});
