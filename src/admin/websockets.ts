import { z } from "zod";
import type { WebSocketList } from "../core/administration.ts";
import { MAX_USER_ID_LENGTH } from "../core/session.ts";
import { action, type Endpoint, handleText, json } from "./endpoint.ts";

const SOCKET = z.strictObject({
  worker: z.int().optional().describe("Which one holds it; absent: there is one process."),
  handle: z.string().nullable().describe("Of the session; null: it was opened without one."),
  user: z.string().nullable(),
  route: z.string(),
  client: z.string().describe("Address of the client."),
  since: z.iso.datetime(),
  bytesIn: z.int().describe("Octets from the client."),
  bytesOut: z.int().describe("Octets from the application."),
  traceId: z.string().describe("Of the handshake."),
});
/** The answer. */
export const WEBSOCKETS = z.strictObject({ count: z.int(), truncated: z.boolean(), websockets: z.array(SOCKET) });
const QUERY = z.strictObject({
  user: z.string().min(1).max(MAX_USER_ID_LENGTH).optional().describe("Id of a user."),
  handle: handleText.optional().describe("Handle of a session, or more of its key."),
});

/** What is open: by user, by session, or all. */
export function webSocketsEndpoint(
  list: (whose: { userId: string | undefined; handle: string | undefined }) => WebSocketList,
): [path: string, endpoint: Endpoint] {
  return [
    "/websockets",
    {
      about: "GET: open WebSockets, newest first; ?user=ID or ?handle=HANDLE: those of a user or a session",
      actions: {
        GET: action({
          about: "open WebSockets of this instance, newest first; 1000 at most",
          query: QUERY,
          answer: WEBSOCKETS,
          reply: ({ query: { user, handle } }) => json(200, list({ userId: user, handle })),
        }),
      },
    },
  ];
}
