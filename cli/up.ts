/** `icx up`: runs a tunnel to one peer until it is told to stop. */

import type { ExitCode } from "./exit.ts";
import type { UpArguments } from "./options.ts";
import { runTunnel } from "./tunnel.ts";

/** Runs the tunnel; resolves with the exit code once it has stopped. */
export async function up(args: UpArguments): Promise<ExitCode> {
  return await runTunnel(args);
}
