/** V8's profiles: for whoever has the token, one at a time; and `coatcheck profile`. */
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import t from "tap";
import { UsageError } from "../src/cli/arguments.ts";
import { runProfile } from "../src/cli/profile.ts";
import { renderCpuProfile, renderHeapProfile } from "../src/cli/profile-summary.ts";
import { ask, until } from "./support/client.ts";
import { run } from "./support/command.ts";
import { startGateway, startHttp, temporaryFolder } from "./support/servers.ts";

const TOKEN = "t".repeat(40);
const ADMIN = { port: 0, token: TOKEN };

/** Asks as an operator does. */
function post(adminUrl: string, path: string, body: unknown, token: string | undefined = TOKEN) {
  return ask(adminUrl + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  });
}

t.test("without a token on the listener nobody gets one, on loopback neither", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  for (const [path, body] of [
    ["/debug/profile", { seconds: 1 }],
    ["/debug/heap", { seconds: 1 }],
    ["/debug/heap", { snapshot: true }],
  ] as const) {
    const reply = await post(adminUrl, path, body, "");
    t.equal(reply.status, 403);
    t.match(JSON.parse(reply.body), { error: /set admin\.token/ });
  }
});

t.test("a wrong token, and calls that make no sense", async (t) => {
  const { adminUrl } = await startGateway(t, { admin: ADMIN });
  t.equal((await post(adminUrl, "/debug/profile", { seconds: 1 }, `${TOKEN}x`)).status, 401);
  t.equal((await post(adminUrl, "/debug/heap", { snapshot: true }, "")).status, 401);
  t.equal((await ask(`${adminUrl}/debug/profile`, { headers: { authorization: `Bearer ${TOKEN}` } })).status, 405);
  for (const body of [{}, { seconds: 0 }, { seconds: 61 }, { seconds: 1.5 }, { seconds: "1" }, { seconds: 1, x: 1 }]) {
    t.equal((await post(adminUrl, "/debug/profile", body)).status, 400, JSON.stringify(body));
    t.equal((await post(adminUrl, "/debug/heap", body)).status, 400, JSON.stringify(body));
  }
  for (const body of [{ snapshot: false }, { snapshot: true, seconds: 1 }, null, []])
    t.equal((await post(adminUrl, "/debug/heap", body)).status, 400, JSON.stringify(body));
});

t.test("profiles of processor and heap hold names of functions; one at a time", async (t) => {
  const gateway = await startGateway(t, { admin: ADMIN });
  const { adminUrl } = gateway;
  const cpu = post(adminUrl, "/debug/profile", { seconds: 1 });
  await until(async () => (await post(adminUrl, "/debug/heap", { seconds: 60 })).status === 409);
  for (let i = 0; i < 20; i++) await ask(`${gateway.url}/x?secret=hunter2`);
  const reply = await cpu;
  t.equal(reply.status, 200);
  t.match(reply.headers["content-disposition"], /^attachment; filename="coatcheck-.*\.cpuprofile"$/);
  t.match(reply.headers["x-coatcheck-contains"], /no values/);
  const { nodes, samples, startTime, endTime } = JSON.parse(reply.body);
  t.ok(nodes.length > 5 && samples.length > 10);
  t.ok(endTime - startTime > 900_000, "microseconds");
  t.notMatch(reply.body, "hunter2");
  t.match(renderCpuProfile(JSON.parse(reply.body)), /^ *SHARE +MS {2}FUNCTION\n *[\d.]+ % +\d+ {2}\S/);

  const heap = post(adminUrl, "/debug/heap", { seconds: 1 });
  for (let i = 0; i < 20; i++) await ask(`${gateway.url}/x?secret=hunter2`);
  const { status, headers, body } = await heap;
  t.equal(status, 200);
  t.match(headers["content-disposition"], /\.heapprofile"$/);
  t.match(JSON.parse(body), { head: { callFrame: { functionName: "(root)" } } });
  t.notMatch(body, "hunter2");
});

t.test("a snapshot of the heap comes as a stream, and says what it holds", async (t) => {
  const { adminUrl } = await startGateway(t, { admin: ADMIN });
  const reply = await post(adminUrl, "/debug/heap", { snapshot: true });
  t.equal(reply.status, 200);
  t.equal(reply.headers["transfer-encoding"], "chunked");
  t.match(reply.headers["content-disposition"], /\.heapsnapshot"$/);
  t.match(reply.headers["x-coatcheck-contains"], /tokens of requests in flight, secrets/);
  const snapshot = JSON.parse(reply.body);
  t.ok(snapshot.snapshot.meta && snapshot.strings.length > 1000);
  t.match(reply.body, TOKEN, "it does hold secrets");
});

t.test("a client that goes away ends it, and the next one can ask", async (t) => {
  const { adminUrl } = await startGateway(t, { admin: ADMIN });
  const begin = (path: string, body: unknown) => {
    const headers = { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" };
    const req = request(adminUrl + path, { method: "POST", headers, agent: false });
    req.on("error", () => {});
    req.end(JSON.stringify(body));
    return req;
  };
  const isBusy = async () => (await post(adminUrl, "/debug/heap", { seconds: 1 })).status === 409;
  const isFree = async () => !(await isBusy());
  for (const [path, body] of [
    ["/debug/profile", { seconds: 60 }],
    ["/debug/heap", { seconds: 60 }],
  ] as const) {
    const req = begin(path, body);
    await until(isBusy);
    req.destroy();
    t.ok(await until(isFree), path);
  }
  const req = begin("/debug/heap", { snapshot: true });
  await new Promise<void>((resolve) => {
    req.on("response", (res) => {
      res.on("error", () => {});
      res.once("data", () => {
        req.destroy();
        resolve();
      });
    });
  });
  t.ok(await until(isFree), "a snapshot that is read half");
});

t.test("a gateway that is closed does not wait for a profile", async (t) => {
  const { gateway, adminUrl } = await startGateway(t, { admin: ADMIN });
  const cpu = post(adminUrl, "/debug/profile", { seconds: 60 }).catch(() => "cut");
  await until(async () => (await post(adminUrl, "/debug/profile", { seconds: 60 })).status === 409);
  const startedMs = performance.now();
  await gateway.close();
  t.ok(performance.now() - startedMs < 10_000);
  t.equal(await cpu, "cut");
});

t.test("coatcheck profile writes files for their owner alone and prints the heaviest functions", async (t) => {
  const { adminUrl } = await startGateway(t, { admin: ADMIN });
  const folder = await temporaryFolder(t);
  const profile = (...args: string[]) =>
    run(t, ["profile", "--admin", adminUrl, ...args], { COATCHECK_ADMIN_TOKEN: TOKEN }, { cwd: folder });
  const cpu = await profile("--seconds", "1");
  t.match(cpu, {
    status: 0,
    stdout: /^coatcheck-\S+\.cpuprofile: [\d,]+ bytes\n\n *SHARE +MS {2}FUNCTION\n.*\n/,
    stderr: "",
  });
  t.match(await profile("--heap", "--seconds", "1", "--out", "it"), { status: 0, stdout: /^it: [\d,]+ bytes\n\n/ });
  const snapshot = await profile("--heap-snapshot", "--out", "all.heapsnapshot");
  t.match(snapshot, { status: 0, stdout: /^all\.heapsnapshot: [\d,]+ bytes\nIt holds secrets and tokens/ });
  const names = await readdir(folder);
  t.equal(names.length, 3, names.join(" "));
  for (const name of names) {
    t.equal((await stat(join(folder, name))).mode & 0o777, 0o600, name);
    t.type(JSON.parse(await readFile(join(folder, name), "utf8")), "object");
  }

  await writeFile(join(folder, "it"), "what was there");
  t.match(await profile("--out", "it"), { status: 1, stderr: /it is there already; --force/ });
  t.match(await profile("--seconds", "1", "--out", "it", "--force"), { status: 0 });
  t.match(await readFile(join(folder, "it"), "utf8"), "callFrame");
  t.match(await profile("--seconds", "1", "--out", "missing/it"), { status: 1, stderr: /the folder is not there/ });
});

t.test("coatcheck profile says what is wrong", async (t) => {
  const { adminUrl } = await startGateway(t, {});
  t.match(await run(t, ["profile", "--admin", adminUrl, "--out", "/nowhere/it"]), {
    status: 1,
    stderr: "coatcheck: set admin.token: without one, this is not given to anybody\n",
  });
  const stranger = await startHttp(t, (_req, res) => {
    res.setHeader("content-disposition", "attachment").end("<h1>hello</h1>");
  });
  const out = join(await temporaryFolder(t), "it");
  t.match(await run(t, ["profile", "--admin", `http://127.0.0.1:${stranger.port}`, "--out", out]), {
    status: 1,
    stderr: /it is no profile/,
  });
  t.match(await run(t, ["profile", "--help"]), { status: 0, stdout: /--heap-snapshot[\s\S]*stands still/, stderr: "" });
  const cases: [args: string[], message: RegExp][] = [
    [["--seconds", "0"], /--seconds must be 1 to 60/],
    [["--seconds", "61"], /--seconds must be 1 to 60/],
    [["--seconds", "ten"], /--seconds must be 1 to 60/],
    [["--heap-snapshot", "--seconds", "5"], /--seconds and --heap do not go with it/],
    [["--heap-snapshot", "--heap"], /--seconds and --heap do not go with it/],
    [["now"], /unexpected "now"/],
  ];
  for (const [args, message] of cases) {
    const error = await runProfile(args, {}).catch((reason: unknown) => reason);
    t.type(error, UsageError, args.join(" "));
    t.match(error, { message });
  }
});

t.test("the heaviest functions, added up wherever they were called from", (t) => {
  const callFrame = { functionName: "forward", url: "file:///app/src/upstream/forward.ts", lineNumber: 87 };
  const nodes = [
    { id: 1, callFrame: { functionName: "(root)" } },
    { id: 2, callFrame },
    { id: 3, callFrame },
    { id: 4, callFrame: { functionName: "", url: "node:events", lineNumber: 0 } },
  ];
  t.equal(
    renderCpuProfile({ nodes, samples: [2, 3, 4, 2], timeDeltas: [1000, 2000, 1000, 4000] }),
    [
      " SHARE  MS  FUNCTION",
      "87.5 %   7  forward (upstream/forward.ts:88)",
      "12.5 %   1  (anonymous) (node:events:1)",
      "",
    ].join("\n"),
  );
  const child = { callFrame, selfSize: 1024 * 1024, children: [] };
  t.equal(
    renderHeapProfile({ head: { callFrame: { functionName: "(root)" }, selfSize: 0, children: [child, child] } }),
    "  SHARE    KIB  FUNCTION\n100.0 %  2,048  forward (upstream/forward.ts:88)\n",
  );
  t.equal(renderHeapProfile({}), "nothing was seen\n");
  t.equal(renderCpuProfile({}), "nothing was seen\n");
  t.end();
});
