/**
 * Whether a person waits for a page, and not a script for data. Browsers say so (Fetch Metadata), though over plain HTTP
 * only to localhost; what does not say it is asked what it accepts.
 * @param accept absent or without `text/html`: what curl and scripts send.
 */
export function waitsForPage(secFetchMode: string | undefined, accept: string | undefined): boolean {
  if (secFetchMode !== undefined) return secFetchMode === "navigate";
  return accept !== undefined && prefersPage(accept);
}

/** @param raw names and values in turn, as sent: what could not be understood has no head that was read. */
export function isForPerson(raw: readonly string[]): boolean {
  let mode: string | undefined;
  let accept: string | undefined;
  for (let i = 0; i < raw.length; i += 2) {
    const name = (raw[i] as string).toLowerCase();
    if (name === "sec-fetch-mode") mode = raw[i + 1];
    else if (name === "accept") accept = raw[i + 1];
  }
  return waitsForPage(mode, accept);
}

const HINTS_WITHIN_BYTES = 8 * 1024;
const HINT = /^(sec-fetch-mode|accept):(.*)$/gim;

/**
 * `isForPerson` of a message whose head was never whole.
 * @param octets where it begins, as far as is known; browsers send `Accept` before the cookies that make a head too large.
 * @returns `undefined` when neither field is there.
 */
export function isForPersonIn(octets: Buffer): boolean | undefined {
  const text = octets.toString("latin1", 0, HINTS_WITHIN_BYTES).replaceAll("\r", "");
  const hints = [...text.matchAll(HINT)].flatMap(([, name = "", value = ""]) => [name, value.trim()]);
  return hints.length === 0 ? undefined : isForPerson(hints);
}

/** Nothing that browsers navigate with accepts JSON: whoever lists it has to prefer a page to get one (RFC 9110 §12.5.1). */
function prefersPage(accept: string): boolean {
  let page = 0;
  let data = 0;
  for (const range of accept.toLowerCase().split(",")) {
    const [type = "", ...parameters] = range.split(";").map((part) => part.trim());
    const weight = parameters.find((parameter) => parameter.startsWith("q="));
    const quality = weight === undefined ? 1 : Number(weight.slice("q=".length)) || 0;
    if (type === "text/html" || type === "application/xhtml+xml") page = Math.max(page, quality);
    else if (type === "application/json" || type === "application/problem+json") data = Math.max(data, quality);
  }
  return page > data;
}
