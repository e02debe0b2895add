/**
 * The ways in which an upstream may read a path. Servers differ: some decode `%2e` and `%2f` before they resolve dots,
 * some cut `;parameters` off every segment, some decode twice, some take `\` for `/`.
 */

const NOTHING: readonly string[] = [];

/**
 * Every reading of the path that differs from the path itself.
 * @param path begins with `/`, no query.
 */
export function readings(path: string): readonly string[] {
  if (isPlain(path)) return NOTHING;
  const decodedOnce = decode(path);
  const decodedTwice = decode(decodedOnce);
  const spellings = [path, decodedOnce, decodedTwice];
  const all = new Set([...spellings, ...spellings.map(resolveDots)]);
  for (const reading of [...all]) all.add(resolveDots(reading.replace(/;[^/]*/g, "")));
  all.delete(path);
  return [...all];
}

/** One pass over the path; almost every real path has nothing to normalise and costs no allocation. */
function isPlain(path: string): boolean {
  let previous = 0;
  for (let i = 0; i < path.length; i++) {
    const code = path.charCodeAt(i);
    if (code === 0x25 || code === 0x5c || code === 0x3b) return false; // % \ ;
    if (previous === 0x2f && (code === 0x2f || code === 0x2e)) return false; // "//" "/."
    previous = code;
  }
  return true;
}

/** Decodes each valid escape as one octet; what is not valid stays as it is. */
function decode(path: string): string {
  return path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

/** Backslashes become slashes, empty and `.` segments go, `..` takes its parent with it (RFC 3986 §5.2.4). */
function resolveDots(path: string): string {
  const kept: string[] = [];
  for (const segment of path.replaceAll("\\", "/").split("/")) {
    const name = segment.replace(/;.*$/s, "");
    if (name === "..") kept.pop();
    else if (segment !== "" && name !== ".") kept.push(segment);
  }
  return `/${kept.join("/")}`;
}
