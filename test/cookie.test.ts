/** The cookie: a bad one never reaches the store, a good one survives the rotation of secrets. */
import { createHmac, randomBytes } from "node:crypto";
import t from "tap";
import { SessionCookie } from "../src/session/cookie.ts";
import { ask, cookiePair } from "./support/client.ts";
import { SECRET, startApp, startGateway } from "./support/servers.ts";

const NEW_SECRET = "a newer secret that has 32 characters";
const settings = {
  name: "session",
  secrets: [SECRET],
  sameSite: "Lax",
  secure: true,
  path: "/",
  domain: undefined,
} as const;
const HOUR_MS = 3_600_000;

/** A cookie as the format says, made without the code under test. */
function forge(token: string, secret = SECRET, name = "session"): string {
  return `${token}.${createHmac("sha256", secret).update(`${name}=${token}`).digest("base64url")}`;
}

const token = randomBytes(32).toString("base64url");
const good = forge(token);

t.test("a cookie of the documented format verifies, and one that was issued has that format", async (t) => {
  const cookie = new SessionCookie(settings);
  const read = cookie.read(`session=${good}`);
  t.equal(read.verdict, "valid");
  t.match(read.keys, [/^[\w-]{43}$/]);
  t.not(read.keys[0], token);
  const { key, setCookie } = cookie.issue(HOUR_MS);
  const value = cookiePair(setCookie).slice("session=".length);
  t.equal(value, forge(value.slice(0, 43)));
  t.same(cookie.read(cookiePair(setCookie)).keys, [key]);
  t.match(setCookie, /; Max-Age=3600; Path=\/; HttpOnly; Secure; SameSite=Lax$/);
});

t.test("attributes follow the settings", async (t) => {
  const cookie = new SessionCookie({
    ...settings,
    name: "s",
    secure: false,
    sameSite: "Strict",
    path: "/app",
    domain: "example.com",
  });
  t.match(
    cookie.issue(HOUR_MS).setCookie,
    /; Max-Age=3600; Path=\/app; Domain=example.com; HttpOnly; SameSite=Strict$/,
  );
  t.equal(cookie.clear(), "s=; Max-Age=0; Path=/app; Domain=example.com; HttpOnly; SameSite=Strict");
});

const bad: Record<string, [value: string, verdict: string]> = {
  "tampered token": [(good.startsWith("A") ? "B" : "A") + good.slice(1), "bad-signature"],
  "tampered signature": [good.slice(0, -2) + (good.at(-2) === "A" ? "B" : "A") + good.at(-1), "bad-signature"],
  "last character changed to one that decodes to the same octets": [
    good.slice(0, -1) + nextInBase64(good.at(-1) ?? "A"),
    "bad-signature",
  ],
  truncated: [good.slice(0, -1), "bad-shape"],
  "token only": [token, "bad-shape"],
  empty: ["", "bad-shape"],
  "unknown secret": [forge(token, "x".repeat(32)), "bad-signature"],
  "signed for another cookie name": [forge(token, SECRET, "other"), "bad-signature"],
  oversized: [`${good}${"A".repeat(4000)}`, "bad-shape"],
  "malformed percent-encoding": [`%zz${good.slice(3)}`, "bad-signature"],
  "percent-encoded": [good.replace(".", "%2E"), "bad-shape"],
  quoted: [`"${good}"`, "bad-shape"],
  "octets beyond ASCII": [`\xe9${good.slice(1)}`, "bad-signature"],
};

/** Base64url has two unused bits in the 43rd character of 32 octets. */
function nextInBase64(character: string): string {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const index = alphabet.indexOf(character);
  return alphabet[(index & ~3) | ((index + 1) & 3)] ?? "A";
}

for (const [name, [value, verdict]] of Object.entries(bad)) {
  t.test(`refused before the store: ${name}`, async (t) => {
    t.not(value, good);
    const read = new SessionCookie(settings).read(`session=${value}`);
    t.equal(read.verdict, verdict);
    t.same(read.keys, []);
    t.equal(read.others, undefined);
  });
}

t.test("rotation: the first secret signs, every secret verifies, a dropped one does not", async (t) => {
  const rotated = new SessionCookie({ ...settings, secrets: [NEW_SECRET, SECRET] });
  t.match(rotated.read(`session=${good}`), { verdict: "valid", secret: 1 });
  const value = cookiePair(rotated.issue(HOUR_MS).setCookie);
  t.match(rotated.read(value), { verdict: "valid", secret: 0 });
  t.match(new SessionCookie({ ...settings, secrets: [NEW_SECRET] }).read(`session=${good}`), {
    verdict: "bad-signature",
  });
});

t.test("cookies of other names pass, in their order and as they are", async (t) => {
  const cookie = new SessionCookie(settings);
  const others = ['a=1; b="x y"; Xsession=2; session2=3; c==; d', "a=1", "", ";;", "=x"];
  for (const header of others) t.match(cookie.read(header), { verdict: "absent" }, header);
  t.equal(cookie.read(`a=1; session=${good};b="x y";session2=3`).others, 'a=1; b="x y"; session2=3');
  t.equal(cookie.read(` session = ${good} `).verdict, "valid");
  t.equal(cookie.read(undefined).others, undefined);
});

t.test("many cookies of the name cost a bounded amount of work", async (t) => {
  const cookie = new SessionCookie(settings);
  const many = Array.from({ length: 500 }, () => `session=${forge(randomBytes(32).toString("base64url"))}`).join("; ");
  t.ok(cookie.read(many).keys.length <= 4);
});

t.test("random input: no exception, nothing verified, the session cookie never passed on", async (t) => {
  const cookie = new SessionCookie(settings);
  const pieces = ["session", "=", ";", " ", ".", "%", '"', ",", good.slice(0, 50), "\t", "a", "\xff", "session="];
  for (let i = 0; i < 20_000; i++) {
    let header = "";
    for (let j = Math.floor(Math.random() * 12); j >= 0; j--)
      header += pieces[Math.floor(Math.random() * pieces.length)];
    const read = cookie.read(header);
    if (read.verdict === "valid") t.fail(`verified: ${JSON.stringify(header)}`);
    if (read.others?.split(";").some((pair) => pair.split("=")[0]?.trim() === "session" && pair.includes("="))) {
      t.fail(`passed on: ${JSON.stringify(header)}`);
    }
  }
  t.pass();
});

t.test("through the gateway", async (t) => {
  const app = await startApp(t);
  const gateway = await startGateway(t, { upstream: app.url });
  const login = async (id: string) => {
    const reply = await ask(`${gateway.url}/start`, { method: "POST", body: JSON.stringify({ user: { id } }) });
    return cookiePair(reply.setCookie[0]);
  };
  const whoIs = async (cookie: string) =>
    JSON.parse((await ask(gateway.url, { headers: { cookie } })).body).headers["x-user-id"];
  const outcome = async () => (await gateway.exchanges())[0]?.session;

  await t.test("no bad cookie causes a look-up", async (t) => {
    const lookUps = async () => /operation="find".* (\d+)$/m.exec(await gateway.metrics())?.[1] ?? "0";
    const before = await lookUps();
    for (const [name, [value]] of Object.entries(bad)) {
      t.equal(await whoIs(`session=${value}`), "", name);
      t.equal((await outcome())?.outcome, "malformed", name);
    }
    t.equal(await lookUps(), before);
  });

  await t.test("duplicates: junk beside the good one does no harm, nor does a dead one", async (t) => {
    const cookie = await login("1");
    t.equal(await whoIs(`session=junk; ${cookie}; session=${good}`), "1");
    t.equal(await whoIs(`${cookie}; ${cookie}`), "1");
  });

  await t.test("duplicates: two live sessions are believed neither", async (t) => {
    t.equal(await whoIs(`${await login("1")}; ${await login("2")}`), "");
    t.equal((await outcome())?.outcome, "ambiguous");
  });

  await t.test("several Cookie fields are one", async (t) => {
    const cookie = await login("1");
    const reply = await ask(gateway.url, {
      headers: ["Host", "app", "Cookie", "a=1", "Cookie", cookie, "Cookie", "b=2"],
    });
    t.match(JSON.parse(reply.body).headers, { "x-user-id": "1", cookie: "a=1; b=2" });
  });
});
