import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { request } from "node:http";
import { type RequestOptions, request as requestTls } from "node:https";
import { Readable } from "node:stream";
import type { ReadableStream } from "node:stream/web";
import { type Environment, loadConfigFile } from "../config/load.ts";
import { readProblem } from "../core/file-problems.ts";
import { CommandError, UsageError } from "./arguments.ts";
import { plain } from "./text.ts";

/** How commands talk to the admin listener of a running Coatcheck. */

export const DEFAULT_ADMIN = "http://127.0.0.1:9090";
/** A search by handle goes through the whole store, and so does the end of many sessions. */
const ANSWER_TIMEOUT_MS = 120_000;

/** Where it is, for `parse`. */
export const ADMIN_OPTIONS = {
  config: { type: "string", short: "c" },
  admin: { type: "string" },
  ca: { type: "string" },
} as const;

/** The same for `--help`. */
export const ADMIN_HELP = `  -c, --config FILE     its configuration, for address and token
      --admin URL       its address (default: ${DEFAULT_ADMIN});
                        the token is read from COATCHECK_ADMIN_TOKEN
      --ca FILE         with --admin https://…: certificates to trust, PEM, not the usual ones`;

type Trust = Pick<RequestOptions, "ca" | "checkServerIdentity">;

/** The admin listener of a running Coatcheck. */
export interface Admin {
  /** Without a slash at the end. */
  readonly url: string;
  readonly token: string | undefined;
  /** Where a person would correct the token. */
  readonly tokenSource: string;
  /** Whom to trust, with https; absent: whom everybody trusts. */
  readonly trust?: Trust;
}

/** @throws UsageError when the options do not say where it is. */
export function adminOf(
  values: { config?: string | undefined; admin?: string | undefined; ca?: string | undefined },
  environment: Environment,
): Admin {
  const { config: file, admin, ca } = values;
  if (file === undefined) {
    const url = admin ?? DEFAULT_ADMIN;
    const parsed = URL.canParse(url) ? new URL(url) : undefined;
    if (parsed === undefined || !/^https?:$/.test(parsed.protocol) || parsed.username !== "" || parsed.password !== "")
      throw new UsageError("--admin must be a URL such as http://127.0.0.1:9090, without user and password");
    if (ca !== undefined && parsed.protocol !== "https:") throw new UsageError("--ca goes with --admin https://…");
    const token = environment.COATCHECK_ADMIN_TOKEN || undefined;
    return {
      url: `${parsed.origin}${parsed.pathname.replace(/\/$/, "")}`,
      token,
      tokenSource: "COATCHECK_ADMIN_TOKEN",
      ...(ca !== undefined && { trust: { ca: readCertificates(ca, "--ca") } }),
    };
  }
  if (admin !== undefined) throw new UsageError("--admin does not go with --config, which says where it listens");
  if (ca !== undefined) throw new UsageError("--ca does not go with --config, which names the certificate");
  const { host, port, token, tls } = loadConfigFile(file, environment).config.admin;
  if (port === 0) throw new UsageError(`admin.port in ${file} is 0, any free port: say which with --admin URL`);
  const reachable = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host;
  const name = reachable.includes(":") ? `[${reachable}]` : reachable;
  const tokenSource = `admin.token in ${file}`;
  if (tls === undefined) return { url: `http://${name}:${port}`, token, tokenSource };
  return {
    url: `https://${name}:${port}`,
    token,
    tokenSource,
    trust: trustOnly(readCertificates(tls.cert, "admin.tls.cert")),
  };
}

/** Whoever has the private key of this certificate, whatever its name, and whoever has signed it. */
function trustOnly(cert: Buffer): Trust {
  const { raw } = new X509Certificate(cert);
  return {
    ca: cert,
    checkServerIdentity: (_host, peer) =>
      raw.equals(peer.raw) ? undefined : new Error("it has another certificate than admin.tls.cert"),
  };
}

function readCertificates(file: string, setting: string): Buffer {
  let pem: Buffer;
  try {
    pem = readFileSync(file);
  } catch (error) {
    throw new CommandError(`${setting}: ${file} ${readProblem(error)}`);
  }
  try {
    new X509Certificate(pem);
    return pem;
  } catch {
    throw new CommandError(`${setting}: ${file} is not a certificate in PEM`);
  }
}

export interface AdminCall {
  readonly method: "GET" | "POST" | "DELETE";
  /** With the query. */
  readonly path: string;
  /** Sent as JSON. */
  readonly body?: unknown;
  /** Other statuses than 200 whose body is an answer too. */
  readonly answers?: readonly number[];
  /** Options by the parameters that they become: a parameter that is refused (400) is wrong usage, told of the option. */
  readonly options?: Readonly<Record<string, string>>;
  /** How long the answer may take, to its end. */
  readonly timeoutMs?: number;
}

/**
 * Asks, and reads the JSON of the answer.
 * @throws CommandError when there is none, with what to do about it; UsageError when an option has no sense.
 */
export async function callAdmin<T>(admin: Admin, call: AdminCall): Promise<T> {
  const { status, text } = await askAdmin(admin, call);
  const body = parseJson(text);
  if ((status === 200 || call.answers?.includes(status)) && body !== undefined) return body as T;
  throw wrongOption(call, { status, text }) ?? refusal(admin, { status, text });
}

/** Asks; every status but 401 is an answer. @throws CommandError when there is none. */
export function askAdmin(admin: Admin, call: AdminCall): Promise<{ readonly status: number; readonly text: string }> {
  return receive(admin, call, async (response) => ({ status: response.status, text: await response.text() }));
}

/**
 * Asks for a file. @param keep reads the body to its end.
 * @throws CommandError when there is none, with what to do about it.
 */
export async function downloadAdmin<T>(
  admin: Admin,
  call: AdminCall,
  keep: (response: Response) => Promise<T>,
): Promise<T> {
  const answer = await receive(admin, call, async (response) =>
    response.status === 200 && response.headers.has("content-disposition")
      ? { file: await keep(response) }
      : { status: response.status, text: await response.text() },
  );
  if ("file" in answer) return answer.file;
  throw refusal(admin, answer);
}

function wrongOption(
  { options = {} }: AdminCall,
  { status, text }: { readonly status: number; readonly text: string },
): UsageError | undefined {
  const error = parseJson(text)?.error;
  if (status !== 400 || typeof error !== "string") return undefined;
  const [parameter = ""] = error.split(" ", 1);
  const option = options[parameter];
  return option === undefined ? undefined : new UsageError(plain(option + error.slice(parameter.length), 1000));
}

function refusal({ url }: Admin, { status, text }: { readonly status: number; readonly text: string }): CommandError {
  const error = parseJson(text)?.error;
  if (typeof error === "string") return new CommandError(plain(error, 1000));
  return new CommandError(`what answers at ${url} is not the admin listener of Coatcheck (status ${status})`);
}

/** @param read what of the response is wanted; it may throw a CommandError of its own. */
async function receive<T>(admin: Admin, call: AdminCall, read: (response: Response) => Promise<T>): Promise<T> {
  const { url, token, tokenSource } = admin;
  const { timeoutMs = ANSWER_TIMEOUT_MS } = call;
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
    throw new CommandError(`${tokenSource} holds a blank or a character that no request can carry`);
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    const response = await send(admin, call, signal);
    if (response.status === 401)
      throw new CommandError(
        `${url} refuses the token: ${tokenSource} ${token ? "is not the right one" : "is not set"}`,
      );
    return await read(response);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError(
      signal.aborted ? `${url} gave no answer within ${timeoutMs / 1000} s; ${WHERE}` : unreachable(error, url),
    );
  }
}

/** As `fetch`, which cannot be told whom to trust. A redirect is an answer. */
function send({ url, token, trust }: Admin, { method, path, body }: AdminCall, signal: AbortSignal): Promise<Response> {
  const content = body === undefined ? undefined : JSON.stringify(body);
  const options: RequestOptions = {
    method,
    headers: {
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
      ...(content !== undefined && {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(content),
      }),
    },
    agent: false,
    // A certificate that is given is trusted by itself, also one that an authority has signed.
    allowPartialTrustChain: true,
    signal,
    ...trust,
  };
  return new Promise((resolve, reject) => {
    const asked = url.startsWith("https:") ? requestTls(url + path, options) : request(url + path, options);
    asked.on("error", reject);
    asked.on("response", (res) => {
      const { statusCode: status = 0, rawHeaders } = res;
      const headers = new Headers();
      for (let i = 0; i < rawHeaders.length; i += 2)
        headers.append(rawHeaders[i] as string, rawHeaders[i + 1] as string);
      // Those without a body may not be given one.
      const hasBody = status !== 204 && status !== 205 && status !== 304;
      resolve(new Response(hasBody ? (Readable.toWeb(res) as ReadableStream) : null, { status, headers }));
    });
    asked.end(content);
  });
}

const TLS_ADVICE: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "renew it",
  ERR_TLS_CERT_ALTNAME_INVALID: "use a name that is in it, or --config FILE, which goes by the certificate itself",
};

const WHERE = "say where it is with --config FILE or --admin URL";

function unreachable(error: unknown, url: string): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (code === "ECONNREFUSED") return `nothing listens there, so no Coatcheck is running at ${url}; ${WHERE}`;
  // The codes of TLS look otherwise than those of the system, and need words.
  if (error instanceof Error && url.startsWith("https:") && code !== "" && !/^E[A-Z]+$/.test(code)) {
    const advice = TLS_ADVICE[code] ?? "name the one to trust with --config FILE or --ca FILE";
    return `cannot trust the certificate of ${url} (${code}: ${plain(error.message)}); ${advice}`;
  }
  // Plain text where TLS is spoken, and the other way round.
  if (code === "EPROTO") return `what answers at ${url} does not speak TLS; say http://, or where else it is`;
  if (code === "ECONNRESET" && url.startsWith("http:"))
    return `${url} ends the connection without an answer; if it has admin.tls, say https://`;
  return `cannot ask ${url}${code === "" ? "" : ` (${code})`}; ${WHERE}`;
}

function parseJson(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

export function query(parameters: Readonly<Record<string, string | undefined>>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined) search.set(name, value);
  return search.size === 0 ? "" : `?${search}`;
}
