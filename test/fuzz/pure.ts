/** Targets that are plain functions: what comes from a browser, an application, a store or a file. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfigText } from "../../src/config/load.ts";
import { ConfigError } from "../../src/config/problems.ts";
import { ProxyError } from "../../src/core/errors.ts";
import { NO_ROUTE_LIMITS } from "../../src/core/limits.ts";
import { RouteTable } from "../../src/core/routes.ts";
import type { Session } from "../../src/core/session.ts";
import { parseTraceParent } from "../../src/core/trace-context.ts";
import { type CookieNote, SessionCookie } from "../../src/session/cookie.ts";
import { MAX_WRITE_BACK_BYTES, parseCommands } from "../../src/session/write-back.ts";
import { SessionCodec } from "../../src/store/codec.ts";
import { reachesClosedPath } from "../differential/run-case.ts";
import { ROOT } from "../support/project.ts";
import { mutate } from "./mutate.ts";
import type { Random } from "./random.ts";
import { must, type Target, withinMs } from "./target.ts";

/** Generous: a garbage collection may come between. */
const AT_ONCE_MS = 2000;

const COOKIE_WORDS = [
  "session=",
  "session",
  "=",
  ";",
  "; ",
  ".",
  " ",
  "\t",
  "\xa0",
  '"',
  ",",
  "a=b; ",
  "__Host-session=",
];

export const cookie: Target = {
  name: "cookie",
  start() {
    const settings = { name: "session", sameSite: "Lax", secure: true, path: "/", domain: undefined } as const;
    const secrets = ["a secret that has more than 32 characters", "another one that has more than 32 characters"];
    const verifier = new SessionCookie({ ...settings, secrets });
    const stranger = new SessionCookie({ ...settings, secrets: ["nobody knows this secret of 32 characters"] });
    const older = new SessionCookie({ ...settings, secrets: [secrets[1] as string] });
    const ours = [verifier, older].flatMap((by) => Array.from({ length: 10 }, () => by.issue(60_000)));
    const theirs = Array.from({ length: 10 }, () => stranger.issue(60_000));
    const known = new Map(ours.map(({ key, setCookie }) => [pairOf(setCookie).split("=")[1], key]));
    const pairs = [...ours, ...theirs].map(({ setCookie }) => pairOf(setCookie));
    return {
      lanes: 1,
      generate(random: Random) {
        const some = Array.from({ length: 1 + random.below(5) }, () => random.pick([...pairs, "a=b", "session", "=x"]));
        const header = some.join(random.pick(["; ", ";", " ;", ","]));
        return random.chance(0.1) ? header : mutate(random, header, COOKIE_WORDS, pairs);
      },
      check(input) {
        const header = String(input);
        const notes: CookieNote[] = [];
        const { verdict, keys, others, secret } = withinMs(AT_ONCE_MS, "a cookie", () => verifier.read(header, notes));
        must((verdict === "valid") === keys.length > 0, "a key without a valid cookie, or the other way round");
        must((secret !== undefined) === keys.length > 0, "a secret without a key");
        must(keys.length <= 4, "too many keys");
        for (const key of keys) {
          const value = [...known].find(([, opened]) => opened === key)?.[0];
          must(value !== undefined && header.includes(value), "a key that no cookie of ours opens");
        }
        for (const pair of (others ?? "").split(";"))
          must(
            !header.includes("session") || trim(pair.split("=", 1)[0] ?? "") !== "session" || !pair.includes("="),
            "the session cookie goes on",
          );
        must(same(verifier.read(header).keys, keys), "another answer the second time");
        for (const key of keys) verifier.renew(header, key, 1000);
      },
    };
  },
};

function pairOf(setCookie: string): string {
  return setCookie.split(";", 1)[0] ?? "";
}

function trim(text: string): string {
  return text.replace(/^[\s\xa0]+|[\s\xa0]+$/g, "");
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

const COMMANDS = [
  '{"user":{"id":"42","name":"Ada","roles":["admin"]},"data":{"cart":[1,2]}}',
  '{"user":null,"data":{}}',
  '{"cart":[1,2],"old":null,"theme":"dark"}',
  '{"__proto__":{"a":1},"constructor":1}',
  '{"user":{"id":""}}',
  "this",
  "all",
  "{}",
];
const JSON_WORDS = [
  '"',
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  "null",
  "true",
  "1e999",
  "-0",
  '"user"',
  '"id"',
  '"data"',
  '"__proto__"',
  "\\u0000",
  "\\ud800",
  "\xff",
  "\xe2\x82\xac",
  "[".repeat(3000),
  '{"a":'.repeat(500),
];

export const writeBack: Target = {
  name: "write-back",
  start() {
    const allowed = new Set(["user", "cart", "theme"]);
    return {
      lanes: 1,
      generate(random: Random) {
        const value = () =>
          random.chance(0.2) ? random.pick(COMMANDS) : mutate(random, random.pick(COMMANDS), JSON_WORDS, COMMANDS);
        const input: Record<string, string[]> = {};
        for (const command of ["start", "set", "end"])
          if (random.chance(0.5)) input[command] = Array.from({ length: random.chance(0.9) ? 1 : 2 }, value);
        return input;
      },
      check(input) {
        const values = input as Record<string, string[]>;
        const result = withinMs(AT_ONCE_MS, "commands", () => parseCommands(values, allowed));
        if ("malformed" in result) {
          must(result.malformed.length > 0 && result.malformed.length < 300, "a refusal of another length");
          return;
        }
        const { start, set, end } = result;
        for (const [command, value] of Object.entries(values))
          must(value.join("").length <= MAX_WRITE_BACK_BYTES, `${command} is larger than allowed`);
        must(end === undefined || end === "this" || end === "all", "another end");
        must(!(end !== undefined && start !== undefined), "an end and a start");
        must(start?.user === undefined || start.user === null || start.user.id !== "", "a user without an id");
        for (const name of [...Object.keys(start?.data ?? {}), ...Object.keys(set ?? {})])
          must(allowed.has(name), `"${name}" may not be written`);
        must(!("a" in {}), "a prototype was changed");
        JSON.stringify(result);
      },
    };
  },
};

const SESSION: Session = {
  user: { id: "42", name: "Zoë", roles: ["admin"] },
  data: { cart: [1, { sku: "x" }], theme: "dark" },
  createdAt: 1_700_000_000_000,
  expiresAt: 1_700_000_900_000,
  usedAt: 1_700_000_000_000,
  version: 3,
  siblings: ["A".repeat(43)],
  client: { address: "192.0.2.1", userAgent: "x" },
};
const KEY = "k".repeat(43);

export const codec: Target = {
  name: "codec",
  start() {
    const encryptionKeys = ["an encryption key of more than 32 characters"];
    const codecs = [
      new SessionCodec({ codec: "json", encryptionKeys: [] }),
      new SessionCodec({ codec: "msgpack", encryptionKeys: [] }),
      new SessionCodec({ codec: "json", encryptionKeys }),
      new SessionCodec({ codec: "msgpack", encryptionKeys: [...encryptionKeys, "plaintext"] }),
    ];
    const payloads = codecs.flatMap((codec) => [
      codec.encode(KEY, SESSION).toString("latin1"),
      codec.encodeValue(KEY, "cart", [1, { a: null }]).toString("latin1"),
    ]);
    return {
      lanes: 1,
      generate(random: Random) {
        const octets = random.chance(0.2)
          ? random.octets(random.below(60))
          : mutate(
              random,
              random.pick(payloads),
              [...JSON_WORDS, "\x01", "\x02", "\x03", "\xdf\xff\xff\xff\xff", "\xdd\xff\xff\xff\xff", "\xc1"],
              payloads,
            );
        return { codec: random.below(codecs.length), octets };
      },
      check(input) {
        const { codec: index, octets } = input as { codec: number; octets: string };
        const reader = codecs[index] as SessionCodec;
        const payload = Buffer.from(octets, "latin1");
        const read = withinMs(AT_ONCE_MS, "a payload", () => reader.decode(KEY, payload, 1, 2, 3));
        if (typeof read === "object") {
          must(read.user === null || typeof read.user.id === "string", "a user without an id");
          must(typeof read.data === "object" && read.data !== null, "no data");
          must(Number.isFinite(read.createdAt), "no creation time");
          JSON.stringify(read);
          reader.encode(KEY, read);
        }
        withinMs(AT_ONCE_MS, "a value", () => reader.decodeValue(KEY, "cart", payload));
        reader.whyUnreadable(payload);
        reader.decode(KEY, payload.toString("utf8"), 1, 2, 3);
      },
    };
  },
};

const TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

export const trace: Target = {
  name: "trace-context",
  start: () => ({
    lanes: 1,
    generate: (random: Random) => mutate(random, TRACE, ["-", "00", "ff", "0".repeat(32), "A", "\n"], [TRACE]),
    check(input) {
      const parent = parseTraceParent(String(input));
      if (parent === undefined) return;
      must(/^[0-9a-f]{32}$/.test(parent.traceId) && !/^0+$/.test(parent.traceId), "a bad trace id");
      must(/^[0-9a-f]{16}$/.test(parent.spanId) && !/^0+$/.test(parent.spanId), "a bad span id");
    },
  }),
};

const CONFIGURATIONS = [
  "routes:\n  - upstream: http://localhost:3000\n",
  `listen: { host: 0.0.0.0, port: 8080, trustedProxies: ["10.0.0.0/8", "::1/128"] }
admin: { host: 127.0.0.1, port: 9090 }
store: redis://127.0.0.1:6379/0
session:
  idleTimeout: 30m
  absoluteTimeout: 12h
  cookie: { name: __Host-session, secrets: ["\${SECRET}"], sameSite: Lax }
  bind: both
  onMismatch: log
cache: { maxBytes: 64MiB, maxAge: 30s }
identity:
  headers: { X-User-Id: /user/id, X-Session-Handle: handle }
routes:
  - match: { host: app.example.com, path: /admin }
    upstream: http://10.0.0.5:3000
    session: required
    onMissing: { redirect: /login }
  - match: { path: / }
    upstream: http://10.0.0.5:3000
    write: [user, cart]
observe:
  log: { level: info, access: all }
  traces: { ratio: 0.01, slowerThan: 1s, errors: true }
`,
];
const YAML_WORDS = [
  "\n",
  "  ",
  "- ",
  ": ",
  "{",
  "}",
  "[",
  "]",
  "&a ",
  "*a",
  "!!binary ",
  "|",
  ">",
  "%",
  "\t",
  '"',
  "'",
  "#",
  "null",
  "-1",
  "1e9",
  "0x10",
  "${SECRET}",
  "${NO}",
  "__proto__: ",
  "~",
  "? ",
  "<<: *a",
  "routes:",
  "session:",
  "upstream:",
  "\u0000",
  "99999999999d",
  "1.5h",
];

export const configuration: Target = {
  name: "configuration",
  start() {
    const blocks = readFileSync(join(ROOT, "docs/configuration.md"), "utf8").matchAll(/```yaml\n([\s\S]*?)```/g);
    const seeds = [...CONFIGURATIONS, ...[...blocks].map(([, text = ""]) => text)];
    const environment = { SECRET: "a secret of more than thirty-two characters" };
    return {
      lanes: 1,
      generate: (random: Random) => mutate(random, random.pick(seeds), YAML_WORDS, seeds),
      check(input) {
        withinMs(AT_ONCE_MS, "a configuration", () => {
          try {
            must(loadConfigText(String(input), environment).config !== undefined, "no configuration");
          } catch (error) {
            if (!(error instanceof ConfigError)) throw error;
            must(error.problems.length > 0, "refused without a problem");
            for (const problem of error.problems) {
              must(problem.length > 0 && problem.length < 2000, "a problem of another length");
              // Who names a host after a secret has it named.
              must(
                !problem.includes(environment.SECRET) || /^(store|routes.*upstream)/.test(problem),
                "a secret is told",
              );
            }
          }
        });
      },
    };
  },
};

const PATH_WORDS = [
  "/",
  "//",
  ".",
  "..",
  "%2e",
  "%2E",
  "%2f",
  "%5c",
  "\\",
  ";",
  ";x",
  "%3b",
  "%25",
  "%252e",
  "%2561",
  "%61",
  "admin",
  "ADMIN",
  "dmin",
  "a",
  "x",
  "?",
  "%3f",
  "%23",
  "%00",
  "%20",
  "%09",
  "%c0%af",
  "%ff",
  "%e2%82%ac",
  "%",
  "%z",
];

/** What is quadratic takes seconds for a path as long as a request line may be. */
const LONG_PATH_MS = 500;

/** Chosen as open, a path must not be the closed one in any server's reading. */
export const paths: Target = {
  name: "paths",
  start() {
    const route = (prefix: string, index: number) => ({
      id: `*${prefix}`,
      host: undefined,
      prefix,
      session: index === 0 ? ("none" as const) : ("required" as const),
      loginRedirect: undefined,
      webSockets: undefined,
      limits: NO_ROUTE_LIMITS,
      onOutage: "503" as const,
      write: undefined,
      index,
    });
    const routes = new RouteTable([route("", 0), route("/admin", 1)]);
    return {
      lanes: 1,
      generate: (random: Random) =>
        `/${Array.from({ length: 1 + random.below(9) }, () => random.pick(PATH_WORDS).repeat(random.chance(0.001) ? 5000 : 1)).join("")}`.slice(
          0,
          32_000,
        ),
      check(input) {
        const path = String(input).split("?", 1)[0] ?? "";
        let open: boolean;
        try {
          open = withinMs(LONG_PATH_MS, "a path", () => routes.match("a", path))?.index === 0;
        } catch (error) {
          if (!(error instanceof ProxyError)) throw error;
          return;
        }
        must(!open || !reachesClosedPath({ target: path }), "the closed path is open in another reading");
      },
    };
  },
};
