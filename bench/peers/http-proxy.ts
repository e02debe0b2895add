import { Agent, createServer } from "node:http";
import httpProxy from "http-proxy";
import { endOnSignal } from "../end-on-signal.ts";

/** http-proxy as its documentation has it, with an agent that keeps connections: without one it opens one a request. */

const [port, target = ""] = process.argv.slice(2);

const proxy = httpProxy.createProxyServer({ target, agent: new Agent({ keepAlive: true }) });

proxy.on("error", (_error, _req, res) => {
  if (res.headersSent) res.destroy();
  else res.writeHead(502).end();
});

createServer((req, res) => proxy.web(req, res)).listen(Number(port), "127.0.0.1");

endOnSignal();
