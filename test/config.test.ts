/** The configuration: everything that is wrong is said at once, with its path and what to do. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { loadConfigFile, loadConfigText } from "../src/config/load.ts";
import { maskSettings } from "../src/config/mask.ts";
import { ConfigError } from "../src/config/problems.ts";
import { parseRedisUrl } from "../src/core/redis-url.ts";
import { parseDuration } from "../src/core/units.ts";
import { temporaryFolder } from "./support/servers.ts";

const SECRET = "s".repeat(40);
const MINIMAL = "routes: [{ upstream: 'http://localhost:3000' }]";

function problemsOf(text: string, environment: Record<string, string> = {}): readonly string[] {
  try {
    loadConfigText(text, environment);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
}

t.test("one route is enough, everything else has a default", async (t) => {
  const { config } = loadConfigText(MINIMAL, {});
  t.match(config, {
    listen: { host: "0.0.0.0", port: 8080, trustedProxies: [] },
    admin: { host: "127.0.0.1", port: 9090, token: undefined },
    store: "sqlite:./sessions.db",
    session: { idleTimeoutMs: 1_800_000, absoluteTimeoutMs: 43_200_000, ephemeralSecret: true },
    routes: [{ id: "*/", session: "required", write: undefined, loginRedirect: undefined }],
    observe: { traces: { ratio: 0.01, slowerThanMs: 1000 }, traceExport: undefined },
  });
  t.match(config.session.cookie, {
    name: "__Host-session",
    secure: true,
    sameSite: "Lax",
    path: "/",
    secrets: [/^[\w-]{43}$/],
  });
  t.ok(Object.isFrozen(config) && Object.isFrozen(config.session.cookie));
});

t.test("the whole contract of design §4 that this version knows is accepted", async (t) => {
  const text = `
listen: { host: 0.0.0.0, port: 8080, trustedProxies: [10.0.0.0/8, "::1"] }
admin: { host: 0.0.0.0, port: 9090, token: "\${COATCHECK_ADMIN_TOKEN}" }
store: rediss://user:password@redis.example:6380/2
session:
  idleTimeout: 30m
  absoluteTimeout: 12h
  cookie: { name: sid, secrets: ["\${COATCHECK_SECRET}"], sameSite: Strict, secure: true, path: /, domain: example.com }
  encryptionKeys: ["\${COATCHECK_SECRET}"]
identity:
  headers: { X-User-Id: /user/id, X-Cart: /data/cart, X-Session-Handle: handle }
routes:
  - match: { host: app.example.com, path: /admin }
    upstream: http://10.0.0.5:3000
    session: required
    onMissing: { redirect: /login }
    write: [user, cart]
  - match: { host: app.example.com, path: / }
    upstream: { targets: [https://10.0.0.5:3000], timeouts: { connect: 1s, firstByte: 10s, idle: 1m } }
    session: optional
    onMissing: 401
  - upstream: [http://127.0.0.1:3000]
    session: none
observe:
  log: { level: info, access: all }
  traces: { ratio: 0.01, slowerThan: 1s, errors: true }
  recorder: { exchanges: 1000, slow: 200, errors: 200 }
`;
  const { config, settings } = loadConfigText(text, { COATCHECK_ADMIN_TOKEN: SECRET, COATCHECK_SECRET: SECRET });
  t.same(
    config.routes.map((route) => route.id),
    ["app.example.com/admin", "app.example.com/", "*/"],
  );
  t.equal(config.upstreams[1]?.firstByteTimeoutMs, 10_000);
  const shown = JSON.stringify(maskSettings(settings));
  t.notMatch(shown, SECRET);
  t.notMatch(shown, "password");
  t.match(shown, "rediss://user:***@redis.example:6380/2");
  t.match(shown, "*** (40 characters)");

  const { admin, session, store, ...others } = settings;
  const masked = maskSettings(settings);
  const { cookie, encryptionKeys } = masked.session;
  t.strictSame(
    masked,
    {
      ...others,
      admin: { ...admin, token: "*** (40 characters)" },
      session: { ...session, cookie: { ...session.cookie, secrets: cookie.secrets }, encryptionKeys },
      store: masked.store,
    },
    "nothing else is masked: a new key that is no secret has to be named in config/mask.ts",
  );
  const unheard = { ...settings, vault: { key: "a text that nobody has named", timeout: "30s", on: true } };
  t.match(maskSettings(unheard), { vault: { key: "*** (28 characters)", timeout: "30s", on: true } });
});

t.test("every problem is reported, with its path", async (t) => {
  const problems = problemsOf(`
listne: {}
listen: { port: 99999, trustedProxies: [10.0.0.0/99, everyone] }
admin: { host: 0.0.0.0 }
store: mysql://localhost
session:
  idleTimeuot: 30m
  absoluteTimeout: 12 hours
  cookie: { name: __Host-session, secrets: [short], domain: example.com, sameSite: lax }
identity: { headers: { X_User: /user/id, Host: handle, X-Ok: /secret, X-User-Id: /user/id, x-user-id: /user/id } }
routes:
  - { upstream: "localhost:3000", sesion: required }
  - { match: { path: admin }, upstream: "http://a/base", write: [__proto__], session: none }
  - { match: { host: "Example.com:80" }, upstream: [http://a, http://a:80], onMissing: 403 }
observe: { log: { level: loud }, traces: { ratio: 2 } }
`);
  const expected = [
    'listne: unknown key; did you mean "listen"?',
    "listen.port: must be a whole number from 0 to 65535",
    "listen.trustedProxies[0]: must be an address or a CIDR block",
    "listen.trustedProxies[1]: must be an address or a CIDR block",
    "admin.token: is required when admin.host is not loopback",
    "store: ",
    'session.idleTimeuot: unknown key; did you mean "idleTimeout"?',
    'session.absoluteTimeout: "12 hours" is not a duration',
    "session.cookie.secrets[0]: must have at least 32 characters; make one with: openssl rand -base64 32",
    "session.cookie.sameSite: ",
    "identity.headers.X_User: a header name has letters, digits and dashes only",
    'identity.headers.Host: "Host" has a meaning of its own',
    'identity.headers.X-Ok: "/secret" is neither',
    'identity.headers.x-user-id: is the same header as "X-User-Id"',
    'routes[0].sesion: unknown key; did you mean "session"?',
    "routes[0].upstream.targets[0].url: ",
    'routes[1].match.path: must begin with "/"',
    "routes[1].upstream.targets[0].url: must be scheme, host and port only",
    "routes[1].write[0]: is not a name for a session key",
    'routes[1].write: needs session "optional" or "required"',
    "routes[2].match.host: must be a host name in lower case",
    "routes[2].upstream.targets[1]: is the same as targets[0]",
    "routes[2].onMissing: must be 401 or { redirect: /login }",
    "observe.log.level: ",
    "observe.traces.ratio: ",
  ];
  for (const start of expected)
    t.ok(
      problems.some((problem) => problem.startsWith(start)),
      start,
    );
  t.equal(problems.length, expected.length, problems.join("\n"));
});

t.test("rules between keys", async (t) => {
  const cases: [text: string, problem: RegExp][] = [
    ["workers: auto\nstore: 'memory:'", /^workers: must be 1 with the store memory:/],
    ["workers: '2'\nstore: { primary: 'memory:', fallback: 'sqlite:x' }", /^workers: must be 1 with the store memory:/],
    ["workers: 0", /^workers: must be a whole number from 1 to 256/],
    ["session: { cookie: { secure: false } }", /cookie\.secure: browsers refuse the cookie name/],
    [
      "session: { cookie: { domain: example.com } }",
      /cookie\.domain: browsers refuse a "__Host-" cookie with a domain/,
    ],
    ["session: { cookie: { path: /a } }", /cookie\.path: browsers refuse/],
    [
      "session: { cookie: { name: s, secure: false, sameSite: None } }",
      /cookie\.secure: browsers refuse SameSite=None/,
    ],
  ];
  for (const [text, problem] of cases) t.match(problemsOf(`${text}\n${MINIMAL}`), [problem], text);
  t.match(problemsOf("routes: [{ upstream: 'http://a', session: none, write: [user] }]"), [/write: needs session/]);
  t.match(problemsOf("routes: [{ upstream: 'http://a', session: optional, onMissing: { redirect: /login } }]"), [
    /onMissing: has a meaning only with/,
  ]);
  t.match(problemsOf("routes: [{ upstream: 'http://a' }, { upstream: 'http://b', match: { path: / } }]"), [
    /routes\[1\]\.match: is the same as that of routes\[0\]/,
  ]);
  t.match(problemsOf("routes: [{ upstream: 'http://a', onMissing: { redirect: //evil.example } }]"), [/redirect/]);
  t.match(problemsOf("routes: []"), [/routes: at least one route/]);
  t.match(problemsOf(""), [/routes: /]);
  t.match(problemsOf("just a text"), [/top level/]);
});

t.test("environment variables: an unset one is a problem of its own, once", async (t) => {
  const text = `session: { cookie: { secrets: ["\${ONE}", "\${TWO}"] } }\nlisten: { port: "\${PORT}" }\n${MINIMAL}`;
  t.same(problemsOf(text, { ONE: SECRET }), [
    "session.cookie.secrets[1]: the environment variable TWO is not set",
    "listen.port: the environment variable PORT is not set",
  ]);
  t.equal(loadConfigText(text, { ONE: SECRET, TWO: SECRET, PORT: "8081" }).config.listen.port, 8081);
});

t.test("what serve would trip over is a problem already here", async (t) => {
  const cases: [text: string, problem: RegExp][] = [
    ["store: 'memory:foo'", /store: must be memory: alone/],
    ["store: 'sqlite:'", /store: must be memory: alone, or sqlite: and a file name/],
    ["session: { idleTimeout: 2h, absoluteTimeout: 1h }", /session\.idleTimeout: must not be longer/],
    ["session: { onMismatch: deny }", /session\.onMismatch: has no effect without bind/],
    ["cache: { maxBytes: 0B, staleOnOutage: 1m }", /cache\.staleOnOutage: needs the near cache/],
    [`admin: { token: "${"a token ".repeat(5)}" }`, /admin\.token: must be printable ASCII without blanks/],
    ["identity: { headers: { Content-Type: handle } }", /Content-Type.*meaning of its own/],
  ];
  for (const [text, problem] of cases) t.match(problemsOf(`${text}\n${MINIMAL}`), [problem], text);
  t.match(problemsOf("routes: [{ upstream: 'http://a', match: { path: /geschützt } }]"), [
    /match\.path: .*printable ASCII/,
  ]);
  t.match(problemsOf("routes: [{ upstream: 'http://a', match: { host: a..b } }]"), [/match\.host/]);
  t.equal(parseDuration("60.0005s"), 60_001, "a number of whole milliseconds");
});

t.test("passwords of any shape are masked", async (t) => {
  const urls = [
    "redis://:p@ss@h:1/0",
    "redis://user:hunter2@h/0?password=hunter2",
    "redis://:p/w@d@h",
    "mysql://u:hunter2@h",
    "rediss://u:hunter2@[bad",
    "redis://u:hunter2?x@h",
    "redis://u:x?hunter2@h",
    "redis://hunter2@h",
    "redis://h?sentinelPassword=x&hunter2=y",
    "redis+sentinel://h1,u:hunter2@h2/m",
    "redis//u:hunter2@h",
    "u:hunter2@h:6379",
    "redis:u:hunter2@h",
  ];
  for (const url of urls) {
    let shown = "";
    try {
      shown = JSON.stringify(maskSettings(loadConfigText(`store: "${url}"\n${MINIMAL}`, {}).settings));
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      shown = error.message;
    }
    t.notMatch(shown, /hunter2|p@ss|ss@|p\/w|w@d/, url);
  }
});

t.test("a password in the query keeps its plus", async (t) => {
  const url = "redis+sentinel://h/m?sentinelPassword=a+b%2Fc";
  t.equal(parseRedisUrl(url).sentinelPassword, "a+b/c");
});

t.test("how sessions are stored: JSON in the open by default; keys are long, or the word plaintext", async (t) => {
  const key = "k".repeat(32);
  t.match(loadConfigText(MINIMAL, {}).config.session, { codec: "json", encryptionKeys: [] });
  const text = `session: { codec: msgpack, encryptionKeys: ["\${KEY}", plaintext] }\n${MINIMAL}`;
  const { settings, config } = loadConfigText(text, { KEY: key });
  t.match(config.session, { codec: "msgpack", encryptionKeys: [key, "plaintext"] });
  t.strictSame(maskSettings(settings).session.encryptionKeys, ["*** (32 characters)", "plaintext"]);
  t.match(problemsOf(`session: { codec: cbor, encryptionKeys: [plain-text, ${key}, 7] }\n${MINIMAL}`), [
    /^session\.codec: /,
    /^session\.encryptionKeys\[0\]: must have at least 32 characters, or be the word plaintext/,
    /^session\.encryptionKeys\[2\]: /,
  ]);
});

t.test("a store with one to fall back to", async (t) => {
  const store = { primary: "redis://user:hunter2@h/0", fallback: "sqlite:./sessions.db" };
  const { settings, config } = loadConfigText(`store: ${JSON.stringify(store)}\n${MINIMAL}`, {});
  t.same(config.store, store);
  t.same(maskSettings(settings).store, { ...store, primary: "redis://user:***@h/0" });
  const wrong: [string, RegExp[]][] = [
    ["{ primary: 'redis://h' }", [/^store\.fallback: /]],
    ...[
      ["redis://h", "redis://h"],
      ["redis://h:6379/0", "redis://user:hunter2@h"],
      ["sqlite:./a.db", "sqlite:a.db"],
    ].map(([primary, fallback]): [string, RegExp[]] => [
      JSON.stringify({ primary, fallback }),
      [/^store\.fallback: must be another store than primary$/],
    ]),
    [
      "{ primary: 'redis://u:hunter2@h:x', fallback: 'redis://u:hunter2/@h' }",
      [/^store\.primary: .*host/, /^store\.fallback: /],
    ],
    [
      "{ primary: 'memory:x', fallback: 'mysql://u:hunter2@h' }",
      [/^store\.primary: must be memory: alone/, /^store\.fallback: ".+" is not a URL/],
    ],
    [
      "{ primary: 'redis://h', fallbak: 'memory:' }",
      [/^store\.fallback: /, /^store\.fallbak: unknown key; did you mean "fallback"\?$/],
    ],
    ["[redis://h]", [/^store: must be a URL, or \{ primary: URL, fallback: URL \}$/]],
  ];
  for (const [text, expected] of wrong) {
    const problems = problemsOf(`store: ${text}\n${MINIMAL}`);
    t.match(problems, expected, text);
    t.equal(problems.length, expected.length, text);
    t.notMatch(problems.join(), "hunter2");
  }
});

t.test("problems never show a secret", async (t) => {
  const problems = problemsOf(
    `store: "mysql://user:hunter2@db"\nsession: { cookie: { secrets: [hunter2] }, encryptionKeys: [hunter2] }\nadmin: { token: hunter2 }\n${MINIMAL}`,
  );
  t.equal(problems.length, 4);
  t.notMatch(problems.join("\n"), "hunter2");
});

t.test("a secret in the wrong place is not shown either", (t) => {
  const secret = "k3Qm+Zr8/vT1xY5cB9nL0pWdS7fHgJ2uEaXoRiC4b6M=";
  const problems = problemsOf(`store: ${secret}
session: { idleTimeout: "${secret}" }
cache: { maxBytes: "${secret}" }
identity: { headers: { X-Name: "${secret}" } }
routes: [{ upstream: "${secret}" }]
`);
  t.equal(problems.length, 5, problems.join("\n"));
  t.notMatch(problems.join("\n"), secret.slice(0, 8));
  t.match(problems.join("\n"), '"***" is not a duration');
  t.end();
});

t.test("a value of a wrong kind: what is wanted, in plain words", (t) => {
  t.same(problemsOf(""), ["routes: is required"]);
  t.same(problemsOf("routes: 5"), ["routes: must be a list, not number"]);
  t.same(problemsOf("routes: [{}]"), ["routes[0].upstream: is required"]);
  const observe = "observe: { log: { level: loud, sample: -1 }, traces: { ratio: 2, errors: 7 } }";
  t.same(problemsOf(`${observe}\nsession: 7\n${MINIMAL}`), [
    "session: must be a section with keys of its own, not number",
    "observe.log.level: must be one of trace, debug, info, warn, error, fatal",
    "observe.log.sample: must be at least 0",
    "observe.traces.ratio: must be at most 1",
    "observe.traces.errors: must be true or false, not number",
  ]);
  t.end();
});

t.test("YAML that cannot be read", async (t) => {
  t.match(problemsOf("a: [1"), [/ at line 1, column \d+$/]);
  t.match(problemsOf("a: 1\na: 2"), [/unique/]);
  t.match(problemsOf("store: memory:"), [
    /put a text that ends with one in quotes, such as "memory:" at line 1, column \d+$/,
  ]);
  const alias = problemsOf(`admin: { token: *hunter2 }\n${MINIMAL}`);
  t.match(alias, [/an alias \(\*name\) leads nowhere/]);
  t.notMatch(alias.join(), "hunter2");
  t.match(problemsOf("a: &a [*a]"), [/or to itself/]);
  const bomb = `a: &a [x,x,x,x,x,x,x,x,x]\n${"bcdefgh"
    .split("")
    .map((name, i) => `${name}: &${name} [${`*${"abcdefg"[i]},`.repeat(9)}]`)
    .join("\n")}`;
  t.throws(() => loadConfigText(bomb, {}), "an alias bomb is refused");
});

t.test("what is wrong with the YAML is told without what stands there", (t) => {
  const secret = "hunter2hunter2hunter2hunter2hunter2";
  const text = `admin:\n  token: ${secret}\nsession:\n  cookie:\n    secrets:\n      - ${secret}\nstore: redis://u:${secret}@host\n`;
  const slips = [
    "|",
    "|2",
    "|+",
    "> ",
    "@",
    "%",
    "&",
    "*",
    "!",
    "!<",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "- ",
    '"',
    "'",
    "#",
  ];
  slips.push("\t", "\n", "\\", '"\\x', '"\\U', "!!int ", "\n---\n", "%YAML 9\n---\n", "...\n", "]{");
  for (let at = 0; at <= text.length; at++) {
    for (const slip of slips) {
      try {
        loadConfigText(text.slice(0, at) + slip + text.slice(at), {}, "file");
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error;
        // Of what the parser itself says; a misspelled key is named on purpose.
        const told = error.problems.filter((problem) => / at line \d+, column \d+$/.test(problem)).join("\n");
        if (/hunter2|nter2h/.test(told)) t.fail(`${JSON.stringify(slip)} at ${at}: ${told}`);
      }
    }
  }
  t.match(problemsOf(`a: |${secret}`), [/^here is something that YAML has no place for at line 1, column 5$/]);
  t.match(problemsOf(`a: "\\${secret}"`), [/^an escape that YAML does not know/]);
  t.end();
});

t.test("a file that is not there or too large", async (t) => {
  t.throws(() => loadConfigFile("/does/not/exist.yaml", {}), { message: /the file is not there$/ });
  const file = join(await temporaryFolder(t), "large.yaml");
  await writeFile(file, `# ${"x".repeat(1024 * 1024)}\n${MINIMAL}`);
  t.throws(() => loadConfigFile(file, {}), { message: /is larger than/ });
});

t.test("random values: a problem or a configuration, never another exception", async (t) => {
  const values = [
    "null",
    "1",
    "-1",
    "true",
    "''",
    "'x'",
    "[]",
    "{}",
    "[[]]",
    "{a: {}}",
    "1e999",
    ".nan",
    "'$" + "{X}'",
    "2026-11-20",
    "!!binary aGk=",
  ];
  const keys = [
    "listen",
    "admin",
    "store",
    "session",
    "identity",
    "routes",
    "observe",
    "reload",
    "shutdown",
    "listen: {port",
    "session: {cookie",
    "routes: [{upstream",
    "routes: [{match",
    "identity: {headers",
    "__proto__",
    "constructor",
  ];
  for (const key of keys) {
    for (const value of values) {
      const close = [...key]
        .reverse()
        .map((character) => ({ "{": "}", "[": "]" })[character] ?? "")
        .join("");
      t.doesNotThrow(() => problemsOf(`${key}: ${value}${close}`), `${key}: ${value}`);
    }
  }
});

t.test("durations", async (t) => {
  const cases: [string, number | undefined][] = [
    ["250ms", 250],
    ["30s", 30_000],
    ["1.5h", 5_400_000],
    ["7d", 604_800_000],
    ["30", undefined],
    ["", undefined],
    ["-1s", undefined],
    ["1 s", undefined],
    ["1w", undefined],
  ];
  for (const [text, ms] of cases) t.equal(parseDuration(text), ms, text);
});

t.test("the YAML parser warns of nothing by itself: it would quote the file", async (t) => {
  const warned: unknown[] = [];
  const warn = (warning: unknown) => warned.push(warning);
  process.on("warning", warn);
  t.throws(() => loadConfigText("{ { hunter2: 1 } : 2 }", {}, "file"), ConfigError);
  await new Promise((resolve) => setImmediate(resolve));
  process.off("warning", warn);
  t.same(warned, []);
});
