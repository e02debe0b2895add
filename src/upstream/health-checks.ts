import type { HealthSettings } from "../core/upstream.ts";
import type { Endpoint } from "./endpoint.ts";
import { upstreamError } from "./errors.ts";

/** Intervals differ by so much, or all gateways would ask at the same moment. */
const JITTER = 0.2;

/**
 * Asks an endpoint again and again whether it is well. The first answer counts alone: until then it is believed to be, and
 * a start must not wait for three of them.
 */
export class HealthChecks {
  readonly #endpoint: Endpoint;
  readonly #settings: HealthSettings;
  readonly #onChecked: (ok: boolean, detail: string) => void;
  #timer: NodeJS.Timeout | undefined;
  #isFirst = true;
  #isClosed = false;
  /** In a row, of answers that say the opposite of what is believed. */
  #contrary = 0;

  /** @param onChecked told of each answer, after `endpoint.isHealthy` has become what it says, or not yet. */
  constructor(endpoint: Endpoint, settings: HealthSettings, onChecked: (ok: boolean, detail: string) => void) {
    this.#endpoint = endpoint;
    this.#settings = settings;
    this.#onChecked = onChecked;
    void this.#check();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  async #check(): Promise<void> {
    const { path, host, timeoutMs, status, intervalMs } = this.#settings;
    let ok = false;
    let detail: string;
    try {
      const answered = await this.#endpoint.ask(path, host ?? this.#endpoint.target.address, timeoutMs);
      ok = answered >= status[0] && answered <= status[1];
      detail = `status ${answered}`;
    } catch (error) {
      detail = upstreamError(error, false).code;
    }
    if (this.#isClosed) return;
    this.#believe(ok);
    this.#endpoint.lastCheck = { at: new Date().toISOString(), ok, detail };
    this.#onChecked(ok, detail);
    const wait = intervalMs * (1 + JITTER * (2 * Math.random() - 1));
    this.#timer = setTimeout(() => void this.#check(), wait).unref();
  }

  #believe(ok: boolean): void {
    const endpoint = this.#endpoint;
    const { healthyAfter, unhealthyAfter } = this.#settings;
    this.#contrary = ok === endpoint.isHealthy ? 0 : this.#contrary + 1;
    if (this.#contrary >= (this.#isFirst ? 1 : ok ? healthyAfter : unhealthyAfter)) {
      endpoint.isHealthy = ok;
      this.#contrary = 0;
    }
    this.#isFirst = false;
  }
}
