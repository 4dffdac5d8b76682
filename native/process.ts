/**
 * The process itself, where the runtime has no call for it.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { check, errBuffer } from "./marshal.ts";

/**
 * Lets the kernel send a signal to this process when the one that started it ends. A parent that has ended before the call
 * is not noticed: compare `process.ppid` afterwards.
 *
 * @param signal The signal's number, 1 to 64; 0 for none.
 * @throws {NativeError} `EINVAL`.
 */
export function setParentDeathSignal(library: Library, signal: number): void {
  const operation = "icx_process_set_parent_death_signal";
  const { symbols } = library;
  const err = errBuffer();
  check(symbols, operation, symbols.icx_process_set_parent_death_signal(signal, err, err.byteLength), err);
}
