import { z } from "zod";
import type { Profiler } from "../observe/profiler.ts";
import { action, BadCall, type Endpoint, type Reply, wholeText } from "./endpoint.ts";

const MAX_SECONDS = 60;

const seconds = z
  .int({ error: `must be a whole number from 1 to ${MAX_SECONDS}` })
  .min(1)
  .max(MAX_SECONDS)
  .describe("How long to watch.");

const OF_WORKER = z.strictObject({
  worker: wholeText(1, 256)
    .optional()
    .describe("Number of the worker; absent: any of them. Says nothing where there is one process."),
});
const CPU = z.strictObject({ seconds });
const HEAP = z.union(
  [
    z.strictObject({ seconds }),
    z.strictObject({ snapshot: z.literal(true).describe("The whole heap, with every string in it.") }),
  ],
  { error: `must be { "seconds": 1 to ${MAX_SECONDS} } or { "snapshot": true }` },
);

const STATUSES = {
  403: "the listener has no token, and this is not for everybody on the machine",
  409: "another profile or snapshot is being taken",
};

const NAMES_ONLY = "names and places of functions, no values";
const EVERYTHING =
  "the memory of the process: tokens of requests in flight, secrets, passwords, session data; keep it as you keep those";

/** V8's profiles. They ask for a token on loopback too: what runs on the same machine need not see them. */
export function profileEndpoints(options: {
  readonly profiler: Profiler;
  readonly hasToken: boolean;
}): [path: string, endpoint: Endpoint][] {
  const { profiler, hasToken } = options;
  const admit = (): void => {
    if (!hasToken) throw new BadCall("set admin.token: without one, this is not given to anybody", 403);
    if (profiler.busy) throw new BadCall("another profile or snapshot is being taken; one at a time", 409);
  };
  const cpuAbout = `POST {"seconds": 1…${MAX_SECONDS}}: where the processor time goes, a .cpuprofile; needs a token`;
  const heapAbout = `POST {"seconds": 1…${MAX_SECONDS}}: what memory is taken by, a .heapprofile; {"snapshot": true}: the whole heap, secrets included, a .heapsnapshot; needs a token`;
  return [
    [
      "/debug/profile",
      {
        about: cpuAbout,
        actions: {
          POST: action({
            about: cpuAbout,
            query: OF_WORKER,
            body: CPU,
            answer: "application/json",
            statuses: STATUSES,
            reply: async ({ body, signal }) => {
              admit();
              return file("cpuprofile", await profiler.cpu(body.seconds, signal), NAMES_ONLY);
            },
          }),
        },
      },
    ],
    [
      "/debug/heap",
      {
        about: heapAbout,
        actions: {
          POST: action({
            about: heapAbout,
            query: OF_WORKER,
            body: HEAP,
            answer: "application/json",
            statuses: STATUSES,
            reply: async ({ body, signal }) => {
              admit();
              if ("snapshot" in body) return file("heapsnapshot", profiler.heapSnapshot(), EVERYTHING);
              return file("heapprofile", await profiler.heapSampling(body.seconds, signal), NAMES_ONLY);
            },
          }),
        },
      },
    ],
  ];
}

function file(extension: string, body: Reply["body"], contains: string): Reply {
  const time = new Date().toISOString().replaceAll(":", "-");
  return {
    status: 200,
    type: "application/json",
    body,
    fields: {
      "content-disposition": `attachment; filename="coatcheck-${time}.${extension}"`,
      "x-coatcheck-contains": contains,
    },
  };
}
