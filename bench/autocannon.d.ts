/** What the bench uses of autocannon 9, which has no types of its own. */
declare module "autocannon" {
  import type { EventEmitter } from "node:events";

  namespace autocannon {
    interface Request {
      readonly path?: string;
      readonly headers?: Readonly<Record<string, string>>;
    }

    interface Client {
      /** The requests that this connection sends, in turn. */
      setRequests(requests: Request[]): void;
    }

    interface Options {
      readonly url: string;
      readonly connections?: number;
      /** Seconds. */
      readonly duration?: number;
      readonly headers?: Readonly<Record<string, string>>;
      /** Any other response body counts as a mismatch. */
      readonly expectBody?: string;
      readonly setupClient?: (client: Client) => void;
    }

    interface Result {
      /** Connection errors, timeouts included. */
      readonly errors: number;
      readonly non2xx: number;
      readonly mismatches: number;
      /** Seconds. */
      readonly duration: number;
    }

    interface Instance extends EventEmitter {
      on(
        event: "response",
        listener: (client: Client, status: number, bytes: number, milliseconds: number) => void,
      ): this;
    }
  }

  function autocannon(
    options: autocannon.Options,
    done: (error: Error | null, result: autocannon.Result) => void,
  ): autocannon.Instance;
  export default autocannon;
}
