import { lookup as dnsLookup, type LookupAddress, type LookupOptions } from "node:dns";
import { BlockList } from "node:net";
import { UsageError } from "../cli/arguments.ts";

/**
 * Traffic is for a gateway that is there to be tried out, never for anybody else's server. So its target is this
 * machine or the one other name below, and whatever address a name leads to has to be one that the internet does not
 * route.
 */

/**
 * The service of that name on the network of examples/compose.yaml. A name without a dot is no name of the public DNS;
 * a search domain could still complete it, hence the check of the address.
 */
const SERVICE_NAMES = ["gateway"];
const LOOPBACK_NAME = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

const unrouted = new BlockList();
unrouted.addSubnet("127.0.0.0", 8);
unrouted.addSubnet("10.0.0.0", 8);
unrouted.addSubnet("172.16.0.0", 12);
unrouted.addSubnet("192.168.0.0", 16);
unrouted.addAddress("::1", "ipv6");
unrouted.addSubnet("fc00::", 7, "ipv6");

/** @throws UsageError for what traffic may not be sent to. @returns the origin. */
export function parseTarget(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" || url.username !== "" || url.password !== "" || url.pathname !== "/" || url.search)
    throw new UsageError("--target must be a URL such as http://gateway:8080, without user, path and query");
  if (!LOOPBACK_NAME.test(url.hostname) && !SERVICE_NAMES.includes(url.hostname))
    throw new UsageError(
      `--target may be localhost, a loopback address or ${SERVICE_NAMES.join(", ")} (the service in examples/compose.yaml), and nothing else: this is no load generator for other servers`,
    );
  return url.origin;
}

/** Whether an address is of this machine or of a private network. */
export function isUnrouted({ address, family }: LookupAddress): boolean {
  return unrouted.check(address, family === 6 ? "ipv6" : "ipv4");
}

/** `dns.lookup` for connections: fails for a name that leads to the internet. */
export function lookupUnrouted(
  hostname: string,
  options: LookupOptions,
  callback: (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void,
): void {
  dnsLookup(hostname, { ...options, all: true }, (error, addresses) => {
    const [first] = addresses ?? [];
    if (error !== null || first === undefined) return callback(error ?? new Error("no address"), []);
    if (!addresses.every(isUnrouted)) return callback(new Error(`${hostname} is not on a private network`), []);
    return options.all === true ? callback(null, addresses) : callback(null, first.address, first.family);
  });
}
