/** Where the programs of two nodes run, and how they are run. */

/** Which of the two nodes. */
export type Side = "a" | "b";

/** Both of them. */
export const SIDES = ["a", "b"] as const;

/** Addresses inside the tunnel. */
export const OVERLAY: Readonly<Record<Side, string>> = { a: "10.9.0.1", b: "10.9.0.2" };

/** A program that failed, with what it said. */
export class ProgramError extends Error {
  override readonly name = "ProgramError";
}

/** A running program whose lines can be read as they come. */
export interface Program {
  /** Of the program itself: nothing between it and this process forks. */
  readonly pid: number;
  /** Lines of the stream that was asked for. */
  readonly lines: AsyncIterable<string>;
  /** Resolves with the exit code when the program has ended, `null` when a signal ended it. */
  readonly ended: Promise<number | null>;
  /** Asks it to stop. */
  stop(): void;
}

/** Runs programs for two sides. */
export interface ProgramHost {
  /** A folder that only this user can read, removed in the end. */
  readonly folder: string;
  /** Runs a program on a side to its end and returns its standard output. */
  run(side: Side, program: string, ...args: readonly string[]): Promise<string>;
  /** Starts a program on a side; the lines are those of the stream that is named. */
  start(side: Side, stream: "stdout" | "stderr", program: string, ...args: readonly string[]): Program;
}

/** Runs a program and returns its standard output. */
export async function run(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  const command = new Deno.Command(program, { args: [...args], stdin: "null", env });
  const { success, code, stdout, stderr } = await command.output();
  const text = new TextDecoder().decode(stdout);
  if (success) return text;
  const said = (new TextDecoder().decode(stderr) || text).trim();
  throw new ProgramError(`${program} ${args.join(" ")} failed with exit code ${code}: ${said}`);
}

/** Starts a program. */
export function start(
  program: string,
  args: readonly string[],
  options: { readonly stream: "stdout" | "stderr"; readonly env?: Readonly<Record<string, string>> },
): Program {
  const { stream, env = {} } = options;
  const child = new Deno.Command(program, {
    args: [...args],
    env,
    stdin: "null",
    stdout: stream === "stdout" ? "piped" : "null",
    stderr: stream === "stderr" ? "piped" : "inherit",
  }).spawn();
  return {
    pid: child.pid,
    lines: linesOf(child[stream]),
    ended: child.status.then(({ signal, code }) => signal === null ? code : null),
    stop: () => {
      try {
        child.kill("SIGTERM");
      } catch {
        // It has ended in the meantime.
      }
    },
  };
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}
