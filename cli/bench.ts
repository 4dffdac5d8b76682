/** `icx bench`: how fast is it, beside what else is installed, or through a tunnel that is up. */

import fs from "node:fs/promises";
import process from "node:process";
import type { BenchArguments } from "./options.ts";
import { contendersOf, missingText, missingTools, type Tool } from "./bench/contenders.ts";
import { listen } from "./bench/live_server.ts";
import { measureLive } from "./bench/live_client.ts";
import { renderHtml } from "./bench/html.ts";
import { runMatrix } from "./bench/matrix.ts";
import { type Network, NETWORKS } from "./bench/plan.ts";
import { type Progress, StderrProgress } from "./bench/progress.ts";
import type { Report } from "./bench/report.ts";
import { renderTable } from "./bench/table.ts";
import { EXIT, type ExitCode, UsageError } from "./exit.ts";
import { stoppable } from "./stoppable.ts";
import { err, out } from "./terminal.ts";

const TOOLS: readonly Tool[] = [
  { program: "ip", package: "iproute2" },
  { program: "iperf3", package: "iperf3" },
  { program: "ping", package: "iputils-ping" },
  { program: "perl", package: "perl-base" },
];
/** What shapes the wire of the `segmented` network. */
const ETHTOOL: Tool = { program: "ethtool", package: "ethtool" };

/** Runs the command and returns what to exit with. */
export async function bench(args: BenchArguments): Promise<ExitCode> {
  refuseCombinations(args);
  for (const file of [args.json, args.html]) if (file !== undefined) await checkWritable(file);
  if (args.listen !== undefined) {
    const address = args.listen;
    await stoppable((signal) => listen(address, { signal, say: (text) => err(`${text}\n`) }));
    return EXIT.ok;
  }
  if (args.to !== undefined) {
    const address = args.to;
    const settings = { ...durations(args), quick: args.quick, arguments: commandLine() };
    return await publish(
      args,
      await showingProgress((progress, signal) => measureLive(address, { ...settings, progress, signal })),
    );
  }
  return await benchMatrix(args);
}

async function showingProgress<T>(body: (progress: Progress, signal: AbortSignal) => Promise<T>): Promise<T> {
  const progress = new StderrProgress();
  try {
    return await stoppable((signal) => body(progress, signal));
  } finally {
    progress.end();
  }
}

async function benchMatrix(args: BenchArguments): Promise<ExitCode> {
  const contenders = await contendersOf(args.contenders);
  if (process.getuid?.() !== 0) {
    err(
      "icx: bench needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): it makes network namespaces, veth pairs and tunnel " +
        "devices, and removes them again. Run it as root, or measure a tunnel that is up: icx bench --to ADDRESS\n",
    );
    return EXIT.permission;
  }
  const networks = networksOf(args);
  const missing = await missingTools(networks.includes("segmented") ? [...TOOLS, ETHTOOL] : TOOLS);
  if (missing.length > 0) throw new Error(`bench needs ${missingText(missing)}`);
  const settings = { networks, contenders, ...durations(args), quick: args.quick, arguments: commandLine() };
  return await publish(args, await showingProgress((progress, signal) => runMatrix(settings, { progress, signal })));
}

/** What goes with measuring between namespaces alone. */
function refuseCombinations(args: BenchArguments): void {
  const live = args.listen !== undefined ? "--listen" : args.to !== undefined ? "--to" : undefined;
  if (live === undefined) return;
  const given = [
    ["--to", live === "--listen" && args.to !== undefined],
    ["--contender", args.contenders.length > 0],
    ["--net", args.networks.length > 0],
    ["--quick", live === "--listen" && args.quick],
    ["--seconds", live === "--listen" && args.seconds !== undefined],
    ["--rounds", live === "--listen" && args.rounds !== undefined],
    ["--json", live === "--listen" && args.json !== undefined],
    ["--html", live === "--listen" && args.html !== undefined],
  ] as const;
  const wrong = given.filter(([, is]) => is).map(([name]) => name);
  if (wrong.length > 0) {
    throw new UsageError(
      `${live} does not go with ${wrong.join(", ")}: leave ${wrong.length === 1 ? "it" : "them"} out`,
    );
  }
}

function durations({ quick, seconds, rounds }: BenchArguments): { readonly seconds: number; readonly rounds: number } {
  return { seconds: seconds ?? (quick ? 1 : 4), rounds: rounds ?? (quick ? 1 : 3) };
}

function networksOf({ networks, quick }: BenchArguments): readonly Network[] {
  const asked = [...new Set(networks)];
  if (asked.length > 0) return asked;
  return quick ? ["veth"] : Object.keys(NETWORKS) as Network[];
}

function commandLine(): readonly string[] {
  return ["icx", ...process.argv.slice(2)];
}

async function publish({ json, html }: BenchArguments, report: Report): Promise<ExitCode> {
  out(`\n${renderTable(report)}`);
  if (json !== undefined) await write(json, `${JSON.stringify(report, null, 2)}\n`);
  if (html !== undefined) await write(html, renderHtml(report));
  return report.results.some(({ summary }) => summary !== undefined) ? EXIT.ok : EXIT.failure;
}

/** Fails now rather than when everything has been measured. What a file holds stays until then. */
async function checkWritable(file: string): Promise<void> {
  await writing(file, async () => await (await fs.open(file, "a")).close());
}

async function write(file: string, text: string): Promise<void> {
  await writing(file, () => fs.writeFile(file, text));
  err(`wrote ${file}\n`);
}

async function writing(file: string, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`cannot write ${file}: ${reason}: name a file in a folder that exists`, { cause });
  }
}
