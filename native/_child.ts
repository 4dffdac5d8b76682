/** Runs a script in a Deno process of its own, with permissions of its own. */

import { fileURLToPath } from "node:url";

const DENO = fileURLToPath(new URL("./lib/deno", import.meta.url));

/** How a child ended. */
export interface ChildResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** What a child may have. */
export interface ChildOptions {
  /** How many files it may have open. @default as many as this process */
  readonly openFiles?: number | undefined;
}

/**
 * Runs a module text.
 *
 * @param source The text. `native/` in its import specifiers stands for this folder.
 * @param flags Permission flags.
 * @param options Limits.
 */
export async function runChild(
  source: string,
  flags: readonly string[],
  options: ChildOptions = {},
): Promise<ChildResult> {
  const limit = options.openFiles === undefined ? "" : `ulimit -n ${options.openFiles}; `;
  const child = new Deno.Command("/bin/sh", {
    args: [
      "-c",
      `${limit}exec "$@"`,
      "sh",
      DENO,
      "run",
      "--no-prompt",
      "--quiet",
      "--no-lock",
      "--ext=ts",
      ...flags,
      "-",
    ],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(
    new TextEncoder().encode(source.replaceAll('"native/', `"${new URL("./", import.meta.url).href}`)),
  );
  await writer.close();
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}
