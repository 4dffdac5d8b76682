/**
 * Entry point of the command line: reads the arguments and loads the one command that was asked for.
 *
 * @module
 */

import process from "node:process";
import { EXIT, type ExitCode } from "./exit.ts";
import { HELP } from "./help.ts";
import { err, flushErr, out } from "./terminal.ts";
import { VERSION } from "./version.ts";

async function main(args: readonly string[]): Promise<ExitCode> {
  // These two answer at once: the parser and all that comes after it stay unloaded.
  if (args.length === 1 && (args[0] === "--help" || args[0] === "-h")) {
    return print(HELP);
  }
  if (args.length === 1 && args[0] === "--version") {
    return print(`${VERSION}\n`);
  }
  const { dispatch } = await import("./dispatch.ts");
  return await dispatch(args);
}

function print(page: string): ExitCode {
  try {
    out(page);
    return EXIT.ok;
  } catch (error) {
    err(`icx: ${error instanceof Error ? error.message : String(error)}\n`);
    return EXIT.failure;
  }
}

const code = await main(process.argv.slice(2));
await flushErr();
process.exit(code);
