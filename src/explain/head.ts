import { createServer, type IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { Duplex } from "node:stream";
import { asksForWebSocket } from "../client-upgrade.ts";
import type { LimitsConfig } from "../config/limits.ts";
import { type ClientError, describeClientError, type Refusal } from "../core/client-error.ts";
import type { AskedRequest, Unexplained } from "../core/explanation.ts";
import { isToken } from "../core/header-names.ts";
import { CONNECT_REFUSAL, httpOptions } from "../listener.ts";

/** The head of a request that somebody asks about, read by the same parser with the same limits as those of clients. */

export interface ParsedHead {
  readonly method: string;
  readonly url: string;
  readonly httpVersion: string;
  readonly rawHeaders: readonly string[];
  readonly asksForWebSocket: boolean;
}

/** @returns the head as octets, or what is wrong with the question. No part of a value is in that. */
export function composeHead({ method = "GET", url, headers, client }: AskedRequest): Buffer | Unexplained {
  if (!isToken(method)) return { problem: "method must be a method such as GET" };
  if (client !== undefined && isIP(client) === 0) return { problem: "client must be an IP address" };
  const address = readUrl(url);
  if ("problem" in address) return address;
  const lines = Array.isArray(headers) ? headers : Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
  for (const [index, line] of lines.entries()) {
    const problem = lineProblem(line);
    if (problem !== undefined) return { problem: `headers[${index}] ${problem}` };
  }
  const { authority, target } = address;
  const hasHost = lines.some((line) => /^host:/i.test(line));
  const host = authority === undefined || hasHost ? [] : [`Host: ${authority}`];
  return Buffer.from([`${method} ${target} HTTP/1.1`, ...host, ...lines, "", ""].join("\r\n"), "latin1");
}

/** A URL as it is spelled: nothing in it is normalised, because servers do not agree on that. */
function readUrl(url: string): { authority?: string; target: string } | Unexplained {
  if (/[^\x21-\x7e]/.test(url))
    return { problem: "url holds a blank or a character beyond ASCII: write it percent-encoded, as clients send it" };
  const withoutFragment = url.replace(/#.*$/s, "");
  if (withoutFragment.startsWith("/") || withoutFragment === "*") return { target: withoutFragment };
  const [, authority, rest = ""] = /^https?:\/\/([^/?]+)(.*)$/i.exec(withoutFragment) ?? [];
  if (authority === undefined)
    return { problem: "url must begin with http:// or https://, or be a path beside a Host header" };
  if (authority.includes("@")) return { problem: "url holds a user name or a password: leave it out" };
  return { authority, target: rest.startsWith("/") ? rest : `/${rest}` };
}

function lineProblem(line: string): string | undefined {
  const colon = line.indexOf(":");
  if (colon < 1 || !isToken(line.slice(0, colon))) return "is no header: write it as Name: value";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that end a header, or are none of any
  if (/[\0-\x08\x0a-\x1f\x7f]/.test(line)) return "holds a control character, which no client can send";
  return /[^\0-\xff]/.test(line) ? "holds a character beyond Latin-1, which no header can carry" : undefined;
}

/** Has node's own server read the head, without a connection. */
export function parseHead(octets: Buffer, limits: LimitsConfig): Promise<ParsedHead | Refusal> {
  const server = createServer(httpOptions(limits));
  server.maxHeadersCount = 0;
  const socket = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
  return new Promise<ParsedHead | Refusal>((resolve) => {
    const read = (req: IncomingMessage) => {
      const { method = "", url = "", httpVersion, rawHeaders, headers } = req;
      const isUpgrade = /(?:^|,)\s*upgrade\s*(?:,|$)/i.test(headers.connection ?? "");
      resolve({ method, url, httpVersion, rawHeaders, asksForWebSocket: isUpgrade && asksForWebSocket(req) });
    };
    for (const event of ["request", "checkContinue", "checkExpectation"]) server.on(event, read);
    server.on("connect", () => resolve(CONNECT_REFUSAL));
    server.on("clientError", (error: ClientError) =>
      resolve(describeClientError(error) ?? { status: 400, message: "the request is not complete" }),
    );
    server.emit("connection", socket);
    socket.push(octets);
  }).finally(() => socket.destroy());
}
