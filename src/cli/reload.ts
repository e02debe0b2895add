import { type Environment, loadConfigFile } from "../config/load.ts";
import { ConfigError } from "../config/problems.ts";
import type { Gateway } from "../gateway.ts";
import type { Primary } from "../workers/primary.ts";

/**
 * SIGHUP reads the configuration file again. What cannot be applied is refused as a whole, and the gateway goes on as it
 * was: a mistake in the file must not end anybody's request.
 * @param file `undefined`: the configuration came from the command line, and there is nothing to read.
 */
export function reloadOnSignal(gateway: Gateway | Primary, file: string | undefined, environment: Environment): void {
  process.on("SIGHUP", async () => {
    if (file === undefined) {
      const message = "SIGHUP: the configuration came from the command line, so there is nothing to read again";
      gateway.observer.log.event("warn", "config.nothing-to-reload", message);
      return;
    }
    try {
      await gateway.reload(loadConfigFile(file, environment).config);
    } catch (error) {
      gateway.refuseReload(error instanceof ConfigError ? error.problems : [String(error)]);
    }
  });
}
