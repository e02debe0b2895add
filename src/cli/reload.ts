import { type Environment, loadConfigFile } from "../config/load.ts";
import { stampOfSync } from "../file-watch.ts";
import type { Gateway } from "../gateway.ts";
import type { ConfigSource } from "../reloader.ts";

/** A configuration file, before it is read for the first time. */
export function sourceOf(file: string, environment: Environment): ConfigSource {
  return { file, stamp: stampOfSync(file), read: () => loadConfigFile(file, environment).config };
}

/**
 * SIGHUP reads the configuration again. One that makes no sense is refused as a whole, and the gateway goes on as it was: a
 * mistake in the file must not end anybody's request.
 */
export function reloadOnSignal(gateway: Pick<Gateway, "reread">): void {
  process.on("SIGHUP", () => void gateway.reread("signal"));
}
