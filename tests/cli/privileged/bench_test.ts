import { deepStrictEqual, doesNotMatch, match, notStrictEqual, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { stepsOf } from "../../../cli/bench/plan.ts";
import { type Report, SCHEMA } from "../../../cli/bench/report.ts";
import { ICX, Lab, ok as succeed, privileged, Running } from "../../netns/_lab.ts";

/** What a run of that process has made and not removed. */
async function leftovers(pid: number): Promise<readonly string[]> {
  const prefix = `icx-bench-${pid}-`;
  const namespaces = (await succeed(["ip", "netns", "list"])).split("\n").filter((line) => line.startsWith(prefix));
  return [...namespaces, ...(await fs.readdir("/tmp")).filter((name) => name.startsWith(prefix))];
}

async function reportIn(folder: string): Promise<Report> {
  return JSON.parse(await fs.readFile(`${folder}/report.json`, "utf8")) as Report;
}

function outputs(folder: string): readonly string[] {
  return ["--json", `${folder}/report.json`, `--html=${folder}/report.html`];
}

privileged("a quick run measures a tunnel between namespaces, and writes a table, JSON and a page", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-test-bench-");
  try {
    const run = new Running([
      ...[ICX, "bench", "--quick", "--contender", "icx-tun=--vni 7"],
      ...outputs(folder),
    ]);
    const { code, stdout, stderr } = await run.ended;
    strictEqual(code, 0, `${stdout}\n${stderr}`);
    deepStrictEqual(await leftovers(run.pid), []);

    const report = await reportIn(folder);
    strictEqual(report.schema, SCHEMA);
    deepStrictEqual([report.kind, report.networks.map(({ id }) => id), report.reference], [
      "matrix",
      ["veth"],
      undefined,
    ]);
    deepStrictEqual(report.contenders.map(({ id, title }) => [id, title]), [
      ["icx-tun --vni 7", "icx (tun) --vni 7"],
    ]);
    const metrics = stepsOf({ quick: true }).flatMap((step) => step.metrics);
    deepStrictEqual(report.metrics.map(({ id }) => id), metrics.map(({ id }) => id));
    strictEqual(report.results.length, metrics.length);
    for (const { contender, metric, values, missing, summary } of report.results) {
      strictEqual(missing, undefined, `${contender} ${metric}`);
      strictEqual(values.length, 1);
      ok(values[0] !== null && values[0] !== undefined && values[0] > 0, `${contender} ${metric}: ${values[0]}`);
      strictEqual(summary?.median, values[0]);
    }
    const memory = report.results.find(({ metric }) => metric === "memory");
    ok(
      (memory?.summary?.median ?? 0) > (report.machine.emptyRuntimeBytes ?? Infinity) / 2,
      "that was no node's memory",
    );

    ok(!stdout.includes("\x1b") && !stderr.includes("\x1b"), "there are escape sequences in the output");
    match(stdout, /TCP, 1 flow, a → b +[0-9.]+ [GM]bit\/s/);
    match(stderr, /^\[8\/8\] icx \(tun\) --vni 7: Memory: [0-9.]+ MiB$/m);
    const html = await fs.readFile(`${folder}/report.html`, "utf8");
    match(html, /^<!doctype html>/);
    ok(html.includes("icx (tun) --vni 7"));
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

privileged("a run that Ctrl-C ends leaves nothing behind", async () => {
  const run = new Running([ICX, "bench", "--seconds", "1", "--contender", "icx-tun"]);
  await run.until("the first figure", 30_000, () => /Round trip, idle: /.test(run.stderr) ? true : undefined);
  notStrictEqual((await leftovers(run.pid)).length, 0);
  run.kill("SIGINT");
  const { code, stderr } = await run.ended;
  strictEqual(code, 1);
  match(stderr, /^icx: stopped by SIGINT$/m);
  doesNotMatch(stderr, /no figure/, "what was taken away is told as if it had been measured");
  deepStrictEqual(await leftovers(run.pid), []);
});

privileged("a tunnel that is up is measured from one node to the other", async () => {
  await using lab = await Lab.create();
  await lab.tunnel();
  const at = `[${lab.b.inner6}]:7000`;
  const far = lab.spawn(lab.b, [ICX, "bench", "--listen", at]);
  await far.until("the far end", 20_000, () => far.stderr.includes("listening on") ? true : undefined);
  const { code, stdout, stderr } = await lab.a.run([
    ...[ICX, "bench", "--to", at, "--quick"],
    ...outputs(lab.directory),
  ]);
  strictEqual(code, 0, `${stdout}\n${stderr}`);
  const report = await reportIn(lab.directory);
  strictEqual(report.kind, "live");
  deepStrictEqual(report.results.map(({ metric }) => metric), report.metrics.map(({ id }) => id));
  for (const { metric, summary, missing } of report.results) {
    ok((summary?.median ?? 0) > 0, `${metric}: ${missing}`);
  }
  ok((await fs.readFile(`${lab.directory}/report.html`, "utf8")).includes(`To ${at} and back`));
  far.kill("SIGINT");
  strictEqual((await far.ended).code, 0);
});
