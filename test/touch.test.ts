/** Touches: debounced, one for each session, together, off the way of the response, and never more than the bound. */
import { setTimeout as delay } from "node:timers/promises";
import t from "tap";
import type { Session } from "../src/core/session.ts";
import { Toucher } from "../src/session/touch.ts";

const MINUTE_MS = 60_000;

const expiry = { idleTimeoutMs: 30 * MINUTE_MS, absoluteTimeoutMs: 12 * 60 * MINUTE_MS };

function toucher(touch: (key: string, expiresAt: number) => Promise<"touched">) {
  const clock = { now: 1_000_000 };
  const dropped = { count: 0 };
  const session: Session = {
    user: { id: "1" },
    data: {},
    createdAt: clock.now,
    expiresAt: clock.now + expiry.idleTimeoutMs,
    usedAt: clock.now,
    version: 1,
  };
  const onDropped = () => {
    dropped.count++;
  };
  return {
    toucher: new Toucher({ store: { touch }, now: () => clock.now, onDropped }),
    session,
    clock,
    dropped,
  };
}

t.test("a session that many requests use is touched once, with the last minute's debounce", async (t) => {
  const touches: [string, number][] = [];
  const {
    toucher: it,
    session,
    clock,
  } = toucher(async (key, expiresAt) => {
    touches.push([key, expiresAt]);
    return "touched";
  });
  clock.now += MINUTE_MS - 1;
  t.equal(it.used("k", session, expiry), undefined, "not yet");
  clock.now += 1;
  t.equal(it.used("k", session, expiry), clock.now + 30 * MINUTE_MS);
  for (let i = 0; i < 100; i++) t.equal(it.used("k", session, expiry), undefined);
  t.same(touches, [], "not on the way of the request");
  await delay(60);
  t.same(touches, [["k", clock.now + 30 * MINUTE_MS]]);
});

t.test("beyond a thousand that wait they are dropped and counted; what fails is tried by the next use", async (t) => {
  const waiting: (() => void)[] = [];
  const {
    toucher: it,
    session,
    clock,
    dropped,
  } = toucher(() => new Promise((_, reject) => waiting.push(() => reject(new Error("down")))));
  clock.now += MINUTE_MS;
  for (let i = 0; i < 1500; i++) it.used(`k${i}`, session, expiry);
  t.equal(dropped.count, 500);
  const flushed = it.flush();
  t.equal(waiting.length, 1000);
  it.used("other", session, expiry);
  t.equal(dropped.count, 501, "those under way count too");
  for (const fail of waiting) fail();
  await flushed;
  t.not(it.used("k1", session, expiry), undefined);
});

t.test("what waits is sent at the end", async (t) => {
  const touches: string[] = [];
  const {
    toucher: it,
    session,
    clock,
  } = toucher(async (key) => {
    await delay(20);
    touches.push(key);
    return "touched";
  });
  clock.now += MINUTE_MS;
  it.used("k", session, expiry);
  await it.flush();
  t.same(touches, ["k"]);
  it.used("sent", session, expiry);
  it.flush();
  await it.flush();
  t.same(touches, ["k", "sent"], "and what has been sent is waited for");
});
