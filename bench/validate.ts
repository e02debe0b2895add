import { deepEqual, equal } from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { ECHO_PATH, type Echo, ITEM_BODY, ITEM_PATH } from "./answers.ts";
import { ask, type Question } from "./ask.ts";
import type { Peer } from "./peers.ts";
import { BROWSER_HEADERS, inventedCookie, OTHER_COOKIES, type Visitor } from "./sessions.ts";

/** A proxy that answers wrongly can be arbitrarily fast, so all of this is asked before anything is measured. */

const CONTENT_BYTES = 256 * 1024;

/** @throws AssertionError when the peer does not do its work. */
export async function validate(peer: Peer, url: string, visitors: readonly Visitor[]): Promise<void> {
  const visitor = visitors[0] as Visitor;
  const headers = { ...BROWSER_HEADERS, cookie: visitor.cookie };
  const answer = await ask(url + ITEM_PATH, { headers });
  equal(answer.status, 200, "a request is answered");
  equal(answer.body, ITEM_BODY, "with the body of the application");
  equal(answer.headers.etag, '"5f3a-18c2e0b7d40"', "and its headers");
  await carriesContent(url, headers);
  if (peer.cleansHopByHop) await cleansHopByHop(url, headers);
  for (const each of visitors) await (peer.gateway ? identifies(url, each) : passesCookie(url, each));
  if (!peer.gateway) return;
  await refuses(url);
  await replacesForgedIdentity(url, visitor);
}

async function carriesContent(url: string, headers: Record<string, string>): Promise<void> {
  const body = randomBytes(CONTENT_BYTES);
  const { contentHash } = await echo(url, { method: "POST", headers, body });
  equal(contentHash, createHash("sha256").update(body).digest("hex"), "the content arrives unchanged");
}

async function cleansHopByHop(url: string, headers: Record<string, string>): Promise<void> {
  const hop = { connection: "keep-alive, x-hop", "x-hop": "1", te: "trailers" };
  const { rawHeaders } = await echo(url, { headers: { ...headers, ...hop } });
  deepEqual(valuesOf(rawHeaders, "x-hop"), [], "what Connection lists stays here");
  deepEqual(valuesOf(rawHeaders, "te"), [], "TE stays here");
  deepEqual(valuesOf(rawHeaders, "user-agent"), [BROWSER_HEADERS["User-Agent"]], "the rest goes on");
}

async function refuses(url: string): Promise<void> {
  const anonymous = await ask(url + ITEM_PATH, { headers: BROWSER_HEADERS });
  equal(anonymous.status, 401, "nobody passes without a cookie");
  const stranger = await ask(url + ITEM_PATH, { headers: { ...BROWSER_HEADERS, cookie: inventedCookie() } });
  equal(stranger.status, 401, "nor with an invented one");
}

async function replacesForgedIdentity(url: string, { cookie, userId }: Visitor): Promise<void> {
  const { rawHeaders } = await echo(url, { headers: { cookie, "x-user-id": "admin", "x-session-handle": "forged" } });
  deepEqual(valuesOf(rawHeaders, "x-user-id"), [userId], "a forged identity is replaced");
}

/** The application hears of this very session, and does not see its cookie. */
async function identifies(url: string, { cookie, userId }: Visitor): Promise<void> {
  const { rawHeaders } = await echo(url, { headers: { cookie } });
  deepEqual(valuesOf(rawHeaders, "x-user-id"), [userId], "the application is told the user");
  deepEqual(valuesOf(rawHeaders, "x-user-roles"), ["customer,beta"], "and the roles");
  deepEqual(valuesOf(rawHeaders, "cookie"), [OTHER_COOKIES], "and gets the other cookies only");
}

async function passesCookie(url: string, { cookie }: Visitor): Promise<void> {
  const { rawHeaders } = await echo(url, { headers: { cookie } });
  deepEqual(valuesOf(rawHeaders, "cookie"), [cookie], "the cookies arrive");
}

async function echo(url: string, question: Question): Promise<Echo> {
  const { status, body } = await ask(url + ECHO_PATH, question);
  equal(status, 200, "the echo is answered");
  return JSON.parse(body) as Echo;
}

function valuesOf(rawHeaders: readonly string[], name: string): string[] {
  return rawHeaders.filter((_, i) => i % 2 === 1 && rawHeaders[i - 1]?.toLowerCase() === name);
}
