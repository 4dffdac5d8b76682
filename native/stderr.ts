/**
 * Standard error without waiting: what `node:fs` and `node:process` offer holds the whole program up for as long as nobody
 * reads the pipe, or the terminal is stopped.
 *
 * @module
 */

/**
 * Writes to standard error from a thread of the runtime's pool.
 *
 * @param bytes What to write.
 * @returns How many of them were taken.
 */
export function writeStderr(bytes: Uint8Array): Promise<number> {
  return Deno.stderr.write(bytes);
}
