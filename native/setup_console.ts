/** Progress output, child processes and the error of the set-up. */

import process from "node:process";

/** A failure of the set-up that the person at the keyboard can do something about. */
export class SetupError extends Error {
  override readonly name = "SetupError";
  /** What to do next, as a finished sentence or a command. */
  readonly next: string;
  /** Last lines of the failed program, oldest first; empty when its output was shown live. */
  readonly output: readonly string[];

  constructor(
    message: string,
    next: string,
    options: { readonly output?: readonly string[]; readonly cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.next = next;
    this.output = options.output ?? [];
  }
}

/** Writes steps with their elapsed time to standard error, and stays silent while there is nothing to do. */
export class Console {
  readonly #startedAt = performance.now();
  #spoke = false;

  /** Prints one line. */
  line(text: string): void {
    this.#spoke = true;
    process.stderr.write(`icx setup: ${text}\n`);
  }

  /**
   * Runs `body` as a named step: says that it began, ticks while it lasts (a step that shows its own progress does not
   * need that), says how long it took.
   */
  async step<T>(title: string, body: () => Promise<T>, options: { readonly ticks?: boolean } = {}): Promise<T> {
    this.line(`${title} ...`);
    const startedAt = performance.now();
    const live = process.stderr.isTTY === true;
    const ticker = options.ticks === false ? undefined : setInterval(() => {
      const seconds = Math.round((performance.now() - startedAt) / 1000);
      process.stderr.write(live ? `\r  ${seconds} s\x1b[K` : `  still at it after ${seconds} s\n`);
    }, live ? 1000 : 15_000);
    let outcome = "failed after";
    try {
      const result = await body();
      outcome = "done in";
      return result;
    } finally {
      clearInterval(ticker);
      if (live && ticker !== undefined) process.stderr.write("\r\x1b[K");
      this.line(`  ${outcome} ${seconds(performance.now() - startedAt)}`);
    }
  }

  /** Closes the report; one line when nothing had to be done. */
  finish(): void {
    const elapsed = seconds(performance.now() - this.#startedAt);
    this.line(this.#spoke ? `ready (${elapsed})` : `up to date (${elapsed})`);
  }

  /** Prints what failed, the end of its output, and what to do next. */
  failure(error: SetupError): void {
    this.line(`cannot go on: ${error.message}`);
    for (const line of error.output) process.stderr.write(`  | ${line}\n`);
    process.stderr.write(`  next: ${error.next}\n`);
  }
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

const children = new Set<Deno.ChildProcess>();

/** Asks every running child to stop. */
export function stopChildren(): void {
  for (const child of children) {
    try {
      child.kill("SIGTERM");
    } catch {
      // Already gone.
    }
  }
}

/** How a program ended. */
export interface Outcome {
  /** Whether it ran to the end with exit code 0. */
  readonly ok: boolean;
  /** Exit code, or `undefined` when there is no such program. */
  readonly code: number | undefined;
  /** Everything it wrote to standard output. */
  readonly stdout: string;
  /** Last lines of both streams in the order they came; only standard output's when `liveStderr` was set. */
  readonly tail: readonly string[];
}

/** Options of {@linkcode run}. */
export interface RunOptions {
  /** Extra environment variables. */
  readonly env?: Readonly<Record<string, string>>;
  /** Working directory. */
  readonly cwd?: string;
  /** Let standard error go straight to the terminal. @default false */
  readonly liveStderr?: boolean;
}

const TAIL_LINES = 20;

/** Runs a program to its end and collects what it wrote. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(program, {
      args: [...args],
      stdin: "null",
      stdout: "piped",
      stderr: options.liveStderr ? "inherit" : "piped",
      ...(options.env === undefined ? {} : { env: { ...options.env } }),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    }).spawn();
  } catch (error) {
    // A program that is not on PATH is not in the resolved permission list either.
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotCapable) {
      return { ok: false, code: undefined, stdout: "", tail: [] };
    }
    throw error;
  }
  children.add(child);
  try {
    const tail: string[] = [];
    const collect = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string> => {
      let all = "";
      let rest = "";
      for await (const text of stream.pipeThrough(new TextDecoderStream())) {
        all += text;
        const lines = (rest + text).split(/\r?\n/);
        rest = lines.pop() ?? "";
        tail.push(...lines.filter((line) => line.trim() !== ""));
        tail.splice(0, Math.max(0, tail.length - TAIL_LINES));
      }
      if (rest.trim() !== "") tail.push(rest);
      return all;
    };
    const [stdout, , status] = await Promise.all([
      collect(child.stdout),
      options.liveStderr ? "" : collect(child.stderr),
      child.status,
    ]);
    return { ok: status.success, code: status.code, stdout, tail };
  } finally {
    children.delete(child);
  }
}
