import { foldName } from "../core/header-names.ts";
import type { IdentityHeader, ListFormat } from "../core/identity.ts";

/**
 * The headers by which applications that leave signing in to a proxy want to be told; docs/presets.md has what each
 * application has to be configured to. Whatever names a person in `user.id` names them in the application.
 */

/** Of one word each: what holds a separator would be two. */
const COMMA: ListFormat = { separator: ",", unsafe: /,/ };
/** Grafana cuts at blanks as well, and reads quotes. */
const GRAFANA: ListFormat = { separator: ",", unsafe: /[,"\s]/ };
const PIPE: ListFormat = { separator: "|", unsafe: /\|/ };

const TABLES = {
  authelia: [
    ["Remote-User", "/user/id"],
    ["Remote-Groups", "/user/roles", COMMA],
    ["Remote-Name", "/user/name"],
    ["Remote-Email", "/user/email"],
  ],
  gitea: [
    ["X-WEBAUTH-USER", "/user/id"],
    ["X-WEBAUTH-FULLNAME", "/user/name"],
    ["X-WEBAUTH-EMAIL", "/user/email"],
  ],
  grafana: [
    ["X-WEBAUTH-USER", "/user/id"],
    ["X-WEBAUTH-NAME", "/user/name"],
    ["X-WEBAUTH-EMAIL", "/user/email"],
    ["X-WEBAUTH-GROUPS", "/user/roles", GRAFANA],
  ],
  jenkins: [
    ["X-Forwarded-User", "/user/id"],
    ["X-Forwarded-DisplayName", "/user/name"],
    ["X-Forwarded-Mail", "/user/email"],
    ["X-Forwarded-Groups", "/user/roles", PIPE],
  ],
  mediawiki: [
    ["X-Remote-User", "/user/id"],
    ["X-Remote-Name", "/user/name"],
    ["X-Remote-Email", "/user/email"],
  ],
  "oauth2-proxy": [
    ["X-Forwarded-User", "/user/id"],
    ["X-Forwarded-Preferred-Username", "/user/id"],
    ["X-Forwarded-Email", "/user/email"],
    ["X-Forwarded-Groups", "/user/roles", COMMA],
    ["X-Auth-Request-User", "/user/id"],
    ["X-Auth-Request-Preferred-Username", "/user/id"],
    ["X-Auth-Request-Email", "/user/email"],
    ["X-Auth-Request-Groups", "/user/roles", COMMA],
  ],
  radicale: [["X-Remote-User", "/user/id"]],
  wordpress: [
    ["X-Remote-User", "/user/id"],
    ["X-Remote-Email", "/user/email"],
  ],
} as const satisfies Record<string, readonly (readonly [name: string, source: string, list?: ListFormat])[]>;

export type Preset = keyof typeof TABLES;
export const PRESETS = Object.keys(TABLES) as [Preset, ...Preset[]];

/** Of a preset, the headers in the order of its table. */
export function headersOf(preset: Preset): IdentityHeader[] {
  const table: readonly (readonly [name: string, source: string, list?: ListFormat])[] = TABLES[preset];
  return table.map(([name, source, list = COMMA]) => ({ name, source, list }));
}

/**
 * All identity headers. One of the configuration's own that a preset has as well says where its value comes from; how it is
 * written stays the preset's.
 */
export function identityHeaders(presets: readonly Preset[], own: Readonly<Record<string, string>>): IdentityHeader[] {
  const headers = new Map<string, IdentityHeader>();
  for (const header of presets.flatMap(headersOf)) headers.set(foldName(header.name), header);
  for (const [name, source] of Object.entries(own)) {
    const before = headers.get(foldName(name));
    headers.set(foldName(name), { name: before?.name ?? name, source, ...(before?.list && { list: before.list }) });
  }
  return [...headers.values()];
}

/** A header that two presets want in different ways, which one value cannot serve. */
export function conflictOf(presets: readonly Preset[], own: Readonly<Record<string, string>>): string | undefined {
  const said = new Set(Object.keys(own).map(foldName));
  const first = new Map<string, { readonly preset: Preset; readonly header: IdentityHeader }>();
  for (const preset of presets) {
    for (const header of headersOf(preset)) {
      const folded = foldName(header.name);
      const other = first.get(folded);
      if (other === undefined) first.set(folded, { preset, header });
      else if (other.header.list !== header.list)
        return `${other.preset} and ${preset} want the lists in ${header.name} written in different ways`;
      else if (other.header.source !== header.source && !said.has(folded))
        return `${other.preset} and ${preset} want different values in ${header.name}: say in headers which`;
    }
  }
  return undefined;
}
