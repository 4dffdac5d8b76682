/** The report as a table for a terminal. */

import { figure, ratioOf, type Report, resultOf, times } from "./report.ts";

/** Lays cells out in columns, the first to the left and the others to the right. */
export function layOut(rows: readonly (readonly string[])[]): readonly string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) =>
    row.map((cell, column) => column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0))
      .join(
        "  ",
      ).trimEnd()
  );
}

/** One table for each network: metrics down, contenders across, medians with their ratio to the reference. */
export function renderTable(report: Report): string {
  const lines: string[] = [];
  const reference = report.contenders.find(({ id }) => id === report.reference);
  for (const { id: network, about } of report.networks) {
    lines.push("", `${network}: ${about}`, "");
    const header = ["", ...report.contenders.map(({ title }) => title)];
    const rows = report.metrics.map((metric) => [
      metric.title,
      ...report.contenders.map(({ id }) => {
        const result = resultOf(report, network, id, metric.id);
        if (result?.summary === undefined) return "–";
        const ratio = ratioOf(report, result);
        return figure(result.summary.median, metric.unit) + (ratio === undefined ? "" : ` (${times(ratio)})`);
      }),
    ]);
    lines.push(...layOut([header, ...rows]));
  }
  lines.push("");
  const { rounds } = report.settings;
  const missing = missingLines(report);
  const taken = rounds === 1 ? "One round" : `Medians of ${rounds} rounds`;
  const ratios = reference === undefined ? "" : `; in parentheses the ratio to ${reference.title}`;
  lines.push(`${taken}${ratios}.${missing.length === 0 ? "" : " – is no figure, or not in every round:"}`, ...missing);
  return `${lines.join("\n").trimStart()}\n`;
}

/** Why figures are missing, each reason once, with what it concerns. */
export function missingLines(report: Report): readonly string[] {
  const concerned = new Map<string, string[]>();
  for (const { contender, network, metric, missing } of report.results) {
    if (missing === undefined) continue;
    const title = report.contenders.find(({ id }) => id === contender)?.title ?? contender;
    const key = `  ${title}${report.networks.length > 1 ? `, ${network}` : ""}: ${missing}`;
    concerned.set(key, [...concerned.get(key) ?? [], report.metrics.find(({ id }) => id === metric)?.title ?? metric]);
  }
  return [...concerned].map(([reason, metrics]) =>
    metrics.length === report.metrics.length ? reason : `${reason} (${metrics.join("; ")})`
  );
}
