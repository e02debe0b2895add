import { createHash } from "node:crypto";
import type { Endpoints, Reply } from "./endpoint.ts";

const STYLE =
  "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0;vertical-align:top}code{white-space:nowrap}@media(max-width:45em){td{display:block;padding:0;overflow-wrap:anywhere}td:last-child{margin-bottom:1em}}";
/** Nothing is loaded, run or framed; what is shown are texts of ours. */
const POLICY = `default-src 'none'; style-src 'sha256-${createHash("sha256").update(STYLE).digest("base64")}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;

/** The index for a browser. */
export function renderIndexPage(version: string, endpoints: Endpoints): Reply {
  const rows = [...endpoints].map(([path, { about, actions }]) => {
    const methods = Object.keys(actions).join(", ");
    // What can be asked for without saying more.
    const isLink =
      actions.GET !== undefined && !path.includes("{") && actions.GET.query?.safeParse({}).success !== false;
    const shown = `<code>${escaped(path)}</code>`;
    return `<tr><td>${methods}</td><td>${isLink ? `<a href="${escaped(path)}">${shown}</a>` : shown}</td><td>${escaped(about)}</td></tr>`;
  });
  return {
    status: 200,
    type: "text/html; charset=utf-8",
    body: `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Coatcheck, admin listener</title><style>${STYLE}</style></head>
<body>
<h1>Coatcheck ${escaped(version)}</h1>
<p>The listener for operators. Programs get this index as JSON.</p>
<table>
${rows.join("\n")}
</table>
</body>
</html>
`,
    fields: { "content-security-policy": POLICY, vary: "accept" },
  };
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
}
