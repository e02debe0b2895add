import { isIPv4, isIPv6 } from "node:net";
import { hextets } from "../core/peer.ts";
import type { Binding, Session, SessionClient } from "../core/session.ts";

/** Hextets of an IPv6 address that stay the same in one household or company: /56 is rounded down to whole ones. */
const IPV6_PREFIX_HEXTETS = 3;

/**
 * Whether a session is used by another client than the one that began it: another `User-Agent`, or an address outside
 * the /24 (IPv4) or /48 (IPv6). A session that knows nothing of its client fits everybody.
 */
export function isMismatch(binding: Binding, session: Session, client: SessionClient): boolean {
  const bound = session.client;
  if (binding === "none" || bound === undefined) return false;
  if (binding !== "ip-prefix" && bound.userAgent !== client.userAgent) return true;
  return (
    binding !== "user-agent" && bound.address !== client.address && prefixOf(bound.address) !== prefixOf(client.address)
  );
}

/** The network that an address is bound by, as people write it; what is no address is `unknown`. */
export function networkOf(address: string): string {
  if (isIPv4(address)) return `${prefixOf(address)}.0/24`;
  return isIPv6(address) ? `${prefixOf(address)}::/48` : "unknown";
}

function prefixOf(address: string): string {
  if (isIPv4(address)) return address.slice(0, address.lastIndexOf("."));
  return hextets(address).slice(0, IPV6_PREFIX_HEXTETS).join(":");
}
