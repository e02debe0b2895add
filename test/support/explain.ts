/** Questions to `POST /debug/explain`, and sessions to ask about. */
import { createHmac, hash, randomBytes } from "node:crypto";
import type { AskedRequest, Explanation } from "../../src/core/explanation.ts";
import type { Session, SessionKey } from "../../src/core/session.ts";
import type { SessionCodec } from "../../src/store/codec.ts";
import { RedisStore } from "../../src/store/redis.ts";
import { ask, type Reply } from "./client.ts";
import { type RunningGateway, SECRET, type Teardown } from "./servers.ts";

export const USER_AGENT = "Mozilla/5.0 (test)";
export const HALF_HOUR_MS = 1_800_000;

export function post(gateway: RunningGateway, body: unknown): Promise<Reply> {
  return ask(`${gateway.adminUrl}/debug/explain`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** @throws Error when there is no explanation. */
export async function explain(
  gateway: RunningGateway,
  question: AskedRequest | { trace: string },
): Promise<Explanation> {
  const reply = await post(gateway, question);
  if (reply.status !== 200) throw new Error(`${reply.status}: ${reply.body}`);
  return JSON.parse(reply.body);
}

/** What an explanation says of a step, as one text. */
export function said(explanation: Explanation, name: string): string {
  const steps = explanation.steps.filter(({ step }) => step === name);
  return steps.flatMap(({ finding, detail = [] }) => [finding, ...detail]).join("\n");
}

/** The steps that stand in the way of a signed-in request. */
export function wrong({ steps }: Explanation): string[] {
  return steps.filter(({ ok }) => !ok).map(({ step }) => step);
}

/** The store of a gateway, closed with the test; it is connected. */
export async function redisStore(t: Teardown, url: string, codec?: SessionCodec): Promise<RedisStore> {
  const store = new RedisStore(url, { absoluteTimeoutMs: 24 * HALF_HOUR_MS, ...(codec && { codec }) });
  t.teardown(() => store.close());
  await store.firstAnswer();
  return store;
}

export interface Ticket {
  readonly key: SessionKey;
  /** Value of the cookie. */
  readonly value: string;
  /** `session=value` */
  readonly cookie: string;
}

/** A cookie as a gateway with that secret makes it. */
export function ticket(secret = SECRET): Ticket {
  const token = randomBytes(32).toString("base64url");
  const value = `${token}.${createHmac("sha256", secret).update(`session=${token}`).digest("base64url")}`;
  return { key: hash("sha256", token, "base64url"), value, cookie: `session=${value}` };
}

/** A live session of user 7, begun here. */
export function sessionOf(changes: Partial<Session> = {}): Session {
  const now = Date.now();
  return {
    user: { id: "7", name: "Real" },
    data: {},
    createdAt: now,
    expiresAt: now + HALF_HOUR_MS,
    usedAt: now,
    version: 1,
    client: { address: "127.0.0.1", userAgent: USER_AGENT },
    ...changes,
  };
}
