/**
 * Entry point of the command line: reads the arguments and loads the one command that was asked for.
 *
 * @module
 */

import process from "node:process";
import type { ExitCode } from "./exit.ts";
import { HELP } from "./help.ts";
import { VERSION } from "./version.ts";

async function main(args: readonly string[]): Promise<ExitCode> {
  // These two answer at once: the parser and all that comes after it stay unloaded.
  if (args.length === 1 && (args[0] === "--help" || args[0] === "-h")) {
    process.stdout.write(HELP);
    return 0;
  }
  if (args.length === 1 && args[0] === "--version") {
    process.stdout.write(`${VERSION}\n`);
    return 0;
  }
  const { dispatch } = await import("./dispatch.ts");
  return await dispatch(args);
}

process.exit(await main(process.argv.slice(2)));
