/** A proxy that shows that faults are seen. */
import { connect, type Socket } from "node:net";
import { startTcp, type Teardown } from "../support/servers.ts";
import type { Lane } from "./proxies.ts";
import { startRecorder } from "./recorder.ts";

/** Joins clients to one connection, octet by octet: everything goes wrong that can. */
export async function startNaive(t: Teardown): Promise<Lane> {
  const recorder = await startRecorder(t);
  let upstream: Socket | undefined;
  let client: Socket | undefined;
  const { port } = await startTcp(t, (socket) => {
    client = socket;
    if (upstream === undefined || upstream.readyState !== "open") {
      upstream = connect(recorder.port, "127.0.0.1");
      upstream.on("error", () => {});
      upstream.on("data", (octets: Buffer) => client?.write(octets));
      upstream.on("end", () => client?.end());
    }
    socket.on("data", (octets: Buffer) => upstream?.write(octets));
  });
  t.teardown(() => upstream?.destroy());
  return { port, recorder };
}
