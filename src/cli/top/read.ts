import type { ExchangeRecord } from "../../observe/record.ts";
import { type Admin, askAdmin, callAdmin } from "../admin.ts";
import { CommandError } from "../arguments.ts";
import { parseOpenMetrics } from "../open-metrics.ts";
import { type Failure, isOfCoatcheck, type Reading } from "./figures.ts";

/** A gateway that answers no sooner is in trouble itself, and whoever looks on should know. */
const ANSWER_TIMEOUT_MS = 5_000;
const ERRORS = 20;

/** Asks the gateway for its numbers. @throws CommandError when there is no answer, or it is no Coatcheck's. */
export async function read(admin: Admin): Promise<Reading> {
  const timeoutMs = ANSWER_TIMEOUT_MS;
  const [{ status, text }, { exchanges }] = await Promise.all([
    askAdmin(admin, { method: "GET", path: "/metrics", timeoutMs }),
    callAdmin<{ exchanges: readonly ExchangeRecord[] }>(admin, {
      method: "GET",
      path: `/debug/exchanges?ring=errors&limit=${ERRORS}`,
      timeoutMs,
    }),
  ]);
  const at = Date.now();
  const scrape = parseOpenMetrics(status === 200 ? text : "");
  if (!isOfCoatcheck(scrape))
    throw new CommandError(`what answers at ${admin.url} is not the admin listener of Coatcheck (status ${status})`);
  return { scrape, errors: exchanges.map(failureOf), at };
}

function failureOf({ time, traceId, request, route, response, error }: ExchangeRecord): Failure {
  return {
    time,
    traceId,
    method: request.method,
    path: request.path,
    route: route ?? "none",
    status: response.status,
    cause: error?.type,
    message: error?.message,
  };
}
