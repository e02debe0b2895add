/** Why a request is treated as it is, in plain words; asking changes nothing and shows nothing secret. */
import t from "tap";
import { EXPIRED_GRACE_MS, handleOf } from "../src/core/session.ts";
import type { ChangeListener, FeedState } from "../src/core/store.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { SESSION_PREFIX } from "../src/store/redis-scripts.ts";
import { SqliteStore } from "../src/store/sqlite.ts";
import { ask, cookiePair, until } from "./support/client.ts";
import {
  explain,
  HALF_HOUR_MS,
  post,
  redisStore,
  said,
  sessionOf,
  ticket,
  USER_AGENT,
  wrong,
} from "./support/explain.ts";
import {
  feedState,
  type GatewaySettings,
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  type Teardown,
  temporaryFolder,
} from "./support/servers.ts";
import { SteppedStore } from "./support/stepped-store.ts";

const FIRST_SECRET = "a newer secret that has 32 characters";
const ENCRYPTION_KEY = "a key that encrypts sessions, 40 letters";
const OTHER_KEY = "another key that encrypts, of 40 letters";
const cookie = { name: "session", secure: false, secrets: [SECRET] };
const ABSOLUTE_MS = 12 * 2 * HALF_HOUR_MS;

const app = await startApp(t);
const routes = [
  { match: { path: "/" }, upstream: app.url, session: "optional", write: ["user"] },
  { match: { path: "/required" }, upstream: app.url, session: "required", onMissing: { redirect: "/login" } },
  { match: { path: "/none" }, upstream: app.url, session: "none" },
  { match: { path: "/", host: "intra.example.com" }, upstream: app.url, session: "required" },
];

/** A gateway on a store in this process, with one live session in it. */
async function begin(t: Teardown, settings: GatewaySettings = {}, changes: Parameters<typeof sessionOf>[0] = {}) {
  const store = new MemoryStore();
  const { key, value, cookie: pair } = ticket();
  store.create(key, sessionOf(changes));
  const gateway = await startGateway(t, { routes, session: { cookie }, ...settings }, { store });
  return { gateway, store, key, handle: handleOf(key), value, pair };
}

const url = "http://app.example.com/required/x";

t.test("a request that passes: every step, and who it is to upstream", async (t) => {
  const { gateway, handle, pair } = await begin(t);
  const headers = [`Cookie: theme=dark; ${pair}`, "Connection: keep-alive", "X-User-Id: 1", "x_user.id: 1"];
  const explanation = await explain(gateway, { url, headers, client: "127.0.0.1" });
  const steps = ["request", "client", "route", "cookie", "signature", "cache", "store", "expiry", "binding"];
  t.same(
    explanation.steps.map(({ step }) => step),
    [...steps, "policy", "removed", "identity", "upstream"],
  );
  t.same(wrong(explanation), []);
  t.match(said(explanation, "route"), /^\*\/required, for any host: the longest/);
  t.match(said(explanation, "route"), /\*\/: matches too, and another is more specific/);
  t.match(said(explanation, "route"), /intra\.example\.com\/: another host/);
  t.match(said(explanation, "signature"), `good, by the only secret; it opens session ${handle}`);
  t.match(said(explanation, "cache"), /^none: this store does not tell of changes/);
  t.match(said(explanation, "expiry"), /^ends in (29 min 5\d s|30 min): session\.idleTimeout/);
  t.match(said(explanation, "removed"), /X-User-Id: only Coatcheck says who is asking/);
  t.match(said(explanation, "removed"), /x_user\.id: applications may read it as a header that is Coatcheck's/);
  t.match(said(explanation, "removed"), /Connection: it is for this connection/);
  t.match(
    said(explanation, "identity"),
    /^3 of 5 .*\nX-User-Id: 1 character from \/user\/id\nX-User-Name: 4 characters/,
  );
  t.match(said(explanation, "identity"), /X-User-Email: empty, nothing is at \/user\/email/);
  const upstream = new URL(app.url).host;
  t.equal(explanation.conclusion, `The request would be forwarded to ${upstream} as user 7, session ${handle}.`);
  t.match(explanation.wouldForward, { upstream, user: "7", handle, injected: ["X-User-Id", "X-User-Name", /./] });
  t.equal(app.received.length, 0, "nothing was forwarded");
});

t.test("routes: none that fits, a prefix within a segment, a path with two readings", async (t) => {
  const gateway = await startGateway(t, { routes: routes.slice(1), session: { cookie } });
  const none = await explain(gateway, { url: "http://app.example.com/requiredness", headers: [] });
  t.match(none.wouldAnswer, { status: 404, error: "destination_not_found", form: "problem-details" });
  const person = await explain(gateway, {
    url: "http://app.example.com/requiredness",
    headers: ["Sec-Fetch-Mode: navigate"],
  });
  t.match(person.wouldAnswer, { status: 404, form: "page" });
  t.match(said(none, "route"), /\*\/required: not this one: the path goes on within a segment/);
  t.match(none.advice, /^add a route whose match/);
  const two = await explain(gateway, { url: "http://app.example.com/%72equired/x", headers: [] });
  t.match(two.wouldAnswer, { status: 400, error: "http_request_error" });
  t.match(said(two, "route"), /as it is spelled: no route\nread as \/required\/x: \*\/required/);
  const loose = await explain(gateway, { url: "http://intra.example.com/A//b", headers: [] });
  t.match(said(loose, "route"), /read as loosely as a server may, \/a\/b: the same route/);
  const dots = await explain(gateway, { url: "http://app.example.com/none/../required", headers: [] });
  t.match(dots.conclusion, /^Coatcheck would answer 400 and forward nothing: a path that servers do not agree on/);
});

t.test("which secret verifies, and that none does", async (t) => {
  const store = new MemoryStore();
  const [first, old, removed] = [
    ticket(FIRST_SECRET),
    ticket(SECRET),
    ticket("a third secret, which has 32 characters"),
  ];
  for (const { key } of [first, old, removed]) store.create(key, sessionOf());
  const secrets = [FIRST_SECRET, SECRET];
  const gateway = await startGateway(t, { routes, session: { cookie: { ...cookie, secrets } } }, { store });
  const about = (pair: string) => explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  t.match(said(await about(first.cookie), "signature"), /^good, by the first secret, which signs new cookies/);
  t.match(said(await about(old.cookie), "signature"), /^good, by secret 2 of 2, an older one/);
  const lost = await about(removed.cookie);
  t.match(
    said(lost, "signature"),
    /^no configured secret verifies it: was a secret removed\?\nall 2 secrets were tried$/,
  );
  t.match(lost.conclusion, /401 .* no configured secret verifies its cookie\.$/);
  t.match(lost.advice, /^was a secret removed or replaced\? Put it back/);
  t.match(
    said(await about(`session="${old.value}"`), "cookie"),
    /^.*\nhas 89 characters, .*; it holds characters that none of ours has/,
  );

  const ephemeral = await startGateway(t, { routes, session: { cookie: { name: "session", secure: false } } });
  const { advice } = await explain(ephemeral, { url, headers: [`Cookie: ${old.cookie}`] });
  t.match(advice, /^session\.cookie\.secrets is empty/);
});

t.test("cookies: none, a similar name, a bad shape, several", async (t) => {
  const { gateway, store, handle, pair } = await begin(t);
  const about = (header: string) => explain(gateway, { url, headers: { cookie: header, accept: "text/html" } });
  const none = await about("a=b; __Host-session=x");
  t.match(said(none, "cookie"), /^none named session\nthere is one named __Host-session, which is another cookie$/);
  t.match(none.wouldAnswer, { status: 302, location: "/login" });
  t.match(none.conclusion, /302 to \/login .* it has no session cookie\.$/);
  const short = await about("session=abc");
  t.match(said(short, "cookie"), /^one named session\nhas 3 characters, one of ours 87/);
  t.match(said(short, "session"), "the store is not asked: no cookie has verified");
  t.match(said(await about("session="), "cookie"), /is empty/);
  const left = await about(`session=abc; ${pair}`);
  t.match(said(left, "cookie"), /^2 named session\nthe first has 3 characters.*\nthe second has the shape of ours/);
  t.equal(left.wouldForward?.handle, handle);
  const other = ticket();
  const dead = await about(`${other.cookie}; ${pair}`);
  t.match(said(dead, "store"), `${handleOf(other.key)}: memory, in `);
  t.match(said(dead, "session"), `${handle} is the one that lives`);
  store.create(other.key, sessionOf());
  const both = await about(`${other.cookie}; ${pair}`);
  t.match(said(both, "session"), /live, and none is believed/);
  t.match(both.advice, /^delete one of the cookies named session/);
});

t.test("expiry: which timeout ended it, and the arithmetic", async (t) => {
  const now = Date.now();
  const { gateway, store } = await begin(t);
  const about = async (changes: Parameters<typeof sessionOf>[0]) => {
    const { key, cookie } = ticket();
    store.create(key, sessionOf(changes));
    return explain(gateway, { url, headers: [`Cookie: ${cookie}`] });
  };
  const used = now - HALF_HOUR_MS - 60_000;
  const idle = await about({ createdAt: used, usedAt: used, expiresAt: used + HALF_HOUR_MS });
  t.match(
    said(idle, "expiry"),
    /^ended 1 min( \d s)? ago: session\.idleTimeout\ncreated .*\nlast use written down .* 31 min/,
  );
  t.match(idle.conclusion, /401 .* its session has ended\.$/);
  const createdAt = now - ABSOLUTE_MS - 5_000;
  const absolute = await about({ createdAt, usedAt: now - 10_000, expiresAt: createdAt + ABSOLUTE_MS });
  t.match(said(absolute, "expiry"), /^ended 5 s ago: session\.absoluteTimeout/);
  const replaced = await about({ retiresAt: now + 8_000 });
  t.match(said(replaced, "expiry"), /^ends in [78] s.*: a login has replaced it[\s\S]*answers until/);
  const due = await about({ createdAt: now - 600_000, usedAt: now - 600_000, expiresAt: now + HALF_HOUR_MS - 600_000 });
  t.match(said(due, "expiry"), /this use would be written down, and move the end to /);
  const fresh = await about({});
  t.match(said(fresh, "expiry"), /this use would not be written down/);
  const others = await about({ expiresAt: now + 4 * HALF_HOUR_MS });
  t.match(said(others, "expiry"), /stored, and what counts: .*, by other timeouts than those of now/);
});

t.test("a session without a user, an unknown one, a route without sessions", async (t) => {
  const { gateway, pair } = await begin(t, {}, { user: null });
  const visitor = await explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  t.match(visitor.conclusion, /401 .* nobody has signed in to the session\.$/);
  t.match(visitor.advice, /X-Session-Start/);
  const unknown = await explain(gateway, { url, headers: [`Cookie: ${ticket().cookie}`] });
  t.match(said(unknown, "store"), /the store does not know this id/);
  t.match(said(unknown, "session"), /^nobody has told this gateway of its end: the store has lost it/);
  t.match(unknown.advice, /^the log lines .* if there is none, ask whether the store was emptied/);
  const none = await explain(gateway, { url: "/none", headers: ["Host: a", `Cookie: ${pair}`] });
  t.same(wrong(none), []);
  t.match(none.conclusion, /without a user: the route does not ask for sessions\.$/);
});

t.test("binding: what is bound and what came, no values", async (t) => {
  const session = { cookie, bind: "both", onMismatch: "deny" };
  const { gateway, pair } = await begin(t, { session });
  const about = (client: string | undefined, userAgent: string) =>
    explain(gateway, { url, client, headers: [`Cookie: ${pair}`, `User-Agent: ${userAgent}`] });
  const same = await about("127.0.0.99", USER_AGENT);
  t.equal(same.wouldForward?.user, "7");
  t.match(
    said(same, "binding"),
    /the same client\nUser-Agent: the same as of the login\naddress: .* 127\.0\.0\.0\/24, /,
  );
  const other = await about("2001:db8:1:2::3", "curl/8");
  t.equal(other.wouldAnswer?.status, 401);
  t.match(said(other, "binding"), /another client; onMismatch: deny, so the session is not believed/);
  t.match(said(other, "binding"), /User-Agent: another, .*\n.* 127\.0\.0\.0\/24, this request from 2001:db8:1::\/48/);
  t.notMatch(JSON.stringify(other), /curl|Mozilla/);
  const unsaid = await about(undefined, USER_AGENT);
  t.equal(unsaid.wouldForward?.user, "7", "an address that nobody gives is not held against the session");
  const log = await begin(t, { session: { ...session, onMismatch: "log" } });
  const logged = await explain(log.gateway, { url, client: "192.0.2.1", headers: [`Cookie: ${log.pair}`] });
  t.same(wrong(logged), ["binding"]);
  t.equal(logged.wouldForward?.user, "7");
});

t.test("a trusted proxy says who the client is, and nobody else does", async (t) => {
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["10.0.0.0/8"] };
  const { gateway } = await begin(t, { listen });
  const headers = ["X-Forwarded-For: 192.0.2.7"];
  const trusted = await explain(gateway, { url, headers, client: "10.1.2.3" });
  t.match(said(trusted, "client"), "192.0.2.7, as the trusted proxy 10.1.2.3 says");
  const foreign = await explain(gateway, { url: "http://a/none", headers, client: "203.0.113.1" });
  t.match(said(foreign, "client"), /^203\.0\.113\.1: no proxy in listen\.trustedProxies/);
  t.match(said(foreign, "removed"), /X-Forwarded-For: it is told anew/);
  t.match(said(await explain(gateway, { url, headers }), "client"), /not given[\s\S]*X-Forwarded-For is not believed/);
});

/** A store that could be cached, and says of itself what it is told to say. */
class ToldStore extends MemoryStore {
  readonly #state: FeedState;

  constructor(state: FeedState) {
    super();
    this.#state = state;
  }

  watch(listener: ChangeListener): void {
    listener.feed(this.#state);
  }
}

t.test("the near cache: used, in disagreement with the store, bypassed, turned off", async (t) => {
  const { key, cookie: pair } = ticket();
  const start = async (state: FeedState, settings: GatewaySettings = {}) => {
    const store = new ToldStore(state);
    store.create(key, sessionOf());
    // Only answers that take a while are kept: a store in this process would be asked each time.
    const slow = Object.assign(new SteppedStore(store, () => Promise.resolve()), { watch: store.watch.bind(store) });
    const gateway = await startGateway(t, { routes, session: { cookie }, ...settings }, { store: slow });
    return { store, gateway };
  };
  const about = (gateway: RunningGateway) => explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  const { store, gateway } = await start("tracking");
  t.match(said(await about(gateway), "cache"), /^not in the near cache/);
  t.match(said(await about(gateway), "cache"), /^not in the near cache/, "asking has not put it there");
  await ask(`${gateway.url}/required`, { headers: { cookie: pair } });
  const used = await about(gateway);
  t.match(said(used, "cache"), /^in the near cache since \d+ (ms|s), and used$/);
  t.match(said(used, "store"), /asked for comparison/);
  store.destroy(key);
  const disagreeing = await about(gateway);
  t.match(said(disagreeing, "cache"), /the store says otherwise: the store does not know this id; it has not told yet/);
  t.equal(disagreeing.wouldForward?.user, "7", "what the request would get counts");
  const lost = await about((await start("lost")).gateway);
  t.match(said(lost, "cache"), /^bypassed: the store cannot be heard telling of changes/);
  t.same(wrong(lost), ["cache"]);
  const off = await about((await start("tracking", { cache: { maxBytes: "0B" } })).gateway);
  t.match(said(off, "cache"), /^none: cache\.maxBytes turns it off/);
});

t.test("what cannot be read, and why", async (t) => {
  const folder = await temporaryFolder(t);
  const codecOf = (...encryptionKeys: string[]) => new SessionCodec({ codec: "json", encryptionKeys });
  const redis = await startRedis(t);
  const raw = redis.client();
  const file = `${folder}/sessions.db`;
  const open = async (codec: SessionCodec) => [new SqliteStore(file, { codec }), await redisStore(t, redis.url, codec)];
  const tickets = { foreign: ticket(), plain: ticket(), own: ticket(), newer: ticket(), otherType: ticket() };
  for (const [name, codec] of [
    ["foreign", codecOf(OTHER_KEY)],
    ["plain", codecOf()],
    ["own", codecOf(ENCRYPTION_KEY)],
  ] as const) {
    for (const store of await open(codec)) {
      await store.create(tickets[name].key, sessionOf());
      if (store instanceof SqliteStore) store.close();
    }
  }
  await raw.hset(SESSION_PREFIX + tickets.newer.key, {
    v: "1",
    e: String(Date.now() + 60_000),
    t: "1",
    d: "\x1ffuture",
  });
  await raw.set(SESSION_PREFIX + tickets.otherType.key, "a string");

  const session = { cookie, encryptionKeys: [ENCRYPTION_KEY] };
  for (const store of [`sqlite:${file}`, redis.url]) {
    const gateway = await startGateway(t, { routes, session, store });
    const about = ({ cookie }: { cookie: string }) => explain(gateway, { url, headers: [`Cookie: ${cookie}`] });
    t.equal((await about(tickets.own)).wouldForward?.user, "7");
    const foreign = await about(tickets.foreign);
    t.match(said(foreign, "store"), /encrypted with a key that session\.encryptionKeys does not have/);
    t.match(foreign.advice, /^give this gateway the key/);
    const plain = await about(tickets.plain);
    t.match(said(plain, "store"), /it is not encrypted, and session\.encryptionKeys refuses that/);
    t.match(plain.advice, /plaintext/);
    if (store !== redis.url) continue;
    const later = await about(tickets.newer);
    t.match(said(later, "store"), /written by a later version of Coatcheck/);
    t.match(later.advice, /^a later version has written to this store/);
    t.match((await about(tickets.otherType)).conclusion, /401 .* its session cannot be read\.$/);
  }
});

t.test("a store that gives no answer, at once or too late, with what to do", async (t) => {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { routes, session: { cookie }, store: redis.url });
  await until(async () => (await feedState(gateway)) === "tracking");
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"7"}}' });
  const headers = [`Cookie: ${cookiePair(login.setCookie[0])}`];
  const fine = await explain(gateway, { url, headers });
  t.match(said(fine, "store"), /^redis, in \d+\.\d\d ms: found/);
  redis.freeze();
  const late = await explain(gateway, { url, headers });
  redis.thaw();
  t.match(late.advice, /^the server does not answer/);
  t.match(late.wouldAnswer, { status: 503, error: "session_store_unavailable" });
  t.match(said(late, "store"), /^redis gave no answer in \d+\.\d\d ms\nthe session store gave no answer: /);
  t.match(late.conclusion, /^Coatcheck would answer 503 .* the session store gives no answer\.$/);
  await redis.kill();
  await until(async () => (await feedState(gateway)) === "lost");
  const down = await explain(gateway, { url, headers });
  t.match(down.advice, /^(nothing listens there|the connection was cut)/);
  t.match(said(down, "policy"), /nobody passes while nobody can tell who is signed in/);
  const open = await explain(gateway, { url: "http://a/", headers: [] });
  t.ok(open.wouldForward, "a visitor without a cookie needs no store");
});

t.test("two stores: what only the fallback has stays there", async (t) => {
  const folder = await temporaryFolder(t);
  const files = [`${folder}/new.db`, `${folder}/old.db`] as const;
  const { key, cookie: pair } = ticket();
  const old = new SqliteStore(files[1]);
  old.create(key, sessionOf());
  t.teardown(() => old.close());
  const store = { primary: `sqlite:${files[0]}`, fallback: `sqlite:${files[1]}` };
  const gateway = await startGateway(t, { routes, session: { cookie }, store });
  const explanation = await explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  t.equal(explanation.wouldForward?.user, "7");
  t.match(said(explanation, "store"), /it lies in the fallback: a request would move it to the primary/);
  t.equal(old.find(key).outcome, "hit");
  await ask(`${gateway.url}/required`, { headers: { cookie: pair } });
  t.equal(old.find(key).outcome, "unknown");
  t.notMatch(said(await explain(gateway, { url, headers: [`Cookie: ${pair}`] }), "store"), /fallback/);
});

/** The samples of everything that requests and stores move. */
async function moved(gateway: RunningGateway): Promise<string[]> {
  const lines = (await gateway.metrics()).split("\n");
  return lines.filter((line) => /^(coatcheck|http|db)_/.test(line) && !/uptime|timestamp/.test(line));
}

t.test("asking changes no session and writes no log line", async (t) => {
  const redis = await startRedis(t);
  const session = { cookie, bind: "both", onMismatch: "deny" };
  const store = await redisStore(t, redis.url);
  const now = Date.now();
  const due = ticket();
  const gone = ticket();
  const long = now - 600_000;
  await store.create(due.key, sessionOf({ createdAt: long, usedAt: long, expiresAt: long + HALF_HOUR_MS }));
  await store.create(gone.key, sessionOf({ expiresAt: now - EXPIRED_GRACE_MS / 2 }));
  const gateway = await startGateway(t, { routes, session, store: redis.url });
  await until(async () => (await feedState(gateway)) === "tracking");
  const before = await store.find(due.key);
  const logged = gateway.logs.length;
  for (const pair of [due.cookie, gone.cookie, ticket().cookie, "session=bad", `${due.cookie}; ${gone.cookie}`]) {
    const lines = [`Cookie: ${pair}`, "X-User-Id: forged"];
    for (const userAgent of [USER_AGENT, "another"])
      await explain(gateway, { url, headers: [...lines, `User-Agent: ${userAgent}`], client: "127.0.0.1" });
  }
  const told = await explain(gateway, { url, headers: [`Cookie: ${due.cookie}`, `User-Agent: ${USER_AGENT}`] });
  t.match(said(told, "expiry"), /this use would be written down/);
  await explain(gateway, { url: "http://a/../b", headers: [] });
  await gateway.gateway.close();
  t.same(await store.find(due.key), before, "no touch, not even when everything that waits was sent");
  t.match(gateway.logs.slice(logged), [{ event: "gateway.draining" }, { event: "gateway.stopped" }]);
});

t.test("asking changes no metric and no record", async (t) => {
  const { gateway, pair } = await begin(t, { session: { cookie, bind: "both", onMismatch: "deny" } });
  await ask(`${gateway.url}/required`, { headers: { cookie: pair } });
  const before = { metrics: await moved(gateway), exchanges: await gateway.exchanges(), log: gateway.logText() };
  for (const headers of [[`Cookie: ${pair}`], ["Cookie: session=x"], ["X-User-Id: 1"], [`Cookie: ${ticket().cookie}`]])
    await explain(gateway, { url, headers });
  const after = { metrics: await moved(gateway), exchanges: await gateway.exchanges(), log: gateway.logText() };
  t.same(after, before);
});

t.test("what was asked with is shown to nobody", async (t) => {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { routes, session: { cookie }, store: redis.url });
  const user = { id: "7", name: "PLANTED-name", email: "PLANTED-mail", key: "PLANTED-claim" };
  const store = await redisStore(t, redis.url);
  const { key, value, cookie: pair } = ticket();
  await store.create(key, sessionOf({ user, data: { cart: "PLANTED-cart" } }));
  const headers = [
    `Cookie: ${pair}; other=PLANTED-cookie`,
    "Authorization: PLANTED-authorization",
    "User-Agent: PLANTED-agent",
    "X-User-Id: PLANTED-forged",
    "Referer: PLANTED-referer",
  ];
  const bad = "PLANTED\u0001control";
  const questions = [
    { url: "http://a/required?q=PLANTED-query", headers },
    { url: "http://a/required", headers: [`Cookie: session=PLANTED-${"x".repeat(79)}`] },
    { url: "http://a/required", headers: [`Cookie: session=PLANTED-${"x".repeat(35)}.${"y".repeat(43)}`] },
    { url: "http://a/required", headers: ["PLANTED-no-header"] },
    { url: "http://a/required", headers: [`Cookie: ${bad}`] },
    { url: "http://PLANTED:PLANTED@a/", headers },
    { url: "PLANTED", headers },
    { url: "http://a/PLANTED blank", headers },
    { url: "http://a/", method: "PLANTED METHOD", headers },
    { url: "http://a/", client: "PLANTED", headers },
    { url: "http://a/", headers: { "PLANTED blank": "x" } },
    { url: "http://a/", headers: { Cookie: 7, PLANTED: {} } },
    { url: "http://a/", [`PLANTED-${pair}`]: 1, headers },
    { url: 7, PLANTED: pair },
    { trace: `PLANTED-${pair}` },
  ];
  const answers = await Promise.all(questions.map((question) => post(gateway, question)));
  answers.push(
    await ask(`${gateway.adminUrl}/debug/explain`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: `PLANTED ${pair}`,
    }),
  );
  await redis.kill();
  await until(async () => (await feedState(gateway)) === "lost");
  answers.push(await post(gateway, questions[0]));
  const [signature = "none"] = value.split(".").slice(1);
  const places = {
    answers: answers.map(({ body }) => body).join("\n"),
    log: gateway.logText(),
    metrics: await gateway.metrics(),
    recorder: JSON.stringify(await gateway.exchanges()),
  };
  for (const [place, text] of Object.entries(places)) {
    t.notMatch(text, /PLANTED/, place);
    for (const secret of [value, value.slice(0, 43), signature, key, SECRET]) t.notOk(text.includes(secret), place);
  }
});

t.test("questions that make no sense get 400 and a sentence", async (t) => {
  const gateway = await startGateway(t, { routes });
  const cases: [question: unknown, sentence: RegExp][] = [
    [{}, /say which request/],
    [{ url: "http://a/", trace: "x" }, /say which request/],
    [{ url: "ftp://a/" }, /url must begin with http/],
    [{ url: "http://a/ b" }, /url holds a blank or a character beyond ASCII/],
    [{ url: "http://a/ä" }, /percent-encoded/],
    [{ url: "http://u:p@a/" }, /a user name or a password/],
    [{ url: "http://a/", headers: ["Cookie"] }, /headers\[0\] is no header: write it as Name: value/],
    [{ url: "http://a/", headers: ["A: b", "Na me: x"] }, /headers\[1\] is no header/],
    [{ url: "http://a/", headers: ["A: b\r\nHost: c"] }, /headers\[0\] holds a control character/],
    [{ url: "http://a/", headers: ["A: \u20ac"] }, /beyond Latin-1/],
    [{ url: "http://a/", headers: "A: b" }, /headers must be a list/],
    [{ url: "http://a/", client: "localhost" }, /client must be an IP address/],
    [{ url: "http://a/", method: "GET /" }, /method must be a method/],
    [{ url: "http://a/", colour: "red" }, /only url, method, headers, client and trace are known/],
  ];
  for (const [question, sentence] of cases) {
    const reply = await post(gateway, question);
    t.equal(reply.status, 400, JSON.stringify(question));
    t.match(JSON.parse(reply.body).error, sentence);
  }
  t.equal((await post(gateway, { url: "http://a/", headers: [`A: ${"x".repeat(70_000)}`] })).status, 413);
  t.equal((await ask(`${gateway.adminUrl}/debug/explain`)).status, 405);
  const guarded = await startGateway(t, { routes, admin: { port: 0, token: "t".repeat(40) } });
  t.equal((await post(guarded, { url: "http://a/" })).status, 401);
});

t.test("what never becomes a request is told by the parser that refuses it", async (t) => {
  const gateway = await startGateway(t, { routes });
  const status = async (question: Parameters<typeof explain>[1]) =>
    (await explain(gateway, question)).wouldAnswer?.status;
  t.equal(await status({ url: "http://a/", headers: ["Content-Length: 1", "Transfer-Encoding: chunked"] }), 400);
  t.equal(await status({ url: `http://a/${"x".repeat(40_000)}`, headers: [] }), 414);
  t.equal(await status({ url: "http://a/", headers: [`A: ${"x".repeat(40_000)}`] }), 431);
  t.equal(await status({ url: "http://a/", method: "BREW", headers: [] }), 501);
  t.equal(await status({ url: "/", headers: [] }), 400);
  t.equal(await status({ url: "*", method: "OPTIONS", headers: ["Host: a"] }), 204);
  t.equal(await status({ url: "http://a/", method: "TRACE", headers: [] }), 405);
  const own = await explain(gateway, { url: "http://a/none#part", headers: ["Host: intra.example.com"] });
  t.match(said(own, "request"), "GET intra.example.com/none", "a Host of its own counts, and a fragment is not sent");
});

t.test("a recorded exchange, in the same words", async (t) => {
  const { gateway, handle, pair } = await begin(t, {
    routes: [...routes, { match: { path: "/dead" }, upstream: "http://127.0.0.1:9", session: "none" }],
  });
  const newest = (before: number) =>
    until(async () => {
      const exchanges = await gateway.exchanges();
      return exchanges.length > before ? exchanges[0]?.traceId : undefined;
    });
  const traced = async (path: string, headers: Record<string, string>) => {
    const before = (await gateway.exchanges()).length;
    await ask(gateway.url + path, { headers });
    return explain(gateway, { trace: await newest(before) });
  };
  const passed = await traced("/required/x?q=1", { cookie: pair, "x-user-id": "forged" });
  t.same(wrong(passed), []);
  t.match(
    passed.conclusion,
    new RegExp(`^The request was forwarded to .* as the user of session ${handle}; the client got 200 `),
  );
  t.match(said(passed, "removed"), /^x-user-id\n1 of class managed: only Coatcheck says who is asking/);
  const refused = await traced("/required", { cookie: "session=abc" });
  t.same(wrong(refused), ["cookie", "session", "policy"]);
  t.match(refused.conclusion, /^Coatcheck answered 401 and forwarded nothing: its cookie is none of ours\.$/);
  const lost = await traced("/required", { cookie: ticket().cookie });
  t.match(said(lost, "session"), /the store does not know this id\ntold by the store, after [\d.]+ ms\n/);
  t.match(said(lost, "session"), /nobody has told this gateway of its end/);
  const end = await ask(`${gateway.url}/end`, { method: "POST", headers: { cookie: pair }, body: "this" });
  t.equal(end.status, 200);
  const ended = await explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  t.match(said(ended, "session"), /^somebody has ended it: a logout, an operator/);
  t.match(ended.advice, /^the log lines session\.ended.* say who ended it/);
  const dead = await traced("/dead", {});
  t.match(dead.conclusion, /the client got 502 \(connection_refused: /);
  t.match(dead.advice, /^look at the application and at the log lines of trace [0-9a-f]{32}$/);
  t.match((await traced("/%72equired", {})).conclusion, /^Coatcheck answered 400 \(http_request_error: the path/);
  const before = (await gateway.exchanges()).length;
  await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"8"}}' });
  const login = await explain(gateway, { trace: await newest(before) });
  t.match(said(login, "write-back"), "x-session-start: saved");
  const reply = await post(gateway, { trace: "0".repeat(32) });
  t.equal(reply.status, 404);
  t.match(JSON.parse(reply.body).error, /no exchange with this trace id is recorded/);
});

t.test("a store of somebody else: what its peek tells is checked, and without one find is asked", async (t) => {
  const { key, cookie: pair } = ticket();
  const about = async (peek: unknown) => {
    const store = Object.assign(new MemoryStore(), { peek });
    store.create(key, sessionOf());
    const gateway = await startGateway(t, { routes, session: { cookie } }, { store });
    return explain(gateway, { url, headers: [`Cookie: ${pair}`] });
  };
  t.equal((await about(undefined)).wouldForward?.user, "7");
  t.match(said(await about(() => "nonsense"), "store"), /cannot be read/);
  t.match(said(await about(() => ({ outcome: "expired", session: { user: 7 } })), "store"), /it has ended$/);
  t.match(said(await about(() => ({ outcome: "malformed", unreadable: "so" })), "store"), /cannot be read$/);
  const thrown = await about(() => {
    throw new Error("redis://user:PLANTED@host is away");
  });
  t.equal(thrown.wouldAnswer?.status, 503);
  t.notMatch(JSON.stringify(thrown), /PLANTED/);
});

t.test("a trace of several exchanges: the newest, also when only a watch has kept it", async (t) => {
  const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
  const observe = { recorder: { exchanges: 0, slow: 0, errors: 0 } };
  const { gateway, pair } = await begin(t, { listen, observe });
  const watched = await ask(`${gateway.adminUrl}/debug/watch`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user: "7", for: "1m" }),
  });
  t.match(watched.status, /^20/);
  const trace = "a".repeat(32);
  const headers = { cookie: pair, traceparent: `00-${trace}-${"b".repeat(16)}-01` };
  for (const path of ["/required/1", "/required/2"]) await ask(gateway.url + path, { headers });
  await until(async () => (await gateway.exchanges("watch")).length === 2);
  const explanation = await explain(gateway, { trace });
  t.match(said(explanation, "record"), /2 exchanges of this trace are recorded; this is the newest/);
  t.match(said(explanation, "request"), /\/required\/2$/);
});
