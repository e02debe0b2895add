/** Reads PromQL with the parser of Prometheus's own editor. */
import type { SyntaxNode } from "@lezer/common";
import { parser } from "@prometheus-io/lezer-promql";

export interface Matcher {
  readonly label: string;
  readonly operator: "=" | "!=" | "=~" | "!~";
  readonly value: string;
}

export interface Selector {
  readonly metric: string;
  readonly matchers: readonly Matcher[];
  /** `5m`; absent: an instant. */
  readonly range?: string;
  /** The function that the selector is the argument of. */
  readonly call?: string;
}

export interface ParsedQuery {
  readonly selectors: readonly Selector[];
  /** Labels after `by`, `without`, `on`, `ignoring` and `group_left`. */
  readonly labels: readonly string[];
  readonly functions: readonly string[];
}

/** @throws SyntaxError where it is no PromQL. Grafana's variables are fine within strings, and `$__rate_interval`. */
export function parseQuery(query: string): ParsedQuery {
  const text = withoutVariables(query);
  const selectors: Selector[] = [];
  const labels: string[] = [];
  const functions: string[] = [];
  const textOf = (node: SyntaxNode | null) => (node === null ? "" : text.slice(node.from, node.to));
  parser.parse(text).iterate({
    enter: ({ node }) => {
      if (node.type.isError) throw new SyntaxError(`at ${node.from} of ${query}`);
      if (node.name === "FunctionIdentifier") functions.push(textOf(node));
      if (node.name === "GroupingLabels") labels.push(...node.getChildren("LabelName").map(textOf));
      if (node.name === "VectorSelector") selectors.push(selectorOf(node, textOf));
    },
  });
  return { selectors, labels, functions };
}

function selectorOf(node: SyntaxNode, textOf: (node: SyntaxNode | null) => string): Selector {
  const ranged = node.parent?.name === "MatrixSelector" ? node.parent : undefined;
  const body = (ranged ?? node).parent;
  const call = body?.name === "FunctionCallBody" ? textOf(body.parent?.getChild("FunctionIdentifier") ?? null) : "";
  const matchers = node.getChild("LabelMatchers")?.getChildren("UnquotedLabelMatcher") ?? [];
  return {
    metric: textOf(node.getChild("Identifier")),
    matchers: matchers.map((matcher) => ({
      label: textOf(matcher.getChild("LabelName")),
      operator: textOf(matcher.getChild("MatchOp")) as Matcher["operator"],
      value: JSON.parse(textOf(matcher.getChild("StringLiteral"))),
    })),
    ...(ranged && { range: textOf(ranged.getChild("DurationExpr")) }),
    ...(call !== "" && { call }),
  };
}

/** What an alert looks at, without what it is compared with: of `a > 1 and b < c` it is `a` and `b`. */
export function comparedIn(query: string): string[] {
  const found: string[] = [];
  const visit = (node: SyntaxNode | null): void => {
    if (node === null) return;
    const binary = node.name === "BinaryExpr" ? node : undefined;
    const operator = binary?.firstChild?.nextSibling;
    if (operator && ["And", "Or", "Unless"].includes(operator.name)) {
      visit(binary.firstChild);
      visit(binary.lastChild);
    } else if (operator && ["Gtr", "Lss", "Eql", "EqlC", "Neq", "Gte", "Lte"].includes(operator.name)) {
      const side = binary.firstChild;
      if (side !== null) found.push(query.slice(side.from, side.to));
    } else if (node.name === "PromQL" || node.name === "ParenExpr") {
      visit(node.firstChild?.name === "(" ? node.firstChild.nextSibling : node.firstChild);
    } else {
      found.push(query.slice(node.from, node.to));
    }
  };
  visit(parser.parse(query).topNode);
  return found;
}

function withoutVariables(query: string): string {
  return query.replaceAll("$__rate_interval", "5m");
}
