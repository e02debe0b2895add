/**
 * The ways in which an upstream may read a path. Servers differ: some decode `%2e` and `%2f` before they look at the
 * path, some twice; some cut `;parameters` off every segment, take `\` for `/`, merge slashes or ignore case.
 */

/** Layers of percent-encoding that are looked through; more than this is nobody's real path. */
const MAX_ENCODING_LAYERS = 4;

/**
 * The path after everything that a server may do to it: once as one path, once cut at the first `?` or `#` that was
 * encoded. Whatever a server does of that, in whatever order, a prefix of plain segments that it ends up with is a prefix
 * of one of these too; what would break that is refused. So if these belong to the same route as the path itself, every
 * reading does.
 * @param path begins with `/`, no query.
 * @returns `undefined` for a path that servers would not agree on, whatever the routes: see `isTreacherous`, and too many
 *   layers of encoding.
 */
export function loosestReadings(path: string): readonly string[] | undefined {
  if (isPlain(path)) return NOTHING_ELSE;
  let reading = path;
  for (let layer = 0; ; layer++) {
    if (isTreacherous(reading)) return undefined;
    const decoded = decode(reading);
    if (decoded === reading) break;
    if (layer === MAX_ENCODING_LAYERS) return undefined;
    reading = decoded;
  }
  return [loosest(reading), loosest(reading.replace(/[?#].*$/s, ""))];
}

/** The path, or a prefix of one, without what some server ignores: Windows cuts dots and blanks off a name. */
export function loosest(path: string): string {
  return path
    .replaceAll("\\", "/")
    .replace(/;[^/]*/g, "")
    .replace(/(?<![. ])[. ]+(?=\/|$)|(?<=\/) +/g, "")
    .replace(/\/{2,}/g, "/")
    .toLowerCase();
}

const NOTHING_ELSE: readonly string[] = [];

/**
 * Spellings with more than one meaning: a dot segment, also between blanks (clients resolve them before they send, RFC 3986
 * §5.2.4), two slashes at the beginning (an authority to whoever resolves the path as a reference), control characters, and a
 * `;parameter` with an encoded `/`, `\`, `;` or `%`, which ends where the server says it ends.
 */
function isTreacherous(path: string): boolean {
  return (
    /(^|[/\\]) *\.{1,2} *(;[^/\\]*)?([/\\?#]|$)/.test(path) ||
    /^[/\\]{2}/.test(path) ||
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for; from 0x80 on it is UTF-8
    /[\x00-\x1f\x7f]/.test(path) ||
    /;[^/\\;]*%(2f|5c|3b|25)/i.test(path)
  );
}

/** One pass over the path; most paths have nothing in them that could be read in two ways. */
function isPlain(path: string): boolean {
  let previous = 0;
  for (let i = 0; i < path.length; i++) {
    const code = path.charCodeAt(i);
    if (code === 0x25 || code === 0x5c || code === 0x3b) return false; // % \ ;
    if (previous === 0x2f && (code === 0x2f || code === 0x2e)) return false; // "//" "/."
    if (previous === 0x2e && code === 0x2f) return false; // "./"
    if (code >= 0x41 && code <= 0x5a) return false; // A to Z
    previous = code;
  }
  return previous !== 0x2e; // a dot at the end
}

/** Decodes each valid escape as one octet; what is not valid stays as it is. */
function decode(path: string): string {
  return path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}
