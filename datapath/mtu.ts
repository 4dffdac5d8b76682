/**
 * How large an inner packet may be.
 *
 * @module
 */

import { innerMtu as nativeInnerMtu } from "../native/engine.ts";
import type { Library } from "../native/library.ts";
import { guarded } from "./errors.ts";

/**
 * The largest inner packet that fits a path with either IP version outside: path MTU less 96 bytes of headers and tag,
 * rounded down to a multiple of 16.
 *
 * @param library The library.
 * @param pathMtuBytes The largest IP packet that the path carries, in bytes.
 * @returns Bytes.
 * @throws {DatapathError} When the path is too small to carry a minimal packet.
 *
 * @example Ethernet
 * ```ts
 * import { innerMtu, Library } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * strictEqual(innerMtu(library, 1500), 1392);
 * ```
 */
export function innerMtu(library: Library, pathMtuBytes: number): number {
  return guarded("compute the inner MTU", () => nativeInnerMtu(library, pathMtuBytes));
}
