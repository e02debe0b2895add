/** Two gateways with two workers each on one Redis: what is ended anywhere has ended at every worker within the bound. */
import t from "tap";
import { ask, cookiePair, until } from "./support/client.ts";
import { startApp, startRedis } from "./support/servers.ts";
import { type Client, clientOfEach, startWorkers } from "./support/workers.ts";

const SESSIONS = 40;
/** As for single processes (revocation.test.ts), and what a busy machine may add. */
const P95_MS = 150;

t.test("a session that is ended at one worker is denied by the other three", async (t) => {
  const redis = await startRedis(t);
  const app = await startApp(t);
  const gateways = [
    await startWorkers(t, { upstream: app.url, store: redis.url }),
    await startWorkers(t, { upstream: app.url, store: redis.url }),
  ];
  for (const gateway of gateways)
    await until(async () => /^coatcheck_session_feed\{state="tracking"\} 1$/m.test(await gateway.metrics()));
  const clients: Client[] = [];
  for (const gateway of gateways) clients.push(...(await clientOfEach(t, gateway)).values());
  t.equal(clients.length, 4);
  const userSeen = async (client: Client, cookie: string): Promise<string> =>
    JSON.parse((await client.ask("/", { headers: { cookie } })).body).headers["x-user-id"];

  const delays: number[] = [];
  for (let i = 0; i < SESSIONS; i++) {
    const ending = clients[i % 4] as Client;
    const login = await ending.ask("/start", { method: "POST", body: JSON.stringify({ user: { id: `u${i}` } }) });
    const cookie = cookiePair(([login.headers["set-cookie"]].flat()[0] ?? "") as string);
    // Each worker has it in its near cache now.
    for (const client of clients) t.equal(await userSeen(client, cookie), `u${i}`);
    if (i % 2 === 0) {
      const reply = await ending.ask("/end", { method: "POST", body: "this", headers: { cookie } });
      t.equal(reply.status, 200);
    } else {
      const url = gateways[i % 4 < 2 ? 0 : 1]?.adminUrl;
      t.equal((await ask(`${url}/sessions?user=u${i}`, { method: "DELETE" })).status, 200);
    }
    const endedMs = performance.now();
    for (const client of clients) await until(async () => (await userSeen(client, cookie)) === "");
    delays.push(performance.now() - endedMs);
  }
  delays.sort((a, b) => a - b);
  const p95 = delays[Math.floor(SESSIONS * 0.95)] as number;
  t.ok(p95 < P95_MS, `95 % within ${p95.toFixed(1)} ms, all within ${delays.at(-1)?.toFixed(1)} ms`);
  t.comment(
    `median ${delays[SESSIONS / 2]?.toFixed(1)} ms, 95 % ${p95.toFixed(1)} ms, all ${delays.at(-1)?.toFixed(1)} ms`,
  );
});
