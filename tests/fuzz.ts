/**
 * Fuzzes every target of `rust/fuzz`, or those that are named, one after another under AddressSanitizer, and ends with
 * a table. New inputs are kept in `rust/fuzz/target/corpus`, and so is where the next run goes on; an input that fails
 * is in `rust/fuzz/artifacts`. The first failure ends the run.
 *
 * Usage: `deno task fuzz [SECONDS [TARGET...]]`; 30 seconds for each target by default.
 *
 * @module
 */

import { mkdirSync, readdirSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";

const FUZZ = fileURLToPath(new URL("../rust/fuzz", import.meta.url));

/** No input of a parser is larger than a datagram; the operations of a model are as many as this many bytes make. */
const MAX_INPUT_BYTES = 4096;
const MAX_MEMORY_MB = 2048;

/** What libFuzzer said at the end of a target. */
export interface Figures {
  readonly executions: number;
  readonly coverage: number;
  readonly corpus: number;
}

const EXECUTIONS = /^stat::number_of_executed_units: ([0-9]+)$/m;
const PROGRESS = /^#[0-9]+\s.*\bcov: ([0-9]+) .*\bcorp: ([0-9]+)\//gm;

/** Reads the output of libFuzzer; `undefined` when it has no final statistics. */
export function parseFigures(output: string): Figures | undefined {
  const executions = EXECUTIONS.exec(output)?.[1];
  const progress = [...output.matchAll(PROGRESS)].at(-1);
  if (executions === undefined || progress === undefined) return undefined;
  return { executions: Number(executions), coverage: Number(progress[1]), corpus: Number(progress[2]) };
}

async function fuzz(target: string, seconds: number): Promise<Figures | undefined> {
  const found = `${FUZZ}/target/corpus/${target}`;
  mkdirSync(found, { recursive: true });
  const limits = [
    `-max_total_time=${seconds}`,
    `-max_len=${MAX_INPUT_BYTES}`,
    `-rss_limit_mb=${MAX_MEMORY_MB}`,
    "-timeout=10",
    "-print_final_stats=1",
  ];
  const child = new Deno.Command("cargo", {
    args: ["fuzz", "run", "--fuzz-dir", FUZZ, target, found, `${FUZZ}/corpus/${target}`, "--", ...limits],
    stdin: "null",
    stdout: "inherit",
    stderr: "piped",
  }).spawn();
  let output = "";
  for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
    process.stderr.write(text);
    output += text;
  }
  return (await child.status).success ? parseFigures(output) : undefined;
}

async function main(): Promise<number> {
  const [first = "30", ...named] = process.argv.slice(2);
  const seconds = Number(first);
  const all = readdirSync(`${FUZZ}/corpus`).sort();
  const unknown = named.filter((target) => !all.includes(target));
  if (!Number.isSafeInteger(seconds) || seconds < 1 || unknown.length > 0) {
    const what = unknown.length > 0 ? `There is no target ${unknown.join(", ")}` : `'${first}' is no number of seconds`;
    process.stderr.write(`${what}. Usage: deno task fuzz [SECONDS [TARGET...]], of: ${all.join(" ")}\n`);
    return 2;
  }
  const targets = named.length > 0 ? named : all;
  const rows: string[] = [];
  let failed: string | undefined;
  for (const target of targets) {
    process.stderr.write(`\n==== ${target}\n`);
    const figures = await fuzz(target, seconds);
    if (figures === undefined) {
      failed = target;
      break;
    }
    const columns = [figures.executions, figures.coverage, figures.corpus].map((value) => String(value).padStart(12));
    rows.push(`${target.padEnd(18)}${columns.join("")}\n`);
  }
  process.stdout.write(`\n${"target".padEnd(18)}  executions    coverage      corpus\n${rows.join("")}`);
  if (failed === undefined) return 0;
  process.stdout.write(`${failed} failed: see above\n`);
  return 1;
}

if (import.meta.main) process.exit(await main());
