import { isIP } from "node:net";
import { z } from "zod";
import { isRedisUrl, maskRedisUrl } from "../core/redis-url.ts";
import { parseDuration, parseSize } from "../core/units.ts";

/** The kinds of values that settings are made of, each with an error that says what to write. */

export const MIN_SECRET_LENGTH = 32;

/** As long as a secret has to be, and without a blank: what a wrong variable gives has this shape. */
const SECRET_SHAPE = /[\w+/=-]{32,}/g;

function withoutSecrets(text: string): string {
  return text.replace(SECRET_SHAPE, "***");
}

/** What stands in the wrong place, for a message. */
export function quoted(text: string): string {
  return `"${withoutSecrets(text).slice(0, 100)}"`;
}

export function duration(bounds: { min: string; max: string }) {
  const minMs = parseDuration(bounds.min) as number;
  const maxMs = parseDuration(bounds.max) as number;
  return z.string({ error: 'a duration such as "30s", "15m" or "12h" is expected' }).superRefine((text, context) => {
    const ms = parseDuration(text);
    if (ms === undefined) {
      context.addIssue({
        code: "custom",
        message: `${quoted(text)} is not a duration; write for example "500ms", "30s", "15m", "12h" or "7d"`,
      });
    } else if (ms < minMs || ms > maxMs) {
      context.addIssue({ code: "custom", message: `must be between ${bounds.min} and ${bounds.max}` });
    }
  });
}

export function size(bounds: { min: string; max: string }) {
  const [min, max] = [parseSize(bounds.min) as number, parseSize(bounds.max) as number];
  return z.string({ error: 'a size such as "512KiB" or "64MiB" is expected' }).superRefine((text, context) => {
    const bytes = parseSize(text);
    const message =
      bytes === undefined
        ? `${quoted(text)} is not a size; write for example "512KiB", "64MiB" or "1GiB"`
        : `must be between ${bounds.min} and ${bounds.max}`;
    if (bytes === undefined || bytes < min || bytes > max) context.addIssue({ code: "custom", message });
  });
}

/** A whole number; digits in a text too, because `${PORT}` gives a text. */
export function whole(min: number, max: number) {
  const fromText = (value: unknown) => (typeof value === "string" && /^\d{1,15}$/.test(value) ? Number(value) : value);
  return z.preprocess(
    fromText,
    z
      .int({ error: `must be a whole number from ${min} to ${max}` })
      .min(min)
      .max(max),
  );
}

export function url(schemes: readonly string[], example: string) {
  const isUrl = (text: string) => schemes.some((scheme) => text.startsWith(scheme)) && URL.canParse(text);
  return z
    .string()
    .refine(isUrl, { error: (issue) => `"${maskUrl(String(issue.input))}" is not a URL such as ${example}` });
}

/** A URL that can be shown: its password, its query and its fragment are not. Of what is no URL, only the scheme is. */
export function maskUrl(text: string): string {
  if (isRedisUrl(text)) return maskRedisUrl(text);
  if (!URL.canParse(text)) return withoutSecrets(text.replace(/^([a-z+]{1,20}:\/\/)?.*@.*$/is, "$1***")).slice(0, 100);
  const url = new URL(text);
  if (url.password !== "") url.password = "***";
  if (url.search !== "") url.search = "?***";
  // An unescaped "#" in a password begins a fragment.
  if (url.hash !== "") url.hash = "#***";
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") text = url.href;
  return url.host === "" ? text.replace(/^([^:]*:(?:\/\/)?).+@/s, "$1***@") : text;
}

export const secret = z.string().min(MIN_SECRET_LENGTH, {
  error: `must have at least ${MIN_SECRET_LENGTH} characters; make one with: openssl rand -base64 32`,
});

export const hostname = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$|^\[[0-9a-f:.]+\]$/, {
    error: "must be a host name in lower case, without scheme or port",
  });

export function isCidr(text: string): boolean {
  const [address = "", bits, rest] = text.split("/");
  const family = isIP(address);
  if (family === 0 || rest !== undefined) return false;
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128));
}
