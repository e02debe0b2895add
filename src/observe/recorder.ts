import { Exchange } from "../core/exchange.ts";
import { type ExchangeRecord, renderRecord } from "./record.ts";

export const RING_NAMES = ["recent", "slow", "errors"] as const;
export type RingName = (typeof RING_NAMES)[number];

export interface RecorderOptions {
  readonly exchanges: number;
  readonly slow: number;
  readonly errors: number;
  readonly slowerThanMs: number;
}

/** The last exchanges, and apart from them the last slow and the last failed ones, which busy hours would wash away. */
export class Recorder {
  readonly #rings: Readonly<Record<RingName, Ring<Exchange>>>;
  #slowerThanMs: number;

  constructor(options: RecorderOptions) {
    this.#rings = {
      recent: new Ring(options.exchanges),
      slow: new Ring(options.slow),
      errors: new Ring(options.errors),
    };
    this.#slowerThanMs = options.slowerThanMs;
  }

  /** From now on; of a ring that shrinks the oldest go. */
  adjust({ slowerThanMs, ...sizes }: RecorderOptions): void {
    this.#slowerThanMs = slowerThanMs;
    this.#rings.recent.resize(sizes.exchanges);
    this.#rings.slow.resize(sizes.slow);
    this.#rings.errors.resize(sizes.errors);
  }

  /** Keeps what is in the exchange; it is rendered when somebody asks. */
  keep(exchange: Exchange): void {
    this.#keepRecent(exchange);
    if ((exchange.endedMs ?? 0) > this.#slowerThanMs) this.#rings.slow.push(exchange);
    if (exchange.error !== undefined || exchange.status >= 500) this.#rings.errors.push(exchange);
  }

  /** Into the object of the oldest, where there is one: see `Exchange.become`. The other rings take few. */
  #keepRecent(exchange: Exchange): void {
    const { recent } = this.#rings;
    const oldest = recent.oldest;
    if (oldest === undefined) recent.push(Exchange.copyOf(exchange));
    else {
      oldest.become(exchange);
      recent.push(oldest);
    }
  }

  /**
   * Everything that a ring holds now, newest first; each is rendered when it is come to. What has been overwritten by
   * then is left out.
   */
  *records(ring: RingName): Generator<ExchangeRecord> {
    const held = this.#rings[ring].newestFirst(Infinity).map((exchange) => ({ exchange, spanId: exchange.spanId }));
    for (const { exchange, spanId } of held) if (exchange.spanId === spanId) yield renderRecord(exchange);
  }

  /** @returns the records of a trace, each once, from whichever ring. */
  ofTrace(traceId: string): ExchangeRecord[] {
    const found = new Map<string, Exchange>();
    for (const ring of Object.values(this.#rings))
      for (const exchange of ring.newestFirst(Infinity))
        if (exchange.traceId === traceId) found.set(exchange.spanId, exchange);
    return [...found.values()].map(renderRecord);
  }

  /** @returns at most `limit` records, newest first. */
  list(ring: RingName, limit: number): ExchangeRecord[] {
    return this.#rings[ring].newestFirst(limit).map(renderRecord);
  }
}

/** A fixed number of places, the oldest overwritten. */
export class Ring<T> {
  #places: T[] = [];
  #size: number;
  #next = 0;

  constructor(size: number) {
    this.#size = size;
  }

  get count(): number {
    return this.#places.length;
  }

  /** What the next `push` overwrites; `undefined` while there is room. */
  get oldest(): T | undefined {
    return this.#places[this.#next];
  }

  push(item: T): void {
    if (this.#size === 0) return;
    this.#places[this.#next] = item;
    this.#next = (this.#next + 1) % this.#size;
  }

  resize(size: number): void {
    if (size === this.#size) return;
    this.#places = this.newestFirst(size).reverse();
    this.#size = size;
    this.#next = size === 0 ? 0 : this.#places.length % size;
  }

  newestFirst(limit: number): T[] {
    const items: T[] = [];
    const count = this.#places.length;
    for (let i = 1; i <= Math.min(count, limit); i++) items.push(this.#places[(this.#next - i + count) % count] as T);
    return items;
  }
}
