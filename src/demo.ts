import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { type Environment, loadConfig } from "./config/load.ts";
import { Gateway } from "./gateway.ts";

const SHOP = fileURLToPath(new URL("../examples/legacy-shop/server.mjs", import.meta.url));

export interface Demo {
  /** What to try, for a person at a terminal. */
  readonly tour: string;
  readonly url: string;
  readonly adminUrl: string;
  readonly gateway: Gateway;
  close(): Promise<void>;
}

/** An example application, in a process of its own, with a gateway in front of it. */
export async function startDemo(options: { environment: Environment; port: string; adminPort: string }): Promise<Demo> {
  const { environment, port, adminPort } = options;
  const folder = await mkdtemp(join(tmpdir(), "coatcheck-demo-"));
  const logFile = join(folder, "coatcheck.log");
  const log = createWriteStream(logFile);
  let shop: Shop | undefined;
  let gateway: Gateway | undefined;
  const close = async (): Promise<void> => {
    await gateway?.close();
    await shop?.close();
    await new Promise((resolve) => log.end(resolve));
    await rm(folder, { recursive: true, force: true });
  };
  try {
    shop = await startShop();
    const store = environment.REDIS_URL || `sqlite:${join(folder, "sessions.db")}`;
    const { config } = loadConfig(demoSettings(shop.url, store, port, adminPort), environment, "demo");
    gateway = await Gateway.create(config, { logDestination: log, command: ["demo"] });
    await gateway.listen();
  } catch (error) {
    await close();
    if (error instanceof Error)
      error.message = error.message.replace("listen.port", "--port").replace("admin.port", "--admin-port");
    throw error;
  }
  const { url, adminUrl } = gateway;
  const kind = environment.REDIS_URL ? "Redis (REDIS_URL)" : "SQLite (set REDIS_URL for Redis)";
  return { url, adminUrl, gateway, tour: tour({ url, adminUrl, shopUrl: shop.url, kind, logFile }), close };
}

function demoSettings(upstream: string, store: string, port: string, adminPort: string) {
  return {
    listen: { port },
    admin: { port: adminPort },
    store,
    // Plain http and a name of its own, so that every browser and curl keeps the cookie, whatever host name is used.
    session: { cookie: { name: "session", secure: false } },
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

function tour({
  url,
  adminUrl,
  shopUrl,
  kind,
  logFile,
}: Record<"url" | "adminUrl" | "shopUrl" | "kind" | "logFile", string>): string {
  return `
Coatcheck demo. Sessions are kept in ${kind}.

  browser ──► Coatcheck ${url} ──► legacy shop ${shopUrl}
                  │
              operators ${adminUrl}

In a browser
  ${url}            the shop: sign in, put something into the cart
  ${url}/headers    what the shop is told about you
  ${url}/admin      for Ada only
  ${adminUrl}/metrics            counters
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

Log: tail -f ${logFile}
Ctrl-C ends everything.
`;
}
