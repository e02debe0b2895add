/**
 * The ways in which an upstream may read a path. Servers differ: some decode `%2e` and `%2f` before they look at the
 * path, some twice; some cut `;parameters` off every segment, take `\` for `/`, merge slashes or ignore case.
 */

/** Layers of percent-encoding that are looked through; more than this is nobody's real path. */
const MAX_ENCODING_LAYERS = 4;

/**
 * The path after everything that a server may do to it. Whatever a server does of that, in whatever order, a prefix of
 * plain segments that it ends up with is a prefix of this too, dot segments being refused: so if this belongs to the
 * same route as the path itself, every reading does.
 * @param path begins with `/`, no query.
 * @returns `undefined` for a path with a `.` or `..` segment in any spelling, or with too many layers of encoding:
 *   clients resolve dots before they send (RFC 3986 §5.2.4), and servers do not agree on what is left.
 */
export function loosestReading(path: string): string | undefined {
  if (isPlain(path)) return path;
  let reading = path;
  for (let layer = 0; ; layer++) {
    if (hasDotSegment(reading)) return undefined;
    const decoded = decode(reading);
    if (decoded === reading) break;
    if (layer === MAX_ENCODING_LAYERS) return undefined;
    reading = decoded;
  }
  return reading
    .replaceAll("\\", "/")
    .replace(/;[^/]*/g, "")
    .replace(/\/{2,}/g, "/")
    .toLowerCase();
}

/** One pass over the path; most paths have nothing in them that could be read in two ways. */
function isPlain(path: string): boolean {
  let previous = 0;
  for (let i = 0; i < path.length; i++) {
    const code = path.charCodeAt(i);
    if (code === 0x25 || code === 0x5c || code === 0x3b) return false; // % \ ;
    if (previous === 0x2f && (code === 0x2f || code === 0x2e)) return false; // "//" "/."
    if (code >= 0x41 && code <= 0x5a) return false; // A to Z
    previous = code;
  }
  return true;
}

function hasDotSegment(path: string): boolean {
  return /(^|[/\\])\.{1,2}(;[^/\\]*)?([/\\]|$)/.test(path);
}

/** Decodes each valid escape as one octet; what is not valid stays as it is. */
function decode(path: string): string {
  return path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}
