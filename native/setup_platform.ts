/** Which machines the project runs on. */

import os from "node:os";
import process from "node:process";
import { type Console, SetupError } from "./setup_console.ts";

/** Oldest Deno the code is written for. */
const DENO_MINIMUM = [2, 9, 6] as const;
/** Oldest kernel with UDP segmentation offload and the route attributes the underlay asks for. */
const KERNEL_MINIMUM = [5, 6] as const;

/** Compares dotted numbers; missing places count as 0. */
export function isOlder(version: string, minimum: readonly number[]): boolean {
  const places = version.split(/[^0-9]+/).map(Number);
  for (const [index, wanted] of minimum.entries()) {
    const place = places[index] ?? 0;
    if (place !== wanted) return place < wanted;
  }
  return false;
}

/** Refuses platforms the library cannot be built for, and warns about old kernels. */
export function checkPlatform(out: Console): void {
  if (process.platform !== "linux" || (process.arch !== "x64" && process.arch !== "arm64")) {
    throw new SetupError(
      `this is ${process.platform} on ${process.arch}, and icx runs on Linux on x86_64 and aarch64`,
      "use such a machine, a virtual machine or a container",
    );
  }
  const deno = process.versions["deno"] ?? "0";
  if (isOlder(deno, DENO_MINIMUM)) {
    throw new SetupError(
      `this is Deno ${deno}, and icx needs ${DENO_MINIMUM.join(".")} or newer`,
      `npx -y deno@${DENO_MINIMUM.join(".")} task setup`,
    );
  }
  const kernel = os.release();
  if (isOlder(kernel, KERNEL_MINIMUM)) {
    out.line(`warning: kernel ${kernel} is older than ${KERNEL_MINIMUM.join(".")}; a tunnel may not open on it`);
  }
}
