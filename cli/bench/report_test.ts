import { deepStrictEqual, match, ok, strictEqual } from "node:assert/strict";
import { renderHtml, scaleOf } from "./html.ts";
import { figure, type Report, SCHEMA, times, type Unit } from "./report.ts";
import { summarise } from "./statistics.ts";
import { missingLines, renderTable } from "./table.ts";

const METRICS = [
  { id: "tcp-1-up", group: "throughput", title: "TCP, 1 flow", how: "So.", unit: "bit/s", better: "higher" },
  { id: "memory", group: "cost", title: "Memory", how: "So.", unit: "B", better: "lower" },
] as const;

function cell(contender: string, metric: string, values: readonly (number | null)[], missing?: string) {
  const summary = summarise(values.filter((value) => value !== null));
  return {
    network: "veth",
    contender,
    metric,
    values,
    ...(summary === undefined ? {} : { summary }),
    ...(missing === undefined ? {} : { missing }),
    command: `measure ${metric}`,
  };
}

function report(changes: Partial<Report> = {}): Report {
  return {
    schema: SCHEMA,
    kind: "matrix",
    icx: "1.2.3",
    startedAt: "2031-02-03T04:05:06.000Z",
    elapsedSeconds: 60,
    machine: {
      cpu: "Some <CPU>",
      cpus: 2,
      memoryBytes: 2 ** 33,
      kernel: "6.1",
      loadAverage: 0.1,
      tools: { iperf3: "3.12" },
    },
    settings: { rounds: 3, seconds: 4, arguments: ["icx", "bench"] },
    networks: [{ id: "veth", about: "A wire." }],
    contenders: [
      { id: "none", title: "bare wire", commands: [] },
      { id: "icx-tun", title: "icx (tun)", version: "1.2.3", commands: ["icx up <here>"] },
      { id: "wireguard-go", title: "wireguard-go", commands: ["wireguard -f"] },
    ],
    reference: "wireguard-go",
    metrics: METRICS,
    results: [
      cell("none", "tcp-1-up", [60e9, 61e9, 62e9]),
      cell("none", "memory", [null, null, null], "there is no tunnel"),
      cell("icx-tun", "tcp-1-up", [7e9, 8e9, 9e9]),
      cell("icx-tun", "memory", [50 * 2 ** 20, null, 40 * 2 ** 20], "it said <no> & left"),
      cell("wireguard-go", "tcp-1-up", [2e9, 2e9, 2e9]),
      cell("wireguard-go", "memory", [20 * 2 ** 20, 20 * 2 ** 20, 20 * 2 ** 20]),
    ],
    ...changes,
  };
}

Deno.test("figures have three digits and the unit that keeps them short", () => {
  const cases: readonly (readonly [number, Unit, string])[] = [
    [8.123e9, "bit/s", "8.12 Gbit/s"],
    [123.4e6, "bit/s", "123 Mbit/s"],
    [412_345, "1/s", "412 k/s"],
    [55, "1/s", "55.0 /s"],
    [233e-6, "s", "233 µs"],
    [0.00462, "s", "4.62 ms"],
    [0.31, "s/Gbit", "310 ms/Gbit"],
    [90 * 2 ** 20, "B", "90.0 MiB"],
    [0, "bit/s", "0 kbit/s"],
  ];
  for (const [value, unit, text] of cases) strictEqual(figure(value, unit), text);
  deepStrictEqual([times(4), times(12.34), times(0.044), times(123.4)], ["4.00×", "12.3×", "0.044×", "123×"]);
});

Deno.test("the table has a row for each metric with medians and ratios, and says why figures are missing", () => {
  const text = renderTable(report());
  match(text, /TCP, 1 flow +61\.0 Gbit\/s \(30\.5×\) +8\.00 Gbit\/s \(4\.00×\) +2\.00 Gbit\/s\n/);
  match(text, /Memory +– +45\.0 MiB \(2\.25×\) +20\.0 MiB\n/);
  match(text, /Medians of 3 rounds; in parentheses the ratio to wireguard-go\./);
  deepStrictEqual(missingLines(report()), [
    "  bare wire: there is no tunnel (Memory)",
    "  icx (tun): it said <no> & left (Memory)",
  ]);
});

Deno.test("the page is whole, asks for nothing from elsewhere, and has every figure, round and reason in its text", () => {
  const html = renderHtml(report());
  match(html, /^<!doctype html>\n<html lang="en">/);
  ok(html.trimEnd().endsWith("</html>"));
  ok(!/<script|<link|<img|@import|url\(|https?:/i.test(html), "it refers to something else");
  for (const tag of ["main", "section", "figure", "ul", "table", "details", "div", "li", "dl"]) {
    const [opened, closed] = [new RegExp(`<${tag}[ >]`, "g"), new RegExp(`</${tag}>`, "g")];
    strictEqual(html.match(opened)?.length, html.match(closed)?.length, `<${tag}> is not closed everywhere`);
  }
  for (const text of ["8.00 Gbit/s", "4.00×", "7.00 Gbit/s, 8.00 Gbit/s, 9.00 Gbit/s", "6.1", "2031-02-03 04:05 UTC"]) {
    ok(html.includes(text), `${text} is missing`);
  }
  ok(html.includes("Some &lt;CPU&gt;") && html.includes("icx up &lt;here&gt;"));
  ok(html.includes("no figure: there is no tunnel"));
  ok(html.includes("it said &lt;no&gt; &amp; left") && !html.includes("<no>"));
  ok(html.includes("rounds from 7.00 Gbit/s to 9.00 Gbit/s"), "the spread is not told to a screen reader");
});

Deno.test("a page of one contender has no ratios, and one from a busy machine warns", () => {
  const { reference: _, ...alone } = report({ contenders: [{ id: "icx-tun", title: "icx (tun)", commands: [] }] });
  ok(!/[0-9]×/.test(renderHtml(alone)));
  const besideWire = renderHtml(report({ reference: "none" }));
  ok(besideWire.includes("0.13×") && !/class="[a-z ]*(good|bad)"/.test(besideWire), "nobody is as fast as the wire");
  match(renderHtml(report()), /class="ratio good">4\.00×.*class="ratio bad">2\.25×/s);
  ok(!renderHtml(report()).includes('class="warning"'));
  const busy = report();
  match(
    renderHtml({ ...busy, machine: { ...busy.machine, loadAverage: 1.9 } }),
    /class="warning">.*load average 1\.90/,
  );
});

Deno.test("a rare delay does not flatten the bars of the others, and its own is shown cut", () => {
  const metrics = (["p50", "p90", "p99"] as const).map((part) => ({
    ...{
      id: `rtt-${part}`,
      group: "latency",
      title: `Round trip, ${part}`,
      how: "So.",
      unit: "s",
      better: "lower",
    } as const,
    chart: { title: "Round trip", part },
  }));
  const figures = [["rtt-p50", 2e-4], ["rtt-p90", 3e-4], ["rtt-p99", 5e-2]] as const;
  const late = report({ metrics, results: figures.map(([metric, value]) => cell("icx-tun", metric, [value])) });
  ok(Math.abs(scaleOf(late, "veth", metrics) - 3e-4 * 1.6) < 1e-9);
  const html = renderHtml(late);
  match(html, /class="bar p99 cut" style="--w: 100\.00%"/);
  match(html, /p50 200 µs · p90 300 µs · p99 50\.0 ms/);
});

Deno.test("a bare wire that is far above the tunnels does not flatten their bars, and its own is shown cut", () => {
  strictEqual(scaleOf(report(), "veth", [METRICS[0]]), 9e9 * 1.3);
  match(renderHtml(report()), /class="bar cut" style="--w: 100\.00%"/);
  const near = report({ results: [cell("none", "tcp-1-up", [10e9]), cell("icx-tun", "tcp-1-up", [9e9])] });
  strictEqual(scaleOf(near, "veth", [METRICS[0]]), 10e9);
  ok(!renderHtml(near).includes('class="bar cut"'));
});
