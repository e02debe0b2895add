import { isIP } from "node:net";
import { resolve } from "node:path";
import { z } from "zod";
import { isVerification } from "../core/forward-auth.ts";
import {
  FORWARDED_IDENTITY,
  foldName,
  HOP_BY_HOP,
  INTERNAL_PREFIX,
  isForwardedFamily,
  isToken,
  WRITE_BACK_HEADERS,
} from "../core/header-names.ts";
import { MAX_IDENTITY_HEADERS } from "../core/identity.ts";
import { parsePointer } from "../core/json.ts";
import { ACCESS_LINES, LOG_LEVELS } from "../core/observe-settings.ts";
import { isRedisUrl, parseRedisUrl } from "../core/redis-url.ts";
import { BINDINGS } from "../core/session.ts";
import { MODULE_URL, PLAINTEXT, STORE_SCHEMES } from "../core/store.ts";
import { parseDuration, parseSize } from "../core/units.ts";
import { BALANCES } from "../core/upstream.ts";
import { duration, hostname, isCidr, MIN_SECRET_LENGTH, maskUrl, quoted, secret, size, url, whole } from "./fields.ts";
import { limits, routeLimits } from "./limits.ts";
import { conflictOf, identityHeaders, PRESETS } from "./presets.ts";

/**
 * The configuration file as people write it: names, defaults, limits and the text of docs/configuration.md.
 * `compile.ts` turns it into what the code works with.
 */

const LOOPBACK = new Set(["127.0.0.1", "::1", "localhost"]);

const keyPair = {
  cert: z.string().min(1).describe("File with the certificate and the chain above it, PEM."),
  key: z.string().min(1).describe("File with its private key, PEM, without a passphrase."),
};

/** What browsers' preload lists demand: https://hstspreload.org. */
const PRELOAD_MIN_AGE = "365d";

const listenTls = z
  .strictObject({
    ...keyPair,
    minVersion: z
      .preprocess((value) => (typeof value === "number" ? value.toFixed(1) : value), z.enum(["1.2", "1.3"]))
      .default("1.2")
      .describe("The oldest version of TLS that clients may speak: `1.2` or `1.3`."),
    http2: z.boolean().default(true).describe("Whether clients may choose HTTP/2."),
    redirectFrom: z
      .preprocess(
        (value) => (typeof value === "object" ? value : { port: value }),
        z.strictObject({ port: whole(0, 65535), httpsPort: whole(1, 65535).optional() }),
      )
      .optional()
      .describe(
        "A port on which HTTP is answered with a redirect (308) to HTTPS, and nothing is forwarded. `{ port: 8080, httpsPort: 443 }` where clients reach this listener by another port than `listen.port`.",
      ),
    hsts: z
      .strictObject({
        maxAge: duration({ min: "0s", max: "3650d" }).describe(
          "How long browsers insist on HTTPS, from each response on. `0s` makes them forget it.",
        ),
        includeSubDomains: z.boolean().default(false).describe("Whether on all names below the host as well."),
        preload: z
          .boolean()
          .default(false)
          .describe("Whether browsers may have the host in a list that they come with."),
      })
      .refine(
        ({ maxAge, includeSubDomains, preload }) =>
          !preload || (includeSubDomains && (parseDuration(maxAge) ?? 0) >= (parseDuration(PRELOAD_MIN_AGE) as number)),
        { path: ["preload"], error: `needs includeSubDomains, and a maxAge of at least ${PRELOAD_MIN_AGE}` },
      )
      .optional()
      .describe(
        "`Strict-Transport-Security` on every response, in place of the application's own. Begin with a short `maxAge`: browsers keep to it, whatever happens.",
      ),
  })
  .describe("HTTPS instead of HTTP; [docs/tls.md](tls.md). The files are read again when they have changed.");

const listen = z
  .strictObject({
    host: z.string().min(1).default("0.0.0.0").describe("Address to listen on."),
    port: whole(0, 65535).default(8080).describe("Port to listen on; 0 takes any free one."),
    tls: listenTls.optional(),
    trustedProxies: z
      .array(z.string().refine(isCidr, { error: 'must be an address or a CIDR block such as "10.0.0.0/8"' }))
      .default([])
      .describe("CIDR blocks whose `X-Forwarded-*`, `traceparent` and `baggage` are believed. Nobody by default."),
  })
  .refine(({ port, tls }) => port === 0 || tls?.redirectFrom?.port !== port, {
    path: ["tls", "redirectFrom"],
    error: "must be another port than listen.port",
  })
  .prefault({})
  .describe("The listener that browsers reach.");

const admin = z
  .strictObject({
    host: z.string().min(1).default("127.0.0.1").describe("Address of the admin listener."),
    port: whole(0, 65535).default(9090).describe("Its port; 0 takes any free one."),
    token: secret
      .regex(/^[\x21-\x7e]*$/, { error: "must be printable ASCII without blanks, or no request could carry it" })
      .optional()
      .describe("Bearer token for everything but `/livez` and `/readyz`. Required when `host` is not loopback."),
    tls: z
      .strictObject(keyPair)
      .optional()
      .describe(
        "HTTPS instead of HTTP. Files are relative to the working directory, and are read again when they have changed.",
      ),
  })
  .refine((value) => value.token !== undefined || LOOPBACK.has(value.host), {
    path: ["token"],
    error: "is required when admin.host is not loopback; make one with: openssl rand -base64 32",
  })
  .prefault({})
  .describe("The listener for operators: metrics, health, recorder.");

const cookieName = z.string().max(64).refine(isToken, { error: "is not a cookie name" });
const attributeValue = /^[\x21-\x3a\x3c-\x7e]*$/;

const cookie = z
  .strictObject({
    name: cookieName
      .default("__Host-session")
      .describe(
        "Name of the session cookie. The `__Host-` prefix makes browsers refuse one set by a neighbouring host.",
      ),
    secrets: z
      .array(secret)
      .default([])
      .describe(
        "The first signs, all verify: rotate by putting a new one first. Without any, a random one is made at start and every restart ends all sessions.",
      ),
    sameSite: z.enum(["Strict", "Lax", "None"]).default("Lax").describe("`SameSite` attribute."),
    secure: z
      .boolean()
      .default(true)
      .describe("`Secure` attribute: browsers send the cookie over HTTPS (and to localhost) only."),
    path: z
      .string()
      .regex(/^\//, { error: 'must begin with "/"' })
      .regex(attributeValue, { error: "holds a character that a cookie attribute cannot" })
      .default("/")
      .describe("`Path` attribute."),
    domain: hostname.optional().describe("`Domain` attribute; absent: the host that set it, and no other."),
  })
  .superRefine((value, context) => {
    const problem = (path: string, message: string) => context.addIssue({ code: "custom", path: [path], message });
    const hostPrefix = value.name.startsWith("__Host-");
    if (hostPrefix && value.domain !== undefined)
      problem("domain", 'browsers refuse a "__Host-" cookie with a domain; choose another cookie name');
    if (hostPrefix && value.path !== "/")
      problem("path", 'browsers refuse a "__Host-" cookie with a path other than "/"; choose another cookie name');
    if ((hostPrefix || value.name.startsWith("__Secure-")) && !value.secure)
      problem("secure", `browsers refuse the cookie name "${value.name}" without secure; choose another cookie name`);
    if (value.sameSite === "None" && !value.secure) problem("secure", "browsers refuse SameSite=None without secure");
  })
  .prefault({})
  .describe("The cookie that holds the token.");

const session = z
  .strictObject({
    idleTimeout: duration({ min: "1s", max: "365d" })
      .default("30m")
      .describe("A session ends this long after its last use."),
    absoluteTimeout: duration({ min: "1s", max: "400d" })
      .default("12h")
      .describe("A session ends this long after the login, whatever its use."),
    cookie,
    codec: z
      .enum(["json", "msgpack"])
      .default("json")
      .describe("How sessions are written. What was written before is read, whatever this says."),
    encryptionKeys: z
      .array(
        z.string().refine((text) => text === PLAINTEXT || text.length >= MIN_SECRET_LENGTH, {
          error: `must have at least ${MIN_SECRET_LENGTH} characters, or be the word ${PLAINTEXT}; make one with: openssl rand -base64 32`,
        }),
      )
      .default([])
      .describe(
        "Secrets for encryption at rest (AES-256-GCM): the first encrypts, all decrypt. None: sessions are stored as they are. User ids and times stand beside a session in the clear. With any, a session that is not encrypted is refused, or somebody who can write to the store could make one; the word `plaintext` in the list permits it: `[KEY, plaintext]` reads old sessions while encryption is introduced, `[plaintext, KEY]` writes plain text while it is taken away. Take `plaintext` or an old key out when `absoluteTimeout` has passed. Of several gateways on one store each has to know a key before the first one encrypts with it: put a new key last everywhere, and then first.",
      ),
    layout: z
      .enum(["blob", "fields"])
      .default("blob")
      .describe(
        "In Redis: all attributes of a session together, or a hash field for each, so that a small change to a large session writes little. Either is read, whatever is configured.",
      ),
    bind: z
      .enum(BINDINGS)
      .default("none")
      .describe(
        "What of the client that began a session the others have to share: the `User-Agent`, the network (/24 of IPv4, /48 of IPv6), or both.",
      ),
    onMismatch: z
      .enum(["log", "deny"])
      .default("log")
      .describe("What happens when they do not: it is logged and counted, or the session is not believed either."),
    // A store lists a thousand of a user, and one more has to be seen.
    maxPerUser: whole(0, 999)
      .default(0)
      .describe("Sessions that one user may have; a login beyond that ends the oldest. 0: no limit."),
  })
  .refine((value) => (parseDuration(value.idleTimeout) ?? 0) <= (parseDuration(value.absoluteTimeout) ?? Infinity), {
    path: ["idleTimeout"],
    error: "must not be longer than absoluteTimeout",
  })
  .refine((value) => value.bind !== "none" || value.onMismatch === "log", {
    path: ["onMismatch"],
    error: "has no effect without bind: say what of the client must not change",
  })
  .prefault({})
  .describe("How long sessions live, how they are stored, and the cookie.");

const RESERVED_HEADERS = new Set([
  "host",
  "cookie",
  "via",
  "content-length",
  "expect",
  "traceparent",
  "tracestate",
  "baggage",
  "authorization",
  "accept",
  "accept-encoding",
  "content-type",
  "content-encoding",
  "origin",
  "range",
  "sec-fetch-mode",
  "user-agent",
]);

function headerNameProblem(name: string): string | undefined {
  if (!/^[A-Za-z][A-Za-z0-9-]*$/.test(name))
    return "a header name has letters, digits and dashes only, because applications may read any other character as a dash";
  const lower = name.toLowerCase();
  const reserved =
    RESERVED_HEADERS.has(lower) ||
    HOP_BY_HOP.has(lower) ||
    (isForwardedFamily(lower) && !FORWARDED_IDENTITY.has(lower)) ||
    lower.startsWith(INTERNAL_PREFIX);
  return reserved || (Object.values(WRITE_BACK_HEADERS) as string[]).includes(lower)
    ? `"${name}" has a meaning of its own and cannot carry identity`
    : undefined;
}

const identitySettings = z
  .strictObject({
    preset: z
      .preprocess((value) => (typeof value === "string" ? [value] : value), z.array(z.enum(PRESETS)))
      .default([])
      .describe(
        `Headers that applications know: \`${PRESETS.join("`, `")}\`, or a list of these; [docs/presets.md](presets.md). Values are UTF-8 and lists are written as the application reads them.`,
      ),
    headers: z
      .record(z.string(), z.string())
      .default({
        "X-User-Id": "/user/id",
        "X-User-Name": "/user/name",
        "X-User-Email": "/user/email",
        "X-User-Roles": "/user/roles",
        "X-Session-Handle": "handle",
      })
      .superRefine((headers, context) => {
        const folded = new Map<string, string>();
        for (const [name, source] of Object.entries(headers)) {
          const problem =
            headerNameProblem(name) ??
            (folded.has(foldName(name)) ? `is the same header as "${folded.get(foldName(name))}"` : undefined) ??
            sourceProblem(source);
          folded.set(foldName(name), name);
          if (problem !== undefined) context.addIssue({ code: "custom", path: [name], message: problem });
        }
      })
      .describe(
        "Header name → JSON pointer into `{user, data, createdAt, expiresAt}`, or `handle`. With a preset there are none by default; one of the preset's names says where its value comes from. Every route gets all of them, empty where there is no value; a client's own are removed.",
      ),
  })
  .superRefine(({ preset, headers }, context) => {
    const conflict = conflictOf(preset, headers);
    if (conflict !== undefined) context.addIssue({ code: "custom", path: ["preset"], message: conflict });
    if (identityHeaders(preset, headers).length > MAX_IDENTITY_HEADERS)
      context.addIssue({ code: "custom", path: ["headers"], message: `at most ${MAX_IDENTITY_HEADERS} headers` });
  });

/** Whoever asks for a preset does not want the others beside it. */
function withoutDefaults(value: unknown): unknown {
  if (typeof value !== "object" || value === null || !("preset" in value) || "headers" in value) return value;
  return Array.isArray(value.preset) && value.preset.length === 0 ? value : { ...value, headers: {} };
}

const identity = z.preprocess(withoutDefaults, identitySettings).prefault({}).describe("What upstream is told.");

function sourceProblem(source: string): string | undefined {
  if (source === "handle") return undefined;
  const root = source.startsWith("/") ? parsePointer(source)[0] : undefined;
  const roots = ["user", "data", "createdAt", "expiresAt"];
  return root !== undefined && roots.includes(root)
    ? undefined
    : `${quoted(source)} is neither "handle" nor a pointer that begins with ${roots.map((name) => `/${name}`).join(", ")}`;
}

const upstreamUrl = url(["http://", "https://"], "http://10.0.0.5:3000").refine(
  (text) =>
    !/^https?:/.test(text) ||
    !URL.canParse(text) ||
    (new URL(text).pathname === "/" &&
      new URL(text).search === "" &&
      new URL(text).username === "" &&
      new URL(text).hash === ""),
  { error: "must be scheme, host and port only: requests go upstream with the path that they came with" },
);

const upstreamTls = z
  .strictObject({
    ca: z
      .string()
      .min(1)
      .optional()
      .describe("File with the certificates to trust, PEM; absent: the public authorities that Node knows."),
    cert: z
      .string()
      .min(1)
      .optional()
      .describe("File with a certificate of our own, PEM, for a target that asks for one."),
    key: z.string().min(1).optional().describe("File with its private key, PEM, without a passphrase."),
    serverName: hostname
      .optional()
      .describe(
        "The name to ask for (SNI), which has to be in the target's certificate; absent: the host of the target.",
      ),
  })
  .superRefine(({ cert, key }, context) => {
    if ((cert === undefined) === (key === undefined)) return;
    const [there, missing] = cert === undefined ? ["key", "cert"] : ["cert", "key"];
    context.addIssue({ code: "custom", path: [missing], message: `is missing: ${there} is of no use without it` });
  })
  .optional()
  .describe("How a target with `https://` is spoken to. Its certificate is always verified.");

const health = z
  .strictObject({
    path: z
      .string()
      .regex(/^\/[\x21-\x7e]*$/, { error: 'must begin with "/", and hold printable ASCII only' })
      .describe("What is asked for, with `GET`."),
    host: z
      .string()
      .regex(/^[A-Za-z0-9.:[\]_-]+$/, { error: "must be a host, with or without a port" })
      .optional()
      .describe("The `Host` that is sent; absent: that of the target."),
    interval: duration({ min: "100ms", max: "1h" })
      .default("5s")
      .describe("From one check to the next, give or take a fifth."),
    timeout: duration({ min: "10ms", max: "1m" })
      .default("2s")
      .describe("For the connection and the head of the answer."),
    healthyAfter: whole(1, 100).default(2).describe("Good answers in a row that bring a target back."),
    unhealthyAfter: whole(1, 100)
      .default(3)
      .describe("Failures in a row that take it out. The very first check counts alone."),
    status: z
      .preprocess(
        (value) => (typeof value === "number" ? String(value) : value),
        z.string().regex(/^[1-5]\d\d(-[1-5]\d\d)?$/, { error: 'must be a status or a range such as "200-399"' }),
      )
      .default("200-399")
      .describe("What a good answer has: a status, or a range such as `200-299`."),
    readiness: z
      .boolean()
      .default(false)
      .describe(
        "Whether `/readyz` is 503 while no target is in service. Then no gateway is ready when the application is down.",
      ),
  })
  .optional()
  .describe("Active checks of each target; absent: none. [docs/upstreams.md](upstreams.md)");

const ejection = z
  .union(
    [
      z.literal(false),
      z.strictObject({
        failures: whole(0, 1000)
          .default(5)
          .describe(
            "Requests in a row without an answer (refused, cut, too slow) that take a target out; 0: they do not count.",
          ),
        serverErrors: whole(0, 1000)
          .default(0)
          .describe("Answers in a row with a status from 500 on that take it out; 0: they do not count."),
        duration: duration({ min: "100ms", max: "1h" })
          .default("10s")
          .describe("For how long the first time; twice as long each time after that."),
        maxDuration: duration({ min: "100ms", max: "24h" }).default("5m").describe("For how long at most."),
      }),
    ],
    { error: "must be false or { failures: 5, serverErrors: 0, duration: 10s, maxDuration: 5m }" },
  )
  .prefault({})
  .describe(
    "When a target of several is given a rest because of what becomes of requests; `false`: never. The last one in service never is.",
  );

const retries = z
  .union(
    [
      z.literal(false),
      z.strictObject({
        attempts: whole(1, 10)
          .default(1)
          .describe("How often a request may be sent again, each time to another target."),
        on: z
          .array(z.union([z.enum(["connect", "closed", "timeout"]), z.literal([502, 503, 504])]))
          .default(["connect", "closed"])
          .describe(
            "`connect`: no connection could be made, so that nothing was sent; any request. The others for `GET`, `HEAD` and `OPTIONS` without content: `closed`: the connection ended before an answer began. `timeout`: no answer within `timeouts.firstByte`. `502`, `503`, `504`: what the target answered.",
          ),
        budget: z
          .number()
          .min(0)
          .max(1)
          .default(0.2)
          .describe("The share of the requests of the last ten seconds that may be sent again, 0 to 1."),
        minPerSecond: whole(0, 10_000).default(10).describe("What may be sent again whatever the share comes to."),
      }),
    ],
    { error: "must be false or { attempts: 1, on: [connect, closed], budget: 0.2, minPerSecond: 10 }" },
  )
  .prefault({})
  .describe("Which requests that fail are sent to another target; `false`: none.");

const resolveNames = z
  .strictObject({
    interval: duration({ min: "1s", max: "1h" })
      .default("10s")
      .describe("How often names are looked up. A DNS server is asked sooner where its answer is valid for less."),
    servers: z
      .array(
        z.string().refine(isDnsServer, { error: 'must be an address, with or without a port, such as "10.0.0.2:53"' }),
      )
      .default([])
      .describe("DNS servers to ask; none: the operating system, `/etc/hosts` included."),
  })
  .optional()
  .describe(
    "Looks the names of targets up again and again, and takes each address as a target; absent: each new connection asks the operating system.",
  );

const upstreamSettings = z
  .strictObject({
    targets: z
      .array(
        z.preprocess(
          (value) => (typeof value === "string" ? { url: value } : value),
          z.strictObject({
            url: upstreamUrl.describe("Scheme, host and port."),
            weight: whole(1, 1000).default(1).describe("Its share, compared with the others."),
          }),
        ),
      )
      .min(1, { error: "at least one target is needed" })
      .max(256)
      .describe("Where requests go: a URL, or `{ url: URL, weight: 1 }`."),
    balance: z
      .enum(BALANCES)
      .default("round-robin")
      .describe(
        "Which of several targets gets a request: in turns (`round-robin`), the one with the least to do (`least-requests`), or always the same for a session (`session-hash`; without a session as `least-requests`).",
      ),
    health,
    ejection,
    slowStart: duration({ min: "0s", max: "1h" })
      .default("30s")
      .describe("How long a target that comes back takes to get its whole share again; `0s`: at once."),
    retries,
    maxConnections: whole(1, 65_535)
      .optional()
      .describe(
        "Requests and WebSockets that a target, or each address of it, has at a time; absent: 1024 requests, and as many WebSockets as come.",
      ),
    queue: z
      .strictObject({
        size: whole(0, 65_535).default(1024).describe("How many requests wait for a connection; one more gets 503."),
        timeout: duration({ min: "10ms", max: "5m" }).default("10s").describe("How long; then it gets 503."),
      })
      .prefault({})
      .describe("What becomes of requests beyond `maxConnections`."),
    resolve: resolveNames,
    timeouts: z
      .strictObject({
        connect: duration({ min: "10ms", max: "5m" }).default("5s").describe("To establish a connection."),
        firstByte: duration({ min: "10ms", max: "1h" })
          .default("60s")
          .describe("From the request to the head of the response."),
        idle: duration({ min: "10ms", max: "1h" })
          .default("60s")
          .describe("Between two pieces of a request's or a response's content."),
      })
      .prefault({}),
    tls: upstreamTls,
  })
  .superRefine(({ targets, tls, balance, resolve }, context) => {
    const problem = (path: (string | number)[], message: string) => context.addIssue({ code: "custom", path, message });
    if (tls !== undefined && targets.some(({ url }) => url.startsWith("http:")))
      problem(["tls"], "has no meaning for a target with http://");
    const seen = new Map<string, number>();
    targets.forEach(({ url }, index) => {
      if (!URL.canParse(url)) return;
      const { host } = new URL(url);
      const before = seen.get(host);
      if (before !== undefined)
        problem(["targets", index], `is the same as targets[${before}]; give it a weight instead`);
      seen.set(host, index);
    });
    if (balance !== "round-robin" && targets.length === 1 && resolve === undefined)
      problem(["balance"], "has a meaning only with several targets, or with resolve");
  });

/** `10.0.0.2`, `10.0.0.2:53` or `[fd00::2]:53`. */
function isDnsServer(text: string): boolean {
  const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^\]]+?))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const address = bracketed ?? plain ?? "";
  return isIP(text) !== 0 || (isIP(address) !== 0 && (port === undefined || Number(port) <= 65_535));
}

const upstream = z.preprocess(
  (value) => (typeof value === "string" ? { targets: [value] } : Array.isArray(value) ? { targets: value } : value),
  upstreamSettings,
);

/** Names that would reach into the object machinery instead of the session. */
const FORBIDDEN_ATTRIBUTES = new Set(["__proto__", "constructor", "prototype"]);

/** By whole segments, and without what could be read in two ways. */
const plainPath = z
  .string()
  .regex(/^\/(?:(?![?#%\\;])[\x21-\x7e])*$/, {
    error: 'must begin with "/" and hold printable ASCII only, and none of ? # % \\ ;',
  })
  .refine((path) => !/\/(\/|\.{1,2}(\/|$))/.test(path), {
    error: "must be normalised: without empty, . and .. segments",
  });

const forwardAuth = z
  .strictObject({
    path: plainPath
      .refine((path) => !path.endsWith("/"), { error: 'must have a segment, and no "/" at the end' })
      .default("/verify")
      .describe("Where another proxy asks. Below it, Envoy asks: it puts the path that it asks about behind this one."),
  })
  .optional()
  .describe(
    "Other proxies ask whether a request may go on, and in whose name, and forward it themselves: nginx (`auth_request`), Traefik, Caddy and Envoy; [docs/forward-auth.md](forward-auth.md). `{}` is enough. Only those of `listen.trustedProxies` may ask. Absent: nobody may.",
  );

const route = z
  .strictObject({
    match: z
      .strictObject({
        host: hostname.optional().describe("Host name; absent: every host."),
        path: plainPath
          .default("/")
          .describe("Path prefix, by whole segments: `/admin` matches `/admin` and `/admin/x`, not `/administrator`."),
      })
      .prefault({})
      .describe("Which requests; the most specific host wins, then the longest path."),
    upstream: upstream
      .optional()
      .describe(
        "A URL, a list of them, or `{ targets: […], balance: …, … }`; [docs/upstreams.md](upstreams.md). With `forwardAuth` it may be absent: then the route is there for other proxies to ask about, and forwards nothing.",
      ),
    session: z
      .enum(["required", "optional", "none"])
      .default("required")
      .describe(
        "`required`: nobody passes without a logged-in session. `optional`: identity if there is one. `none`: the store is not asked.",
      ),
    onMissing: z
      .union(
        [
          z.literal(401),
          z.strictObject({
            redirect: z
              .string()
              .regex(/^(\/(?![/\\])|https?:\/\/)[\x21-\x7e]*$/, { error: "must be a path or an http(s) URL" }),
          }),
        ],
        { error: "must be 401 or { redirect: /login }" },
      )
      .default(401)
      .describe("`401`, or `{ redirect: /login }` for page navigations (scripts get 401 all the same)."),
    onOutage: z
      .union([z.literal(503), z.literal("anonymous")], { error: "must be 503 or anonymous" })
      .default(503)
      .describe(
        "With `session: optional`, while the store does not answer: `503` for whoever brings a cookie, or `anonymous`, as if they had none. The cookie is left alone either way.",
      ),
    write: z
      .array(
        z
          .string()
          .min(1)
          .max(128)
          .refine((name) => !FORBIDDEN_ATTRIBUTES.has(name), { error: "is not a name for a session key" }),
      )
      .optional()
      .describe(
        "Session keys that this upstream may write through `X-Session-Start`, `-Set` and `-End`; absent: none, and the headers are removed.",
      ),
    websockets: z
      .union(
        [
          z.literal(false),
          z.strictObject({
            origins: z
              .array(
                z
                  .string()
                  .toLowerCase()
                  .refine(isOrigin, { error: "must be an origin such as https://app.example.com" }),
              )
              .default([])
              .describe(
                "Whose pages may open one, beside those of the host itself, such as `https://app.example.com`.",
              ),
            idleTimeout: duration({ min: "10ms", max: "24h" })
              .default("1h")
              .describe("One over which nothing has come from either side for so long is closed."),
          }),
        ],
        { error: "must be false or { origins: […], idleTimeout: 1h }" },
      )
      .prefault({})
      .describe("Who may open WebSockets; `false`: nobody. [docs/websockets.md](websockets.md)"),
    limits: routeLimits,
  })
  .superRefine((value, context) => {
    if (value.session === "none" && (value.limits?.requests?.perSession ?? "none") !== "none")
      context.addIssue({
        code: "custom",
        path: ["limits", "requests", "perSession"],
        message: 'needs session "optional" or "required": here nobody knows the session',
      });
    if (value.session === "none" && value.write !== undefined)
      context.addIssue({
        code: "custom",
        path: ["write"],
        message: 'needs session "optional" or "required": a login has to see the session that it replaces',
      });
    if (value.upstream === undefined && value.write !== undefined)
      context.addIssue({ code: "custom", path: ["write"], message: "needs an upstream: it is what may write" });
    if (value.session !== "optional" && value.onOutage !== 503)
      context.addIssue({ code: "custom", path: ["onOutage"], message: 'has a meaning only with session "optional"' });
    if (value.session !== "required" && value.onMissing !== 401)
      context.addIssue({ code: "custom", path: ["onMissing"], message: 'has a meaning only with session "required"' });
  });

/** As browsers send it: without a path, and without the port that goes without saying. */
function isOrigin(text: string): boolean {
  return /^https?:/.test(text) && URL.canParse(text) && new URL(text).origin === text;
}

const storeUrl = z.string().superRefine((text, context) => {
  const problem = storeUrlProblem(text);
  if (problem !== undefined) context.addIssue({ code: "custom", message: problem });
});

function storeUrlProblem(text: string): string | undefined {
  const example = "redis://127.0.0.1:6379/0, sqlite:./sessions.db or memory:";
  if (!STORE_SCHEMES.some((scheme) => text.startsWith(scheme)))
    return `"${maskUrl(text)}" is not a URL such as ${example}`;
  if (/^(memory:.|sqlite:$)/.test(text)) return "must be memory: alone, or sqlite: and a file name";
  if (text.startsWith("module:") && !MODULE_URL.test(text))
    return "must be module: and a path that begins with ./, ../ or /, or the name of a package";
  if (!isRedisUrl(text)) return undefined;
  try {
    parseRedisUrl(text);
    return undefined;
  } catch (error) {
    return `"${maskUrl(text)}" ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** The same text for two URLs of one store, however they are written. */
function placeOf(url: string): string {
  if (url.startsWith("sqlite:")) return resolve(url.slice("sqlite:".length));
  if (!isRedisUrl(url)) return url;
  const { hosts, master, database } = parseRedisUrl(url);
  return JSON.stringify([hosts, master, database]);
}

const store = z
  .union(
    [
      storeUrl,
      z
        .strictObject({ primary: storeUrl, fallback: storeUrl })
        .refine(
          (both) => Object.values(both).some(storeUrlProblem) || placeOf(both.primary) !== placeOf(both.fallback),
          {
            path: ["fallback"],
            error: "must be another store than primary",
          },
        ),
    ],
    { error: "must be a URL, or { primary: URL, fallback: URL }" },
  )
  .default("sqlite:./sessions.db")
  .describe(
    "Where sessions live: `redis://user:password@host:port/db`, `redis+sentinel://h1:26379,h2:26379/mymaster`, `redis+cluster://h1:7000,h2:7000` (each with `rediss` for TLS; parameters in [docs/redis.md](redis.md)), `sqlite:FILE`, `memory:`, or `module:./my-store.js`: [a store of your own](custom-stores.md). Files are relative to the working directory. `{ primary: URL, fallback: URL }` replaces a store with nobody logged out: new sessions begin in `primary`, and those of `fallback` are moved there as they are used. Change all gateways at once: one that only knows the old store does not find what has been moved.",
  );

const cache = z
  .strictObject({
    maxBytes: size({ min: "0B", max: "64GiB" })
      .default("64MiB")
      .describe("About how much memory the sessions in the near cache may take; `0B` turns it off."),
    maxAge: duration({ min: "10ms", max: "1h" })
      .default("30s")
      .describe("How long after it was read a cached session may be used, whatever the store tells or does not tell."),
    staleOnOutage: duration({ min: "0s", max: "24h" })
      .default("0s")
      .describe(
        "While the store does not answer: how long beyond `maxAge` a session that was cached may still be used. Such requests carry `X-Coatcheck-Session: stale; age=SECONDS` to the application. `0s`: not at all, 503 instead.",
      ),
  })
  .refine((value) => parseSize(value.maxBytes) !== 0 || parseDuration(value.staleOnOutage) === 0, {
    path: ["staleOnOutage"],
    error: "needs the near cache, which maxBytes turns off",
  })
  .prefault({})
  .describe("The near cache: sessions kept in this process, as long as the store tells of every change (Redis does).");

const observe = z
  .strictObject({
    log: z
      .strictObject({
        level: z.enum(LOG_LEVELS).default("info").describe("Lowest level that is written."),
        access: z
          .enum(ACCESS_LINES)
          .default("all")
          .describe(
            "Which requests get an access line; `errors` are those with status 500 and above or an error code, and those under watch.",
          ),
        sample: z
          .number()
          .min(0)
          .max(1)
          .default(1)
          .describe(
            "With `access: all`, the share of access lines that is written, 0 to 1. Failed requests, slow ones (`traces.slowerThan`) and those under watch are always written. Metrics count all.",
          ),
        format: z
          .enum(["auto", "json", "pretty"])
          .default("auto")
          .describe("`auto`: lines for a person when standard output is a terminal, JSON otherwise."),
      })
      .prefault({}),
    traces: z
      .strictObject({
        ratio: z.number().min(0).max(1).default(0.01).describe("Share of traces that are exported anyway, 0 to 1."),
        slowerThan: duration({ min: "1ms", max: "1h" })
          .default("1s")
          .describe("Requests slower than this are always exported."),
        errors: z.boolean().default(true).describe("Whether failed requests are always exported."),
      })
      .prefault({})
      .describe(
        "Exported over OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; [docs/tracing.md](tracing.md) has this and the other variables.",
      ),
    recorder: z
      .strictObject({
        exchanges: whole(0, 100_000).default(1000).describe("How many of the last exchanges are kept."),
        slow: whole(0, 100_000).default(200).describe("How many of the last slow ones (`traces.slowerThan`)."),
        errors: whole(0, 100_000).default(200).describe("How many of the last failed ones."),
      })
      .prefault({}),
    dumps: z
      .strictObject({
        folder: z
          .string()
          .min(1)
          .optional()
          .describe("Where SIGUSR2 writes a dump; absent: the system's folder for temporary files."),
      })
      .prefault({}),
  })
  .prefault({})
  .describe(
    "Logs, traces and the recorder. `log` and `traces` can also be changed without the file, with `coatcheck observe`.",
  );

const reload = z
  .strictObject({
    watch: z
      .boolean()
      .default(true)
      .describe("Whether the file is looked at every second, and read again when it has changed, as by SIGHUP."),
  })
  .prefault({})
  .describe("What changes while it runs, and what needs a restart: [docs/lifecycle.md](lifecycle.md#reload)");

const shutdown = z
  .strictObject({
    delay: duration({ min: "0s", max: "10m" })
      .default("0s")
      .describe("How long to go on serving after readiness has turned to 503, so that a load balancer notices."),
    timeout: duration({ min: "0s", max: "1h" })
      .default("10s")
      .describe("How long requests in flight may take to finish after that; then their connections are closed."),
  })
  .prefault({})
  .describe("What SIGTERM and SIGINT do.");

const workers = z
  .union([z.literal("auto"), whole(1, 256)], { error: "must be auto, or a whole number from 1 to 256" })
  .default(1)
  .describe(
    "How many processes serve: `auto` is one for each core that this one may use. With more than one, a process without traffic of its own starts them, replaces those that end, and has the admin listener; [docs/workers.md](workers.md). Not with `memory:`, which each of them would have for itself. The command line only: a program that embeds Coatcheck is one process.",
  );

const errors = z
  .strictObject({
    pages: z
      .string()
      .min(1)
      .optional()
      .describe(
        "Folder with pages of your own: `503.html`, `5xx.html`, `4xx.html`, `error.html`; [docs/errors.md](errors.md). Relative to the working directory, read at the start and with each reload.",
      ),
  })
  .prefault({})
  .describe("What people see when Coatcheck itself answers with an error.");

export const settingsSchema = z
  .strictObject({
    listen,
    admin,
    workers,
    store,
    cache,
    session,
    identity,
    forwardAuth,
    routes: z.array(route).min(1, { error: "at least one route is needed" }).describe("Where requests go. Required."),
    limits,
    errors,
    observe,
    reload,
    shutdown,
  })
  .superRefine((value, context) => {
    const { forwardAuth, listen } = value;
    if (forwardAuth !== undefined && listen.trustedProxies.length === 0)
      context.addIssue({
        code: "custom",
        path: ["listen", "trustedProxies"],
        message:
          "forwardAuth needs the addresses of the proxies that ask, such as [127.0.0.1]: nobody else is believed",
      });
    value.routes.forEach(({ match, upstream }, index) => {
      if (upstream === undefined && forwardAuth === undefined)
        context.addIssue({ code: "custom", path: ["routes", index, "upstream"], message: "is required" });
      if (upstream !== undefined && forwardAuth !== undefined && isVerification(forwardAuth.path, match.path))
        context.addIssue({
          code: "custom",
          path: ["routes", index, "match", "path"],
          message: `is never reached: forwardAuth answers at ${forwardAuth.path}`,
        });
    });
    const seen = new Map<string, number>();
    value.routes.forEach(({ match }, index) => {
      const id = `${match.host ?? "*"}${match.path.replace(/\/$/, "")}`;
      const before = seen.get(id);
      if (before !== undefined)
        context.addIssue({
          code: "custom",
          path: ["routes", index, "match"],
          message: `is the same as that of routes[${before}]`,
        });
      seen.set(id, index);
    });
    const stores = typeof value.store === "string" ? [value.store] : Object.values(value.store);
    if (value.workers !== 1 && stores.includes("memory:"))
      context.addIssue({
        code: "custom",
        path: ["workers"],
        message: "must be 1 with the store memory:, which each process would have for itself; use sqlite: or redis:",
      });
  });

/** The configuration with every default filled in, still in the words of the file. */
export type Settings = z.output<typeof settingsSchema>;
