import { AsyncLocalStorage } from "node:async_hooks";
import type { Exchange } from "./exchange.ts";

const served = new AsyncLocalStorage<Exchange>();

/**
 * Runs what is going to ask a store: commands that go to its server, now or later on the same way, are this exchange's.
 * Look-ups of many requests travel in one pipeline, so the connection cannot tell. It costs a fraction of a microsecond,
 * and is entered only where a store is really asked: an answer from the near cache does not pass here.
 */
export function onBehalfOf<Args extends unknown[], T>(
  exchange: Exchange | undefined,
  ask: (...args: Args) => T,
  ...args: Args
): T {
  return exchange === undefined ? ask(...args) : served.run(exchange, ask, ...args);
}

/** The exchange on whose behalf this runs; `undefined` for what the gateway does of its own accord. */
export function servedExchange(): Exchange | undefined {
  return served.getStore();
}
