/**
 * Runs the stages of `deno task test` in order, shows their output live, and ends with a table and the total:
 * the last line is `N passed, N failed`. A stage that fails ends the run; a stage in which nothing ran has failed.
 *
 * @module
 */

import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../", import.meta.url));
const RUNTIME = fileURLToPath(new URL("../native/lib/deno", import.meta.url));

/** The Rust vector suites are part of `test:rust`, so `vectors` here is the TypeScript half. */
const STAGES = [
  { name: "rust", task: "test:rust" },
  { name: "typescript", task: "test:ts" },
  { name: "vectors", task: "test:vectors:ts" },
  { name: "privileged", task: "test:privileged" },
] as const;

interface Tally {
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
}

interface Result extends Tally {
  readonly name: string;
  readonly seconds: number;
}

const ANSI = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, "g");
const CARGO = /^test result: \w+\. ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored;/;
const DENO = /^(?:ok|FAILED) \| ([0-9]+) passed.* \| ([0-9]+) failed/;
const DENO_IGNORED = / \| ([0-9]+) ignored/;

/** Reads a summary line of cargo or Deno; `undefined` for any other line. */
export function parseSummary(line: string): Tally | undefined {
  const plain = line.replace(ANSI, "").trim();
  const cargo = CARGO.exec(plain);
  if (cargo !== null) return { passed: Number(cargo[1]), failed: Number(cargo[2]), ignored: Number(cargo[3]) };
  const deno = DENO.exec(plain);
  if (deno === null) return undefined;
  return { passed: Number(deno[1]), failed: Number(deno[2]), ignored: Number(DENO_IGNORED.exec(plain)?.[1] ?? 0) };
}

/** Adds up what a stage printed. A stage that ended badly, or ran nothing, counts one failure if it named none. */
export function judge(summaries: readonly Tally[], exitCode: number): Tally {
  const sum = (field: keyof Tally) => summaries.reduce((total, tally) => total + tally[field], 0);
  const tally = { passed: sum("passed"), failed: sum("failed"), ignored: sum("ignored") };
  const ranNothing = tally.passed + tally.failed + tally.ignored === 0;
  return (exitCode !== 0 || ranNothing) && tally.failed === 0 ? { ...tally, failed: 1 } : tally;
}

async function runStage(stage: typeof STAGES[number]): Promise<Result> {
  const startedAt = performance.now();
  const child = new Deno.Command(RUNTIME, {
    args: ["task", stage.task],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const summaries: Tally[] = [];
  const follow = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>, to: NodeJS.WriteStream): Promise<void> => {
    let rest = "";
    for await (const text of stream.pipeThrough(new TextDecoderStream())) {
      to.write(text);
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const summary = parseSummary(line);
        if (summary !== undefined) summaries.push(summary);
      }
    }
  };
  const [status] = await Promise.all([
    child.status,
    follow(child.stdout, process.stdout),
    follow(child.stderr, process.stderr),
  ]);
  return { name: stage.name, ...judge(summaries, status.code), seconds: (performance.now() - startedAt) / 1000 };
}

async function main(): Promise<number> {
  // A stopped run stops its stages too: they are in the same process group and get the signal themselves.
  const results: Result[] = [];
  for (const stage of STAGES) {
    process.stdout.write(`\n==== ${stage.name} (deno task ${stage.task})\n`);
    const result = await runStage(stage);
    results.push(result);
    if (result.failed > 0) break;
  }
  process.stdout.write("\nstage         passed  failed  ignored     time\n");
  for (const { name, passed, failed, ignored, seconds } of results) {
    const columns = [String(passed).padStart(8), String(failed).padStart(8), String(ignored).padStart(9)];
    process.stdout.write(`${name.padEnd(12)}${columns.join("")}${`${seconds.toFixed(1)} s`.padStart(9)}\n`);
  }
  const notRun = STAGES.slice(results.length).map(({ name }) => name);
  if (notRun.length > 0) process.stdout.write(`not run after the failure: ${notRun.join(", ")}\n`);
  const passed = results.reduce((total, result) => total + result.passed, 0);
  const failed = results.reduce((total, result) => total + result.failed, 0);
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  return failed === 0 ? 0 : 1;
}

if (import.meta.main) process.exit(await main());
