/** How sessions are written: what comes back is what JSON gives back, and whatever the octets, never an exception. */
import assert from "node:assert/strict";
import { inspect } from "node:util";
import fc from "fast-check";
import t from "tap";
import type { Json } from "../src/core/json.ts";
import type { Session } from "../src/core/session.ts";
import { SessionCodec } from "../src/store/codec.ts";
import { deriveKey, seal } from "../src/store/encryption.ts";

const KEY = "k".repeat(43);
const OTHER_KEY = "o".repeat(43);
const OLD = "the old secret for sessions at rest";
const NEW = "the new secret for sessions at rest";
const FORMATS = ["json", "msgpack"] as const;
const FORMAT_OCTET = { json: 1, msgpack: 2, encrypted: 3 } as const;

const plain = codecOf("json");
const msgpack = codecOf("msgpack");

const session: Session = {
  user: { id: "42", name: "Zoë", roles: ["admin"], claims: { level: 3, tags: [true, null, 1.5] } },
  data: { cart: [1, 2], note: "Grüße, 世界 🎟", empty: {} },
  createdAt: 1_763_600_000_000,
  expiresAt: 1_763_603_600_000,
  usedAt: 1_763_600_001_000,
  version: 7,
  retiresAt: 1_763_600_010_000,
  siblings: [OTHER_KEY],
  client: { address: "2001:db8::1", userAgent: "Mozilla/5.0" },
};

function codecOf(codec: (typeof FORMATS)[number], encryptionKeys: readonly string[] = []): SessionCodec {
  return new SessionCodec({ codec, encryptionKeys });
}

function read(codec: SessionCodec, payload: Uint8Array | string, key = KEY): Session | "newer" | undefined {
  return codec.decode(key, payload, session.version, session.expiresAt, session.usedAt);
}

function asJsonGivesIt(value: unknown): Json {
  return JSON.parse(JSON.stringify(value));
}

/** Texts of any UTF-16 units, halves of pairs among them, and some with a meaning to somebody. */
const text = fc.oneof(
  { weight: 4, arbitrary: fc.string({ unit: "binary" }) },
  { weight: 2, arbitrary: fc.string({ unit: fc.nat(0xffff).map((unit) => String.fromCharCode(unit)) }) },
  fc.constantFrom("__proto__", "constructor", "toString", "", "0", "10", "\ufeff", `\ufeff${"x".repeat(300)}`),
  fc.string({ minLength: 190, maxLength: 270 }),
);
const number = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true }),
  fc.integer(),
  fc.maxSafeInteger(),
  fc.constantFrom(-0, 2 ** 53, -(2 ** 53), 2 ** 64, 1e308, 5e-324),
);
const json = fc.letrec<{ value: Json; object: Record<string, Json> }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, withCrossShrink: true },
    fc.oneof(text, number, fc.boolean(), fc.constant(null)),
    fc.array(tie("value"), { maxLength: 20 }),
    tie("object"),
  ),
  // As JSON.parse makes them: "__proto__" is a member like any other.
  object: fc
    .array(fc.tuple(text, tie("value")), { maxLength: 20 })
    .map((members) => Object.fromEntries(members) as Record<string, Json>),
}));

t.test("any session and any value comes back as JSON gives it back, from every format to every reader", async () => {
  const writers = FORMATS.flatMap((format) => [codecOf(format), codecOf(format, [OLD])]);
  const readers = FORMATS.map((format) => codecOf(format, [NEW, "plaintext", OLD]));
  fc.assert(
    fc.property(json.object, json.object, json.value, text, (data, claims, value, name) => {
      const written: Session = { ...session, user: { ...claims, id: "1" }, data };
      for (const writer of writers) {
        const payload = writer.encode(KEY, written);
        const attribute = writer.encodeValue(KEY, name, value);
        for (const reader of [writer, ...readers]) {
          const found = read(reader, payload);
          assert.ok(typeof found === "object");
          assert.deepStrictEqual({ ...found }, asJsonGivesIt(written));
          assert.deepStrictEqual(JSON.stringify(found.data), JSON.stringify(data));
          assert.deepStrictEqual(reader.decodeValue(KEY, name, attribute), { value: asJsonGivesIt(value) });
        }
      }
    }),
    { numRuns: 200 },
  );
});

t.test("a session of the fewest members is read, from octets of any kind and from text", async (t) => {
  const { user: _, retiresAt: __, siblings: ___, client: ____, ...few } = session;
  const anonymous: Session = { ...few, user: null };
  for (const codec of [plain, msgpack, codecOf("json", [OLD])]) {
    const payload = codec.encode(KEY, anonymous);
    const shifted = new Uint8Array(payload.length + 7);
    shifted.set(payload, 5);
    t.strictSame(read(codec, payload), anonymous);
    t.strictSame(read(codec, shifted.subarray(5, -2)), anonymous);
    t.strictSame(read(codec, new Uint8Array(payload)), anonymous);
  }
  t.strictSame(read(plain, plain.encode(KEY, session).toString()), session);
});

t.test("MessagePack is written, and JSON in its place where MessagePack would lose something", async (t) => {
  const octet = (value: unknown) => msgpack.encodeValue(KEY, "a", value as Json)[0];
  const nested = (depth: number) => JSON.parse("[".repeat(depth) + "]".repeat(depth));
  t.equal(msgpack.encode(KEY, session)[0], FORMAT_OCTET.msgpack);
  t.ok(msgpack.encode(KEY, session).length < plain.encode(KEY, session).length);
  for (const value of [null, 0, -0, -1.5, 2 ** 60, "", "😀", [], {}, nested(100), { a: undefined }]) {
    t.equal(octet(value), FORMAT_OCTET.msgpack, inspect(value));
  }
  const lossy: Record<string, unknown> = {
    "a member that reaches into the prototype": JSON.parse('{"a":[{"__proto__":{"admin":true}}]}'),
    "half of a surrogate pair": ["\ud800"],
    "half of a surrogate pair in a name": { "\udc00": 1 },
    "a byte order mark": `\ufeff${"x".repeat(300)}`,
    "a byte order mark in a name": { [`\ufeff${"x".repeat(300)}`]: 1 },
    "too many levels": nested(101),
    "no number": Number.NaN,
    "an endless number": [Number.POSITIVE_INFINITY],
    "a date": new Date(0),
    octets: new Uint8Array(3),
    "a hole": new Array(1),
    "an object with a JSON of its own": { toJSON: () => "mine" },
  };
  for (const [what, value] of Object.entries(lossy)) {
    t.equal(octet(value), FORMAT_OCTET.json, what);
    assert.deepStrictEqual(msgpack.decodeValue(KEY, "a", msgpack.encodeValue(KEY, "a", value as Json)), {
      value: asJsonGivesIt(value),
    });
  }
});

t.test(
  "a format of a later version is newer, in the open and in an envelope; anything else is malformed",
  async (t) => {
    const encrypted = codecOf("json", [OLD]);
    for (let format = 0; format < 0x100; format++) {
      if (format >= 1 && format <= 3) continue;
      const payload = Buffer.from([format, 1, 2, 3]);
      const verdict = format < 0x20 ? "newer" : undefined;
      for (const codec of [plain, msgpack, encrypted]) {
        t.equal(read(codec, payload), verdict);
        t.equal(codec.decodeValue(KEY, "a", payload), verdict);
      }
      t.equal(read(encrypted, seal(FORMAT_OCTET.encrypted, deriveKey(OLD), payload, KEY)), verdict);
      if (format < 0x80) t.equal(read(plain, payload.toString("latin1")), verdict);
    }
    t.equal(read(plain, Buffer.alloc(0)), undefined);
    t.equal(read(plain, ""), undefined);
    const envelope = encrypted.encode(KEY, session);
    t.equal(read(encrypted, seal(FORMAT_OCTET.encrypted, deriveKey(OLD), envelope, KEY)), undefined);
  },
);

t.test("what is no session is malformed, in each format", async (t) => {
  const { version: _, expiresAt: __, usedAt: ___, ...stored } = session;
  const wrong: Record<string, unknown> = {
    "an array": [],
    "no object": 1,
    "no user": { ...stored, user: undefined },
    "a text for a user": { ...stored, user: "42" },
    "a user with a number for an id": { ...stored, user: { id: 42 } },
    "no data": { ...stored, data: undefined },
    "a list for data": { ...stored, data: [] },
    "no creation": { ...stored, createdAt: undefined },
    "a text for a time": { ...stored, retiresAt: "later" },
    "a text for siblings": { ...stored, siblings: "a" },
    "a number for a sibling": { ...stored, siblings: [1] },
    "a client without an address": { ...stored, client: { userAgent: "" } },
  };
  for (const codec of [plain, msgpack]) {
    t.type(read(codec, codec.encodeValue(KEY, "any", asJsonGivesIt(stored))), Object);
    for (const [what, value] of Object.entries(wrong)) {
      t.equal(read(codec, codec.encodeValue(KEY, "any", value as Json)), undefined, what);
    }
    const payload = codec.encode(KEY, session);
    t.equal(codec.decode(KEY, payload, Number.NaN, 1, 1), undefined);
    t.equal(codec.decode(KEY, payload, 1, Number.NaN, 1), undefined);
    t.equal(codec.decode(KEY, payload, 1, 1, Number.NaN), undefined);
  }
  const endless = plain
    .encode(KEY, session)
    .toString()
    .replace(/"createdAt":\d+/, '"createdAt":1e999');
  t.equal(read(plain, endless), undefined, "a creation that never was");
});

t.test(
  "MessagePack that is not JSON, or not true, is malformed, and makes no room for what it announces",
  async (t) => {
    const payloads: Record<string, readonly number[]> = {
      nothing: [],
      "never used": [0xc1],
      octets: [0xc4, 1, 0],
      "octets in a list": [0x91, 0xc5, 0, 1, 0],
      "a timestamp": [0xd6, 0xff, 0, 0, 0, 0],
      "an extension": [0xc7, 0, 1],
      NaN: [0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0],
      "a short infinity": [0xca, 0x7f, 0x80, 0, 0],
      "a number for a name": [0x81, 1, 1],
      "a list for a name": [0x81, 0x90, 1],
      "a name that reaches into the prototype": [0x81, 0xa9, ...Buffer.from("__proto__"), 0x80],
      "the same, spelled too long": [0x81, 0xaa, 0xc1, 0x9f, ...Buffer.from("_proto__"), 0x80],
      "one value too many": [1, 1],
      "a text that is not all there": [0xa2, 0x61],
      "a list that is not all there": [0x92, 1],
      "half of a number": [0xcf, 0, 0, 0, 0],
      "a list of everything": [0xdd, 0xff, 0xff, 0xff, 0xff],
      "an object of everything": [0xdf, 0xff, 0xff, 0xff, 0xff],
      "a text of everything": [0xdb, 0xff, 0xff, 0xff, 0xff],
      "too many levels": [...new Array(101).fill(0x91), 1],
      "many lists of many": new Array(20_000).fill([0xdd, 0, 1, 0, 0]).flat(),
      "a million levels": new Array(1_000_000).fill(0x91),
    };
    const before = process.memoryUsage.rss();
    for (const [what, octets] of Object.entries(payloads)) {
      t.equal(msgpack.decodeValue(KEY, "a", Buffer.from([FORMAT_OCTET.msgpack, ...octets])), undefined, what);
    }
    t.ok(process.memoryUsage.rss() - before < 256 * 1024 * 1024);
  },
);

t.test("octets that have been changed anywhere are never an exception, and never anything but JSON", async () => {
  const change = fc.tuple(fc.nat(), fc.nat(0xff));
  const readers = [plain, msgpack, codecOf("json", [OLD]), codecOf("msgpack", [OLD, "plaintext"])];
  const readAll = (payload: Uint8Array) => {
    for (const reader of readers) {
      read(reader, payload);
      const attribute = reader.decodeValue(KEY, "a", payload);
      if (payload[0] !== FORMAT_OCTET.msgpack || typeof attribute !== "object") continue;
      // Loosely, for the sake of -0.
      assert.deepEqual(asJsonGivesIt(attribute.value), attribute.value);
    }
    read(plain, Buffer.from(payload).toString());
  };
  fc.assert(
    fc.property(
      json.value,
      fc.array(change, { minLength: 1, maxLength: 5 }),
      fc.constantFrom(...readers),
      (value, changes, writer) => {
        const payload = writer.encodeValue(KEY, "a", value);
        for (const [at, octet] of changes) payload[at % payload.length] = octet;
        readAll(payload);
      },
    ),
    { numRuns: 3_000 },
  );
  fc.assert(
    fc.property(fc.nat(0x21), fc.uint8Array({ maxLength: 400 }), (format, octets) =>
      readAll(Buffer.concat([Buffer.of(format), octets])),
    ),
    { numRuns: 5_000 },
  );
});

t.test("an encrypted session hides what it holds, differs each time, and opens for its own key only", async (t) => {
  for (const format of FORMATS) {
    const codec = codecOf(format, [OLD]);
    const payload = codec.encode(KEY, session);
    t.equal(payload[0], FORMAT_OCTET.encrypted);
    for (const word of ["user", "Mozilla", "admin", OTHER_KEY, OLD]) t.notOk(payload.includes(word), word);
    t.notSame(codec.encode(KEY, session), payload);
    t.strictSame(read(codec, payload), session);
    t.equal(read(codec, payload, OTHER_KEY), undefined, "copied to another session");
    t.equal(read(codecOf(format), payload), undefined, "without a key");
    t.equal(read(codecOf(format, [NEW]), payload), undefined, "with another key");
    t.equal(codec.decodeValue(KEY, "a", payload), undefined, "as an attribute");
    const attribute = codec.encodeValue(KEY, "bc", { id: "42" });
    t.strictSame(codec.decodeValue(KEY, "bc", attribute), { value: { id: "42" } });
    t.equal(codec.decodeValue(OTHER_KEY, "bc", attribute), undefined, "copied to another session");
    t.equal(codec.decodeValue(KEY, "b", attribute), undefined, "copied to another attribute");
    t.equal(codec.decodeValue(`${KEY}b`, "c", attribute), undefined, "where name and key have another border");
    t.equal(read(codec, codec.encodeValue(KEY, "all", asJsonGivesIt(session))), undefined, "as a session");
  }
});

t.test("an encrypted payload with one bit changed, cut off or longer is nobody's", async () => {
  for (const format of FORMATS) {
    const writer = codecOf(format, [OLD]);
    const payload = writer.encode(KEY, session);
    const attribute = writer.encodeValue(KEY, "a", session.data);
    for (const reader of [writer, codecOf(format, [NEW, OLD, "plaintext"])]) {
      for (let bit = 0; bit < payload.length * 8; bit++) {
        const changed = Buffer.from(payload);
        changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
        assert.ok(typeof read(reader, changed) !== "object", `bit ${bit}`);
      }
      for (let length = 0; length < payload.length; length++) {
        assert.ok(typeof read(reader, payload.subarray(0, length)) !== "object", `${length} octets`);
      }
      for (let length = 0; length < attribute.length; length++) {
        assert.ok(typeof reader.decodeValue(KEY, "a", attribute.subarray(0, length)) !== "object");
      }
      assert.equal(read(reader, Buffer.concat([payload, Buffer.of(0)])), undefined);
    }
  }
});

t.test("keys rotate with nobody logged out: the first encrypts, all decrypt", async (t) => {
  const [old, both, turned, fresh] = [[OLD], [OLD, NEW], [NEW, OLD], [NEW]].map((keys) => codecOf("json", keys)) as [
    SessionCodec,
    SessionCodec,
    SessionCodec,
    SessionCodec,
  ];
  for (const [writer, readers, strangers] of [
    [old, [old, both, turned], [fresh]],
    [both, [old, both, turned], [fresh]],
    [turned, [both, turned, fresh], [old]],
    [fresh, [both, turned, fresh], [old]],
  ] as const) {
    const payload = writer.encode(KEY, session);
    for (const reader of readers) t.strictSame(read(reader, payload), session);
    for (const stranger of strangers) t.equal(read(stranger, payload), undefined);
  }
});

t.test("plain text is refused where there are keys, unless the list says plaintext", async (t) => {
  const encrypted = codecOf("json", [OLD]).encode(KEY, session);
  for (const format of FORMATS) {
    const inTheOpen = codecOf(format).encode(KEY, session);
    t.equal(read(codecOf("json", [OLD]), inTheOpen), undefined);
    t.equal(read(codecOf("json", [OLD]), inTheOpen.toString()), undefined);
    t.equal(codecOf("json", [OLD]).decodeValue(KEY, "a", codecOf(format).encodeValue(KEY, "a", 1)), undefined);
    const introduced = codecOf(format, [OLD, "plaintext"]);
    t.strictSame(read(introduced, inTheOpen), session);
    t.strictSame(read(introduced, encrypted), session);
    t.equal(introduced.encode(KEY, session)[0], FORMAT_OCTET.encrypted);
    const takenAway = codecOf(format, ["plaintext", OLD]);
    t.strictSame(read(takenAway, inTheOpen), session);
    t.strictSame(read(takenAway, encrypted), session);
    t.equal(takenAway.encode(KEY, session)[0], FORMAT_OCTET[format]);
  }
});

t.test("a codec that is printed shows no secret, and no key that is made from one", async (t) => {
  const codec = codecOf("json", [OLD]);
  const shown =
    inspect(codec, { depth: null, showHidden: true }) +
    inspect(deriveKey(OLD), { depth: null }) +
    JSON.stringify([codec, deriveKey(OLD)]);
  const key = deriveKey(OLD).key.export();
  for (const secret of [OLD, ...(["hex", "base64", "base64url", "latin1"] as const).map((as) => key.toString(as))]) {
    t.notOk(shown.includes(secret));
  }
});
