/**
 * One form for every error that a user of the command line can cause: what was done, which exit code it ends with, and
 * what the one line on standard error has to say.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import type { Outcome } from "./launcher.ts";

/** A mistake and what comes of it. */
export interface ErrorRow {
  /** The mistake, as a sentence. */
  readonly name: string;
  /** Arguments of `icx`; `{}` stands for the folder with the files of the table. */
  readonly args: readonly string[];
  /** What ends the run. */
  readonly code: 1 | 2 | 4;
  /** What was given, what is allowed and what to do, in parts that the line has to contain. */
  readonly says: readonly (string | RegExp)[];
  /** What it must not contain. */
  readonly hides?: readonly string[];
  /** Text for standard input. @default none */
  readonly stdin?: string;
  /** A shell script that runs `"$@"`, the command, under the conditions that make the mistake. @default `exec "$@"` */
  readonly script?: string;
}

/** Runs a row's command: `{}` in its arguments and its script is the folder. */
export type Runner = (row: ErrorRow) => Promise<Outcome>;

/** Options of {@linkcode checkErrors}. */
export interface CheckOptions {
  /** How many rows run side by side. @default 3 */
  readonly atOnce?: number;
}

/** Runs all rows, some at a time, and fails with everything that is not as it should be. */
export async function checkErrors(rows: readonly ErrorRow[], run: Runner, options: CheckOptions = {}): Promise<void> {
  const faults: string[] = [];
  const left = [...rows];
  const worker = async () => {
    for (let row = left.shift(); row !== undefined; row = left.shift()) {
      try {
        check(row, await run(row));
      } catch (error) {
        faults.push(`${row.name}: ${error instanceof Error ? error.message : error}`);
      }
    }
  };
  await Promise.all(Array.from({ length: options.atOnce ?? 3 }, worker));
  assert.equal(faults.length, 0, `${faults.length} of ${rows.length} rows:\n${faults.join("\n")}`);
}

function check(row: ErrorRow, { code, stdout, stderr }: Outcome): void {
  assert.equal(code, row.code, `exit code ${code}, not ${row.code}: ${stderr}`);
  assert.equal(stdout, "", "something was written to standard output");
  const json = row.args.includes("json");
  const line = json ? failedLine(stderr, row.code) : stderr;
  assert.match(line, /^[^\n]+\n$/, `not one line: ${stderr}`);
  assert(json || line.startsWith("icx: "), `it does not say who speaks: ${line}`);
  assert(!/^\s+at |\bfile:\/\//m.test(stderr), `a stack trace: ${stderr}`);
  for (const part of row.says) {
    assert(typeof part === "string" ? line.includes(part) : part.test(line), `${part} is not in: ${line}`);
  }
  for (const part of row.hides ?? []) assert(!stderr.includes(part), `it shows what it must not: ${stderr}`);
}

/** The message of the JSON line, the only one there is. */
function failedLine(stderr: string, exitCode: number): string {
  const { level, message, properties } = JSON.parse(stderr);
  assert.equal(level, "ERROR");
  assert.deepEqual([properties.event, properties.exitCode], ["failed", exitCode]);
  return `${message}\n`;
}

/**
 * Everything in a folder and below it, with modes and digests of the contents: what a command that failed may not have
 * changed. Among it are keys, which no failed comparison may print.
 */
export async function snapshot(folder: string): Promise<readonly string[]> {
  const entries: string[] = [];
  for (const entry of await fs.readdir(folder, { withFileTypes: true, recursive: true })) {
    const path = `${entry.parentPath}/${entry.name}`;
    const { mode } = await fs.lstat(path);
    const content = entry.isFile() ? createHash("sha256").update(await fs.readFile(path)).digest("hex") : "";
    entries.push(`${path} ${mode.toString(8)} ${content}`);
  }
  return entries.sort();
}
