/**
 * The report as one HTML file that asks nothing of anybody: no script, no font, no image from elsewhere.
 *
 * Every chart is a list whose text says all that its bars show; the bars are decoration to a screen reader.
 */

import { STYLE } from "./html_style.ts";
import {
  type ContenderFacts,
  figure,
  GROUPS,
  type Metric,
  ratioOf,
  type Report,
  type Result,
  resultOf,
  times,
} from "./report.ts";

/** What opens the report, where it was measured: one tile each. */
const TILES = [
  "tcp-1-up",
  "tcp-4-up",
  "udp-1200-clean",
  "udp-1200-flood",
  "rtt-idle-p50",
  "rtt-loaded-p50",
  "request-response",
  "cpu-nodes",
];
/** Beyond how many times the largest figure of a tunnel the bare wire's bar is cut. */
const CUT_ABOVE = 1.3;
/** The part that a chart of several has room for, and beyond how many times its largest figure the rest is cut. */
const [LAST_WHOLE_PART, CUT_PARTS_ABOVE] = ["p90", 1.6];
/** Load average for each processor at the start above which a report warns. */
const CALM_LOAD = 0.3;

/** How to read the charts. */
const KEY = "A torn bar goes on beyond the chart; its figure stands beside it.";

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text as it stands in HTML. */
export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ENTITIES[character] ?? character);
}

/** Renders the report. */
export function renderHtml(report: Report): string {
  const title = report.kind === "live" ? "icx bench: a live tunnel" : "icx bench";
  const groups = (Object.keys(GROUPS) as (keyof typeof GROUPS)[]).map((group) => section(report, group));
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title}, ${escape(day(report))}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
${header(report, title)}
${groups.join("\n")}
${tables(report)}
${about(report)}
</main>
</body>
</html>
`;
}

function day(report: Report): string {
  return `${report.startedAt.slice(0, 10)} ${report.startedAt.slice(11, 16)} UTC`;
}

function contenderOf(report: Report, id: string | undefined): ContenderFacts | undefined {
  return report.contenders.find((contender) => contender.id === id);
}

/** Whose figures the report is about: icx, else the first. */
function subjectOf(report: Report): ContenderFacts | undefined {
  return report.contenders.find(isMine) ?? report.contenders[0];
}

function isMine({ id }: ContenderFacts): boolean {
  return id.startsWith("icx");
}

function header(report: Report, title: string): string {
  const { machine, settings: { rounds, seconds } } = report;
  const reference = contenderOf(report, report.reference);
  const parts = [
    `${escape(day(report))} · icx ${escape(report.icx)} · ${escape(machine.cpu)}, ${machine.cpus} ${
      machine.cpus === 1 ? "processor" : "processors"
    } · Linux ${escape(machine.kernel)}`,
    `${rounds === 1 ? "One round" : `Medians of ${rounds} rounds, interleaved`}, ${seconds} s each${
      reference === undefined ? "" : `; × is the ratio to ${escape(reference.title)}`
    }.`,
  ];
  const busy = machine.loadAverage > CALM_LOAD * machine.cpus
    ? `<p class="warning">The machine was busy when this began (load average ${
      machine.loadAverage.toFixed(2)
    } on ${machine.cpus} processors): other work took time from what is measured here.</p>`
    : "";
  return `<header>
<h1>${title}</h1>
${parts.map((part) => `<p class="soft">${part}</p>`).join("\n")}
${busy}
${tiles(report)}
<p class="sub key">${KEY}${rounds > 1 ? " Thin lines are the rounds." : ""}</p>
</header>`;
}

function tiles(report: Report): string {
  const subject = subjectOf(report);
  if (subject === undefined) return "";
  const items = TILES.flatMap((metricId) => {
    const metric = report.metrics.find(({ id }) => id === metricId);
    const figures = report.networks.flatMap(({ id: network }) => {
      const result = resultOf(report, network, subject.id, metricId);
      if (metric === undefined || result?.summary === undefined) return [];
      const ratio = ratioOf(report, result);
      const where = report.networks.length > 1 ? `<span class="what">${escape(network)}</span>` : "";
      const than = ratio === undefined
        ? ""
        : `<span class="than ${judge(report, metric, ratio)}">${times(ratio)}</span>`;
      return [`<p>${where}<span class="number">${figure(result.summary.median, metric.unit)}</span>${than}</p>`];
    });
    return metric === undefined || figures.length === 0
      ? []
      : [`<li><h3>${escape(metric.title)}</h3>${figures.join("")}</li>`];
  });
  if (items.length === 0) return "";
  return `<h2>${escape(subject.title)} at a glance</h2>\n<ul class="tiles">\n${items.join("\n")}\n</ul>`;
}

/** Whether a ratio is a good one; beside the bare wire none is. */
function judge(report: Report, { better }: Metric, ratio: number): string {
  if (report.reference === "none") return "";
  if (Math.abs(ratio - 1) < 0.03) return "";
  return (ratio > 1) === (better === "higher") ? "good" : "bad";
}

function section(report: Report, group: keyof typeof GROUPS): string {
  const charts = new Map<string, Metric[]>();
  for (const metric of report.metrics) {
    if (metric.group !== group) continue;
    const title = metric.chart?.title ?? metric.title;
    charts.set(title, [...charts.get(title) ?? [], metric]);
  }
  if (charts.size === 0) return "";
  return `<section>
<h2>${GROUPS[group]}</h2>
<div class="cards">
${[...charts].map(([title, metrics]) => card(report, title, metrics)).join("\n")}
</div>
</section>`;
}

function card(report: Report, title: string, metrics: readonly Metric[]): string {
  const [first] = metrics;
  if (first === undefined) return "";
  const networks = report.networks.map(({ id }) => {
    const heading = report.networks.length > 1 ? `<h4>${escape(id)}</h4>\n` : "";
    return `<div class="net">\n${heading}${rows(report, id, metrics)}\n</div>`;
  });
  const shades = metrics.length > 1
    ? ` Dark to light: ${metrics.map(({ chart }) => chart?.part ?? "").join(", ")}.`
    : "";
  return `<figure>
<figcaption><h3>${escape(title)}</h3>
<p class="sub">${first.better === "higher" ? "More is better." : "Less is better."} ${escape(first.how)}${
    escape(shades)
  }</p></figcaption>
${networks.join("\n")}
</figure>`;
}

/** The figure that the full width of its bars stands for: neither the bare wire nor a rare delay is to flatten everything else. */
export function scaleOf(report: Report, network: string, metrics: readonly Metric[]): number {
  const largest = (among: readonly Metric[], contender: ContenderFacts) =>
    Math.max(0, ...among.map(({ id }) => resultOf(report, network, contender.id, id)?.summary?.max ?? 0));
  const tunnels = report.contenders.filter(({ id }) => id !== "none");
  const most = (among: readonly Metric[], of: readonly ContenderFacts[]) =>
    Math.max(0, ...of.map((one) => largest(among, one)));
  const all = most(metrics, report.contenders);
  const whole = metrics.filter(({ chart }) => chart?.part === LAST_WHOLE_PART);
  if (whole.length > 0) return Math.min(all, most(whole, report.contenders) * CUT_PARTS_ABOVE);
  const limit = most(metrics, tunnels) * CUT_ABOVE;
  return limit > 0 ? Math.min(all, limit) : all;
}

function rows(report: Report, network: string, metrics: readonly Metric[]): string {
  const scale = scaleOf(report, network, metrics);
  const items = report.contenders.map((contender, index) => {
    const results = metrics.map((metric) => ({ metric, result: resultOf(report, network, contender.id, metric.id) }));
    const colour = isMine(contender)
      ? "var(--accent)"
      : contender.id === "none"
      ? "var(--c0)"
      : `var(--c${1 + index % 5})`;
    return `<li class="row${isMine(contender) ? " mine" : ""}" style="--colour: ${colour}"><span class="name">${
      escape(contender.title)
    }</span>${rowBody(report, results, scale)}</li>`;
  });
  return `<ul class="rows">\n${items.join("\n")}\n</ul>`;
}

function rowBody(
  report: Report,
  results: readonly { readonly metric: Metric; readonly result: Result | undefined }[],
  scale: number,
): string {
  const [first] = results;
  if (first?.result?.summary === undefined) {
    return `<span class="none">no figure: ${escape(first?.result?.missing ?? "it was not measured")}</span>`;
  }
  const { metric, result } = first;
  const bars = results.toReversed().flatMap(({ metric: { chart }, result: part }) => {
    const median = part?.summary?.median;
    if (median === undefined) return [];
    const cut = median > scale ? " cut" : "";
    const shade = results.length > 1 ? ` ${chart?.part ?? ""}` : "";
    return [`<span class="bar${shade}${cut}" style="--w: ${share(median, scale)}"></span>`];
  });
  const values = result?.values.filter((value) => value !== null) ?? [];
  const ticks = values.length < 2 || first.result.summary.median > scale
    ? []
    : values.map((value) => `<span class="tick" style="--x: ${share(value, scale)}"></span>`);
  const ratio = ratioOf(report, first.result);
  const shown = ratio === undefined
    ? `<span class="ratio">${
      report.reference === first.result.contender ? '<span aria-label="the reference">1×</span>' : ""
    }</span>`
    : `<span class="ratio${first.result.contender === "none" ? "" : ` ${judge(report, metric, ratio)}`}">${
      times(ratio)
    }</span>`;
  return `<span class="track" aria-hidden="true">${bars.join("")}${ticks.join("")}</span><span class="value">${
    figure(first.result.summary.median, metric.unit)
  }</span>${shown}${spread(results)}`;
}

/** The rest of what the bars show, in words: further parts, or how far the rounds were apart. */
function spread(results: readonly { readonly metric: Metric; readonly result: Result | undefined }[]): string {
  const parts = results.flatMap(({ metric: { chart, unit }, result }) =>
    chart === undefined || result?.summary === undefined ? [] : [`${chart.part} ${figure(result.summary.median, unit)}`]
  );
  if (parts.length > 1) return `<span class="parts">${parts.join(" · ")}</span>`;
  const [first] = results;
  const summary = first?.result?.summary;
  if (first === undefined || summary === undefined || summary.min === summary.max) return "";
  const { unit } = first.metric;
  return `<span class="hidden">, rounds from ${figure(summary.min, unit)} to ${figure(summary.max, unit)}</span>`;
}

function share(value: number, scale: number): string {
  return `${Math.min(100, scale === 0 ? 0 : value / scale * 100).toFixed(2)}%`;
}

function tables(report: Report): string {
  const bodies = report.networks.map(({ id: network, about }) => {
    const head = report.contenders.map(({ title }) => `<th scope="col">${escape(title)}</th>`).join("");
    const lines = report.metrics.map((metric) => {
      const cells = report.contenders.map(({ id }) => cell(metric, resultOf(report, network, id, metric.id)));
      return `<tr><th scope="row">${escape(metric.title)}</th>${cells.join("")}</tr>`;
    });
    return `<h3>${escape(network)}</h3>
<p class="sub">${escape(about)}</p>
<div class="scroll" tabindex="0" role="region" aria-label="All figures, ${escape(network)}"><table>
<thead><tr><th scope="col">Median, and every round</th>${head}</tr></thead>
<tbody>
${lines.join("\n")}
</tbody></table></div>`;
  });
  return `<section>\n<h2>All figures</h2>\n${bodies.join("\n")}\n${reasons(report)}</section>`;
}

function cell({ unit }: Metric, result: Result | undefined): string {
  if (result?.summary === undefined) return "<td>–</td>";
  const rounds = result.values.map((value) => value === null ? "–" : figure(value, unit));
  const each = rounds.length > 1 ? `<small>${rounds.join(", ")}</small>` : "";
  return `<td>${figure(result.summary.median, unit)}${each}</td>`;
}

function reasons(report: Report): string {
  const titles = new Map(report.metrics.map(({ id, title }) => [id, title]));
  const items = report.results.flatMap(({ contender, network, metric, missing }) => {
    if (missing === undefined) return [];
    const who = contenderOf(report, contender)?.title ?? contender;
    return [`<li>${escape(`${who}, ${network}, ${titles.get(metric) ?? metric}: ${missing}`)}</li>`];
  });
  if (items.length === 0) return "";
  return `<details>\n<summary>Figures that are missing, and why (${items.length})</summary>\n<ul>${
    items.join("\n")
  }</ul>\n</details>\n`;
}

function about(report: Report): string {
  const { machine } = report;
  const facts: readonly (readonly [string, string])[] = [
    ["Processor", `${machine.cpu}, ${machine.cpus} in all`],
    ["Memory", `${(machine.memoryBytes / (1 << 30)).toFixed(1)} GiB`],
    ["Kernel", `Linux ${machine.kernel}`],
    ["Load average at the start", machine.loadAverage.toFixed(2)],
    ...(machine.emptyRuntimeBytes === undefined
      ? []
      : [["Runtime with an empty program", figure(machine.emptyRuntimeBytes, "B")] as const]),
    ["Versions", Object.entries(machine.tools).map(([name, version]) => `${name} ${version}`).join(", ")],
    ["Taken", `${day(report)}, in ${Math.round(report.elapsedSeconds)} s`],
    ["Command", report.settings.arguments.join(" ")],
  ];
  const contenders = report.contenders.map(({ title, version, commands }) =>
    `<details>\n<summary>${escape(title)}${version === undefined ? "" : ` ${escape(version)}`}</summary>\n<pre>${
      escape(commands.join("\n"))
    }</pre>\n</details>`
  );
  const [sample] = report.contenders.filter(({ id }) => id !== "none");
  const measuring = [
    ...new Set(
      report.results.filter(({ contender }) => contender === (sample ?? report.contenders[0])?.id).flatMap((
        { command },
      ) => command === undefined ? [] : [command]),
    ),
  ];
  return `<section>
<h2>How this was measured</h2>
<dl>
${facts.map(([name, value]) => `<dt>${escape(name)}</dt><dd>${escape(value)}</dd>`).join("\n")}
</dl>
<h2>Commands</h2>
${contenders.join("\n")}
${
    measuring.length === 0
      ? ""
      : `<details>\n<summary>What measures</summary>\n<pre>${escape(measuring.join("\n"))}</pre>\n</details>\n`
  }</section>`;
}
