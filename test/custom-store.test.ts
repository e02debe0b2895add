/** `store: module:…`: how a store of one's own is loaded, what is said when it is none, and what guards against it. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadConfigText } from "../src/config/load.ts";
import { maskSettings } from "../src/config/mask.ts";
import { ProxyError, storeUnavailable } from "../src/core/errors.ts";
import type { Session } from "../src/core/session.ts";
import type { ChangeListener, FeedState, SessionStore } from "../src/core/store.ts";
import { PLAIN_JSON } from "../src/store/codec.ts";
import { storeContract } from "../src/store/contract.ts";
import { GuardedStore } from "../src/store/guarded.ts";
import { MemoryStore } from "../src/store/memory.ts";
import { openStore } from "../src/store/open.ts";
import { ask, cookiePair } from "./support/client.ts";
import { run } from "./support/command.ts";
import { filesIn, projectFolder, runNodeTests } from "./support/project.ts";
import { startApp, startGateway, type Teardown, temporaryFolder } from "./support/servers.ts";

const ROUTES = "routes: [{ upstream: 'http://localhost:3000' }]";
const OPTIONS = { now: Date.now, absoluteTimeoutMs: 3_600_000, codec: PLAIN_JSON };

/** Opens a module with this text; @returns the store, or what kept it from opening. */
async function opened(t: Teardown, text: string, query = ""): Promise<SessionStore | Error> {
  const file = join(await temporaryFolder(t), "store.mjs");
  writeFileSync(file, text);
  try {
    const store = await openStore(`module:${file}${query}`, OPTIONS);
    t.teardown(() => store.close());
    return store;
  } catch (error) {
    return error as Error;
  }
}

const OPERATIONS =
  "find create commit touch destroy byUser scan check close get getAll size set setAll remove clear".split(" ");
/** A store in a module that has every operation; what one answers is given, the others answer nothing. */
const storeText = (changes = "") =>
  `export default (options) => ({ kind: "mine", options, ${OPERATIONS.map((name) => `${name}() {}`)}, ${changes} })`;

t.test("the files of docs/custom-stores.md work as they are", async (t) => {
  const files = filesIn("docs/custom-stores.md");
  t.same(Object.keys(files).sort(), ["coatcheck.yaml", "my-store.js", "my-store.test.js"]);
  const folder = await projectFolder(t, files);
  const report = runNodeTests(folder, "my-store.test.js");
  t.match(report, `# pass ${storeContract.length}\n# fail 0\n`);
  t.match(await run(t, ["check", "--config", "coatcheck.yaml"], {}, { cwd: folder }), {
    status: 0,
    stdout: /store: module:\.\/my-store\.js/,
  });
});

t.test("a gateway with a store from a module, relative to the working directory", async (t) => {
  const folder = await projectFolder(t, filesIn("docs/custom-stores.md"));
  const before = process.cwd();
  process.chdir(folder);
  t.teardown(() => process.chdir(before));
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, store: "module:./my-store.js" });
  const login = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"ada"}}' });
  const headers = { cookie: cookiePair(login.setCookie[0]) };
  t.equal((await ask(`${gateway.url}/set`, { method: "POST", body: '{"cart":[1]}', headers })).status, 200);
  t.equal(JSON.parse((await ask(gateway.url, { headers })).body).headers["x-user-id"], "ada");
  t.equal((await ask(`${gateway.url}/end`, { method: "POST", body: "this", headers })).status, 200);
  t.equal(JSON.parse((await ask(gateway.url, { headers })).body).headers["x-user-id"], "");
  t.match(
    await gateway.metrics(),
    /coatcheck_session_operations_total\{operation="find",status="hit",store="my-store"\}/,
  );
  t.equal((await fetch(`${gateway.adminUrl}/readyz`)).status, 200);
});

t.test(
  "a package is looked for from the working directory, and coatcheck is this program wherever a module lies",
  async (t) => {
    const folder = await temporaryFolder(t);
    const packages = { "my-store": "import", "@me/store": "default" };
    for (const [name, condition] of Object.entries(packages)) {
      const path = join(folder, "node_modules", name);
      mkdirSync(path, { recursive: true });
      const manifest = { name, type: "module", exports: { ".": { [condition]: "./i.js" }, "./deep/store": "./i.js" } };
      writeFileSync(join(path, "package.json"), JSON.stringify(manifest));
      writeFileSync(
        join(path, "i.js"),
        `import { AttributesByCommit } from "coatcheck"; export default () => AttributesByCommit.name;`,
      );
    }
    for (const name of [...Object.keys(packages), "my-store/deep/store"]) {
      const args = ["-u", "http://localhost:3000", "--store", `module:${name}`, "--port", "0", "--admin-port", "0"];
      const { status, stderr } = await run(t, args, {}, { cwd: folder });
      t.equal(status, 1);
      t.equal(
        stderr.trim(),
        `coatcheck: store module ${name}: its default export returned a string, not a store; write: export default (options) => new MyStore(options)`,
      );
    }
  },
);

t.test("functions, promises, classes and CommonJS", async (t) => {
  const body = storeText().replace("export default (options) =>", "return");
  const texts = {
    function: storeText(),
    "async function": storeText().replace("(options)", "async (options)"),
    class: `export default class Store { constructor(options) { ${body} } }`,
    "old function": `export default function (options) { ${body} }`,
  };
  for (const [name, text] of Object.entries(texts)) t.match(await opened(t, text), { kind: "mine" }, name);
  const file = join(await temporaryFolder(t), "store.cjs");
  writeFileSync(file, storeText().replace("export default", "module.exports ="));
  t.match(await openStore(`module:${file}`, OPTIONS), { kind: "mine" }, "CommonJS");
});

t.test("the options: clock, timeout, and parameters as they are written", async (t) => {
  const text = `export default ({ now, absoluteTimeoutMs, parameters }) => {
    throw new Error(JSON.stringify([typeof now(), absoluteTimeoutMs, parameters]));
  }`;
  const options = async (query: string) => JSON.parse(/\[.*\]/.exec(String(await opened(t, text, query)))?.[0] ?? "");
  t.same(await options(""), ["number", 3_600_000, {}]);
  t.same(await options("?"), ["number", 3_600_000, {}]);
  t.same((await options("?a=1&b=x=y?z%20+#w&c"))[2], { a: "1", b: "x=y?z%20+#w", c: "" });
});

t.test("what is wrong with a module is said in one line, and what it threw is the cause", async (t) => {
  const crash = "throw new RangeError('boom: postgres://u:hunter2@db/x')";
  const cases: [text: string, message: RegExp, cause?: string][] = [
    [
      "export const store = 1",
      /: it has no default export; write: export default \(options\) => new MyStore\(options\)$/,
    ],
    ["export default 'x'", /: its default export is a string; write: export default/],
    ["export default {}", /: its default export is an object; write: export default/],
    ["export default () => {}", /: its default export returned undefined, not a store; write: export default/],
    ["export default async () => null", /: its default export returned null, not a store; write: export default/],
    [storeText("scan: 1, byUser: undefined"), /: its store has no byUser, scan$/],
    [storeText("set: 1"), /: its store has no set; a class that extends AttributesByCommit has get, getAll, .*clear$/],
    [storeText("watch: {}"), /: the watch of its store is an object; leave it out, or make it a function$/],
    [storeText("kind: 'redis'"), /: the kind of its store is redis, which is one of Coatcheck's own$/],
    ...["undefined", "''", "'My Store'", "'1'", "'a\"b'", `'${"x".repeat(33)}'`].map((kind): [string, RegExp] => [
      storeText(`kind: ${kind}`),
      /: the kind of its store must be a word for metrics: .* at most 32 characters/,
    ]),
    [crash, /: it failed while it was loaded: RangeError: boom: postgres:\/\/\*\*\*@db\/x$/, "RangeError"],
    ["export default (", /: it failed while it was loaded: SyntaxError: /, "SyntaxError"],
    ["import 'not-installed'", /: it failed while it was loaded: Error: Cannot find package 'not-installed'/, "Error"],
    [`export default () => { ${crash} }`, /: it failed while it opened the store: RangeError: boom/, "RangeError"],
    ["export default async () => { throw 'down' }", /: it failed while it opened the store: down$/],
    ["export default () => { throw null }", /: it failed while it opened the store: it threw null$/],
    [
      `export default class { constructor() { ${crash} } }`,
      /: it failed while it opened the store: RangeError/,
      "RangeError",
    ],
  ];
  for (const [text, message, cause] of cases) {
    const error = await opened(t, text, "?password=hunter2");
    t.match(error, { name: "Error", message }, text);
    t.match(error, { message: /^store module \/.*store\.mjs: (?!.*hunter2)[^\n]*$/ });
    if (cause !== undefined) t.match(error, { cause: { name: cause } });
  }
});

t.test("a module that is not there, or is no module", async (t) => {
  const open = (url: string) => openStore(url, OPTIONS);
  await t.rejects(open("module:./no-such-store.js"), {
    message: `store module ./no-such-store.js: there is no file ${join(process.cwd(), "no-such-store.js")}`,
  });
  await t.rejects(open("module:no-such-store"), {
    message: `store module no-such-store: no such package is installed for ${process.cwd()}; write ./no-such-store if it is a file`,
  });
  for (const url of ["module:", "module:?x", "module:https://u:hunter2@host/x.js", "module:data:text/javascript,0"]) {
    await t.rejects(open(url), { message: "a module: URL names a path that begins with ./, ../ or /, or a package" });
  }
});

t.test("the configuration: what is accepted, and that nothing of a password is shown", async (t) => {
  const shown = (store: string, environment = {}) => {
    try {
      return maskSettings(loadConfigText(`store: "${store}"\n${ROUTES}`, environment).settings).store;
    } catch (error) {
      return String(error);
    }
  };
  for (const url of [
    "module:./my-store.js",
    "module:../a/b.mjs",
    "module:/etc/x.js",
    "module:p",
    "module:@me/p/x.js",
  ]) {
    t.equal(shown(url), url);
  }
  for (const url of ["module:", "module:?x=1", "module:.hidden", "module:a:b", "module:@me", "module: x"]) {
    t.match(shown(url), /store: must be module: and a path that begins with .*, or the name of a package/, url);
  }
  t.equal(shown("module:./s.js?url=${URL}", { URL: "postgres://u:hunter2@db/x" }), "module:./s.js?***");
  for (const password of [
    "hunter2",
    "a#hunter2",
    "a?hunter2",
    "a/hunter2",
    "a@hunter2",
    "%23hunter2",
    "a&b=hunter2",
    "a hunter2",
  ]) {
    for (const url of [
      `module:./s.js?url=postgres://u:${password}@db/x`,
      `module:postgres://u:${password}@db/x`,
      `module://u:${password}@db/x`,
    ]) {
      t.notMatch(shown(url), /hunter2/, url);
    }
  }
});

const NOW = Date.now();
const SESSION: Session = {
  user: { id: "1" },
  data: {},
  createdAt: NOW,
  usedAt: NOW,
  expiresAt: NOW + 3_600_000,
  version: 1,
};

/** Calls each operation but `check` and `close`, which never throw. */
const CALLS: Record<string, (store: SessionStore) => unknown> = {
  find: (store) => store.find("k"),
  create: (store) => store.create("k", SESSION),
  commit: (store) => store.commit("k", SESSION),
  touch: (store) => store.touch("k", 1),
  destroy: (store) => store.destroy("k"),
  byUser: (store) => store.byUser("1"),
  scan: (store) => store.scan({ limit: 1 }),
  get: (store) => store.get("k", "a"),
  getAll: (store) => store.getAll("k"),
  size: (store) => store.size("k"),
  set: (store) => store.set("k", "a", 1),
  setAll: (store) => store.setAll("k", { a: 1 }),
  remove: (store) => store.remove("k", "a"),
  clear: (store) => store.clear("k"),
};

/** A guarded store, each of whose operations does the same. */
function guarded(act: () => unknown, timeoutMs?: number): SessionStore {
  const store = Object.fromEntries(OPERATIONS.map((name) => [name, act]));
  return new GuardedStore({ kind: "mine", ...store } as unknown as SessionStore, timeoutMs);
}

const resultOf = async (call: () => unknown): Promise<unknown> => Promise.try(call).catch((error: unknown) => error);

t.test("the guard does not change what a good store answers", async (t) => {
  for (const { name, run } of storeContract) {
    let now = Date.now();
    const store = new GuardedStore(new MemoryStore(() => now));
    const advance = (ms: number) => {
      now += ms;
    };
    await t.resolves(run({ store, now: () => now, advance }), name);
    await store.close();
  }
  const store = new GuardedStore(new MemoryStore());
  t.teardown(() => store.close());
  t.notOk(store.find("k") instanceof Promise, "an answer that is there costs no promise");
  t.equal(store.watch, undefined);
});

t.test("whatever a store throws is an outage, its passwords left out", async (t) => {
  const thrown: [unknown, RegExp][] = [
    [new Error("boom"), /^the session store gave no answer: boom$/],
    [new TypeError(""), /: TypeError$/],
    ["down", /: down$/],
    [undefined, /: it threw undefined$/],
    [Object.create(null), /: it threw an object$/],
    [new AggregateError([new Error("a"), new Error("b")]), /: a, b$/],
    [new ProxyError("http_request_denied", "not you", { status: 403 }), /: not you$/],
    [
      storeUnavailable(new Error("postgres://u:hunter2@db is down")),
      /^the session store gave no answer: postgres:\/\/\*\*\*@db is down$/,
    ],
    [new Error("x".repeat(10_000)), /x{500}$/],
  ];
  for (const [cause, message] of thrown) {
    const stores = [
      guarded(() => {
        throw cause;
      }),
      guarded(() => Promise.reject(cause)),
    ];
    for (const store of stores) {
      for (const [name, call] of Object.entries(CALLS)) {
        const error = await resultOf(() => call(store));
        t.match(error, { name: "ProxyError", code: "session_store_unavailable", status: 503, message }, name);
        t.equal((error as Error).cause, cause);
      }
      t.match(await store.check(), { ok: false, detail: /./ });
      t.equal(await store.close(), undefined);
    }
  }
});

t.test("a promise that never settles is an outage, in bounded time; a late failure disturbs nobody", async (t) => {
  const store = guarded(() => new Promise(() => {}), 20);
  for (const [name, call] of Object.entries(CALLS)) {
    const message = new RegExp(`: ${name} took longer than 0.02 s$`);
    t.match(await resultOf(() => call(store)), { code: "session_store_unavailable", message });
  }
  t.match(await store.check(), { ok: false, detail: /check took longer/ });
  await store.close();
  let fail = (_: unknown): void => {};
  const late = guarded(
    () =>
      new Promise((_, reject) => {
        fail = reject;
      }),
    20,
  );
  await resultOf(() => late.find("k"));
  fail(new Error("too late"));
  await new Promise((resolve) => setImmediate(resolve));
});

t.test("an answer that makes no sense: malformed where a session was asked for, an outage elsewhere", async (t) => {
  const nonsense: unknown[] = [undefined, null, 1, "hit", [], {}, { outcome: "yes" }, { outcome: "hit" }, () => {}];
  for (const answer of nonsense) {
    for (const store of [
      guarded(() => answer),
      guarded(async () => answer),
      // biome-ignore lint/suspicious/noThenProperty: some drivers answer with something like a promise.
      guarded(() => ({ then: (done: (value: unknown) => void) => done(answer) })),
    ]) {
      t.same(await store.find("k"), { outcome: "malformed" });
      for (const name of ["create", "commit", "touch", "destroy", "scan", "set", "setAll", "remove", "clear"]) {
        const error = await resultOf(() => CALLS[name]?.(store));
        t.match(error, { code: "session_store_unavailable", message: new RegExp(`: ${name} answered .* none of its`) });
      }
      t.match(await store.check(), { ok: false, detail: /check answered/ });
    }
  }
  for (const answer of [null, 1, "x", []]) {
    t.match(await resultOf(() => guarded(() => answer).getAll("k")), { code: "session_store_unavailable" });
  }
  t.match(await resultOf(() => guarded(() => "2").size("k")), { code: "session_store_unavailable" });
  t.match(await resultOf(() => guarded(() => ({})).byUser("1")), { code: "session_store_unavailable" });

  const { user, data, expiresAt, ...rest } = SESSION;
  const broken: unknown[] = [
    { ...rest, data, expiresAt },
    { ...rest, user, expiresAt },
    { ...rest, user, data },
    { ...SESSION, user: { name: "x" } },
    { ...SESSION, user: "1" },
    { ...SESSION, data: [] },
    { ...SESSION, expiresAt: String(expiresAt) },
    { ...SESSION, usedAt: Number.NaN },
    { ...SESSION, version: 1.5 },
    { ...SESSION, retiresAt: null },
    { ...SESSION, siblings: [1] },
    { ...SESSION, client: { address: 1 } },
  ];
  for (const session of broken) {
    t.same(await guarded(() => ({ outcome: "hit", session })).find("k"), { outcome: "malformed" });
    const committed = guarded(() => ({ outcome: "committed", session }));
    t.match(await resultOf(() => committed.set("k", "a", 1)), { code: "session_store_unavailable" });
    const entries = [{ key: "k", session }, { key: "good", session: SESSION }, null, { key: 1, session: SESSION }];
    t.match(await guarded(() => entries).byUser("1"), [{ key: "good" }], "the others of the user can still be ended");
  }
});

t.test("a store that cannot watch is never believed to", async (t) => {
  const watching = async (watch: (listener: ChangeListener) => void) => {
    const store = new GuardedStore(Object.assign(new MemoryStore(), { watch }));
    t.teardown(() => store.close());
    const states: FeedState[] = [];
    const listener = {
      changed() {},
      ended() {},
      changedAll() {},
      feed: (state: FeedState) => states.push(state),
      delayed() {},
    };
    store.watch?.(listener);
    await new Promise((resolve) => setImmediate(resolve));
    return states;
  };
  t.same(await watching((listener) => listener.feed("messages")), ["messages"]);
  const fail = () => {
    throw new Error("no");
  };
  t.same(await watching(fail), ["refused"]);
  t.same(await watching(async () => fail()), ["refused"]);
});

t.test("a gateway is never in doubt: an outage is 503, nonsense is nobody, and neither ends the process", async (t) => {
  const app = await startApp(t);
  const routes = [{ match: { path: "/" }, upstream: app.url, session: "required", write: ["user"] }];
  const memory = new MemoryStore();
  const login = await startGateway(t, { upstream: app.url }, { store: memory });
  const reply = await ask(`${login.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const headers = { cookie: cookiePair(reply.setCookie[0]) };
  const behaviours: [name: string, find: () => unknown, status: number][] = [
    [
      "throws",
      () => {
        throw new Error("boom");
      },
      503,
    ],
    [
      "throws a string",
      () => {
        throw "boom";
      },
      503,
    ],
    [
      "throws a refusal",
      () => {
        throw new ProxyError("http_request_denied", "x");
      },
      503,
    ],
    [
      "rejects",
      async () => {
        throw new Error("boom");
      },
      503,
    ],
    ["never answers", () => new Promise(() => {}), 503],
    ["answers nothing", () => undefined, 401],
    ["answers half a session", async () => ({ outcome: "hit", session: { user: { id: "1" } } }), 401],
  ];
  await Promise.all(
    behaviours.map(async ([name, find, status]) => {
      const store = Object.assign(new MemoryStore(), { find });
      const gateway = await startGateway(t, { routes }, { store: store as unknown as SessionStore });
      const startedMs = performance.now();
      const answer = await ask(gateway.url, { headers });
      t.equal(answer.status, status, name);
      t.same(answer.setCookie, [], "the cookie is left alone");
      t.ok(performance.now() - startedMs < 6_000, name);
      const outcome = status === 503 ? "unavailable" : "malformed";
      t.match(
        await gateway.metrics(),
        new RegExp(`^coatcheck_session_resolutions_total\\{outcome="${outcome}",source="\\w+"\\} 1$`, "m"),
      );
      t.notOk(
        gateway.logs.some((line) => line.event === "error.unexpected"),
        name,
      );
    }),
  );
});
