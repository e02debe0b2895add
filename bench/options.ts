import { parseArgs } from "node:util";
import { PEERS, type Peer } from "./peers.ts";

export interface Options {
  readonly peers: readonly Peer[];
  readonly rounds: number;
  /** Measured, for each peer and round. */
  readonly seconds: number;
  /** Load before the measured window, so that the code is compiled and the connections are open. */
  readonly warmUpSeconds: number;
  /** How often observability is switched on and off within one process; 0: not at all. */
  readonly switches: number;
  readonly connections: number;
  readonly sessions: number;
  /** Where V8 CPU profiles go. */
  readonly profile: string | undefined;
  readonly keepsResults: boolean;
}

/** The command line is not understood. */
export class UsageError extends Error {}

export const USAGE = `Usage: node bench/run.ts [options]

Options:
  --only NAMES        peers, with commas: ${PEERS.map((peer) => peer.name).join(", ")}
  --rounds N          rounds over all peers; the median is reported (default 3)
  --seconds N         measured seconds, each peer and round (default 8)
  --warm-up N         seconds of load before that (default 3)
  --switches N        times that observability is switched on and off within one process (default 100)
  --connections N     connections of the load generator (default 50)
  --sessions N        sessions that the requests are spread over (default 200)
  --profile FOLDER    write a CPU profile of each peer there; slows them down, so the results are not kept
  --no-results        leave bench/results as it is
  --help
`;

/** @returns `undefined` when help was asked for. */
export function readOptions(args: readonly string[]): Options | undefined {
  const values = parse(args);
  if (values.help) return undefined;
  return {
    peers: selected(values.only),
    rounds: whole("rounds", values.rounds, 100),
    seconds: whole("seconds", values.seconds, 600),
    warmUpSeconds: whole("warm-up", values["warm-up"], 600),
    switches: whole("switches", values.switches, 1000, 0),
    connections: whole("connections", values.connections, 1000),
    sessions: whole("sessions", values.sessions, 100_000),
    profile: values.profile,
    keepsResults: !values["no-results"] && values.profile === undefined,
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        only: { type: "string" },
        rounds: { type: "string", default: "3" },
        seconds: { type: "string", default: "8" },
        "warm-up": { type: "string", default: "3" },
        switches: { type: "string", default: "100" },
        connections: { type: "string", default: "50" },
        sessions: { type: "string", default: "200" },
        profile: { type: "string" },
        "no-results": { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function selected(only: string | undefined): readonly Peer[] {
  if (only === undefined) return PEERS;
  const names = new Set(only.split(",").map((name) => name.trim()));
  for (const name of names) {
    if (!PEERS.some((peer) => peer.name === name)) throw new UsageError(`--only: there is no peer "${name}"`);
  }
  return PEERS.filter((peer) => names.has(peer.name));
}

function whole(name: string, text: string, max: number, min = 1): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : -1;
  if (value < min || value > max) throw new UsageError(`--${name} must be a whole number from ${min} to ${max}`);
  return value;
}
