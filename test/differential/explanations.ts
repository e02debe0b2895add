/** Why Coatcheck does something else than nginx: classes of cases, each a heading in docs/http.md. */
export interface Explanation {
  /** The heading. */
  readonly title: string;
  /** Ids of cases; a `*` stands for anything. */
  readonly explains: readonly string[];
}

export const EXPLANATIONS: readonly Explanation[] = [];

/** The first class that the case belongs to. */
export function explanationOf(id: string): Explanation | undefined {
  return EXPLANATIONS.find(({ explains }) => explains.some((pattern) => matches(pattern, id)));
}

export function matches(pattern: string, id: string): boolean {
  const [before = "", after] = pattern.split("*");
  return after === undefined ? pattern === id : id.startsWith(before) && id.endsWith(after);
}
