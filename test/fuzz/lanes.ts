/** Gateways to fuzz, in this process: what they hold on to shows. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Lane } from "../differential/proxies.ts";
import { startRecorder } from "../differential/recorder.ts";
import { eventually, type Teardown } from "../support/resources.ts";
import { type RunningGateway, startGateway } from "../support/servers.ts";
import { must } from "./target.ts";

/** Beyond what caches, rings and compiled code may take. */
const HEAP_GROWTH_BYTES = 64 * 1024 * 1024;

/** What must be as it was before. */
export interface Watch {
  /** @throws Error when connections, requests or memory are left over. */
  settled(): Promise<void>;
}

export async function startFuzzedLanes(
  t: Teardown,
  count: number,
  timeouts: Record<string, string> = {},
): Promise<{ lanes: Lane[]; watch: Watch }> {
  const gateways: RunningGateway[] = [];
  const lanes = await Promise.all(
    Array.from({ length: count }, async () => {
      const recorder = await startRecorder(t);
      const upstream = { targets: [`http://127.0.0.1:${recorder.port}`], timeouts };
      const routes = [
        { match: { path: "/admin" }, upstream, session: "required" },
        { match: { path: "/" }, upstream, session: "optional" },
      ];
      const settings = { routes, observe: { log: { access: "none" } } };
      const gateway = await startGateway(t, settings, { logDestination: { write: () => {} } });
      gateways.push(gateway);
      return { port: gateway.port, recorder };
    }),
  );
  const sockets = openSockets();
  const heap = heapUsed();
  const settled = async (): Promise<void> => {
    for (const { recorder } of lanes) await recorder.clear();
    await eventually("no connection is left over", () => openSockets() <= sockets, 10_000).catch(() => {
      must(false, `${openSockets() - sockets} connections are left over`);
    });
    for (const gateway of gateways) {
      const active = /^http_server_active_requests.* (\d+)$/gm;
      for (const [line, number] of (await gateway.metrics()).matchAll(active)) must(number === "0", line);
    }
    const growth = heapUsed() - heap;
    must(growth < HEAP_GROWTH_BYTES, `the heap has grown by ${Math.round(growth / 1024 / 1024)} MiB`);
  };
  return { lanes, watch: { settled } };
}

function openSockets(): number {
  return process.getActiveResourcesInfo().filter((name) => name === "TCPSocketWrap").length;
}

function heapUsed(): number {
  setFlagsFromString("--expose-gc");
  runInNewContext("gc")();
  return process.memoryUsage().heapUsed;
}
