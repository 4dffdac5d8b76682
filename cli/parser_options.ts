/** How the parser presents itself: help, version, completions. */

import type { RunOptions } from "@optique/core/facade";
import { message } from "@optique/core/message";
import { VERSION } from "./version.ts";

/** What differs between one terminal and another. */
export interface Presentation {
  /** Whether to colour help and errors. */
  readonly colors: boolean;
  /** Characters in a line. */
  readonly maxWidth: number;
}

/** Options that every use of the parser shares. */
export function parserOptions({ colors, maxWidth }: Presentation): RunOptions<never, never> {
  return {
    brief: message`Encrypted overlay tunnels between hosts.`,
    help: { option: { names: ["-h", "--help"] } },
    version: { value: VERSION, option: { names: ["--version"] } },
    completion: { command: true },
    showDefault: { prefix: " [default: " },
    aboveError: "none",
    colors,
    maxWidth,
  };
}
