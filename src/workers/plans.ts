/**
 * Who answers what is asked at the admin listener of several workers:
 * `one`: any worker, because each would say the same (the store is one for all).
 * `first`: the first of all that knows.
 * `chosen`: the worker that `?worker=` names.
 * Each of the others is put together in its own way, by `fan-out.ts`.
 */
export type Plan =
  | "one"
  | "first"
  | "chosen"
  | "alive"
  | "readiness"
  | "metrics"
  | "exchanges"
  | "watches"
  | "watch"
  | "unwatch"
  | "settings"
  | "adjust"
  | "dump"
  | "reload"
  | "websockets"
  | "upstreams";

/** By the path of the endpoint and the method. Where something is not here, one worker answers, and be it that there is no such thing. */
export const PLANS: Readonly<Record<string, Readonly<Partial<Record<string, Plan>>>>> = {
  "/": { GET: "one" },
  "/openapi.json": { GET: "one" },
  "/livez": { GET: "alive" },
  "/readyz": { GET: "readiness" },
  "/metrics": { GET: "metrics" },
  "/debug/exchanges": { GET: "exchanges" },
  "/debug/watch": { GET: "watches", POST: "watch", DELETE: "unwatch" },
  "/debug/explain": { POST: "first" },
  "/debug/dump": { GET: "dump" },
  "/debug/profile": { POST: "chosen" },
  "/debug/heap": { POST: "chosen" },
  "/observe": { GET: "settings", POST: "adjust" },
  "/reload": { POST: "reload" },
  "/sessions": { GET: "one", DELETE: "one" },
  "/sessions/{handle}": { GET: "one", DELETE: "one" },
  "/store/check": { POST: "one" },
  "/upstreams": { GET: "upstreams" },
  "/websockets": { GET: "websockets" },
};

export function planFor(method: string, path: string): Plan {
  return PLANS[path]?.[method === "HEAD" ? "GET" : method] ?? "one";
}
