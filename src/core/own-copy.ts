/**
 * V8 keeps the whole of a text in memory for as long as a piece of it is used. What is cut out of a client's head and kept
 * for long is copied: a query of 30 KB is neither to be paid for nor to be there.
 */
export function ownCopy(piece: string): string {
  return Buffer.from(piece).toString();
}

/** How much longer than a piece its whole may be, before the piece is copied. */
const NEEDLESS_CHARACTERS_KEPT = 1024;

/** The piece, in a copy where that is worth it. */
export function pieceOf(whole: string, piece: string): string {
  return whole.length - piece.length > NEEDLESS_CHARACTERS_KEPT ? ownCopy(piece) : piece;
}
