/** Exit codes, and which error ends with which of them. */

/** What the process exits with. */
export const EXIT = {
  /** A clean end. */
  ok: 0,
  /** Something failed at run time. */
  failure: 1,
  /** The command line, or a configuration or key that it names, is not acceptable. */
  usage: 2,
  /** A right is missing. */
  permission: 4,
} as const;

/** One of {@linkcode EXIT}. */
export type ExitCode = typeof EXIT[keyof typeof EXIT];

/** The command line is well-formed, yet asks for something that cannot be. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** What the library says of values and keys that it cannot take, whatever the machine. */
const UNACCEPTABLE: ReadonlySet<string> = new Set(["EINVAL", "EKEY", "invalid-argument", "key-refused"]);

/** Finds the code in an error or in what caused it. */
export function exitCodeOf(error: unknown): ExitCode {
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 8; at = at.cause, depth++) {
    if (at instanceof UsageError) return EXIT.usage;
    const { code, errno } = at as { readonly code?: unknown; readonly errno?: unknown };
    if (
      at.name === "NotCapable" || code === "EPERM" || code === "EACCES" || code === "permission-denied" || errno === 1
    ) {
      return EXIT.permission;
    }
    if (typeof code === "string" && UNACCEPTABLE.has(code)) return EXIT.usage;
  }
  return EXIT.failure;
}
