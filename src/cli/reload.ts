import type { Gateway } from "../gateway.ts";

/**
 * SIGHUP reads the configuration again. One that makes no sense is refused as a whole, and the gateway goes on as it was: a
 * mistake in the file must not end anybody's request.
 */
export function reloadOnSignal(gateway: Pick<Gateway, "reread">): void {
  process.on("SIGHUP", () => void gateway.reread("signal"));
}
