import { z } from "zod";
import type { MaybePromise, StoreCheck } from "../core/store.ts";
import type { Observer } from "../observe/observer.ts";
import { type Action, type Endpoint, type Endpoints, json, type Reply } from "./endpoint.ts";
import { renderIndexPage } from "./index-page.ts";
import { renderOpenApi } from "./openapi.ts";

export interface ProbeOptions {
  readonly version: string;
  readonly observer: Observer;
  readonly isDraining: () => boolean;
  readonly checkStore: () => MaybePromise<StoreCheck>;
  readonly isUpstreamOut: () => boolean;
  /** All of them, for the index. */
  readonly endpoints: Endpoints;
}

const STATUS = z.strictObject({ status: z.string() });
const READINESS = STATUS.extend({
  workers: z
    .strictObject({ ready: z.int(), configured: z.int() })
    .optional()
    .describe("How many of them are; absent: there is one process."),
});
const INDEX = z.strictObject({ coatcheck: z.string(), endpoints: z.record(z.string(), z.string()) });

/** What load balancers, Prometheus and the curious ask: the index, the probes and the metrics. */
export function probeEndpoints(options: ProbeOptions): [path: string, endpoint: Endpoint][] {
  const { version, observer, isDraining, checkStore, isUpstreamOut, endpoints } = options;
  const index = ({ wantsPage }: { readonly wantsPage: boolean }): Reply => {
    const abouts = Object.fromEntries([...endpoints].map(([path, { about }]) => [path, about]));
    return wantsPage ? renderIndexPage(version, endpoints) : json(200, { coatcheck: version, endpoints: abouts });
  };
  const readiness = async () => {
    if (isDraining()) return json(503, { status: "draining" });
    if (isUpstreamOut()) return json(503, { status: "no target of an upstream is in service" });
    const store = await checkStore();
    return store.ok ? json(200, { status: "ok" }) : json(503, { status: "the session store does not answer" });
  };
  const metrics = async () => ({
    status: 200,
    type: observer.metrics.contentType,
    body: await observer.metrics.render(),
  });
  return [
    ["/", get({ about: "this index", answer: INDEX, page: true, reply: index })],
    [
      "/livez",
      {
        ...get({ about: "200 while the process runs", answer: STATUS, reply: () => json(200, { status: "ok" }) }),
        open: true,
      },
    ],
    [
      "/readyz",
      {
        ...get({
          about: "200 while requests are welcome: the store answers and nothing is being shut down; 503 otherwise",
          answer: READINESS,
          statuses: {
            503: {
              when: "the store does not answer, no worker serves, the gateway is shutting down, or an upstream with health.readiness is out",
              answer: READINESS,
            },
          },
          reply: readiness,
        }),
        open: true,
      },
    ],
    [
      "/openapi.json",
      get({
        about: "what is here, as OpenAPI 3.1",
        answer: z.looseObject({ openapi: z.string() }),
        reply: () => json(200, renderOpenApi(version, endpoints)),
      }),
    ],
    ["/metrics", get({ about: "metrics, OpenMetrics text", answer: "application/openmetrics-text", reply: metrics })],
  ];
}

function get(init: Action): Endpoint {
  return { about: init.about, actions: { GET: init } };
}
