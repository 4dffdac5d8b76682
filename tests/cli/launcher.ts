/** Runs `cli/icx` as a user would, for tests. */

import { fileURLToPath } from "node:url";

/** Path of the launcher. */
export const LAUNCHER: string = fileURLToPath(new URL("../../cli/icx", import.meta.url));

/** How a run ended. */
export interface Outcome {
  /** Exit code. */
  readonly code: number;
  /** What it wrote to standard output. */
  readonly stdout: string;
  /** What it wrote to standard error. */
  readonly stderr: string;
}

/** Options of {@linkcode icx}. */
export interface RunOptions {
  /** Text for standard input. @default none */
  readonly stdin?: string;
  /** Program to run. @default {@linkcode LAUNCHER} */
  readonly launcher?: string;
}

/** Runs the command line to its end. */
export async function icx(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  const child = new Deno.Command(options.launcher ?? LAUNCHER, {
    args: [...args],
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  if (options.stdin !== undefined) {
    const writer = child.stdin.getWriter();
    // A command that refuses its arguments does not read its input.
    await writer.write(new TextEncoder().encode(options.stdin)).catch(() => {});
    await writer.close().catch(() => {});
  }
  const { code, stdout, stderr } = await child.output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}
