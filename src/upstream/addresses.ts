import { lookup, Resolver } from "node:dns/promises";
import type { ResolveSettings } from "../core/upstream.ts";

/** Nobody is asked more often than this, whatever the answer says of its age. */
const SHORTEST_INTERVAL_MS = 1_000;
/** How long one question may take, and how often it is asked. */
const QUESTION_TIMEOUT_MS = 2_000;
const QUESTION_TRIES = 2;

export interface AddressesOptions extends ResolveSettings {
  readonly host: string;
  /** Told of the first answer, and of each that differs from the one before; never of none. */
  readonly onChange: (addresses: readonly string[]) => void;
  /** What was known before goes on. */
  readonly onFailure: (failure: string, isFirst: boolean) => void;
}

/**
 * The addresses of a name, asked for again and again. What the operating system answers has no age, so it is asked once an
 * interval; a DNS server is asked sooner where its answer is valid for less than that.
 */
export class Addresses {
  readonly #options: AddressesOptions;
  readonly #resolver: Resolver | undefined;
  #known = "";
  #hasFailed = false;
  #isClosed = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: AddressesOptions) {
    this.#options = options;
    if (options.servers.length === 0) return;
    this.#resolver = new Resolver({ timeout: QUESTION_TIMEOUT_MS, tries: QUESTION_TRIES });
    this.#resolver.setServers([...options.servers]);
  }

  /** Asks, and goes on asking. Resolves with the first answer, or failure. */
  async begin(): Promise<void> {
    let nextMs = SHORTEST_INTERVAL_MS;
    const { host, intervalMs, onChange, onFailure } = this.#options;
    try {
      const { addresses, validMs } = await this.#ask(host);
      if (this.#isClosed) return;
      this.#hasFailed = false;
      nextMs = Math.max(SHORTEST_INTERVAL_MS, Math.min(intervalMs, validMs));
      const known = addresses.join(" ");
      if (known !== this.#known) {
        this.#known = known;
        onChange(addresses);
      }
    } catch (error) {
      if (this.#isClosed) return;
      const isFirst = !this.#hasFailed;
      this.#hasFailed = true;
      onFailure(codeOf(error), isFirst);
    }
    this.#timer = setTimeout(() => void this.begin(), nextMs).unref();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#resolver?.cancel();
  }

  async #ask(host: string): Promise<{ addresses: string[]; validMs: number }> {
    if (this.#resolver === undefined) {
      const all = await lookup(host, { all: true, order: "verbatim" });
      // An application that has both kinds is the same one twice; the system has put the better one first (RFC 6724).
      const addresses = all.filter(({ family }) => family === all[0]?.family).map(({ address }) => address);
      return { addresses: [...new Set(addresses)].sort(), validMs: Number.POSITIVE_INFINITY };
    }
    const records = await this.#resolver.resolve4(host, { ttl: true }).catch((error: unknown) => {
      if (codeOf(error) !== "ENODATA") throw error;
      return this.#resolver?.resolve6(host, { ttl: true }) ?? [];
    });
    const addresses = records.map(({ address }) => address);
    return { addresses: [...new Set(addresses)].sort(), validMs: 1000 * Math.min(...records.map(({ ttl }) => ttl)) };
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "no answer";
}
