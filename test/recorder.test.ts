import t from "tap";
import { Exchange } from "../src/core/exchange.ts";
import { renderRecord } from "../src/observe/record.ts";
import { Recorder } from "../src/observe/recorder.ts";

function newExchange(number: number): Exchange {
  const ids = { traceId: number.toString(16).padStart(32, "0"), spanId: number.toString(16).padStart(16, "0") };
  return new Exchange({ method: "GET", methodLabel: "GET", httpVersion: "1.1", ...ids });
}

/** Another value of the same kind for each field, so that a field that is forgotten shows. */
function fill(exchange: Exchange): string[] {
  const fields = [...Object.keys(exchange), ...accessors()];
  const writable = exchange as unknown as Record<string, unknown>;
  for (const [at, field] of fields.entries())
    writable[field] = typeof writable[field] === "string" ? `text ${at}` : at + 0.5;
  return fields;
}

function accessors(): string[] {
  return Object.entries(Object.getOwnPropertyDescriptors(Exchange.prototype))
    .filter(([, { get, set }]) => get !== undefined && set !== undefined)
    .map(([name]) => name);
}

t.test("an exchange becomes another one in each of its fields", async (t) => {
  const notKept = ["pending", "capture", "upstreamSpanId"];
  const other = newExchange(1);
  const fields = fill(other);
  t.ok(fields.length > 50 && fields.includes("endedMs"), "fields and accessors are found");
  for (const copy of [Exchange.copyOf(other), newExchange(2)]) {
    copy.become(other);
    const values = (exchange: Exchange) => {
      const readable = exchange as unknown as Record<string, unknown>;
      return Object.fromEntries(fields.filter((it) => !notKept.includes(it)).map((it) => [it, readable[it]]));
    };
    t.same(values(copy), values(other));
    t.equal(copy.sinceStart(1000), other.sinceStart(1000), "and its clock");
  }
});

t.test("what was not reached is not in the record of whoever was there before either", async (t) => {
  const recorder = new Recorder({ exchanges: 1, slow: 0, errors: 0, slowerThanMs: 1000 });
  const first = newExchange(1);
  first.path = "/first";
  first.resolvedMs = 1;
  first.upstreamStatus = 200;
  first.countStripped("managed", "x-user-id");
  recorder.keep(first);
  const second = newExchange(2);
  recorder.keep(second);
  t.same(recorder.list("recent", 10), [renderRecord(second)]);
  t.equal(recorder.list("recent", 1)[0]?.timings.resolved, undefined);
});

t.test("one that is overwritten while the records are gone through is left out", async (t) => {
  const recorder = new Recorder({ exchanges: 3, slow: 0, errors: 0, slowerThanMs: 1000 });
  for (const number of [1, 2, 3]) recorder.keep(newExchange(number));
  const records = recorder.records("recent");
  t.equal(records.next().value?.spanId, newExchange(3).spanId);
  recorder.keep(newExchange(4));
  t.same(
    [...records].map(({ spanId }) => spanId),
    [newExchange(2).spanId],
  );
});

t.test("one that is in several rings is found once by its trace", async (t) => {
  const recorder = new Recorder({ exchanges: 3, slow: 3, errors: 3, slowerThanMs: 1 });
  const exchange = newExchange(1);
  exchange.endedMs = 10;
  exchange.status = 500;
  recorder.keep(exchange);
  t.same(recorder.ofTrace(exchange.traceId), [renderRecord(exchange)]);
});
