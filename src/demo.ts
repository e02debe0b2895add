import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { DEFAULT_ADMIN } from "./cli/admin.ts";
import { tellOptions } from "./cli/arguments.ts";
import { type Environment, loadConfig } from "./config/load.ts";
import { type OwnRedis, startOwnRedis } from "./demo/own-redis.ts";
import { type TrafficSettings, thinkTimeMs } from "./demo/traffic.ts";
import { Gateway } from "./gateway.ts";

const SHOP = fileURLToPath(new URL("../examples/legacy-shop/server.mjs", import.meta.url));

export interface Demo {
  /** What to try, for a person at a terminal. */
  readonly tour: string;
  /** The same in a few lines, for when traffic is shown below. */
  readonly heading: string;
  readonly url: string;
  readonly adminUrl: string;
  readonly gateway: Gateway;
  /** The one that was started for it. */
  readonly redis: OwnRedis | undefined;
  /** Ends the sessions of a user as an operator does. */
  revoke(userId: string): Promise<unknown>;
  close(): Promise<void>;
}

export interface DemoOptions {
  readonly environment: Environment;
  readonly port: string;
  readonly adminPort: string;
  /** A Redis that the demo starts and ends; otherwise `REDIS_URL` of the environment, or SQLite. */
  readonly ownRedis?: boolean;
  /** Traffic that sessions have to suit: they expire while one looks on. */
  readonly traffic?: TrafficSettings;
}

/** An example application, in a process of its own, with a gateway in front of it. */
export async function startDemo(options: DemoOptions): Promise<Demo> {
  const { environment, ownRedis = false, traffic } = options;
  const folder = await mkdtemp(join(tmpdir(), "coatcheck-demo-"));
  const logFile = join(folder, "coatcheck.log");
  const log = createWriteStream(logFile);
  let shop: Shop | undefined;
  let redis: OwnRedis | undefined;
  let gateway: Gateway | undefined;
  const close = async (): Promise<void> => {
    // One that is silent would be waited for.
    redis?.thaw();
    await gateway?.close();
    await shop?.close();
    await redis?.close();
    await new Promise((resolve) => log.end(resolve));
    await rm(folder, { recursive: true, force: true });
  };
  try {
    shop = await startShop();
    if (ownRedis) redis = await startOwnRedis(folder);
    const store = redis?.url || environment.REDIS_URL || `sqlite:${join(folder, "sessions.db")}`;
    const { config } = loadConfig(demoSettings(options, shop.url, store), environment, "demo");
    gateway = await Gateway.create(config, { logDestination: log, command: ["demo"] });
    await gateway.listen();
  } catch (error) {
    await close();
    tellOptions(error);
    throw error;
  }
  const { url, adminUrl } = gateway;
  const places = { url, adminUrl, shopUrl: shop.url, kind: kindOf(redis, environment), logFile };
  const revoke = (userId: string) => fetch(`${adminUrl}/sessions?user=${userId}`, { method: "DELETE" });
  return {
    url,
    adminUrl,
    gateway,
    redis,
    tour: tour(places),
    heading: traffic === undefined ? "" : heading(places, traffic),
    revoke: (userId) => revoke(userId).catch(() => {}),
    close,
  };
}

function kindOf(redis: OwnRedis | undefined, environment: Environment): string {
  if (redis !== undefined) return "Redis (one of its own)";
  return environment.REDIS_URL ? "Redis (REDIS_URL)" : "SQLite (for Redis: --redis, or REDIS_URL)";
}

/** Short enough to see sessions expire, long enough for most acts to come in time. */
function idleTimeout(traffic: TrafficSettings): string {
  return `${Math.min(Math.max(Math.ceil((5 * thinkTimeMs(traffic)) / 1000), 3), 60)}s`;
}

function demoSettings({ port, adminPort, traffic }: DemoOptions, upstream: string, store: string) {
  return {
    listen: { port },
    admin: { port: adminPort },
    store,
    session: {
      // Plain http and a name of its own, so that every browser and curl keeps the cookie, whatever host name is used.
      cookie: { name: "session", secure: false },
      ...(traffic !== undefined && {
        idleTimeout: idleTimeout(traffic),
        bind: "user-agent",
        onMismatch: "deny",
        maxPerUser: 2,
      }),
    },
    identity: {
      headers: {
        "X-User-Id": "/user/id",
        "X-User-Name": "/user/name",
        "X-User-Email": "/user/email",
        "X-User-Roles": "/user/roles",
        "X-Session-Handle": "handle",
        "X-Cart": "/data/cart",
      },
    },
    routes: [
      { match: { path: "/" }, upstream, session: "optional", write: ["user", "cart"] },
      { match: { path: "/account" }, upstream, session: "required", onMissing: { redirect: "/login" } },
      { match: { path: "/admin" }, upstream, session: "required", onMissing: { redirect: "/login" } },
    ],
    observe: { traces: { ratio: 1 } },
  };
}

interface Shop {
  readonly url: string;
  close(): Promise<void>;
}

async function startShop(): Promise<Shop> {
  const child: ChildProcess & { stdout: Readable } = spawn(process.execPath, [SHOP], {
    env: { PORT: "0" },
    stdio: ["ignore", "pipe", "inherit"],
    // A Ctrl-C goes to the whole group of the terminal; the shop is ended after the gateway, not with it.
    detached: true,
  });
  const exited = once(child, "exit");
  process.once("exit", () => child.kill());
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const match = /http:\/\/\S+/.exec(line);
      if (match !== null) resolve(match[0]);
    });
    child.once("exit", (code) => reject(new Error(`the example application ended with status ${code}`)));
    child.once("error", reject);
  });
  return {
    url,
    close: async () => {
      child.kill();
      await exited;
    },
  };
}

interface Places {
  readonly url: string;
  readonly adminUrl: string;
  readonly shopUrl: string;
  /** Of the store, for people. */
  readonly kind: string;
  readonly logFile: string;
}

const IN_A_CHECKOUT = "For operators (in a checkout: npm run coatcheck -- top, and so on)";

/** Where the commands ask, unless it is where they ask anyway. */
function adminOption(adminUrl: string): string {
  return adminUrl === DEFAULT_ADMIN ? "" : ` --admin ${adminUrl}`;
}

function heading({ url, adminUrl, kind, logFile }: Places, { users, rate, seconds, seed }: TrafficSettings): string {
  return `
Coatcheck demo. Sessions are kept in ${kind}.
${users} people, about ${rate} requests a second for ${seconds} s, seed ${seed};
now and then something fails.

  shop ${url}   operators ${adminUrl}

${IN_A_CHECKOUT}
  what happens now          coatcheck top${adminOption(adminUrl)}
  the last failure          coatcheck exchanges --ring errors --limit 1 --steps${adminOption(adminUrl)}
  who was logged out        coatcheck exchanges --logout surprise${adminOption(adminUrl)}
  all of it in one file     coatcheck dump${adminOption(adminUrl)}

Log: tail -f ${logFile}
Ctrl-C ends everything.

`;
}

function tour({ url, adminUrl, shopUrl, kind, logFile }: Places): string {
  return `
Coatcheck demo. Sessions are kept in ${kind}.

  browser ──► Coatcheck ${url} ──► legacy shop ${shopUrl}
                  │
              operators ${adminUrl}

In a browser
  ${url}            the shop: sign in, put something into the cart
  ${url}/headers    what the shop is told about you
  ${url}/admin      for Ada only
  ${adminUrl}/                   what operators can ask
  ${adminUrl}/debug/exchanges    your requests, with every decision

Users (the password is the name): ada (admin, staff) · bob (customer) · zoë (customer)

With curl
  curl -si -c jar -d 'user=ada&password=ada' ${url}/login | grep -i -e ^HTTP -e set-cookie
  curl -s  -b jar ${url}/headers
  curl -s  -b jar -d item=umbrella ${url}/cart >/dev/null; curl -s -b jar ${url}/headers
  curl -si -H 'X-User-Id: 1' -H 'X_User.Roles: admin' ${url}/headers        # forged: nothing arrives
  curl -si ${url}/admin | head -1                                         # 401: sign in first
  curl -s ${adminUrl}/debug/exchanges?limit=1
  curl -s ${adminUrl}/metrics | grep ^coatcheck_headers_stripped

${IN_A_CHECKOUT}
  what happens now          coatcheck top${adminOption(adminUrl)}
  which request was it      coatcheck exchanges${adminOption(adminUrl)}
  why is it answered so     coatcheck explain --url ${url}/admin${adminOption(adminUrl)}
  follow one user           coatcheck watch --user 1${adminOption(adminUrl)}
  all of it in one file     coatcheck dump${adminOption(adminUrl)}

Log: tail -f ${logFile}
People who use it, and failures: coatcheck demo --traffic
Ctrl-C ends everything.
`;
}
