/** What a soak has shown, for people. */
import type { SoakResult } from "./soak.ts";

const MIB = 1024 * 1024;
/** What a heap may have grown by: the rings of the recorder hold other requests than before. */
const HEAP_TOLERANCE_BYTES = 8 * MIB;
/** Sockets to the application that were opened and not yet closed, and the like. */
const RESOURCE_TOLERANCE = 5;
const SHOWN = 20;

/** What must not be; empty when all is well. */
export function problemsOf(result: SoakResult): string[] {
  const problems = result.unexpected.slice(0, SHOWN).map((text) => `not injected: ${text}`);
  const check = (isRight: boolean, text: string) => {
    if (!isRight) problems.push(text);
  };
  const { sent, counted, unanswered, webSocketsOpened, webSocketsClosed } = result;
  check(result.unexpected.length <= SHOWN, `and ${result.unexpected.length - SHOWN} more`);
  check(
    counted >= sent && counted <= sent + unanswered,
    `${counted} requests were counted, ${sent} were answered and ${unanswered} were not`,
  );
  check(webSocketsOpened === webSocketsClosed, `${webSocketsOpened} WebSockets opened, ${webSocketsClosed} closed`);
  check(result.webSocketsOpen === 0, `${result.webSocketsOpen} WebSockets are open`);
  check(result.activeRequests === 0, `${result.activeRequests} requests are active`);
  for (const { name, before, after } of result.gateways) {
    const grown = (after.heapBytes - before.heapBytes) / MIB;
    check(
      after.heapBytes - before.heapBytes < HEAP_TOLERANCE_BYTES,
      `${name}: the heap grew by ${grown.toFixed(1)} MiB`,
    );
    check(
      after.descriptors <= before.descriptors + RESOURCE_TOLERANCE,
      `${name}: ${before.descriptors} descriptors before, ${after.descriptors} after`,
    );
    for (const [kind, count] of Object.entries(after.resources)) {
      const had = before.resources[kind] ?? 0;
      check(count <= had + RESOURCE_TOLERANCE, `${name}: ${had} ${kind} before, ${count} after`);
    }
  }
  return problems;
}

export function report(result: SoakResult, connections: number): string {
  const { done, sent, counted, unanswered, gateways } = result;
  const lines = [
    "# Soak",
    "",
    `${connections} clients for ${result.seconds.toFixed(0)} s, after a warm-up, at two gateways with one Redis: one over plain HTTP/1.1, one over`,
    `TLS (HTTP/1.1 and HTTP/2). The application was killed ${result.outages} times and came back. Made by \`npm run soak\`.`,
    "",
    "| | |",
    "|---|---:|",
    `| client connections at once, at the most | ${result.mostConnections} |`,
    `| requests answered | ${sent} |`,
    `| requests counted by the metrics | ${counted} |`,
    `| requests without an answer, during outages | ${unanswered} |`,
    `| failures while the application was away | ${result.duringOutages} |`,
    `| failures that were not injected | ${result.unexpected.length} |`,
    `| WebSockets opened, closed | ${result.webSocketsOpened}, ${result.webSocketsClosed} |`,
    ...Object.entries(done)
      .sort()
      .map(([kind, count]) => `| done: ${kind} | ${count} |`),
    "",
    "| gateway | | before | after |",
    "|---|---|---:|---:|",
  ];
  const mib = (bytes: number) => (bytes / MIB).toFixed(1);
  for (const { name, before, after } of gateways) {
    lines.push(
      `| ${name} | descriptors | ${before.descriptors} | ${after.descriptors} |`,
      `| | heap after garbage collection, MiB | ${mib(before.heapBytes)} | ${mib(after.heapBytes)} |`,
      `| | resident, MiB | ${mib(before.residentBytes)} | ${mib(after.residentBytes)} |`,
    );
    for (const kind of new Set([...Object.keys(before.resources), ...Object.keys(after.resources)]))
      lines.push(`| | ${kind} | ${before.resources[kind] ?? 0} | ${after.resources[kind] ?? 0} |`);
  }
  return `${lines.join("\n")}\n`;
}
