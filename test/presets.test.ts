/** Presets: the headers that applications know, in the form that they read, and nobody else's to send. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadConfig } from "../src/config/load.ts";
import { headersOf, PRESETS } from "../src/config/presets.ts";
import { ask, cookiePair, raw, until } from "./support/client.ts";
import { ROOT } from "./support/project.ts";
import {
  feedState,
  type RunningGateway,
  SECRET,
  startApp,
  startGateway,
  startRedis,
  type Upstream,
} from "./support/servers.ts";

const app = await startApp(t);
const USER = { id: "ada", name: "Ada Zo\u00eb", email: "ada@example.com", roles: ["admin", "a,b", "c|d", "two words"] };

async function signIn(gateway: RunningGateway, user: unknown = USER): Promise<string> {
  const body = JSON.stringify({ user }).replace(
    /[^ -~]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return cookiePair((await ask(`${gateway.url}/start`, { method: "POST", body })).setCookie[0]);
}

/** What arrived, names as sent and values as UTF-8. */
function arrived({ received }: Upstream): Record<string, string> {
  const fields = received.at(-1)?.rawHeaders ?? [];
  const pairs: [string, string][] = [];
  for (let i = 0; i < fields.length; i += 2)
    pairs.push([fields[i] ?? "", Buffer.from(fields[i + 1] ?? "", "latin1").toString("utf8")]);
  return Object.fromEntries(pairs);
}

const EXPECTED: Record<string, Record<string, string>> = {
  authelia: {
    "Remote-User": "ada",
    "Remote-Groups": "admin,c|d,two words",
    "Remote-Name": "Ada Zoë",
    "Remote-Email": "ada@example.com",
  },
  gitea: { "X-WEBAUTH-USER": "ada", "X-WEBAUTH-FULLNAME": "Ada Zoë", "X-WEBAUTH-EMAIL": "ada@example.com" },
  grafana: {
    "X-WEBAUTH-USER": "ada",
    "X-WEBAUTH-NAME": "Ada Zoë",
    "X-WEBAUTH-EMAIL": "ada@example.com",
    "X-WEBAUTH-GROUPS": "admin,c|d",
  },
  jenkins: {
    "X-Forwarded-User": "ada",
    "X-Forwarded-DisplayName": "Ada Zoë",
    "X-Forwarded-Mail": "ada@example.com",
    "X-Forwarded-Groups": "admin|a,b|two words",
  },
  mediawiki: { "X-Remote-User": "ada", "X-Remote-Name": "Ada Zoë", "X-Remote-Email": "ada@example.com" },
  "oauth2-proxy": {
    "X-Forwarded-User": "ada",
    "X-Forwarded-Groups": "admin,c|d,two words",
    "X-Auth-Request-User": "ada",
    "X-Auth-Request-Preferred-Username": "ada",
    "X-Auth-Request-Email": "ada@example.com",
    "X-Auth-Request-Groups": "admin,c|d,two words",
  },
  radicale: { "X-Remote-User": "ada" },
  wordpress: { "X-Remote-User": "ada", "X-Remote-Email": "ada@example.com" },
};

for (const preset of PRESETS) {
  t.test(`${preset}: who is asking, as the application reads it, and nobody else can say it`, async (t) => {
    const gateway = await startGateway(t, { upstream: app.url, identity: { preset } });
    const names = headersOf(preset).map(({ name }) => name);
    await ask(gateway.url);
    for (const name of names) t.equal(arrived(app)[name], "", `${name} for a visitor`);
    const cookie = await signIn(gateway);
    await ask(gateway.url, { headers: { cookie } });
    t.match(arrived(app), EXPECTED[preset] ?? {});
    t.notOk("X-User-Id" in arrived(app), "the default ones are not asked for");
    const forged = names.flatMap((name) => [
      name,
      name.replaceAll("-", "_"),
      name.replace("-", "."),
      name.toLowerCase(),
    ]);
    const head = ["GET / HTTP/1.1", "Host: a", ...forged.map((name) => `${name}: root`), "Connection: close", "", ""];
    await raw(gateway.port, head.join("\r\n"));
    t.notOk((app.received.at(-1)?.rawHeaders ?? []).includes("root"));
    t.equal((await gateway.exchanges())[0]?.headers.stripped.forwarded, undefined, "each is known as an attempt");
  });
}

t.test("presets go together, and own headers beside them", async (t) => {
  const identity = {
    preset: ["grafana", "gitea"],
    headers: { "x-webauth-user": "/user/email", "X-Tenant": "/data/tenant", "X-WEBAUTH-ROLE": "/user/roles/0" },
  };
  const gateway = await startGateway(t, { upstream: app.url, identity });
  const cookie = await signIn(gateway);
  await ask(gateway.url, { headers: { cookie } });
  t.match(arrived(app), {
    "X-WEBAUTH-USER": "ada@example.com",
    "X-WEBAUTH-FULLNAME": "Ada Zoë",
    "X-WEBAUTH-GROUPS": "admin,c|d",
    "X-WEBAUTH-ROLE": "admin",
    "X-Tenant": "",
  });
});

t.test("a proxy that asks gets them too, UTF-8 as it is", async (t) => {
  const settings = {
    identity: { preset: "authelia" },
    listen: { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] },
    forwardAuth: {},
    routes: [{ match: { path: "/start" }, upstream: app.url, session: "optional", write: ["user"] }, {}],
  };
  const gateway = await startGateway(t, settings);
  const cookie = await signIn(gateway);
  const head = ["GET /verify HTTP/1.1", "Host: a", "X-Forwarded-Host: a", "X-Forwarded-Uri: /x", `Cookie: ${cookie}`];
  const reply = await raw(gateway.port, [...head, "Connection: close", "", ""].join("\r\n"));
  t.match(Buffer.from(reply, "latin1").toString("utf8"), /^HTTP\/1\.1 200 OK\r\n.*\r\nRemote-Name: Ada Zoë\r\n/s);
});

t.test(
  "another preset and another way to ask from one request to the next, for sessions that are cached too",
  async (t) => {
    const redis = await startRedis(t);
    const listen = { host: "127.0.0.1", port: 0, trustedProxies: ["127.0.0.1"] };
    const settings = { listen, upstream: app.url, store: redis.url };
    const gateway = await startGateway(t, { ...settings, identity: { preset: "authelia" } });
    await until(async () => (await feedState(gateway)) === "tracking");
    const cookie = await signIn(gateway);
    for (let i = 0; i < 2; i++) await ask(gateway.url, { headers: { cookie } });
    t.match(arrived(app), { "Remote-User": "ada", "Remote-Email": "ada@example.com" });
    const routes = [{ match: { path: "/" }, upstream: app.url, session: "required" }];
    const other = { listen, store: redis.url, routes, forwardAuth: {}, identity: { preset: ["jenkins", "radicale"] } };
    const session = { cookie: { name: "session", secure: false, secrets: [SECRET] } };
    await gateway.gateway.reload(loadConfig({ ...other, admin: { port: 0 }, session }, {}).config);
    await ask(gateway.url, { headers: { cookie, "Remote-User": "theirs" } });
    t.match(arrived(app), { "X-Forwarded-User": "ada", "X-Forwarded-DisplayName": "Ada Zoë", "X-Remote-User": "ada" });
    t.match((await gateway.exchanges())[0], { session: { source: "cache" } });
    const asked = { "x-forwarded-host": "a", "x-forwarded-uri": "/" };
    const verified = await ask(`${gateway.url}/verify`, { headers: { cookie, ...asked } });
    t.match(verified, { status: 200, headers: { "x-forwarded-user": "ada", "x-remote-user": "ada" } });
  },
);

t.test("what does not go together is said", (t) => {
  const problems = (identity: unknown): string => {
    try {
      loadConfig({ store: "memory:", routes: [{ upstream: "http://127.0.0.1:1" }], identity }, {});
      return "";
    } catch (error) {
      return String(error);
    }
  };
  t.match(
    problems({ preset: ["jenkins", "oauth2-proxy"] }),
    /identity\.preset: jenkins and oauth2-proxy want the lists in X-Forwarded-Groups/,
  );
  t.match(problems({ preset: "drupal" }), /identity\.preset/);
  t.equal(problems({ preset: PRESETS.filter((preset) => preset !== "jenkins") }), "");
  t.equal(problems({ headers: { "X-Forwarded-User": "/user/id" } }), "");
  const { settings } = loadConfig({ routes: [{ upstream: "http://127.0.0.1:1" }], identity: { preset: [] } }, {});
  t.ok("X-User-Id" in settings.identity.headers, "no preset: the default ones");
  for (const name of ["X-Forwarded-For", "X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Original-URL"])
    t.match(problems({ headers: { [name]: "/user/id" } }), /has a meaning of its own/, name);
  t.end();
});

t.test("each preset is in the document, with its headers", (t) => {
  const text = readFileSync(join(ROOT, "docs/presets.md"), "utf8");
  for (const preset of PRESETS) {
    const section = text.split(/^## /m).find((part) => part.includes(`\`preset: ${preset}\``));
    t.ok(section, preset);
    for (const { name } of headersOf(preset)) t.ok(section?.includes(name), `${preset}: ${name}`);
  }
  t.end();
});
