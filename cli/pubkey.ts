/** `icx pubkey`: prints the public key of a private identity key. */

import process from "node:process";
import { Identity } from "../control/identity.ts";
import { Library } from "../native/library.ts";
import { EXIT, type ExitCode, UsageError } from "./exit.ts";
import { namedFile } from "./genkey.ts";
import type { PubkeyArguments } from "./options.ts";
import { out } from "./terminal.ts";

/** Reads a private key from the file, or from standard input, and writes its public key to standard output. */
export async function pubkey(args: PubkeyArguments): Promise<ExitCode> {
  const file = namedFile(args);
  if (file === undefined && process.stdin.isTTY === true) {
    throw new UsageError("no file is named, and standard input is a terminal: give the file with the private key");
  }
  await using library = await Library.open();
  using identity = Identity.load(file ?? "-", { library });
  out(`${identity.publicKey}\n`);
  return EXIT.ok;
}
