/** What a shell is asked for: which programs there are, and files of the kernel. */

/** Runs a line of shell, with `args` as `$1` and so on. */
export async function shell(
  line: string,
  ...args: readonly string[]
): Promise<{ readonly code: number; readonly stdout: string }> {
  const command = new Deno.Command("/bin/sh", {
    args: ["-c", line, "sh", ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "null",
  });
  const { code, stdout } = await command.output();
  return { code, stdout: new TextDecoder().decode(stdout) };
}

/** Where a program is, from its name or its path; `undefined` when it is not there or cannot be executed. */
export async function findProgram(program: string): Promise<string | undefined> {
  const { code, stdout } = await shell('found=$(command -v -- "$1") && readlink -f -- "$found"', program);
  return code === 0 && stdout.startsWith("/") ? stdout.trim() : undefined;
}

/**
 * Reads files of the kernel, one after another: the runtime gives those under `/proc` only to programs with every permission.
 *
 * @returns What they hold; `undefined` when one of them cannot be read, such as that of a process which has ended.
 */
export async function readKernelFiles(...paths: readonly string[]): Promise<readonly string[] | undefined> {
  const separator = `${crypto.randomUUID()}\n`;
  const { code, stdout } = await shell(
    'separator=$1; shift; for file; do cat -- "$file" || exit; printf %s "$separator"; done',
    separator,
    ...paths,
  );
  return code === 0 ? stdout.split(separator).slice(0, -1) : undefined;
}
