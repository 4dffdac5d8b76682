/**
 * How large an inner packet may be.
 *
 * @module
 */

import { requireInteger } from "../native/arguments.ts";
import { NativeError } from "../native/errors.ts";
import { innerMtu as nativeInnerMtu } from "../native/engine.ts";
import { type Library, libraryOf } from "../native/library.ts";
import { DatapathError, guarded } from "./errors.ts";

/** Headers and tag around the smallest inner packet. */
const LEAST_PATH_MTU = 112;

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
  const operation = "compute the inner MTU";
  libraryOf({ library }, operation);
  requireInteger(pathMtuBytes, { operation, name: "pathMtuBytes", min: 0, max: 2 ** 32 - 1 });
  return guarded(operation, () => {
    try {
      return nativeInnerMtu(library, pathMtuBytes);
    } catch (cause) {
      if (!(cause instanceof NativeError && cause.code === "EINVAL")) throw cause;
      throw new DatapathError(
        `Cannot ${operation} as a path must carry packets of ${LEAST_PATH_MTU} bytes at least: current value is ` +
          `${pathMtuBytes}; raise the MTU of the interface on the way`,
        { code: "invalid-argument", operation, cause },
      );
    }
  });
}
