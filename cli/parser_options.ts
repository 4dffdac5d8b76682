/** How the parser presents itself: help, version, completions. */

import type { RunOptions } from "@optique/core/facade";
import { commandLine, lineBreak, message } from "@optique/core/message";
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
    usageLine: [{ type: "command", name: "COMMAND" }, { type: "literal", value: "[OPTION...]" }],
    footer: message`Two hosts, on each of them:${lineBreak()}  ${
      commandLine("icx genkey /etc/icx.key")
    }${lineBreak()}  ${
      commandLine("icx up --identity-key /etc/icx.key --peer-key KEY --address 10.9.0.1/24 PEER-HOST:6081")
    }${lineBreak()}${lineBreak()}"icx COMMAND --help" lists the options of a command. Exit codes: 0 a clean end, 1 a failure, 2 wrong arguments or keys, 4 a right is missing.`,
    showDefault: { prefix: " [default: " },
    aboveError: "none",
    colors,
    maxWidth,
  };
}
