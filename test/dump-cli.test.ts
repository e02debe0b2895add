/** `coatcheck dump`: fetching one, and reading one that may come from anywhere. */
import { execFile } from "node:child_process";
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import t from "tap";
import type { Dump } from "../src/admin/dump.ts";
import { UsageError } from "../src/cli/arguments.ts";
import { openDump, renderSection, runDump } from "../src/cli/dump.ts";
import { renderSummary } from "../src/cli/dump-summary.ts";
import { ask, cookiePair } from "./support/client.ts";
import { run } from "./support/command.ts";
import { ROOT } from "./support/project.ts";
import { freePort, startApp, startGateway, startHttp, type Teardown, temporaryFolder } from "./support/servers.ts";

const TOKEN = "t".repeat(40);

async function setUp(t: Teardown) {
  const gateway = await startGateway(t, { admin: { port: 0, token: TOKEN } });
  const folder = await temporaryFolder(t);
  const dump = (...args: string[]) =>
    run(t, ["dump", "--admin", gateway.adminUrl, ...args], { COATCHECK_ADMIN_TOKEN: TOKEN }, { cwd: folder });
  return { gateway, folder, dump };
}

/** A dump of a gateway that is running, as it would be fetched. */
async function contentOf(adminUrl: string): Promise<Buffer> {
  const response = await fetch(`${adminUrl}/debug/dump`);
  return Buffer.from(await response.arrayBuffer());
}

t.test("a dump is fetched into a file for its owner alone, and into none that is there", async (t) => {
  const { folder, dump } = await setUp(t);
  const taken = await dump();
  t.match(taken, { status: 0, stderr: "" });
  const [, name = "", bytes, again] =
    /^(coatcheck-dump-[\w.-]+\.json\.gz): ([\d,]+) bytes, of Coatcheck [\d.]+, pid \d+\nTo read it: coatcheck dump --open (.*)\n$/.exec(
      taken.stdout,
    ) ?? [];
  t.equal(again, name, taken.stdout);
  const { mode, size } = await stat(join(folder, name));
  t.equal(mode & 0o777, 0o600);
  t.equal(size.toLocaleString("en-US"), bytes);
  t.match(await run(t, ["dump", "--open", name], {}, { cwd: folder }), { status: 0, stdout: /^Coatcheck \d/ });

  await writeFile(join(folder, "mine"), "what was there");
  t.match(await dump("--out", "mine"), { status: 1, stdout: "", stderr: /mine is there already; --force writes over/ });
  t.equal(await readFile(join(folder, "mine"), "utf8"), "what was there");
  t.match(await dump("--out", "mine", "--force"), { status: 0, stdout: /^mine: / });
  t.equal((await stat(join(folder, "mine"))).mode & 0o777, 0o600);
  t.match(await openDump(await readFile(join(folder, "mine")), "mine"), { format: "coatcheck-dump" });
});

t.test("what stands in the way of writing is said, and nothing is left behind", async (t) => {
  const { gateway, folder, dump } = await setUp(t);
  await mkdir(join(folder, "folder"));
  t.match(await dump("--out", "missing/x.gz"), { status: 1, stderr: /cannot write missing\/x\.gz: the folder is not/ });
  t.match(await dump("--out", "folder", "--force"), { status: 1, stderr: /cannot write folder: this is a folder/ });
  t.same(await readdir(folder), ["folder"]);
  // No file may have more than a block: as good as a full disk. tap's own files would not be allowed either.
  const script = 'ulimit -f 1; unset NODE_OPTIONS; exec "$0" "$@"';
  const main = join(ROOT, "src/main.ts");
  const args = ["-c", script, process.execPath, main, "dump", "--admin", gateway.adminUrl, "--out", "full"];
  const content = await fetch(`${gateway.adminUrl}/debug/dump`, { headers: { authorization: `Bearer ${TOKEN}` } });
  t.ok((await content.arrayBuffer()).byteLength > 1024);
  const { status, stderr } = await limited(args, folder);
  t.equal(status, 1);
  t.match(stderr, /cannot write full: (the disk is full|the file would be larger than the system allows)/);
  t.same(await readdir(folder), ["folder"]);
});

t.test("a gateway that cannot be asked, does not know the token, or is none", async (t) => {
  const { gateway } = await setUp(t);
  const dump = (url: string, token?: string) =>
    run(t, ["dump", "--admin", url, "--out", "/nowhere/x"], token ? { COATCHECK_ADMIN_TOKEN: token } : {});
  t.match(await dump(`http://127.0.0.1:${await freePort()}`), { status: 1, stderr: /nothing listens there/ });
  t.match(await dump(gateway.adminUrl), { status: 1, stderr: /COATCHECK_ADMIN_TOKEN is not set/ });
  const wrong = await dump(gateway.adminUrl, "w".repeat(40));
  t.match(wrong, { status: 1, stderr: /COATCHECK_ADMIN_TOKEN is not the right one/ });
  t.notMatch(wrong.stderr, "wwww");
  const stranger = await startHttp(t, (req, res) => {
    if (req.url?.startsWith("/file")) res.setHeader("content-disposition", "attachment");
    res.end("<h1>hello</h1>");
  });
  const url = `http://127.0.0.1:${stranger.port}`;
  t.match(await dump(url), { status: 1, stderr: /is not the admin listener of Coatcheck \(status 200\)/ });
  t.match(await dump(`${url}/file`), { status: 1, stderr: /what http:\S+ sent is no dump of Coatcheck/ });
});

t.test("the summary says in a minute what happened", async (t) => {
  const app = await startApp(t);
  const dead = `127.0.0.1:${await freePort()}`;
  const route = (path: string, upstream: string) => ({
    match: { path },
    upstream,
    session: "optional",
    write: ["user"],
  });
  const gateway = await startGateway(t, { routes: [route("/", app.url), route("/dead", `http://${dead}`)] });
  const started = await ask(`${gateway.url}/start`, { method: "POST", body: '{"user":{"id":"1"}}' });
  const cookie = cookiePair(started.setCookie[0]);
  for (let i = 0; i < 5; i++) await ask(`${gateway.url}/page`, { headers: { cookie } });
  for (let i = 0; i < 12; i++) await ask(`${gateway.url}/dead/${i}`, { headers: { cookie } });
  await ask(`${gateway.url}/forged`, { headers: { cookie: `${cookie.slice(0, -4)}AAAA` } });
  gateway.gateway.observer.log.event("warn", "store.resting", "1 server is given a rest", { servers: 1 });

  const folder = await temporaryFolder(t);
  await writeFile(join(folder, "it.gz"), await contentOf(gateway.adminUrl));
  const open = (...args: string[]) => run(t, ["dump", "--open", join(folder, "it.gz"), ...args]);
  const { status, stdout, stderr } = await open();
  t.match({ status, stderr }, { status: 0, stderr: "" });
  const last = (await gateway.exchanges("errors"))[0];
  for (const line of [
    /^Coatcheck \d+\.\d+\.\d+, node \d/,
    /^ {2}- 12 of the last 19 requests failed with connection_refused to 127\.0\.0\.1:\d+$/m,
    /^ {2}- visitors were logged out by surprise: 1 signature$/m,
    /^ {2}memory: serves, 1 sessions? in memory$/m,
    /^ {2}hit +store +identified +17$/m,
    new RegExp(`^ +12 {2}connection_refused to ${dead} .* ${last?.traceId}$`, "m"),
    /^ {2}signature +1 {2}surprise$/m,
    /^ {2}signature +1 {2}[0-9a-f]{32}$/m,
    /^ +MS +SESSION +UPSTREAM +STATUS +REQUEST +TRACE$/m,
    /^ {2}\*\/dead +12 +12 +\d/m,
    /^ {2}heap +\d+ MiB used/m,
    /store\.resting +1 server is given a rest$/m,
  ])
    t.match(stdout, line);
  t.ok(
    stdout.split("\n").every((line) => line.length < 260),
    "no line is endless",
  );

  t.match(JSON.parse((await open("--section", "exchanges")).stdout), { recent: [{ request: { path: "/forged" } }] });
  t.match(JSON.parse((await open("--section", "build")).stdout), { pid: process.pid });
  t.equal(JSON.parse((await open("--section", "cache")).stdout), null);
  t.match((await open("--section", "metrics")).stdout, /^# EOF\n$/m);
});

t.test("a gateway that nobody has asked anything has a summary too", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  const dump = await openDump(await contentOf(adminUrl), "it");
  // The machine that runs the tests may be busy, and then that stands out.
  const eventLoop = { ...dump.runtime.eventLoop, delayP99Ms: 5, utilization: 0.1 };
  const summary = renderSummary({ ...dump, runtime: { ...dump.runtime, eventLoop } });
  t.match(summary, /^What stands out\n {2}nothing$/m);
  t.match(summary, /no request has been recorded/);
});

t.test("what stands out of process, store and cache", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  const dump = await openDump(await contentOf(adminUrl), "it");
  const { runtime } = dump;
  const summary = renderSummary({
    ...dump,
    store: { ...dump.store, ok: false, detail: "closed", warnings: ["it evicts", "it is far away"] },
    cache: { entries: 0, bytes: 0, maxBytes: 1024, feed: "refused" },
    events: [{ time: dump.takenAt, level: "error", event: "error.unexpected" }],
    runtime: {
      ...runtime,
      memory: { ...runtime.memory, heapUsedBytes: 90, heapLimitBytes: 100 },
      eventLoop: { ...runtime.eventLoop, delayP99Ms: 120, utilization: 0.97 },
      openFiles: 1000,
      maxOpenFiles: 1024,
    },
  });
  for (const line of [
    "the session store does not serve: closed",
    "warnings about the session store: 2",
    "warning: it is far away",
    "the near cache is bypassed: the store cannot be heard telling of changes (refused)",
    "the heap is nearly full: 90 % of its limit",
    "file descriptors are nearly used up: 1000 of 1024",
    "one turn in a hundred took 120 ms",
    "the event loop is busy 97 % of the time",
    "errors that nobody expected: 1",
  ])
    t.ok(summary.includes(line), line);
});

t.test("nothing in a dump commands the terminal", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  const dump = JSON.parse(gunzipSync(await contentOf(adminUrl)).toString());
  const evil = "a\u{1b}[2J\u{9b}1m\r\n\u{202e}\u{2028}\u{e0041}b";
  const text = JSON.stringify(dump, (_name, value) =>
    typeof value === "string" && value.length > 3 ? value + evil : value,
  );
  const poisoned = {
    ...JSON.parse(text),
    format: "coatcheck-dump",
    takenAt: `2026-05-01T12:00:00.000Z${evil}`,
    metrics: `coatcheck_session_logouts_total{reason="lost${evil}"} 3\n`,
    events: [{ time: evil, level: "warn", event: evil, msg: evil, [evil]: evil }],
    exchanges: {
      [evil]: [],
      recent: [
        {
          time: evil,
          traceId: evil,
          request: { method: evil, host: evil, path: evil },
          route: evil,
          session: { cookie: evil, outcome: "unknown", source: evil, decision: evil },
          upstream: { address: evil },
          response: { status: 502, source: evil },
          error: { type: evil, message: evil },
          timings: {},
        },
      ],
    },
  };
  const file = join(await temporaryFolder(t), "evil.json");
  await writeFile(file, JSON.stringify(poisoned));
  const opened = await openDump(Buffer.from(JSON.stringify(poisoned)), "it");
  const sections = ["build", "settings", "observe", "runtime", "store", "events", "exchanges", "metrics"] as const;
  const outputs = {
    summary: renderSummary(opened),
    process: (await run(t, ["dump", "--open", file])).stdout,
    ...Object.fromEntries(sections.map((name) => [name, renderSection(opened, name)])),
  };
  for (const [what, output] of Object.entries(outputs)) {
    t.match(output, /./);
    t.notMatch(output, /[^\n\P{Cc}]|[\p{Cf}\p{Zl}\p{Zp}]/u, what);
  }
  for (const name of sections.slice(0, -1)) t.strictSame(JSON.parse(renderSection(opened, name)), opened[name]);
});

t.test("a file that is damaged, foreign, from the future or a bomb", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  await ask(`${adminUrl}/`);
  const content = await contentOf(adminUrl);
  const dump: Dump = JSON.parse(gunzipSync(content).toString());
  const json = (value: unknown) => gzipSync(JSON.stringify(value));
  const mebibyte = gzipSync(Buffer.alloc(1024 * 1024));
  const cases: [what: string, content: Buffer, message: RegExp][] = [
    ["empty", Buffer.alloc(0), /not compressed with gzip to its end/],
    ["cut", content.subarray(0, content.length - 20), /not compressed with gzip to its end/],
    ["changed", Buffer.from(content).fill(0, 200, 260), /is no dump of Coatcheck, or is damaged/],
    ["no gzip", Buffer.from("hello"), /not compressed with gzip/],
    ["no JSON", gzipSync("hello"), /is no dump of Coatcheck, or is damaged$/],
    ["a list", json([1]), /is no dump of Coatcheck/],
    ["foreign", json({ format: "other", formatVersion: 1 }), /is no dump of Coatcheck/],
    ["later", json({ ...dump, formatVersion: 2 }), /written by a later Coatcheck: its format is 2, .* reads up to 1$/],
    ["a part missing", json({ ...dump, build: undefined }), /is damaged: build is not what it should be/],
    ["a wrong type", json({ ...dump, store: { ...dump.store, facts: "none" } }), /is damaged: store\.facts is not/],
    ["bomb", Buffer.concat(new Array(300).fill(mebibyte)), /unpacks to more than 256 MiB/],
  ];
  for (const [what, octets, message] of cases) {
    const error = await openDump(octets, "the file").catch((reason: unknown) => reason);
    t.match(error, { name: "Error", message }, what);
  }
  t.match(await openDump(gunzipSync(content), "it"), { takenAt: dump.takenAt }, "unpacked already");
  t.match(await openDump(json({ ...dump, later: 1, build: { ...dump.build, more: 2 } }), "it"), {
    format: dump.format,
  });
  t.match(await run(t, ["dump", "--open", "/nowhere/it.gz"]), {
    status: 1,
    stdout: "",
    stderr: "coatcheck: /nowhere/it.gz is not there\n",
  });
  t.match(await run(t, ["dump", "--open", ROOT]), { status: 1, stderr: /is a folder/ });
});

t.test("usage", async (t) => {
  const help = await run(t, ["dump", "--help"]);
  t.match(help, { status: 0, stdout: /--open FILE[\s\S]*--section NAME[\s\S]*--admin URL[\s\S]*USR2/, stderr: "" });
  const cases: [args: string[], message: RegExp][] = [
    [["it.gz"], /unexpected "it\.gz"; to read a dump: --open FILE/],
    [["--section", "build"], /--section goes with --open FILE/],
    [["--open", "x", "--section", "secrets"], /there is no section "secrets"; known: build, settings/],
    [["--open", "x", "--out", "y"], /--out does not go with --open/],
    [["--open", "x", "--force"], /--force does not go with --open/],
    [["--open", "x", "--admin", "http://x"], /--admin does not go with --open/],
    [["--all"], /Unknown option '--all'/],
    [["--admin", "http://u:hunter2@x"], /without user and password/],
  ];
  for (const [args, message] of cases) {
    const error = await runDump(args, {}).catch((reason: unknown) => reason);
    t.type(error, UsageError, args.join(" "));
    t.match(error, { message });
  }
});

/** Not `run`: the shell puts a limit on the process first. It does not block, because it is this process that is asked. */
function limited(args: readonly string[], cwd: string) {
  const env = { PATH: process.env.PATH, COATCHECK_ADMIN_TOKEN: TOKEN };
  return new Promise<{ status: number | null; stderr: string }>((resolve) => {
    const child = execFile("sh", args, { cwd, env }, (_error, _stdout, stderr) =>
      resolve({ status: child.exitCode, stderr }),
    );
  });
}
