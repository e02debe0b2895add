import type { Exchange, StripClass, WriteBackCommand } from "../core/exchange.ts";
import type { ConnectionRefusal } from "../core/limits.ts";
import { networkOf } from "../core/peer.ts";
import type { Log } from "./logging.ts";
import { ATTRIBUTES as A } from "./names.ts";
import { Throttle } from "./throttle.ts";

/** Lines about things that somebody else decides how often to do: clients and applications. */

/** Requests that tried to set or to remove what only the gateway may say. */
export class SpoofAttempts {
  readonly #throttle: Throttle<Exchange>;

  constructor(log: Log) {
    this.#throttle = new Throttle((exchange, suppressed) =>
      log.requestEvent(
        "warn",
        "security.spoof-attempt",
        "a request tried to forge or remove an identity header",
        exchange,
        {
          classes: spoofClasses(exchange.stripped ?? {}),
          names: exchange.spoofedNames,
          suppressed,
        },
      ),
    );
  }

  note(exchange: Exchange): void {
    this.#throttle.note(networkOf(exchange.clientAddress), exchange);
  }

  close(): void {
    this.#throttle.close();
  }
}

function spoofClasses({ managed, alias, connection, internal }: Partial<Record<StripClass, number>>) {
  return { managed, alias, connection, internal };
}

/** Requests that another proxy asked about, and that were refused for what they are. */
export class RefusedVerifications {
  readonly #throttle: Throttle<Exchange>;

  constructor(log: Log) {
    this.#throttle = new Throttle((exchange, suppressed) =>
      log.requestEvent(
        "warn",
        "verification.refused",
        "a request that another proxy asked about was refused",
        exchange,
        {
          [A.verification]: exchange.verification?.protocol,
          reason: exchange.errorMessage ?? "",
          suppressed,
        },
      ),
    );
  }

  note(exchange: Exchange): void {
    if (exchange.decision === "undecided" && exchange.error !== undefined)
      this.#throttle.note(networkOf(exchange.clientAddress), exchange);
  }

  close(): void {
    this.#throttle.close();
  }
}

interface Refusal {
  readonly exchange: Exchange;
  readonly command?: WriteBackCommand;
  readonly reason: string;
}

const REFUSED: ReadonlySet<string> = new Set(["not-allowed", "malformed", "conflict", "failed"]);

/** Session commands of applications that were not obeyed. */
export class RefusedWriteBacks {
  readonly #throttle: Throttle<Refusal>;

  constructor(log: Log) {
    this.#throttle = new Throttle(({ exchange, command, reason }, suppressed) =>
      log.requestEvent("warn", "write-back.refused", "a session command was not obeyed", exchange, {
        upstream: exchange.upstream,
        command,
        reason,
        keys: reason === "keys-dropped" ? exchange.writeBackDroppedNames : undefined,
        error_message: reason === "keys-dropped" ? undefined : exchange.errorMessage,
        suppressed,
      }),
    );
  }

  note(exchange: Exchange): void {
    for (const { command, result } of exchange.writeBack ?? [])
      if (REFUSED.has(result)) this.#note({ exchange, command, reason: result });
    if (exchange.writeBackDropped > 0) this.#note({ exchange, reason: "keys-dropped" });
  }

  close(): void {
    this.#throttle.close();
  }

  #note(refusal: Refusal): void {
    this.#throttle.note(`${refusal.exchange.route?.id} ${refusal.command} ${refusal.reason}`, refusal);
  }
}

/** Connections that were closed because there were too many. */
export class RefusedConnections {
  readonly #throttle: Throttle<{ readonly reason: ConnectionRefusal; readonly address: string }>;

  constructor(log: Log) {
    this.#throttle = new Throttle(({ reason, address }, suppressed) =>
      log.event("warn", "connections.refused", "a connection was refused: there are too many", {
        reason,
        "client.address": address,
        suppressed,
      }),
    );
  }

  note(reason: ConnectionRefusal, address: string): void {
    this.#throttle.note(`${reason} ${networkOf(address)}`, { reason, address });
  }

  close(): void {
    this.#throttle.close();
  }
}
