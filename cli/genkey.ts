/** `icx genkey`: makes a private identity key. */

import { Identity } from "../control/identity.ts";
import { Library } from "../native/library.ts";
import { EXIT, type ExitCode, UsageError } from "./exit.ts";
import type { GenkeyArguments, PubkeyArguments } from "./options.ts";
import { err } from "./terminal.ts";

/** The one file that was named, by argument or by `--identity-key`; `undefined` when none was. */
export function namedFile(args: GenkeyArguments | PubkeyArguments): string | undefined {
  if (args.file !== undefined && args.identityKey !== undefined && args.file !== args.identityKey) {
    throw new UsageError(
      `two files are named, ${JSON.stringify(args.file)} and --identity-key ${JSON.stringify(args.identityKey)}: ` +
        "name one of them only",
    );
  }
  return args.file ?? args.identityKey;
}

/** Writes a new private key to the file, or to standard output, and its public key to standard error. */
export async function genkey(args: GenkeyArguments): Promise<ExitCode> {
  const file = namedFile(args);
  if (file === undefined) {
    throw new UsageError(
      "no file is named: give the file to write, or - for standard output, as in icx genkey node.key",
    );
  }
  if (file === "-" && args.force) {
    throw new UsageError("--force replaces a file, and - is standard output: leave one of them out");
  }
  await using library = await Library.open();
  using identity = Identity.generate(file, { library, force: args.force });
  err(`${identity.publicKey}\n`);
  return EXIT.ok;
}
