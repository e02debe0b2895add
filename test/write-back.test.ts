/** Commands from the application: bounded, allow-listed, saved before the response, never seen by the browser. */
import t from "tap";
import { MAX_WRITE_BACK_BYTES, parseCommands } from "../src/session/write-back.ts";
import { ask, cookiePair, raw } from "./support/client.ts";
import { startGateway, startTcp, startUpstream } from "./support/servers.ts";

const ALLOWED = new Set(["user", "cart"]);
const START = '{"user":{"id":"1"}}';

t.test("what is understood", async (t) => {
  t.match(
    parseCommands(
      { start: ['{"user":{"id":42,"name":"Ada","roles":["a"],"x":{"y":1}},"data":{"cart":[1]}}'] },
      ALLOWED,
    ),
    {
      start: { user: { id: "42", name: "Ada", roles: ["a"], x: { y: 1 } }, data: { cart: [1] } },
      dropped: [],
    },
  );
  t.same(parseCommands({ start: ["{}"] }, ALLOWED), { start: { user: null, data: {} }, dropped: [] });
  t.same(parseCommands({ set: ['{"cart":[1],"other":2}'] }, ALLOWED), { set: { cart: [1] }, dropped: ["other"] });
  t.same(parseCommands({ set: ['{"cart":null}'] }, ALLOWED), { set: { cart: undefined }, dropped: [] });
  t.same(parseCommands({ end: ["all"] }, ALLOWED), { end: "all", dropped: [] });
  t.match(
    parseCommands({ start: [START] }, new Set(["cart"])),
    { start: { user: null }, dropped: ["user"] },
    "user is a key like the others",
  );
  const utf8 = Buffer.from('{"user":{"id":"1","name":"Zoë"}}').toString("latin1");
  t.match(parseCommands({ start: [utf8] }, ALLOWED), { start: { user: { name: "Zoë" } } });
});

const malformed: Record<string, Parameters<typeof parseCommands>[0]> = {
  "not JSON": { start: ["{"] },
  "not UTF-8": { start: ['{"user":{"id":"\xff"}}'] },
  "no object": { set: ["[1]"] },
  null: { set: ["null"] },
  "too large": { set: [`{"cart":"${"x".repeat(MAX_WRITE_BACK_BYTES)}"}`] },
  "too large together": { start: [`{"data":{"cart":"${"x".repeat(5000)}"}}`], set: [`{"cart":"${"x".repeat(5000)}"}`] },
  "sent twice": { set: ['{"cart":1}', '{"cart":2}'] },
  "unknown member": { start: ['{"user":{"id":"1"},"ttl":1}'] },
  "user without id": { start: ['{"user":{"name":"x"}}'] },
  "empty id": { start: ['{"user":{"id":""}}'] },
  "id is a list": { start: ['{"user":{"id":["1"]}}'] },
  "id is too long": { start: [`{"user":{"id":"${"x".repeat(257)}"}}`] },
  "control character": { start: ['{"user":{"id":"1","name":"a\\r\\nb"}}'] },
  "lone surrogate": { start: ['{"user":{"id":"\\ud800"}}'] },
  "roles is a text": { start: ['{"user":{"id":"1","roles":"admin"}}'] },
  "a role is empty": { start: ['{"user":{"id":"1","roles":[""]}}'] },
  "data is a list": { start: ['{"data":[]}'] },
  "user through Set": { set: ['{"user":{"id":"1"}}'] },
  "neither this nor all": { end: ["everything"] },
  "start and end": { start: [START], end: ["this"] },
};
for (const [name, values] of Object.entries(malformed)) {
  t.test(`malformed: ${name}`, async (t) => {
    t.match(parseCommands(values, ALLOWED), { command: /start|set|end/, malformed: /./ });
  });
}

t.test("a member named __proto__ changes no prototype", async (t) => {
  const parsed = parseCommands({ start: ['{"user":{"id":"1","__proto__":{"roles":["admin"]}}}'] }, ALLOWED);
  if ("malformed" in parsed) throw new Error(parsed.malformed);
  t.equal(parsed.start?.user?.roles, undefined);
});

t.test("a reason has no more of a name than is needed to find it", (t) => {
  const parsed = parseCommands({ start: [JSON.stringify({ [`n${"a".repeat(8000)}`]: 1 })] }, ALLOWED);
  t.same(parsed, { command: "start", malformed: `"n${"a".repeat(63)}" is neither user nor data` });
  t.end();
});

t.test("random input: a command or malformed, never another exception", async (t) => {
  const pieces = [
    '{"user":',
    '{"id":"1"}',
    '"data":',
    "{",
    "}",
    '"cart"',
    ":",
    "[",
    "]",
    ",",
    "null",
    '"',
    "\\",
    "\xff",
    "1e999",
    '"__proto__":{}',
  ];
  for (let i = 0; i < 20_000; i++) {
    let value = "";
    for (let j = Math.floor(Math.random() * 8); j >= 0; j--) value += pieces[Math.floor(Math.random() * pieces.length)];
    for (const command of ["start", "set", "end"] as const) parseCommands({ [command]: [value] }, ALLOWED);
  }
  t.pass();
});

/** A gateway before an upstream that answers `/name` with the fields of that name. */
async function answering(
  test: Parameters<typeof startUpstream>[0],
  fields: Record<string, string[]>,
  write: string[] | undefined = ["user", "cart"],
) {
  const upstream = await startUpstream(test, (received, _req, res) => {
    res.writeHead(200, fields[received.url.slice(1)] ?? []);
    res.end(JSON.stringify(received.headers));
  });
  return startGateway(test, { routes: [{ upstream: upstream.url, session: "optional", ...(write && { write }) }] });
}

const leaked = (rawHeaders: readonly string[]) =>
  rawHeaders.filter((name, i) => i % 2 === 0 && /^x.session.(start|set|end)$/i.test(name));

t.test("a route without write: the headers are removed and counted, nothing is obeyed", async (t) => {
  const upstream = await startUpstream(t, (_received, _req, res) => res.setHeader("X-Session-Start", START).end());
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "optional" }] });
  const reply = await ask(gateway.url);
  t.equal(reply.status, 200);
  t.same(reply.setCookie, []);
  t.same(leaked(reply.rawHeaders), []);
  t.match(await gateway.metrics(), /^coatcheck_write_back_total\{command="start",result="not-allowed"\} 1$/m);
});

t.test("aliases of the commands are no commands, and the browser does not see them either", async (t) => {
  const gateway = await answering(t, {
    a: ["X_Session_Start", START, "x.session.set", '{"cart":1}', "X-Coatcheck-Secret", "1", "X-Other", "2"],
  });
  const reply = await ask(`${gateway.url}/a`);
  t.same(reply.setCookie, []);
  t.same(leaked(reply.rawHeaders), []);
  t.equal(reply.headers["x-coatcheck-secret"], undefined);
  t.equal(reply.headers["x-other"], "2");
});

t.test("a malformed command ends in 502, told to the log by its reason and to the client not at all", async (t) => {
  const gateway = await answering(t, {
    bad: ["X-Session-Set", '{"cart":hunter2}'],
    twice: ["X-Session-Set", '{"cart":1}', "X-Session-Set", '{"cart":2}'],
  });
  for (const path of ["/bad", "/twice"]) {
    const reply = await ask(gateway.url + path);
    t.equal(reply.status, 502);
    t.equal(reply.headers["proxy-status"], "coatcheck; error=http_protocol_error");
    t.notMatch(reply.body, "hunter2");
  }
  t.match(gateway.logs.at(-1), { error_message: "X-Session-set: sent more than once" });
  t.notMatch(gateway.logText(), "hunter2");
  t.match(await gateway.metrics(), /^coatcheck_write_back_total\{command="set",result="malformed"\} 2$/m);
});

t.test("keys outside write are dropped and counted", async (t) => {
  const gateway = await answering(t, {
    start: ["X-Session-Start", '{"user":{"id":"1"},"data":{"cart":[1],"role":"admin","is_admin":true}}'],
  });
  t.equal((await ask(`${gateway.url}/start`)).setCookie.length, 1);
  t.match(await gateway.metrics(), /^coatcheck_write_back_keys_dropped_total 2$/m);
});

t.test("set without a session does nothing and says so; end without one clears a stale cookie", async (t) => {
  const gateway = await answering(t, { set: ["X-Session-Set", '{"cart":1}'], end: ["X-Session-End", "this"] });
  t.equal((await ask(`${gateway.url}/set`)).status, 200);
  t.match((await ask(`${gateway.url}/end`)).setCookie, [/^session=; Max-Age=0/]);
  const metrics = await gateway.metrics();
  t.match(metrics, /^coatcheck_write_back_total\{command="set",result="no-session"\} 1$/m);
  t.match(metrics, /^coatcheck_write_back_total\{command="end",result="no-session"\} 1$/m);
});

t.test("two responses change the same attribute at once: one is saved, the other becomes 409", async (t) => {
  const waiting: (() => void)[] = [];
  const upstream = await startUpstream(t, (received, _req, res) => {
    if (received.url === "/start") return void res.setHeader("X-Session-Start", START).end();
    res.setHeader("X-Session-Set", received.body);
    waiting.push(() => res.end());
    // Both have been told the session before either answers.
    if (waiting.length === 2) for (const finish of waiting.splice(0)) finish();
  });
  const gateway = await startGateway(t, { upstream: upstream.url });
  const cookie = cookiePair((await ask(`${gateway.url}/start`)).setCookie[0]);
  const set = (body: string) => ask(gateway.url, { method: "POST", headers: { cookie }, body });
  const same = await Promise.all([set('{"cart":[1]}'), set('{"cart":[2]}')]);
  t.same(same.map((reply) => reply.status).sort(), [200, 409]);
  t.equal(
    same.find((reply) => reply.status === 409)?.headers["proxy-status"],
    "coatcheck; error=session_write_conflict",
  );
  const different = await Promise.all([set('{"cart":[3]}'), set('{"theme":"dark"}')]);
  t.same(
    different.map((reply) => reply.status),
    [200, 200],
  );
});

t.test(
  "the application cannot set the session cookie itself; its other cookies stay separate and in order",
  async (t) => {
    const gateway = await answering(t, {
      a: [
        "Set-Cookie",
        "a=1",
        "Set-Cookie",
        "session=stolen; Path=/",
        "Set-Cookie",
        "b=2, 3; Expires=Fri, 20 Nov 2026 00:00:00 GMT",
      ],
    });
    t.same((await ask(`${gateway.url}/a`)).setCookie, ["a=1", "b=2, 3; Expires=Fri, 20 Nov 2026 00:00:00 GMT"]);
  },
);

t.test("octets of a response go through as they are; hop-by-hop and listed fields do not", async (t) => {
  const upstream = await startTcp(t, (socket) =>
    socket.once("data", () =>
      socket.end(
        "HTTP/1.1 200 Fine\r\nX-Raw: \xe9\xff\r\nConnection: X-Listed, close\r\nX-Listed: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: x\r\nX-Case: Kept\r\nX-Case: Twice\r\nContent-Length: 2\r\n\r\nok",
        "latin1",
      ),
    ),
  );
  const gateway = await startGateway(t, { routes: [{ upstream: upstream.url, session: "none" }] });
  const reply = await raw(gateway.port, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  t.match(
    reply,
    /^HTTP\/1.1 200 Fine\r\nX-Raw: \xe9\xff\r\nX-Case: Kept\r\nX-Case: Twice\r\nContent-Length: 2\r\nvia: 1.1 coatcheck\r\n/,
  );
  t.notMatch(reply, /listed|keep-alive|proxy-authenticate/i);
});
