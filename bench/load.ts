import autocannon from "autocannon";

/**
 * The load generator: one process for all peers, so that it is equally warm for each. The bench sends a `LoadOrder`
 * and gets a `LoadResult`, or `{ failed }`.
 */

export interface LoadOrder {
  readonly url: string;
  readonly connections: number;
  readonly seconds: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Spread over the connections: no single session is hot. */
  readonly cookies: readonly string[];
  readonly expectBody: string;
}

export interface LoadResult {
  readonly completed: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly errors: number;
  readonly non2xx: number;
  /** Responses with another body than the expected one. */
  readonly mismatches: number;
}

process.on("message", (order: LoadOrder) => {
  fire(order).then(
    (result) => process.send?.(result),
    (error: unknown) => process.send?.({ failed: String(error) }),
  );
});
// The bench is gone.
process.on("disconnect", () => process.exit(0));

function fire(order: LoadOrder): Promise<LoadResult> {
  const { url, connections, seconds, headers, cookies, expectBody } = order;
  // autocannon's own histogram has whole milliseconds only.
  const latenciesMs: number[] = [];
  let started = 0;
  const startedMs = performance.now();
  return new Promise((resolve, reject) => {
    const instance = autocannon(
      {
        url,
        connections,
        duration: seconds,
        headers,
        expectBody,
        setupClient: (client) => client.setRequests(requestsOf(started++, connections, cookies)),
      },
      (error, { errors, non2xx, mismatches }) => {
        if (error !== null) return reject(error);
        const elapsedSeconds = (performance.now() - startedMs) / 1000;
        const sorted = Float64Array.from(latenciesMs).sort();
        resolve({
          completed: sorted.length,
          seconds: elapsedSeconds,
          p50Ms: quantile(sorted, 0.5),
          p99Ms: quantile(sorted, 0.99),
          errors,
          non2xx,
          mismatches,
        });
      },
    );
    instance.on("response", (_client, _status, _bytes, milliseconds) => latenciesMs.push(milliseconds));
  });
}

/** Every connection goes round its own share of the cookies; with fewer cookies than connections, they share. */
function requestsOf(connection: number, connections: number, cookies: readonly string[]) {
  const requests = [];
  for (let i = connection % cookies.length; i < cookies.length; i += connections) {
    requests.push({ headers: { cookie: cookies[i] as string } });
  }
  return requests;
}

function quantile(sorted: Float64Array, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}
