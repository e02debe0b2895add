import { PLAINTEXT } from "../core/store.ts";
import { parseDuration, parseSize } from "../core/units.ts";
import { maskUrl } from "./fields.ts";
import type { Settings } from "./schema.ts";

/**
 * Texts of the configuration that are shown as they are; `*` is any name or place in a list. Durations, sizes, numbers and
 * switches are shown wherever they stand. A text that is in neither list is a secret: a new key begins as one.
 */
const SHOWN: ReadonlySet<string> = new Set([
  "listen.host",
  "listen.trustedProxies.*",
  "listen.tls.cert",
  "listen.tls.key",
  "listen.tls.minVersion",
  "admin.host",
  "admin.tls.cert",
  "admin.tls.key",
  "workers",
  "session.codec",
  "session.layout",
  "session.bind",
  "session.onMismatch",
  "session.cookie.name",
  "session.cookie.sameSite",
  "session.cookie.path",
  "session.cookie.domain",
  "identity.preset.*",
  "identity.headers.*",
  "forwardAuth.path",
  "routes.*.match.host",
  "routes.*.match.path",
  "routes.*.upstream.balance",
  "routes.*.upstream.health.path",
  "routes.*.upstream.health.host",
  "routes.*.upstream.health.status",
  "routes.*.upstream.retries.on.*",
  "routes.*.upstream.resolve.servers.*",
  "routes.*.upstream.tls.ca",
  "routes.*.upstream.tls.cert",
  "routes.*.upstream.tls.key",
  "routes.*.upstream.tls.serverName",
  "routes.*.session",
  "routes.*.onOutage",
  "routes.*.write.*",
  "routes.*.websockets.origins.*",
  ...["limits", "routes.*.limits"].flatMap((section) => [
    `${section}.body.maxBytes`,
    `${section}.requests.perAddress`,
    `${section}.requests.perAddress.rate`,
    `${section}.requests.perSession`,
    `${section}.requests.perSession.rate`,
  ]),
  "limits.connections.total",
  "errors.pages",
  "observe.log.level",
  "observe.log.access",
  "observe.log.format",
  "observe.dumps.folder",
]);

/** Addresses: shown without password and query. */
const URLS: ReadonlySet<string> = new Set([
  "store",
  "store.primary",
  "store.fallback",
  "routes.*.upstream.targets.*.url",
  "routes.*.onMissing.redirect",
]);

/** No secret is as short as these are. */
const LONGEST_UNIT_TEXT = 20;

/** The effective configuration as it can be shown: no secret, no token, no password. */
export function maskSettings(settings: Settings): Settings {
  return masked(settings, "") as Settings;
}

function masked(value: unknown, path: string): unknown {
  if (typeof value === "string") return maskedText(value, path);
  if (typeof value !== "object" || value === null) return value;
  const below = (name: string) => (path === "" ? name : `${path}.${name}`);
  if (Array.isArray(value)) return value.map((item) => masked(item, below("*")));
  const anyName = path === "identity.headers";
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, masked(item, below(anyName ? "*" : name))]),
  );
}

function maskedText(text: string, path: string): string {
  if (SHOWN.has(path)) return text;
  if (URLS.has(path)) return maskUrl(text);
  if (path === "session.encryptionKeys.*" && text === PLAINTEXT) return text;
  const isUnit = parseDuration(text) !== undefined || parseSize(text) !== undefined;
  return isUnit && text.length < LONGEST_UNIT_TEXT ? text : `*** (${text.length} characters)`;
}
