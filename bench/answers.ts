/** What the bench upstream answers and what the load generator expects. */

export const ITEM_PATH = "/api/items/42?view=full";
/** How many items were asked for. */
export const COUNT_PATH = "/count";
export const ECHO_PATH = "/echo";
export const LOGIN_PATH = "/login";

const ITEM_BYTES = 1024;

/** JSON of exactly one KiB, ASCII. */
export const ITEM_BODY = item();

function item(): string {
  const fields = { id: 42, name: "umbrella", price: { amount: "24.90", currency: "EUR" }, stock: 17, description: "" };
  const description = "x".repeat(ITEM_BYTES - JSON.stringify(fields).length);
  return JSON.stringify({ ...fields, description });
}

/** The answer of the echo endpoint. */
export interface Echo {
  /** Names and values in turn, as upstream received them. */
  readonly rawHeaders: readonly string[];
  /** SHA-256 of the content, hex. */
  readonly contentHash: string;
}
