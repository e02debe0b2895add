import slotOf from "cluster-key-slot";
import { Cluster, type Redis } from "ioredis";
import type { RedisAddress, RedisHost } from "../core/redis-url.ts";
import type { StoreServer } from "../core/store.ts";

/** A name for the only server that there is, and one for the owner of slots that nobody owns. */
export const THE_SERVER = "server";
export const NOBODY = "nobody";

/** Which server a command goes to: by name, and as spans and metrics call it. */
export class RedisServers {
  readonly #address: RedisAddress;
  readonly #client: Redis | Cluster;
  readonly #known = new Map<string, StoreServer>();

  constructor(address: RedisAddress, client: Redis | Cluster) {
    this.#address = address;
    this.#client = client;
    // Behind sentinels it may be another one than before.
    client.on("ready", () => this.#known.clear());
  }

  /** `host:port` of the node that owns the key's slot; without a cluster there is one for all keys. */
  nameFor(key: string): string {
    return this.#client instanceof Cluster ? (this.#client.slots[slotOf(key)]?.[0] ?? NOBODY) : THE_SERVER;
  }

  named(name: string): StoreServer {
    let server = this.#known.get(name);
    if (server === undefined) {
      const place = this.#placeOf(name);
      server = {
        system: "redis",
        namespace: String(this.#address.database),
        ...(place && { address: place.host, port: place.port }),
      };
      this.#known.set(name, server);
    }
    return server;
  }

  #placeOf(name: string): RedisHost | undefined {
    const client = this.#client;
    if (client instanceof Cluster) return name === NOBODY || name === THE_SERVER ? undefined : hostAndPort(name);
    if (this.#address.topology === "standalone") return this.#address.hosts[0];
    // The master that the sentinels named: the other end of the connection.
    const { remoteAddress: host, remotePort: port } = client.stream ?? {};
    return host === undefined || port === undefined ? undefined : { host, port };
  }
}

export function hostAndPort(name: string): RedisHost {
  const colon = name.lastIndexOf(":");
  return { host: name.slice(0, colon), port: Number(name.slice(colon + 1)) };
}
