import { BlockList, isIPv4, isIPv6 } from "node:net";
import { pieceOf } from "./own-copy.ts";

/** At most this many hops of an `X-Forwarded-For` are looked at. */
const MAX_HOPS = 32;

/** The proxies whose `X-Forwarded-*`, `traceparent` and `baggage` are believed. Nobody by default (CVE-2026-40575). */
export class TrustedProxies {
  readonly #list = new BlockList();
  readonly #empty: boolean;

  /** @param cidrs addresses or CIDR blocks, checked by the configuration. */
  constructor(cidrs: readonly string[]) {
    this.#empty = cidrs.length === 0;
    for (const cidr of cidrs) {
      const [address = "", bits] = cidr.split("/");
      const family = isIPv6(address) ? "ipv6" : "ipv4";
      if (bits === undefined) this.#list.addAddress(address, family);
      else this.#list.addSubnet(address, Number(bits), family);
    }
  }

  includes(address: string): boolean {
    if (this.#empty) return false;
    if (isIPv4(address)) return this.#list.check(address, "ipv4");
    return isIPv6(address) && this.#list.check(address, "ipv6");
  }
}

/** How a connection is encrypted. */
export interface Encryption {
  /** Such as `1.3`. */
  readonly version: string;
  /** By its IANA name, such as `TLS_AES_128_GCM_SHA256`. */
  readonly cipher: string;
}

/** What is known of the other end of a connection; made once a connection, not once a request. */
export interface Peer {
  readonly address: string;
  /** The address as RFC 7239 §6 writes it: IPv6 in quotes and brackets. */
  readonly node: string;
  readonly trusted: boolean;
  readonly scheme: "http" | "https";
  /** Absent: the connection is not encrypted. */
  readonly tls: Encryption | undefined;
}

export function describePeer(
  remoteAddress: string | undefined,
  tls: Encryption | undefined,
  trusted: TrustedProxies,
): Peer {
  const address = plainAddress(remoteAddress ?? "");
  return {
    address,
    node: nodeIdentifier(address),
    trusted: trusted.includes(address),
    scheme: tls === undefined ? "http" : "https",
    tls,
  };
}

export function nodeIdentifier(address: string): string {
  if (address === "") return "unknown";
  return address.includes(":") ? `"[${address}]"` : address;
}

/**
 * The address of the client behind trusted proxies: read from the right, the first that is not one of them
 * (oauth2-proxy PR #3478). What is not an address ends the walk: nothing to the left of it can be believed.
 */
export function clientAddressOf(peer: Peer, forwardedFor: string, trusted: TrustedProxies): string {
  let client = peer.address;
  const hops = forwardedFor.split(",", MAX_HOPS + 1);
  if (hops.length > MAX_HOPS) return client;
  for (let i = hops.length - 1; i >= 0; i--) {
    const hop = plainAddress((hops[i] as string).trim());
    if (!isIPv4(hop) && !isIPv6(hop)) break;
    client = hop;
    if (!trusted.includes(hop)) break;
  }
  return pieceOf(forwardedFor, client);
}

/** `::ffff:192.0.2.1`, as a dual-stack socket reports IPv4, becomes `192.0.2.1`; the zone of `fe80::1%eth0` goes. */
export function plainAddress(addressWithZone: string): string {
  const zone = addressWithZone.indexOf("%");
  const address = zone === -1 ? addressWithZone : addressWithZone.slice(0, zone);
  return address.startsWith("::ffff:") && isIPv4(address.slice(7)) ? address.slice(7) : address;
}

/** The eight groups of an IPv6 address, `::` spelled out and without leading zeros. */
export function hextets(address: string): string[] {
  const [head = "", tail] = address.toLowerCase().split("::", 2);
  const groups = (text: string) =>
    text
      .split(":")
      .filter((group) => group !== "")
      .map((group) => group.replace(/^0+(?=.)/, ""));
  const before = groups(head);
  if (tail === undefined) return before;
  const after = groups(tail);
  return [...before, ...new Array<string>(Math.max(0, 8 - before.length - after.length)).fill("0"), ...after];
}

/** Whom an address stands for: who has one of IPv6 has all of its /64. */
export function networkOf(address: string): string {
  return address.includes(":") && isIPv6(address) ? hextets(address).slice(0, 4).join(":") : address;
}
