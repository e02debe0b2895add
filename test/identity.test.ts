/** Values of identity headers: printable, unambiguous, and never a way to begin a new header line. */
import t from "tap";
import { headerValue, IdentityHeaders, MAX_IDENTITY_VALUE_LENGTH, plainValue } from "../src/core/identity.ts";
import type { Json } from "../src/core/json.ts";
import { parsePointer, valueAt } from "../src/core/json.ts";
import type { Session } from "../src/core/session.ts";

t.test("values", async (t) => {
  const cases: [value: Json | undefined, text: string][] = [
    [undefined, ""],
    [null, ""],
    ["", ""],
    ["Ada Lovelace", "Ada Lovelace"],
    ["Zoë", "Zo%C3%AB"],
    ["100%", "100%25"],
    ["a,b", "a,b"],
    ["a\r\nX-User-Id: 1", "a%0D%0AX-User-Id: 1"],
    [" x ", "%20x%20"],
    [" ", "%20"],
    [[" a", "b "], "%20a,b%20"],
    ["\0", "%00"],
    ["\ud800", "%EF%BF%BD"],
    ["😀", "%F0%9F%98%80"],
    [42, "42"],
    [true, "true"],
    [["admin", "staff"], "admin,staff"],
    [["a,b", "c"], "a%2Cb,c"],
    [[1, "zoë", null], "1,zo%C3%AB,null"],
    [[], ""],
    [{ a: "ë" }, '{"a":"%C3%AB"}'],
    [[{ a: 1 }], '[{"a":1}]'],
    ["x".repeat(MAX_IDENTITY_VALUE_LENGTH + 1), ""],
  ];
  for (const [value, text] of cases) t.equal(headerValue(value), text, JSON.stringify(value)?.slice(0, 40));
});

t.test("every text comes back by decodeURIComponent, and is one line of printable ASCII", async (t) => {
  for (let i = 0; i < 5_000; i++) {
    const text = String.fromCodePoint(
      ...Array.from({ length: 8 }, () =>
        i % 3 === 0 ? 0x20 + Math.floor(Math.random() * 8) : Math.floor(Math.random() * (i % 3 === 1 ? 0x200 : 0xd7ff)),
      ),
    ); // blanks at the ends included
    const encoded = headerValue(text);
    if (!/^[\x20-\x7e]*$/.test(encoded)) t.fail(JSON.stringify(text));
    if (decodeURIComponent(encoded) !== text) t.fail(JSON.stringify(text));
  }
  t.pass();
});

t.test("values as applications of others take them: UTF-8, or nothing", async (t) => {
  const commas = { separator: ",", unsafe: /,/ };
  const octets = (text: string) => Buffer.from(text, "utf8").toString("latin1");
  const cases: [value: Json | undefined, text: string][] = [
    [undefined, ""],
    [null, ""],
    ["Ada Lovelace", "Ada Lovelace"],
    ["Zoë, 100%", octets("Zoë, 100%")],
    ["😀", octets("😀")],
    [["admin", "staff"], "admin,staff"],
    [["admin", "a,b", "", "x\ny", "zoë"], octets("admin,zoë")],
    [[], ""],
    [42, "42"],
    [{ a: "ë" }, octets('{"a":"ë"}')],
    // Nothing that could become somebody else on the way.
    ["root ", ""],
    [" root", ""],
    ["root\u0000", ""],
    ["root\r\nX-User-Id: 1", ""],
    ["root\u0085", ""],
    ["root\u00a0", ""],
    ["\ud800", ""],
    ["ë".repeat(MAX_IDENTITY_VALUE_LENGTH / 2), octets("ë".repeat(MAX_IDENTITY_VALUE_LENGTH / 2))],
    ["ë".repeat(MAX_IDENTITY_VALUE_LENGTH / 2 + 1), ""],
  ];
  for (const [value, text] of cases) t.equal(plainValue(value, commas), text, JSON.stringify(value)?.slice(0, 40));
  t.equal(plainValue(["a|b", "c", "d"], { separator: "|", unsafe: /\|/ }), "c|d");
});

t.test("pointers reach own properties only", async (t) => {
  const root = JSON.parse('{"user":{"id":"1","__proto__":{"admin":true}},"list":[10],"a/b":{"~":1}}');
  const at = (pointer: string) => valueAt(root, parsePointer(pointer));
  t.equal(at("/user/id"), "1");
  t.equal(at("/list/0"), 10);
  t.equal(at("/a~1b/~0"), 1);
  t.same(at("/user/__proto__"), { admin: true }, "as data");
  for (const pointer of ["/user/constructor", "/toString", "/list/length/x", "/user/id/0", "/missing/deep", "/list/-1"])
    t.equal(at(pointer), undefined, pointer);
  t.throws(() => parsePointer("user"), TypeError);
});

t.test("all headers are set, with or without a session", async (t) => {
  const headers = new IdentityHeaders([
    { name: "X-User-Id", source: "/user/id" },
    { name: "X-Cart", source: "/data/cart" },
    { name: "X-Created", source: "/createdAt" },
    { name: "X-Session-Handle", source: "handle" },
  ]);
  const session: Session = { user: { id: "1" }, data: {}, createdAt: 5, expiresAt: 6, usedAt: 5, version: 1 };
  const fields: string[] = [];
  t.same(headers.inject(fields, { session }, "abc"), ["X-User-Id", "X-Created", "X-Session-Handle"]);
  t.same(fields, ["X-User-Id", "1", "X-Cart", "", "X-Created", "5", "X-Session-Handle", "abc"]);
  const found = { session };
  headers.inject([], found, "abc");
  const others = new IdentityHeaders([
    { name: "X-Version", source: "/version" },
    { name: "X-Id", source: "/user/id" },
  ]);
  const changed: string[] = [];
  others.inject(changed, found, "abc");
  t.same(changed, ["X-Version", "1", "X-Id", "1"], "what is remembered with a session is of one configuration");
  const empty: string[] = [];
  t.same(headers.inject(empty, {}, undefined), []);
  t.same(empty, ["X-User-Id", "", "X-Cart", "", "X-Created", "", "X-Session-Handle", ""]);
});
