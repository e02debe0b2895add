/** The admin listener says of itself what it does: the document is held against real requests, and it is OpenAPI. */
import { readFileSync } from "node:fs";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import t from "tap";
import { ask, cookiePair, type Reply, raw } from "./support/client.ts";
import { type RunningGateway, startApp, startGateway, startRedis, type Teardown } from "./support/servers.ts";

const TOKEN = "t".repeat(40);
const METHODS = ["get", "post", "delete", "put", "patch"] as const;

interface Schema {
  readonly [keyword: string]: unknown;
}

interface Answer {
  readonly $ref?: string;
  readonly description: string;
  readonly content: Readonly<Record<string, { readonly schema: Schema }>>;
}

interface Operation {
  readonly operationId: string;
  readonly security?: readonly unknown[];
  readonly parameters?: readonly { readonly name: string; readonly in: string; readonly required: boolean }[];
  readonly requestBody?: { readonly content: Answer["content"] };
  readonly responses: Readonly<Record<string, Answer>>;
}

interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly responses: Readonly<Record<string, Answer>> };
}

/** Operations by what they are asked with: `GET /metrics`. */
function operationsOf({ paths }: Document): Map<string, Operation> {
  const found = new Map<string, Operation>();
  for (const [path, item] of Object.entries(paths))
    for (const method of METHODS) if (item[method]) found.set(`${method.toUpperCase()} ${path}`, item[method]);
  return found;
}

async function start(t: Teardown) {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url, admin: { port: 0, token: TOKEN } });
  const document: Document = JSON.parse((await askAdmin(gateway, "GET", "/openapi.json")).body);
  return { gateway, document, check: checkerOf(document) };
}

function askAdmin(
  gateway: RunningGateway,
  method: string,
  path: string,
  given: { body?: string; token?: string; type?: string } = {},
) {
  const { body, token = TOKEN, type = "application/json" } = given;
  const headers = {
    ...(token !== "" && { authorization: `Bearer ${token}` }),
    ...(body !== undefined && type !== "" && { "content-type": type }),
  };
  return ask(gateway.adminUrl + path, { method, headers, ...(body !== undefined && { body }) });
}

/** Says what is wrong with an answer, by the document; `undefined`: nothing. */
function checkerOf(document: Document) {
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  addFormats.default(ajv);
  ajv.addSchema({ $id: "doc", ...document });
  return (operation: Operation, reply: Reply): string | undefined => {
    const told = operation.responses[reply.status];
    if (told === undefined) return `the status ${reply.status} is not in the document`;
    const answer = told.$ref === undefined ? told : document.components.responses[told.$ref.split("/").at(-1) ?? ""];
    const type = String(reply.headers["content-type"]).split(";", 1)[0] ?? "";
    const schema = answer?.content[type]?.schema;
    if (schema === undefined) return `the type ${type} is not in the document`;
    if (type !== "application/json") return undefined;
    const referred = JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"doc#/'));
    return ajv.validate(referred, JSON.parse(reply.body)) ? undefined : ajv.errorsText();
  };
}

t.test("the document is OpenAPI 3.1, and the one in docs/ is the same", async (t) => {
  const { gateway } = await start(t);
  const { body } = await askAdmin(gateway, "GET", "/openapi.json");
  const validator = new Validator();
  const result = await validator.validate(JSON.parse(body));
  t.equal(result.valid, true, JSON.stringify(result.errors));
  t.match(validator.version, /^3\.1/);
  t.equal(readFileSync(new URL("../docs/openapi.json", import.meta.url), "utf8"), body, "npm run docs");
  const broken = JSON.parse(body);
  broken.paths["/"].get.responses = "none";
  t.equal((await new Validator().validate(broken)).valid, false, "the validator sees a mistake");
  const ids = [...operationsOf(JSON.parse(body)).values()].map(({ operationId }) => operationId);
  t.equal(new Set(ids).size, ids.length, "each operation has a name of its own");
});

t.test("every endpoint of the index is in the document, and every method that it takes", async (t) => {
  const { gateway, document } = await start(t);
  const { endpoints } = JSON.parse((await askAdmin(gateway, "GET", "/")).body);
  t.same(Object.keys(document.paths).sort(), Object.keys(endpoints).sort());
  for (const [path, item] of Object.entries(document.paths)) {
    const wrong = await askAdmin(gateway, "PATCH", path.replace(/\{.*\}/, "a".repeat(12)));
    t.equal(wrong.status, 405);
    t.type(JSON.parse(wrong.body).error, "string");
    const allowed = String(wrong.headers.allow)
      .split(", ")
      .filter((method) => method !== "HEAD");
    t.same(
      Object.keys(item)
        .filter((name) => name !== "parameters")
        .sort(),
      allowed.map((method) => method.toLowerCase()).sort(),
      path,
    );
  }
});

/**
 * What each operation is asked, and what it answers: at least one request that succeeds, and those that bring about the
 * other statuses of its own. `HANDLE` stands for the handle of a live session of the user 1.
 */
const CASES: Record<string, [query: string, status: number, body?: string][]> = {
  "GET /": [["", 200]],
  "GET /livez": [["", 200]],
  "GET /readyz": [["", 200]],
  "GET /openapi.json": [["", 200]],
  "GET /metrics": [["", 200]],
  "GET /upstreams": [["", 200]],
  "GET /debug/exchanges": [
    ["", 200],
    ["?ring=errors&limit=3", 200],
    ["?ring=watch", 200],
    ["?limit=0", 400],
  ],
  "POST /debug/explain": [
    ["", 200, '{"url":"http://localhost/","headers":{"cookie":"session=x"}}'],
    ["", 400, '{"url":"nonsense"}'],
    ["", 400, "{}"],
  ],
  "GET /sessions": [
    ["?user=1", 200],
    ["?user=nobody", 200],
    ["", 400],
  ],
  "GET /websockets": [
    ["", 200],
    ["?user=1", 200],
    ["?handle=HANDLE", 200],
    ["?handle=short", 400],
  ],
  "GET /sessions/{handle}": [
    ["", 200],
    ["?user=1", 200],
    ["?user=2", 404],
  ],
  "DELETE /sessions/{handle}": [
    ["", 200],
    ["?user=2", 404],
  ],
  "DELETE /sessions": [
    ["?user=1&except=HANDLE", 200],
    ["?user=1&except=short", 400],
    ["?user=1", 200],
  ],
  "POST /store/check": [["", 200]],
  "GET /debug/watch": [["", 200]],
  "POST /debug/watch": [
    ["", 200, '{"user":"1"}'],
    ["", 200, '{"handle":"HANDLE","for":"1m"}'],
    ["", 400, "{}"],
  ],
  "DELETE /debug/watch": [
    ["?user=1", 200],
    ["?user=1", 404],
    ["", 400],
  ],
  "GET /observe": [["", 200]],
  "POST /observe": [
    ["", 200, '{"traces":{"ratio":0.5,"slowerThan":"250ms"}}'],
    ["", 200, '{"log":{"level":"debug","access":"errors","sample":0.1},"for":"15m"}'],
    ["", 400, '{"traces":{"ratio":2}}'],
    ["", 400, "{}"],
  ],
  "POST /reload": [["", 409]],
  "GET /debug/dump": [["", 200]],
  "POST /debug/profile": [
    ["", 200, '{"seconds":1}'],
    ["", 400, '{"seconds":0}'],
  ],
  "POST /debug/heap": [
    ["", 200, '{"seconds":1}'],
    ["", 400, "{}"],
  ],
};

async function login(gateway: RunningGateway): Promise<string> {
  const reply = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"},"data":{"cart":[1]}}' });
  const { body } = await ask(gateway.url, { headers: { cookie: cookiePair(reply.setCookie[0]) } });
  return JSON.parse(body).headers["x-session-handle"];
}

t.test("every operation answers as the document says", async (t) => {
  const { gateway, document, check } = await start(t);
  const operations = operationsOf(document);
  t.same(Object.keys(CASES).sort(), [...operations.keys()].sort(), "each has its cases here");
  for (const [name, operation] of operations) {
    const [method = "", path = ""] = name.split(" ");
    for (const [query, status, body] of CASES[name] ?? []) {
      const handle = await login(gateway);
      const target = (path + query).replace("{handle}", handle).replace("HANDLE", handle);
      const given = body === undefined ? {} : { body: body.replace("HANDLE", handle) };
      const reply = await askAdmin(gateway, method, target, given);
      t.equal(reply.status, status, `${method} ${target} ${reply.body}`);
      t.equal(check(operation, reply), undefined, `${method} ${target}`);
      if (method !== "GET") continue;
      const head = await askAdmin(gateway, "HEAD", target);
      t.match(head, { status, body: "", headers: { "content-type": reply.headers["content-type"] } });
    }
  }
});

t.test("every operation refuses as the document says", async (t) => {
  const { gateway, document, check } = await start(t);
  for (const [name, operation] of operationsOf(document)) {
    const [method = "", pattern = ""] = name.split(" ");
    const path = pattern.replace(/\{.*\}/, "a".repeat(12));
    const refused = async (about: string, status: number, asking: Promise<Reply>) => {
      const reply = await asking;
      t.equal(reply.status, status, `${name}: ${about}`);
      t.equal(check(operation, reply), undefined, `${name}: ${about}`);
      t.type(JSON.parse(reply.body).error, "string");
    };
    const isOpen = operation.security?.length === 0;
    if (!isOpen) {
      await refused("without a token", 401, askAdmin(gateway, method, path, { token: "" }));
      await refused("with a wrong one", 401, askAdmin(gateway, method, path, { token: `${TOKEN}x` }));
    }
    t.equal("401" in operation.responses, !isOpen, `${name}: ${isOpen ? "open" : "401"}`);
    if ("400" in operation.responses && operation.requestBody === undefined)
      await refused("with an unknown parameter", 400, askAdmin(gateway, method, `${path}?colour=red`));
    if (pattern.includes("{"))
      await refused("with a name of another shape", 400, askAdmin(gateway, method, pattern.replace(/\{.*\}/, "a%20b")));
    if (operation.requestBody !== undefined) {
      await refused("with a body that is no JSON", 400, askAdmin(gateway, method, path, { body: "{" }));
      await refused(
        "with a body of another type",
        415,
        askAdmin(gateway, method, path, { body: "{}", type: "text/plain" }),
      );
      const large = JSON.stringify("x".repeat(70_000));
      await refused("with a large body", 413, askAdmin(gateway, method, path, { body: large }));
    }
    if (method !== "GET") {
      const headers = { authorization: `Bearer ${TOKEN}`, origin: "https://elsewhere.example" };
      await refused("for a foreign page", 403, ask(gateway.adminUrl + path, { method, headers }));
    }
  }
});

t.test("an outage of the store is answered as the document says", async (t) => {
  const redis = await startRedis(t);
  const gateway = await startGateway(t, { store: redis.url, admin: { port: 0, token: TOKEN } });
  const document: Document = JSON.parse((await askAdmin(gateway, "GET", "/openapi.json")).body);
  const check = checkerOf(document);
  await redis.kill();
  const asked = [
    "GET /readyz",
    "GET /sessions?user=1",
    "DELETE /sessions?user=1",
    "GET /sessions/aaaaaaaaaaaa?user=1",
    "DELETE /sessions/aaaaaaaaaaaa?user=1",
    "POST /store/check",
  ];
  for (const each of asked) {
    const [method = "", target = ""] = each.split(" ");
    const path = target.replace(/\?.*/, "").replace("aaaaaaaaaaaa", "{handle}");
    const operation = operationsOf(document).get(`${method} ${path}`) as Operation;
    const reply = await askAdmin(gateway, method, target);
    t.equal(reply.status, 503, each);
    t.equal(check(operation, reply), undefined, each);
  }
});

t.test("messages that are no request, and expectations, get JSON too", async (t) => {
  const gateway = await startGateway(t, {});
  const port = Number(new URL(gateway.adminUrl).port);
  const host = "Host: localhost\r\n";
  const cases: [octets: string, status: number][] = [
    ["nonsense\r\n\r\n", 501],
    [`GET / HTTP/1.1\r\n${host}a b: c\r\n\r\n`, 400],
    ["GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 400],
    [`GET /${"x".repeat(70_000)} HTTP/1.1\r\n${host}\r\n`, 414],
    [`GET / HTTP/1.1\r\n${host}X: ${"x".repeat(70_000)}\r\n\r\n`, 431],
    [`GET / HTTP/1.1\r\n${host}Expect: the-unexpected\r\nConnection: close\r\n\r\n`, 417],
    ["CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405],
    [`BREW / HTTP/1.1\r\n${host}Connection: close\r\n\r\n`, 501],
    [`POST /store/check HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\nzz\r\n`, 400],
  ];
  for (const [octets, status] of cases) {
    const text = await raw(port, octets);
    const [head = "", body = ""] = text.split("\r\n\r\n");
    t.match(head, new RegExp(`^HTTP/1\\.1 ${status} .*\r\n`), octets.slice(0, 40));
    t.match(head, /^content-type: application\/json$/im);
    t.match(JSON.parse(body), { error: /./ });
    t.equal(text.split("HTTP/1.1 ").length, 2, "one answer");
  }
  t.equal(gateway.logs.filter(({ event }) => event === "error.unexpected").length, 0);
  t.equal((await ask(`${gateway.adminUrl}/livez`)).status, 200);
});

t.test("a browser gets a page that can load and run nothing; programs get JSON", async (t) => {
  const gateway = await startGateway(t, {});
  const index = (accept?: string) => ask(gateway.adminUrl, accept === undefined ? {} : { headers: { accept } });
  const page = await index("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
  t.match(page, { status: 200, headers: { "content-type": "text/html; charset=utf-8", vary: "accept" } });
  t.match(page.headers["content-security-policy"], /^default-src 'none'; style-src 'sha256-[\w+/=]+'; base-uri 'none'/);
  t.notMatch(page.body, /<script|<img|<link|style="/);
  for (const [, link = ""] of page.body.matchAll(/href="([^"]*)"/g))
    t.equal((await ask(gateway.adminUrl + link)).status, 200, link);
  const { endpoints } = JSON.parse((await index()).body);
  for (const path of Object.keys(endpoints)) t.ok(page.body.includes(`<code>${path}</code>`), path);
  for (const accept of [undefined, "*/*", "application/json", "application/json, text/html", "text/htmlx"])
    t.match((await index(accept)).headers["content-type"], /^application\/json/);
});
