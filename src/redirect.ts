import { answer, type Conversation, fail } from "./answers.ts";
import { badRequest } from "./core/errors.ts";
import { readRequestHead } from "./core/request-head.ts";
import { type Gate, readTarget } from "./pipeline.ts";

const HTTPS_PORT = 443;

/**
 * Answers a request that came over plain HTTP with the same address over HTTPS. 308 keeps method and content, which 301
 * leaves to the client (RFC 9110 §15.4.9).
 * @param portOf tells the port of the listener that has TLS.
 */
export function redirectTo(portOf: () => number): (gate: Gate, conversation: Conversation) => Promise<void> {
  return async (gate, conversation) => {
    const { req, exchange } = conversation;
    try {
      const head = readRequestHead(req.rawHeaders, gate.requestRules, false, exchange);
      exchange.requestHasContent = head.hasContent;
      const { hostname, pathAndQuery } = readTarget(req.url ?? "", exchange, head);
      if (pathAndQuery === "*") throw badRequest("no path to redirect to");
      // HTTP/1.0 may do without a Host, and then nobody knows where to.
      if (hostname === "") throw badRequest("no Host");
      // A path that begins with two slashes follows an authority, so that it cannot become one.
      const port = portOf();
      const authority = port === HTTPS_PORT ? hostname : `${hostname}:${port}`;
      answer(conversation, { status: 308, fields: ["location", `https://${authority}${pathAndQuery}`] });
    } catch (error) {
      fail(conversation, error, gate.observer);
    }
  };
}
