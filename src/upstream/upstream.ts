import { isIP } from "node:net";
import { ProxyError } from "../core/errors.ts";
import type { Exchange } from "../core/exchange.ts";
import type { SessionKey } from "../core/session.ts";
import type {
  Choice,
  EjectionReason,
  EndpointName,
  QueueRefusal,
  RetryReason,
  UpstreamFigures,
  UpstreamObserver,
  UpstreamSettings,
  UpstreamSummary,
} from "../core/upstream.ts";
import { Addresses } from "./addresses.ts";
import { byHash, byLoad, byTurns, hash32 } from "./balance.ts";
import { Endpoint, type Target, targetOf, type UpstreamTls } from "./endpoint.ts";
import { HealthChecks } from "./health-checks.ts";
import { RetryBudget } from "./retry-budget.ts";

export interface UpstreamMade {
  readonly settings: UpstreamSettings;
  readonly tls: UpstreamTls | undefined;
}

/** Whoever wants to send a request. */
export interface Applicant {
  readonly sessionKey: SessionKey | undefined;
  readonly exchange: Exchange;
  /** What it has been tried with; another is wanted. */
  readonly tried: readonly Endpoint[] | undefined;
  /** Called later than `acquire`, never by it. */
  granted(endpoint: Endpoint): void;
  refused(error: ProxyError): void;
}

interface Waiting {
  readonly applicant: Applicant;
  /** The target of its session: it waits for that one. */
  readonly pinned: Endpoint | undefined;
  readonly since: number;
  readonly timer: NodeJS.Timeout;
}

/** How long names are waited for at the start. */
const FIRST_ANSWER_TIMEOUT_MS = 5_000;

/**
 * The application behind a route: its targets, which of them are in service, and who waits for a connection. One target
 * without a name to resolve costs a comparison a request.
 */
export class Upstream {
  readonly idleTimeoutMs: number;
  /** What it was made with. */
  readonly made: UpstreamMade;
  readonly #settings: UpstreamSettings;
  readonly #observer: UpstreamObserver;
  /** Where there is nothing to choose. */
  readonly #only: Endpoint | undefined;
  readonly #targets: readonly Target[];
  readonly #budget: RetryBudget | undefined;
  readonly #names: Addresses[] = [];
  readonly #checks = new Map<Endpoint, HealthChecks>();
  readonly #waiting = new Map<Applicant, Waiting>();
  readonly #draining = new Set<Endpoint>();
  #endpoints: Endpoint[] = [];
  #inService: readonly Endpoint[] = [];
  #isPanic = false;
  #hasBegun = false;
  #isClosing = false;

  constructor(made: UpstreamMade, observer: UpstreamObserver) {
    const { targets, resolve, retries, idleTimeoutMs } = made.settings;
    this.made = made;
    this.#settings = made.settings;
    this.#observer = observer;
    this.idleTimeoutMs = idleTimeoutMs;
    this.#targets = targets.map(targetOf);
    const isNamed = (target: Target) => resolve !== undefined && isIP(target.host.replace(/^\[|\]$/g, "")) === 0;
    for (const target of this.#targets) if (!isNamed(target)) this.#add(target);
    const [first, second] = this.#targets;
    if (first !== undefined && second === undefined && !isNamed(first)) this.#only = this.#endpoints[0];
    this.#budget = retries && new RetryBudget(retries);
    if (resolve !== undefined)
      for (const target of this.#targets.filter(isNamed))
        this.#names.push(
          new Addresses({
            ...resolve,
            host: target.host,
            onChange: (addresses) => this.#resolved(target, addresses),
            onFailure: (failure, isFirst) => observer.resolutionFailed(target.address, failure, isFirst),
          }),
        );
    this.#look();
  }

  /** Asks for the addresses of names, and waits for the first answers, but not for long. */
  async begin(): Promise<void> {
    if (this.#names.length === 0 || this.#hasBegun) return;
    this.#hasBegun = true;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, FIRST_ANSWER_TIMEOUT_MS);
    });
    await Promise.race([Promise.all(this.#names.map((name) => name.begin())), late]);
    clearTimeout(timer);
  }

  /** `host:port` of the targets. */
  get addresses(): readonly string[] {
    return this.#targets.map(({ address }) => address);
  }

  /** Requests that wait for a connection. */
  get queued(): number {
    return this.#waiting.size;
  }

  /** No target is in service, so that all get requests. */
  get isPanic(): boolean {
    return this.#isPanic;
  }

  /** Whether requests may go to this `host:port`. */
  isAt(address: string): boolean {
    return this.#targets.some((target) => target.address === address);
  }

  /** Whether a target is in service. */
  get isUp(): boolean {
    return this.#inService.length > 0;
  }

  /** Whether `/readyz` is to say so. */
  get gatesReadiness(): boolean {
    return this.#settings.health?.readiness === true;
  }

  /** By target. */
  figures(): UpstreamFigures["targets"] {
    return this.#targets.map((target) => {
      const endpoints = this.#endpoints.filter((endpoint) => endpoint.target === target);
      const leaving = [...this.#draining].filter((endpoint) => endpoint.target === target);
      return {
        address: target.address,
        active: [...endpoints, ...leaving].reduce((sum, { active }) => sum + active, 0),
        inService: endpoints.filter(({ isInService }) => isInService).length,
        endpoints: endpoints.length,
      };
    });
  }

  summary(routes: readonly string[]): UpstreamSummary {
    const all = [...this.#endpoints, ...this.#draining];
    return {
      routes,
      balance: this.#only === undefined ? this.#settings.balance : null,
      panic: this.#isPanic,
      queued: this.queued,
      targets: this.#targets.map((target) => ({
        address: target.address,
        scheme: target.scheme,
        weight: target.weight,
        endpoints: all.filter((endpoint) => endpoint.target === target).map((endpoint) => endpoint.summary()),
      })),
    };
  }

  /**
   * A place for a request, which `release` gives back. What becomes of the choice is in the exchange.
   * @returns `undefined`: none is free. Then `granted` or `refused` is called, unless `withdraw` comes first.
   * @throws ProxyError `connection_limit_reached` (503) when too many wait, `dns_error` when no address is known.
   */
  acquire(applicant: Applicant): Endpoint | undefined {
    const only = this.#only;
    if (only !== undefined) {
      if (only.isFree) {
        only.active++;
        return only;
      }
      return this.#wait(applicant, undefined);
    }
    if (this.#budget !== undefined && applicant.tried === undefined) this.#budget.request(performance.now());
    return this.#acquireOneOf(applicant, true);
  }

  #acquireOneOf(applicant: Applicant, isNew: boolean): Endpoint | undefined {
    const { tried } = applicant;
    const candidates = this.#isPanic ? this.#endpoints : this.#inService;
    const hasOther = tried === undefined || candidates.some((endpoint) => !tried.includes(endpoint));
    const chosen = this.#choose(applicant.sessionKey, hasOther ? tried : undefined);
    if (chosen.endpoint?.isFree) {
      chosen.endpoint.active++;
      applicant.exchange.upstreamChoice = chosen.choice;
      return chosen.endpoint;
    }
    if (!isNew) return undefined;
    if (this.#endpoints.length === 0) throw new ProxyError("dns_error", "the name of the upstream has no address");
    return this.#wait(applicant, chosen.endpoint);
  }

  /** What `acquire` would choose: for an operator. */
  preview(key: SessionKey | undefined): { readonly address: string; readonly why: string } {
    if (this.#only !== undefined) return { address: this.#only.target.address, why: "only" };
    if (key !== undefined && this.#settings.balance === "session-hash") {
      const { endpoint, choice } = this.#choose(key, undefined);
      if (endpoint !== undefined) return { address: nameOf(endpoint), why: choice };
    }
    return {
      address: this.addresses.join(" or "),
      why: this.#isPanic ? "panic: no target is in service, so any" : `by ${this.#byKey(key)}`,
    };
  }

  #byKey(key: SessionKey | undefined): Choice {
    const { balance } = this.#settings;
    return balance === "session-hash" && key === undefined ? "least-requests" : balance;
  }

  /** @returns for a session the one that it belongs to, free or not; otherwise one that is free. */
  #choose(
    key: SessionKey | undefined,
    tried: readonly Endpoint[] | undefined,
  ): { readonly endpoint: Endpoint | undefined; readonly choice: Choice } {
    const candidates = this.#isPanic ? this.#endpoints : this.#inService;
    const isNew = tried === undefined ? always : (endpoint: Endpoint) => !tried.includes(endpoint);
    const by = this.#byKey(key);
    if (by === "session-hash" && key !== undefined) {
      const hash = hash32(key);
      const own = byHash(this.#endpoints, hash, always);
      if (own !== undefined && isNew(own) && (this.#isPanic || own.isInService))
        return { endpoint: own, choice: this.#isPanic ? "panic" : by };
      return {
        endpoint: byHash(candidates, hash, isNew),
        choice: this.#isPanic ? "panic" : "session-fallback",
      };
    }
    const may = tried === undefined ? isFree : (endpoint: Endpoint) => endpoint.isFree && isNew(endpoint);
    const choose = by === "round-robin" ? byTurns : byLoad;
    return { endpoint: choose(candidates, may), choice: this.#isPanic ? "panic" : by };
  }

  /** Whether a request that failed may be sent to another target, or to the same one over another connection. */
  mayRetry(
    reason: RetryReason,
    status: number | undefined,
    { exchange, tried = [] }: Pick<Applicant, "exchange" | "tried">,
  ): boolean {
    const { retries } = this.#settings;
    // A request that an idle connection did not take costs nobody anything: it is the same request.
    if (reason === "idle-closed" && exchange.upstreamRetries === 0) return true;
    if (retries === undefined || this.#budget === undefined) return false;
    if (!retries.on.includes(status ?? reason) || exchange.upstreamRetries >= retries.attempts) return false;
    const candidates = this.#isPanic ? this.#endpoints : this.#inService;
    if (!candidates.some((endpoint) => !tried.includes(endpoint))) return false;
    if (this.#budget.take(performance.now())) return true;
    exchange.retryRefused = true;
    return false;
  }

  #wait(applicant: Applicant, pinned: Endpoint | undefined): undefined {
    const { queue } = this.#settings;
    if (this.#waiting.size >= queue.size) throw this.#refusal(applicant, "full");
    const timer = setTimeout(() => {
      this.#leave(applicant);
      applicant.refused(this.#refusal(applicant, "timeout"));
    }, queue.timeoutMs);
    this.#waiting.set(applicant, { applicant, pinned, since: performance.now(), timer });
  }

  #refusal({ exchange }: Applicant, why: QueueRefusal): ProxyError {
    exchange.queueRefused = why;
    const text = why === "full" ? "too many requests wait for a connection" : "no connection became free in time";
    return new ProxyError("connection_limit_reached", `${text} (maxConnections of ${this.addresses.join(", ")})`);
  }

  /** Ends the wait of a request whose client has gone. */
  withdraw(applicant: Applicant): void {
    if (this.#waiting.size > 0) this.#leave(applicant);
  }

  #leave(applicant: Applicant): void {
    const waiting = this.#waiting.get(applicant);
    if (waiting === undefined) return;
    clearTimeout(waiting.timer);
    this.#waiting.delete(applicant);
    applicant.exchange.upstreamWaitMs += performance.now() - waiting.since;
  }

  /** A request is over, and with it its use of a connection. Once for each that was acquired. */
  release(endpoint: Endpoint): void {
    endpoint.active--;
    if (endpoint.isDraining && endpoint.active === 0) this.#draining.delete(endpoint);
    if (this.#waiting.size > 0) this.#serve(endpoint);
  }

  /** Whoever waits longest and can take the place gets it. */
  #serve(endpoint: Endpoint): void {
    for (const { applicant, pinned } of this.#waiting.values()) {
      if (!endpoint.isFree) return;
      if (pinned !== undefined && pinned !== endpoint && pinned.isInService && !pinned.isDraining) continue;
      let granted = this.#only;
      if (granted === undefined) granted = this.#acquireOneOf(applicant, false);
      else granted.active++;
      if (granted === undefined) continue;
      this.#leave(applicant);
      applicant.granted(granted);
    }
  }

  /** The head of an answer has come. */
  answered(endpoint: Endpoint, status: number): void {
    const { ejection } = this.#settings;
    if (ejection === undefined) return;
    endpoint.failures = 0;
    if (status < 500) {
      if (endpoint.serverErrors === 0 && endpoint.ejections === 0 && !endpoint.isSpared) return;
      endpoint.serverErrors = 0;
      endpoint.isSpared = false;
      // It has been well for longer than it was away.
      const { returnedAt = 0, ejections } = endpoint;
      if (ejections > 0 && performance.now() - returnedAt > this.#ejectionMs(ejections)) endpoint.ejections = 0;
      return;
    }
    endpoint.serverErrors++;
    if (ejection.serverErrors > 0 && endpoint.serverErrors >= ejection.serverErrors)
      this.#eject(endpoint, "server-errors", `status ${status}`);
  }

  /** No answer came. @param failure why, for the log. */
  failed(endpoint: Endpoint, failure: string): void {
    const { ejection } = this.#settings;
    if (ejection === undefined) return;
    endpoint.failures++;
    if (ejection.failures > 0 && endpoint.failures >= ejection.failures) this.#eject(endpoint, "failures", failure);
  }

  #eject(endpoint: Endpoint, reason: EjectionReason, failure: string): void {
    if (!endpoint.isInService || endpoint.isDraining) return;
    const observer = this.#observer;
    if (this.#inService.length < 2) {
      // There would be nobody left to ask: whoever fails now and then is better than nobody.
      if (!endpoint.isSpared) observer.spared(describe(endpoint), reason);
      endpoint.isSpared = true;
      return;
    }
    const forMs = this.#ejectionMs(++endpoint.ejections);
    endpoint.ejectedUntil = performance.now() + forMs;
    endpoint.reason = reason;
    endpoint.ejection = setTimeout(() => this.#endEjection(endpoint), forMs).unref();
    this.#look();
    observer.ejected(describe(endpoint), reason, forMs, this.#inService.length, failure);
  }

  /** Longer each time. */
  #ejectionMs(ejections: number): number {
    const { forMs = 0, atMostMs = 0 } = this.#settings.ejection ?? {};
    return Math.min(forMs * 2 ** (ejections - 1), atMostMs);
  }

  #endEjection(endpoint: Endpoint): void {
    const { ejection } = this.#settings;
    endpoint.ejectedUntil = undefined;
    // On probation: one more failure, and it is out again.
    if (ejection !== undefined && ejection.failures > 0) endpoint.failures = ejection.failures - 1;
    endpoint.serverErrors = endpoint.reason === "server-errors" ? Math.max(0, (ejection?.serverErrors ?? 0) - 1) : 0;
    if (endpoint.isHealthy) this.#return(endpoint, "time");
    else endpoint.reason = "health-check";
  }

  #return(endpoint: Endpoint, reason: "time" | "health-check"): void {
    endpoint.reason = undefined;
    endpoint.returnedAt = performance.now();
    endpoint.credit = 0;
    this.#look();
    this.#observer.returned(describe(endpoint), reason);
  }

  #checked(endpoint: Endpoint, before: boolean, ok: boolean, detail: string): void {
    const observer = this.#observer;
    observer.checked(describe(endpoint), ok);
    if (endpoint.isHealthy === before) return;
    if (!endpoint.isHealthy) {
      const wasInService = endpoint.ejectedUntil === undefined;
      if (wasInService) endpoint.reason = "health-check";
      this.#look();
      if (wasInService) observer.ejected(describe(endpoint), "health-check", undefined, this.#inService.length, detail);
    } else if (endpoint.ejectedUntil === undefined) this.#return(endpoint, "health-check");
  }

  /** After every change of what is in service. */
  #look(): void {
    this.#inService = this.#endpoints.filter(({ isInService }) => isInService);
    const isPanic = this.#endpoints.length > 0 && this.#inService.length === 0;
    if (isPanic !== this.#isPanic) {
      this.#isPanic = isPanic;
      this.#observer.panic(isPanic, this.addresses);
    }
    for (const endpoint of this.#isPanic ? this.#endpoints : this.#inService)
      if (this.#waiting.size > 0) this.#serve(endpoint);
  }

  #add(target: Target, address?: string): void {
    const endpoint = new Endpoint(target, this.#settings, this.made.tls, address);
    this.#endpoints = [...this.#endpoints, endpoint];
    const { health } = this.#settings;
    if (health === undefined) return;
    let before = endpoint.isHealthy;
    const onChecked = (ok: boolean, detail: string): void => {
      const was = before;
      before = endpoint.isHealthy;
      this.#checked(endpoint, was, ok, detail);
    };
    this.#checks.set(endpoint, new HealthChecks(endpoint, health, onChecked));
  }

  /** A name has other addresses than before: those that are new take part, those that are gone end what they have begun. */
  #resolved(target: Target, addresses: readonly string[]): void {
    const before = this.#endpoints.filter((endpoint) => endpoint.target === target);
    const peerOf = (address: string) => `${isIP(address) === 6 ? `[${address}]` : address}:${target.port}`;
    const peers = addresses.map(peerOf);
    const removed = before.filter(({ peer = "" }) => !peers.includes(peer));
    const added = addresses.filter((address) => !before.some(({ peer }) => peer === peerOf(address)));
    for (const address of added) this.#add(target, address);
    for (const endpoint of removed) this.#retire(endpoint);
    this.#look();
    const names = removed.map(({ peer = "" }) => peer);
    this.#observer.resolved(target.address, peers, added.map(peerOf), names);
  }

  #retire(endpoint: Endpoint): void {
    this.#endpoints = this.#endpoints.filter((other) => other !== endpoint);
    this.#checks.get(endpoint)?.close();
    this.#checks.delete(endpoint);
    endpoint.isDraining = true;
    if (endpoint.active > 0) this.#draining.add(endpoint);
    void endpoint.drain();
  }

  #stop(): void {
    for (const name of this.#names) name.close();
    for (const checks of this.#checks.values()) checks.close();
  }

  /** Ends the connections, those in use included: whoever calls this has waited for the requests before, or has not the time. */
  async close(): Promise<void> {
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.#stop();
    for (const { applicant } of this.#waiting.values()) {
      this.#leave(applicant);
      applicant.refused(new ProxyError("destination_unavailable", "the gateway is about to end"));
    }
    await Promise.all([...this.#endpoints, ...this.#draining].map((endpoint) => endpoint.close()));
  }
}

function always(): boolean {
  return true;
}

function isFree(endpoint: Endpoint): boolean {
  return endpoint.isFree;
}

function describe({ target, peer }: Endpoint): EndpointName {
  return { address: target.address, peer };
}

function nameOf({ target, peer }: Endpoint): string {
  return peer === undefined ? target.address : `${target.address} (${peer})`;
}
