import {
  REFERENCE_PATTERN,
  type Refusal,
  type SessionAdministration,
  type StoreReport,
} from "../core/administration.ts";
import { MAX_USER_ID_LENGTH } from "../core/session.ts";
import { BadCall, type Call, type Endpoint, json, type Reply } from "./endpoint.ts";

/** The sessions of a user: listed, looked at and ended. */
export function sessionEndpoints(sessions: SessionAdministration): [path: string, endpoint: Endpoint][] {
  return [
    [
      "/sessions",
      {
        about:
          "GET ?user=ID: the live sessions of a user; DELETE ?user=ID: ends them all, with &except=HANDLE all but one",
        actions: {
          GET: { parameters: ["user"], reply: async (call) => json(200, await sessions.list(requiredUser(call))) },
          DELETE: {
            parameters: ["user", "except"],
            reply: async (call) => answer(await sessions.endAll(requiredUser(call), kept(call))),
          },
        },
      },
    ],
    [
      "/sessions/{key or handle}",
      {
        about: "GET: one session, redacted; DELETE: ends it; ?user=ID finds it at once",
        actions: {
          GET: { parameters: ["user"], reply: async (call) => answer(await sessions.show(reference(call))) },
          DELETE: { parameters: ["user"], reply: async (call) => answer(await sessions.end(reference(call))) },
        },
      },
    ],
  ];
}

export function storeCheckEndpoint(probeStore: () => Promise<StoreReport>): Endpoint {
  return {
    about: "POST: tries the store with a session of its own and tells what is wrong; 503 when something is",
    actions: {
      POST: {
        parameters: [],
        reply: async () => {
          const report = await probeStore();
          return json(report.ok ? 200 : 503, report);
        },
      },
    },
  };
}

function answer(result: object | Refusal): Reply {
  if (!("refused" in result)) return json(200, result);
  return json(result.refused === "not-found" ? 404 : 409, { error: result.reason });
}

function reference({ name, parameters, signal }: Call) {
  return { prefix: checkedReference(name, "a session"), userId: user(parameters), signal };
}

function kept({ parameters }: Call): string | undefined {
  const except = parameters.get("except");
  return except === null ? undefined : checkedReference(except, "except");
}

function checkedReference(text: string, what: string): string {
  if (!REFERENCE_PATTERN.test(text))
    throw new BadCall(`${what} is named by its handle, 12 characters of A-Z a-z 0-9 - _, or by more of its key`);
  return text;
}

function requiredUser({ parameters }: Call): string {
  const id = user(parameters);
  if (id === undefined) throw new BadCall("say whose sessions: ?user=ID");
  return id;
}

function user(parameters: URLSearchParams): string | undefined {
  const id = parameters.get("user");
  if (id === null) return undefined;
  if (id === "" || id.length > MAX_USER_ID_LENGTH)
    throw new BadCall(`user must have 1 to ${MAX_USER_ID_LENGTH} characters`);
  return id;
}
