/** Changes octets (as Latin-1 text) a little, as who looks for a hole would. */
import type { Random } from "./random.ts";

/** Pieces that mean something to somebody who reads HTTP. */
export const HTTP_WORDS: readonly string[] = [
  "\r\n",
  "\n",
  "\r",
  "\r\n\r\n",
  "\n\n",
  "\0",
  "\t",
  " ",
  "  ",
  ":",
  ": ",
  ";",
  ",",
  "\x0b",
  "\x7f",
  "\x80",
  "\xff",
  "0",
  "0\r\n\r\n",
  "1",
  "-1",
  "+1",
  "0x1",
  "ffffffffffffffff",
  "HTTP/1.1",
  "HTTP/1.0",
  "HTTP/0.9",
  "HTTP/2.0",
  "GET ",
  "HEAD ",
  "POST ",
  "DELETE ",
  "OPTIONS ",
  "CONNECT ",
  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  "GET /evil HTTP/1.1\r\nHost: a\r\nX-User-Id: evil\r\n\r\n",
  "Content-Length: 0\r\n",
  "Content-Length: 5\r\n",
  "Content-Length : 5\r\n",
  "Content_Length: 5\r\n",
  "Transfer-Encoding: chunked\r\n",
  "Transfer-Encoding: identity\r\n",
  "Transfer-Encoding:\tchunked\r\n",
  "Transfer-Encoding: gzip, chunked\r\n",
  "chunked",
  "Connection: close\r\n",
  "Connection: keep-alive, X-User-Id, Content-Length\r\n",
  "Connection: Upgrade\r\nUpgrade: websocket\r\n",
  "Host: a.example\r\n",
  "Host: b\r\n",
  "Expect: 100-continue\r\n",
  "X-User-Id: evil\r\n",
  "X_User_Id: evil\r\n",
  "Cookie: session=evil\r\n",
  "X-Forwarded-For: 1.2.3.4\r\n",
  "Trailer: X-User-Id\r\n",
  "5\r\nhello\r\n",
  "Max-Forwards: 0\r\n",
  "Via: 1.1 coatcheck\r\n",
];

/** One to six changes: an octet, a piece taken out, doubled or moved, a word put in, a part of another. */
export function mutate(random: Random, octets: string, words: readonly string[], others: readonly string[]): string {
  let text = octets;
  for (let changes = 1 + random.below(6); changes > 0; changes--) text = change(random, text, words, others);
  return text.slice(0, 100_000);
}

function change(random: Random, text: string, words: readonly string[], others: readonly string[]): string {
  const at = random.below(text.length + 1);
  const to = Math.min(text.length, at + 1 + random.below(random.chance(0.7) ? 8 : 200));
  const before = text.slice(0, at);
  switch (random.below(10)) {
    case 0:
      return before + String.fromCharCode(random.below(256)) + text.slice(at + 1);
    case 1:
      return before + String.fromCharCode((text.charCodeAt(at) || 0) ^ (1 << random.below(8))) + text.slice(at + 1);
    case 2:
      return before + text.slice(to);
    case 3:
      return before + text.slice(at, to) + text.slice(at);
    case 4: {
      const other = random.pick(others);
      return before + other.slice(random.below(other.length + 1));
    }
    case 5:
      return before + text.slice(at, to).repeat(1 + random.below(40)) + text.slice(to);
    case 6:
      return changeNumber(random, text);
    case 7:
      return before + random.octets(1 + random.below(4)) + text.slice(at);
    default:
      return before + random.pick(words) + text.slice(at);
  }
}

/** Lengths and sizes are where the money is. */
function changeNumber(random: Random, text: string): string {
  const numbers = [...text.matchAll(/\d+/g)];
  if (numbers.length === 0) return text;
  const { 0: digits, index } = random.pick(numbers);
  const written = random.pick([
    String(Number(digits) + random.below(5) - 2),
    `0${digits}`,
    `${digits}0`,
    String(2 ** 32 + Number(digits)),
    String(random.below(300)),
    random.below(300).toString(16),
  ]);
  return text.slice(0, index) + written + text.slice(index + digits.length);
}

/** Cuts octets into the pieces in which they are sent. */
export function fragment(random: Random, octets: string): string[] {
  if (random.chance(0.5)) return [octets];
  const pieces: string[] = [];
  for (let at = 0; at < octets.length; ) {
    const length = 1 + random.below(random.chance(0.3) ? 3 : Math.max(4, octets.length / 3));
    pieces.push(octets.slice(at, at + length));
    at += length;
    if (pieces.length === 12) {
      pieces.push(octets.slice(at));
      break;
    }
  }
  return pieces;
}
