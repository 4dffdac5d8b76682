/** Work that a signal, or the death of the process that started this one, interrupts so that it can clean up. */

import process from "node:process";
import { followParent } from "./parent.ts";

/** Runs `body` with a signal that aborts on SIGINT, SIGTERM, SIGHUP and the parent's death. */
export async function stoppable<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stopped = new AbortController();
  const onSignal = (signal: string) => stopped.abort(new Error(`stopped by ${signal}`));
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, onSignal);
  await followParent();
  return await body(stopped.signal);
}

/** Settles as the work does, or rejects with the reason for the abort, whichever comes first. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  // Whoever aborts goes on to take away what the work stands on; how it fails then is of no interest.
  work.catch(() => {});
  let onAbort = (): void => {};
  try {
    return await Promise.race([
      work,
      new Promise<never>((_, reject) => {
        onAbort = () => reject(signal.reason);
        signal.addEventListener("abort", onAbort, { once: true });
        if (signal.aborted) onAbort();
      }),
    ]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
