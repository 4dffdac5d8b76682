import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { stepsOf } from "../../cli/bench/plan.ts";
import { type Report, SCHEMA } from "../../cli/bench/report.ts";
import { judge, SUBJECT, TARGETS } from "./targets.ts";

/** A report in which every figure of the subject is so many times everybody else's. */
function report(times: (metric: string) => number): Report {
  const metrics = stepsOf({ quick: false }).flatMap((step) => step.metrics);
  const contenders = ["none", SUBJECT, "wireguard-go", "boringtun"];
  const results = ["veth", "segmented"].flatMap((network) =>
    contenders.flatMap((contender) =>
      metrics.map(({ id }) => {
        const value = contender === SUBJECT ? 100 * times(id) : 100;
        return { network, contender, metric: id, values: [value], summary: { median: value, min: value, max: value } };
      })
    )
  );
  return {
    ...{ schema: SCHEMA, kind: "matrix", icx: "0", startedAt: "", elapsedSeconds: 0, networks: [] },
    machine: { cpu: "", cpus: 2, memoryBytes: 0, kernel: "", loadAverage: 0, emptyRuntimeBytes: 40 << 20, tools: {} },
    settings: { rounds: 1, seconds: 1, arguments: [] },
    contenders: contenders.map((id) => ({ id, title: id, commands: [] })),
    metrics,
    results,
  };
}

Deno.test("every target names a metric of the full list", () => {
  const ids = new Set(stepsOf({ quick: false }).flatMap(({ metrics }) => metrics.map(({ id }) => id)));
  for (const { metric } of TARGETS) ok(ids.has(metric), metric);
});

Deno.test("much throughput at little delay meets all targets", () => {
  const verdicts = judge(report((metric) => metric.startsWith("rtt") ? 0.5 : metric === "memory" ? 1 : 11));
  strictEqual(verdicts.length, TARGETS.length + 2);
  deepStrictEqual(verdicts.filter(({ met }) => met !== true), []);
});

Deno.test("a figure like everybody else's meets no target but the half of the bare wire's and that of memory", () => {
  deepStrictEqual(judge(report(() => 1)).filter(({ met }) => met === true).map(({ what }) => what), [
    "veth, tcp-1-up, beside none",
    "veth, memory beyond the empty runtime",
    "segmented, memory beyond the empty runtime",
  ]);
});

Deno.test("memory is judged beyond what the empty runtime takes", () => {
  for (const [mebibytes, found, met] of [[104, "64 MiB", true], [105, "65 MiB", false]] as const) {
    const verdicts = judge(report(() => (mebibytes << 20) / 100)).filter(({ what }) => what.includes("memory"));
    deepStrictEqual(verdicts.map((verdict) => [verdict.found, verdict.met]), [[found, met], [found, met]]);
  }
});

Deno.test("a contender that did not run leaves its targets open", () => {
  const whole = report(() => 11);
  const without = { ...whole, results: whole.results.filter(({ contender }) => contender !== "boringtun") };
  const open = judge(without).filter(({ met }) => met === undefined);
  deepStrictEqual(open.map(({ what }) => what.includes("boringtun")), [true, true, true, true]);
});
