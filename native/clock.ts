/**
 * The clock that keys expire by.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { check } from "./marshal.ts";

/**
 * Makes the function that tells the time since boot in milliseconds, time spent suspended included. The runtime's own
 * clocks stand still while the machine is suspended, or follow the wall clock.
 */
export function bootClock(library: Library): () => number {
  const out = new BigUint64Array(1);
  return () => {
    const { symbols } = library;
    check(symbols, "icx_clock_now", symbols.icx_clock_now(out, out.length));
    return Number(out[0] ?? 0n) / 1e6;
  };
}
