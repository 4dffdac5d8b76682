/** From the arguments to the command: parses, loads the command's module, turns its errors into an exit code. */

import { EXIT, type ExitCode, exitCodeOf } from "./exit.ts";
import { type Arguments, findMisspelling, parseArguments } from "./options.ts";
import { parserOptions } from "./parser_options.ts";
import { columns, err, flushErr, out, painter, takesColour } from "./terminal.ts";

/** Ends parsing with an exit code: a page was shown, or the arguments are wrong. */
class ParsingEnded {
  readonly code: ExitCode;

  constructor(code: number) {
    this.code = code === 0 ? EXIT.ok : EXIT.usage;
  }
}

function parse(args: readonly string[]): Arguments {
  const end = (code = 0): never => {
    throw new ParsingEnded(code);
  };
  const options = parserOptions({ colors: takesColour("stdout"), maxWidth: columns("stdout") ?? 100 });
  return parseArguments(args, {
    ...options,
    help: { option: { names: ["-h", "--help"] }, onShow: end },
    version: { value: "", ...options.version, option: { names: ["--version"] }, onShow: end },
    completion: { command: true, onShow: end },
    aboveError: args.length === 0 ? "help" : "none",
    onError: (code) => {
      const misspelling = findMisspelling(args);
      if (misspelling !== undefined && misspelling.similar.length > 0) {
        err(`Did you mean ${misspelling.similar.join(" or ")} instead of ${misspelling.given}?\n`);
      }
      err("Run icx --help, or icx with a command and --help, to see what there is.\n");
      return end(code);
    },
    stdout: (text) => out(`${text}\n`),
    stderr: (text) => err(`${text}\n`),
  });
}

async function execute(args: Arguments): Promise<ExitCode> {
  switch (args.command) {
    case "genkey":
      return await (await import("./genkey.ts")).genkey(args);
    case "pubkey":
      return await (await import("./pubkey.ts")).pubkey(args);
    case "up":
      return await (await import("./up.ts")).up(args);
    case "demo":
      return await (await import("./demo.ts")).demo();
  }
}

/** Runs the command line and returns what to exit with. */
export async function dispatch(args: readonly string[]): Promise<ExitCode> {
  try {
    return await execute(parse(args));
  } catch (error) {
    if (error instanceof ParsingEnded) return error.code;
    const text = error instanceof Error ? error.message : String(error);
    err(`${painter("stderr")(["red", "bold"], "icx:")} ${text}\n`);
    return exitCodeOf(error);
  } finally {
    await flushErr();
  }
}
