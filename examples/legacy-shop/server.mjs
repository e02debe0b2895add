/**
 * A shop as it might have stood there for years: plain node:http, no framework. It knows nothing of Coatcheck but
 * headers: `X-User-*` and `X-Cart` in requests tell who asks; `X-Session-Start`, `-Set` and `-End` in responses
 * begin, change and end a session. It keeps no session itself and never sees the session cookie.
 *
 * It also misbehaves on purpose, for whoever wants to see what the gateway makes of it: /slow, /flaky, /cut, /refuse and
 * /mistake.
 */
import { createServer } from "node:http";

const USERS = new Map([
  ["ada", { id: "1", name: "Ada Lovelace", email: "ada@shop.example", roles: ["admin", "staff"] }],
  ["bob", { id: "2", name: "Bob Babbage", email: "bob@shop.example", roles: ["customer"] }],
  ["zoë", { id: "3", name: "Zoë Ångström", email: "zoe@shop.example", roles: ["customer"] }],
]);
/** Regular customers, as many as one wants: shopper-1, shopper-2, … */
const SHOPPER = /^shopper-([1-9]\d{0,4})$/;
const ITEMS = ["umbrella", "hat", "scarf", "gloves"];
const MAX_FORM_BYTES = 4096;
const MAX_WAIT_MS = 5000;

/** Identity values are printable ASCII, the rest percent-encoded. */
const header = (req, name) => decodeURIComponent(req.headers[name] ?? "");
const list = (req, name) => (req.headers[name] ? req.headers[name].split(",").map(decodeURIComponent) : []);

const server = createServer(async (req, res) => {
  const visitor = {
    id: header(req, "x-user-id"),
    name: header(req, "x-user-name"),
    email: header(req, "x-user-email"),
    roles: list(req, "x-user-roles"),
    cart: list(req, "x-cart"),
  };
  const { pathname, searchParams } = new URL(req.url, "http://shop");
  req.waitMs = Math.min(Math.max(Number(searchParams.get("ms") ?? 800) || 0, 0), MAX_WAIT_MS);
  const page = PAGES[`${req.method} ${pathname}`];
  try {
    if (page) await page(req, res, visitor);
    else send(res, 404, "Not here", "<p>There is no such page.</p>", visitor);
  } catch (error) {
    send(
      res,
      error.status ?? 500,
      "Sorry",
      `<p>${escapeHtml(error.status ? error.message : "Something broke.")}</p>`,
      visitor,
    );
  }
});

const PAGES = {
  "GET /": (_req, res, visitor) => {
    const buttons = ITEMS.map((item) => `<button name="item" value="${item}">${item}</button>`).join(" ");
    send(
      res,
      200,
      visitor.id ? `Welcome, ${visitor.name}` : "Welcome",
      `<form method="post" action="/cart"><p>Put into the cart: ${buttons}</p></form>
       <p>In the cart: <b id="cart">${visitor.cart.map(escapeHtml).join(", ") || "nothing"}</b></p>
       ${visitor.id ? "" : '<p><a href="/login">Sign in</a> to have a cart.</p>'}`,
      visitor,
    );
  },

  "GET /login": (_req, res, visitor) => {
    send(
      res,
      200,
      "Sign in",
      `<form method="post"><p><label>Name <input name="user" autofocus></label></p>
       <p><label>Password <input name="password" type="password"></label></p><button>Sign in</button></form>
       <p>ada, bob, zoë or shopper-1, shopper-2, …; the password is the name.</p>`,
      visitor,
    );
  },

  "POST /login": async (req, res, visitor) => {
    const form = await readForm(req);
    const user = userOf(form.get("user") ?? "");
    if (!user || form.get("password") !== form.get("user")) {
      send(res, 403, "Sign in", '<p>Wrong name or password. <a href="/login">Again</a></p>', visitor);
      return;
    }
    res.setHeader("X-Session-Start", ascii({ user }));
    redirect(res, "/");
  },

  "POST /logout": (_req, res) => {
    res.setHeader("X-Session-End", "this");
    redirect(res, "/");
  },

  "POST /logout-everywhere": (_req, res) => {
    res.setHeader("X-Session-End", "all");
    redirect(res, "/");
  },

  "POST /cart": async (req, res, visitor) => {
    const item = (await readForm(req)).get("item") ?? "";
    if (!visitor.id) return redirect(res, "/login");
    if (!ITEMS.includes(item)) throw Object.assign(new Error("We do not sell that."), { status: 422 });
    res.setHeader("X-Session-Set", ascii({ cart: [...visitor.cart, item] }));
    return redirect(res, "/");
  },

  "GET /account": (_req, res, visitor) => {
    send(
      res,
      200,
      "Your account",
      `<p>${escapeHtml(visitor.name)}, ${escapeHtml(visitor.email)}: ${visitor.roles.map(escapeHtml).join(", ")}</p>`,
      visitor,
    );
  },

  "GET /admin": (_req, res, visitor) => {
    if (!visitor.roles.includes("admin"))
      return send(res, 403, "Staff only", "<p>This page is for administrators.</p>", visitor);
    return send(
      res,
      200,
      "Administration",
      `<p>The till is open. You are number ${escapeHtml(visitor.id)}.</p>`,
      visitor,
    );
  },

  "GET /headers": (req, res) => {
    res.writeHead(200, { "content-type": "text/plain; charset=utf-8" });
    const lines = [];
    for (let i = 0; i < req.rawHeaders.length; i += 2) lines.push(`${req.rawHeaders[i]}: ${req.rawHeaders[i + 1]}`);
    res.end(`${lines.sort().join("\n")}\n`);
  },

  "GET /slow": async (req, res, visitor) => {
    await new Promise((resolve) => setTimeout(resolve, req.waitMs));
    send(res, 200, "At last", `<p>That took ${req.waitMs} ms.</p>`, visitor);
  },

  "GET /flaky": (_req, res, visitor) => {
    flaky = !flaky;
    if (flaky) throw new Error("every other time");
    send(res, 200, "Lucky", "<p>Ask again and it fails.</p>", visitor);
  },

  /** The connection ends in the middle of the answer. */
  "GET /cut": (_req, res) => {
    res.writeHead(200, { "content-type": "text/plain", "content-length": "1000" });
    res.write("The rest of this page is", () => res.destroy());
  },

  /** Nobody listens for a while, as during a restart. */
  "GET /refuse": (req, res, visitor) => {
    res.once("close", () => {
      const { port, address } = server.address() ?? {};
      if (port === undefined) return;
      server.close(() => setTimeout(() => server.listen(port, address), req.waitMs));
      server.closeAllConnections();
    });
    send(res, 200, "Closing", `<p>Closed for ${req.waitMs} ms.</p>`, visitor);
  },

  /** Commands for the session that nobody can obey: one that is no JSON, or an attribute that is not in `write`. */
  "GET /mistake": (_req, res, visitor) => {
    mistakes++;
    res.setHeader("X-Session-Set", mistakes % 2 === 0 ? "{cart: oops" : ascii({ discount: 100 }));
    send(res, 200, "A mistake", "<p>This page writes what it should not.</p>", visitor);
  },
};

let flaky = false;
let mistakes = 0;

function userOf(name) {
  const [, number] = SHOPPER.exec(name) ?? [];
  if (number === undefined) return USERS.get(name);
  const id = String(1000 + Number(number));
  return { id, name: `Shopper ${number}`, email: `${name}@shop.example`, roles: ["customer"] };
}

function send(res, status, title, body, visitor) {
  const who = visitor.id
    ? `<form method="post" action="/logout">signed in as <b>${escapeHtml(visitor.name)}</b> (${visitor.roles.map(escapeHtml).join(", ")}) <button>Sign out</button></form>`
    : '<a href="/login">Sign in</a>';
  res.writeHead(status, { "content-type": "text/html; charset=utf-8" });
  res.end(`<!doctype html><meta charset="utf-8"><title>${escapeHtml(title)}</title>
<style>body{font:1rem/1.5 system-ui;max-width:40rem;margin:3rem auto;padding:0 1rem}nav a{margin-right:1rem}nav form{display:inline}</style>
<nav><a href="/">Shop</a><a href="/account">Account</a><a href="/admin">Admin</a><a href="/headers">Headers</a> ${who}</nav>
<h1>${escapeHtml(title)}</h1>${body}`);
}

function redirect(res, location) {
  res.writeHead(303, { location });
  res.end();
}

async function readForm(req) {
  let text = "";
  req.setEncoding("utf8");
  for await (const piece of req) {
    text += piece;
    if (text.length > MAX_FORM_BYTES) throw Object.assign(new Error("That is too much."), { status: 413 });
  }
  return new URLSearchParams(text);
}

/** JSON for a header: everything beyond ASCII as \u escapes. */
function ascii(value) {
  return JSON.stringify(value).replace(
    /[\u0080-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function escapeHtml(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const { HOST = "127.0.0.1", PORT = "3000" } = process.env;
server.once("listening", () => {
  process.stdout.write(`legacy shop on http://${HOST}:${server.address().port}\n`);
});
server.listen(Number(PORT), HOST);
