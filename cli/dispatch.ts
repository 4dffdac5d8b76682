/** From the arguments to the command: parses, loads the command's module, turns its errors into an exit code. */

import { stripVTControlCharacters } from "node:util";
import { formatMessage } from "@optique/core/message";
import { EXIT, type ExitCode, exitCodeOf } from "./exit.ts";
import { type Arguments, commandOf, findMisspelling, findProxyValue, parseArguments } from "./options.ts";
import { parserOptions } from "./parser_options.ts";
import { columns, err, out, painter, takesColour } from "./terminal.ts";

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
  const bare = args.length === 0;
  return parseArguments(args, {
    ...options,
    help: { option: { names: ["-h", "--help"] }, onShow: end },
    version: { value: "", ...options.version, option: { names: ["--version"] }, onShow: end },
    completion: { command: true, onShow: end },
    aboveError: bare ? "help" : "none",
    onError: (code, error) => {
      const text = bare ? "there is no command." : oneLine(formatMessage(error, { colors: takesColour("stderr") }));
      complain(text, advice(args, { lacksPeer: text.includes("PEER-HOST") }));
      return end(code);
    },
    stdout: (text) => out(`${text}\n`),
    // Errors are told in one line by `onError`; what is left is the page that an empty command line asks for.
    stderr: (text) => {
      if (bare && !stripVTControlCharacters(text).startsWith("Error:")) err(`${text}\n`);
    },
  });
}

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, " ").trim();
}

/** What to do about arguments that cannot be used. */
function advice(args: readonly string[], { lacksPeer }: { readonly lacksPeer: boolean }): string {
  const misspelling = findMisspelling(args);
  const meant = misspelling === undefined || misspelling.similar.length === 0
    ? ""
    : `Did you mean ${misspelling.similar.join(" or ")} instead of ${misspelling.given}? `;
  const proxy = lacksPeer ? findProxyValue(args) : undefined;
  const taken = proxy === undefined
    ? ""
    : `${proxy.option} took ${proxy.value} as the place to listen on: if that is the peer, put it in front of the options. `;
  return `${meant}${taken}See ${["icx", commandOf(args) ?? [], "--help"].flat().join(" ")}.`;
}

/** Says what is wrong, in one line, and what to do. */
function complain(text: string, next = ""): void {
  err(`${painter("stderr")(["red", "bold"], "icx:")} ${text}${next === "" ? "" : ` ${next}`}\n`);
}

async function execute(args: Arguments): Promise<ExitCode> {
  switch (args.command) {
    case "genkey":
      return await (await import("./genkey.ts")).genkey(args);
    case "pubkey":
      return await (await import("./pubkey.ts")).pubkey(args);
    case "up":
      return await (await import("./up.ts")).up(args);
    case "proxy":
      return await (await import("./proxy.ts")).proxy(args);
    case "ping":
      return await (await import("./ping.ts")).ping(args);
    case "demo":
      return await (await import("./demo.ts")).demo();
    case "bench":
      return await (await import("./bench.ts")).bench(args);
  }
}

/** Runs the command line and returns what to exit with. */
export async function dispatch(given: readonly string[]): Promise<ExitCode> {
  let args: Arguments | undefined;
  try {
    args = parse(given);
    return await execute(args);
  } catch (error) {
    if (error instanceof ParsingEnded) return error.code;
    const text = error instanceof Error ? error.message : String(error);
    const code = exitCodeOf(error);
    if (args !== undefined && "peer" in args) {
      (await import("./tunnel.ts")).reportFailure(args, { error, text, exitCode: code });
    } else complain(text);
    return code;
  }
}
