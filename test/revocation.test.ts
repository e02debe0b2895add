/**
 * A session that is ended at one gateway and in use at another: how long until the other denies it. In two ways at once,
 * and in each of them alone.
 */
import { createHash } from "node:crypto";
import t from "tap";
import { ask } from "./support/client.ts";
import { startRedis } from "./support/redis.ts";
import { startCluster } from "./support/redis-cluster.ts";
import { eventually, type Teardown } from "./support/resources.ts";
import { type RunningGateway, startApp, startGateway } from "./support/servers.ts";
import { logIn, type Visitor } from "./support/traffic.ts";

const REVOCATIONS = 200;
const P99_MS = 50;
/** What a busy machine may add to a hundredth of them. */
const NOISE_MS = 100;

/** Redis may not tell of changes of its own, or gateways may not tell one another. */
const USERS = {
  tracking: "on >secret ~coatcheck:* resetchannels &__redis__:invalidate +@all",
  messages: "on >secret ~coatcheck:* &coatcheck:* +@all -client|tracking",
};

const ways: Record<string, { feed: string; published: boolean; open: (t: Teardown) => Promise<string> }> = {
  "both ways": { feed: "tracking", published: true, open: async (t) => (await startRedis(t)).url },
  "both ways, in a cluster": { feed: "tracking", published: true, open: async (t) => (await startCluster(t)).url },
  "client tracking alone": { feed: "tracking", published: false, open: as("tracking") },
  "published messages alone": { feed: "messages", published: true, open: as("messages") },
};

function as(user: keyof typeof USERS) {
  return async (t: Teardown) => (await startRedis(t, { users: USERS })).url.replace("//", `//${user}:secret@`);
}

type End = (gateway: RunningGateway, visitor: Visitor) => Promise<number>;

/** All that end a session, in turn. Each visitor has one. */
const ends: readonly End[] = [
  async ({ url }, { cookie }) =>
    (await ask(`${url}/end`, { method: "POST", body: "this", headers: { cookie } })).status,
  async ({ url }, { cookie }) => (await ask(`${url}/end`, { method: "POST", body: "all", headers: { cookie } })).status,
  async ({ adminUrl }, visitor) => (await ask(`${adminUrl}/sessions/${keyOf(visitor)}`, { method: "DELETE" })).status,
  async ({ adminUrl }, { userId }) => (await ask(`${adminUrl}/sessions?user=${userId}`, { method: "DELETE" })).status,
];

function keyOf({ cookie }: Visitor): string {
  const token = cookie.slice(cookie.indexOf("=") + 1).split(".", 1)[0] ?? "";
  return createHash("sha256").update(token).digest("base64url");
}

async function userSeen({ url }: RunningGateway, { cookie }: Visitor): Promise<string> {
  return JSON.parse((await ask(url, { headers: { cookie } })).body).headers["x-user-id"];
}

async function metric(gateway: RunningGateway, name: string): Promise<number> {
  return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(await gateway.metrics())?.[1] ?? 0);
}

/** The one below which so large a part of them lies. */
function quantile(values: readonly number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.ceil(values.length * part) - 1] ?? 0;
}

for (const [way, { feed, published, open }] of Object.entries(ways)) {
  t.test(way, async (t) => {
    const store = await open(t);
    const app = await startApp(t);
    const [one, two] = [
      await startGateway(t, { upstream: app.url, store }),
      await startGateway(t, { upstream: app.url, store }),
    ] as const;
    for (const gateway of [one, two]) {
      const name = `coatcheck_session_feed\\{state="${feed}"\\}`;
      await eventually(`the feed is ${feed}`, async () => (await metric(gateway, name)) === 1);
    }
    const visitors = await logIn(one.url, REVOCATIONS);
    for (const visitor of visitors) for (const gateway of [one, two, two]) await userSeen(gateway, visitor);
    const cached = await two.exchanges();
    t.equal(cached[0]?.session.source, "cache");

    const delaysMs: number[] = [];
    for (const [n, visitor] of visitors.entries()) {
      t.equal(await userSeen(two, visitor), visitor.userId);
      const sentAt = performance.now();
      const denied = eventually("the other denies", async () => (await userSeen(two, visitor)) === "", 5_000, 0);
      t.equal(await ends[n % ends.length]?.(one, visitor), 200);
      await denied;
      delaysMs.push(performance.now() - sentAt);
      app.received.length = 0;
    }
    const [p50, p99, longest] = [0.5, 0.99, 1].map((part) => quantile(delaysMs, part).toFixed(1));
    t.comment(
      `${way}: from the request that ends it to the denial, p50 ${p50} ms, p99 ${p99} ms, longest ${longest} ms`,
    );
    t.ok(Number(p99) < P99_MS + NOISE_MS, `p99 of ${p99} ms`);
    const samples = "coatcheck_session_revocation_delay_seconds_count";
    if (published) {
      await eventually("all revocations are measured", async () => (await metric(two, samples)) >= REVOCATIONS);
      t.equal(await metric(two, samples), REVOCATIONS);
    } else t.equal(await metric(two, samples), 0, "Redis does not say when");
  });
}
