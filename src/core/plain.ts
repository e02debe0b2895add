/** What a client chose, as one line without the characters that command a terminal; cut at so many characters. */
export function plain(text: string, maxLength = 200): string {
  const line = text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, "\u{fffd}");
  return line.length > maxLength ? `${line.slice(0, maxLength - 1)}…` : line;
}
